"""Whether layers change as much in wide networks as in narrow ones: PASS, FAIL.

python -m experiments.studies.coord_check --optimizer=mulo-s --workdir=runs/check
python -m experiments.studies.coord_check --optimizer=adam --parametrization=mup \
    --task=vit --sizes=32,64,128,256,512 --workdir=runs/check_vit
python -m experiments.studies.coord_check --optimizer=adam --axis=depth \
    --parametrization=depth_mup --settings=width=128,residual=True \
    --sizes=3,5,9,17,33 --workdir=runs/check_depth

Trains networks of several widths for ten steps on the same batches, with a
learning rate at which the loss moves, and fits slopes of log change against log
width for each layer (`mulo.coord_check`). Then the same without the
parametrization, which must fail, or the check is broken: at every second size
up to 1024 (at all sizes if that leaves less than two), with
--control_learning_rate, by default 0.01 for optimizers of optax in standard
parametrization (0.1 in others, as in the check itself) and the factor 1 for
learned ones. Writes table.md, check.csv and check.png to the workdir; the exit
status is 0 if it passes and the control fails, 1 if it fails, 2 if the control
passes.
"""

import dataclasses
import pathlib
import re
import shlex
import sys
from typing import Any, Callable

from absl import app
from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import matplotlib
import optax
import pandas as pd
import tqdm

from experiments.studies import transfer
from learned_opt import base
from learned_opt import optimizers
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from meta_train import build
from meta_train import unroll
import mulo
from mulo import _coord_check as coord_check_lib
from tasks import base as tasks_base

# With epsilons far below any gradient, so that widths differ in nothing else.
# SGD is missing: `unroll.scaled` multiplies by `update_mult`, the rule for
# updates whose entries do not depend on the gradient's size.
OPTAX = {
    "adam": lambda rate: optax.adam(rate, eps=1e-16),
    "lion": lambda rate: optax.lion(rate, weight_decay=0.0)}
SIZES = {"width": (64, 128, 256, 512, 1024, 2048, 4096),
         "depth": (3, 5, 9, 17, 33, 65)}
CONTROL = {"width": "standard", "depth": "mup"}  # has no rule for the axis
MAX_CONTROL = 1024
MAX_EXAMPLES = 2**13
RATES = (0.1, 0.01)  # of optimizers of optax under muP, and without


def opt_fn_of(name: str, learning_rate: float | None = None,
              settings: dict[str, Any] | None = None) -> tuple[Callable, str]:
  """(`opt_fn` whose theta is None, the parametrization it comes with).

  Args:
    name: of an artifact, a learned optimizer as it is initialised, or OPTAX.
    learning_rate: of those of optax; factor for the others.
    settings: of a learned optimizer, instead of its own.

  Raises:
    ValueError: an unknown name, or settings that do not fit.
    FileNotFoundError: no such artifact.
  """
  settings = settings or {}
  if name in OPTAX:
    if settings:
      raise ValueError(f"{name} is an optimizer of optax and takes no "
                       f"settings, got {settings}; learned optimizers do.")
    rate = RATES[0] if learning_rate is None else learning_rate
    return lambda theta, *, num_steps=None: OPTAX[name](rate), "mup"
  if name in optimizers.names():
    lopt = optimizers.get(name, **settings)
    theta, made, rule = lopt.init(jax.random.key(0)), lopt.opt_fn, "mup"
  else:
    artifact = mulo.read(name)
    artifact = dataclasses.replace(
        artifact, settings=artifact.settings | settings)
    theta, made = artifact.theta, artifact.lopt.opt_fn
    rule = artifact.parametrization
  scale = optax.scale(1.0 if learning_rate is None else learning_rate)
  return lambda _, *, num_steps=None: optax.chain(
      made(jax.tree.map(jnp.asarray, theta), num_steps=num_steps),
      scale), rule


def kinds_of(task: tasks_base.Task, layers: list[str]) -> dict[str, str]:
  """Kinds of layers: by the role of the matrices that are named like them."""
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  roles = {path: info.role for path, info in roles_lib.infer(
      shapes, task.base_shapes, readout=False).items()}
  found = {}
  for layer in layers:
    own = {role for path, role in roles.items()
           if path.startswith(f"{layer}/") and role != "vector"}
    kind = next(iter(own)) if own in ({"input"}, {"output"}) else "hidden"
    found[layer] = ("attention" if layer.endswith("/attention") else
                    "output" if layer == "output" else kind)
  return found


