"""The flag --config: a config file, and keys of the config as flags.

    --config=FILE --config.num_steps=100 --config.optimizer.newton_schulz=3

A key must exist in the config file, except in a section that has a "name", such
as config.optimizer. The other keys of such a section are arguments of the named
part's `make`, and the file need not list all of them. `learned_opt.registry`
refuses a setting that `make` does not take. The value of a setting that is not
in the file follows after "=", not after a space.
"""

import pathlib
import re
import sys
from typing import Any, Sequence

from absl import flags
import ml_collections
from ml_collections import config_flags

from learned_opt import registry

NAME = "config"

# --help lists the flag among those of the module that calls `define`.
flags.disclaim_key_flags()


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Define the flag --config."""
  # The value of a new setting is parsed as a Python literal, otherwise as text.
  config_flags.DEFINE_config_file(
      NAME, None, "Config file; --config.key=value changes the value of a key.",
      flag_values, lock_config=False, accept_new_attributes=True)
  flag = flag_values[NAME]
  flag.parser = _Parser(flag.parser)


def parse_flags(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS
                ) -> list[str]:
  """Parse all flags; the `flags_parser` of `absl.app.run`.

  Args:
    argv: `sys.argv`.
    flag_values: the defined flags.

  Returns:
    The name of the program.

  Raises:
    SystemExit: a wrong flag, or an argument that is none; the message is one
      line.
  """
  try:
    program, *unexpected = flag_values(argv)
  except flags.Error as e:
    sys.exit(str(e))
  if unexpected:
    sys.exit(f"Unexpected arguments {unexpected}; a flag is --name=value.")
  return [program]


def parse_again(argv: Sequence[str]) -> None:
  """Parse the flags of another command line; none of an earlier one remain.

  Args:
    argv: as `sys.argv`.
  """
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  old = sys.argv
  sys.argv = list(argv)  # where config_flags looks for keys of the config
  try:
    parse_flags(sys.argv)
  finally:
    sys.argv = old


def check_key(config: ml_collections.ConfigDict, key: str) -> None:
  """Raise ValueError if a key can neither be changed nor added.

  Args:
    config: the config of the file.
    key: such as "optimizer.hidden".
  """
  section: Any = config
  path = NAME
  parts = key.split(".")
  for depth, part in enumerate(parts, 1):
    if not isinstance(section, ml_collections.ConfigDict):
      raise ValueError(f"--{NAME}.{key}: {path} is the value {section!r}, not "
                       "a section with keys.")
    if part not in section:
      if depth == len(parts) and "name" in section:
        return
      raise ValueError(
          f"--{NAME}.{key}: {path} has no key {part!r}; its keys are "
          f"{', '.join(section)}.{registry.similar(part, section)}")
    section, path = section[part], f"{path}.{part}"


class _Parser(flags.ArgumentParser[Any]):
  """Loads a config file, and checks the keys on the command line.

  config_flags itself would answer an unknown key with a traceback.
  """

  def __init__(self, loader: flags.ArgumentParser[Any]):
    """Take the parser that loads the file."""
    self._loader = loader

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """Return the config of a file, unlocked, so that settings can be added."""
    # After a colon comes the argument of the file's get_config.
    if not pathlib.Path(argument.partition(":")[0]).is_file():
      raise ValueError("no such file.")
    try:
      config: Any = self._loader.parse(argument)
    except ValueError as e:
      # config_flags adds a traceback to the message of the file's own error.
      raise ValueError(e.__context__ or e) from e
    for key in _keys(sys.argv):
      check_key(config, key)
    return config.unlock()

  def flag_type(self) -> str:
    """Return the type for the help text."""
    return self._loader.flag_type()


def _keys(argv: list[str]) -> list[str]:
  """Return "key" of each --config.key, --config.key=value and --noconfig.key.
  """
  argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
  matches = (re.match(rf"--?(?:no)?{NAME}\.([^=]+)", arg) for arg in argv)
  return [match[1] for match in matches if match]
