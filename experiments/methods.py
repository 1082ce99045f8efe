"""Methods of a comparison: learned optimizers and tuned baselines, by name."""

import dataclasses
import functools
import inspect
import re
import types
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import jax
import numpy as np
import optax

from experiments import baselines
from learned_opt import artifact as artifact_lib
from learned_opt import base as learned_opt_base
from learned_opt import kinds as kinds_lib
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import unroll
import mulo
from tasks import base as tasks_base

UNTRAINED = "untrained:"


class Candidate(NamedTuple):
  """An optimizer with all its settings.

  Attributes:
    opt_fn: `opt_fn(theta, num_steps=...)` returns the optax transformation; it
      may have the argument `task`, see `baselines.opt_fn`.
    theta: meta-parameters, or the learning rate of a baseline, or a dict of it
      and of further numbers.
    schedule: learning rate schedule and variant of a baseline, otherwise "".
    learning_rate: learning rate of a baseline, otherwise None.
    identity: everything that determines the result; JSON values.
  """

  opt_fn: Callable
  theta: Any
  schedule: str
  learning_rate: float | None
  identity: dict[str, Any]


class Method(NamedTuple):
  """One optimizer of the comparison, represented by its best candidate.

  Attributes:
    label: name in tables and plots.
    parametrization: name of the parametrization of network and updates.
    candidates: one, or all learning rates and schedules of a baseline.
    tuned_at_base: whether the candidate that is best on the first task is used
      on all tasks.
    gradient_width: width whose gradient magnitudes the optimizer receives, see
      `with_gradients_of`; None for unchanged gradients.
    source: text of the file that describes the optimizer, or "".
    meta_trained: {axis: (smallest, largest)} of the tasks of meta-training, as
      far as the record of a learned optimizer has it.
  """

  label: str
  parametrization: str
  candidates: list[Candidate]
  tuned_at_base: bool = False
  gradient_width: int | None = None
  source: str = ""
  meta_trained: Mapping[str, tuple[int, int]] = types.MappingProxyType({})


def parse(names: list[str], schedules: list[str],
          trust: Sequence[str] = ()) -> list[Method]:
  """Return methods by name.

  Args:
    names: each is the name of a baseline, `[label=]file.py` (see
      `baselines.read`), `[label=]untrained:artifact`,
      `[label=]untrained:optimizer/parametrization` (the start of meta-training,
      with random key 0), or `[label=]artifact[@width]`. The label defaults to
      the name of a pretrained optimizer, or to what a file says. With a width,
      gradients are rescaled to their magnitude at this width, and the label
      says so. For an artifact on a hub, @ is followed by the revision instead.
    schedules: learning rate schedules of the baselines.
    trust: see `mulo.load`.

  Raises:
    ValueError: an unknown name, two methods of one label, the label of a
      baseline for another method, a file without a baseline, or a width for
      an artifact whose parametrization does not say how large gradients are.
    FileNotFoundError: the artifact or file does not exist.
  """
  parsed: list[Method] = []
  for name in names:
    label, _, path = name.rpartition("=")
    at_width = re.fullmatch(r"(?!hf://)(.+)@([1-9]\d*)", path)
    path, width = (
        (at_width[1], int(at_width[2])) if at_width else (path, None))
    if path.startswith(UNTRAINED):
      start = path.removeprefix(UNTRAINED)
      own = _label(start, trust) if start.endswith(".safetensors") else start
      parsed.append(_learned(
          label or f"{own}, untrained", mulo.read(path, trust)))
    elif name in baselines.names():
      parsed.append(_tuned(name, baselines.get(name), schedules))
    elif path.endswith(".py"):
      entry = baselines.read(path)
      parsed.append(_tuned(
          f"sha256:{entry.sha256}", entry.baseline._replace(
              label=label or entry.baseline.label), schedules)._replace(
                  source=entry.source))
    elif label or path.endswith(".safetensors") or (
        path in mulo.list_pretrained()):
      parsed.append(_learned(
          label or _label(path, trust), mulo.read(path, trust), width))
    else:
      raise ValueError(
          f"Unknown optimizer {name!r}; available: "
          f"{', '.join(baselines.names())}, [label=]file.safetensors, "
          "[label=]file.py, and "
          f"{', '.join(mulo.list_pretrained()) or 'no pretrained ones'}.")
  labels = [method.label for method in parsed]
  registered = {x.label for x in baselines.BASELINES.values()}
  for name, label in zip(names, labels):
    if label in registered and name not in baselines.names():
      raise ValueError(f"{name} must not be called {label!r}, as a baseline "
                       "is; give it a label of its own: label=file.")
    if labels.count(label) > 1:
      raise ValueError(f"Two optimizers are called {label!r}; give each a "
                       "label of its own: label=file.safetensors.")
  return parsed


def _label(name_or_path: str, trust: Sequence[str]) -> str:
  """Return the default label of an artifact."""
  if name_or_path in mulo.list_pretrained():
    return name_or_path
  return mulo.read(name_or_path, trust).optimizer


def _tuned(name: str, baseline: baselines.Baseline, schedules: list[str]
           ) -> Method:
  """Return a baseline with a candidate per schedule and learning rate.

  Args:
    name: what tells the baseline from all others, in the identity of cells.
    baseline: the baseline.
    schedules: schedules, if the baseline has none of its own.
  """
  candidates = []
  for schedule in baseline.schedules or schedules:
    # Settings that are numbers are part of theta, and share an opt_fn.
    opt_fns: dict[str, Callable] = {}
    for variant in baseline.variants:
      numbers = {k: v for k, v in variant.items() if isinstance(v, float)}
      fixed = {k: v for k, v in variant.items() if k not in numbers}
      opt_fn = opt_fns.setdefault(
          repr(fixed), baselines.opt_fn(baseline, schedule, **fixed))
      label = ", ".join([schedule, *(f"{k} {v}" for k, v in variant.items())])
      # The key is missing without a variant, so older identities stay valid.
      more = {"variant": variant} if variant else {}
      candidates += [
          Candidate(opt_fn, _theta(rate, numbers), label, rate, {
              "baseline": name, "learning_rate": rate, "schedule": schedule,
              **more}) for rate in baseline.learning_rates]
  return Method(baseline.label, baseline.parametrization, candidates,
                baseline.tuned_at_base)


