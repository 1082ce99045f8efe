"""Tables, and networks with layers or losses of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from learned_opt.scaling import parametrizations
from tasks import base
from tasks import families
from tasks import networks
from tasks import table_tasks
from tasks.data import tables
from tasks.data.table_formats import friedman
from tasks.families import contrastive
from tasks.families import poisson
from tasks.families import separable

MUP = parametrizations.get("mup")
TABLES = {  # examples, inputs, outputs or classes
    "breast_cancer": (569, 30, 2), "digits": (1797, 64, 10),
    "wine": (178, 13, 3), "diabetes": (442, 10, 1), "friedman1": (4096, 10, 1),
    "friedman2": (4096, 4, 1), "friedman3": (4096, 4, 1),
    "student_t": (4096, 32, 4), "low_rank": (4096, 64, 4),
    "scales": (4096, 32, 4), "china": (4240, 2, 3), "flower": (4240, 2, 3),
    "waves": (4096, 2, 4), "sources": (4096, 2, 1), "points": (4096, 48, 5),
    "ratings": (13378, 2, 1)}
every_table = pytest.mark.parametrize("name", TABLES)


@every_table
def test_splits_are_disjoint_and_complete(name):
  data = tables.table_data(name)
  count, inputs, outputs = TABLES[name]
  assert set(data.splits) == set(base.SPLITS)
  rows = [np.concatenate([s["x"], s["y"].reshape(len(s["y"]), -1)], 1)
          for s in data.splits.values()]
  assert sum(map(len, rows)) == count
  # Digits and photos have a few equal rows.
  sets = [{row.tobytes() for row in part} for part in rows]
  assert sum(map(len, sets)) - len(set.union(*sets)) <= 2
  table = table_tasks.load(name)
  assert table.batch.shape == (1, inputs) and table.num_outputs == outputs


@every_table
def test_standardized_tables(name):
  table = table_tasks.load(name)
  train = table.splits["train"]
  for column in ("x", "y"):
    values = train[column]
    if values.dtype == np.int32:  # classes and ids
      assert values.min() >= 0
      continue
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-3)
    std = values.std(0)
    np.testing.assert_allclose(std[std > 0], 1, rtol=1e-3)
    assert all(np.all(np.isfinite(s[column])) for s in table.splits.values())
  assert table.classes == (train["y"].dtype == np.int32)


def test_difficult_inputs():
  x = table_tasks.load("scales", False).splits["train"]["x"]
  np.testing.assert_allclose(
      x.std(0), np.logspace(-2, 2, 32), rtol=0.1)
  x = table_tasks.load("low_rank").splits["train"]["x"]
  assert np.linalg.matrix_rank(x) == 8
  x = table_tasks.load("student_t").splits["train"]["x"]
  assert np.median(np.max(np.abs(x), 0)) > 10  # in standard deviations


def test_permutation_is_fixed():
  """Splits must not change between versions of this project."""
  label = tables.table_data("wine").splits["test"]["y"]
  assert label[:12].tolist() == [0, 2, 1, 0, 1, 1, 0, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("name", friedman.DATASETS)
def test_friedman(name):
  x, y = getattr(datasets, f"make_{name}")(50, random_state=0)
  np.testing.assert_allclose(friedman.value(name, x), y)


def test_entropy_of_classes_is_chance():
  task = families.get("table_mlp", MUP, dataset="breast_cancer", width=4)
  p = np.mean(task.data["train"]["y"])
  assert task.chance_loss == pytest.approx(
      -p * np.log(p) - (1 - p) * np.log(1 - p))


def test_residual_of_poisson():
  """`u = (1 - x**2) * (1 - y**2) / 4` is found to be a solution."""
  task = poisson._solve(
      networks.Network(lambda key: {}, lambda params, x: jnp.ones((len(x), 1)),
                       None), table_tasks.load("sources", False))
  x = jax.random.uniform(jax.random.key(0), (9, 2), minval=-1)
  y = jnp.sum(1 - x**2, 1, keepdims=True) / 2
  assert task.loss({}, None, {"x": x, "y": y})[0] < 1e-10
  assert task.loss({}, None, {"x": x, "y": y + 1})[0] == pytest.approx(1)


def test_order_of_points_is_ignored():
  task = families.get(
      "deep_sets", parametrizations.get("standard"), width=8)
  params = task.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (3, 24, 2))
  outputs = [task.activations(params, {"x": points.reshape(3, -1)})["output"]
             for points in (x, x[:, ::-1])]
  np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride, size", [(1, 5), (2, 5), (2, 8)])
def test_depthwise_convolution(stride, size):
  x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 3))
  expected = jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(1, 1), (1, 1)],
      dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3)
  np.testing.assert_allclose(
      separable.Depthwise(stride).apply({"params": {"kernel": kernel}}, x),
      expected, rtol=1e-4, atol=1e-5)


def test_views():
  """A view is the image with another contrast, shifted within a border."""
  x = jnp.zeros((64, 7, 7, 1)).at[:, 3, 3].set(1.0)
  views = contrastive.view(jax.random.key(0), x, 2, 0.0)
  assert views.shape == x.shape
  peaks = views.reshape(64, -1)
  assert np.all(np.sum(peaks > 0, 1) == 1)
  assert 0.5 <= peaks.max(1).min() < peaks.max(1).max() <= 1.5
  rows, columns = np.unravel_index(np.argmax(peaks, 1), (7, 7))
  assert set(rows) == set(columns) == {1, 2, 3, 4, 5}
