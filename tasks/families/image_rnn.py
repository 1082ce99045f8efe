"""Image classification by a recurrent network that reads row by row."""

from typing import Any

from flax import linen as nn
import jax

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks
from tasks.families import rnn_lm


class RowReader(nn.Module):
  """Recurrent layers over rows, and a readout of the last state."""

  width: int
  depth: int
  cell: str
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    h: Any = x.reshape(*x.shape[:2], -1)
    for _ in range(self.depth):
      h = nn.RNN(rnn_lm.CELLS[self.cell](
          self.width, kernel_init=layers.ZEROS,
          recurrent_kernel_init=layers.ZEROS))(h)
    return layers.dense(self.num_classes)(h[:, -1])


@image_tasks.classification
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 32, depth: int = 1, cell: str = "gru",
         init_scale: float = 1.0) -> networks.Network:
  """Make a recurrent network on the rows of an image.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: units of each layer.
    depth: number of recurrent layers.
    cell: "gru" or "lstm".
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown name.

  Reference:
    Cho et al., 2014, https://arxiv.org/abs/1406.1078.
  """
  layers.check(width=width, depth=depth)
  layers.check_choice("cell", cell, tuple(rnn_lm.CELLS))
  build = lambda width: RowReader(width, depth, cell, images.num_classes)
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale)
