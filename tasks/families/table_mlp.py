"""Prediction of classes or numbers in a table by a multilayer perceptron."""

from flax import linen as nn
import jax

from tasks import base
from tasks import layers
from tasks import networks
from tasks import table_tasks


class TableMLP(nn.Module):
  """A layer, residual blocks of two layers each, and a readout."""

  width: int
  depth: int
  branch: float
  activation: str
  norm: str
  num_outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, inputs]
    act = layers.activation(self.activation)
    x = layers.dense(self.width)(x)
    for _ in range(self.depth):
      h = act(layers.dense(self.width)(layers.norm(self.norm)(x)))
      x = x + self.branch * layers.dense(self.width)(h)
    x = act(layers.norm(self.norm)(x))
    return layers.dense(self.num_outputs)(x)


@table_tasks.prediction
def make(parametrization: base.Parametrization, table: table_tasks.Table,
         width: int = 32, depth: int = 1, activation: str = "relu",
         norm: str = "none", init_scale: float = 1.0) -> networks.Network:
  """Make a residual perceptron on the inputs of a table.

  Args:
    parametrization: see `tasks.families.get`.
    table: see `tasks.table_tasks.load`.
    width: units of each hidden layer.
    depth: number of residual blocks of two layers each.
    activation: see `tasks.layers.activation`.
    norm: norm before each block and before the readout, see
      `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown name.

  Reference:
    Gorishniy et al., 2021, https://arxiv.org/abs/2106.11959, section 3.2.
  """
  layers.check(width=width, depth=depth)
  branch = parametrization.branch_mult(depth)
  build = lambda width: TableMLP(
      width, depth, branch, activation, norm, table.num_outputs)
  # The first layer and the readout are outside of the blocks, and so is the
  # last norm.
  in_blocks = {f"Dense_{i + 1}/*": depth for i in range(2 * depth)}
  if norm != "none":
    in_blocks |= {f"*Norm_{i}/*": depth for i in range(depth)}
  return networks.from_flax(
      parametrization, build, width, table.batch, init_scale, in_blocks)
