"""Statistics in units of the largest recent entry of a gradient.

Updates made of them do not depend on the size of gradients, without an absolute
epsilon.
"""

import jax
import jax.numpy as jnp

RELATIVE_FLOOR = 1e-8  # of second moments, relative to their mean
MAX_INVERSE = 10.0  # of inverse roots, relative to that of the mean
TINY = 1e-37  # in units; far below what matters, but not subnormal
MAX_LOG_NOISE = 10.0


def next_unit(unit: jax.Array, grad: jax.Array, slowest: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
  """Return (unit that includes the gradient, 1 / unit).

  Args:
    unit: before the step, []; 0 before the first gradient that is not 0.
    grad: [*S].
    slowest: decay of the slowest statistic. The unit decays as slowly, so no
      statistic grows in this unit.
  """
  largest = jnp.max(jnp.abs(grad))
  new = jnp.where(largest > 0, jnp.maximum(largest, slowest * unit), unit)
  # Two selects: the derivative of 1 / 0 would be NaN even if not selected.
  return new, jnp.where(new > 0, 1 / jnp.where(new > 0, new, 1), 0)


def noise(momentum: jax.Array, second: jax.Array, decays: jax.Array,
          second_decay: jax.Array, step: jax.Array) -> jax.Array:
  """Return log(rms(momentum) / sqrt(mean second moment)), unbiased: [k].

  The log is about zero if the gradient has always been the same, negative
  under noise, and zero if all gradients were zero.

  Args:
    momentum: mean squares of the momenta, [k].
    second: mean of the second moment, scalar.
    decays: of the momenta, [k].
    second_decay: of the second moment.
    step: number of steps taken before this step.
  """
  steps = step.astype(jnp.float32) + 1
  bias = lambda decay: 1 - decay**steps
  second = second / bias(second_decay)
  momentum = momentum / bias(decays)**2
  # Two logs, since the ratio itself may underflow.
  log = lambda x: jnp.log(jnp.where(second > 0, x + TINY, 1))
  log_ratio = 0.5 * (log(momentum) - log(second))
  return jnp.clip(log_ratio, -MAX_LOG_NOISE, MAX_LOG_NOISE)


def inverse_root(x: jax.Array, mean: jax.Array
                 ) -> tuple[jax.Array, jax.Array]:
  """Return (1 / sqrt(x), the same with an upper limit) for x >= 0.

  The first serves in ratios, the second as a feature. The mean of x is given.
  """
  # If x is zero everywhere, any root does; this root has a finite derivative.
  nonzero = mean > 0
  root = jax.lax.rsqrt(
      x + (RELATIVE_FLOOR * mean + jnp.where(nonzero, TINY, 1)))
  limit = jnp.where(
      nonzero, MAX_INVERSE * jax.lax.rsqrt(jnp.where(nonzero, mean, 1)), 0)
  return root, jnp.minimum(root, limit)


def inverse_rms(squares: jax.Array) -> jax.Array:
  """Return 1 / RMS from mean squares, or 0 where the mean square is 0."""
  positive = squares > 0
  return jnp.where(
      positive, jax.lax.rsqrt(jnp.where(positive, squares, 1)), 0)
