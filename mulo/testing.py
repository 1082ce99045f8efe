"""The optax contract: what a transformation must do to fit anyone's loop.

With pytest, one line tests an optimizer:

  @pytest.mark.parametrize("check", testing.CHECKS, ids=lambda c: c.__name__)
  def test_contract(check):
    check(my_optimizer)

A factory is a function that returns an `optax.GradientTransformation`; it is
called without arguments, and with learning_rate, weight_decay or base_shapes
(see `mulo.load`) if it has parameters of these names. Updates must be
proportional to the learning rate. One that returns the same object whenever it
is called without arguments lets the checks share compiled programs.

Each check raises AssertionError that says what is wrong, and
`unittest.SkipTest` (which pytest reports as skipped) where it cannot be made:
the factory does not take what it is about, a package is missing, or there are
fewer than 8 devices; `jax.config.update("jax_num_cpu_devices", 8)` makes them.
"""

import functools
import importlib
import inspect
import pathlib
import tempfile
from typing import Any, Callable
import unittest
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

Factory = Callable[..., optax.GradientTransformation]
Check = Callable[[Factory], None]
VALUE = np.float32(0.7)  # the loss, for optimizers that want it
TOLERANCE = 1e-3  # of updates, relative to the largest: programs may differ
SHAPES = {"a": {"w": (3, 4), "b": (4,)}, "c": {"w": (3, 4)}}


def _check(fn: Check) -> Check:
  """Turns whatever a check raises into an AssertionError."""
  @functools.wraps(fn)
  def check(factory):
    try:
      fn(factory)
    except (AssertionError, unittest.SkipTest):
      raise
    except Exception as e:
      raise AssertionError(f"{type(e).__name__}: {e}") from e

  return check


def _require(condition, message: str) -> None:
  if not condition:
    raise AssertionError(message)


def _package(name: str):
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise unittest.SkipTest(f"needs the package {name}") from e


def _takes(factory: Factory, name: str) -> bool:
  return name in inspect.signature(factory).parameters


def _settings(factory: Factory, params, **settings) -> dict:
  """The settings, and the shapes at another width if the factory takes them."""
  if _takes(factory, "base_shapes"):
    wider = lambda shape: shape[:-1] + (shape[-1] + 1,) if shape else shape
    settings["base_shapes"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(wider(x.shape), x.dtype), params)
  return settings


def _make(factory: Factory, params, **settings):
  return optax.with_extra_args_support(
      factory(**_settings(factory, params, **settings)))


