"""Types and ranges of the numbers in a config.

The parts of the program check how their settings fit together. Here each number
alone must be one that can be meant: of the right type, finite, and neither
negative nor huge where this has no meaning.
"""

import inspect
import math
from typing import Any, Iterator, Mapping, NamedTuple

from learned_opt import artifact
from learned_opt import optimizers
from learned_opt import registry
from meta_train import estimators
from tasks import families


class Range(NamedTuple):
  """Smallest and largest value; the type of `low` is that of the setting."""

  low: float
  high: float


LARGE = 1e6  # no number of a recipe is near it
TINY = 1e-30  # stands for "positive"
STEPS = 2**31 - 1  # counters of steps are int32
SIZE = 2**20  # of an axis or a data set of a small network

_NUMBER = Range(-LARGE, LARGE)
_COUNT = Range(1, STEPS)
_RATE = Range(TINY, LARGE)
_NOT_NEGATIVE = Range(0.0, LARGE)
_FRACTION = Range(0.0, 1.0)
_SWITCH, _TEXT = bool, str

SETTINGS: dict[str, Any] = {
    "seed": Range(0, 2**32 - 1), "num_steps": _COUNT, "copies": Range(1, SIZE),
    "devices": Range(0, SIZE), "max_minutes": _NOT_NEGATIVE,
    "log_every": _COUNT, "checkpoint_every": _COUNT,
    "keep_checkpoints": _COUNT, "stream": _SWITCH, "mapping": _TEXT,
    "parametrization": _TEXT, "average": _FRACTION, "start": _TEXT,
    "start_sha256": _TEXT}
THETA_OPT: dict[str, Any] = {
    "learning_rate": _NOT_NEGATIVE, "final_learning_rate": _NOT_NEGATIVE,
    "warmup": Range(0, STEPS), "weight_decay": _NOT_NEGATIVE,
    "clip": Range(TINY, 1e30), "make": _TEXT}
EVALUATION: dict[str, Any] = {
    "every": Range(0, STEPS), "num_steps": _COUNT, "seeds": Range(1, 2**16)}
# Settings of parts, by name; all others by the type of their default.
ESTIMATOR: dict[str, Any] = {
    "std": Range(TINY, LARGE), "truncation": _COUNT, "shortest": _COUNT,
    "longest": _COUNT, "curriculum": Range(0, STEPS), "clip": _NOT_NEGATIVE,
    "sign": _NOT_NEGATIVE}
_BETA = Range(0.0, 1 - 1e-9)
OPTIMIZER: dict[str, Any] = {
    "learning_rate": _RATE, "b1": _BETA, "b2": _BETA, "epsilon": _NOT_NEGATIVE,
    "step_mult": _RATE, "exp_mult": _NUMBER, "warmup": _FRACTION,
    "hidden": Range(0, artifact.MAX_INTEGER),
    "lstm_hidden": Range(1, artifact.MAX_INTEGER),
    "bank": Range(1, artifact.MAX_INTEGER)}
TASK: dict[str, Any] = {
    "weight": _RATE, "num_steps": _COUNT, "normalizer": _TEXT,
    "width": Range(1, SIZE), "depth": Range(0, 1000), "stages": Range(1, 30),
    "batch_size": Range(1, SIZE), "dim": Range(1, SIZE),
    "length": Range(1, SIZE), "head_size": Range(1, SIZE),
    "label_noise": _FRACTION, "pixel_noise": _NOT_NEGATIVE,
    "init_scale": _NOT_NEGATIVE, "condition": _NOT_NEGATIVE,
    "depth_exponent": _NUMBER}


def check(config: Mapping[str, Any]) -> None:
  """Raise ValueError for the first number that cannot be meant.

  Args:
    config: see meta_train/configs.
  """
  for name, value, expected in _settings(config):
    _check(f"config.{name}", value, expected)


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
  """Yield (name, value, Range or type) of each setting that is known."""
  for name, expected in SETTINGS.items():
    yield name, config[name], expected
  for section, known in (("theta_opt", THETA_OPT), ("evaluation", EVALUATION)):
    for name, expected in known.items():
      if name in config[section]:
        yield f"{section}.{name}", config[section][name], expected
  for section, folder, known, whole in (
      ("optimizer", optimizers, OPTIMIZER, artifact.MAX_INTEGER),
      ("estimator", estimators, ESTIMATOR, STEPS)):
    yield from _part(
        section, config[section], folder.__name__, known, Range(0, whole))
  for place, tasks in (("tasks", config["tasks"]),
                       ("evaluation.tasks", config["evaluation"]["tasks"])):
    for name, section in tasks.items():
      yield from _part(f"{place}.{name}", section, families.__name__, TASK,
                       Range(0, SIZE))


def _part(path: str, section: Mapping[str, Any], folder: str,
          known: Mapping[str, Any], whole: Range
          ) -> Iterator[tuple[str, Any, Any]]:
  """Yield the settings of a part that is given by its name.

  Args:
    path: name of the section.
    section: name and settings of the part.
    folder: folder of such parts.
    known: what is expected of some settings.
    whole: range of other whole numbers.
  """
  if not isinstance(section, Mapping) and not hasattr(section, "items"):
    raise ValueError(f"config.{path} must be a section with a name, got "
                     f"{section!r}.")
  if not isinstance(section.get("name"), str):
    raise ValueError(f"config.{path}.name must be text, got "
                     f"{section.get('name')!r}.")
  parameters = inspect.signature(
      registry.find(folder, section["name"])).parameters
  for name, value in section.items():
    default = getattr(parameters.get(name), "default", None)
    expected = known.get(name, {
        int: whole, float: _NUMBER, bool: bool, str: str}.get(type(default)))
    if name == "name" or expected is None or (
        isinstance(expected, Range) and isinstance(default, (bool, str))):
      # A switch or text that has the name of a number elsewhere.
      expected = type(default) if isinstance(default, (bool, str)) else None
    if expected is not None:
      yield f"{path}.{name}", value, expected
    elif isinstance(value, float):
      yield f"{path}.{name}", value, _NUMBER


def _check(name: str, value: Any, expected: Any) -> None:
  """Raise ValueError unless a value is what is expected; see `_settings`."""
  if not isinstance(expected, Range):
    # None stands for the default of a part.
    if value is not None and not isinstance(value, expected):
      kind = {bool: "True or False", str: "text"}[expected]
      raise ValueError(f"{name} must be {kind}, got {value!r}.")
    return
  whole = isinstance(expected.low, int)
  number = isinstance(value, int if whole else (int, float))
  if not number or isinstance(value, bool):
    kind = "a whole number" if whole else "a number"
    raise ValueError(f"{name} must be {kind}, got {value!r}.")
  low, high = expected
  if low <= value <= high:
    return
  if isinstance(value, float) and not math.isfinite(value):
    problem = "be finite"
  elif value > high:
    problem = f"be at most {high:,}" if whole else f"be at most {high:g}"
  elif low == TINY:
    problem = "be positive"
  elif low == 0:
    problem = "not be negative"
  else:
    problem = f"be at least {low:,}" if whole else f"be at least {low:g}"
  raise ValueError(f"{name} must {problem}, got {value!r}.")
