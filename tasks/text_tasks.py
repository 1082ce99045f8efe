"""Data, loss and batches of language models.

A family is a function `(parametrization, text, **settings) -> Network` with the
decorator `language_model`. The decorator adds three groups of settings:

* the settings of `load`,
* batch_size: sequences per batch, drawn with replacement,
* compute_dtype: see `tasks.networks.computed_in`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tasks import base
from tasks import layers
from tasks import networks
from tasks import normalizers
from tasks import task_decorator
from tasks.data import text as text_lib


class Text(NamedTuple):
  """A text, ready for a network.

  Attributes:
    splits: see `tasks.data.text.TextData`.
    vocab_size: tokens are from 0 to vocab_size - 1.
    length: number of tokens that the network reads at a time.
  """

  splits: dict[str, dict[str, np.ndarray]]
  vocab_size: int
  length: int

  @property
  def batch(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a batch of one sequence, as the network reads it."""
    return jax.ShapeDtypeStruct((1, self.length), jnp.int32)


def load(dataset: str = "python", length: int = 32, vocab: str = "bytes",
         vocab_size: int = 1024, data_dir: str | None = None) -> Text:
  """Load a text.

  Args:
    dataset: `name` of `tasks.data.text.text_data`.
    length: number of predicted tokens per sequence.
    vocab: see `tasks.data.text.text_data`.
    vocab_size: see `tasks.data.text.text_data`.
    data_dir: see `tasks.data.text.text_data`.

  Raises:
    ValueError: a split is shorter than a sequence, or see
      `tasks.data.text.text_data`.
  """
  layers.check(length=length)
  data = text_lib.text_data(dataset, data_dir, vocab, vocab_size)
  shortest = min(len(split["token"]) for split in data.splits.values())
  # At least two sequences of length + 1 tokens must fit into each split.
  if shortest < length + 2:
    raise ValueError(f"A split of {dataset} has {shortest} tokens, too few for "
                     f"sequences of {length}.")
  return Text(data.splits, data.vocab_size, length)


def _language_model(network: networks.Network, text: Text,
                    batch_size: int = 16, compute_dtype: str = "float32"
                    ) -> base.Task:
  """Return the task with the mean cross-entropy of the next token."""
  layers.check(batch_size=batch_size)
  network = networks.computed_in(network, compute_dtype)

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    del key
    tokens = batch["token"].astype(jnp.int32)  # [batch_size, length + 1]
    logits = network.apply(params, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:])  # [batch_size, length]
    correct = jnp.argmax(logits, -1) == tokens[:, 1:]
    return jnp.mean(losses), {"accuracy": jnp.mean(correct)}

  def sample_batch(key: jax.Array, split: dict[str, jax.Array]) -> base.Batch:
    token = split["token"]
    # One draw; see the comment in `tasks.image_tasks`.
    first = jax.random.bits(key, (batch_size,)) % (len(token) - text.length)
    rows = first[:, None] + jnp.arange(text.length + 1, dtype=first.dtype)[None]
    return {"token": token[rows]}  # [batch_size, length + 1]

  chance = math.log(text.vocab_size)  # every token with equal probability
  return base.Task(
      network.init, loss, sample_batch, text.splits, network.base_shapes,
      normalizers.bounded(chance), chance,
      activations=networks.of_batches(
          network, lambda batch: batch["token"][:, :-1].astype(jnp.int32)),
      blocks=network.blocks, tables=network.tables)


language_model = task_decorator.decorator(load, _language_model)
