"""Warnings where an optimizer is used far from what it was meta-trained on.

That a learned optimizer works on wider networks is what muP is for, so width is
warned of only where nobody has looked: WIDTH_FACTOR times the widest network of
meta-training. No such rule carries it to longer runs: of any horizon beyond
the longest episode one is warned. Batch sizes are recorded (`Artifact.trained`)
but an optimizer cannot see them.
"""

import warnings

import jax

from learned_opt import artifact as artifact_lib
from learned_opt.scaling import width

WIDTH_FACTOR = 64


class BeyondTrainingWarning(UserWarning):
  """A learned optimizer is used beyond its meta-training."""


def _warn(message: str) -> None:
  # At the caller of load or init. Python shows it once for each such line.
  warnings.warn(
      f"{message} Filter mulo.BeyondTrainingWarning to silence this.",
      BeyondTrainingWarning, stacklevel=4)


def check_horizon(artifact: artifact_lib.Artifact, name, num_steps) -> None:
  """Warns if num_steps is known and more than the longest episode."""
  trained = artifact.trained.horizon
  if trained is None or num_steps is None or isinstance(
      num_steps, jax.core.Tracer):
    return
  if num_steps > trained[1]:
    _warn(f"{name} was meta-trained for at most {trained[1]} steps, and is "
          f"told to take {num_steps}; compare it with a tuned AdamW.")


def network_width(params, base_shapes) -> int:
  """The longest axis that grows.

  Without base_shapes nobody knows which do. Then it is the longest shorter
  side of a matrix; the longer one may be that of inputs or a vocabulary.
  """
  shapes = lambda tree: {
      jax.tree_util.keystr(path): tuple(x.shape)
      for path, x in jax.tree_util.tree_leaves_with_path(tree)}
  found, bases = shapes(params), shapes(base_shapes)
  if not bases:
    return max((sorted(shape)[-2] for shape in found.values()
                if len(shape) > 1), default=0)
  return max((shape[axis] for path, shape in found.items()
              for axis in width.growing_axes(shape, bases.get(path, shape))),
             default=0)


def check_width(artifact: artifact_lib.Artifact, name, params, base_shapes
                ) -> None:
  """Warns if a network is WIDTH_FACTOR times wider than any before.

  Raises:
    ValueError: a parameter's base shape has another number of axes.
  """
  trained = artifact.trained.widths
  if trained is None:
    return
  found = network_width(params, base_shapes)
  if found > WIDTH_FACTOR * trained[1]:
    _warn(f"{name} was meta-trained on networks of width {trained[0]} to "
          f"{trained[1]}, and this one has an axis of {found}, more than "
          f"{WIDTH_FACTOR} times as much; compare it with a tuned AdamW.")
