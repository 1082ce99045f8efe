"""Data sets: splits, noise and errors, on real files where there are any."""

import importlib
import os
import pathlib
import sys
import tracemalloc
import types

import jax
import numpy as np
import pytest

from learned_opt.scaling import parametrizations
from tasks import base
from tasks import families
from tasks import image_tasks
from tasks.data import images as images_lib
from tasks.data import text as text_lib

DATA_DIR = os.environ.get("MULO_DATA_DIR")
needs_files = pytest.mark.skipif(
    not DATA_DIR, reason="MULO_DATA_DIR, the folder of data sets, is not set")
on_file = lambda name: pytest.param(name, marks=needs_files)
DATA_SETS = {"digits": 1797, "mnist": 70000, "cifar10": 24000, "photos": 3710,
             "shapes": 8192}
IMAGE_SETS = ["digits", "photos", "shapes", on_file("mnist"),
              on_file("cifar10")]
TEXTS = ["python", "sums", "brackets", on_file("tinyshakespeare"),
         on_file("wikitext2")]


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_image_splits_are_disjoint_and_complete(name):
  data = images_lib.image_data(name)
  assert set(data.splits) == set(base.SPLITS)
  images = [x["image"].reshape(len(x["image"]), -1)
            for x in data.splits.values()]
  assert sum(len(x) for x in images) == DATA_SETS[name]
  # Pixels identify an example: no example may be in two splits.
  sets = [{x.tobytes() for x in part} for part in images]
  assert sum(map(len, sets)) == len(set.union(*sets))


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_examples_are_what_they_should_be(name):
  data = images_lib.image_data(name)
  for split in data.splits.values():
    assert split["image"].dtype == np.uint8
    assert split["label"].dtype == np.int32
    assert split["image"].max() == data.max_value
    counts = np.bincount(split["label"], minlength=data.num_classes)
    assert counts.min() > 0.05 * counts.sum()  # every class in every split


def test_permutation_is_fixed():
  """Splits must not change between versions of this project."""
  label = images_lib.image_data("digits").splits["test"]["label"]
  assert label[:12].tolist() == [1, 5, 0, 7, 1, 0, 6, 1, 5, 4, 9, 2]


@needs_files
def test_memory_of_loading_mnist():
  images_lib._image_data.cache_clear()
  tracemalloc.start()
  try:
    data = images_lib.image_data("mnist")
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  size = sum(x.nbytes for split in data.splits.values()
             for x in split.values())
  assert size > 50e6
  assert peak < 3 * size


@needs_files
def test_cifar_is_in_colour_and_upright():
  image = images_lib.image_data("cifar10").splits["test"]["image"]
  assert image.shape[1:] == (32, 32, 3)
  means = image.mean((0, 1, 2))
  assert means[2] < means[1] and means[2] < means[0]  # blue is the weakest
  # The sky is at the top, so the first row is brighter than the last.
  assert image[:, 0].mean() > image[:, -1].mean()
  # Neighbouring pixels are similar along both axes; two random pixels differ by
  # about 70.
  for axis in (1, 2):
    assert np.abs(np.diff(image.astype(float), axis=axis)).mean() < 20