def _tree(seed: int, shapes: Any = None, dtype: Any = np.float32):
  """Normal arrays of the given shapes (default: SHAPES)."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
      SHAPES if shapes is None else shapes,
      is_leaf=lambda x: isinstance(x, tuple))


def _compiled(tx):
  """The same, its update compiled whatever is around it."""
  return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


def _updates(tx, params, grads: list) -> list:
  """Updates for each of the gradients in turn, at the same parameters."""
  state, found = tx.init(params), []
  update = jax.jit(tx.update)
  for grad in grads:
    updates, state = update(grad, state, params, value=VALUE)
    found.append(updates)
  return found


def _same(found, expected, what: str) -> None:
  """Raises unless trees agree up to rounding."""
  _require(jax.tree.structure(found) == jax.tree.structure(expected),
           f"{what}: the tree is {jax.tree.structure(found)}, it must be "
           f"{jax.tree.structure(expected)}")
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found),
                          jax.tree.leaves(expected)):
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    name = jax.tree_util.keystr(path)
    _require(x.shape == y.shape,
             f"{what}: {name} has shape {x.shape}, it must be {y.shape}")
    _require(np.allclose(x, y, rtol=0, atol=TOLERANCE * np.max(
        np.abs(y), initial=1e-30)), f"{what}: {name} is {x}, it must be {y}")


def _types(tree) -> dict[str, tuple]:
  return {jax.tree_util.keystr(path): (x.shape, jnp.dtype(x.dtype))
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _same_types(found, expected, what: str) -> None:
  found, expected = _types(found), _types(expected)
  for name in sorted({*found, *expected}):
    _require(found.get(name) == expected.get(name),
             f"{what}: {name} is {found.get(name)}, it must be "
             f"{expected.get(name)} (shape, dtype)")


def _scaled(tree, factor):
  return jax.tree.map(lambda x: factor * x, tree)


@_check
def chain(factory):
  """`optax.chain` with links before and after, compiled as one."""
  params = _tree(0)
  tx = _make(factory, params)
  grads = [_tree(1), _tree(2)]
  found = _updates(optax.chain(optax.scale(2.0), tx, optax.scale(-0.5)),
                   params, grads)
  expected = _updates(tx, params, [_scaled(g, 2.0) for g in grads])
  _same(found, _scaled(expected, -0.5), "the second link of a chain")


@_check
def extra_args(factory):
  """`value=` and unknown extra arguments are used or ignored."""
  params = _tree(0)
  tx = _make(factory, params)
  update = functools.partial(tx.update, params, tx.init(params), params)
  jax.eval_shape(functools.partial(update, value=VALUE, unknown=np.ones(3)))
  try:
    jax.eval_shape(update)
  except ValueError as e:
    _require("value" in str(e), f"without value=, the error does not say that "
             f"it is missing: {e}")


@_check
def masked(factory):
  """`optax.masked`: a part of the tree, a part of a part, and nothing."""
  params, grads = _tree(0), _tree(1)
  tx = _compiled(_make(factory, params))
  first = lambda tree: {"a": jax.tree.map(lambda _: True, tree["a"]),
                        "c": jax.tree.map(lambda _: False, tree["c"])}
  matrices = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
  nothing = lambda tree: jax.tree.map(lambda _: False, tree)

  def updates(tx):
    return tx.update(grads, tx.init(params), params, value=VALUE)[0]

  part = {"a": params["a"]}
  alone = tx.update({"a": grads["a"]}, tx.init(part), part, value=VALUE)[0]
  _same(updates(optax.masked(tx, first)), {**alone, "c": grads["c"]}, "partial")
  nested = updates(optax.masked(optax.masked(tx, matrices), first))
  _same([nested["a"]["b"], nested["c"]], [grads["a"]["b"], grads["c"]],
        "nested, what is left out")
  _require(not np.allclose(nested["a"]["w"], grads["a"]["w"]),
           "nested: a parameter was left out that should not be")
  _same(updates(optax.masked(tx, nothing)), grads, "empty")


@_check
def multi_transform(factory):
  """`optax.partition`, with a group that has no parameters, too."""
  params, grads = _tree(0), _tree(1)
  tx = _compiled(_make(factory, params))
  whole = optax.partition(
      {"ours": tx, "other": optax.sgd(0.5), "empty": tx},
      {"a": {"w": "ours", "b": "ours"}, "c": {"w": "other"}})
  found, _ = whole.update(grads, whole.init(params), params, value=VALUE)
  part = {"a": params["a"]}
  alone = tx.update({"a": grads["a"]}, tx.init(part), part, value=VALUE)[0]
  _same(found, {**alone, "c": _scaled(grads["c"], -0.5)}, "groups")


@_check
def empty_leaves(factory):
  """Parameters without elements, None, and a tree without parameters."""
  params = {"w": _tree(0)["c"]["w"], "empty": jnp.ones((0, 3)), "none": None}
  tx = _make(factory, params)
  [updates] = _updates(tx, params, [params])
  _same_types(updates, params, "updates")
  _require(np.all(np.isfinite(updates["w"])), f"updates are {updates['w']}")
  tx = _make(factory, {})
  _updates(tx, {}, [{}])


@_check
def scalars(factory):
  """Parameters without axes."""
  params = {"gain": jnp.float32(2.0)}
  tx = _make(factory, params)
  [updates] = _updates(tx, params, [params])
  _same_types(updates, params, "updates")
  _require(np.isfinite(updates["gain"]), f"the update is {updates['gain']}")


@_check
def inject_hyperparams(factory):
  """`optax.inject_hyperparams` on learning_rate and weight_decay."""
  if not _takes(factory, "learning_rate"):
    raise unittest.SkipTest("the factory takes no learning_rate")
  decays = _takes(factory, "weight_decay")
  params, grads = _tree(0), _tree(1)
  values = {"learning_rate": 0.5, **({"weight_decay": 0.25} if decays else {})}
  tx = optax.inject_hyperparams(factory)(
      **_settings(factory, params, **values))
  state, update = tx.init(params), jax.jit(tx.update)

  def updates(**changes):
    hyperparams = {**state.hyperparams, **{
        name: jnp.asarray(value, state.hyperparams[name].dtype)
        for name, value in changes.items()}}
    return update(grads, state._replace(hyperparams=hyperparams), params,
                  value=VALUE)[0]

  plain = updates()
  _same(updates(learning_rate=1.0), _scaled(plain, 2), "twice learning_rate")
  if decays:
    effect = lambda decay: jax.tree.map(
        jnp.subtract, updates(weight_decay=decay), updates(weight_decay=0.0))
    _same(effect(2.0)["c"], _scaled(effect(1.0)["c"], 2), "twice weight_decay")
    _require(np.max(np.abs(effect(1.0)["c"]["w"])) > 0,
             "weight_decay changes nothing")


@_check
def schedules(factory):
  """A schedule as learning_rate."""
  if not _takes(factory, "learning_rate"):
    raise unittest.SkipTest("the factory takes no learning_rate")
  params, grads = _tree(0), [_tree(1), _tree(2)]
  found = _updates(_make(factory, params, learning_rate=lambda t: 0.5**t),
                   params, grads)
  plain = _updates(_make(factory, params), params, grads)
  # The factory's own learning rate is not known.
  size = lambda tree: sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))**0.5
  rate = size(found[0]) / size(plain[0])
  _same(found, [_scaled(plain[0], rate), _scaled(plain[1], 0.5 * rate)],
        "learning rates of 1 and 1/2")


@_check
def multi_steps(factory):
  """`optax.MultiSteps`: an update after every second gradient."""
  params, grads = _tree(0), [_tree(1), _tree(2)]
  tx = _make(factory, params)
  found = _updates(optax.MultiSteps(tx, 2).gradient_transformation(), params,
                   grads)
  _same(found[0], _scaled(params, 0), "updates before the second gradient")
  mean = jax.tree.map(lambda x, y: (x + y) / 2, *grads)
  _same(found[1], _updates(tx, params, [mean])[0], "updates from the mean")


@_check
def apply_if_finite(factory):
  """`optax.apply_if_finite`: a gradient of NaN leaves no trace."""
  params, grads = _tree(0), _tree(1)
  tx = _make(factory, params)
  found = _updates(optax.apply_if_finite(tx, 5), params,
                   [_scaled(grads, np.nan), grads])
  _same(found[0], _scaled(params, 0), "updates from NaN")
  _same(found[1], _updates(tx, params, [grads])[0], "updates after NaN")


def _scan(factory, dtype):
  params, grads = _tree(0, dtype=dtype), _tree(1, dtype=dtype)
  tx = _make(factory, params)
  state = tx.init(params)
  step = lambda state: tx.update(grads, state, params, value=VALUE)
  updates, after = jax.eval_shape(step, state)
  _same_types(updates, params, "updates")
  _same_types(after, state, "the state after a step")

  def body(carry, _):
    params, state = carry
    updates, state = tx.update(grads, state, params, value=VALUE)
    return (optax.apply_updates(params, updates), state), None

  (params, after), _ = jax.lax.scan(body, (params, state), length=3)
  _same_types(after, state, "the state after three steps")
  _require(all(np.all(np.isfinite(np.asarray(x, np.float32)))
               for x in jax.tree.leaves(params)), "parameters are not finite")


@_check
def scan_float32(factory):
  """`jax.lax.scan` in float32; shapes and dtypes of the state stay."""
  _scan(factory, jnp.float32)


@_check
def scan_bfloat16(factory):
  """`jax.lax.scan` in bfloat16; shapes and dtypes of the state stay."""
  _scan(factory, jnp.bfloat16)


@_check
def jit(factory):
  """`jax.jit` with donation; the second call compiles nothing."""
  params, grads = _tree(0), _tree(1)
  tx = _make(factory, params)
  traces = []

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, grads):
    traces.append(None)
    updates, state = tx.update(grads, state, params, value=VALUE)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*donated buffers.*")
    for _ in range(2):
      params, state = step(params, state, grads)
  jax.block_until_ready(params)
  _require(len(traces) == 1, "the second call was compiled again: the types of "
           f"the state changed, now {jax.tree.map(jax.typeof, state)}")


@_check
def vmap(factory):
  """`jax.vmap` over replicas of a network."""
  replicas = [_tree(0), _tree(1)]
  tx = _make(factory, replicas[0])
  stack = jax.tree.map(lambda *x: jnp.stack(x), *replicas)
  together = jax.jit(jax.vmap(
      lambda params: tx.update(params, tx.init(params), params, value=VALUE)[0])
                     )(stack)
  for i, params in enumerate(replicas):
    _same(jax.tree.map(lambda x: x[i], together),
          _updates(tx, params, [params])[0], f"replica {i}")


@_check
def eval_shape(factory):
  """`jax.eval_shape` of init tells the state."""
  params = _tree(0)
  tx = _make(factory, params)
  found = jax.eval_shape(tx.init, jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
  _same_types(found, tx.init(params), "the state by eval_shape")


def _moves(tx, params) -> None:
  """Raises unless a step changes every array of a tree, and its types not."""
  tx = _compiled(tx)
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(grads, tx.init(params), params, value=VALUE)
  after = optax.apply_updates(params, updates)
  _require(jax.tree.structure(after) == jax.tree.structure(params),
           f"the tree became {jax.tree.structure(after)}")
  _same_types(after, params, "parameters after a step")
  for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(after)):
    _require(np.all(np.isfinite(new)) and not np.array_equal(old, new),
             f"a step from {old} led to {new}")


@_check
def flax_linen(factory):
  """Variables of a flax.linen module, also frozen."""
  flax, linen = _package("flax"), _package("flax.linen")
  params = linen.Dense(4).init(jax.random.key(0), jnp.ones((2, 3)))
  for tree in (params, flax.core.freeze(params)):
    _moves(_make(factory, tree), tree)


@_check
def flax_nnx(factory):
  """A flax.nnx module in `nnx.Optimizer`."""
  nnx = _package("flax.nnx")
  model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
  tx = _make(factory, nnx.state(model, nnx.Param))
  optimizer = nnx.Optimizer(model, _compiled(tx), wrt=nnx.Param)
  before = np.asarray(model.kernel[...])
  grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((2, 3)))**2))(model)
  optimizer.update(model, grads, value=VALUE)
  after = np.asarray(model.kernel[...])
  _require(np.all(np.isfinite(after)) and not np.array_equal(before, after),
           f"a step from {before} led to {after}")


@_check
def equinox(factory):
  """An equinox module, with None for what is no parameter."""
  eqx = _package("equinox")
  model = eqx.nn.Sequential([
      eqx.nn.Linear(3, 4, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu)])
  params = eqx.filter(model, eqx.is_inexact_array)
  _moves(_make(factory, params), params)


@_check
def haiku(factory):
  """Dicts as haiku has them, with slashes in their names."""
  params = {"mlp/~/linear_0": _tree(0)["a"]}
  _moves(_make(factory, params), params)


@_check
def params_none(factory):
  """Without params: works, or raises ValueError that says what to pass."""
  params = _tree(0)
  tx = _make(factory, params)
  try:
    jax.eval_shape(lambda state: tx.update(params, state, None, value=VALUE),
                   tx.init(params))
  except ValueError as e:
    _require("params" in str(e),
             f"the error without params does not say so: {e}")


def _split(factory, kind) -> None:
  """Two steps on a mesh of 4 x 2 devices; nothing is split otherwise after."""
  if len(jax.devices()) < 8:
    raise unittest.SkipTest("needs 8 devices")
  spec = jax.sharding.PartitionSpec
  mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"),
      axis_types=(kind, kind))
  shapes = {"w": (8, 20), "b": (16,), "kernel": (2, 4, 6)}
  specs = {"w": spec("x", "y"), "b": spec(("x", "y")),
           "kernel": spec(None, "x", "y")}
  explicit = kind == jax.sharding.AxisType.Explicit
  if explicit:  # of a shape that is split in another way, too
    shapes["w2"], specs["w2"] = (8, 20), spec("y", "x")
  whole = _tree(0, shapes), _tree(1, shapes)
  tx = _make(factory, whole[0])
  step = lambda grads, state, params: tx.update(
      grads, state, params, value=VALUE)

  def two(place):
    params, grads = map(place, whole)
    start = params, tx.init(params)
    state = start[1]
    for _ in range(2):
      updates, state = jax.jit(step)(grads, state, params)
      params = jax.jit(optax.apply_updates)(params, updates)
    return start, (params, state), updates

  expected = two(lambda tree: tree)[2]
  place = lambda tree: {
      name: jax.device_put(x, jax.sharding.NamedSharding(mesh, specs[name]))
      for name, x in tree.items()}
  if explicit:
    with jax.set_mesh(mesh):
      before, after, updates = two(place)
  else:
    before, after, updates = two(place)
  _same(jax.device_get(updates), jax.device_get(expected), "updates on a mesh")
  _follows(before[1], before[0], specs)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(before),
                          jax.tree.leaves(after)):
    _require(not x.ndim or x.sharding.is_equivalent_to(y.sharding, x.ndim),
             f"{jax.tree_util.keystr(path)} was split as {x.sharding}, after "
             f"two steps as {y.sharding}")


def _follows(state, params, specs) -> None:
  """Raises unless state with the axes of a parameter is split as it is."""
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    for name, p in params.items():
      own = x.ndim - p.ndim
      if name != "w2" and own >= 0 and x.shape[own:] == p.shape:
        wanted = jax.sharding.NamedSharding(
            p.sharding.mesh,
            jax.sharding.PartitionSpec(*[None] * own, *specs[name]))
        _require(
            x.sharding.is_equivalent_to(wanted, x.ndim) or "w2" in params and
            p.shape == params["w2"].shape and not x.is_fully_replicated,
            f"state{jax.tree_util.keystr(path)} of shape {x.shape} is split as "
            f"{x.sharding}, its parameter as {p.sharding}")


@_check
def sharding_automatic(factory):
  """State is split as parameters are, and stays; automatic mesh axes."""
  _split(factory, jax.sharding.AxisType.Auto)


@_check
def sharding_explicit(factory):
  """State is split as parameters are, and stays; explicit mesh axes."""
  _split(factory, jax.sharding.AxisType.Explicit)


@_check
def checkpoint(factory):
  """The state, saved by orbax, comes back with the same bits."""
  orbax = _package("orbax.checkpoint")
  params = _tree(0)
  tx = _make(factory, params)
  _, state = jax.jit(tx.update)(params, tx.init(params), params, value=VALUE)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder).resolve() / "state"
    with orbax.StandardCheckpointer() as checkpointer:
      checkpointer.save(path, state)
      checkpointer.wait_until_finished()
      found = checkpointer.restore(path, jax.eval_shape(tx.init, params))
  _same_types(found, state, "the state restored")
  for (name, x), y in zip(jax.tree_util.tree_leaves_with_path(found),
                          jax.tree.leaves(state)):
    _require(np.asarray(x).tobytes() == np.asarray(y).tobytes(),
             f"{jax.tree_util.keystr(name)} was {y}, came back as {x}")


CHECKS: tuple[Check, ...] = (
    chain, extra_args, masked, multi_transform, empty_leaves, scalars,
    inject_hyperparams, schedules, multi_steps, apply_if_finite, scan_float32,
    scan_bfloat16, jit, vmap, eval_shape, flax_linen, flax_nnx, equinox, haiku,
    params_none, sharding_automatic, sharding_explicit, checkpoint)


def run(factory: Factory) -> dict[str, str | None]:
  """Every check of one optimizer.

  Args:
    factory: see the module docstring.

  Returns:
    {name of the check: None if passed, else what is wrong, or "skipped: " and
    why}.
  """
  found: dict[str, str | None] = {}
  for check in CHECKS:
    try:
      check(factory)
      found[check.__name__] = None
    except unittest.SkipTest as e:
      found[check.__name__] = f"skipped: {e}"
    except AssertionError as e:
      found[check.__name__] = str(e)
  return found
