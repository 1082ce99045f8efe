"""Tasks and the readers of their data."""

import gzip
import os
import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import parametrizations
from tasks import base
from tasks import data as data_lib
from tasks import suite

MNIST = os.environ.get("MULO_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not MNIST, reason="MULO_DATA_DIR, the folder with mnist/, is not set")
DATA_SETS = ["digits", pytest.param("mnist", marks=needs_mnist)]


@pytest.fixture(params=["standard", "mup"])
def parametrization(request):
  return parametrizations.get(request.param)


def rows(split):
  return split["image"].reshape(len(split["image"]), -1)


@pytest.mark.parametrize("name", DATA_SETS)
def test_splits_are_disjoint_and_complete(name):
  data = data_lib.image_data(name)
  assert set(data.splits) == set(base.SPLITS)
  total = {"digits": 1797, "mnist": 70000}[name]
  images = [rows(data.splits[s]) for s in base.SPLITS]
  assert sum(len(x) for x in images) == total
  # Pixels identify an example: count those that stand in two splits.
  sets = [{x.tobytes() for x in part} for part in images]
  assert sum(map(len, sets)) == len(set.union(*sets))


@pytest.mark.parametrize("name", DATA_SETS)
def test_examples_are_what_they_should_be(name):
  data = data_lib.image_data(name)
  for split in data.splits.values():
    assert split["image"].dtype == np.uint8
    assert split["image"].max() == data.max_value
    counts = np.bincount(split["label"], minlength=data.num_classes)
    assert counts.min() > 0.05 * counts.sum()  # every class in every split


def test_permutation_is_fixed():
  """Splits must not change between versions: this is their fingerprint."""
  label = data_lib.image_data("digits").splits["test"]["label"]
  assert label[:12].tolist() == DIGITS_TEST_LABELS


DIGITS_TEST_LABELS = [1, 5, 0, 7, 1, 0, 6, 1, 5, 4, 9, 2]


@pytest.mark.parametrize("name", suite.names())
def test_every_family(name, parametrization):
  """What any task must do, with its default settings."""
  task = suite.get(name, parametrization)
  assert set(task.data) == set(base.SPLITS)
  init = jax.jit(task.init)
  params = init(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, init(jax.random.key(0)))
  if task.base_shapes is not None:
    assert jax.tree.structure(params) == jax.tree.structure(task.base_shapes)

  data = jax.device_put(task.data["train"])
  tx = optax.adam(0.03)

  @jax.jit
  def step(params, state, key):
    batch = task.sample_batch(key, data)
    (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
        params, key, batch)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  state, losses = tx.init(params), []
  for i in range(60):
    params, state, loss = step(params, state, jax.random.key(i))
    assert loss.dtype == jnp.float32 and loss.shape == ()
    losses.append(float(task.normalize(loss)))
  assert np.mean(losses[-10:]) < np.mean(losses[:10])


@pytest.mark.parametrize("name", DATA_SETS)
def test_mlp(name, parametrization):
  task = suite.get("mlp", parametrization, dataset=name, width=12, depth=3,
                   batch_size=8)
  params = jax.jit(jax.vmap(task.init))(jax.random.split(jax.random.key(0), 2))
  params = jax.tree.map(lambda x: x[0], params)
  batch = task.sample_batch(jax.random.key(1), task.data["train"])
  assert batch["image"].min() >= 0 and batch["image"].max() == 1
  (loss, aux), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
      params, jax.random.key(2), batch)
  assert abs(loss - np.log(10)) < 0.5
  assert 0 <= aux["accuracy"] <= 1
  assert np.any(grads["layer_3"]["w"] != 0)
  # Only the width differs between shapes and base shapes.
  for layer, shape in jax.tree.map(jnp.shape, params).items():
    bases = task.base_shapes[layer]
    for kind, found in shape.items():
      assert len(found) == len(bases[kind].shape)
      assert all(n in (b, b // 2) for n, b in zip(found, bases[kind].shape))


def test_init_statistics(parametrization):
  task = suite.get("mlp", parametrization, width=512)
  params = jax.jit(task.init)(jax.random.key(0))
  found = {k: float(jnp.std(v["w"])) for k, v in params.items()}
  mup = parametrization.needs_base_shapes
  for layer, expected in (("layer_0", 64**-0.5), ("layer_1", 512**-0.5),
                          ("layer_2", 0.0 if mup else 512**-0.5)):
    assert found[layer] == pytest.approx(expected, rel=0.05)


def test_mup_readout_is_divided_by_width():
  mup, standard = (parametrizations.get(n) for n in ("mup", "standard"))
  params = suite.get("mlp", standard, width=32).init(jax.random.key(0))
  scaled = jax.tree.map(lambda x: x, params)
  scaled["layer_2"]["w"] = 32 * params["layer_2"]["w"]
  tasks = [suite.get("mlp", p, width=32) for p in (mup, standard)]
  batch = tasks[0].sample_batch(jax.random.key(1), tasks[0].data["train"])
  losses = [t.loss(p, None, batch)[0] for t, p in zip(tasks, (scaled, params))]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_normalize():
  task = suite.get("mlp", parametrizations.get("mup"), width=4)
  losses = jnp.array([0.5, 100.0, jnp.inf, jnp.nan])
  worst = 1.5 * np.log(10)
  np.testing.assert_allclose(
      task.normalize(losses), [0.5, worst, worst, worst], rtol=1e-6)


def test_quadratic_under_gradient_descent():
  task = suite.get("quadratic", None, dim=3, condition=3.0)
  params = task.init(jax.random.key(0))
  start = np.asarray(params["p"])
  grad = jax.jit(jax.grad(lambda p: task.loss(p, None, {})[0]))
  for _ in range(5):
    params = {"p": params["p"] - 0.3 * grad(params)["p"]}
  expected = (1 - 0.3 * np.array([0.5, 1.0, 1.5]))**5 * start
  np.testing.assert_allclose(params["p"], expected, rtol=1e-5)


def test_errors():
  known = ", ".join(suite.names())
  with pytest.raises(ValueError, match=f"available: {known}"):
    suite.get("mpl", None)
  with pytest.raises(ValueError, match="does not take the settings"):
    suite.get("quadratic", None, width=3)
  with pytest.raises(ValueError, match="width .0."):
    suite.get("mlp", parametrizations.get("mup"), width=0)
  with pytest.raises(ValueError, match="available: digits, mnist"):
    suite.get("mlp", parametrizations.get("mup"), dataset="minst")


def test_mnist_without_a_folder(monkeypatch):
  monkeypatch.delenv("MULO_DATA_DIR", raising=False)
  with pytest.raises(FileNotFoundError, match="--data_dir"):
    data_lib.image_data("mnist")


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
IDX = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + IMAGES.tobytes()


def read(folder: pathlib.Path, content: bytes, name: str = "x"):
  (folder / name).write_bytes(content)
  return data_lib.read_idx(folder / "x", ndim=3)


def test_idx(tmp_path):
  np.testing.assert_array_equal(
      read(tmp_path, gzip.compress(IDX), "x.gz"), IMAGES)
  np.testing.assert_array_equal(read(tmp_path, IDX), IMAGES)


@pytest.mark.parametrize("content, message", [
    (IDX[:-1], "39 bytes.*asks for 40: the file is damaged"),
    (IDX + b"x", "41 bytes"),
    (IDX[:10], "not an IDX file"),
    (b"\x00\x00\x08\x01" + IDX[4:], "starts with 00000801, expected 00000803"),
    (b"", "not an IDX file"),
    (b"PK\x03\x04 some zip file", "not an IDX file"),
    (gzip.compress(IDX)[:-9], "not a complete gzip file"),
    (gzip.compress(IDX)[:12] + b"damage" + gzip.compress(IDX)[18:],
     "not a complete gzip file")])
def test_damaged_idx(tmp_path, content, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, content)


def test_missing_idx(tmp_path):
  with pytest.raises(FileNotFoundError, match="Neither .*x nor .*x.gz"):
    data_lib.read_idx(tmp_path / "x", ndim=3)


def write_mnist(folder, labels):
  (folder / "mnist").mkdir()
  image = np.zeros((2, 3, 4), np.uint8)
  for stem in ("train", "t10k"):
    (folder / "mnist" / f"{stem}-images-idx3-ubyte").write_bytes(
        struct.pack(">4B3I", 0, 0, 8, 3, *image.shape) + image.tobytes())
    (folder / "mnist" / f"{stem}-labels-idx1-ubyte").write_bytes(
        struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels))


@pytest.mark.parametrize("labels, message", [
    ([1, 2, 3], "2 images and 3 labels"), ([1, 77], "label 77")])
def test_mnist_labels(tmp_path, labels, message):
  write_mnist(tmp_path, labels)
  with pytest.raises(ValueError, match=message):
    data_lib.image_data("mnist", str(tmp_path))
