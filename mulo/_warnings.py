"""Warnings where an optimizer is used far from its meta-training.

Three kinds of use cause a warning:

* Width: the network is more than WIDTH_FACTOR times as wide as the widest
  network of meta-training. muP is made for wider networks, but networks as wide
  as this are untested.
* Horizon: the run is longer than the longest episode of meta-training. muP does
  not make an optimizer work in longer runs.
* Stacks: parameters look like stacks of layers, and are not declared. They are
  treated as one tensor each, unlike any tensor of meta-training.

There is no warning about batch sizes, because an optimizer cannot see the batch
size of a run. `Artifact.trained` has the batch sizes of meta-training.
"""

from typing import Any
import warnings

import jax

from learned_opt import artifact as artifact_lib
from learned_opt import stacks
from learned_opt.scaling import fan

WIDTH_FACTOR = 64


class BeyondTrainingWarning(UserWarning):
  """A learned optimizer is used beyond its meta-training."""


class StackWarning(UserWarning):
  """Parameters look like stacks of layers, and are not declared."""


def _warn(message: str) -> None:
  """Warn at the line that calls `load` or `init`.

  Python shows a warning once for each such line. The stack is: this function,
  `check_horizon` or `check_width`, `load` or `init`, the line.
  """
  warnings.warn(
      f"{message} Filter mulo.BeyondTrainingWarning to silence this.",
      BeyondTrainingWarning, stacklevel=4)


def check_horizon(artifact: artifact_lib.Artifact, name: Any, num_steps: Any
                  ) -> None:
  """Warn if num_steps is more than the longest episode of meta-training.

  Args:
    artifact: the optimizer.
    name: name of the optimizer, for the message.
    num_steps: planned number of steps; no warning if it is None or traced.
  """
  trained = artifact.trained.horizon
  # Under jit, num_steps may be a tracer, whose value is unknown.
  if trained is None or num_steps is None or isinstance(
      num_steps, jax.core.Tracer):
    return
  if num_steps > trained[1]:
    _warn(f"{name} was meta-trained for at most {trained[1]} steps, and is "
          f"told to take {num_steps}; compare {name} with a tuned AdamW.")


def check_stacks(params: Any) -> None:
  """Warn if some parameters look like stacks of layers.

  Args:
    params: of the network at hand; none of them is declared to be a stack.
  """
  found = stacks.likely(params)
  if found:
    path, axes = next(iter(found.items()))
    warnings.warn(
        f"{path} (and {len(found) - 1} more) look like stacks of layers along "
        f"axis {axes[0]}. They count as one tensor each, so that steps differ "
        "from those of separate layers. Declare stacks by base_shapes and "
        "deeper_shapes, or by overrides={'path': mulo.scaling.Override(stack="
        f"{axes})}}; or filter mulo.StackWarning.",
        StackWarning, stacklevel=3)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Return {path: shape}."""
  return {jax.tree_util.keystr(path): tuple(x.shape)
          for path, x in jax.tree_util.tree_leaves_with_path(tree)
          if hasattr(x, "shape")}


def network_width(params: Any, base_shapes: Any) -> int:
  """Return the size of the largest axis that grows with width.

  Without base_shapes, the growing axes are unknown. The second-largest axis of
  each matrix then counts, because the largest axis may belong to the input or
  to a vocabulary.
  """
  shapes, bases = _shapes(params), _shapes(base_shapes)
  if not bases:
    return max((sorted(shape)[-2] for shape in shapes.values()
                if len(shape) > 1), default=0)
  # A parameter without a base shape is compared to itself: nothing grows.
  return max((shape[axis] for path, shape in shapes.items()
              for axis in fan.growing_axes(shape, bases.get(path, shape))),
             default=0)


def check_width(artifact: artifact_lib.Artifact, name: Any, params: Any,
                base_shapes: Any) -> None:
  """Warn if a network is much wider than all networks of meta-training.

  Args:
    artifact: the optimizer.
    name: name of the optimizer, for the message.
    params: parameters of the network.
    base_shapes: see `mulo.load`; None if unknown.

  Raises:
    ValueError: a parameter and its base shape differ in the number of axes.
  """
  trained = artifact.trained.widths
  if trained is None:  # the record has no widths
    return
  size = network_width(params, base_shapes)
  if size > WIDTH_FACTOR * trained[1]:
    _warn(f"{name} was meta-trained on networks of width {trained[0]} to "
          f"{trained[1]}. This network has an axis of {size}, more than "
          f"{WIDTH_FACTOR} times {trained[1]}; compare {name} with a tuned "
          "AdamW.")
