"""Declarations of the user about parameters."""

import fnmatch
import numbers
from typing import Any, Mapping, NamedTuple

from learned_opt import base
from learned_opt.scaling import axis_rules


class Override(NamedTuple):
  """Declaration of the user about one parameter; None where shapes decide.

  Attributes:
    role: "input", "hidden", "output", "vector" (biases, gains), "fixed" (no
      axis grows), "embedding" (a table whose rows are looked up) or "tied" (an
      embedding that is the readout as well).
    inputs: axes that are summed over where the parameter is used.
    outputs: axes of the result.
    stack: axes of layers, experts or copies; each index of these axes is
      treated as a parameter of its own.
    depth: number of consecutive residual blocks; the parameter is in one of
      them. 1 outside of blocks.
  """

  role: str | None = None
  inputs: tuple[int, ...] | None = None
  outputs: tuple[int, ...] | None = None
  stack: tuple[int, ...] = ()
  depth: int | None = None


def by_path(overrides: Mapping[str, str | Override],
            bases: dict[str, base.Shape]) -> dict[str, Override]:
  """Return {path: override}; raise ValueError if an override fits no path."""
  declared: dict[str, Override] = {}
  for pattern, value in overrides.items():
    override = Override(value) if isinstance(value, str) else value
    if not isinstance(override, Override):
      raise ValueError(f"The override of {pattern!r} must be a role or a "
                       f"scaling.Override, got {override!r}.")
    if override.role is not None and override.role not in axis_rules.ROLES:
      raise ValueError(f"Unknown role {override.role!r} for {pattern!r}; "
                       f"available: {', '.join(axis_rules.ROLES)}.")
    matching = [path for path in bases if fnmatch.fnmatchcase(path, pattern)]
    if not matching:
      raise ValueError(f"The override {pattern!r} fits none of the paths "
                       f"{', '.join(sorted(bases))}.")
    for path in matching:
      _check(path, override, bases[path])
      if declared.setdefault(path, override) != override:
        raise ValueError(f"Two overrides fit {path}: {declared[path]} and "
                         f"{override}.")
  return declared


def _check(path: str, override: Override, shape: base.Shape) -> None:
  """Raise ValueError unless axes are axes of the shape, and depth a number."""
  owners: dict[int, str] = {}
  for field in ("inputs", "outputs", "stack"):
    axes = getattr(override, field)
    say = f"The override of {path} has {field}={axes!r}, but "
    if axes is None and field != "stack":
      continue
    if not isinstance(axes, (tuple, list)) or not all(map(is_int, axes)):
      raise ValueError(say + f"{field} must be a tuple of axes, such as (0,)" +
                       (", () for none." if field == "stack" else "."))
    for axis in axes:
      if not -len(shape) <= axis < len(shape):
        have = f"axes 0 to {len(shape) - 1}" if shape else "no axes"
        raise ValueError(f"{say}the base shape {shape} has {have}.")
      if axis % len(shape) in owners:
        raise ValueError(
            f"{say}axis {axis} is among its {owners[axis % len(shape)]}: name "
            "each axis once.")
      owners[axis % len(shape)] = field
  if override.depth is not None and not (
      is_int(override.depth) and override.depth > 0):
    raise ValueError(
        f"The override of {path} has depth={override.depth!r}, but depth must "
        "be a number of residual blocks, 1 outside of blocks.")


def is_int(x: Any) -> bool:
  """Return whether x is an integer, and no boolean."""
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)
