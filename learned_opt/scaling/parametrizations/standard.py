"""Standard parametrization: every multiplier is 1."""

from learned_opt import base
from learned_opt.scaling import fan


def make() -> base.Parametrization:
  """Return init std 1/sqrt(fan_in), attention multiplier 1/sqrt(head size)."""
  return base.Parametrization(
      init_std=lambda shape, base_shape: fan.fan_in(shape, base_shape)**-0.5,
      output_mult=lambda shape, base_shape: 1.0,
      attention_mult=lambda head_size: head_size**-0.5,
      update_mult=lambda shape, base_shape: 1.0,
      needs_base_shapes=False)
