"""Outer optimizers of local SGD, by name: baselines and artifacts."""

import itertools
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt import registry
from learned_opt import workers
import mulo

RATES = (0.5, 0.7, 1.0)
MOMENTA = (0.5, 0.8, 0.9)
LOCAL_SGD = "local SGD"


class Outer(NamedTuple):
  """An outer optimizer.

  Attributes:
    label: name in table and plot.
    opt_fn: `(local learning rate) -> opt_fn`, with
      `opt_fn(theta, num_steps=rounds)`.
    thetas: candidates.
    settings: of each candidate, for the table; JSON values.
    bytes_per_parameter: that a worker sends in a round.
    identity: everything that the update depends on besides theta.
  """

  label: str
  opt_fn: Callable
  thetas: list[Any]
  settings: list[dict[str, float]]
  bytes_per_parameter: int
  identity: Any


def momentum_sgd(unit: jax.Array, nesterov: bool) -> Callable:
  """Return an `opt_fn` of SGD with momentum; theta is [rate, momentum].

  Args:
    unit: multiplies gradients first, so that they are differences again.
    nesterov: whether the momentum is Nesterov's.
  """
  def opt_fn(theta, *, num_steps=None):
    del num_steps
    rate, momentum = theta

    def update(grads, state, params=None, **extra_args):
      del params, extra_args
      grads = jax.tree.map(lambda g: unit * g, grads)
      state = jax.tree.map(lambda m, g: momentum * m + g, state, grads)
      ahead = jax.tree.map(lambda m, g: g + momentum * m, state, grads)
      return jax.tree.map(
          lambda x: -rate * x, ahead if nesterov else state), state

    return optax.GradientTransformationExtraArgs(optax.tree.zeros_like, update)

  return opt_fn


BASELINES = {
    "local_sgd": (LOCAL_SGD, False, [(1.0, 0.0)]),
    "slowmo": ("SlowMo", False, list(itertools.product(RATES, MOMENTA))),
    "diloco": ("DiLoCo", True, list(itertools.product(RATES, MOMENTA)))}


def reads_spread(opt_fn: Callable, theta: Any) -> bool:
  """Return whether an optimizer calls `spread`, see `mulo.local_updates`."""
  calls: list[bool] = []
  params = {"w": jnp.ones((2, 2))}

  def update(params):
    tx = opt_fn(theta, num_steps=10)
    none = jax.tree.map(jnp.zeros_like, params)

    def spread():
      calls.append(True)
      return workers.Spread(none, none, none)

    return tx.update(params, tx.init(params), params, value=jnp.ones([]),
                     spread=spread)[0]

  jax.eval_shape(update, params)
  return bool(calls)


def get(name: str, every: int, trust: Sequence[str]) -> Outer:
  """Return an outer optimizer by name.

  Args:
    name: a key of BASELINES, or [label=]artifact, see `mulo.read`.
    every: local steps in a round.
    trust: see `mulo.load`.

  Raises:
    ValueError: an artifact of another parametrization than "standard".
  """
  if name in BASELINES:
    label, nesterov, grid = BASELINES[name]
    return Outer(
        label, lambda local_rate: momentum_sgd(local_rate * every, nesterov),
        [np.asarray(x, np.float32) for x in grid],
        [{"outer rate": rate, "momentum": m} for rate, m in grid], 4, name)
  label, _, path = name.rpartition("=")
  artifact = mulo.read(path, trust)
  if artifact.parametrization != "standard":
    raise ValueError(
        f"{path} was meta-trained under {artifact.parametrization}, and the "
        "learning rate of local SGD does not follow it; use an optimizer of "
        "the parametrization standard, such as mulo-s-sp.")
  # "unrolled", the default of small MLPs, takes minutes to compile.
  own = optimizers.all_settings(artifact.optimizer, **artifact.settings)
  how = {"lowering": "blocked"} if "lowering" in registry.all_settings(
      optimizers.__name__, artifact.optimizer, **own) else {}
  lopt = optimizers.get(artifact.optimizer, **own, **how)
  factor = 4 if reads_spread(lopt.opt_fn, artifact.theta) else 1
  return Outer(
      label or (path if path in mulo.list_pretrained() else artifact.optimizer),
      lambda local_rate: lopt.opt_fn, [artifact.theta], [{}],
      4 * factor,
      [artifact.optimizer, artifact.settings,
       artifact_lib.sha256(artifact.theta)])
