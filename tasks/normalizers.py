"""What a meta-loss averages instead of a loss: bounded and never NaN."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Normalizer(NamedTuple):
  """`scale * (clip(x, low, high) - shift)`, x the loss or its logarithm.

  A diverged network (NaN or infinite) counts as the worst one. Without a
  finite `high` there is no worst one, and NaN stays what it is.

  Attributes:
    low: losses below count as this.
    high: losses above, and NaN, count as this.
    shift: the loss that becomes 0.
    scale: factor.
    log: take the logarithm of the loss first.

  Reference:
    The choices that published tasks make, from clip(loss, 0, 1.5 ln C) for C
    classes on: Metz et al., VeLO, 2022, https://arxiv.org/abs/2211.09760.
  """

  low: float = -math.inf
  high: float = math.inf
  shift: float = 0.0
  scale: float = 1.0
  log: bool = False

  def __call__(self, loss: jax.Array) -> jax.Array:
    """Losses of any shape, normalised."""
    value = loss
    if self.log:
      positive = loss > 0
      value = jnp.where(positive, jnp.log(jnp.where(positive, loss, 1)),
                        jnp.where(jnp.isnan(loss), loss, -math.inf))
    if self.high < math.inf:
      value = jnp.where(jnp.isnan(value), self.high, value)
    if (self.low, self.high) != (-math.inf, math.inf):
      value = jnp.clip(value, self.low, self.high)
    if self.shift:
      value = value - self.shift
    return value if self.scale == 1 else self.scale * value


def bounded(chance_loss: float, scale: float = 1.0) -> Normalizer:
  """From 0 to 1.5 times the loss of guessing, times `scale`."""
  return Normalizer(0.0, 1.5 * chance_loss, scale=scale)


def log_bounded(chance_loss: float, least: float = 0.01) -> Normalizer:
  """log(loss / chance_loss), between those of `least` and 1.5.

  Equal ratios count equally, early and late and on every task; below `least`,
  where small data sets are learned by heart, nothing is gained any more.
  """
  return Normalizer(
      math.log(least * chance_loss), math.log(1.5 * chance_loss),
      math.log(chance_loss), log=True)
