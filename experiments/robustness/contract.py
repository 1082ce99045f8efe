"""The optax contract, a table of its rows for every learned optimizer.

python -m experiments.robustness.contract [--optimizers=mulo,adamw]

The optimizers are the files of learned_opt/optimizers, as `mulo.load` gives
them, with theta at its start, and AdamW of optax beside them. Half a minute on
one core for each, nearly all of it compilation. Exits with status 1 if a check
fails; `mulo.testing` says what each row is.
"""

import functools
import pathlib
import sys
import tempfile
from typing import Callable

from absl import app
from absl import flags
from absl import logging
import jax
import optax
import pandas as pd
import tqdm

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo
from mulo import testing

# Small ones, which compile sooner, with what they can do switched on.
SETTINGS: dict[str, dict] = {
    "adafac_mlp": {"hidden": 3},
    "celo2": {"hidden": 3, "newton_schulz": 1},
    "mlp_lopt": {"hidden": 3},
    "mulo": {"hidden": 3, "horizon": True, "depth": True},
    "velo": {"lstm_hidden": 4, "bank": 2}}
NUM_STEPS = 100


def learned(name: str, folder: pathlib.Path, **settings) -> Callable:
  """A factory of a learned optimizer, read from a file in the folder.

  Args:
    name: of a file in learned_opt/optimizers.
    folder: where its weights are written.
    **settings: of the optimizer; they are in the name of the file.
  """
  settings = optimizers.all_settings(
      name, **{**SETTINGS.get(name, {}), **settings})
  theta = jax.device_get(
      optimizers.get(name, **settings).init(jax.random.key(0)))
  path = folder / f"{name}.safetensors"
  mulo.save(path, artifact_lib.Artifact(name, settings, "standard", theta))
  return shared(functools.partial(mulo.load, path, num_steps=NUM_STEPS))


def adamw(learning_rate=1e-2, weight_decay=1e-4):
  """AdamW, with a learning rate to start with."""
  return optax.adamw(learning_rate, weight_decay=weight_decay)


def shared(make: Callable) -> Callable:
  """A factory that gives one object for all calls without arguments."""
  same: list = []

  def factory(learning_rate=None, weight_decay=0.0):
    given = {} if learning_rate is None else {"learning_rate": learning_rate}
    if given or not isinstance(weight_decay, float) or weight_decay:
      return make(**given, weight_decay=weight_decay)
    if not same:
      same.append(make())
    return same[0]

  return factory


def factories(folder: pathlib.Path) -> dict[str, Callable]:
  """{name: factory} of all learned optimizers and of AdamW."""
  return {**{name: learned(name, folder) for name in optimizers.names()},
          "adamw": shared(adamw)}


def table(results: dict[str, dict[str, str | None]]) -> str:
  """Rows of the contract by optimizers, in Markdown."""
  word = lambda message: "yes" if message is None else (
      "skipped" if message.startswith("skipped") else "no")
  rows = [{"check": check.__name__, "what": (check.__doc__ or "").rstrip("."),
           **{name: word(found[check.__name__])
              for name, found in results.items()}}
          for check in testing.CHECKS]
  return pd.DataFrame(rows).to_markdown(index=False)


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_list("optimizers", None, "Default: all, and adamw.")


def main(argv):
  """Prints the table, and what is wrong."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  jax.config.update("jax_num_cpu_devices", 8)
  logging.set_verbosity(logging.WARNING)  # orbax tells every step
  with tempfile.TemporaryDirectory() as folder:
    found = factories(pathlib.Path(folder))
    names = flags.FLAGS.optimizers or list(found)
    unknown = sorted(set(names) - set(found))
    if unknown:
      sys.exit(f"Unknown optimizers {unknown}; available: {', '.join(found)}.")
    results = {name: testing.run(found[name])
               for name in tqdm.tqdm(names, unit="optimizer", leave=False)}
  print(table(results))
  wrong = [f"{name}, {check}: {message}" for name, rows in results.items()
           for check, message in rows.items()
           if message is not None and not message.startswith("skipped")]
  if wrong:
    sys.exit("\n".join(wrong))


if __name__ == "__main__":
  define_flags()
  app.run(main)
