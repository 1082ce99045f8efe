"""The command `mulo`: one subcommand for each thing that a user does.

A subcommand is one line of COMMANDS. Most of them run a module, as
`python -m module` does, and pass their flags on. What they add: the name of a
config or of optimizers without a flag, and a default for --workdir.
"""

import functools
import pathlib
import runpy
import sys
from typing import Callable, NamedTuple, Sequence

import mulo
from mulo._cli import networks
from mulo._cli import parts
from mulo._cli.networks import UsageError

# `(arguments)` -> text for stdout, or None.
Run = Callable[[list[str]], str | None]


class Command(NamedTuple):
  """A subcommand.

  Attributes:
    arguments: as the help shows them.
    purpose: one line of the help.
    run: what it does.
    flags: whether it has flags, and help of its own.
  """

  arguments: str
  purpose: str
  run: Run
  flags: bool = True


def _list(arguments: list[str]) -> str:
  """Return what there is: all kinds of parts, or the one that is named."""
  if len(arguments) > 1:
    raise UsageError(f"list takes one kind, got {' '.join(arguments)}.")
  return parts.table(arguments[0]) if arguments else parts.tables()


def _card(arguments: list[str]) -> str:
  """Return the card of a trained optimizer."""
  if len(arguments) != 1:
    raise UsageError("card takes one name or file; `mulo list trained` lists "
                     "the names.")
  return parts.card(arguments[0])


def _module(arguments: list[str], *, module: str, packages: Sequence[str],
            flag: str, value: Callable[[str], str] = lambda name: name,
            many: bool = False) -> None:
  """Run a module as `python -m module`.

  Args:
    arguments: names, and flags of the module.
    module: dotted name of the module.
    packages: packages beside mulo that the module imports.
    flag: the flag that takes the names.
    value: name -> value of the flag.
    many: whether there may be several names.

  Raises:
    UsageError: the number of names is wrong.
    ImportError: another module hides a package, or one is missing.
  """
  command = module.rpartition(".")[2]
  names = [x for x in arguments if not x.startswith("-")]
  flags = [x for x in arguments if x.startswith("-")]
  asked = any(x.lstrip("-").split("=")[0] in ("help", "helpfull", "h", flag)
              for x in flags)
  if len(names) > 1 and not many or not names and not asked:
    raise UsageError(
        f"takes {'names' if many else 'one name'} and flags of the form "
        f"--flag=value, got {' '.join(arguments) or 'nothing'}.")
  parts.check_packages(packages)
  if names:  # first, because config files come before changes of their keys
    flags.insert(0, f"--{flag}={','.join(value(name) for name in names)}")
  if names and not any(x.lstrip("-").startswith("workdir=") for x in flags):
    folder = "_".join(pathlib.Path(name).stem for name in names)
    flags.append(f"--workdir=runs/{folder.replace(':', '_')}_{command}")
  sys.argv = [f"mulo {command}", *flags]
  runpy.run_module(module, run_name="__main__", alter_sys=True)


_TRAIN = ("learned_opt", "tasks", "meta_train")
_STUDY = (*_TRAIN, "experiments")

COMMANDS = {
    "list": Command("[KIND]", "List optimizers, tasks, configs, and so on.",
                    _list, flags=False),
    "card": Command("NAME", "Print the card of a trained optimizer.", _card,
                    flags=False),
    "train": Command(
        "CONFIG [--config.key=value ...]",
        "Meta-train; again: continue. mulo list configs.", functools.partial(
            _module, module="meta_train.train", packages=_TRAIN, flag="config",
            value=parts.config_path)),
    "compare": Command(
        "NAME ... [--flag=value ...]",
        "Compare optimizers with tuned baselines on new tasks.",
        functools.partial(
            _module, module="experiments.studies.transfer", packages=_STUDY,
            flag="optimizers", many=True)),
    "check": Command(
        "NAME [--flag=value ...]",
        "Check that layers change alike at all widths.", functools.partial(
            _module, module="experiments.studies.coord_check",
            packages=_STUDY, flag="optimizer")),
    "doctor": Command(
        "FILE --width=N --num_steps=N [--flag=value ...]",
        "Try it on narrow copies of your network, beside AdamW and Muon.",
        networks.doctor),
    "explain": Command(
        "FILE --width=N --num_steps=N [--flag=value ...]",
        "Train your network, and write a page of what the optimizer did.",
        networks.explain)}


def help_text() -> str:
  """Return what `mulo --help` prints."""
  width = max(len(name) for name in COMMANDS)
  lines = [f"  {name.ljust(width)}  {command.purpose}"
           for name, command in COMMANDS.items()]
  return "\n".join([
      f"mulo {mulo.__version__}: learned optimizers that keep working when the "
      "network grows.", "", "usage: mulo COMMAND ...", "", *lines, "",
      "mulo COMMAND --help says more. Examples:", "",
      "  mulo list configs",
      "  mulo train quickstart --workdir=runs/mine --config.num_steps=100",
      "  mulo compare mulo-s adamw --values=32,128 --num_steps=300",
      "  mulo doctor my_network.py --width=1024 --num_steps=1000"])


def main(argv: Sequence[str] | None = None) -> int | str:
  """Run the command; return the exit status, or an error of one line."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  if not arguments or arguments[0] in ("-h", "--help", "help"):
    print(help_text())
    return 0
  if arguments[0] == "--version":
    print(mulo.__version__)
    return 0
  name, *rest = arguments
  if name not in COMMANDS:
    return f"mulo: {parts.unknown('command', name, COMMANDS)}"
  command = COMMANDS[name]
  if rest in (["-h"], ["--help"]):
    print(f"usage: mulo {name} {command.arguments}\n\n{command.purpose}")
    if not command.flags:
      return 0
    print(flush=True)
  try:
    text = command.run(rest)
  except UsageError as e:
    return f"mulo {name}: {e} Usage: mulo {name} {command.arguments}"
  except ModuleNotFoundError as e:
    return f"mulo {name}: {e}. Try pip install 'mulo[train]'."
  except (ImportError, ValueError, OSError) as e:
    return f"mulo {name}: {e}"
  if text is not None:
    print(text)
  return 0
