"""Links around optimizers: hyperball, normalize_rows, average_params."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mulo
from mulo import testing
from mulo.testing import kit

links = mulo.links


def run(tx, params, grads):
  """Return the parameters after each step, and the last state."""
  state, path = tx.init(params), []
  update = jax.jit(tx.update)
  for grad in grads:
    updates, state = update(grad, state, params, value=kit.VALUE)
    params = optax.apply_updates(params, updates)
    path.append(params)
  return path, state


@pytest.mark.parametrize("step", [None, 0.5])
def test_hyperball_formula(step):
  params, grads = kit.tree(0), kit.tree(1)
  params["bias"] = grads["bias"] = jnp.ones(3)
  params["zero"], grads["zero"] = jnp.zeros((2, 2)), jnp.ones((2, 2))
  (after,), _ = run(links.hyperball(optax.sgd(0.3), relative_step=step),
                    params, [grads])
  for keys in (("a", "w"), ("a", "v"), ("c", "w")):
    w, g, new = (np.float64(tree[keys[0]][keys[1]])
                 for tree in (params, grads, after))
    u = -0.3 * g
    if step:
      u *= step * np.linalg.norm(w) / np.linalg.norm(u)
    expected = np.linalg.norm(w) * (w + u) / np.linalg.norm(w + u)
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(after["bias"], 0.7)  # no matrix
  np.testing.assert_allclose(after["zero"], -0.3)  # no ball


def test_hyperball_keeps_norms():
  """Over many steps, in bfloat16, too; the schedule is read at each step."""
  params = {"w": kit.tree(0)["a"]["w"]}
  low = optax.tree.cast(params, jnp.bfloat16)
  grads = [{"w": kit.tree(i)["a"]["v"]} for i in range(1, 40)]
  for tree, tolerance in ((params, 1e-6), (low, 4e-3)):
    tx = links.hyperball(optax.adam(1.0), relative_step=lambda t: 0.1 / (1 + t))
    path, state = run(tx, tree, [
        jax.tree.map(lambda g: g.astype(tree["w"].dtype), g) for g in grads])
    norm = lambda x: np.linalg.norm(np.float64(x["w"]))
    np.testing.assert_allclose(
        [norm(x) for x in path], norm(tree), rtol=tolerance)
    assert state.steps == len(grads)
  # The first step turns the matrix by 0.1, the last one by little.
  first, last = run(links.hyperball(
      optax.adam(1.0), relative_step=lambda t: 0.1 * 0.01**t), params,
      grads[:2])[0]
  assert np.linalg.norm(first["w"] - params["w"]) > 50 * np.linalg.norm(
      last["w"] - first["w"]) > 0


def test_rows_formula():
  """As in the formula, for two steps; the norm of each update stays."""
  params, grads = kit.tree(0), [kit.tree(1), kit.tree(2)]
  tx = links.normalize_rows(0.5, eps=0.01)
  v = np.zeros(4)
  for step, actual in enumerate(kit.updates(tx, params, grads)):
    u = np.float64(grads[step]["a"]["w"])
    v = 0.5 * v + 0.5 * np.mean(u**2, 0)
    w = u / np.sqrt(v + 0.01 * np.mean(v))
    w *= np.linalg.norm(u) / np.linalg.norm(w)
    np.testing.assert_allclose(actual["a"]["w"], w, rtol=1e-5)


def test_rows_do_not_depend_on_size():
  params = kit.tree(0)
  make = lambda mult: kit.updates(links.normalize_rows(), params, [
      kit.scaled(kit.tree(i), mult) for i in (1, 2)])[1]
  for mult in (1e-12, 1e12):
    kit.same(kit.scaled(make(mult), 1 / mult), make(1.0), "updates")
  none = kit.updates(links.normalize_rows(), params,
                     [optax.tree.zeros_like(params)] * 2)
  assert not any(np.any(x) for x in jax.tree.leaves(none))


def shapes(width):
  return {"in": np.ones((3, width), np.float32),
          "heads": np.ones((width, 2, width // 2), np.float32),
          "out": np.ones((width, 5), np.float32)}


def test_roles_and_axes():
  """Base shapes tell hidden matrices, and which of their axes are outputs."""
  params, base = shapes(8), shapes(4)
  grads = jax.tree.map(
      lambda p: np.random.default_rng(0).normal(size=p.shape).astype(
          np.float32), params)
  rows = links.normalize_rows(
      base_shapes=base, roles=("hidden",), overrides={
          "heads": mulo.scaling.Override(inputs=(0,), outputs=(1, 2))})
  state = rows.init(params)
  assert jax.tree.map(np.shape, state.squares) == {
      "in": (), "heads": (1, 2, 4), "out": ()}
  updates, _ = rows.update(grads, state)
  chex.assert_trees_all_equal(updates["in"], grads["in"])
  each = np.mean(np.square(updates["heads"]), 0)  # equal for all outputs
  np.testing.assert_allclose(each, np.mean(each), rtol=1e-5)
  ball = links.hyperball(
      optax.sgd(1.0), base_shapes=base, roles=("hidden", "output"))
  assert jax.tree.map(np.shape, ball.init(params).norms) == {
      "in": (), "heads": (1, 1, 1), "out": (1, 1)}


def ball(base_shapes=None, deeper_shapes=None):
  """Return the link around Adam, stacks declared if there are any."""
  given = {} if deeper_shapes is None else {
      "base_shapes": base_shapes, "deeper_shapes": deeper_shapes}
  return links.hyperball(optax.adam(1e-2), relative_step=0.1, **given)


# Not zero_gradients: a matrix on a ball moves where its gradient is zero, too.
# These are the checks that compile little, of all that pass.
@pytest.mark.parametrize("check", [
    x for x in testing.CHECKS if x.__name__ in (
        "masked", "empty_leaves", "scan_bfloat16", "jit", "vmap",
        "stacked_layers", "second_order", "map_params", "flax_partitioned",
        "sharding_explicit", "other_leaves", "names")],
                         ids=lambda x: x.__name__)
def test_hyperball_contract(check):
  check(ball)


def test_no_gradient_no_step():
  params = kit.tree(0)
  grads = optax.tree.zeros_like(params)
  tx = ball()
  state = tx.init(kit.scaled(params, 2))  # off its ball, after rounding
  updates, _ = jax.jit(tx.update)(grads, state, params)
  chex.assert_trees_all_equal(updates, grads)


def test_average():
  params, grads = kit.tree(0), [kit.tree(i) for i in range(1, 5)]
  for decay in (1.0, 0.5, 0.0):
    tx = optax.chain(optax.adam(0.1), links.average_params(decay))
    path, state = run(tx, params, grads)
    plain, _ = run(optax.adam(0.1), params, grads)
    chex.assert_trees_all_close(path[-1], plain[-1], rtol=1e-6)
    weights = np.array([decay**(3 - s) for s in range(4)])
    expected = jax.tree.map(lambda *x: np.tensordot(
        weights / weights.sum(), np.float64(x), 1), *path)
    chex.assert_trees_all_close(
        links.averaged(state), expected, rtol=1e-5, atol=1e-6)
  nested = optax.masked(tx, jax.tree.map(lambda _: True, params))
  assert links.averaged(nested.init(params)).keys() == params.keys()


@functools.cache
def learned():
  return mulo.load("mulo-s-sp", num_steps=10)


def two_steps(tx):
  return run(tx, {"w": kit.tree(0)["a"]["w"]},
             [{"w": kit.tree(i)["a"]["w"]} for i in (1, 2)])[0][1]["w"]


@functools.cache
def plain():
  return two_steps(learned())


@pytest.mark.parametrize("wrap", [
    links.hyperball,
    lambda tx: optax.chain(tx, links.normalize_rows()),
    lambda tx: optax.contrib.schedule_free(tx, 1.0),
    lambda tx: optax.inject_hyperparams(
        lambda relative_step: links.hyperball(
            tx, relative_step=relative_step))(relative_step=0.01)])
def test_around_a_learned_optimizer(wrap):
  start, wrapped = kit.tree(0)["a"]["w"], two_steps(wrap(learned()))
  step = np.linalg.norm(plain() - start)
  assert step > 0 and np.all(np.isfinite(wrapped))
  assert 0.01 * step < np.linalg.norm(wrapped - plain()) < 100 * step


def test_injected_rates():
  """Rates of the state are used: a decay of 0 forgets, a step has its size."""
  params, grads = {"w": kit.tree(0)["a"]["w"]}, {"w": kit.tree(1)["a"]["w"]}
  tx = optax.inject_hyperparams(
      lambda step, decay: links.hyperball(
          optax.chain(optax.sgd(1.0), links.normalize_rows(decay)),
          relative_step=step))(step=0.1, decay=0.5)
  state = tx.init(params)
  state.hyperparams["step"] = jnp.float32(0.2)
  updates, _ = jax.jit(tx.update)(grads, state, params)
  size = lambda x: np.linalg.norm(x["w"])
  # A chord of the ball, of a step of 0.2.
  assert 0.15 < size(updates) / size(params) < 0.21


@pytest.mark.parametrize("make, message", [
    (lambda: links.hyperball(optax.sgd(1.0), relative_step=np.inf),
     "relative_step must be finite, got inf"),
    (lambda: links.hyperball(optax.sgd(1.0), roles=("hidden",)),
     "roles need base_shapes"),
    (lambda: links.normalize_rows(base_shapes=shapes(4), roles="hidden"),
     r"such as \('hidden',\)"),
    (lambda: links.normalize_rows(deeper_shapes={}), "deeper_shapes need base"),
    (lambda: links.normalize_rows(1.5), "decay must be from 0 to 1, got 1.5"),
    (lambda: links.average_params(lambda t: t), "decay must be a number"),
    (lambda: links.averaged(optax.sgd(1.0).init({})), "has 0 averages"),
    (lambda: links.hyperball(optax.sgd(1.0)).init({"n": jnp.arange(3)}),
     "Parameter n has the dtype int32"),
    (lambda: links.hyperball(optax.sgd(1.0)).update(
        kit.tree(0), links.hyperball(optax.sgd(1.0)).init(kit.tree(0)["a"]),
        kit.tree(0)), "was made for other parameters")])
def test_errors(make, message):
  with pytest.raises(ValueError, match=message):
    make()
