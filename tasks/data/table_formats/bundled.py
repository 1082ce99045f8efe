"""The tables that come with scikit-learn."""

import pathlib

from tasks.data import base

CLASSES = {"breast_cancer": 2, "digits": 10, "wine": 3}
DATASETS = (*CLASSES, "diabetes")
LOCAL = False


def load(name: str, folder: pathlib.Path | None) -> base.TableParts:
  """Load a table; see `tasks.data.table_formats`.

  Examples and inputs: breast_cancer 569 x 30, digits 1797 x 64, wine 178 x 13,
  diabetes 442 x 10.
  """
  del folder
  # Imported here, because other tables do not need scikit-learn.
  from sklearn import datasets
  x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
  if name in CLASSES:
    return base.TableParts((x, y), CLASSES[name])
  return base.TableParts((x, y[:, None]))
