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
  """Read the top-level modules of the standard library, sorted by name.

  Raises:
    FileNotFoundError: this Python came without its source.
  """
  del name, folder
  stdlib = pathlib.Path(sysconfig.get_paths()["stdlib"])
  # Generated files, which contain paths of this machine, are not among these
  # names. Packages, which have no file NAME.py, are left out.
  paths = [stdlib / f"{x}.py" for x in sorted(sys.stdlib_module_names)]
  sources = [plain.read(path) for path in paths if path.exists()]
  if not sources:
    raise FileNotFoundError(f"{stdlib} has no Python source: this Python came "
                            "without its source; use another text.")
  return base.TextParts(np.concatenate(sources), None)
