"""All measurements for which a GPU is needed, and meta-training, in minutes.

python -m experiments.gpu_day --minutes=9 --out=runs/gpu_day [--checkpoint=RUN]

One process does, each within its share of the time:

1. machine: versions, card, bandwidth, rate of matrix products;
2. parity: updates of each lowering, next to those of the CPU;
3. steps: cost of an update on the shapes of GPT-2, ViT-B and ResNet-50;
4. throughput: inner steps per second of meta-training against copies;
5. meta_training: of meta_train/configs/gpu.py in all the time that is left,
   from the run in --checkpoint if it is given.

What does not fit is left out, and the results say so. Each result is written to
results.json and results.md in the folder of --out as soon as it is there.
theta.safetensors is the theta at the end. The folder meta_training is a run
that goes on as --checkpoint of this command, on a GPU or a CPU. On the same
machine it then ends with the bits of a run that was never stopped; on another
one, sums are rounded differently, and all else is equal.

With --dry, all of it is tiny and runs on a CPU in a minute or two.
"""

import functools
import json
import pathlib
import shutil
import time
from typing import Any, Callable, Iterable, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import jaxlib
import ml_collections
import numpy as np
import pandas as pd

from experiments import command
from experiments.benchmarks import networks
from experiments.benchmarks import optimizer_cases
from experiments.benchmarks import timing
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.update import mlp
from learned_opt.update import platform
from meta_train import build
from meta_train import train
from meta_train.configs import gpu
from meta_train.workdir import checkpoint
from meta_train.workdir import metrics

RESERVE = 20.0  # seconds kept for the last checkpoint and files


class Scale(NamedTuple):
  """How large everything is.

  Attributes:
    networks: {name: scale} of networks to update.
    cases: optimizers, see `optimizer_cases`.
    dtypes: of parameters and gradients.
    side: of matrices, for the rate of products.
    size: numbers in a sum, for the bandwidth.
    copies: numbers of copies in an outer step, for the throughput.
    tasks: of the recipe that are used; () for all.
    changes: to the recipe.
  """

  networks: dict[str, float]
  cases: tuple[str, ...]
  dtypes: tuple[str, ...]
  side: int
  size: int
  copies: tuple[int, ...]
  tasks: tuple[str, ...]
  changes: dict[str, Any]


FULL = Scale(
    {"gpt2": 1.0, "vit_b": 1.0, "resnet50": 1.0}, tuple(optimizer_cases.CASES),
    ("float32", "bfloat16"), 8192, 2**28, (64, 256, 1024, 4096, 16384), (), {})
DRY = Scale(
    {"mlp": 0.01}, ("adamw", "mulo"), ("float32",), 64, 2**10, (2,),
    ("diabetes",), {"num_steps": 2, "copies": 2, "theta_opt.warmup": 1,
                    "checkpoint_every": 1, "devices": 1,
                    "optimizer.hidden": 2, "optimizer.newton_schulz": 1,
                    "estimator.truncation": 2, "estimator.shortest": 2,
                    "estimator.longest": 4})
# Shares of the time, one after the other; meta-training gets the rest.
SHARES = {"machine": 0.05, "parity": 0.1, "steps": 0.35, "throughput": 0.15}
# Operations of one usual batch, forward and backward: three times those of the
# forward pass, in bfloat16.
BATCH_FLOPS = {
    "gpt2": 6 * 124e6 * 32 * 1024,  # 32 texts of 1,024 tokens
    "vit_b": 6 * 86e6 * 128 * 197,  # 128 images of 197 patches
    "resnet50": 6 * 4.1e9 * 256}  # 256 images, 4.1e9 products each


