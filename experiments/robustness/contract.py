"""Table of the optax contract: its checks on every learned optimizer.

python -m experiments.robustness.contract [--optimizers=mulo,adamw]

The optimizers are the files of learned_opt/optimizers with an untrained theta,
loaded by `mulo.load`, AdamW of optax, links of `mulo.links` around Adam, and
`mulo.local_updates`. Each takes half a minute on one core, nearly all of it
compilation. `mulo.testing` explains the checks. The exit status is 1 if a check
fails.
"""

import functools
import os
import pathlib
import sys
import tempfile
from typing import Callable

from absl import flags
import jax
import optax
import pandas as pd

from experiments import baselines
from experiments import command
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
import mulo
from mulo import testing

# Small networks, which compile sooner, with all optional features on.
SETTINGS: dict[str, dict] = {
    "adafac_mlp": {"hidden": 2},
    "celo2": {"hidden": 2, "newton_schulz": 1},
    "lagg": {"hidden": 2},
    "mlp_lopt": {"hidden": 3},
    "mulo": {"hidden": 3, "horizon": True, "depth": True},
    "nowcast_adam": {"hidden": 2, "horizons": 3, "every": 5},
    "mulo2": {"hidden": 2, "momenta": 2, "newton_schulz": 1},
    "unf": {"hidden": 3},
    "velo": {"lstm_hidden": 4, "bank": 2}}
# {check: optimizers that fail it, because they are exact copies of published
# optimizers and these differ}. Mask parameters that have no gradients.
AS_PUBLISHED: dict[str, tuple[str, ...]] = {
    "zero_gradients": (
        "adafac_mlp", "celo2", "mlp_lopt", "unf", "velo")}
OTHERS = ("adamw", "links", "local_updates")  # not in learned_opt/optimizers
NUM_STEPS = 100  # horizon of the learned optimizers


def learned(name: str, folder: pathlib.Path, **settings) -> Callable:
  """Return a factory of a learned optimizer that is loaded from a file.

  Args:
    name: name of a file in learned_opt/optimizers.
    folder: folder where the weights are written.
    **settings: settings of the optimizer; they replace those of SETTINGS.
  """
  settings = optimizers.all_settings(
      name, **{**SETTINGS.get(name, {}), **settings})
  theta = jax.device_get(
      optimizers.get(name, **settings).init(jax.random.key(1)))
  path = folder / f"{name}.safetensors"
  mulo.save(path, artifact_lib.Artifact(name, settings, "standard", theta))
  return shared(functools.partial(mulo.load, path, num_steps=NUM_STEPS))


def adamw(learning_rate=1e-2, weight_decay=0.0, **shapes
          ) -> optax.GradientTransformation:
  """Return the registered AdamW, by default without decay."""
  del shapes
  return baselines.get("adamw").make(learning_rate, weight_decay=weight_decay)


def links(learning_rate=1e-2, weight_decay=0.0, **shapes
          ) -> optax.GradientTransformation:
  """Return Adam with the links of mulo whose steps the rate multiplies."""
  return optax.chain(
      optax.scale_by_adam(), mulo.links.normalize_rows(**shapes),
      optax.add_decayed_weights(weight_decay),
      optax.scale_by_learning_rate(learning_rate),
      mulo.links.average_params(0.99))


def local_updates() -> optax.GradientTransformation:
  """Return local steps of Adam with an outer optimizer, for one worker."""
  return mulo.local_updates(
      optax.adam(1e-2), optax.sgd(0.7, 0.9, nesterov=True), every=2)


def shared(make: Callable) -> Callable:
  """Return a factory that returns one object for all calls without arguments.

  With one object, the checks share compiled programs.
  """
  same: list = []

  # The contract looks up which parameters a factory has: name them.
  def factory(learning_rate=None, weight_decay=0.0, base_shapes=None,
              deeper_shapes=None):
    given = {} if learning_rate is None else {"learning_rate": learning_rate}
    # No optimizer here needs base_shapes for anything but stacks of layers.
    if deeper_shapes is not None:
      given |= {"base_shapes": base_shapes, "deeper_shapes": deeper_shapes}
    # The weight decay may also be a schedule or a traced array.
    if given or not isinstance(weight_decay, float) or weight_decay:
      return make(**given, weight_decay=weight_decay)
    if not same:
      same.append(make())
    return same[0]

  return factory


def factories(folder: pathlib.Path) -> dict[str, Callable]:
  """Return {name: factory} of all learned optimizers and of OTHERS.

  Args:
    folder: folder where the weights are written.
  """
  return {**{name: learned(name, folder) for name in optimizers.names()},
          "adamw": shared(adamw), "links": shared(links),
          "local_updates": functools.lru_cache(local_updates)}


def table(results: dict[str, dict[str, str | None]]) -> str:
  """Return a markdown table with one row per check.

  Args:
    results: {name of the optimizer: result of `testing.run`}.
  """
  rows = [{"check": check.__name__, "what": (check.__doc__ or "").rstrip("."),
           **{name: _word(name, check.__name__, messages[check.__name__])
              for name, messages in results.items()}}
          for check in testing.CHECKS]
  return pd.DataFrame(rows).to_markdown(index=False)


def _word(name: str, check: str, message: str | None) -> str:
  """Return the entry of the table for a message of `testing.run`.

  Args:
    name: of the optimizer.
    check: name of the check.
    message: its result.
  """
  if message is None:
    return "yes"
  if message.startswith("skipped"):
    return "skipped"
  return "as published" if name in AS_PUBLISHED.get(check, ()) else "no"


def define_flags() -> None:
  """Define the flags."""
  flags.DEFINE_list(
      "optimizers", None, "Optimizers to check; default: all.")


def main(args: flags.FlagValues) -> int:
  """Print the table, and all failures to stderr.

  Returns:
    1 if a check failed, otherwise 0.
  """
  jax.config.update("jax_num_cpu_devices", 8)  # for the checks of sharding
  # Two programs at a time on more devices than cores may wait for each other.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  # The checks are about results, and take a fifth of the time in this way.
  jax.config.update("jax_disable_most_optimizations", True)
  os.environ["XLA_FLAGS"] = " ".join((
      os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"))
  with tempfile.TemporaryDirectory() as folder:
    known = factories(pathlib.Path(folder))
    names = args.optimizers or list(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
      raise ValueError(
          f"Unknown optimizers {unknown}; available: {', '.join(known)}.")
    results = {}
    with command.progress(len(names), "optimizer", leave=False) as bar:
      for name in names:
        bar.set_postfix_str(name)
        results[name] = testing.run(known[name])
        bar.update()
  print(table(results))
  failures = [f"{name}, {check}: {message}"
              for name, messages in results.items()
              for check, message in messages.items()
              if _word(name, check, message) == "no"]
  if failures:
    print("\n".join(failures), file=sys.stderr)
  return 1 if failures else 0


if __name__ == "__main__":
  command.run(define_flags, main)
