"""Links of optax chains that work around any optimizer, learned or not.

    tx = mulo.links.hyperball(mulo.load("mulo-s", base_shapes=base))

`hyperball` keeps matrices at their initial norm, `normalize_rows` gives their
outputs updates of more equal size, and `average_params` averages parameters
over steps. A matrix is a parameter with at least two axes besides those of its
stack. Its outputs are its last axis, its inputs all other axes. The layers of a
stack are matrices of their own.

With `base_shapes`, roles, stacks and output axes follow from shapes, see
`mulo.scaling.infer`; declare the axes that `mulo.scaling.describe` says shapes
do not tell. The base shapes may be those of the network itself if only stacks
matter (`deeper_shapes`).
"""

from typing import Any, Callable, Collection, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt import kinds as kinds_lib
from learned_opt.scaling import multipliers
from learned_opt.scaling import roles as roles_lib
from learned_opt.update import per_parameter
from learned_opt.update import sharding
from mulo import _rates as rates

__all__ = ["average_params", "averaged", "hyperball", "normalize_rows"]
_NEEDS_PARAMS = "{} reads the parameters: call update(grads, state, params)."
_check_arrays: Callable[[Any], None] = per_parameter.check_arrays


def __dir__() -> list[str]:
  return sorted(__all__)


class HyperballState(NamedTuple):
  """State of `hyperball`: steps taken, inner state, and initial norms.

  The norm of a matrix has axes of size 1 in place of inputs and outputs. Other
  parameters have a scalar 0.
  """

  steps: jax.Array
  inner: optax.OptState
  norms: Any


class RowsState(NamedTuple):
  """State of `normalize_rows`: mean squared update of each output.

  Axes of inputs have size 1. Parameters that are no matrices have a scalar 0.
  """

  squares: Any


class AverageState(NamedTuple):
  """State of `average_params`: sum of weights, and average (float32 or wider).
  """

  weight: jax.Array
  average: Any


class _Matrix(NamedTuple):
  """Axes of a matrix, counted from the front."""

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]

  def norm(self, x: jax.Array) -> jax.Array:
    """Return the Frobenius norm, with axes of size 1."""
    squares = jnp.sum(jnp.square(x), self.inputs + self.outputs, keepdims=True)
    # The inner where keeps the derivative at zero finite.
    return jnp.where(squares > 0, jnp.sqrt(
        jnp.where(squares > 0, squares, 1)), 0)


def hyperball(inner: optax.GradientTransformation, *,
              relative_step: float | optax.Schedule | None = None,
              roles: Collection[str] | None = None, base_shapes: Any = None,
              **inference: Any) -> optax.GradientTransformationExtraArgs:
  """Keep each matrix at its initial Frobenius norm, around any optimizer.

  With u the update of the inner optimizer and W_0 the matrix at `init`, a step
  is

      u <- relative_step * ||W_0|| * u / ||u||     (if relative_step is given)
      W <- ||W_0|| * (W + u) / ||W + u||

  Weight decay and the size of a matrix then do nothing: steps turn it.
  Matrices that start at zero, as readouts under muP, have no such ball; they
  and all parameters with fewer axes take the update of the inner optimizer. An
  update of zero stays zero.

  Args:
    inner: complete optimizer, whose updates are added to the parameters.
    relative_step: size of a step relative to that of the matrix; number or
      schedule. None: the update of the inner optimizer keeps its size.
    roles: keep only matrices of these roles, such as ("hidden",), see
      `mulo.scaling.Override`; needs base_shapes. None: all matrices.
    base_shapes: see `mulo.scaling.infer`.
    **inference: further arguments of `mulo.scaling.infer`.

  Raises:
    ValueError: a rate is neither finite nor a schedule, or roles without
      base_shapes; `init`: see `mulo.scaling.infer`; `update` without `params`.

  Reference:
    Hyperball optimization, 2026, https://arxiv.org/abs/2606.16899.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> import optax
    >>> tx = mulo.links.hyperball(optax.sgd(1.0), relative_step=1.0)
    >>> params = {"w": jnp.array([[3.0, 4.0]])}
    >>> grads = {"w": jnp.array([[1.0, -3.0]])}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> w = optax.apply_updates(params, updates)["w"]
    >>> round(float(jnp.linalg.norm(w)), 4)
    5.0
  """
  inner = optax.with_extra_args_support(inner)
  inference = rates.keywords("inference", inference)
  if relative_step is not None:
    rates.check("relative_step", relative_step)
  matrices = _matrices(roles, base_shapes, inference)

  def init(params: optax.Params) -> HyperballState:
    _check_arrays(params)
    norms = _map(lambda p, m: m.norm(_float(p)), params, matrices(params))
    return HyperballState(
        jnp.zeros([], jnp.int32), inner.init(params), norms)

  def update(updates: optax.Updates, state: HyperballState,
             params: optax.Params | None = None, **extra_args: Any
             ) -> tuple[optax.Updates, HyperballState]:
    if params is None:
      raise ValueError(_NEEDS_PARAMS.format("hyperball"))
    updates, inner_state = inner.update(
        updates, state.inner, params, **extra_args)
    step = relative_step(state.steps) if callable(
        relative_step) else relative_step

    kept = [_on_ball(step, *x) for x in _zip(
        updates, matrices(updates), params, state.norms)]
    return _like(updates, kept), HyperballState(
        optax.safe_increment(state.steps), inner_state, state.norms)

  return optax.GradientTransformationExtraArgs(init, update)


