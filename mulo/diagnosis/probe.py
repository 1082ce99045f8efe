"""Probe: a link that records what an optimizer does to each tensor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import base
from learned_opt.update import orthogonal
from learned_opt.update import sharding

B1, B2, EPS = 0.9, 0.999, 1e-8  # of Adam, which updates are compared with
# {measure: what it is}. Every measure is one number per tensor and point.
MEASURES = {
    "step": "norm of the update / norm of the parameter",
    "rms": "root mean square of the update",
    "agreement": "norm of Adam's momentum / norm of the root of its second "
                 "moment: 1 if all gradients agree, about 0.23 in pure noise",
    "adam": "cosine of the update and Adam's",
    "muon": "cosine of the update and Muon's, for matrices"}


class ProbeState(NamedTuple):
  """State of `probe`.

  Attributes:
    steps: steps taken, int32 scalar.
    inner: state of the inner optimizer.
    momentum: exponential mean of gradients, a tree like the parameters.
    squares: exponential mean of squared gradients.
    records: {measure: float32 [points, tensors]}, NaN where nothing was
      recorded or the measure does not exist.
    every: steps between two points, int32 scalar.
  """

  steps: jax.Array
  inner: optax.OptState
  momentum: Any
  squares: Any
  records: dict[str, jax.Array]
  every: jax.Array


def probe(inner: optax.GradientTransformation, num_steps: int, *,
          points: int = 50) -> optax.GradientTransformationExtraArgs:
  """Record what an optimizer does; its updates stay as they are.

  Works under jit, vmap and scan. The records are part of the state, and
  `mulo.explain(state, path)` writes a page of them. State grows by Adam's two
  moments.

  Args:
    inner: complete optimizer, whose updates are added to the parameters.
    num_steps: planned number of steps; later steps are not recorded.
    points: number of steps that are recorded, evenly spaced.

  Returns:
    A transformation whose `update` needs `params`.

  Raises:
    ValueError: numbers that are no positive integers.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> import optax
    >>> tx = mulo.probe(optax.adam(0.1), num_steps=10, points=5)
    >>> params = {"w": jnp.ones((2, 2))}
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> round(float(state.records["adam"][0, 0]), 3)
    1.0
  """
  for name, value in (("num_steps", num_steps), ("points", points)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(f"{name} must be a positive integer, got {value!r}.")
  inner = optax.with_extra_args_support(inner)
  every = -(-num_steps // points)
  rows = -(-num_steps // every)

  def init(params: optax.Params) -> ProbeState:
    tensors = len(jax.tree.leaves(params))
    wide = lambda p: jnp.zeros_like(p, dtype=jnp.promote_types(
        p.dtype, jnp.float32))
    count, records = sharding.whole(lambda: (
        (jnp.zeros([], jnp.int32), jnp.asarray(every, jnp.int32)),
        {name: jnp.full((rows, tensors), jnp.nan, jnp.float32)
         for name in MEASURES}), params)
    return ProbeState(
        count[0], inner.init(params), jax.tree.map(wide, params),
        jax.tree.map(wide, params), records, count[1])

  def update(grads: optax.Updates, state: ProbeState,
             params: optax.Params | None = None, **extra_args: Any
             ) -> tuple[optax.Updates, ProbeState]:
    if params is None:
      raise ValueError("probe reads the parameters: call "
                       "update(grads, state, params).")
    updates, inner_state = inner.update(
        grads, state.inner, params, **extra_args)
    momentum = optax.tree.update_moment(grads, state.momentum, B1, 1)
    squares = optax.tree.update_moment_per_elem_norm(
        grads, state.squares, B2, 2)
    steps = optax.safe_increment(state.steps)

    def measured() -> dict[str, jax.Array]:
      leaves = [jax.tree.leaves(x) for x in (
          updates, params, momentum, squares)]
      return _stacked([_measure(u, p, m, v, steps.astype(jnp.float32))
                       for u, p, m, v in zip(*leaves)])

    # Points beyond the planned steps are dropped.
    records = jax.lax.cond(
        state.steps % every == 0,
        lambda: jax.tree.map(
            lambda kept, new: kept.at[state.steps // every].set(
                new, mode="drop"), state.records, measured()),
        lambda: state.records)
    return updates, ProbeState(
        steps, inner_state, momentum, squares, records, state.every)

  return optax.GradientTransformationExtraArgs(init, update)


def _stacked(rows: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
  """Return {measure: [tensors]}."""
  return {name: jnp.stack([row[name] for row in rows]) if rows else
          jnp.zeros(0) for name in MEASURES}


def _measure(update: jax.Array, param: jax.Array, momentum: jax.Array,
             squares: jax.Array, steps: jax.Array) -> dict[str, jax.Array]:
  """Return the measures of one tensor, float32 scalars."""
  u, p, m, v = (x.astype(jnp.float32).reshape(-1, x.shape[-1] if x.ndim else 1)
                for x in (update, param, momentum, squares))
  m, v = m / (1 - B1**steps), v / (1 - B2**steps)
  root = jnp.sqrt(v)
  muon = jnp.float32(np.nan)
  if update.ndim > 1 and update.size:
    muon = _cosine(-u, orthogonal.polar(m, 5, "polar_express"))
  return {"step": _ratio(_norm(u), _norm(p)),
          "rms": _norm(u) / max(u.size, 1)**0.5,
          "agreement": _ratio(_norm(m), _norm(root)),
          "adam": _cosine(-u, m / (root + EPS)), "muon": muon}


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x)))


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
  """Return x / y, NaN if y is 0."""
  return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), jnp.nan)


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  return _ratio(jnp.sum(x * y), _norm(x) * _norm(y))


def recorded(state: optax.OptState) -> tuple[
    list[str], np.ndarray, dict[str, np.ndarray]]:
  """Return the records in the state of an optimizer with one `probe`.

  Args:
    state: a state that is not batched, with one `ProbeState` at any depth.

  Returns:
    (paths of the tensors, steps [n], {measure: [n, tensors]}), for the n points
    that were reached.

  Raises:
    ValueError: there is no `ProbeState`, or more than one, or no step was
      taken, or the state is batched.
  """
  found = [x for x in jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, ProbeState))
           if isinstance(x, ProbeState)]
  if len(found) != 1:
    raise ValueError(f"The state has {len(found)} probes; explain needs the "
                     "state of one mulo.probe.")
  probed = jax.device_get(found[0])
  if probed.steps.ndim:
    raise ValueError("The state is batched, for example by vmap: take one "
                     "entry by jax.tree.map(lambda x: x[0], state).")
  rows = len(probed.records["step"])
  reached = min(rows, -(-int(probed.steps) // int(probed.every)))
  if not reached:
    raise ValueError("The probe has seen no step yet.")
  names = [base.path_of(path) for path, _ in
           jax.tree_util.tree_leaves_with_path(probed.momentum)]
  return names, np.arange(reached) * int(probed.every), {
      name: np.asarray(x[:reached]) for name, x in probed.records.items()}
