"""One family of tasks per file; each exports `make(parametrization, ...)`."""

import functools
import inspect

from learned_opt import registry

names = functools.partial(registry.names, __name__)


def get(name: str, parametrization, /, data_dir: str | None = None,
        **settings):
  """Make the task of a family.

  Args:
    name: see `learned_opt.registry`.
    parametrization: object with `init_std` and `output_mult`, functions of
      (shape, base shape), `attention_mult`, one of the size of a head, and
      `branch_mult`, one of the number of residual blocks.
    data_dir: see `tasks.data.images.image_data`; families without data do not
      get it.
    **settings: passed to the `make` of the family.

  Returns:
    A `tasks.base.Task`.

  Raises:
    ValueError: no such family, or settings that it does not take.
  """
  make = registry.find(__name__, name)
  signature = inspect.signature(make)
  if "data_dir" in signature.parameters:
    settings["data_dir"] = data_dir
  try:
    signature.bind(parametrization, **settings)
  except TypeError as e:
    raise ValueError(
        f"Task {name} does not take the settings {settings}: {e}.") from e
  return make(parametrization, **settings)
