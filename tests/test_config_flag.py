"""Keys of the config on the command line."""

import pathlib
import re
import sys

from absl import flags
import forked
import pytest
import tiny_config

from meta_train import config_flag

ROOT = pathlib.Path(__file__).parents[1]

# ml_collections loads config files in this way.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method:DeprecationWarning")


def parse(monkeypatch, *arguments, path=tiny_config.__file__):
  """Return the config that `meta_train.train` would use."""
  argv = ["train", f"--config={path}", *arguments]
  monkeypatch.setattr(sys, "argv", argv)
  values = flags.FlagValues()
  config_flag.define(values)
  assert config_flag.parse_flags(argv, values) == ["train"]
  return values.config


def test_values_of_keys_in_the_file(monkeypatch):
  config = parse(
      monkeypatch, "--config.seed=7", "--config.theta_opt.warmup", "5",
      "--config.theta_opt.clip=2", "--config.stream",
      "--noconfig.estimator.drop_nonfinite", "--config.tasks.bowl.dim=3")
  assert (config.seed, config.theta_opt.warmup, config.theta_opt.clip) == (
      7, 5, 2.0)
  assert config.stream and not config.estimator.drop_nonfinite
  assert config.tasks.bowl.dim == 3
  assert isinstance(config.theta_opt.clip, float)


def test_settings_that_the_file_does_not_list(monkeypatch):
  """Their values are Python literals, or text."""
  config = parse(
      monkeypatch, "--config.optimizer.name=mulo",
      "--config.optimizer.newton_schulz=3",
      "--config.optimizer.exp_mult=1e-3", "--config.optimizer.horizon",
      "--noconfig.optimizer.depth", "--config.optimizer.lowering=blocked",
      "--config.optimizer.recompute=true", "--config.estimator.stagger=False",
      "--config.tasks.digits.pixel_noise=0.5",
      "--config.tasks.digits.augment={'level': 'tensor'}")
  assert config.optimizer.to_dict() == {
      "name": "mulo", "learning_rate": 0.1, "newton_schulz": 3,
      "exp_mult": 1e-3, "horizon": True, "depth": False, "lowering": "blocked",
      "recompute": True}
  assert config.estimator.stagger is False
  assert config.tasks.digits.pixel_noise == 0.5
  assert config.tasks.digits.augment.to_dict() == {"level": "tensor"}


@pytest.mark.parametrize("argument, message", [
    ("--config.sed=1", r"--config.sed: config has no key 'sed'; its keys are "
     r"average, checkpoint_every, copies,.*theta_opt\. Did you mean 'seed'\?$"),
    ("--noconfig.streams", "config has no key 'streams'"),
    ("--config.optimzer.hidden=1", "config has no key 'optimzer'"),
    ("--config.theta_opt.lr=1", "config.theta_opt has no key 'lr'; its keys "
     "are clip, final_learning_rate, learning_rate, make, warmup, weight_dec"),
    ("--config.evaluation.evry=1", "keys are every, num_steps, seeds, tasks"),
    ("--config.tasks.bowls.dim=1", "its keys are bowl, digits"),
    ("--config.tasks.bowl.augment.low=1", "has no key 'augment'; its keys are "
     "dim, name"),
    ("--config.seed.x=1", "config.seed is the value 0, not a section"),
    ("--config.seed=one", "--config.seed=one: invalid literal"),
    ("--cnofig.seed=1", "Unknown command line flag 'cnofig.seed'")])
def test_unknown_keys(argument, message, monkeypatch):
  with pytest.raises(SystemExit, match=message) as error:
    parse(monkeypatch, argument)
  assert "\n" not in str(error.value)


def test_config_files_that_cannot_be_loaded(monkeypatch):
  with pytest.raises(SystemExit, match="nowhere.py: no such file"):
    parse(monkeypatch, "--config.seed=1", path="nowhere.py")
  with pytest.raises(SystemExit, match="cats: Unknown variant 'cats'"):
    parse(monkeypatch, path=f"{ROOT}/meta_train/configs/search.py:cats")


def test_the_command_answers_in_one_line(tmp_path):
  messages = {
      "--config.optimizer.b3=3":
      "'b3'; its settings are learning_rate, b1",
      "--config.tasks.digits.widht=3":
      r"Task mlp .*'widht'; its settings are width.* Did you mean 'width'\?$",
      "--config.estimator.truncatoin=3":
      r"'truncatoin'; its settings are std.* Did you mean 'truncation'\?$",
      "--config.sed=3": "--config.sed: config has no key 'sed'"}
  for done, message in zip(forked.run([
      ("meta_train.train", f"--config={tiny_config.__file__}",
       f"--workdir={tmp_path / 'x'}", argument) for argument in messages],
                                      tmp_path), messages.values()):
    assert done.returncode == 1
    line, = done.stderr.splitlines()
    assert re.search(message, line)