@needs_files
def test_resizing_and_greyscale():
  full = images_lib.image_data("cifar10").splits["test"]["image"]
  data = images_lib.image_data("cifar10", size=8, greyscale=True)
  image = data.splits["test"]["image"]
  assert image.dtype == np.uint8 and image.shape[1:] == (8, 8, 1)
  # Close to the means of 4 x 4 pixels; the linear filter is a little wider.
  means = full.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4, 5))
  assert np.abs(image[..., 0] - means).mean() < 6
  assert np.corrcoef(image.ravel(), means.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("name", TEXTS)
def test_text(name):
  data = text_lib.text_data(name)
  assert data.vocab_size == 256 and set(data.splits) == set(base.SPLITS)
  train = data.splits["train"]["token"]
  assert train.dtype == np.uint8 and len(train) > 500_000
  # Passages of the other splits are not in the train split.
  train_bytes = train.tobytes()
  for split in ("inner_valid", "outer_valid", "test"):
    token = data.splits[split]["token"]
    assert len(token) > 20_000
    assert token[10_000:11_000].tobytes() not in train_bytes


@needs_files
def test_text_is_complete():
  data = text_lib.text_data("tinyshakespeare")
  path = pathlib.Path(DATA_DIR) / "text" / "tinyshakespeare.txt"
  joined = np.concatenate([x["token"] for x in data.splits.values()])
  assert joined.tobytes() == path.read_bytes()


def test_byte_pairs(tmp_path):
  pytest.importorskip("tokenizers")
  (tmp_path / "text").mkdir()
  text = "the cat sat on the mat, the café is shut\n" * 400
  (tmp_path / "text" / "cats.txt").write_text(text)
  data = text_lib.text_data("cats", str(tmp_path), "bpe", 300)
  tokens = [x["token"] for x in data.splits.values()]
  assert data.vocab_size == 300 and tokens[0].dtype == np.uint16
  assert max(x.max() for x in tokens) < 300
  assert sum(map(len, tokens)) < 0.5 * len(text.encode())
  again = text_lib._byte_pairs(
      {"train": np.frombuffer(text.encode(), np.uint8)}, 300)
  np.testing.assert_array_equal(again["train"][:50], tokens[0][:50])


def test_standardized_pixels():
  images = image_tasks.load(standardize=True)
  x = images.pixels(images.splits["train"]["image"])
  np.testing.assert_allclose(
      [np.mean(x), np.std(x)], [0, 1], atol=1e-4)


def test_label_noise():
  clean, noisy = (image_tasks.load(label_noise=x).splits for x in (0.0, 0.5))
  changed = np.mean(clean["train"]["label"] != noisy["train"]["label"])
  assert 0.4 < changed < 0.5  # a random label may be the old label
  np.testing.assert_array_equal(
      clean["test"]["label"], noisy["test"]["label"])


def test_pixel_noise():
  clean, noisy, again = (
      image_tasks.load(pixel_noise=x) for x in (0.0, 0.25, 0.25))
  for name, split in noisy.splits.items():
    x, y = (s[name]["image"] for s in (clean.splits, noisy.splits))
    assert y.dtype == np.uint8 and y.max() <= x.max() == 16
    middle = (x > 6) & (x < 10)  # pixels that are rarely clipped
    change = y[middle].astype(float) - x[middle]
    assert abs(np.mean(change)) < 0.5 and 3.5 < np.std(change) < 4.5, name
    np.testing.assert_array_equal(y, again.splits[name]["image"])
    np.testing.assert_array_equal(split["label"], clean.splits[name]["label"])


@pytest.mark.parametrize("name, message", [
    ("minst", "Unknown data set 'minst'; available: cifar10, cifar100, digits, "
     r"fashion_mnist, imagenet32, imagenet64, mnist, photos, shapes, hf://\*, "
     "where"),
    ("", "Unknown data set ''")])
def test_unknown_data_set(name, message):
  with pytest.raises(ValueError, match=message):
    images_lib.image_data(name)


@pytest.mark.parametrize("load, arguments, message", [
    (images_lib.image_data, {"name": "digits", "size": -1}, "negative, got -1"),
    (text_lib.text_data, {"name": "python", "vocab": "word"},
     "Unknown vocab 'word'; available: bytes, bpe"),
    (text_lib.text_data, {"name": "python", "vocab": "bpe", "vocab_size": 9},
     "vocab_size must be from 257 to 65536, got 9"),
    (text_lib.text_data, {"name": "../etc/passwd"}, "must not be a path"),
    (image_tasks.load, {"label_noise": 1.5}, "from 0 to 1, got 1.5"),
    (image_tasks.load, {"pixel_noise": -1.0}, "be negative, got -1.0")])
def test_arguments_that_make_no_sense(load, arguments, message):
  with pytest.raises(ValueError, match=message):
    load(**arguments)


def test_without_a_folder(monkeypatch):
  monkeypatch.delenv("MULO_DATA_DIR", raising=False)
  for load, name in ((images_lib.image_data, "mnist"),
                     (text_lib.text_data, "tinyshakespeare")):
    with pytest.raises(FileNotFoundError, match="--data_dir"):
      load(name)


@pytest.mark.parametrize("load, name, message", [
    (images_lib.image_data, "cifar10", "data_batch_1.bin does not exist"),
    (images_lib.image_data, "cifar100", "train.bin does not exist"),
    (images_lib.image_data, "imagenet32", "train_data_batch_1.npz does not"),
    (images_lib.image_data, "fashion_mnist", "Neither .*fashion_mnist"),
    (text_lib.text_data, "novel", "Neither .*novel.txt nor .*novel_valid.txt")])
def test_missing_files(tmp_path, load, name, message):
  with pytest.raises(FileNotFoundError, match=message):
    load(name, str(tmp_path))


def test_hugging_face(monkeypatch):
  """A fake module stands in for the library, which is not a dependency."""
  picture = importlib.import_module("PIL.Image").fromarray
  rows = [picture(np.full((6, 6, 3), i, np.uint8)) for i in range(10)]

  class Part(dict):
    features = {"img": None, "label": None}

  parts = {split: Part(img=rows, label=list(range(5)) * 2)
           for split in ("train", "test")}
  module = types.SimpleNamespace(load_dataset={"me/pictures": parts}.get)
  monkeypatch.setitem(sys.modules, "datasets", module)
  data = images_lib.image_data("hf://me/pictures", size=4)
  assert data.num_classes == 5
  assert data.splits["test"]["image"].shape == (10, 4, 4, 3)
  assert data.splits["test"]["image"][7].max() == 7
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ImportError, match="pip install datasets"):
    images_lib.image_data("hf://me/others")


@pytest.mark.parametrize("parts, message", [
    (["train"], "has the parts train; it must have train, and test"),
    (["train", "test"], "images of different sizes")])
def test_hugging_face_errors(parts, message, monkeypatch):
  picture = importlib.import_module("PIL.Image").fromarray

  class Part(dict):
    features = {"image": None, "label": None}

  part = Part(image=[picture(np.zeros((n, 6, 3), np.uint8)) for n in (4, 5)],
              label=[0, 1])
  module = types.SimpleNamespace(
      load_dataset=lambda name: {split: part for split in parts})
  monkeypatch.setitem(sys.modules, "datasets", module)
  with pytest.raises(ValueError, match=message):
    images_lib.image_data(f"hf://me/{len(parts)}")


def test_data_stay_bytes_until_they_are_used():
  task = families.get("mlp", parametrizations.get("mup"))
  for split in task.data.values():
    assert split["image"].dtype == np.uint8
    batch = task.sample_batch(jax.random.key(0), jax.device_put(split))
    assert batch["image"].dtype == np.float32
    assert batch["image"].min() == 0 and batch["image"].max() == 1
