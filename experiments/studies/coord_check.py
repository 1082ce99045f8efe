r"""Check whether the change of each layer depends on the network's width.

python -m experiments.studies.coord_check --workdir=runs/check \
    --optimizer=mulo-s
python -m experiments.studies.coord_check --workdir=runs/check_vit \
    --optimizer=adam --parametrization=mup --task=vit \
    --sizes=32,64,128,256,512
python -m experiments.studies.coord_check --workdir=runs/check_depth \
    --optimizer=adam --parametrization=depth_mup --axis=depth \
    --settings=width=128,residual=True --sizes=3,5,9,17,33

Trains networks of several widths for ten steps on the same batches, with a
learning rate large enough to move the loss. For each layer, fits the slope of
log change against log width (`mulo.coord_check`).

Then repeats the check under a control parametrization, which must fail;
otherwise the check is broken. The control runs at every second size up to 1024,
or at all sizes if fewer than two would remain. Its default learning rate is
0.01 for optax optimizers under the standard parametrization, 0.1 for optax
optimizers under other parametrizations, and a multiplier of 1 for learned
optimizers.

Writes table.md, check.csv and check.png to the workdir. The exit status is 0 if
the check passes and the control fails, 1 if the check fails, 2 if the control
passes.
"""

import dataclasses
import pathlib
import re
from typing import Any, Callable, Sequence

from absl import flags
import jax
import jax.numpy as jnp
import matplotlib
import optax
import pandas as pd

from experiments import baselines
from experiments import command
from experiments import methods
from learned_opt import base
from learned_opt import kinds as kinds_lib
from learned_opt import optimizers
from learned_opt import registry
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from meta_train import build
from meta_train import unroll
import mulo
from tasks import base as tasks_base

# Baselines that can be checked, with settings that replace the registered ones.
# Epsilons lie far below any gradient, so that they have no effect at any width.
# SGD is missing: `unroll.scaled` multiplies by `update_mult`, the multiplier of
# updates whose entries do not depend on the magnitude of the gradient.
OPTAX: dict[str, dict[str, float]] = {
    "adam": {"eps": 1e-16}, "lion": {"weight_decay": 0.0}}
OPTAX_PARAMETRIZATION = "mup"  # default for the baselines
SIZES = {"width": (64, 128, 256, 512, 1024, 2048, 4096),
         "depth": (3, 5, 9, 17, 33, 65)}
# Default parametrization of the control: it does not correct for the axis.
CONTROL = {"width": "standard", "depth": "mup"}
MAX_CONTROL = 1024
MAX_EXAMPLES = 2**13
# Default learning rates of optax optimizers.
MUP_RATE, STANDARD_RATE = 0.1, 0.01


def opt_fn_of(name: str, learning_rate: float | None = None,
              settings: dict[str, Any] | None = None,
              trust: Sequence[str] = ()) -> tuple[Callable, str]:
  """Return an `opt_fn` that ignores its theta, and the default parametrization.

  Args:
    name: an artifact, a learned optimizer (used as initialised), or a key of
      OPTAX.
    learning_rate: learning rate of an optax optimizer, or multiplier of the
      updates of a learned optimizer; None for the default.
    settings: settings of a learned optimizer that replace its stored or default
      ones.
    trust: see `mulo.load`.

  Raises:
    ValueError: an unknown name, or settings that the optimizer does not accept.
    FileNotFoundError: the artifact does not exist.
  """
  settings = settings or {}
  if name in OPTAX:
    if settings:
      raise ValueError(f"{name} is an optimizer of optax and takes no "
                       f"settings, got {settings}; learned optimizers do.")
    rate = MUP_RATE if learning_rate is None else learning_rate
    return (lambda theta, *, num_steps=None: baselines.get(name).make(
        rate, **OPTAX[name])), OPTAX_PARAMETRIZATION
  if name in optimizers.names() or registry.is_import(name):
    lopt = optimizers.get(name, **settings)
    theta, lopt_fn = lopt.init(jax.random.key(0)), lopt.opt_fn
    parametrization = "mup"
  else:
    artifact = mulo.read(name, trust)
    artifact = dataclasses.replace(
        artifact, settings=artifact.settings | settings)
    theta, lopt_fn = artifact.theta, artifact.lopt.opt_fn
    parametrization = artifact.parametrization
  scale = optax.scale(1.0 if learning_rate is None else learning_rate)
  return lambda _, *, num_steps=None, kinds=None: optax.chain(
      kinds_lib.told(lopt_fn, kinds)(
          jax.tree.map(jnp.asarray, theta), num_steps=num_steps),
      scale), parametrization


