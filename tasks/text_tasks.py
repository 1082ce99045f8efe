"""What language models share: all but the network.

A family is a function `(parametrization, text, **settings) -> Network`,
decorated with `language_model`; this adds the settings of `load`, batch_size
(sequences per batch, drawn with replacement) and compute_dtype (see
`tasks.networks.computed_in`).
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
  """A text as a network sees it.

  Attributes:
    splits: see `tasks.data.text.TextData`.
    vocab_size: number of different tokens.
    length: tokens of a sequence.
  """

  splits: dict[str, dict[str, np.ndarray]]
  vocab_size: int
  length: int

  @property
  def batch(self) -> jax.ShapeDtypeStruct:
    """An example of a batch, for shapes."""
    return jax.ShapeDtypeStruct((1, self.length), jnp.int32)


def load(dataset: str = "python", length: int = 32, vocab: str = "bytes",
         vocab_size: int = 1024, data_dir: str | None = None) -> Text:
  """A text, to be cut into sequences at random places.

  Args:
    dataset: see `tasks.data.text.text_data`.
    length: tokens that are predicted in a sequence.
    vocab: see `tasks.data.text.text_data`.
    vocab_size: see `tasks.data.text.text_data`.
    data_dir: see `tasks.data.text.text_data`.

  Raises:
    ValueError: a split is shorter than a sequence, or see
      `tasks.data.text.text_data`.
  """
  layers.check(length=length)
  found = text_lib.text_data(dataset, data_dir, vocab, vocab_size)
  shortest = min(len(split["token"]) for split in found.splits.values())
  if shortest < length + 2:
    raise ValueError(f"A split of {dataset} has {shortest} tokens, too few for "
                     f"sequences of {length}.")
  return Text(found.splits, found.vocab_size, length)


def _language_model(network: networks.Network, text: Text,
                    batch_size: int = 16, compute_dtype: str = "float32"
                    ) -> base.Task:
  layers.check(batch_size=batch_size)
  network = networks.computed_in(network, compute_dtype)

  def loss(params, key, batch):
    del key
    tokens = batch["token"].astype(jnp.int32)
    logits = network.apply(params, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:])
    correct = jnp.argmax(logits, -1) == tokens[:, 1:]
    return jnp.mean(losses), {"accuracy": jnp.mean(correct)}

  def sample_batch(key, split):
    token = split["token"]
    first = jax.random.bits(key, (batch_size,)) % (len(token) - text.length)
    at = first[:, None] + jnp.arange(text.length + 1, dtype=first.dtype)[None]
    return {"token": token[at]}  # [batch_size, length + 1]

  chance = math.log(text.vocab_size)
  return base.Task(
      network.init, loss, sample_batch, text.splits, network.base_shapes,
      normalizers.bounded(chance), chance,
      activations=networks.of_batches(
          network, lambda batch: batch["token"][:, :-1].astype(jnp.int32)),
      blocks=network.blocks)


language_model = task_decorator.decorator(load, _language_model)
