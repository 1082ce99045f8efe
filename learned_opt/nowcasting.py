"""Nowcasting: predict where parameters will be, and jump there.

Five snapshots of the parameters are taken at equal distances. A prediction of
a tensor uses its five snapshots alone:

1. z = (w - mean) / (std + 1e-6), over all entries of the five snapshots; std
   has the divisor n - 1.
2. Of each entry, an MLP receives its five numbers z and the type of the
   parameter, and returns y [horizons]:
     h = z A + a + E[type], then h = silu(h B + b) three times, y = h C + c
3. The prediction k snapshot distances after the last snapshot is
     (z_5 + y_k) std + mean.

Without weights, the prediction is a straight line: the last snapshot plus k
times the slope of the least-squares line through the five.

Reference:
  Knyazev et al., 2024, https://arxiv.org/abs/2409.04434 (WNN+).
"""

import fnmatch
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt.update import blocks
from learned_opt.update import per_parameter

SNAPSHOTS = 5
LAYERS = 5
# Types of parameters, as the published weights know them.
TYPES = {"matrix": 1, "vector": 2, "conv": 3, "norm": 4, "embedding": 5,
         "position": 6, "query": 7, "key": 8, "value": 9}
NUM_TYPES = 15  # columns of E
LINE_REACH = 5  # largest k of straight lines: a line leaves the curve soon
FLOOR = 1e-6  # of std


class NowcastState(NamedTuple):
  """State of `nowcast`.

  Attributes:
    step: number of calls of `update`, int32 scalar.
    inner: state of the transformation inside.
    snapshots: five trees like the parameters, the oldest first.
  """

  step: jax.Array
  inner: Any
  snapshots: tuple[Any, ...]


def init(key: jax.Array, hidden: int, horizons: int) -> dict[str, jax.Array]:
  """Return random weights of the MLP, float32.

  Args:
    key: random key.
    hidden: width of all layers.
    horizons: largest k of a prediction.
  """
  sizes = (SNAPSHOTS, *[hidden] * (LAYERS - 1), horizons)
  keys = jax.random.split(key, LAYERS + 1)
  theta = {"types": 0.02 * jax.random.normal(
      keys[-1], (hidden, NUM_TYPES), jnp.float32)}
  for i, shape in enumerate(zip(sizes, sizes[1:])):
    theta[f"w{i}"] = 0.02 * jax.random.normal(keys[i], shape, jnp.float32)
    theta[f"b{i}"] = jnp.zeros(shape[1:], jnp.float32)
  return theta


