"""Every optimizer passes the optax contract, and each check can fail."""

import contextlib
import pathlib
import subprocess
import sys
import unittest

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_golden

from experiments.robustness import contract
from learned_opt import optimizers
import mulo
from mulo import testing
from mulo.testing import devices
from mulo.testing import kit
from mulo.testing import transforms

ROOT = pathlib.Path(__file__).parents[1]
CHECKS = {check.__name__: check for check in testing.CHECKS}


@pytest.fixture(scope="module")
def factories(tmp_path_factory):
  return contract.factories(tmp_path_factory.mktemp("contract"))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*optimizers.names(), *contract.OTHERS])
def test_contract(name, check, factories):
  published = name in contract.AS_PUBLISHED.get(check, ())
  with pytest.raises(AssertionError) if published else contextlib.nullcontext():
    CHECKS[check](factories[name])


@pytest.mark.parametrize("name", [
    name for name in optimizers.names()
    if "accumulator_dtype" in optimizers.all_settings(name)])
def test_bfloat16_statistics_stay(name, tmp_path):
  transforms.scan_bfloat16(
      contract.learned(name, tmp_path, accumulator_dtype="bfloat16"))


def test_newton_schulz_on_explicit_axes(tmp_path):
  devices.sharding_explicit(
      contract.learned("mulo", tmp_path, newton_schulz=1))


def test_zero_gradients_with_trained_weights():
  """Untrained, mulo is Adam; trained, its MLP answers to its biases, too."""
  tx = mulo.load("mulo-s-sp", num_steps=100)
  CHECKS["zero_gradients"](lambda: tx)


def make(update, init=lambda params: optax.EmptyState()):
  """Return a factory of a broken optimizer."""
  tx = optax.GradientTransformationExtraArgs(init, update)
  return lambda: tx


def scaled(grads, factor=-0.5):
  return jax.tree.map(lambda g: (factor * g).astype(g.dtype), grads)


def momentum(dtype=None, share=False, after=lambda m: m):
  """Return a factory of momentum with a broken state.

  Args:
    dtype: of the state; None for the dtype of the parameters.
    share: whether two parts of the state are the same arrays.
    after: applied to the state in each step.
  """
  def init(params):
    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)
    return (zeros, zeros if share else jax.tree.map(jnp.copy, zeros))

  def update(grads, state, params=None, **extra_args):
    new = jax.tree.map(lambda m, g: after(m + 0.1 * g.astype(m.dtype)),
                       state[0], grads)
    return scaled(grads), (new, state[1])

  return make(update, init)


def weak_count():
  return make(lambda grads, count, params=None, **extra_args: (
      scaled(grads), jnp.asarray(count + 1, jnp.int32)),
              lambda params: jnp.asarray(0))


def by_rate(scale):
  """Return a factory whose updates have the multiplier `scale(rate)`."""
  return lambda learning_rate=1.0: make(
      lambda grads, state, params=None, **extra_args: (
          scaled(grads, scale(learning_rate)), state))()


def on_leaves(fn):
  """Return a factory of a stateless rule, applied to each array."""
  return make(lambda grads, state, params=None, **extra_args: (
      jax.tree.map(fn, grads), state))


def no_empty_group(params):
  return jnp.zeros([], jax.tree.leaves(params)[0].dtype)


def only_dicts(grads, state, params=None, **extra_args):
  walk = lambda x: ({k: walk(v) for k, v in x.items()} if isinstance(x, dict)
                    else -x)
  return walk(grads), state


def strict(grads, state, params=None, *, value):
  return scaled(grads), state


def needs_loss(grads, state, params=None, **extra_args):
  return scaled(grads, extra_args["value"]), state


def decay_in_place(grads, state, params=None, **extra_args):
  return jax.tree.map(lambda g, p: -g - 0.1 * p, grads, params), state


def gathers(grads, state, params=None, **extra_args):
  """Momentum that is gathered on each device."""
  mesh = jax.typeof(jax.tree.leaves(grads)[0]).sharding.mesh
  whole = lambda x: jax.sharding.reshard(x, jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec()))
  return scaled(grads), jax.tree.map(
      lambda m, g: whole(m + g) if mesh.axis_names else m + g, state, grads)


