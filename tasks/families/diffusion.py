"""Diffusion of images: a convolutional network predicts the noise."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks
from tasks import normalizers
from tasks import task_decorator

TIME_SIZE = 8  # numbers that describe a time


class NoiseNet(nn.Module):
  """Residual convolutions that know the time, and a convolution to pixels."""

  width: int
  depth: int
  branch: float
  norm: str

  @nn.compact
  def __call__(self, inputs: dict[str, jax.Array]) -> jax.Array:
    image, time = inputs["image"], inputs["time"]  # [n, ...], [n]
    rates = jnp.pi * 2.0**jnp.arange(TIME_SIZE // 2)
    angle = time[:, None] * rates[None].astype(time.dtype)
    time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], 1)
    x = layers.Conv(self.width)(image)
    for _ in range(self.depth):
      h = layers.Conv(self.width)(layers.norm(self.norm)(x))
      h = jax.nn.silu(h + layers.dense(self.width)(time)[:, None, None])
      x = x + self.branch * layers.Conv(self.width)(h)
    x = jax.nn.silu(layers.norm(self.norm)(x))
    return layers.Conv(image.shape[-1])(x)


def _diffuse(network: networks.Network, images: image_tasks.Images,
             batch_size: int = 64, compute_dtype: str = "float32") -> base.Task:
  """Return the task of predicting the noise in images."""
  layers.check(batch_size=batch_size)
  network = networks.computed_in(network, compute_dtype)
  mean, variance = image_tasks.mean_image(images)

  def noisy(key: jax.Array, batch: base.Batch
            ) -> tuple[dict[str, jax.Array], jax.Array]:
    """Return the inputs of the network, and the noise."""
    keys = jax.random.split(key)
    x = (batch["image"] - mean[None]) / variance**0.5
    noise = jax.random.normal(keys[0], x.shape)
    time = jax.random.uniform(keys[1], (len(x),))
    angle = jnp.pi / 2 * time[:, None, None, None]
    return {"image": jnp.cos(angle) * x + jnp.sin(angle) * noise,
            "time": time}, noise

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    x, noise = noisy(key, batch)
    return jnp.mean(jnp.square(network.apply(params, x) - noise)), {}

  return base.Task(
      network.init, loss, image_tasks.sampler(images, batch_size),
      images.splits, network.base_shapes,
      normalizers.bounded(1.0), 1.0,  # a loss of 1 for a guess of zeros
      activations=networks.of_batches(
          network, lambda batch: noisy(jax.random.key(0), batch)[0]),
      blocks=network.blocks, tables=network.tables)


@task_decorator.decorator(image_tasks.load, _diffuse)
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 16, depth: int = 1, norm: str = "layer",
         init_scale: float = 1.0) -> networks.Network:
  """Make a diffusion model without attention and without changes of size.

  At a random time t from 0 to 1, the network receives t and `cos(pi * t / 2) *
  image + sin(pi * t / 2) * noise`. The loss is the mean squared error of the
  predicted noise. The family has the settings of
  `tasks.image_tasks.classification`.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: channels of each convolution.
    depth: number of residual blocks of two convolutions each.
    norm: see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown norm.

  Reference:
    Ho et al., 2020, https://arxiv.org/abs/2006.11239, equation 14;
    Nichol and Dhariwal, 2021, https://arxiv.org/abs/2102.09672, for the cosine.
  """
  layers.check(width=width, depth=depth)
  branch = parametrization.branch_mult(depth)
  build = lambda width: NoiseNet(width, depth, branch, norm)
  in_blocks = {f"Conv_{i + 1}/*": depth for i in range(2 * depth)}
  in_blocks |= {f"Dense_{i}/*": depth for i in range(depth)}
  if norm != "none":
    in_blocks |= {f"*Norm_{i}/*": depth for i in range(depth)}
  inputs = {"image": images.batch,
            "time": jax.ShapeDtypeStruct((1,), jnp.float32)}
  return networks.from_flax(
      parametrization, build, width, inputs, init_scale, in_blocks)
