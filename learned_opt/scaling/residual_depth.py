"""Find the parameters in residual blocks, by comparing networks of two depths.
"""

import re

from learned_opt import base


def find(shapes: dict[str, base.Shape], deeper: dict[str, base.Shape],
         declared: set[str]
         ) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
  """Return the number of blocks and the layer axis of parameters in blocks.

  A deeper network differs in one of two ways:

  * Each further block adds a path for each of its parameters, such as
    "block_3/dense/kernel" next to "block_2/dense/kernel".
  * One axis, the layer axis, becomes longer, as under flax's nn.scan.

  Args:
    shapes: {path: shape} of the network.
    deeper: {path: shape} of the same network at the same width, with more
      blocks.
    declared: paths whose depth the user has declared.

  Returns:
    ({path in a block: number of blocks}, {path: (layer axis,)}).

  Raises:
    ValueError: the two networks differ in neither of these ways.
  """
  lost = sorted(set(shapes) - set(deeper))
  if lost:
    raise ValueError(f"deeper_shapes has no entry for {lost[0]}; it must be "
                     "the tree of the same network with more blocks.")
  changed = [path for path in shapes
             if shapes[path] != deeper[path] and path not in declared]
  if len(deeper) == len(shapes):
    return _stacked(shapes, deeper, changed)
  if changed:
    raise ValueError(
        f"{changed[0]} has shape {shapes[changed[0]]}, and in the deeper "
        f"network {deeper[changed[0]]}, so names do not tell which parameters "
        "are in blocks. Declare their depth: overrides={'path': "
        "scaling.Override(depth=...)}.")
  return _numbered(shapes, deeper, declared), {}


def _stacked(shapes: dict[str, base.Shape], deeper: dict[str, base.Shape],
             changed: list[str]
             ) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
  """Return the result of `find` for networks whose layer axis becomes longer.
  """
  axes = {path: [i for i, (n, m) in enumerate(
      zip(shapes[path], deeper[path])) if n != m] for path in changed}
  if not changed or any(len(x) != 1 for x in axes.values()):
    raise ValueError("deeper_shapes must differ in one axis of some "
                     "parameters, or have more parameters.")
  return ({path: shapes[path][i] for path, (i,) in axes.items()},
          {path: (i,) for path, (i,) in axes.items()})


def _templates(path: str) -> list[tuple[int, str]]:
  """Return the path with the number of one path component replaced by "#".

  Returns:
    One (index of the component, path) for each component with a number:
    "block_3/dense_0/kernel" gives (0, "block_#/dense_0/kernel") and (1,
    "block_3/dense_#/kernel").
  """
  parts = path.split("/")
  return [(i, "/".join([*parts[:i], re.sub(r"\d+", "#", part), *parts[i + 1:]]))
          for i, part in enumerate(parts) if re.search(r"\d", part)]


def _numbered(shapes: dict[str, base.Shape], deeper: dict[str, base.Shape],
              declared: set[str]) -> dict[str, int]:
  """Return {path in a block: number of blocks}, from the paths that are new.

  A path is in a block if the deeper network has new paths that differ from it
  in one number only.
  """
  new_shapes: dict[tuple[int, str], set[base.Shape]] = {}
  for path in set(deeper) - set(shapes):
    for template in _templates(path):
      new_shapes.setdefault(template, set()).add(deeper[path])
  members: dict[tuple[int, str], list[str]] = {}
  for path in shapes:
    if path not in declared:
      for template in _templates(path):
        if template in new_shapes:
          members.setdefault(template, []).append(path)
  depths: dict[str, int] = {}
  for template, paths in members.items():
    for path in paths:
      # A first layer "dense_0" of another shape than the hidden "dense_1" and
      # "dense_2" matches their template, but is no block.
      if new_shapes[template] != {shapes[path]} or path in depths:
        raise ValueError(
            f"{path} has the name of a parameter in a block, but another "
            "shape, or its name has numbers of two kinds of blocks. Declare "
            "its depth, 1 outside of blocks: overrides={'path': "
            "scaling.Override(depth=...)}.")
      depths[path] = len(paths)
  return depths
