"""Cost of an update on a GPU, from programs compiled without one.

python -m experiments.benchmarks.gpu_plan --network=gpt2 --workdir=runs/gpu_plan

Compiles one step of each optimizer for a Hopper GPU (see `hopper`) and prints a
table: launches of kernels, waits of the host for the device, bytes that kernels
read and write, temporary memory and the duration of compilation. Writes
results.csv and table.md to the workdir. Where JAX's CUDA plugin is missing, the
command says so in one line and ends with success.

"least ms" is the bytes at the bandwidth of the card, or the launches at
LAUNCH_SECONDS each, whichever is longer: an estimate, not a measurement.
"""

import pathlib
from typing import Any

from absl import flags
import jax
import optax
import pandas as pd

from experiments import command
from experiments.benchmarks import hopper
from experiments.benchmarks import networks
from experiments.benchmarks import optimizer_cases

BANDWIDTH = 3.35e12  # bytes per second, as published for the card
LAUNCH_SECONDS = 2e-6  # usual time to start a kernel


def measure(name: str, tx: optax.GradientTransformation, params: Any
            ) -> dict[str, Any]:
  """Return a row of the table.

  Args:
    name: of the optimizer.
    tx: the optimizer.
    params: shapes of parameters, see `networks`.
  """
  program = hopper.compile_fn(
      optimizer_cases.step_fn(tx), params, jax.eval_shape(tx.init, params),
      params, donate=(0, 1))
  count = networks.size(params)
  return {
      "optimizer": name, "launches": program.launches, "syncs": program.syncs,
      "bytes per parameter": program.bytes / count,
      "temporary bytes per parameter": program.temporary_bytes / count,
      "least ms": 1e3 * max(program.bytes / BANDWIDTH,
                            program.launches * LAUNCH_SECONDS),
      "compile s": program.seconds}


def define_flags() -> None:
  """Define the flags."""
  command.define_workdir()
  flags.DEFINE_enum(
      "network", "gpt2", list(networks.NETWORKS), "Network to update.")
  flags.DEFINE_float(
      "scale", 1.0, "Width relative to the network's.", lower_bound=0.01)
  flags.DEFINE_multi_enum(
      "optimizers", list(optimizer_cases.CASES), list(optimizer_cases.CASES),
      "Optimizers to compile; repeat the flag for several.")


def main(args: flags.FlagValues) -> None:
  """Compile all optimizers, then write and print the table."""
  workdir = pathlib.Path(args.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  reason = hopper.why_not()
  if reason:
    print(f"Skipped. {reason}")
    return
  params, rows = networks.NETWORKS[args.network](args.scale), []
  with command.progress(len(args.optimizers), "optimizer", "compiling") as bar:
    for name in args.optimizers:
      rows.append(measure(name, optimizer_cases.CASES[name](), params))
      text = _write(rows, args.network, params, workdir)
      bar.update()
  print(text)


def _write(rows, network, params, workdir):
  """Write the files, as far as they go, and return the text of table.md."""
  table = pd.DataFrame(rows)
  table.to_csv(workdir / "results.csv", index=False)
  text = (f"{network}, {len(jax.tree.leaves(params))} tensors, "
          f"{networks.size(params):,} parameters; jax {jax.__version__}, "
          "compiled for an H100 without one.\n\n" + table.to_markdown(
              index=False, floatfmt=".3g") + "\n")
  (workdir / "table.md").write_text(text)
  return text


if __name__ == "__main__":
  command.run(define_flags, main)
