"""The interface of a task, and of the parametrization that scales its network.
"""

from typing import Any, Callable, NamedTuple, Protocol, TypeAlias

import jax

SPLITS = ("train", "inner_valid", "outer_valid", "test")
META_SPLITS = SPLITS[:-1]  # meta-training must not read the test split

Params: TypeAlias = Any  # pytree of arrays
Batch: TypeAlias = Any  # pytree of arrays, such as {"image": ..., "label": ...}
Shape: TypeAlias = tuple[int, ...]


class Parametrization(Protocol):
  """Multipliers of a network, as functions of shapes at two widths.

  `learned_opt.base.Parametrization` has these methods. A Protocol stands in for
  this class, because tasks import nothing of learned_opt but the registry.
  """

  def init_std(self, shape: Shape, base_shape: Shape, /) -> float:
    """Return the standard deviation of a parameter at initialisation."""

  def output_mult(self, shape: Shape, base_shape: Shape, /) -> float:
    """Return output_mult in `outputs = output_mult * (inputs @ parameter)`."""

  def attention_mult(self, head_size: int, /) -> float:
    """Return attention_mult in `logits = attention_mult * (query @ key)`."""

  def branch_mult(self, depth: int, /) -> float:
    """Return branch_mult in `x = x + branch_mult * branch(x)`.

    The depth is the number of residual blocks.
    """


class Task(NamedTuple):
  """A network, its loss and its data.

  Attributes:
    init: `(key) -> params`.
    loss: `(params, key, batch) -> (loss, aux)`. The loss is a float32 scalar,
      the mean over the batch; aux is a dict of scalars.
    sample_batch: `(key, data[split]) -> batch`.
    data: `{split: arrays}` for each name in SPLITS. "train" is for gradients of
      params, "inner_valid" for meta-losses, "outer_valid" for model selection,
      "test" for reported results. No example is in two splits.
    base_shapes: shapes (`jax.ShapeDtypeStruct`) of the params of the same
      network at another width; None for a network without a width.
    normalize: `(loss) -> value`; a meta-loss is a mean of such values.
    chance_loss: loss of the best guess that ignores the input; None if there is
      no such guess.
    optimum: `() -> params` with the minimum train loss; None if unknown.
    scales: `(key, params) -> factors`, drawn again for every episode. The
      optimizer trains `params / factors`, see `tasks.augment`. None for no
      factors.
    activations: `(params, batch) -> {layer: outputs of the layer}`, for
      diagnostics; None if the network does not offer them.
    blocks: {path of parameters: number of residual blocks} of the parameters in
      residual blocks, `*` in a path for any text; None for a network without
      residual blocks.
    tables: {path: "embedding" or "tied"} of tables whose rows are looked up,
      where "tied" tables read out as well; None for a network without tables.
    gradients: `(loss, params, key, batch) -> (value, grads, extra_args)`, what
      an optimizer receives in one step in place of the gradient of the loss;
      `loss` is a function like the attribute, extra_args are further arguments
      of `update`. None for the gradient.
  """

  init: Callable[[jax.Array], Params]
  loss: Callable[[Params, jax.Array, Batch],
                 tuple[jax.Array, dict[str, jax.Array]]]
  sample_batch: Callable[[jax.Array, Any], Batch]
  data: dict[str, Any]
  base_shapes: Any
  normalize: Callable[[jax.Array], jax.Array]
  chance_loss: float | None = None
  optimum: Callable[[], Params] | None = None
  scales: Callable[[jax.Array, Params], Any] | None = None
  activations: Callable[[Params, Batch], dict[str, jax.Array]] | None = None
  blocks: dict[str, int] | None = None
  tables: dict[str, str] | None = None
  gradients: Callable[..., tuple[jax.Array, Params, dict[str, Any]]] | None = (
      None)