def _on_ball(step: Any, u: jax.Array, matrix: _Matrix | None, p: jax.Array,
             norm: jax.Array) -> jax.Array:
  """Return the update of one parameter; step: the relative step, or None."""
  if matrix is None:
    return u
  move, start = _float(u), _float(p)
  size = matrix.norm(move)
  if step is not None:
    move = move * (step * norm / jnp.where(size > 0, size, 1))
  end = start + move
  end_norm = matrix.norm(end)
  moves = (norm > 0) & (size > 0) & (end_norm > 0)
  end = end * (norm / jnp.where(end_norm > 0, end_norm, 1))
  return jnp.where(moves, end - start, _float(u)).astype(u.dtype)


def normalize_rows(decay: float = 0.95, *, eps: float = 1e-8,
                   roles: Collection[str] | None = None,
                   base_shapes: Any = None, **inference: Any
                   ) -> optax.GradientTransformationExtraArgs:
  """Divide the update of each output of a matrix by its own running RMS.

  NorMuon does this after orthogonalization. With u the update of a matrix,

      v_j <- decay * v_j + (1 - decay) * mean over inputs i of u_ij^2
      w_ij = u_ij / sqrt(v_j + eps * mean of v)
      u <- ||u|| * w / ||w||

  The norm of the update stays, so the link may stand before or after the
  learning rate, and after any optimizer. It is exactly invariant to the size of
  all updates together. Other parameters pass unchanged.

  Args:
    decay: number from 0 to below 1.
    eps: relative to the mean over outputs.
    roles: see `hyperball`.
    base_shapes: see `mulo.scaling.infer`.
    **inference: further arguments of `mulo.scaling.infer`.

  Raises:
    ValueError: a decay or eps out of range, or roles without base_shapes.

  Reference:
    Li et al., NorMuon, 2025, https://arxiv.org/abs/2510.05491.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> tx = mulo.links.normalize_rows()
    >>> u = {"w": jnp.array([[1.0, 7.0]])}
    >>> updates, _ = tx.update(u, tx.init(u))
    >>> [round(float(x), 3) for x in updates["w"][0]]
    [5.0, 5.0]
  """
  inference = rates.keywords("inference", inference)
  _check_fraction("decay", decay)
  _check_fraction("eps", eps)
  matrices = _matrices(roles, base_shapes, inference)

  def init(params: optax.Params) -> RowsState:
    _check_arrays(params)
    return RowsState(_map(
        lambda p, m: jnp.sum(jnp.zeros_like(_float(p)), m.inputs,
                             keepdims=True), params, matrices(params)))

  def update(updates: optax.Updates, state: RowsState,
             params: optax.Params | None = None, **extra_args: Any
             ) -> tuple[optax.Updates, RowsState]:
    del params, extra_args

    def by_rows(u: jax.Array, matrix: _Matrix | None, squares: jax.Array
                ) -> tuple[jax.Array, jax.Array]:
      if matrix is None:
        return u, squares
      x = _float(u)
      squares = decay * squares + (1 - decay) * jnp.mean(
          jnp.square(x), matrix.inputs, keepdims=True)
      floor = squares + eps * jnp.mean(squares, matrix.outputs, keepdims=True)
      equal = x / jnp.sqrt(jnp.where(floor > 0, floor, 1))
      norm = matrix.norm(equal)
      equal = equal * (matrix.norm(x) / jnp.where(norm > 0, norm, 1))
      return equal.astype(u.dtype), squares

    pairs = [by_rows(*x) for x in _zip(
        updates, matrices(updates), state.squares)]
    return (_like(updates, [u for u, _ in pairs]),
            RowsState(_like(state.squares, [v for _, v in pairs])))

  return optax.GradientTransformationExtraArgs(init, update)


