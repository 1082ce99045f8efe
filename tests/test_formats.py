"""Data formats: reading, refusing damaged files, and adding a format."""

import gzip
import os
import pathlib
import struct
import sys
import types

import numpy as np
import pytest

from tasks.data import base
from tasks.data import image_formats
from tasks.data import images as images_lib
from tasks.data import text as text_lib
from tasks.data import text_formats
from tasks.data.image_formats import idx

DATA_DIR = os.environ.get("MULO_DATA_DIR")
needs_files = pytest.mark.skipif(
    not DATA_DIR, reason="MULO_DATA_DIR, the folder of data sets, is not set")
on_file = lambda name: pytest.param(name, marks=needs_files)


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
IDX = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + IMAGES.tobytes()


def read(folder: pathlib.Path, content: bytes, name: str = "x"):
  (folder / name).write_bytes(content)
  return idx.read(folder / "x", ndim=3)


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
     "not a complete gzip file")],
    ids=["short", "long", "header", "axes", "empty", "zip", "gzip", "damage"])
def test_damaged_idx(tmp_path, content, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, content)


def write_mnist(folder, labels, images=2):
  folder.mkdir()
  image = np.zeros((images, 3, 4), np.uint8)
  for stem in ("train", "t10k"):
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(
        struct.pack(">4B3I", 0, 0, 8, 3, *image.shape) + image.tobytes())
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
        struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("labels, message", [
    ([1] * 21, "20 images and 21 labels"),
    ([1] * 19 + [77], "labels 1 to 77")])
def test_idx_labels(tmp_path, name, labels, message):
  write_mnist(tmp_path / name, labels, 20)
  with pytest.raises(ValueError, match=message):
    images_lib.image_data(name, str(tmp_path))


CIFAR = pathlib.Path("cifar-10-batches-bin")


def write_cifar(folder, change=lambda batch: batch):
  """Write three files of ten records; apply `change` to data_batch_2."""
  records = np.arange(10 * 3073).astype(np.uint8).reshape(10, 3073)
  records[:, 0] = np.arange(10)
  (folder / CIFAR).mkdir()
  for name in ("data_batch_1", "data_batch_2", "test_batch"):
    batch = records.tobytes()
    (folder / CIFAR / f"{name}.bin").write_bytes(
        change(batch) if name == "data_batch_2" else batch)
  return records


def test_cifar10(tmp_path):
  records = write_cifar(tmp_path)
  data = images_lib.image_data("cifar10", str(tmp_path))
  assert {k: len(x["label"]) for k, x in data.splits.items()} == {
      "train": 16, "inner_valid": 2, "outer_valid": 2, "test": 10}
  image = data.splits["test"]["image"]
  for channel in range(3):
    plane = records[3, 1 + 1024 * channel:1 + 1024 * (channel + 1)]
    np.testing.assert_array_equal(
        image[3, ..., channel], plane.reshape(32, 32))


@pytest.mark.parametrize("change, message", [
    (lambda batch: batch[:-1], "data_batch_2.bin has 30729 bytes"),
    (lambda batch: b"", "data_batch_2.bin has 0 bytes"),
    (lambda batch: bytes([12]) + batch[1:], "labels 0 to 12")],
    ids=["short", "empty", "label"])
def test_damaged_cifar10(tmp_path, change, message):
  write_cifar(tmp_path, change)
  with pytest.raises(ValueError, match=message):
    images_lib.image_data("cifar10", str(tmp_path))


def test_missing_batch_of_cifar10(tmp_path):
  write_cifar(tmp_path)
  folder = tmp_path / CIFAR
  (folder / "data_batch_2.bin").rename(folder / "data_batch_3.bin")
  with pytest.raises(FileNotFoundError, match="data_batch_2.bin does not"):
    images_lib.image_data("cifar10", str(tmp_path))


def test_too_few_images(tmp_path):
  write_mnist(tmp_path / "mnist", [1, 2])
  with pytest.raises(ValueError, match="has 2 images, too few"):
    images_lib.image_data("mnist", str(tmp_path))


def test_cifar100_uses_the_fine_label(tmp_path):
  records = np.zeros((20, 3074), np.uint8)
  records[:, 0], records[:, 1] = 19, 99
  (tmp_path / "cifar-100-binary").mkdir()
  for name in ("train", "test"):
    (tmp_path / "cifar-100-binary" / f"{name}.bin").write_bytes(
        records.tobytes())
  data = images_lib.image_data("cifar100", str(tmp_path))
  assert data.num_classes == 100
  assert set(data.splits["train"]["label"]) == {99}


def write_imagenet(folder, size=32, change=lambda content: content, **arrays):
  (folder / "imagenet32").mkdir()
  pixels = np.arange(10 * 3 * size**2).astype(np.uint8).reshape(10, -1)
  arrays = {"data": pixels, "labels": np.array([1, 1000] * 5)} | arrays
  for name in ("train_data_batch_1", "train_data_batch_2", "val_data"):
    path = folder / "imagenet32" / f"{name}.npz"
    np.savez(path, **arrays)
    path.write_bytes(change(path.read_bytes()))


def test_imagenet(tmp_path):
  write_imagenet(tmp_path)
  data = images_lib.image_data("imagenet32", str(tmp_path))
  assert data.splits["train"]["image"].shape == (16, 32, 32, 3)
  assert set(data.splits["test"]["label"]) == {0, 999}
  np.testing.assert_array_equal(
      data.splits["test"]["image"][0, 0, :, 1],
      np.arange(1024, 1056).astype(np.uint8))


