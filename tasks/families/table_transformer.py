"""Prediction of classes or numbers by a transformer on the inputs of a table.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import layers
from tasks import networks
from tasks import table_tasks


class TableTransformer(nn.Module):
  """A vector for each input, blocks, the mean, and a readout."""

  width: int
  depth: int
  block: dict[str, Any]  # attributes of `tasks.layers.Block`
  num_outputs: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, inputs]
    shape = x.shape[1], self.width
    embed = self.param("embed", layers.ZEROS, shape)
    offset = self.param("offset", layers.ZEROS, shape)
    # The factor undoes an initial standard deviation of 1 / sqrt(inputs): an
    # input has a row of its own, over which nothing is summed.
    x = x.shape[1]**0.5 * (x[..., None] * embed[None] + offset[None])
    for _ in range(self.depth):
      x = layers.Block(**self.block)(x)
    x = layers.norm(self.block["norm"])(x)
    return layers.dense(self.num_outputs)(jnp.mean(x, 1))


@table_tasks.prediction
def make(parametrization: base.Parametrization, table: table_tasks.Table,
         width: int = 32, depth: int = 1, head_size: int = 8,
         activation: str = "gelu", norm: str = "layer", init_scale: float = 1.0
         ) -> networks.Network:
  """Make a transformer that attends from input to input of a row.

  Args:
    parametrization: see `tasks.families.get`.
    table: see `tasks.table_tasks.load`.
    width: size of the residual stream; hidden layers of blocks are 4 times as
      wide.
    depth: number of blocks.
    head_size: size of an attention head; the number of heads grows with width.
    activation: see `tasks.layers.activation`.
    norm: see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: a number below 1, sizes that do not fit, or an unknown name.

  Reference:
    Gorishniy et al., FT-Transformer, 2021, https://arxiv.org/abs/2106.11959,
    section 3.3, with a mean in place of its token for the readout.
  """
  layers.check(depth=depth)
  layers.check_heads(width, head_size)
  block = {
      "head_size": head_size, "norm": norm, "activation": activation,
      "branch": parametrization.branch_mult(depth),
      "logit_scale": parametrization.attention_mult(head_size)}
  build = lambda width: TableTransformer(
      width, depth, block, table.num_outputs)
  return networks.from_flax(
      parametrization, build, width, table.batch, init_scale,
      {"Block_*": depth}, {"embed": "embedding", "offset": "embedding"})
