"""`mulo doctor` and `mulo explain`: an optimizer on a network of the user's.

The network is a Python file with two functions, `init(key, width) -> params`
and `loss(params, key, width) -> loss`; see `mulo.doctor`. SETTINGS in it are
arguments of `mulo.load`, such as {"layout": "out_in"} for equinox.
"""

import argparse
import functools
import pathlib
import runpy
import sys
from typing import Any, NoReturn

import jax
import optax

import mulo


class UsageError(ValueError):
  """Wrong arguments of a subcommand."""


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are for `main`, which prints one line."""

  def error(self, message: str) -> NoReturn:
    """Raise UsageError."""
    raise UsageError(f"{message}.")


def _parser() -> _Parser:
  """Return a parser of the flags of both subcommands."""
  parser = _Parser(usage=argparse.SUPPRESS, allow_abbrev=False)
  parser.add_argument(
      "file", help="Python file with init(key, width) and loss(params, key, "
      "width); the key of loss decides the batch")
  parser.add_argument("--width", type=int, required=True,
                      help="width of the network")
  parser.add_argument("--num_steps", type=int, required=True,
                      help="planned number of steps")
  parser.add_argument("--optimizer", default="mulo-s",
                      help="name or weights file; default: mulo-s")
  parser.add_argument("--seed", type=int, default=0,
                      help="of initial parameters and batches; default: 0")
  return parser


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(x) for x in text.split(","))


def network(file: str) -> tuple[Any, Any, dict[str, Any]]:
  """Return init and loss of a file, and its SETTINGS for `mulo.load`, if any.

  Raises:
    ValueError: it does not have both functions.
    OSError: there is no such file.
  """
  sys.path.insert(0, str(pathlib.Path(file).resolve().parent))
  found = runpy.run_path(file)
  for name in ("init", "loss"):
    if not callable(found.get(name)):
      raise ValueError(f"{file} must have functions init(key, width) and "
                       f"loss(params, key, width); it has no {name}.")
  return found["init"], found["loss"], found.get("SETTINGS", {})


def doctor(arguments: list[str]) -> str:
  """Return the report of `mulo.doctor` on the network of a file.

  Raises:
    UsageError: wrong arguments.
    ValueError, OSError: see `network` and `mulo.doctor`.
  """
  parser = _parser()
  parser.add_argument(
      "--widths", type=_numbers, help="of narrow copies, such as 64,128,256; "
      "default: a sixteenth, an eighth and a quarter of --width")
  parser.add_argument("--trial_steps", type=int, default=200,
                      help="steps of each copy; default: 200")
  flags = parser.parse_args(arguments)
  widths = flags.widths or tuple(flags.width // n for n in (16, 8, 4))
  init, loss, settings = network(flags.file)
  return mulo.doctor(
      init, loss, width=flags.width, widths=widths, num_steps=flags.num_steps,
      optimizer=flags.optimizer, trial_steps=flags.trial_steps,
      seed=flags.seed, **settings).text()


def explain(arguments: list[str]) -> str:
  """Train the network of a file, and write the page of `mulo.explain`.

  Raises:
    UsageError: wrong arguments.
    ValueError, OSError: see `network`, `mulo.load` and `mulo.probe`.
  """
  parser = _parser()
  parser.add_argument(
      "--base_width", type=int, help="another width, whose shapes tell which "
      "axes grow; default: half of --width")
  parser.add_argument("--out", default="explain.html",
                      help="page that is written; default: explain.html")
  flags = parser.parse_args(arguments)
  init, loss, settings = network(flags.file)
  key = jax.random.key(flags.seed)
  tx = mulo.probe(mulo.load(
      flags.optimizer, num_steps=flags.num_steps,
      base_shapes=mulo.scaling.base_shapes(
          functools.partial(init, key), flags.base_width or flags.width // 2),
      **settings), flags.num_steps)

  def of_batch(params: Any, key: jax.Array) -> jax.Array:
    value = loss(params, key, flags.width)
    first: jax.Array = value[0] if isinstance(value, tuple) else value
    return first

  def step(carry: Any, key: jax.Array) -> Any:
    params, state = carry
    value, grads = jax.value_and_grad(of_batch)(params, key)
    updates, state = tx.update(grads, state, params, value=value)
    return (optax.apply_updates(params, updates), state), value

  params = init(key, flags.width)
  (_, state), losses = jax.jit(functools.partial(jax.lax.scan, step))(
      (params, tx.init(params)), jax.random.split(key, flags.num_steps))
  mulo.explain(state, flags.out)
  return (f"loss {losses[0]:.4g}, after {flags.num_steps} steps "
          f"{losses[-1]:.4g}\nWrote {flags.out}")
