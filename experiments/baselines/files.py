"""Baselines of users: a file that describes one optimizer.

The file has the name ENTRY, a `Baseline`:

    import optax
    from experiments import baselines

    ENTRY = baselines.Baseline(
        "my optimizer", optax.adabelief, "standard",
        baselines.half_decades(-7, -2), schedules=("linear", "cosine"),
        variants=({"b2": 0.99}, {"b2": 0.999}))
"""

import hashlib
import importlib.util
import pathlib
import sys
from typing import NamedTuple

from experiments.baselines import base


class Entry(NamedTuple):
  """A baseline and where it comes from.

  Attributes:
    baseline: the baseline.
    source: text of its file.
    sha256: hash of the text.
  """

  baseline: base.Baseline
  source: str
  sha256: str


def read(path: str) -> Entry:
  """Run a file and return its ENTRY.

  What the file imports is not part of the hash.

  Args:
    path: the file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file cannot be run, or has no ENTRY.
  """
  text = pathlib.Path(path).read_bytes()
  sha256 = hashlib.sha256(text).hexdigest()
  name = f"entry_{sha256}"
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up
  try:
    spec.loader.exec_module(module)
  except Exception as e:  # pylint: disable=broad-except
    raise ValueError(f"{path} fails: {type(e).__name__}: {e}") from e
  entry = getattr(module, "ENTRY", None)
  if not isinstance(entry, base.Baseline):
    raise ValueError(
        f"{path} must have the name ENTRY, an experiments.baselines.Baseline; "
        f"it has {'none' if entry is None else type(entry).__name__}. See "
        "docs/board.md.")
  if not entry.learning_rates or not entry.variants:
    raise ValueError(f"{path}: ENTRY has no learning rates or no variants; "
                     "one setting is baselines.untuned(label, make).")
  unknown = [x for x in entry.schedules or () if x not in base.SCHEDULES]
  if unknown:
    raise ValueError(f"{path}: unknown schedule {unknown[0]!r}; available: "
                     f"{', '.join(base.SCHEDULES)}.")
  return Entry(entry, text.decode(), sha256)
