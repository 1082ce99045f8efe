"""Classification of sets of points, whatever their order."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import layers
from tasks import networks
from tasks import table_tasks


class DeepSets(nn.Module):
  """Layers on each point, the mean over points, layers, and a readout."""

  width: int
  depth: int
  point_size: int
  activation: str
  num_outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, points * point_size]
    act = layers.activation(self.activation)
    x = x.reshape(len(x), -1, self.point_size)
    for _ in range(self.depth):
      x = act(layers.dense(self.width)(x))
    x = jnp.mean(x, 1)
    for _ in range(self.depth):
      x = act(layers.dense(self.width)(x))
    return layers.dense(self.num_outputs)(x)


@table_tasks.prediction_of("points")
def make(parametrization: base.Parametrization, table: table_tasks.Table,
         width: int = 32, depth: int = 2, point_size: int = 2,
         activation: str = "relu", init_scale: float = 1.0) -> networks.Network:
  """Make a network on sets, whose outputs do not depend on the order.

  Args:
    parametrization: see `tasks.families.get`.
    table: see `tasks.table_tasks.load`; a row is a set of points, such as those
      of "points".
    width: units of each hidden layer.
    depth: number of layers on each point, and of layers on their mean.
    point_size: numbers of each point.
    activation: see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: a number below 1, an unknown activation, or rows that are not a
      whole number of points.

  Reference:
    Zaheer et al., 2017, https://arxiv.org/abs/1703.06114, theorem 2.
  """
  layers.check(width=width, depth=depth, point_size=point_size)
  if table.batch.shape[1] % point_size:
    raise ValueError(f"point_size ({point_size}) must divide the number of "
                     f"inputs, {table.batch.shape[1]}.")
  build = lambda width: DeepSets(
      width, depth, point_size, activation, table.num_outputs)
  return networks.from_flax(
      parametrization, build, width, table.batch, init_scale)
