"""Image classification by a vision transformer."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks


class ViT(nn.Module):
  """Patches, positions, blocks, the mean over positions, and a readout."""

  width: int
  depth: int
  patch: int
  block: dict[str, Any]  # attributes of `tasks.layers.Block`
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    x = layers.dense(self.width)(layers.patches(x, self.patch))
    x = x + self.param("position", layers.ZEROS, x.shape[1:])[None]
    for _ in range(self.depth):
      x = layers.Block(**self.block)(x)
    x = layers.norm(self.block["norm"])(x)
    return layers.dense(self.num_classes)(jnp.mean(x, 1))


@image_tasks.classification
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 32, depth: int = 1, patch: int = 2, head_size: int = 8,
         depth_exponent: float = 0.0, activation: str = "gelu",
         norm: str = "layer", init_scale: float = 1.0) -> networks.Network:
  """Make a pre-norm transformer encoder on patches, with learned positions.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: size of the residual stream; hidden layers of blocks are 4 times as
      wide.
    depth: number of blocks.
    patch: pixels along each side of a patch.
    head_size: size of an attention head; the number of heads grows with width.
    depth_exponent: residual branches are multiplied by
      `depth**-depth_exponent`, in addition to the `branch_mult` of the
      parametrization.
    activation: see `tasks.layers.activation`.
    norm: see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: a number below 1, sizes that do not fit, or an unknown name.

  Reference:
    Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929.
  """
  layers.check(depth=depth)
  layers.check_patch(patch, images.shape)
  layers.check_heads(width, head_size)
  block = {
      "head_size": head_size, "norm": norm,
      "branch": depth**-depth_exponent * parametrization.branch_mult(depth),
      "logit_scale": parametrization.attention_mult(head_size),
      "activation": activation}
  build = lambda width: ViT(width, depth, patch, block, images.num_classes)
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale,
      {"Block_*": depth}, {"position": "embedding"})