def kinds_of(task: tasks_base.Task, layers: list[str]) -> dict[str, str]:
  """Return the kind of each layer, which decides the slopes that pass.

  The kind follows from the roles of the matrices in the layer. A layer with
  matrices of several roles, or without matrices, is hidden.

  Args:
    task: the task whose network has the layers.
    layers: names of layers, which are path prefixes of its parameters.

  Returns:
    {layer: "input", "hidden", "attention" or "output"}.
  """
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  roles = {path: info.role for path, info in roles_lib.infer(
      shapes, task.base_shapes, readout=False).items()}
  kinds = {}
  for layer in layers:
    in_layer = {role for path, role in roles.items()
                if path.startswith(f"{layer}/") and role != "vector"}
    if layer.endswith("/attention"):
      kinds[layer] = "attention"
    elif layer == "output" or in_layer == {"output"}:
      kinds[layer] = "output"
    else:
      kinds[layer] = "input" if in_layer == {"input"} else "hidden"
  return kinds


def ends(layers: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Select layers that networks of all depths have.

  Args:
    layers: activations by layer; numbered layers are named like "layer_3".

  Returns:
    The output, and of each series of numbered layers the first and the last,
    as "first layer" and "last layer".
  """
  selected = {"output": layers["output"]}
  numbered: dict[str, dict[int, jax.Array]] = {}
  for name, x in layers.items():
    if match := re.fullmatch(r"(\w+?)_(\d+)", name):
      numbered.setdefault(match[1], {})[int(match[2])] = x
  for name, members in numbered.items():
    selected |= {f"first {name}": members[min(members)],
                 f"last {name}": members[max(members)]}
  return selected


def check(opt_fn: Callable, parametrization: base.Parametrization,
          section: dict[str, Any], axis: str, sizes: tuple[int, ...],
          seeds: int, steps: tuple[int, ...], data_dir: str | None,
          on_size: Callable[[int], None], scale_gradients: bool = False
          ) -> mulo.CoordCheckReport:
  """Run `mulo.coord_check` on a task family.

  Args:
    opt_fn: see `opt_fn_of`.
    parametrization: parametrization of network and updates.
    section: the task, see `meta_train.build.task_of`.
    axis: setting of the task that grows, "width" or "depth".
    sizes: values of the axis.
    seeds: networks of each size.
    steps: numbers of steps after which changes are measured.
    data_dir: see `tasks.data.images.image_data`.
    on_size: called when a size is done.
    scale_gradients: whether the optimizer receives gradients rescaled to their
      magnitude at the first size, see `mulo.scaling.scale_gradients`.

  Raises:
    ValueError: settings that the task does not accept, a task without layers or
      width, or `scale_gradients` with the axis "depth".
  """
  tasks = {size: build.task_of(
      section | {axis: size}, parametrization, data_dir) for size in sizes}
  task = tasks[sizes[0]]
  activations: dict[int, Any] = {
      size: x.activations for size, x in tasks.items()}
  if scale_gradients and axis != "width":
    raise ValueError("scale_gradients is for width; networks of other depths "
                     "do not have the parameters of the first.")
  if task.activations is None or task.base_shapes is None:
    raise ValueError(
        f"{section['name']} has no layers to look at, or no width.")
  # The data becomes a constant of the compiled program, so it is cut.
  data = jax.tree.map(lambda x: jnp.asarray(x[:MAX_EXAMPLES]),
                      task.data["train"])
  layers_of = ends if axis == "depth" else dict

  def apply_and_loss(params, key, size):
    batch_key, loss_key = jax.random.split(key)
    # All sizes draw their batches from the data of the first task.
    batch = task.sample_batch(batch_key, data)
    loss, _ = tasks[size].loss(params, loss_key, batch)
    return loss, layers_of(activations[size](params, batch))

  if scale_gradients:
    opt_fn = methods.with_gradients_of(task, opt_fn, parametrization)
  layers = jax.eval_shape(lambda key: apply_and_loss(
      task.init(key), key, sizes[0])[1], jax.random.key(0))
  return mulo.coord_check(
      lambda key, size: tasks[size].init(key), apply_and_loss,
      lambda size: unroll.scaled(opt_fn, parametrization, tasks[size])(None),
      sizes, seeds=seeds, steps=steps, kinds=kinds_of(task, list(layers)),
      axis=axis, on_width=on_size)


def rows(report: mulo.CoordCheckReport, title: str) -> pd.DataFrame:
  """Return one row per layer, step, size and seed.

  Args:
    report: the report of `check`.
    title: name of the check, for the column "which".
  """
  return pd.DataFrame([
      {"which": title, "layer": name, "kind": layer.kind, report.axis: size,
       "seed": seed, "step": step, "change": float(layer.change[i, seed, j]),
       # layer.size starts with step 0, which layer.change does not have.
       "size of activations": float(layer.size[i, seed, j + 1])}
      for name, layer in report.layers.items()
      for i, size in enumerate(report.sizes)
      for seed in range(layer.change.shape[1])
      for j, step in enumerate(layer.fits)])


def plot(reports: dict[str, mulo.CoordCheckReport], path: pathlib.Path) -> None:
  """Plot change against size: a panel per check, two lines per layer.

  The lines are the changes after step 2 (dashed) and after the last step.
  """
  matplotlib.use("Agg")
  from matplotlib import pyplot as plt
  figure, grid = plt.subplots(
      1, len(reports), figsize=(5.5 * len(reports), 4), squeeze=False,
      sharey=True, layout="constrained")
  for axis, (title, report) in zip(grid[0], reports.items()):
    for i, (name, layer) in enumerate(report.layers.items()):
      for j, step in enumerate(layer.fits):
        if step in (2, max(layer.fits)):
          x = layer.change[:, :, j]  # [sizes, seeds]
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
  """Define the flags of this command."""
  command.define_workdir()
  command.define_data_dir()
  command.define_trust()
  flags.DEFINE_string(
      "optimizer", None, "Optimizer to check: a pretrained name, a "
      ".safetensors file, a learned optimizer with initial weights "
      f"({', '.join(optimizers.names())}), or an optax optimizer "
      f"({', '.join(OPTAX)}).", required=True)
  flags.DEFINE_list(
      "optimizer_settings", [], "Settings of a learned optimizer: "
      "name=value,...")
  flags.DEFINE_string(
      "parametrization", None, "Parametrization of network and updates "
      f"({', '.join(parametrizations.names())}); default: the one of the "
      f"artifact, otherwise {OPTAX_PARAMETRIZATION}.")
  flags.DEFINE_string(
      "control", None, "Parametrization that must fail; default: "
      f"{CONTROL['width']} for width, {CONTROL['depth']} for depth.")
  flags.DEFINE_bool("with_control", True, "Also run the control.")
  command.define_task()
  flags.DEFINE_enum("axis", "width", list(SIZES), "Task setting that grows.")
  flags.DEFINE_list(
      "sizes", [], "Values of the axis, in increasing order; default: 64 to "
      "4096 for width, 3 to 65 for depth.")
  flags.DEFINE_integer("seeds", 3, "Networks of each size.", lower_bound=1)
  flags.DEFINE_list(
      "steps", ["1", "2", "5", "10"], "Measure after these numbers of steps.")
  flags.DEFINE_bool(
      "scale_gradients", False, "Rescale gradients to their magnitude at the "
      "first width, for an optimizer with absolute epsilons.")
  flags.DEFINE_float(
      "learning_rate", None, "Learning rate (optax) or update multiplier "
      f"(learned optimizers); default: {MUP_RATE} ({STANDARD_RATE} if "
      "--parametrization=standard) or 1.")
  flags.DEFINE_float(
      "control_learning_rate", None, "Learning rate, or update multiplier, of "
      "the control run; defaults as for --learning_rate.")


def reports_of(flags) -> dict[str, mulo.CoordCheckReport]:
  """Run the check and the control; return their reports by title."""
  settings = command.parse_settings(flags.optimizer_settings)
  _, default = opt_fn_of(flags.optimizer, None, settings, flags.trust)
  parametrization = flags.parametrization or default
  control = flags.control or CONTROL[flags.axis]
  sizes = command.parse_integers("sizes", flags.sizes) or SIZES[flags.axis]
  steps = command.parse_integers("steps", flags.steps)
  section = {"name": flags.task, **command.parse_settings(flags.settings)}
  # {title: (name of the parametrization, sizes, learning rate)}
  runs = {parametrization: (parametrization, sizes, flags.learning_rate)}
  if flags.with_control and control != parametrization:
    # Few networks suffice for the control, whose slopes are large.
    few = tuple(x for x in sizes if x <= MAX_CONTROL)[::2]
    runs[f"{control} (control)"] = (
        control, few if len(few) > 1 else sizes, flags.control_learning_rate)
  # All names are looked up here, so that a wrong one is found before any run.
  parametrization_of = {
      name: parametrizations.get(name) for name, _, _ in runs.values()}
  reports = {}
  with command.progress(sum(len(x) for _, x, _ in runs.values()), "size",
                        "checking") as bar:
    for title, (name, values, rate) in runs.items():
      if rate is None and flags.optimizer in OPTAX:
        rate = STANDARD_RATE if name == "standard" else MUP_RATE
      opt_fn, _ = opt_fn_of(flags.optimizer, rate, settings, flags.trust)
      reports[title] = check(
          opt_fn, parametrization_of[name], section, flags.axis, values,
          flags.seeds, steps, flags.data_dir, lambda _: bar.update(),
          flags.scale_gradients)
  return reports


def main(flags) -> int:
  """Run the check, write and print the table, and return the exit status.

  Raises:
    ValueError: flags that do not fit together.
    OSError: a missing artifact or data set, or a workdir that is not writable.
  """
  reports = reports_of(flags)
  folder = pathlib.Path(flags.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  text = "\n\n".join(
      f"{flags.optimizer} under {title}: {'PASS' if x.passed else 'FAIL'}\n\n"
      f"{x.table()}" for title, x in reports.items())
  (folder / "table.md").write_text(text + "\n")
  pd.concat([rows(x, title) for title, x in reports.items()]).to_csv(
      folder / "check.csv", index=False)
  plot(reports, folder / "check.png")
  print(f"{text}\n\nPlot: {folder / 'check.png'}")
  checked, *controls = reports.values()
  if any(x.passed for x in controls):
    print("The control passes, so the check is broken or too weak here: take a "
          "larger learning rate, or more sizes.")
    return 2
  return 0 if checked.passed else 1


if __name__ == "__main__":
  command.run(define_flags, main)
