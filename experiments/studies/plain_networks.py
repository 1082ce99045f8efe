"""Flax networks as users write them: no multipliers, initial weights of flax.
"""

from typing import Any, Callable, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from learned_opt.scaling import parametrizations
from meta_train import build
from tasks import base as tasks_base

READOUTS = ("zero", "ordinary")  # initial weights of the last layer
HEAD_SIZE = 16


def readout(x: jax.Array, outputs: int, start: str, divisor: float
            ) -> jax.Array:
  """Apply the last layer of a network; the function of flax if divisor is 1.

  Args:
    x: features [..., width].
    outputs: number of outputs.
    start: one of READOUTS.
    divisor: divides the features; ordinary weights are multiplied by it, so
      that it does not matter at the start.
  """
  lecun = nn.initializers.lecun_normal()
  init = nn.initializers.zeros if start == "zero" else (
      lambda *args: divisor * lecun(*args))
  return nn.Dense(outputs, kernel_init=init, name="readout")(x / divisor)


class Mlp(nn.Module):
  """A perceptron with two hidden layers."""

  width: int
  outputs: int
  start: str
  divisor: float

  @nn.compact
  def __call__(self, x):
    x = x.reshape(len(x), -1)
    x = nn.relu(nn.Dense(self.width)(x))
    x = nn.relu(nn.Dense(self.width)(x))
    return readout(x, self.outputs, self.start, self.divisor)


class Conv(nn.Module):
  """Two convolutions with stride, and a mean over all places."""

  width: int
  outputs: int
  start: str
  divisor: float

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
    x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
    return readout(x.mean((1, 2)), self.outputs, self.start, self.divisor)


class Transformer(nn.Module):
  """A language model of one block, normalized before each branch."""

  width: int
  outputs: int
  start: str
  divisor: float

  @nn.compact
  def __call__(self, tokens):
    length = tokens.shape[1]
    positions = nn.Embed(length, self.width)(jnp.arange(length))
    x = nn.Embed(self.outputs, self.width)(tokens) + positions[None]
    h = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(self.width // HEAD_SIZE)(
        h, h, mask=nn.make_causal_mask(tokens))
    h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
    x = nn.LayerNorm()(x + nn.Dense(self.width)(h))
    return readout(x, self.outputs, self.start, self.divisor)


class Family(NamedTuple):
  """A kind of network.

  Attributes:
    module: of flax.
    section: a task with the same data, see `meta_train.build.task_of`.
    outputs: number of classes or tokens.
    widths: default widths.
  """

  module: type[nn.Module]
  section: dict[str, Any]
  outputs: int
  widths: tuple[int, ...]


_IMAGES = {"dataset": "cifar10", "image_size": 16, "standardize": True}
FAMILIES = {
    "mlp": Family(Mlp, {"name": "mlp", "batch_size": 128, **_IMAGES}, 10,
                  (64, 256, 1024)),
    "conv": Family(Conv, {"name": "conv", "batch_size": 64, **_IMAGES}, 10,
                   (16, 64, 256)),
    "transformer": Family(Transformer, {
        "name": "transformer_lm", "batch_size": 16, "length": 32,
        "dataset": "python"}, 256, (64, 128, 256))}


class Networks:
  """One family in one form, at any width.

  Args:
    family: a key of FAMILIES.
    data_dir: see `tasks.data.images.image_data`.
    start: one of READOUTS.
    divisor: `(width) -> number`, see `readout`.
  """

  def __init__(self, family: str, data_dir: str | None, start: str,
               divisor: Callable[[int], float]):
    self._family, self._start, self._divisor = FAMILIES[family], start, divisor
    task = build.task_of(self._family.section,
                         parametrizations.get("standard"), data_dir)
    self._data = jax.tree.map(jnp.asarray, task.data["train"])
    self._sample = jax.jit(task.sample_batch)
    self._example = self.batch(jax.random.key(0))

  def batch(self, key: jax.Array) -> tasks_base.Batch:
    """Return inputs and labels; not for use under jit, for its constants."""
    batch = self._sample(key, self._data)
    if "image" in batch:
      return batch["image"], batch["label"]
    tokens = batch["token"].astype(jnp.int32)
    return tokens[:, :-1], tokens[:, 1:]

  def module(self, width: int) -> nn.Module:
    """Return the flax module."""
    return self._family.module(
        width, self._family.outputs, self._start, self._divisor(width))

  def init(self, width: int, key: jax.Array) -> Any:
    """Return the initial parameters of flax."""
    return self.module(width).init(key, self._example[0])["params"]

  def shapes(self, width: int) -> Any:
    """Return the shapes of the parameters."""
    return jax.eval_shape(lambda: self.init(width, jax.random.key(0)))

  def loss(self, width: int, params: Any, batch: tasks_base.Batch) -> jax.Array:
    """Return the mean cross-entropy."""
    logits = self.module(width).apply({"params": params}, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, batch[1]).mean()
