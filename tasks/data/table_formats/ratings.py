"""Ratings of items by users, from factors of rank 4."""

import pathlib

import numpy as np

from tasks.data import base

DATASETS = ("ratings",)
LOCAL = False
USERS, ITEMS, RANK, COUNT = 256, 192, 4, 20_000


def load(name: str, folder: pathlib.Path | None) -> base.TableParts:
  """Draw ratings with a fixed seed; see `tasks.data.table_formats`.

  Inputs are the ids of a user and an item, the target is a rating from 1 to 5.
  A few users and items have most of the ratings.
  """
  del name, folder
  rng = np.random.default_rng(60)
  # Squares of uniform numbers: small ids are more frequent.
  ids = np.unique(np.floor([USERS, ITEMS] * rng.uniform(
      size=(COUNT, 2))**2).astype(int), axis=0)
  user, item = (rng.normal(size=(n, RANK)) for n in (USERS, ITEMS))
  value = np.sum(user[ids[:, 0]] * item[ids[:, 1]], 1) / RANK**0.5
  rating = np.clip(np.rint(3 + value + 0.3 * rng.normal(size=len(ids))), 1, 5)
  return base.TableParts((ids, rating[:, None]))
