"""Every number of a config, with values that nobody means."""

import math

import pytest
import tiny_config

from meta_train import build
from meta_train import ranges
from meta_train.configs import quickstart

NONSENSE = (math.nan, math.inf, -math.inf, -1, 2**63, "text", 1e30)
# Settings whose meaning includes a value of NONSENSE, and that value.
FINE = {("optimizer.exp_mult", -1), ("theta_opt.clip", 1e30),
        ("theta_opt.clip", 2**63)}


def settings(config, prefix=""):
  """Yield (name, value) of all settings that are numbers."""
  for name, value in config.items():
    if hasattr(value, "items"):
      yield from settings(value, f"{prefix}{name}.")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
      yield prefix + name, value


def configs():
  """Two configs, with more numbers of their parts than the files list."""
  small, usual = tiny_config.get_config(), quickstart.get_config()
  for config in (small, usual):
    config.unlock()
  usual.optimizer.update(exp_mult=0.1, newton_schulz=0)
  usual.tasks.digits_w16_d2.update(
      label_noise=0.0, pixel_noise=0.0, image_size=0, weight=1.0,
      init_scale=1.0)
  usual.tasks.lm = {"name": "transformer_lm", "width": 8, "depth": 1,
                    "length": 8, "head_size": 8, "batch_size": 2}
  return small, usual


def changed(config, name, value):
  """Return a copy of a config with another value of one setting."""
  config = config.copy_and_resolve_references()
  config.unlock()
  *sections, last = name.split(".")
  section = config
  for part in sections:
    section = section[part]
  with section.ignore_type():
    section[last] = value
  return config


@pytest.mark.parametrize("value", NONSENSE, ids=lambda x: str(x)[:9])
def test_nonsense_is_refused_in_one_line(value):
  """Each number of a config, one after the other; the message names it."""
  tried = 0
  for config in configs():
    build.check(config)
    for name, _ in settings(config):
      if (name, value) in FINE:
        continue
      with pytest.raises(ValueError) as error:
        build.check(changed(config, name, value))
      message = str(error.value)
      assert name.rpartition(".")[2] in message and "\n" not in message
      tried += 1
  assert tried > 70


@pytest.mark.parametrize("name, value, message", [
    ("num_steps", 0, "config.num_steps must be at least 1, got 0"),
    ("copies", 2.0, "config.copies must be a whole number, got 2.0"),
    ("seed", 2**32, "config.seed must be at most 4,294,967,295"),
    ("seed", True, "config.seed must be a whole number, got True"),
    ("stream", 1, "config.stream must be True or False, got 1"),
    ("mapping", 3, "config.mapping must be text, got 3"),
    ("evaluation.seeds", 0, "config.evaluation.seeds must be at least 1"),
    ("evaluation.every", -10, "evaluation.every must not be negative"),
    ("theta_opt.learning_rate", -1.0, "learning_rate must not be negative"),
    ("theta_opt.clip", 0.0, "theta_opt.clip must be positive, got 0.0"),
    ("estimator.std", 0.0, "config.estimator.std must be positive, got 0.0"),
    ("estimator.longest", 2**31, "estimator.longest must be at most 2,147,"),
    ("optimizer.hidden", 5000, "config.optimizer.hidden must be at most 4,096"),
    ("optimizer.horizon", 1, "optimizer.horizon must be True or False, got 1"),
    ("optimizer", 3, "config.optimizer must be a section with a name, got 3"),
    ("optimizer.name", 3, "config.optimizer.name must be text, got 3"),
    ("tasks.digits_w16_d2.width", 10**9, "width must be at most 1,048,576"),
    ("tasks.digits_w16_d2.depth", 10**5, "depth must be at most 1,000"),
    ("tasks.digits_w16_d2.batch_size", 0, "batch_size must be at least 1"),
    ("evaluation.tasks.digits_w64.width", 0, "width must be at least 1")])
def test_messages(name, value, message):
  config = configs()[1]
  if name == "optimizer.horizon":
    config.optimizer.horizon = False
  with pytest.raises(ValueError, match=message):
    build.check(changed(config, name, value))


def test_limits_themselves_are_fine():
  config = configs()[0]
  for name, value in (
      ("seed", 2**32 - 1), ("seed", 0), ("max_minutes", 0.0),
      ("estimator.clip", 0.0), ("theta_opt.learning_rate", 0.0)):
    build.check(changed(config, name, value))


def test_all_known_settings_exist():
  """The table has no names that the configs do not have."""
  config = quickstart.get_config()
  assert set(ranges.SETTINGS) <= set(config)
  assert set(ranges.THETA_OPT) == set(config.theta_opt)
  assert set(ranges.EVALUATION) == set(config.evaluation) - {"tasks"}
