"""The functions on which optax tests its own optimizers.

Steps and tolerances are those of optax. Learned optimizers are not meant for
functions of two to seven parameters: what fails is listed with its reason.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
from optax.contrib import _common_test as optax_test
import pytest

from learned_opt import optimizers
import mulo
from mulo.testing import kit

NUM_STEPS = 10_000
TARGETS = {
    "parabola": optax_test._setup_parabola,
    "rosenbrock": optax_test._setup_rosenbrock,
    "matrix_parabola": optax_test._setup_matrix_parabola,
    "mixed": optax_test._setup_mixed_tensor_target}
LEARNED = (*mulo.list_pretrained(), "untrained")
# {(optimizer, target): reason}
KNOWN_FAILURES = {("adafac-mup-s", "rosenbrock"): (
    "Steps keep their size, about 0.01: it swings across the valley near "
    "(1.3, 1.7). With learning_rate=0.1, it comes to (1.02, 1.04).")}
# The longest episodes of meta-training had 1,000 steps.
pytestmark = pytest.mark.filterwarnings("ignore::mulo.BeyondTrainingWarning")


def make(name, params):
  """Return the optimizer of this name, for parameters like `params`."""
  if name == "adamw":
    return optax.adamw(0.1)
  if name == "untrained":
    lopt = optimizers.get("mulo")
    return lopt.opt_fn(lopt.init(jax.random.key(0)))
  return kit.make(lambda base_shapes: mulo.load(
      name, base_shapes=base_shapes, num_steps=NUM_STEPS), params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(tx, loss, params):
  """Return the parameters after NUM_STEPS steps."""
  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, tx.init(params)), length=NUM_STEPS)[0][0]


def case(name, target):
  reason = KNOWN_FAILURES.get((name, target))
  marks = [pytest.mark.xfail(
      reason=reason, strict=True, raises=AssertionError)] if reason else []
  return pytest.param(name, target, marks=marks, id=f"{name}-{target}")


@pytest.mark.parametrize("name, target", [
    case(name, target) for name in (*LEARNED, "adamw") for target in TARGETS])
def test_reaches_the_minimum(name, target):
  start, minimum, loss = TARGETS[target](jnp.float32)
  end = train(make(name, start), loss, start)
  chex.assert_trees_all_close(end, minimum, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", LEARNED)
def test_complex_parameters_are_refused(name):
  start, _, _ = TARGETS["parabola"](jnp.complex64)
  with pytest.raises(ValueError, match="is complex .*split_real_and_imaginary"):
    make(name, start).init(start)


def test_known_failures_exist():
  assert all(name in LEARNED and target in TARGETS
             for name, target in KNOWN_FAILURES)
