"""Ratings of items by users, predicted from embeddings of both."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import layers
from tasks import networks
from tasks import table_tasks


class Factorization(nn.Module):
  """An embedding of each id, their product, layers, and a readout."""

  width: int
  depth: int
  sizes: tuple[int, ...]
  activation: str
  num_outputs: int

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:  # int32 [n, columns]
    rows, product = [], jnp.ones([], jnp.float32)
    for column, size in enumerate(self.sizes):
      embed = self.param(f"embed_{column}", layers.ZEROS, (size, self.width))
      # The factor undoes an initial standard deviation of 1 / sqrt(size).
      rows.append(size**0.5 * embed[ids[:, column]])
      product = product * rows[-1]
    h = jnp.concatenate([product, *rows], 1)
    for _ in range(self.depth):
      h = layers.activation(self.activation)(layers.dense(self.width)(h))
    return layers.dense(self.num_outputs)(h)


@table_tasks.prediction_of("ratings")
def make(parametrization: base.Parametrization, table: table_tasks.Table,
         width: int = 16, depth: int = 1, activation: str = "relu",
         init_scale: float = 1.0) -> networks.Network:
  """Make a recommender: products of embeddings, and layers on top.

  Most rows of an embedding have no gradient in a batch.

  Args:
    parametrization: see `tasks.families.get`.
    table: see `tasks.table_tasks.load`; its inputs are ids, as in "ratings".
    width: size of an embedding, and units of each hidden layer.
    depth: number of hidden layers.
    activation: see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, an unknown activation, or a table whose
      inputs are not ids.

  Reference:
    He et al., Neural collaborative filtering, 2017,
    https://arxiv.org/abs/1708.05031, section 3.4.
  """
  layers.check(width=width, depth=depth)
  sizes = table.num_ids
  build = lambda width: Factorization(
      width, depth, sizes, activation, table.num_outputs)
  return networks.from_flax(
      parametrization, build, width, table.batch, init_scale,
      tables={"embed_*": "embedding"})
