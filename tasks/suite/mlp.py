"""Image classification by a multilayer perceptron."""

import jax
import jax.numpy as jnp
import optax

from tasks import base
from tasks import data as data_lib


def make(parametrization, dataset: str = "digits", width: int = 64,
         depth: int = 2, batch_size: int = 64, data_dir: str | None = None
         ) -> base.Task:
  """ReLU layers on flattened pixels in [0, 1], softmax cross-entropy.

  Layer i computes `output_mult * (x @ w) + b` with w [in, out], b [out].
  Matrices start normal with the std of the parametrization, biases at zero.

  Args:
    parametrization: see `tasks.suite.get`.
    dataset: see `tasks.data.image_data`.
    width: units of each hidden layer.
    depth: number of hidden layers, at least 1.
    batch_size: examples per batch, drawn with replacement.
    data_dir: see `tasks.data.image_data`.

  Raises:
    ValueError: width, depth or batch_size below 1.
  """
  if min(width, depth, batch_size) < 1:
    raise ValueError(f"width ({width}), depth ({depth}) and batch_size "
                     f"({batch_size}) must be at least 1.")
  images = data_lib.image_data(dataset, data_dir)
  num_inputs = images.splits["train"]["image"][0].size

  def shapes(width):
    sizes = (num_inputs, *[width] * depth, images.num_classes)
    return list(zip(sizes, sizes[1:]))

  layers = list(zip(shapes(width), shapes(2 * width)))  # (shape, base shape)
  mults = [parametrization.output_mult(*layer) for layer in layers]
  stds = [parametrization.init_std(*layer) for layer in layers]

  def init(key):
    keys = jax.random.split(key, len(layers))
    return {
        f"layer_{i}": {
            "w": std * jax.random.normal(k, shape, jnp.float32),
            "b": jnp.zeros(shape[1:], jnp.float32)}
        for i, (k, std, (shape, _)) in enumerate(zip(keys, stds, layers))}

  def loss(params, key, batch):
    del key
    x = batch["image"]
    for i, mult in enumerate(mults):
      x = jax.nn.relu(x) if i else x
      layer = params[f"layer_{i}"]
      x = mult * (x @ layer["w"]) + layer["b"][None]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        x, batch["label"])
    correct = jnp.argmax(x, 1) == batch["label"]
    return jnp.mean(losses), {"accuracy": jnp.mean(correct)}

  def sample_batch(key, split):
    # One draw, where randint makes three; the bias of the remainder is nothing.
    rows = jax.random.bits(key, (batch_size,)) % len(split["label"])
    image = split["image"][rows].reshape(batch_size, -1)
    return {"image": image.astype(jnp.float32) / images.max_value,
            "label": split["label"][rows]}

  def normalize(value):
    worst = 1.5 * jnp.log(jnp.float32(images.num_classes))
    return jnp.clip(jnp.where(jnp.isnan(value), worst, value), 0, worst)

  base_shapes = {
      f"layer_{i}": {
          "w": jax.ShapeDtypeStruct(shape, jnp.float32),
          "b": jax.ShapeDtypeStruct(shape[1:], jnp.float32)}
      for i, shape in enumerate(shapes(2 * width))}
  return base.Task(
      init, loss, sample_batch, images.splits, base_shapes, normalize)
