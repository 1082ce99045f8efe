"""The source of Python's own standard library."""

import pathlib
import sys
import sysconfig

import numpy as np

from tasks.data import base
from tasks.data.text_formats import plain

DATASETS = ("python",)
LOCAL = False


def load(name: str, folder: pathlib.Path | None) -> base.TextParts:
  """Read the top level of the standard library, sorted by name of module.

  Raises:
    FileNotFoundError: this Python came without source.
  """
  del name, folder
  stdlib = pathlib.Path(sysconfig.get_paths()["stdlib"])
  # What is made for one machine, with its paths, is not among these names.
  files = [stdlib / f"{name}.py" for name in sorted(sys.stdlib_module_names)]
  sources = [plain.read(path) for path in files if path.exists()]
  if not sources:
    raise FileNotFoundError(f"{stdlib} has no Python source: this Python came "
                            "without; use another text.")
  return base.TextParts(np.concatenate(sources), None)
