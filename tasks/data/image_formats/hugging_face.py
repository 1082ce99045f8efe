"""Image data sets of Hugging Face: "hf://owner/name"."""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("hf://*",)
LOCAL = False


def load(name: str, folder: pathlib.Path | None, size: int) -> base.ImageParts:
  """Load the parts "train" and "test" (or "validation") of a data set.

  See `tasks.data.image_formats`; needs the library `datasets`.
  """
  del folder
  name = name.removeprefix("hf://")
  try:
    import datasets
  except ImportError as e:
    raise ImportError("hf:// needs a library: pip install datasets.") from e
  loaded = datasets.load_dataset(name)
  held = next((x for x in ("test", "validation", "valid") if x in loaded), None)
  if held is None or "train" not in loaded:
    raise ValueError(f"{name} has the parts {', '.join(loaded)}; it must have "
                     "train, and test or validation.")
  parts: list[base.Examples] = []
  for split in ("train", held):
    columns = loaded[split].features
    pick = lambda names: next((x for x in names if x in columns), None)
    key, label = pick(("image", "img")), pick(("label", "labels", "fine_label"))
    if not key or not label:
      raise ValueError(f"{name} has the columns {', '.join(columns)}: none is "
                       "called image and none label.")
    convert = lambda x: x.resize((size, size)) if size else x
    pictures = loaded[split][key]
    mode = "L" if all(x.mode == "L" for x in pictures) else "RGB"
    sizes = {x.size for x in pictures}
    if len(sizes) > 1 and not size:
      raise ValueError(
          f"{name} has images of different sizes: give image_size.")
    image = np.stack([np.asarray(convert(x.convert(mode))) for x in pictures])
    parts.append((image.reshape(*image.shape[:3], -1),
                  np.asarray(loaded[split][label])))
  num_classes = int(max(label.max() for _, label in parts)) + 1
  train, test = parts
  return base.ImageParts(train, test, num_classes)
