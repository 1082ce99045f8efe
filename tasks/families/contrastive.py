"""Contrastive learning: find the other view of an image within a batch."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks
from tasks import normalizers
from tasks import task_decorator


class Encoder(nn.Module):
  """Convolutions, the mean over all positions, and two dense layers."""

  width: int
  depth: int
  activation: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:  # [n, height, width, channels]
    act = layers.activation(self.activation)
    for _ in range(self.depth):
      x = act(layers.Conv(self.width, 2)(x))
    x = act(layers.dense(2 * self.width)(jnp.mean(x, (1, 2))))
    return layers.dense(2 * self.width)(x)  # [n, 2 * width]


def view(key: jax.Array, x: jax.Array, shift: int, noise: float) -> jax.Array:
  """Return a random view of each image.

  Args:
    key: random key.
    x: images [n, height, width, channels].
    shift: largest shift along each axis, in pixels. Zeros are shifted in.
    noise: standard deviation of normal noise.

  Returns:
    Images of the shape of x. Contrast is multiplied by a factor from 0.5 to
    1.5.
  """
  keys = jax.random.split(key, 3)
  starts = jax.random.randint(keys[0], (len(x), 2), 0, 2 * shift + 1)
  border = (shift, shift)
  padded = jnp.pad(x, ((0, 0), border, border, (0, 0)))
  window = lambda image, start: jax.lax.dynamic_slice(
      image, (start[0], start[1], 0), x.shape[1:])
  contrast = jax.random.uniform(keys[1], (len(x), 1, 1, 1), x.dtype, 0.5, 1.5)
  return contrast * jax.vmap(window)(padded, starts) + noise * (
      jax.random.normal(keys[2], x.shape, x.dtype))


def _pairs(network: networks.Network, images: image_tasks.Images,
           batch_size: int = 64, compute_dtype: str = "float32",
           temperature: float = 0.2, shift: int = 2, noise: float = 0.1
           ) -> base.Task:
  """Return the task of classifying which images of a batch are one image."""
  layers.check(batch_size=batch_size)
  if batch_size < 2:
    raise ValueError("contrastive needs a batch_size of at least 2.")
  if not temperature > 0:
    raise ValueError(f"temperature must be positive, got {temperature}.")
  network = networks.computed_in(network, compute_dtype)

  def views(key: jax.Array, batch: base.Batch) -> jax.Array:
    return jnp.concatenate([view(k, batch["image"], shift, noise)
                            for k in jax.random.split(key)])

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    code = network.apply(params, views(key, batch))  # [2 * batch_size, n]
    # The small number keeps the gradient of a code of zeros finite.
    code = code * jax.lax.rsqrt(
        1e-6 + jnp.sum(jnp.square(code), 1, keepdims=True))
    first, second = jnp.split(code, 2)
    logits = first @ second.T / temperature  # [batch_size, batch_size]
    label = jnp.arange(batch_size)
    losses = [optax.softmax_cross_entropy_with_integer_labels(x, label)
              for x in (logits, logits.T)]
    correct = jnp.argmax(logits, 1) == label
    return jnp.mean(jnp.stack(losses)), {"accuracy": jnp.mean(correct)}

  chance = math.log(batch_size)
  return base.Task(
      network.init, loss, image_tasks.sampler(images, batch_size),
      images.splits, network.base_shapes, normalizers.bounded(chance), chance,
      activations=networks.of_batches(
          network, lambda batch: views(jax.random.key(0), batch)))


@task_decorator.decorator(image_tasks.load, _pairs)
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 16, depth: int = 2, activation: str = "relu",
         init_scale: float = 1.0) -> networks.Network:
  """Make a convolutional encoder, trained on pairs of random views.

  The loss is InfoNCE in both directions: the cross-entropy of picking the
  second view of an image among those of the whole batch, by the cosine of
  codes. The family has the settings of `tasks.image_tasks.classification`, and

  * temperature: logits are cosines divided by it,
  * shift, noise: see `view`.

  A code has 2 * width numbers. The outputs of the network thus grow with width,
  and no parameter is a readout.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: channels of each convolution.
    depth: number of convolutions, each with a stride of 2.
    activation: see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, an unknown activation, batches of one
      image, or a temperature that is not positive.

  Reference:
    van den Oord et al., 2018, https://arxiv.org/abs/1807.03748, equation 4;
    Chen et al., SimCLR, 2020, https://arxiv.org/abs/2002.05709.
  """
  layers.check(width=width, depth=depth)
  build = lambda width: Encoder(width, depth, activation)
  return networks.from_flax(
      parametrization, build, width, images.batch, init_scale)
