"""Variational autoencoders of images."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks
from tasks import normalizers
from tasks import task_decorator


class VAE(nn.Module):
  """Hidden layers, a normal distribution, hidden layers, and the image."""

  width: int
  depth: int
  code: int
  activation: str

  @nn.compact
  def __call__(self, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    act = layers.activation(self.activation)
    image = inputs["image"]  # [n, height, width, channels]
    h = image.reshape(len(image), -1)
    for _ in range(self.depth):
      h = act(layers.dense(self.width)(h))
    mean, log_var = (layers.dense(self.code)(h) for _ in range(2))  # [n, code]
    noise = jax.random.normal(inputs["key"], mean.shape).astype(mean.dtype)
    h = mean + jnp.exp(0.5 * log_var) * noise
    for _ in range(self.depth):
      h = act(layers.dense(self.width)(h))
    y = layers.dense(int(np.prod(image.shape[1:])))(h).reshape(image.shape)
    return {"image": y, "mean": mean, "log_var": log_var}


def _variational(network: networks.Network, images: image_tasks.Images,
                 batch_size: int = 64, compute_dtype: str = "float32",
                 sigma: float = 0.3) -> base.Task:
  """Return the task with the variational bound."""
  layers.check(batch_size=batch_size)
  if not sigma > 0:
    raise ValueError(f"sigma must be positive, got {sigma}.")
  network = networks.computed_in(network, compute_dtype)
  mean_image, variance = image_tasks.mean_image(images)
  pixels = int(np.prod(images.shape))

  def inputs(key: jax.Array, batch: base.Batch) -> dict[str, jax.Array]:
    x = (batch["image"] - mean_image[None]) / variance**0.5
    return {"image": x, "key": key}

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = inputs(key, batch)
    y = network.apply(params, x)
    error = jnp.mean(jnp.square(y["image"] - x["image"]))
    # Divergence from the standard normal distribution, appendix B.
    divergence = 0.5 * jnp.mean(jnp.sum(
        jnp.square(y["mean"]) + jnp.exp(y["log_var"]) - 1 - y["log_var"], 1))
    total = error + 2 * sigma**2 * divergence / pixels
    return total, {"error": error, "divergence": divergence}

  return base.Task(
      network.init, loss, image_tasks.sampler(images, batch_size),
      images.splits, network.base_shapes,
      normalizers.bounded(1.0), 1.0,  # a loss of 1 for the mean image
      activations=networks.of_batches(
          network, lambda batch: inputs(jax.random.key(0), batch)))


@task_decorator.decorator(image_tasks.load, _variational)
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 64, depth: int = 1, code: int = 8,
         activation: str = "relu", init_scale: float = 1.0
         ) -> networks.Network:
  """Make a multilayer variational autoencoder.

  The network receives and returns differences from the mean image of the train
  split, in units of their standard deviation. The loss is `error + 2 * sigma**2
  * divergence / pixels`: the mean squared error of pixels, and the divergence
  of the code from a standard normal distribution. It is the bound of the paper
  for pixels with normal noise of standard deviation sigma, times a constant.
  The family has the settings of `tasks.image_tasks.classification`, and sigma,
  0.3 by default.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: units of each hidden layer.
    depth: hidden layers on each side of the code.
    code: numbers in a code. Their means and variances are two readouts, which
      under muP start at zero. Noise passes the code, and a gradient with it.
    activation: see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: a number below 1, an unknown activation, or a sigma that is not
      positive.

  Reference:
    Kingma and Welling, 2013, https://arxiv.org/abs/1312.6114, equation 10.
  """
  layers.check(width=width, depth=depth, code=code)
  build = lambda width: VAE(width, depth, code, activation)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return networks.from_flax(
      parametrization, build, width, {"image": images.batch, "key": key},
      init_scale)