def ends(layers: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Layers that networks of all depths have: the first and last of a name."""
  found = {"output": layers["output"]}
  numbered: dict[str, dict[int, jax.Array]] = {}
  for name, x in layers.items():
    if match := re.fullmatch(r"(\w+?)_(\d+)", name):
      numbered.setdefault(match[1], {})[int(match[2])] = x
  for name, members in numbered.items():
    found |= {f"first {name}": members[min(members)],
              f"last {name}": members[max(members)]}
  return found


def check(opt_fn: Callable, rule: base.Parametrization, section: dict[str, Any],
          axis: str, sizes: tuple[int, ...], seeds: int, steps: tuple[int, ...],
          data_dir: str | None, on_size: Callable[[int], None],
          scale_gradients: bool = False) -> mulo.CoordCheckReport:
  """`mulo.coord_check` of a task of tasks/suite.

  Args:
    opt_fn: see `opt_fn_of`.
    rule: of network and updates.
    section: the task, see `meta_train.build.task_of`.
    axis: setting of the task that grows.
    sizes: its values.
    seeds: networks of each size.
    steps: after which changes are measured.
    data_dir: see `tasks.data.images.image_data`.
    on_size: called when a size is done.
    scale_gradients: whether gradients have the size of those at the first size
      when the optimizer sees them, `mulo.scaling.scale_gradients`.

  Raises:
    ValueError: settings that do not fit, a task without layers or width, or
      gradients to be scaled for depth.
  """
  tasks = {size: build.task_of(section | {axis: size}, rule, data_dir)
           for size in sizes}
  task = tasks[sizes[0]]
  activations: dict[int, Any] = {
      size: x.activations for size, x in tasks.items()}
  if scale_gradients and axis != "width":
    raise ValueError("scale_gradients is for width; networks of other depths "
                     "do not have the parameters of the first.")
  if task.activations is None or task.base_shapes is None:
    raise ValueError(
        f"{section['name']} has no layers to look at, or no width.")
  # A part, since it becomes a constant of the program.
  data = jax.tree.map(lambda x: jnp.asarray(x[:MAX_EXAMPLES]),
                      task.data["train"])
  layers_of = ends if axis == "depth" else dict

  def apply_and_loss(params, key, size):
    batch_key, loss_key = jax.random.split(key)
    batch = task.sample_batch(batch_key, data)
    loss, _ = tasks[size].loss(params, loss_key, batch)
    return loss, layers_of(activations[size](params, batch))

  if scale_gradients:
    opt_fn = transfer.with_gradients_of(task, opt_fn, rule)
  layers = jax.eval_shape(lambda key: apply_and_loss(
      task.init(key), key, sizes[0])[1], jax.random.key(0))
  return mulo.coord_check(
      lambda key, size: tasks[size].init(key), apply_and_loss,
      lambda size: unroll.scaled(opt_fn, rule, tasks[size])(None), sizes,
      seeds=seeds, steps=steps, kinds=kinds_of(task, list(layers)), axis=axis,
      on_width=on_size)


def rows(report: mulo.CoordCheckReport, which: str) -> pd.DataFrame:
  """One row per layer, step, size and seed."""
  return pd.DataFrame([
      {"which": which, "layer": name, "kind": layer.kind, report.axis: size,
       "seed": seed, "step": step, "change": float(layer.change[i, seed, j]),
       "size of activations": float(layer.size[i, seed, j + 1])}
      for name, layer in report.layers.items()
      for i, size in enumerate(report.sizes)
      for seed in range(layer.change.shape[1])
      for j, step in enumerate(layer.fits)])


def plot(reports: dict[str, mulo.CoordCheckReport], path: pathlib.Path) -> None:
  """Change against size, a line per layer of each kind, at the last step."""
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  figure, grid = plt.subplots(
      1, len(reports), figsize=(5.5 * len(reports), 4), squeeze=False,
      layout="constrained")
  for axis, (title, report) in zip(grid[0], reports.items()):
    for i, (name, layer) in enumerate(report.layers.items()):
      for j, step in enumerate(layer.fits):
        if step in (2, max(layer.fits)):
          x = layer.change[:, :, j]
          style = "-" if step == max(layer.fits) else "--"
          axis.plot(report.sizes, x.mean(1), style, color=f"C{i}",
                    label=name if style == "-" else None)
          axis.fill_between(report.sizes, x.min(1), x.max(1), alpha=0.15,
                            color=f"C{i}", linewidth=0)
    axis.set(title=f"{title}: {'PASS' if report.passed else 'FAIL'}",
             xlabel=report.axis, xscale="log", yscale="log")
    axis.set_xticks(report.sizes, [str(size) for size in report.sizes])
    axis.minorticks_off()
  grid[0][0].set_ylabel("mean change of pre-activations\n"
                        f"(dashed: step 2, solid: step {max(layer.fits)})")
  if len(reports[title].layers) <= 12:
    grid[0][-1].legend(fontsize="small")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def define_flags() -> None:
  """Defines the flags; not at import, where they would be everyone's."""
  flags.DEFINE_string("workdir", None, "Folder for the results.")
  flags.DEFINE_string(
      "optimizer", None, "Pretrained name, artifact, learned optimizer (as "
      f"initialised), or one of {', '.join(OPTAX)}.")
  flags.DEFINE_list("optimizer_settings", [], "Settings of a learned "
                    "optimizer: setting=value.")
  flags.DEFINE_string("parametrization", None,
                      "Of network and updates; default: the optimizer's.")
  flags.DEFINE_string("control", None, "Parametrization that must fail; "
                      "default: standard, or mup for depth.")
  flags.DEFINE_bool("with_control", True, "Whether to run the control.")
  flags.DEFINE_string("task", "mlp", "Family.")
  flags.DEFINE_list("settings", [], "Settings of the task: setting=value.")
  flags.DEFINE_enum("axis", "width", list(SIZES), "What grows.")
  flags.DEFINE_list("sizes", [], "Values of the axis.")
  flags.DEFINE_integer("seeds", 3, "Networks of each size.", lower_bound=1)
  flags.DEFINE_list("steps", ["1", "2", "5", "10"], "When to measure.")
  flags.DEFINE_bool(
      "scale_gradients", False, "Whether the optimizer sees gradients of the "
      "size that they have at the first width: for those with epsilons.")
  flags.DEFINE_float("learning_rate", None, "Of an optimizer of optax; of "
                     "others a factor.")
  flags.DEFINE_float("control_learning_rate", None, "That of the control.")
  flags.DEFINE_string(
      "data_dir", None, "Folder with data sets; default: MULO_DATA_DIR.")
  flags.mark_flags_as_required(["workdir", "optimizer"])


def reports_of(found) -> dict[str, mulo.CoordCheckReport]:
  """The check, and the control, as the flags say."""
  own_settings = transfer.parse(found.optimizer_settings)
  _, own = opt_fn_of(found.optimizer, None, own_settings)
  rule = found.parametrization or own
  control = found.control or CONTROL[found.axis]
  sizes = tuple(int(x) for x in found.sizes) or SIZES[found.axis]
  steps = tuple(int(x) for x in found.steps)
  section = {"name": found.task, **transfer.parse(found.settings)}
  # What it has to find is large, so few networks show it.
  few = tuple(x for x in sizes if x <= MAX_CONTROL)[::2]
  runs = {rule: (sizes, found.learning_rate)}
  if found.with_control and control != rule:
    runs[f"{control} (control)"] = (few if len(few) > 1 else sizes,
                                    found.control_learning_rate)
  reports = {}
  with tqdm.tqdm(total=sum(len(x) for x, _ in runs.values()), unit="size",
                 mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
    for name, (values, rate) in runs.items():
      rule = name.removesuffix(" (control)")
      if rate is None and found.optimizer in OPTAX:
        rate = RATES[rule == "standard"]
      opt_fn, _ = opt_fn_of(found.optimizer, rate, own_settings)
      reports[name] = check(
          opt_fn, parametrizations.get(rule), section, found.axis, values,
          found.seeds, steps, found.data_dir, lambda _: bar.update(),
          found.scale_gradients)
  return reports


def run(found) -> int:
  """Checks, writes and prints the table, and returns the exit status.

  Args:
    found: has the flags as attributes.

  Raises:
    ValueError: flags that do not fit.
    OSError: no such artifact or data set, or a workdir that cannot be written.
  """
  reports = reports_of(found)
  folder = pathlib.Path(found.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  text = "\n\n".join(
      f"{found.optimizer} under {name}: {'PASS' if x.passed else 'FAIL'}\n\n"
      f"{x.table()}" for name, x in reports.items())
  (folder / "table.md").write_text(text + "\n")
  pd.concat([rows(x, name) for name, x in reports.items()]).to_csv(
      folder / "check.csv", index=False)
  plot(reports, folder / "check.png")
  print(f"{text}\n\nPlot: {folder / 'check.png'}")
  first, *control = reports.values()
  if any(x.passed for x in control):
    print("The control passes, so the check is broken or too weak here: take a "
          "larger learning rate, or more sizes.")
    return 2
  return 0 if first.passed else 1


def main(argv):
  """Runs the check; the exit status is its verdict."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
  logging.set_verbosity(logging.WARNING)
  found = flags.FLAGS
  try:
    status = run(found)
    (pathlib.Path(found.workdir) / "command.txt").write_text(
        f"python -m experiments.studies.coord_check {shlex.join(sys.argv[1:])}\n")
  except (ValueError, OSError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  sys.exit(status)


if __name__ == "__main__":
  define_flags()
  app.run(main)