def _theta(learning_rate: float, numbers: dict[str, float]) -> Any:
  """Return the theta of a baseline, see `baselines.opt_fn`."""
  if not numbers:
    return np.float32(learning_rate)
  return jax.tree.map(np.float32, {"learning_rate": learning_rate, **numbers})


def beyond(best: Candidate, candidates: Sequence[Candidate]
           ) -> Candidate | None:
  """Return the candidate beyond an edge of the grid.

  Args:
    best: one of the candidates, of a baseline.
    candidates: all that were tried.

  Returns:
    The best candidate with the next learning rate, if its own is the smallest
    or largest one of its schedule and variant; otherwise None.
  """
  rates = [c.learning_rate or 0.0 for c in candidates
           if c.schedule == best.schedule]
  if best.learning_rate not in (min(rates), max(rates)):
    return None
  rate = baselines.neighbor(
      best.learning_rate or 0.0, best.learning_rate == max(rates))
  theta = {**best.theta, "learning_rate": np.float32(rate)} if isinstance(
      best.theta, dict) else np.float32(rate)
  return best._replace(theta=theta, learning_rate=rate, identity={
      **best.identity, "learning_rate": rate})


def complete(
    opt_fn: Callable, parametrization: learned_opt_base.Parametrization,
    task: tasks_base.Task) -> unroll.OptFn:
  """Return an `opt_fn` with the multipliers of a task's parametrization.

  An `opt_fn` with the argument `task` applies them itself.
  """
  if "task" in inspect.signature(opt_fn).parameters:
    return functools.partial(opt_fn, task=task)
  return unroll.scaled(opt_fn, parametrization, task)


def of_task(method: Method, opt_fn: Callable, section: dict[str, Any],
            data_dir: str | None) -> tuple[tasks_base.Task, unroll.OptFn]:
  """Return the task of a section, and the complete optimizer for it.

  Args:
    method: says the parametrization and the width of gradients.
    opt_fn: of a candidate of the method.
    section: section of the task.
    data_dir: see `tasks.data.images.image_data`.
  """
  parametrization = parametrizations.get(method.parametrization)
  task = build.task_of(section, parametrization, data_dir)
  if method.gradient_width:
    opt_fn = with_gradients_of(build.task_of(
        section | {"width": method.gradient_width}, parametrization,
        data_dir), opt_fn, parametrization)
  return task, complete(opt_fn, parametrization, task)


def _learned(label: str, artifact: artifact_lib.Artifact,
             gradient_width: int | None = None) -> Method:
  """Return a learned optimizer, which has one candidate."""
  identity: dict[str, Any] = {
      "optimizer": artifact.optimizer, "settings": artifact.settings,
      "theta": artifact_lib.sha256(artifact.theta)}
  if gradient_width:
    parametrization = parametrizations.get(artifact.parametrization)
    if not parametrization.needs_base_shapes:
      raise ValueError(
          f"{label}@{gradient_width}: the parametrization "
          f"{artifact.parametrization} does not say how large gradients are at "
          "another width; leave out the width.")
    # The key is missing without a width, so that older identities stay valid.
    identity["gradient_width"] = gradient_width
    label = f"{label}, gradients as at width {gradient_width}"
  trained = artifact.trained
  axes = {"num_steps": trained.horizon, "width": trained.widths,
          "batch_size": trained.batch_sizes}
  return Method(label, artifact.parametrization, [Candidate(
      artifact.lopt.opt_fn, artifact.theta, "", None, identity)],
                gradient_width=gradient_width,
                meta_trained={k: v for k, v in axes.items() if v})


def with_bfloat16_state(names: list[str], parsed: list[Method],
                        trust: Sequence[str] = ()) -> list[Method]:
  """Return methods of the artifacts with optimizer state in bfloat16.

  Args:
    names: see `parse`; baselines, untrained optimizers and those at a width
      are left out.
    parsed: the methods of these names.
    trust: see `mulo.load`.
  """
  methods = []
  for name, method in zip(names, parsed):
    path = name.rpartition("=")[2]
    if ("optimizer" not in method.candidates[0].identity or
        path.startswith(UNTRAINED) or method.gradient_width):
      continue
    artifact = mulo.read(path, trust)
    methods.append(_learned(
        f"{method.label}, bfloat16 state", dataclasses.replace(
            artifact, settings=artifact.settings | {
                "accumulator_dtype": "bfloat16"})))
  return methods


def with_gradients_of(
    base: tasks_base.Task, opt_fn: unroll.OptFn,
    parametrization: learned_opt_base.Parametrization) -> unroll.OptFn:
  """Return an `opt_fn` that rescales gradients to their magnitude in a task.

  Args:
    base: the task at another width.
    opt_fn: `opt_fn(theta, num_steps=...)` receives the rescaled gradients.
    parametrization: parametrization of network and updates.
  """
  rescale = mulo.scaling.scale_gradients(
      jax.eval_shape(base.init, jax.random.key(0)),
      parametrization=parametrization, forward=True,
      delta_shapes=base.base_shapes, readout=False)
  return lambda theta, *, num_steps=None, kinds=None: optax.chain(
      rescale, kinds_lib.told(opt_fn, kinds)(theta, num_steps=num_steps))
