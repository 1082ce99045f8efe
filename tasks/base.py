"""The interface of a task."""

from typing import Any, Callable, NamedTuple

import jax

from tasks import normalizers

SPLITS = ("train", "inner_valid", "outer_valid", "test")
META_SPLITS = SPLITS[:-1]  # those that meta-training may look at


class Task(NamedTuple):
  """A network, its loss and its data.

  Attributes:
    init: `(key) -> params`.
    loss: `(params, key, batch) -> (loss, aux)`; loss is a float32 scalar, the
      mean over the batch, aux a dict of scalars.
    sample_batch: `(key, split) -> batch`, with `split` one entry of `data`.
    data: `{split: arrays}` for each of SPLITS: "train" for the inner
      gradients, "inner_valid" for meta-losses, "outer_valid" for choosing,
      "test" for reporting. No example is in two of them.
    base_shapes: shapes (`jax.ShapeDtypeStruct`) of the params of the same
      network at another width, or None where there is no width.
    normalize: loss -> what a meta-loss averages.
    chance_loss: the loss of guessing without looking at the input, or None.
    optimum: `() -> params` of least train loss, or None where nobody knows it.
    scales: `(key, params) -> factors`, redrawn for every episode: an optimizer
      sees `params / factors`, see `tasks.augment`. None for no factors.
    activations: `(params, batch) -> {layer: what it computes}`, for
      diagnostics, or None.
    blocks: {path of params, with * for any part: number of residual blocks},
      of params in blocks; None for a network without.
  """

  init: Callable[[jax.Array], Any]
  loss: Callable[[Any, jax.Array, Any], tuple[jax.Array, dict]]
  sample_batch: Callable[[jax.Array, Any], Any]
  data: dict[str, Any]
  base_shapes: Any
  normalize: normalizers.Normalizer
  chance_loss: float | None = None
  optimum: Callable[[], Any] | None = None
  scales: Callable[[jax.Array, Any], Any] | None = None
  activations: Callable[[Any, Any], dict[str, jax.Array]] | None = None
  blocks: dict[str, int] | None = None
