"""Baselines that treat a matrix as a whole: Muon and its relatives.

optax 0.2.8 has neither SOAP nor Shampoo.
"""

import functools
from typing import Any, Callable

import jax
import optax
import optax.contrib

from experiments.baselines.base import Baseline
from experiments.baselines.base import DECAYING
from experiments.baselines.base import half_decades
from experiments.baselines.base import inference
from learned_opt.scaling import multipliers
from learned_opt.scaling import roles as roles_lib
import mulo
from tasks import base as tasks_base

ALL, HIDDEN = "all", "hidden"  # the matrices that are orthogonalized
RMS = 0.2  # of an update, as that of Adam: https://arxiv.org/abs/2502.16982

# Muon on parameters of two axes; Adam on all others.
FIRST = {
    "muon": Baseline(
        "Muon", functools.partial(optax.contrib.muon, consistent_rms=RMS),
        "standard", half_decades(-8, 0)),
    # The same with weight decay and schedules that suit it, to be beaten; and
    # with one setting for all tasks, the rival of a learned optimizer.
    "muon_tuned": Baseline(
        "Muon, tuned with decay",
        functools.partial(optax.contrib.muon, consistent_rms=RMS), "standard",
        half_decades(-6, -2), schedules=DECAYING,
        variants=({"weight_decay": 0.0}, {"weight_decay": 0.1})),
    "muon_fixed": Baseline(
        "Muon, one setting", functools.partial(
            optax.contrib.muon, consistent_rms=RMS, weight_decay=0.1),
        "standard", (0.01,), schedules=("linear",))}


def muon(learning_rate: Any, *, task: tasks_base.Task, matrices: str = ALL,
         adam_rate: Any = 1.0, weight_decay: Any = 0.0, b2: Any = 0.999
         ) -> optax.GradientTransformation:
  """Return Muon, kernels of convolutions and heads included.

  Args:
    learning_rate: number or schedule.
    task: tells roles of parameters, and which of their axes are outputs.
    matrices: which are orthogonalized; AdamW has the rest. On a network without
      a width, nothing is known to be hidden.
    adam_rate: multiplier of the learning rate of AdamW.
    weight_decay: of all matrices.
    b2: of AdamW.
  """
  adam = _times(learning_rate, adam_rate)
  numbers = functools.partial(_axes, matrices, inference(task, "standard"))
  return optax.contrib.muon(
      learning_rate, consistent_rms=RMS, weight_decay=weight_decay,
      adam_weight_decay=weight_decay if matrices == HIDDEN else 0.0,
      adam_b2=b2, adam_learning_rate=adam,
      muon_weight_dimension_numbers=numbers)


def normuon(learning_rate: Any, *, task: tasks_base.Task, matrices: str = ALL,
            weight_decay: Any = 0.0, **settings: Any
            ) -> optax.GradientTransformation:
  """Return NorMuon: `muon` with `mulo.links.normalize_rows`.

  Reference:
    Li et al., 2025, https://arxiv.org/abs/2510.05491.
  """
  return optax.chain(
      muon(1.0, task=task, matrices=matrices, **settings),
      mulo.links.normalize_rows(**_told(task, matrices)),
      optax.add_decayed_weights(-weight_decay),
      optax.scale_by_learning_rate(learning_rate, flip_sign=False))


def muon_ball(learning_rate: Any, *, task: tasks_base.Task,
              matrices: str = HIDDEN, **settings: Any
              ) -> optax.GradientTransformation:
  """Return `muon` with fixed norms; the rate is relative to the norm.

  Reference:
    Hyperball optimization, 2026, https://arxiv.org/abs/2606.16899.
  """
  return mulo.links.hyperball(
      muon(learning_rate, task=task, matrices=matrices, **settings),
      relative_step=learning_rate, **_told(task, matrices))


def adam_ball(learning_rate: Any, *, task: tasks_base.Task,
              adam_rate: Any = 1.0, b2: Any = 0.999
              ) -> optax.GradientTransformation:
  """Return Adam with fixed norms of all matrices.

  Args:
    learning_rate: relative to the norm of a matrix.
    task: see `muon`.
    adam_rate: multiplier of the learning rate of other parameters.
    b2: of Adam.
  """
  return mulo.links.hyperball(
      optax.adam(_times(learning_rate, adam_rate), b2=b2),
      relative_step=learning_rate, **_told(task, ALL))


def _times(learning_rate: Any, factor: Any) -> Any:
  if callable(learning_rate):
    return lambda step: factor * learning_rate(step)
  return factor * learning_rate


def _told(task: tasks_base.Task, matrices: str) -> dict[str, Any]:
  """Return the arguments of a link that works on the same matrices."""
  facts = inference(task, "standard")
  if facts is None:
    return {}
  return facts if matrices == ALL else {**facts, "roles": (HIDDEN,)}


def _axes(matrices: str, facts: dict[str, Any] | None, params: Any) -> Any:
  """Return a tree of axes for Muon, None for parameters of Adam."""
  if facts is None:
    return jax.tree.map(
        lambda p: optax.contrib.MuonDimensionNumbers()
        if matrices == ALL and p.ndim == 2 else None, params)
  numbers: Callable[[roles_lib.ParamInfo], Any] = lambda info: (
      None if info.role == "vector" or
      matrices == HIDDEN and info.role != HIDDEN
      else optax.contrib.MuonDimensionNumbers(info.inputs, info.outputs))
  return multipliers.map_roles(numbers, params, **facts)


_CHOICES = tuple(
    {"matrices": matrices, "adam_rate": adam_rate, "weight_decay": decay}
    for matrices, adam_rate in ((ALL, 1.0), (HIDDEN, 3.0))
    for decay in (0.0, 0.1))
TUNED = {
    "muon_matrices_tuned": Baseline(
        "Muon, tuned with matrices", muon, "standard", half_decades(-5, -3),
        schedules=DECAYING, variants=_CHOICES),
    "normuon_tuned": Baseline(
        "NorMuon, tuned", normuon, "standard", half_decades(-5, -3),
        schedules=DECAYING, variants=_CHOICES),
    "muon_ball_tuned": Baseline(
        "Muon, fixed norms, tuned", muon_ball, "standard", half_decades(-4, -2),
        schedules=DECAYING, variants=tuple(
            {"matrices": matrices, "adam_rate": adam_rate}
            for matrices in (ALL, HIDDEN) for adam_rate in (0.1, 1.0))),
    "adam_ball_tuned": Baseline(
        "Adam, fixed norms, tuned", adam_ball, "standard", half_decades(-4, -2),
        schedules=DECAYING, variants=tuple(
            {"adam_rate": adam_rate, "b2": b2}
            for adam_rate in (0.1, 1.0) for b2 in (0.999, 0.95)))}