def average_params(decay: float) -> optax.GradientTransformationExtraArgs:
  """Average the parameters over steps; `averaged` returns the average.

  The last link of a chain; updates stay unchanged. After step t, the parameters
  after step s have weight decay^(t - s), the initial ones have none:

      weight <- decay * weight + 1
      average <- average + (params + updates - average) / weight

  Args:
    decay: number from 0 to 1; 1 is the mean of all steps.

  Raises:
    ValueError: a decay out of range; `update` without `params`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> import optax
    >>> tx = optax.chain(optax.sgd(1.0), mulo.links.average_params(1.0))
    >>> params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    >>> for _ in range(3):
    ...   updates, state = tx.update(jnp.ones(()), state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> float(params), float(mulo.links.averaged(state))
    (-3.0, -2.0)
  """
  _check_fraction("decay", decay)

  def init(params: optax.Params) -> AverageState:
    # A copy: both the state and the parameters can be donated.
    return AverageState(jnp.zeros([], jnp.float32), jax.tree.map(
        lambda p: jnp.array(_float(p), copy=True), params))

  def update(updates: optax.Updates, state: AverageState,
             params: optax.Params | None = None, **extra_args: Any
             ) -> tuple[optax.Updates, AverageState]:
    del extra_args
    if params is None:
      raise ValueError(_NEEDS_PARAMS.format("average_params"))
    weight = decay * state.weight + 1
    average = jax.tree.map(
        lambda a, p, u: a + (p.astype(a.dtype) + u - a) / weight.astype(
            a.dtype), state.average, params, updates)
    return updates, AverageState(weight, average)

  return optax.GradientTransformationExtraArgs(init, update)


def averaged(state: optax.OptState) -> Any:
  """Return the average of `average_params`, from the state of any chain.

  Raises:
    ValueError: the state has no `AverageState`, or more than one.
  """
  found = [x for x in jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, AverageState))
           if isinstance(x, AverageState)]
  if len(found) != 1:
    raise ValueError(f"The state has {len(found)} averages; averaged needs the "
                     "state of a chain with one mulo.links.average_params.")
  return found[0].average


def _check_fraction(name: str, value: Any) -> None:
  """Raise ValueError unless a number is from 0 to 1; traced numbers pass."""
  rates.check(name, value)
  if callable(value):
    raise ValueError(f"{name} must be a number, got {value!r}.")
  if not isinstance(value, jax.core.Tracer) and not 0 <= value <= 1:
    raise ValueError(f"{name} must be from 0 to 1, got {value}.")


def _float(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _zip(updates: Any, matrices: list[_Matrix | None], *trees: Any) -> Any:
  """Return (update, matrix, leaf of each tree) of each parameter.

  Raises:
    ValueError: trees of other parameters.
  """
  names = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
  for tree in trees:
    others = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if list(map(base.path_of, others)) != list(map(base.path_of, names)):
      raise ValueError(
          "The state, or params, was made for other parameters than the "
          "updates: call init(params) with the parameters that are trained.")
  return zip(jax.tree.leaves(updates), matrices, *map(jax.tree.leaves, trees))


def _like(tree: Any, leaves: list[Any]) -> Any:
  """Return a tree of the same structure with these leaves."""
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _map(fn: Callable[[Any, _Matrix], Any], tree: Any,
         matrices: list[_Matrix | None]) -> Any:
  """Return `fn(leaf, matrix)` for each leaf, a scalar 0 for no matrix."""
  axes = iter(matrices)

  def make(x: Any) -> Any:
    matrix = next(axes)
    return jnp.zeros([], jnp.float32) if matrix is None else fn(x, matrix)

  return sharding.tree_map(make, tree)


def _matrices(roles: Collection[str] | None, base_shapes: Any,
              inference: dict[str, Any]
              ) -> Callable[[Any], list[_Matrix | None]]:
  """Return a function of a tree: the axes of each leaf, None for no matrix."""
  if base_shapes is None and (roles is not None or inference):
    raise ValueError(
        f"{', '.join(inference) or 'roles'} need base_shapes, the parameter "
        "shapes of the same network at another width.")
  if isinstance(roles, str):
    raise ValueError(f"roles must be a collection, such as ({roles!r},).")

  def matrix_of(x: Any, kind: kinds_lib.Kind) -> _Matrix | None:
    axes = [i for i in range(x.ndim) if i not in kind.stack]
    if len(axes) < 2 or not x.size or (
        roles is not None and kind.role not in roles):
      return None
    outputs = tuple(kind.outputs or axes[-1:])
    return _Matrix(tuple(i for i in axes if i not in outputs), outputs)

  def matrices(tree: Any) -> list[_Matrix | None]:
    kinds = _kinds(tree, base_shapes, inference)
    return [matrix_of(x, kind) for x, kind in zip(
        jax.tree.leaves(tree), kinds_lib.of(tree, kinds))]

  return matrices


def _kinds(tree: Any, base_shapes: Any, inference: dict[str, Any]
           ) -> kinds_lib.Kinds | None:
  """Return what shapes tell about the parameters of a tree."""
  if base_shapes is None:
    return None
  shapes, bases = roles_lib.by_path(tree), roles_lib.by_path(base_shapes)
  if inference.get("delta_shapes") is None and all(
      bases.get(path) == shape for path, shape in shapes.items()):
    # A network beside itself: shapes tell stacks alone.
    stacks = roles_lib.stacks(base_shapes, **{
        name: x for name, x in inference.items()
        if name in ("deeper_shapes", "overrides")})
    return lambda tree: {
        path: kinds_lib.Kind(axes) for path, axes in stacks.items()}
  return multipliers.kinds(base_shapes, **inference)
