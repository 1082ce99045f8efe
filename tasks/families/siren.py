"""Regression of a photo or another function by a network of sines."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import layers
from tasks import networks
from tasks import table_tasks


class Siren(nn.Module):
  """Layers of sines, and a readout."""

  width: int
  depth: int
  frequency: float
  num_outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, coordinates]
    # Every second unit is a cosine: biases start at zero, and sines alone would
    # be odd functions.
    phase = jnp.pi / 2 * (jnp.arange(self.width) % 2)[None].astype(x.dtype)
    for layer in range(self.depth):
      # The factor 2**0.5 keeps the variance of hidden layers.
      rate = 2**0.5 if layer else self.frequency
      x = jnp.sin(rate * layers.dense(self.width)(x) + phase)
    return layers.dense(self.num_outputs)(x)


@table_tasks.prediction_of("waves")
def make(parametrization: base.Parametrization, table: table_tasks.Table,
         width: int = 32, depth: int = 2, frequency: float = 6.0,
         init_scale: float = 1.0) -> networks.Network:
  """Make a coordinate network: `x = sin(rate * (x @ w + b) + phase)`.

  Args:
    parametrization: see `tasks.families.get`.
    table: see `tasks.table_tasks.load`; best a table of positions and values,
      such as "china".
    width: units of each hidden layer.
    depth: number of hidden layers.
    frequency: rate of the first layer, omega_0 of the paper.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or a frequency that is not positive.

  Reference:
    Sitzmann et al., SIREN, 2020, https://arxiv.org/abs/2006.09661, section 3.
  """
  return network(
      parametrization, table, width, depth, frequency, init_scale)


def network(parametrization: base.Parametrization, table: table_tasks.Table,
            width: int, depth: int, frequency: float, init_scale: float
            ) -> networks.Network:
  """Return the network; see `make`."""
  layers.check(width=width, depth=depth)
  if not frequency > 0:
    raise ValueError(f"frequency must be positive, got {frequency}.")
  build = lambda width: Siren(width, depth, frequency, table.num_outputs)
  return networks.from_flax(
      parametrization, build, width, table.batch, init_scale)
