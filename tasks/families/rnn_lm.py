"""Language modelling by a recurrent network."""

from flax import linen as nn
import jax

from tasks import base
from tasks import layers
from tasks import networks
from tasks import text_tasks

CELLS = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}


class RecurrentNetwork(nn.Module):
  """Embedding, recurrent layers, and a readout."""

  width: int
  depth: int
  vocab_size: int
  cell: str

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:  # int32 [n, length]
    embed = self.param("embed", layers.ZEROS, (self.vocab_size, self.width))
    x = embed[tokens]  # [n, length, width]
    for _ in range(self.depth):
      x = nn.RNN(CELLS[self.cell](
          self.width, kernel_init=layers.ZEROS,
          recurrent_kernel_init=layers.ZEROS))(x)
    return layers.dense(self.vocab_size)(x)


@text_tasks.language_model
def make(parametrization: base.Parametrization, text: text_tasks.Text,
         width: int = 32, depth: int = 1, cell: str = "gru",
         init_scale: float = 1.0) -> networks.Network:
  """Make a recurrent network on embedded tokens.

  Args:
    parametrization: see `tasks.families.get`.
    text: see `tasks.text_tasks.load`.
    width: units of each layer, and size of the embedding.
    depth: number of recurrent layers.
    cell: "gru" or "lstm".
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown name.

  Reference:
    Cho et al., 2014, https://arxiv.org/abs/1406.1078;
    Hochreiter and Schmidhuber, 1997.
  """
  layers.check(width=width, depth=depth)
  layers.check_choice("cell", cell, tuple(CELLS))
  build = lambda width: RecurrentNetwork(width, depth, text.vocab_size, cell)
  return networks.from_flax(
      parametrization, build, width, text.batch, init_scale,
      tables={"embed": "embedding"})
