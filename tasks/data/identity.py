"""Identity of data: a hash of the arrays that a program uses.

Not of files: what matters is what comes out of them, and some data have no
files. The hash costs a fraction of reading the data, so it is not cached.
"""

import hashlib
from typing import Any

import jax
import numpy as np


def sha256(data: Any) -> str:
  """Return the hash of all arrays of a tree: names, dtypes, shapes, bytes.

  Args:
    data: `tasks.base.Task.data`, or any other tree of arrays.
  """
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(data):
    x = np.ascontiguousarray(x)
    digest.update(
        f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}\n".encode())
    digest.update(x.view(np.uint8).data if x.size and x.ndim else x.tobytes())
  return digest.hexdigest()
