"""Which parameters are in residual blocks: those a deeper network has more of.
"""

import re


def find(shapes: dict[str, tuple], deeper: dict[str, tuple],
         declared: set[str]
         ) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
  """Number of blocks and axis of layers, from two depths.

  A network either has one more path for each parameter of each further block,
  such as "block_3/dense/kernel" beside "block_2/dense/kernel", or one axis of
  layers that becomes longer.

  Args:
    shapes: of the network, by path.
    deeper: of the same network with more blocks, of the same width.
    declared: paths whose depth the user has said.

  Returns:
    ({path in a block: number of blocks}, {path: (axis of layers,)}).

  Raises:
    ValueError: neither fits.
  """
  lost = sorted(set(shapes) - set(deeper))
  if lost:
    raise ValueError(f"deeper_shapes has no entry for {lost[0]}; it must be "
                     "the tree of the same network with more blocks.")
  changed = [path for path in shapes
             if shapes[path] != deeper[path] and path not in declared]
  if len(deeper) == len(shapes):
    axes = {path: [i for i, (n, m) in enumerate(
        zip(shapes[path], deeper[path])) if n != m] for path in changed}
    if not changed or any(len(x) != 1 for x in axes.values()):
      raise ValueError("deeper_shapes must differ in one axis of some "
                       "parameters, or have more parameters.")
    return ({path: shapes[path][i] for path, (i,) in axes.items()},
            {path: (i,) for path, (i,) in axes.items()})
  if changed:
    raise ValueError(
        f"{changed[0]} has shape {shapes[changed[0]]}, and in the deeper "
        f"network {deeper[changed[0]]}, so names do not tell which parameters "
        "are in blocks. Declare their depth: overrides={'path': "
        "scaling.Override(depth=...)}.")
  return _numbered(shapes, deeper, declared), {}


def _families(path: str) -> list[tuple[int, str]]:
  """The path with one of its parts that have a number without this number."""
  parts = path.split("/")
  return [(i, "/".join([*parts[:i], re.sub(r"\d+", "#", part), *parts[i + 1:]]))
          for i, part in enumerate(parts) if re.search(r"\d", part)]


def _numbered(shapes, deeper, declared) -> dict[str, int]:
  more: dict[tuple, set] = {}
  for path in set(deeper) - set(shapes):
    for family in _families(path):
      more.setdefault(family, set()).add(deeper[path])
  members: dict[tuple, list[str]] = {}
  for path in shapes:
    if path not in declared:
      for family in _families(path):
        if family in more:
          members.setdefault(family, []).append(path)
  found: dict[str, int] = {}
  for family, paths in members.items():
    for path in paths:
      if more[family] != {shapes[path]} or path in found:
        raise ValueError(
            f"{path} has the name of a parameter in a block, but not its "
            "shape, or names of two kinds. Declare its depth, 1 outside of "
            "blocks: overrides={'path': scaling.Override(depth=...)}.")
      found[path] = len(paths)
  return found
