"""One family of tasks per file; each exports `make(parametrization, ...)`."""

import functools
import inspect
from typing import Any

from learned_opt import registry
from tasks import base

names = functools.partial(registry.names, __name__)


def get(name: str, parametrization: base.Parametrization | None, /,
        data_dir: str | None = None, **settings: Any) -> base.Task:
  """Make the task of a family.

  Args:
    name: name of the family, see `learned_opt.registry`.
    parametrization: multipliers of the network; None is enough for a family
      that does not use them ("quadratic").
    data_dir: see `tasks.data.images.image_data`; ignored by families without
      data.
    **settings: passed to the `make` of the family.

  Raises:
    ValueError: no such family, or settings that its `make` does not take.
  """
  make = registry.find(__name__, name)
  if "data_dir" in inspect.signature(make).parameters:
    settings["data_dir"] = data_dir
  registry.bind(make, f"Task {name}", parametrization, **settings)
  task: base.Task = make(parametrization, **settings)
  return task