class Results:
  """Rows of tables, written as they come.

  Args:
    folder: for results.json and results.md; created if missing.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self.tables: dict[str, list[dict[str, Any]]] = {}
    folder.mkdir(parents=True, exist_ok=True)

  def add(self, part: str, row: dict[str, Any]) -> None:
    """Add a row to the table of a part and write all tables."""
    self.tables.setdefault(part, []).append(row)
    (self._folder / "results.json").write_text(
        json.dumps(self.tables, indent=2) + "\n")
    table = lambda rows: pd.DataFrame(rows).to_markdown(
        index=False, floatfmt=".3g")
    (self._folder / "results.md").write_text("\n".join(
        f"## {name}\n\n{table(rows)}\n" for name, rows in self.tables.items()))
    print(f"{part}: {row}", flush=True)


def each(results: Results, part: str, seconds: float,
         items: Iterable[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]
         ) -> None:
  """Measure items one after the other until the time of a part is over.

  An item is not begun if it would be late by the longest item so far. An item
  that fails gets a row with its error, so that the others are still measured.

  Args:
    results: receive a row for each item.
    part: name of the part.
    seconds: time of the part.
    items: pairs (columns that name the item, function that measures it).
  """
  end, longest, left_out = time.monotonic() + seconds, 0.0, 0
  for names, measure in items:
    began = time.monotonic()
    if began + longest > end:
      left_out += 1
      continue
    try:
      row = measure()
    except Exception as e:  # pylint: disable=broad-except
      row = {"error": f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"}
    longest = max(longest, time.monotonic() - began)
    results.add(part, {**names, **row})
  if left_out:
    results.add(part, {"error": f"{left_out} items left out: no time"})


def machine(scale: Scale) -> dict[str, Any]:
  """Return versions, the card, and measured limits."""
  device = jax.devices()[0]
  rate = lambda dtype: timing.roofline(3, scale.side, scale.size, dtype)
  wide, narrow = rate(jnp.float32), rate(jnp.bfloat16)
  return {"device": device.device_kind, "platform": device.platform,
          "jax": jax.__version__, "jaxlib": jaxlib.__version__,
          "bandwidth": wide.bandwidth, "float32 flops": wide.flops,
          "bfloat16 flops": narrow.flops}


def parity(lowering: str) -> dict[str, Any]:
  """Return how far updates of a lowering are from those of the CPU.

  The largest difference is relative to the largest update of the same tensor.
  """
  device = jax.devices()[0]
  # Pallas kernels are interpreted on a CPU.
  target = "cuda" if device.platform != "cpu" or lowering != "pallas" else "cpu"
  there = _updates(device, target, lowering)
  here = _updates(jax.devices("cpu")[0], "cpu", "unrolled")
  return {"largest relative difference": max(
      float(np.max(np.abs(x - y)) / np.max(np.abs(y)))
      for x, y in zip(there, here, strict=True))}


@functools.lru_cache
def _updates(device, target, lowering):
  """Return the second updates of a matrix, two convolutions and a bias."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
  params, grads = [{"w": normal(64, 48), "convs": [
      normal(3, 3, 8, 16) for _ in range(2)], "b": normal(48)}
                   for _ in range(2)]
  lopt = optimizers.get("mulo", lowering=lowering, newton_schulz=3)
  theta = jax.tree.map(lambda x: x + 0.05 * normal(*x.shape), jax.device_get(
      lopt.init(jax.random.key(0))))
  with jax.default_device(device), platform.tracing_for(
      target), jax.default_matmul_precision("highest"):
    tx = lopt.opt_fn(jax.device_put(theta))
    # A function of its own: JAX would remember the trace of another target.
    update = jax.jit(lambda *args: tx.update(*args))
    _, state = update(grads, tx.init(params), params)
    return jax.tree.leaves(jax.device_get(update(grads, state, params)[0]))


def step_cost(network: str, size: float, case: str, dtype: str,
              limits: dict[str, Any]) -> dict[str, Any]:
  """Return the cost of one update, see `FULL`.

  "share of bandwidth" is the time to read and write state and parameters once,
  and to read gradients, divided by the time of the step.

  Args:
    network: a key of `networks.NETWORKS`.
    size: its scale.
    case: a key of `optimizer_cases.CASES`.
    dtype: of parameters and gradients.
    limits: see `machine`; {} if it failed.
  """
  shapes = networks.NETWORKS[network](size)
  tx = optimizer_cases.CASES[case]()
  fill = lambda x: jnp.full(x.shape, 0.01, dtype)
  params, grads = jax.tree.map(fill, shapes), jax.tree.map(fill, shapes)
  state = tx.init(params)
  count, total = networks.size(shapes), lambda tree: sum(
      x.nbytes for x in jax.tree.leaves(tree))
  moved = 2 * total((params, state)) + total(grads)
  program = timing.compile_fn(
      optimizer_cases.step_fn(tx), params, state, grads, donate=(0, 1))
  kept = [(params, state)]

  def advance():
    kept[0] = program.call(*kept[0], grads)
    return kept[0]

  seconds = float(np.median(timing.interleave({case: advance}, 5, 3)[case]))
  row = {"parameters": count, "ms": 1e3 * seconds,
         "GB/s": moved / seconds / 1e9,
         "temporary bytes per parameter": program.temporary_bytes / count,
         "compile s": program.seconds}
  if limits:
    row["share of bandwidth"] = moved / seconds / limits["bandwidth"]
    if network in BATCH_FLOPS:
      row["share of a batch's products"] = seconds * limits[
          "bfloat16 flops"] / BATCH_FLOPS[network]
  return row


def recipe(scale: Scale, **changes: Any) -> ml_collections.ConfigDict:
  """Return the config of meta-training.

  Args:
    scale: see `Scale`.
    **changes: further changes, by keys of the config.
  """
  config = gpu.get_config().unlock()
  if scale.tasks:
    sections = config.tasks.to_dict()
    del config["tasks"]
    config.tasks = {name: sections[name] for name in scale.tasks}
  config.update_from_flattened_dict({**scale.changes, **changes})
  return config.lock()


