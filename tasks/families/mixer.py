"""Image classification by a mixer of patches and channels."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks


class Mixer(nn.Module):
  """Patches, blocks that mix patches and then channels, and a readout."""

  width: int
  depth: int
  patch: int
  token_width: int
  branch: float
  norm: str
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    x = layers.dense(self.width)(layers.patches(x, self.patch))
    for _ in range(self.depth):
      h = jnp.swapaxes(layers.norm(self.norm)(x), 1, 2)  # [n, width, patches]
      h = jax.nn.gelu(layers.dense(self.token_width)(h))
      # Without a bias, which would add the same number to all channels of a
      # position: layer norm takes it away.
      h = layers.dense(x.shape[1], bias=False)(h)
      x = x + self.branch * jnp.swapaxes(h, 1, 2)
      h = jax.nn.gelu(layers.dense(2 * self.width)(layers.norm(self.norm)(x)))
      x = x + self.branch * layers.dense(self.width)(h)
    x = layers.norm(self.norm)(x)
    return layers.dense(self.num_classes)(jnp.mean(x, 1))


@image_tasks.classification
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 32, depth: int = 1, patch: int = 2, token_width: int = 16,
         norm: str = "layer", init_scale: float = 1.0) -> networks.Network:
  """Make an MLP-Mixer, whose blocks mix positions, then channels.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: number of channels; hidden layers of channels are twice as wide.
    depth: number of blocks.
    patch: pixels along each side of a patch.
    token_width: units of the hidden layer over positions. It does not grow with
      width: the matrices over positions have the role "fixed".
    norm: see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: a number below 1, sizes that do not fit, or an unknown norm.

  Reference:
    Tolstikhin et al., 2021, https://arxiv.org/abs/2105.01601, equation 1.
  """
  layers.check(width=width, depth=depth, token_width=token_width)
  layers.check_patch(patch, images.shape)
  branch = parametrization.branch_mult(depth)
  build = lambda width: Mixer(
      width, depth, patch, token_width, branch, norm, images.num_classes)
  # Dense_0 is the first layer; the last norm and layer are outside, too.
  in_blocks = {f"Dense_{i + 1}/*": depth for i in range(4 * depth)}
  if norm != "none":
    in_blocks |= {f"*Norm_{i}/*": depth for i in range(2 * depth)}
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale, in_blocks)
