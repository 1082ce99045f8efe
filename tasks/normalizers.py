"""Functions from a loss to a bounded value that is not NaN, for meta-losses."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Normalizer:
  """The function `scale * (clip(x, low, high) - shift)`.

  Here, x is the loss or the logarithm of the loss. A diverged network (NaN or
  infinite loss) counts as the worst network, whose x is `high`. If `high` is
  infinite, NaN stays NaN.

  Attributes:
    low: minimum of x; a smaller x counts as `low`.
    high: maximum of x; a larger x, and NaN, count as `high`.
    shift: value of x that becomes 0.
    scale: factor on the result.
    log: whether x is the logarithm of the loss.

  Reference:
    The published tasks of Metz et al., VeLO, 2022,
    https://arxiv.org/abs/2211.09760, have functions of this form, such as
    clip(loss, 0, 1.5 ln C) for C classes.
  """

  low: float = -math.inf
  high: float = math.inf
  shift: float = 0.0
  scale: float = 1.0
  log: bool = False

  def __call__(self, loss: jax.Array) -> jax.Array:
    """Return the normalised losses, of the shape of `loss`.

    Operations without effect are left out, so that a Normalizer without bounds
    returns the same bits.
    """
    value = loss
    if self.log:
      # The inner `where` keeps log(0) out of the gradient, where it would
      # become NaN.
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
  """Return `loss -> scale * clip(loss, 0, 1.5 * chance_loss)`."""
  return Normalizer(0.0, 1.5 * chance_loss, scale=scale)


def log_bounded(chance_loss: float, least: float = 0.01) -> Normalizer:
  """Return `loss -> log(clip(loss / chance_loss, least, 1.5))`.

  Equal ratios of losses count equally, early and late in training and on every
  task. Below `least`, a lower loss gains nothing: a network that gets there has
  learned a small data set by heart.
  """
  return Normalizer(
      math.log(least * chance_loss), math.log(1.5 * chance_loss),
      math.log(chance_loss), log=True)