def scale(snapshots: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Return (mean, standard deviation) over all numbers [5, *S]; scalars."""
  mean = jnp.mean(snapshots)
  squares = jnp.sum(jnp.square(snapshots - mean))
  # As an int, the number may not fit into int32.
  return mean, jnp.sqrt(squares / float(snapshots.size - 1))


def scaled(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
  """Return x in the units that the MLP works in."""
  return (x - mean) / (std + FLOOR)


def apply(theta: Mapping[str, jax.Array], z: jax.Array, kind: Any,
          horizon: jax.Array | None = None) -> jax.Array:
  """Return y_k of the MLP [horizons, *S], or of one horizon [*S].

  Args:
    theta: see `init`.
    z: scaled snapshots [5, *S].
    kind: number of the type, see TYPES.
    horizon: k, from 1; None for all.
  """
  wide = lambda b: b.reshape(b.shape + (1,) * (z.ndim - 1))
  h = jnp.tensordot(theta["w0"].T, z, 1) + wide(
      theta["b0"] + theta["types"][:, kind])
  for i in range(1, LAYERS - 1):
    h = jax.nn.silu(
        jnp.tensordot(theta[f"w{i}"].T, h, 1) + wide(theta[f"b{i}"]))
  weights, biases = theta[f"w{LAYERS - 1}"], theta[f"b{LAYERS - 1}"]
  if horizon is None:
    return jnp.tensordot(weights.T, h, 1) + wide(biases)
  column = jax.lax.dynamic_index_in_dim(weights, horizon - 1, 1, False)
  return jnp.tensordot(column, h, 1) + jax.lax.dynamic_index_in_dim(
      biases, horizon - 1, 0, False)


def predict(theta: Any, snapshots: Any, kind: int, horizon: jax.Array
            ) -> jax.Array:
  """Return the prediction for one parameter [*S], float32.

  Args:
    theta: see `init`; None for a straight line.
    snapshots: five arrays [*S], the oldest first.
    kind: number of the type, see TYPES.
    horizon: k, from 1.
  """
  shape = snapshots[0].shape
  x = jnp.stack([x.astype(jnp.float32).reshape(shape or (1,))
                 for x in snapshots])
  if theta is None:
    reach = jnp.minimum(horizon, LINE_REACH).astype(jnp.float32)
    slope = (2 * (x[4] - x[0]) + x[3] - x[1]) / 10
    return (x[-1] + reach * slope).reshape(shape)
  mean, std = scale(x)

  def one(x):
    z = scaled(x, mean, std)
    return (z[-1] + apply(theta, z, kind, horizon)) * std + mean

  return blocks.elementwise(
      one, x, x.shape[1:], blocks.default_size()).reshape(shape)


def reach(index: jax.Array, jumps: Any, horizons: int, power: float
          ) -> jax.Array:
  """Return k of a jump, which falls from `horizons` to 1; int32.

  Args:
    index: of the jump, from 0.
    jumps: number of jumps in a run, at least 1.
    horizons: largest k.
    power: 1 for a straight fall; larger, for a faster one at first.
  """
  first = horizons**(1 / power)
  done = jnp.clip(index / jnp.maximum(jumps - 1, 1), 0, 1)
  return jnp.round((first + done * (1 - first))**power).astype(jnp.int32)


def kinds_of(params: Any, types: Mapping[str, str]) -> list[int]:
  """Return the type of each parameter, see TYPES.

  Args:
    params: tree of arrays.
    types: {path, with * for any text: name of the type}. Others are vectors,
      matrices or, with three axes or more, convolutions.

  Raises:
    ValueError: an unknown name, or a path that no parameter has.
  """
  unknown = sorted(set(types.values()) - set(TYPES))
  if unknown:
    raise ValueError(
        f"Unknown types {unknown}; available: {', '.join(TYPES)}.")
  found: list[int] = []
  used: set[str] = set()
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for path, x in leaves:
    name = ("vector", "vector", "matrix", "conv")[min(x.ndim, 3)]
    for pattern, kind in types.items():
      if fnmatch.fnmatchcase(base.path_of(path), pattern):
        name = kind
        used.add(pattern)
    found.append(TYPES[name])
  if used != set(types):
    raise ValueError(
        f"No parameter is at {sorted(set(types) - used)}; there are "
        f"{[base.path_of(path) for path, _ in leaves]}.")
  return found


def nowcast(tx: optax.GradientTransformation, theta: Any = None, *, every: int,
            num_steps: Any, power: float = 2.0, dtype: str | None = None,
            types: Mapping[str, str] | None = None, horizons: int | None = None
            ) -> optax.GradientTransformationExtraArgs:
  """Return a transformation with nowcasting; see `mulo.nowcast`.

  Args:
    tx: takes all steps but the jumps.
    theta: see `init`; None for straight lines.
    every: calls of `update` from one jump to the next.
    num_steps: planned number of calls; a traced number passes.
    power: see `reach`.
    dtype: of snapshots; None for that of the parameters.
    types: see `kinds_of`.
    horizons: largest k; None for all that theta has.

  Raises:
    ValueError: a setting makes no sense.
  """
  base.check_sizes(every=every)
  base.check_positive(power=power)
  if every % SNAPSHOTS:
    raise ValueError(f"every must be a multiple of {SNAPSHOTS}, the number of "
                     f"snapshots, got {every}.")
  if dtype not in (None, "float32", "bfloat16"):
    raise ValueError(f"Unknown dtype {dtype!r} of snapshots; available: None "
                     "(that of the parameters), float32, bfloat16.")
  most = LINE_REACH if theta is None else theta["b4"].shape[0]
  if horizons is not None:
    base.check_sizes(horizons=horizons)
    if horizons > most:
      raise ValueError(f"horizons must be at most {most}, got {horizons}.")
  jumps = jnp.maximum(num_steps // every, 1)
  theta = jax.tree.map(jnp.asarray, theta)
  tx = optax.with_extra_args_support(tx)
  kept = lambda params: params if dtype is None else jax.tree.map(
      lambda p: p.astype(dtype), params)

  def init_fn(params: optax.Params) -> NowcastState:
    per_parameter.check_arrays(params)
    kinds_of(params, types or {})  # for its errors
    return NowcastState(
        jnp.zeros([], jnp.int32), tx.init(params),
        tuple(jax.tree.map(jnp.zeros_like, kept(params))
              for _ in range(SNAPSHOTS)))

  def update(updates: optax.Updates, state: NowcastState,
             params: optax.Params | None = None, **extra_args: Any
             ) -> tuple[optax.Updates, NowcastState]:
    if params is None:
      raise ValueError("Nowcasting reads the parameters: call "
                       "update(grads, state, params).")
    params = jax.tree.map(lambda _, p: p, updates, params)
    count = optax.safe_increment(state.step)
    snapshots = jax.lax.cond(
        count % (every // SNAPSHOTS) == 0,
        lambda: (*state.snapshots[1:], kept(params)), lambda: state.snapshots)
    step = lambda: tx.update(updates, state.inner, params, **extra_args)

    def jump() -> tuple[optax.Updates, Any]:
      horizon = reach(count // every - 1, jumps, horizons or most, power)
      leaves, treedef = jax.tree.flatten(params)
      columns = zip(*map(jax.tree.leaves, snapshots))
      like = jax.tree.leaves(jax.eval_shape(step)[0])
      moves = [
          (predict(theta, x, kind, horizon) - p).astype(y.dtype)
          if p.size else jnp.zeros(p.shape, y.dtype) for x, kind, p, y in zip(
              columns, kinds_of(params, types or {}), leaves, like)]
      return jax.tree.unflatten(treedef, moves), state.inner

    moves, inner = jax.lax.cond(count % every == 0, jump, step)
    return moves, NowcastState(count, inner, snapshots)

  return optax.GradientTransformationExtraArgs(init_fn, update)
