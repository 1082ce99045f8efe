"""Data, loss and batches of tasks on tables.

A family is a function `(parametrization, table, **settings) -> Network` with
the decorator `prediction`, or `prediction_of(data set)` for another default
data set. The decorator adds three groups of settings:

* the settings of `load`,
* batch_size: examples per batch, drawn with replacement,
* compute_dtype: see `tasks.networks.computed_in`.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tasks import base
from tasks import layers
from tasks import networks
from tasks import normalizers
from tasks import task_decorator
from tasks.data import tables as tables_lib


class Table(NamedTuple):
  """A table, ready for a network.

  Attributes:
    splits: see `tasks.data.tables.TableData`.
    num_outputs: number of classes, or of target numbers.
    classes: whether targets are classes.
  """

  splits: dict[str, dict[str, np.ndarray]]
  num_outputs: int
  classes: bool

  @property
  def batch(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a batch of one row."""
    x = self.splits["train"]["x"]
    return jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)

  @property
  def num_ids(self) -> tuple[int, ...]:
    """Number of ids of each input; raises ValueError for other inputs."""
    parts = [split["x"] for split in self.splits.values()]
    if not np.issubdtype(parts[0].dtype, np.integer):
      raise ValueError("The inputs of this table are not ids.")
    return tuple((np.max([x.max(0) for x in parts], 0) + 1).tolist())


def load(dataset: str = "friedman1", standardize: bool = True,
         data_dir: str | None = None) -> Table:
  """Load a table; target numbers get mean 0 and variance 1 in the train split.

  Args:
    dataset: `name` of `tasks.data.tables.table_data`.
    standardize: whether each input gets mean 0 and variance 1 in the train
      split, too; ids are left as they are.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: see `tasks.data.tables.table_data`.
  """
  data = tables_lib.table_data(dataset, data_dir)
  splits = data.splits
  if standardize and np.issubdtype(splits["train"]["x"].dtype, np.floating):
    splits = _standardized(splits, "x")
  if data.num_classes:
    return Table(splits, data.num_classes, True)
  return Table(_standardized(splits, "y"), splits["train"]["y"].shape[1], False)


def _standardized(splits: dict[str, dict[str, np.ndarray]], column: str
                  ) -> dict[str, dict[str, np.ndarray]]:
  """Return the splits with one of "x" and "y" shifted and scaled."""
  train = splits["train"][column].astype(np.float64)
  mean, std = train.mean(0), train.std(0)
  std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)  # a constant stays 0
  return {name: {**split, column: (
      (split[column] - mean) / std).astype(np.float32)}
          for name, split in splits.items()}


def predict(network: networks.Network, table: Table, batch_size: int = 64,
            compute_dtype: str = "float32") -> base.Task:
  """Return the task with the cross-entropy of classes, or the squared error.

  Args:
    network: `(params, x [n, inputs]) -> [n, outputs]`.
    table: data set.
    batch_size: examples per batch.
    compute_dtype: see `tasks.networks.computed_in`.

  Raises:
    ValueError: batch_size is not an integer of at least 1, or an unknown dtype.
  """
  layers.check(batch_size=batch_size)
  network = networks.computed_in(network, compute_dtype)

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    del key
    outputs, y = network.apply(params, batch["x"]), batch["y"]
    if not table.classes:
      return jnp.mean(jnp.square(outputs - y)), {}
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return jnp.mean(losses), {
        "accuracy": jnp.mean(jnp.argmax(outputs, 1) == y)}

  def sample_batch(key: jax.Array, split: dict[str, jax.Array]) -> base.Batch:
    # One draw; see the comment in `tasks.image_tasks`.
    rows = jax.random.bits(key, (batch_size,)) % len(split["x"])
    return {name: column[rows] for name, column in split.items()}

  chance = 1.0  # the variance of a target
  if table.classes:  # the entropy of the classes
    counts = np.bincount(table.splits["train"]["y"])
    p = counts[counts > 0] / counts.sum()
    chance = float(-np.sum(p * np.log(p)))
  return base.Task(
      network.init, loss, sample_batch, table.splits, network.base_shapes,
      normalizers.bounded(chance), chance,
      activations=networks.of_batches(network, lambda batch: batch["x"]),
      blocks=network.blocks, tables=network.tables)


def prediction_of(dataset: str) -> Callable[..., Any]:
  """Return the decorator `prediction` with another default data set."""
  return task_decorator.decorator(
      functools.partial(load, dataset=dataset), predict)


prediction = task_decorator.decorator(load, predict)