def stack(params):
  """Return a state that is one array for all parameters."""
  leaves = jax.tree.leaves(params)
  return jnp.concatenate([jnp.zeros(x.size) for x in leaves] or [jnp.zeros(0)])


def stacked_momentum(grads, state, params=None, **extra_args):
  leaves, treedef = jax.tree.flatten(grads)
  state = 0.9 * state + jnp.concatenate([x.reshape(-1) for x in leaves])
  parts = jnp.split(state, np.cumsum([x.size for x in leaves])[:-1])
  return jax.tree.unflatten(treedef, [
      -part.reshape(x.shape) for part, x in zip(parts, leaves)]), state


KEPT = {"value": []}


def keeps_python_state(grads, state, params=None, **extra_args):
  KEPT["value"].append(jax.tree.leaves(grads)[0])
  return scaled(grads, float(len(KEPT["value"]))), state


BROKEN = [
    ("chain", make(keeps_python_state)),
    ("extra_args", make(strict)), ("extra_args", make(needs_loss)),
    ("masked", make(only_dicts)),
    ("multi_transform", make(
        lambda grads, state, params=None, **extra_args: (
            scaled(grads), state), no_empty_group)),
    ("empty_leaves", on_leaves(lambda g: g / jnp.max(jnp.abs(g)))),
    ("scalars", on_leaves(jnp.atleast_1d)),
    ("inject_hyperparams", by_rate(float)),
    ("inject_hyperparams", by_rate(lambda rate: -0.1)),
    ("schedules", by_rate(lambda rate: -0.1)),
    ("stacked_layers", make(
        lambda grads, state, params=None, **extra_args: (jax.tree.map(
            lambda g: -g / jnp.max(jnp.abs(g)), grads), state))),
    ("sharding_partial", make(
        lambda grads, state, params=None, **extra_args: (jax.tree.map(
            lambda g: jnp.asarray(np.asarray(-g)), grads), state))),
    ("multi_steps", momentum(after=lambda m: m.reshape(-1))),
    ("apply_if_finite", make(
        lambda grads, state, params=None, **extra_args: (
            scaled(grads), state), lambda params: "text")),
    ("scan_float32", momentum(after=lambda m: m.reshape(-1))),
    ("scan_bfloat16", momentum(after=lambda m: m.astype(jnp.float32))),
    ("scan_bfloat16", on_leaves(lambda g: g.astype(jnp.float32))),
    ("jit", weak_count()), ("jit", momentum(share=True)),
    ("jit", momentum(after=lambda m: m.astype(jnp.bfloat16))),
    ("vmap", on_leaves(lambda g: g / np.float32(jnp.max(g)))),
    ("eval_shape", make(
        needs_loss, lambda params: float(jax.tree.leaves(params)[0].sum()))),
    *[(check, make(only_dicts)) for check in (
        "flax_linen", "flax_nnx", "equinox")],
    ("haiku", on_leaves(jnp.zeros_like)),
    ("params_none", make(decay_in_place)),
    ("other_leaves", on_leaves(jnp.real)),
    ("zero_gradients", on_leaves(lambda g: -0.1 * (g + 0.1))),
    ("zero_gradients", on_leaves(lambda g: g - jnp.mean(g))),
    ("second_order", on_leaves(lambda g: g * jnp.sqrt(jnp.sum(0 * g)))),
    ("x64", momentum(after=lambda m: m * np.full((1, 1), 0.5))),
    ("map_params", make(stacked_momentum, stack)),
    ("names", make(stacked_momentum, stack)),
    ("structure", lambda learning_rate=1.0: make(
        lambda grads, state, params=None, **extra_args: (grads, state),
        lambda params: [jnp.zeros([])] * (1 + (learning_rate == 1)))()),
    ("flax_partitioned", make(stacked_momentum, stack)),
    ("flax_metadata", make(stacked_momentum, lambda params: jax.tree.map(
        jnp.zeros_like, jax.tree.leaves(params)))),
    ("sharding_automatic", make(
        lambda grads, state, params=None, **extra_args: (
            scaled(grads), state), lambda params: jax.tree.map(
                lambda p: jnp.zeros(p.shape), params))),
    ("sharding_explicit", make(gathers, optax.tree.zeros_like)),
    ("sharding_explicit", on_leaves(lambda g: (
        g.reshape(-1, g.shape[-1]) @ jnp.ones([g.shape[-1]] * 2)).reshape(
            g.shape))),
    ("checkpoint", make(
        lambda grads, state, params=None, **extra_args: (
            scaled(grads), jnp.ones(3)), lambda params: jnp.ones(2)))]