def throughput(scale: Scale, copies: int) -> dict[str, Any]:
  """Return the speed of meta-training on the recipe's first task."""
  config = recipe(
      scale._replace(tasks=(scale.tasks or gpu.TASKS)[:1]), copies=copies)
  program = build.build(config, None)
  data, = program.data(0, 1)
  state = program.init()
  compiled = timing.compile_fn(program.step, state, data, donate=(0,))
  steps, spent = 0.0, 0.0
  for i in range(3):
    began = time.perf_counter()
    state, info = jax.block_until_ready(compiled.call(state, data))
    if i:  # the first call allocates
      spent += time.perf_counter() - began
      steps += float(info["inner_steps"])
  return {"inner steps/s": steps / spent, "compile s": compiled.seconds}


def meta_training(config: ml_collections.ConfigDict, out: pathlib.Path,
                  start: pathlib.Path | None, seconds: float
                  ) -> dict[str, Any]:
  """Meta-train for a time, write theta.safetensors, return what was done.

  Args:
    config: see `recipe`.
    out: folder; the run is in its folder meta_training.
    start: a run that goes on, which stays as it is; None for a new run.
    seconds: at most, but at least one outer step is taken.
  """
  folder = out / "meta_training"
  if start is not None and not folder.exists():
    shutil.copytree(start, folder)
  with config.unlocked():
    config.max_minutes = seconds / 60
  try:
    train.meta_train(config, str(folder))
  except train.Stopped as e:
    print(e, flush=True)
  like = jax.eval_shape(build.build(config, None).init)
  with checkpoint.Checkpointer(
      folder / "checkpoints", config.keep_checkpoints) as checkpointer:
    state = checkpointer.restore_latest(like)
  result = folder / "theta.safetensors"
  if result.exists():
    shutil.copy(result, out / "theta.safetensors")
  elif state is not None:
    written = json.loads((folder / "config.json").read_text())
    artifact_lib.write(out / "theta.safetensors", train.artifact(
        config, state.theta, written["software"], written["data"],
        int(state.step)))
  rows = metrics.read(folder / "metrics.jsonl")
  return {
      "outer steps": rows[-1]["step"],
      "inner steps": sum(row["inner_steps"] * config.log_every for row in rows),
      "inner steps/s": rows[-1]["inner_steps_per_second"],
      "first meta-loss": rows[0]["meta_loss"],
      "last meta-loss": rows[-1]["meta_loss"]}


def define_flags() -> None:
  """Define the flags."""
  flags.DEFINE_string("out", None, "Folder for the results.", required=True)
  flags.DEFINE_float("minutes", 9.0, "Time for all of it.", lower_bound=0.01)
  flags.DEFINE_string(
      "checkpoint", None, "Run of meta-training that goes on: the folder "
      "meta_training of an earlier --out.")
  flags.DEFINE_bool("dry", False, "Toy sizes, for a CPU.")


def run(scale: Scale, minutes: float, out: pathlib.Path,
        start: pathlib.Path | None = None) -> Results:
  """Do all parts, see the module docstring.

  Args:
    scale: FULL or DRY.
    minutes: time for all of it.
    out: folder for the results.
    start: see `meta_training`.
  """
  end, results = time.monotonic() + 60 * minutes, Results(out)
  share = lambda part: 60 * minutes * SHARES[part]
  each(results, "machine", share("machine"), [({}, lambda: machine(scale))])
  limits = results.tables["machine"][0]
  limits = {} if "error" in limits else limits
  each(results, "parity", share("parity"), [
      ({"lowering": name}, functools.partial(parity, name))
      for name in mlp.LOWERINGS])
  each(results, "steps", share("steps"), [
      ({"network": network, "dtype": dtype, "optimizer": case},
       functools.partial(step_cost, network, size, case, dtype, limits))
      for network, size in scale.networks.items() for dtype in scale.dtypes
      for case in scale.cases])
  each(results, "throughput", share("throughput"), [
      ({"copies": n}, functools.partial(throughput, scale, n))
      for n in scale.copies])
  left = end - time.monotonic() - min(RESERVE, 6 * minutes)
  each(results, "meta_training", max(left, 0.0), [({}, lambda: meta_training(
      recipe(scale), out, start, max(left, 1.0)))])
  return results


def main(args: flags.FlagValues) -> int:
  """Do all parts; the exit status is 1 if something failed."""
  if jax.default_backend() == "cpu" and not args.dry:
    raise ValueError("There is no GPU here; --dry does all of it at toy size.")
  start = pathlib.Path(args.checkpoint) if args.checkpoint else None
  if start is not None and not (start / "config.json").exists():
    raise ValueError(f"--checkpoint={start} is not the folder of a run.")
  out = pathlib.Path(args.out)
  results = run(DRY if args.dry else FULL, args.minutes, out, start)
  command.write_command(out)
  return int(any("error" in row for rows in results.tables.values()
                 for row in rows))


if __name__ == "__main__":
  command.run(define_flags, main)