@pytest.mark.parametrize("change, arrays, message", [
    (lambda x: x[:-40], {}, "not a complete npz file"),
    (lambda x: x[:500] + b"damage" + x[506:], {}, "not a complete npz file"),
    (lambda x: b"\x80\x04K\x01.", {}, "not a complete npz file"),  # a pickle
    (lambda x: b"", {}, "not a complete npz file"),
    (lambda x: x.replace(b"PK\x01\x02", b"PK\x01\x02\xff\xff\xff"), {},
     "not a complete npz file"),
    (lambda x: x.replace(b"'descr'", b"'de(cr'"), {},
     "not a complete npz file"),
    (lambda x: x, {"labels": np.array([{}])}, "not a complete npz file"),
    (lambda x: x, {"labels": np.zeros(9, int)}, r"labels int64\[9\]"),
    (lambda x: x, {"data": np.zeros((10, 5), np.uint8)}, r"uint8\[10, 5\]"),
    (lambda x: x, {"labels": np.zeros(10, int)}, "labels -1 to -1")],
    ids=["short", "damage", "pickle", "empty", "version", "header", "object",
         "count", "pixels", "label"])
def test_damaged_imagenet(tmp_path, change, arrays, message):
  write_imagenet(tmp_path, change=change, **arrays)
  with pytest.raises(ValueError, match=message):
    images_lib.image_data("imagenet32", str(tmp_path))


@pytest.mark.parametrize("content, message", [
    (b"", "empty"), (b"some\0thing", "null bytes"), (b"\xff\xfe", "UTF-8"),
    ("caf\u00e9".encode()[:-1], "UTF-8")])
def test_damaged_text(tmp_path, content, message):
  (tmp_path / "text").mkdir()
  (tmp_path / "text" / "novel.txt").write_bytes(content)
  with pytest.raises(ValueError, match=message):
    text_lib.text_data("novel", str(tmp_path))


NEW_FORMAT = """
import numpy as np
from tasks.data import base
DATASETS, LOCAL = {names}, True
def load(name, folder, *size):
  train = np.fromfile(folder / (name + ".raw"), np.uint8)
  image = train.reshape(-1, 2, 2, 1)
  part = image, np.arange(len(image)) % 3
  if size:
    return base.ImageParts(part, part, 3)
  return base.TextParts(train, train)
"""


@pytest.fixture
def add_format(tmp_path, monkeypatch):
  """Return a function that adds a file to a package of formats."""

  def add(package, *names, file_name="new_format"):
    name = f"{package.__name__}.{file_name}"
    folder = tmp_path / "formats"
    folder.mkdir(exist_ok=True)
    (folder / f"{file_name}.py").write_text(NEW_FORMAT.format(names=names))
    monkeypatch.setattr(
        package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, name, raising=False)
  return add


def test_new_image_format_is_one_file(tmp_path, add_format):
  add_format(image_formats, "patches")
  np.arange(80, dtype=np.uint8).tofile(tmp_path / "patches.raw")
  data = images_lib.image_data("patches", str(tmp_path))
  assert data.num_classes == 3
  np.testing.assert_array_equal(
      data.splits["test"]["image"].ravel(), np.arange(80))
  with pytest.raises(ValueError, match="mnist, patches, photos, "):
    images_lib.image_data("pathces", str(tmp_path))


def test_new_text_format_goes_before_plain_text(tmp_path, add_format):
  """The longer pattern wins, whatever the names of files."""
  add_format(text_formats, "raw_*", file_name="zzz")
  (tmp_path / "raw_tale.raw").write_bytes(b"once upon a time" * 5)
  data = text_lib.text_data("raw_tale", str(tmp_path))
  assert data.splits["test"]["token"].tobytes().startswith(b"once upon")


def test_format_of_an_installed_package(tmp_path, monkeypatch):
  load = lambda name, folder, size: base.ImageParts(
      *[(np.full((20, 2, 2, 1), 7, np.uint8), np.zeros(20, int))] * 2, 1)
  module = types.SimpleNamespace(DATASETS=("sevens",), LOCAL=False, load=load)
  points = {"tasks.data.image_formats": [
      types.SimpleNamespace(load=lambda: module)]}
  monkeypatch.setattr(
      base.metadata, "entry_points", lambda group: points.get(group, []))
  assert images_lib.image_data("sevens").splits["train"]["image"].max() == 7


def test_two_formats_of_one_name(add_format):
  add_format(image_formats, "mnist")
  with pytest.raises(ValueError, match="Two formats of .* data set 'mnist'"):
    images_lib.image_data("digits")


@needs_files
@pytest.mark.parametrize("name, path", [
    ("mnist", "mnist/train-images-idx3-ubyte.gz"),
    ("mnist", "mnist/t10k-labels-idx1-ubyte.gz"),
    ("cifar10", "cifar-10-batches-bin/test_batch.bin")])
def test_truncated_copies_of_real_files(tmp_path, name, path):
  source = pathlib.Path(DATA_DIR)
  (tmp_path / path).parent.mkdir()
  for other in (source / path).parent.iterdir():
    (tmp_path / path).with_name(other.name).symlink_to(other)
  (tmp_path / path).unlink()
  content = (source / path).read_bytes()
  (tmp_path / path).write_bytes(content[:-100])
  with pytest.raises(ValueError, match=pathlib.Path(path).name):
    images_lib.image_data(name, str(tmp_path))