@pytest.mark.parametrize("name, factory", BROKEN, ids=[x[0] for x in BROKEN])
def test_broken_optimizers_fail(name, factory):
  with pytest.raises(AssertionError):
    CHECKS[name](factory)


def test_every_check_is_seen_to_fail():
  assert {name for name, _ in BROKEN} == set(CHECKS)


def test_run():
  results = testing.run(weak_count())
  assert list(results) == list(CHECKS)
  assert "compiled again" in results["jit"]
  assert results["inject_hyperparams"].startswith(
      "skipped: the factory takes no")
  assert results["chain"] is None and results["masked"] is None
  lines = contract.table({"x": results}).splitlines()
  assert len(lines) == len(CHECKS) + 2
  assert "no" in lines[2 + list(CHECKS).index("jit")].split("|")[-2]


def test_missing_packages(monkeypatch):
  monkeypatch.setitem(sys.modules, "equinox", None)
  with pytest.raises(unittest.SkipTest, match="needs the package equinox"):
    CHECKS["equinox"](optax.sgd)


def test_missing_chex():
  code = "import sys; sys.modules['chex'] = None; import mulo.testing"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT,
                        capture_output=True, text=True)
  assert "mulo.testing needs chex: pip install chex." in done.stderr


class Variants(chex.TestCase):
  """One update with jit and without, and from arrays of the host or a device.
  """

  @chex.all_variants
  def test_updates_are_the_same(self):
    params, grads = kit.tree(0), kit.tree(1)
    tx = kit.make(lambda base_shapes: mulo.load(
        "mulo-s", base_shapes=base_shapes, num_steps=10), params)
    actual, _ = self.variant(tx.update)(grads, tx.init(params), params)
    kit.same(actual, kit.updates(tx, params, [grads])[0], "updates")


NEW = '''
"""Descent along the sign, by a learned step for each rank."""
import jax
import jax.numpy as jnp
from learned_opt import base
from learned_opt.update import per_parameter


def make(step_mult: float = 0.1) -> base.LearnedOptimizer:
  def init(key):
    return {"log_step": jnp.zeros(2)}

  def opt_fn(theta, *, num_steps=None, kinds=None):
    def step_one(grad, param, momentum, step):
      momentum = 0.9 * momentum + grad
      size = step_mult * jnp.exp(theta["log_step"][min(grad.ndim, 2) - 1])
      return -size * jnp.sign(momentum), momentum

    return per_parameter.transformation(jnp.zeros, step_one, kinds=kinds)

  return base.LearnedOptimizer(init, opt_fn)
'''


def vectors(step_mult):
  """Return the content of a file in tests/golden for NEW.

  All gradients have one sign, so the six steps are equal.
  """
  params = {"w": np.float32([[1, 2], [3, 4]]), "b": np.float32([0, 1])}
  arrays = {"optimizer": "sign_descent", "settings": '{"step_mult": 0.1}',
            "theta/log_step": np.float32([0.5, -0.5])}
  for name, x in params.items():
    arrays[f"params/{name}"] = x
    step = step_mult * np.exp(0.5 if x.ndim == 1 else -0.5)
    for t in range(6):
      arrays[f"grads/{t}/{name}"] = np.full_like(x, -2)
      arrays[f"after/{t}/{name}"] = np.float32(x + (t + 1) * step)
  return arrays


def test_a_new_optimizer_is_one_file(tmp_path, monkeypatch):
  """A file in the folder is found by name; contract and vectors test it."""
  (tmp_path / "sign_descent.py").write_text(NEW)
  monkeypatch.setattr(optimizers, "__path__",
                      [*optimizers.__path__, str(tmp_path)])
  assert "sign_descent" in optimizers.names()
  factory = contract.factories(tmp_path)["sign_descent"]
  assert not {k: v for k, v in testing.run(factory).items() if v}
  for step_mult in (0.1, 0.1001):
    path = tmp_path / f"sign_descent_{step_mult}.npz"
    np.savez(path, **vectors(step_mult))
    with contextlib.nullcontext() if step_mult == 0.1 else pytest.raises(
        AssertionError):
      test_golden.compare(path)
