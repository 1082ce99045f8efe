"""Image classification by a residual network."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks


class ResNet(nn.Module):
  """Stages of residual blocks; each stage but the first halves the image."""

  width: int
  depth: int
  stages: int
  branch: float
  activation: str
  norm: str
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    act = layers.activation(self.activation)
    x = layers.Conv(self.width, bias=False)(x)
    for stage in range(self.stages):
      for block in range(self.depth):
        stride = 2 if stage and not block else 1
        features = self.width * 2**stage
        h = act(layers.norm(self.norm)(x))
        if stride > 1:  # the skip connection must change its shape, too
          x = layers.dense(features, bias=False)(h[:, ::stride, ::stride])
        h = layers.Conv(features, stride, bias=False)(h)
        h = act(layers.norm(self.norm)(h))
        x = x + self.branch * layers.Conv(features, bias=False)(h)
    x = act(layers.norm(self.norm)(x))
    return layers.dense(self.num_classes)(jnp.mean(x, (1, 2)))


@image_tasks.classification
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 16, depth: int = 1, stages: int = 2,
         depth_exponent: float = 0.0, activation: str = "relu",
         norm: str = "group", init_scale: float = 1.0) -> networks.Network:
  """Make a pre-activation ResNet whose norms work within each example.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: channels of the first stage; each further stage has twice as many.
    depth: residual blocks per stage, of two convolutions each.
    stages: number of stages.
    depth_exponent: residual branches are multiplied by
      `blocks**-depth_exponent`, in addition to the `branch_mult` of the
      parametrization.
    activation: see `tasks.layers.activation`.
    norm: see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width, depth or stages below 1, or an unknown name.

  Reference:
    He et al., 2016, https://arxiv.org/abs/1603.05027.
  """
  layers.check(width=width, depth=depth, stages=stages)
  blocks = depth * stages
  branch = blocks**-depth_exponent * parametrization.branch_mult(blocks)
  build = lambda width: ResNet(width, depth, stages, branch, activation, norm,
                               images.num_classes)
  # Paths in blocks, as flax numbers them. Conv_0, the last norm and the dense
  # layers of skip connections are outside.
  in_blocks = {f"Conv_{i + 1}/*": blocks for i in range(2 * blocks)}
  if norm != "none":
    in_blocks |= {f"*Norm_{i}/*": blocks for i in range(2 * blocks)}
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale, in_blocks)
