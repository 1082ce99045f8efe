"""Baselines under muP, tuned at one width and transferred to others."""

from typing import Any

import jax
import optax
import optax.contrib

from experiments.baselines.base import Baseline
from experiments.baselines.base import DECAYING
from experiments.baselines.base import half_decades
from experiments.baselines.base import inference
from learned_opt.scaling import multipliers
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from tasks import base as tasks_base

# muP divides the updates of hidden matrices by their fan-in, so its grid lies
# higher.
FIRST = {
    "mu_adam": Baseline("muAdam", optax.adam, "mup", half_decades(-6, 2)),
    "mu_adam_transferred": Baseline(
        "muAdam, transferred", optax.adam, "mup", half_decades(-6, 2), True),
    "mu_adam_balanced": Baseline(
        "muAdam, balanced, transferred", optax.adam, "mup_balanced",
        half_decades(-6, 2), True)}


def _mu(core: optax.GradientTransformation, learning_rate: Any,
        weight_decay: Any, parametrization: str, task: tasks_base.Task
        ) -> optax.GradientTransformation:
  """Return a rule under a parametrization, as `mulo.scaling.mu`.

  Multipliers are absolute, like those of the network of a task. A step of
  weight decay shrinks matrices by a fraction that does not depend on width.

  Args:
    core: rule without learning rate, which gets gradients of a size that does
      not depend on width; its updates are not negated.
    learning_rate: number or schedule.
    weight_decay: number; vectors do not decay.
    parametrization: name of the parametrization of the task.
    task: tells roles of parameters.
  """
  facts = inference(task, parametrization)
  links = [core]
  if facts is not None:
    resolved = parametrizations.get(parametrization)
    links = [
        multipliers.scale_by_role(
            lambda info: 1 / info.at(resolved.gradient_scale), **facts), core,
        multipliers.scale_by_parametrization(resolved, forward=True, **facts)]
  return optax.chain(
      *links, optax.add_decayed_weights(weight_decay, mask=_matrices),
      optax.scale_by_learning_rate(learning_rate))


def _matrices(params: Any) -> Any:
  return jax.tree.map(lambda p: p.ndim > 1, params)


def mu_sgd(learning_rate: Any, *, task: tasks_base.Task, momentum: Any = 0.9
           ) -> optax.GradientTransformation:
  """Return SGD with momentum of Nesterov under muP."""
  return _mu(optax.trace(momentum, nesterov=True), learning_rate, 0.0, "mup",
             task)


def mu_adamw(learning_rate: Any, *, task: tasks_base.Task,
             weight_decay: Any = 0.0) -> optax.GradientTransformation:
  """Return AdamW under muP."""
  return _mu(optax.scale_by_adam(), learning_rate, weight_decay, "mup", task)


def mu_lion(learning_rate: Any, *, task: tasks_base.Task,
            weight_decay: Any = 0.0) -> optax.GradientTransformation:
  """Return Lion under muP."""
  return _mu(optax.scale_by_lion(), learning_rate, weight_decay, "mup", task)


def mu_muon(learning_rate: Any, *, task: tasks_base.Task,
            weight_decay: Any = 0.0) -> optax.GradientTransformation:
  """Return Muon on all matrices, under the parametrization `natural`.

  The update of a hidden matrix has the spectral norm learning_rate *
  sqrt(fan-out / fan-in). Readouts start at zero. Adam has vectors and tables.
  """
  facts = inference(task, "natural")
  core = optax.scale_by_adam()
  if facts is not None:
    def rule(info: roles_lib.ParamInfo) -> str:
      table = info.role == "tied" or info.role == "input" and info.fan_in == 1
      return "adam" if info.role == "vector" or table else "muon"

    def ones(info: roles_lib.ParamInfo) -> float:
      """Return the spectral norm of a matrix of ones."""
      return (info.fan_in * info.fan_out)**0.5

    axes = lambda info: optax.contrib.MuonDimensionNumbers(
        info.inputs, info.outputs)
    of_roles = lambda fn: lambda tree: multipliers.map_roles(fn, tree, **facts)
    muon = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=of_roles(axes)),
        multipliers.scale_by_role(ones, **facts))
    core = optax.partition({"adam": core, "muon": muon}, of_roles(rule))
  return _mu(core, learning_rate, weight_decay, "natural", task)


_DECAYS = ({"weight_decay": 0.0}, {"weight_decay": 0.1})
TUNED = {
    "mu_sgd_transferred": Baseline(
        "muSGD, transferred", mu_sgd, "mup", half_decades(-7, -2), True,
        DECAYING, ({"momentum": 0.9}, {"momentum": 0.99})),
    "mu_adamw_transferred": Baseline(
        "muAdamW, transferred", mu_adamw, "mup", half_decades(-4, 1), True,
        DECAYING, ({"weight_decay": 0.0}, {"weight_decay": 0.01})),
    "mu_lion_transferred": Baseline(
        "muLion, transferred", mu_lion, "mup", half_decades(-6, -1), True,
        DECAYING, _DECAYS),
    "mu_muon_transferred": Baseline(
        "muMuon, transferred", mu_muon, "natural", half_decades(-6, -1), True,
        DECAYING, _DECAYS),
    # Tuned on each task: Muon with readouts that start at zero.
    "mu_muon_tuned": Baseline(
        "muMuon, tuned", mu_muon, "natural", half_decades(-6, -1), False,
        DECAYING, _DECAYS)}
