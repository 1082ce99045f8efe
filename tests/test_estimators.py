"""Estimators compared with exact meta-gradients, and what they keep track of.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import base as learned_opt_base
from learned_opt.scaling import parametrizations
from meta_train import estimators
from meta_train import step as step_lib
from meta_train import unroll
from meta_train.estimators.shared import backprop
from meta_train.estimators.shared import perturb
from tasks import families

TRUNCATION, WINDOWS = 3, 4
LENGTH = TRUNCATION * WINDOWS


def sgd(theta, *, num_steps=None):
  """Return gradient descent; theta has the log step size and the momentum."""
  del num_steps
  return optax.with_extra_args_support(optax.chain(
      optax.trace(theta["momentum"]), optax.scale(-jnp.exp(theta["log_step"]))))


THETA = {"log_step": jnp.float32(-1.5), "momentum": jnp.float32(0.3)}


def same_start(task):
  """Return the task with a constant initial point.

  Then there is one exact meta-gradient, the same for all copies.
  """
  return task._replace(init=lambda key: {"p": jnp.array([1.0, -0.5, 2.0])})


TASK = same_start(families.get("quadratic", None, dim=3))


@functools.cache
def make(std=0.01, name="pes", **settings):
  """Return an estimator on TASK whose episodes all have LENGTH steps.

  The same one for the same arguments, so that it is compiled once.
  """
  return estimators.get(name, task=TASK, opt_fn=sgd, std=std, **{
      "truncation": TRUNCATION, "shortest": LENGTH, "longest": LENGTH,
      "stagger": False, **settings})


def episode(estimator, copies, seed=0, windows=WINDOWS):
  """Return (estimates, states) of `windows` truncations.

  The episodes of all copies start together.
  """
  keys = jax.random.split(jax.random.key(seed), copies)
  state = jax.jit(estimator.init)(keys, THETA)
  estimate = jax.jit(estimator.estimate)
  outs, states = [], []
  for t in range(windows):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), t),
                            copies)
    out, state = estimate(keys, THETA, state, TASK.data)
    outs.append(out)
    states.append(state)
  return outs, states


def window_losses(thetas):
  """Return the mean loss of each truncation.

  Args:
    thetas: a theta for each truncation, tree like theta with leading axis
      [WINDOWS].

  Returns:
    [WINDOWS].
  """
  state = unroll.start(TASK, sgd, THETA, jax.random.key(0), LENGTH)
  losses = []
  for t in range(WINDOWS):
    theta = jax.tree.map(lambda x, t=t: x[t], thetas)
    state, loss = unroll.unroll(
        TASK, sgd, theta, state, jax.random.key(0), TASK.data, TRUNCATION)
    losses.append(jnp.mean(loss))
  return jnp.stack(losses)


@functools.cache
def exact():
  """Return d (loss of truncation k) / d (theta of truncation i).

  Returns:
    {parameter: [k, i]}.
  """
  thetas = jax.tree.map(lambda x: jnp.full(WINDOWS, x), THETA)
  return jax.jit(jax.jacobian(window_losses))(thetas)


def test_bias_and_variance_on_a_quadratic():
  """The mean of the estimates is exact, within the error that theory predicts.

  For losses linear in the noise, PES estimates truncation k (k = 1, 2, ...) as
  `xi_k * sum_i a_ki eps_i / std^2`. The mean is `sum_i a_ki`. By Isserlis'
  theorem for Gaussian eps, the variance per pair is
  `k |a_k|^2 + (sum_i a_ki)^2`, where |a_k|^2 is a sum over all numbers in
  theta.
  """
  copies, std = 4096, 1e-3
  estimator = make(std)
  outs, _ = episode(estimator, copies)
  jacobian = {name: np.asarray(a) for name, a in exact().items()}
  for k in range(WINDOWS):
    squares = sum(np.sum(a[k]**2) for a in jacobian.values())
    for name, a in jacobian.items():
      mean = np.sum(a[k])
      error = np.sqrt(((k + 1) * squares + mean**2) / copies)
      assert abs(outs[k].grad[name] - mean) < 4 * error, (k, name)
      assert error < 0.2 * abs(mean)  # otherwise the line above tests nothing


def test_variance_of_single_pairs():
  """The variance per pair is the one that the test above assumes."""
  repeats = 300
  estimator = make(1e-3)
  keys = jax.random.split(jax.random.key(7), repeats)

  def last(key):
    init_key, *step_keys = jax.random.split(key, WINDOWS + 1)
    state = estimator.init(init_key[None], THETA)
    for step_key in step_keys:
      out, state = estimator.estimate(step_key[None], THETA, state, TASK.data)
    return out.grad

  grads = jax.jit(jax.vmap(last))(keys)
  jacobian = exact()
  total = sum(np.sum(np.asarray(a)[-1]**2) for a in jacobian.values())
  for name, a in jacobian.items():
    expected = WINDOWS * total + np.sum(np.asarray(a)[-1])**2
    assert 0.6 < np.var(grads[name]) / expected < 1.6


def test_episode_boundary():
  """An episode starts with a truncation, and its first xi is its first eps."""
  _, states = episode(make(), 2, windows=WINDOWS + 1)
  steps = [int(s.inner.step[0, 0]) for s in states]
  assert steps == [TRUNCATION * (i + 1) for i in range(WINDOWS)] + [TRUNCATION]
  xi = [s.noise["log_step"][0] for s in states]
  # Compute the first eps of the second episode from its key.
  keys = jax.random.split(
      jax.random.fold_in(jax.random.key(1), WINDOWS), 2)
  eps = perturb.sample(jax.random.split(keys[0], 3)[2], THETA, 0.01)
  np.testing.assert_allclose(xi[WINDOWS], eps["log_step"], rtol=1e-6)


def test_first_loss_of_an_episode_knows_only_its_own_noise():
  """Noise of the last episode has no effect on the next episode's estimate."""
  copies = 4096
  outs, _ = episode(make(1e-3), copies, windows=WINDOWS + 1)
  jacobian = exact()
  total = sum(np.sum(np.asarray(a)[0]**2) for a in jacobian.values())
  for name, a in jacobian.items():
    mean = np.asarray(a)[0, 0]
    error = np.sqrt((total + mean**2) / copies)
    assert abs(outs[WINDOWS].grad[name] - mean) < 4 * error


def test_noise_differs_between_steps_copies_and_parameters():
  _, states = episode(make(), 3)
  xi = np.stack([np.stack([s.noise[n] for n in THETA]) for s in states])
  eps = np.diff(xi, axis=0, prepend=0)  # [windows, theta, copies]
  assert len(np.unique(np.round(eps, 9))) == eps.size


def test_pairs_share_start_and_batches():
  """If theta has no effect, the two networks of a pair stay equal."""
  task = families.get("mlp", parametrizations.get("mup"), width=4, batch_size=4)
  estimator = estimators.get(
      "pes", task=task, opt_fn=lambda theta, num_steps=None: sgd(THETA),
      truncation=2, shortest=4, longest=4)
  keys = jax.random.split(jax.random.key(0), 2)
  theta = {"x": jnp.float32(0)}
  out, state = jax.jit(estimator.estimate)(
      keys, theta, jax.jit(estimator.init)(keys, theta), task.data)
  np.testing.assert_array_equal(out.grad["x"], 0)
  weights = state.inner.params["layer_0"]["w"]  # [copies, 2, in, out]
  np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
  assert np.any(weights[0] != weights[1])


@pytest.mark.parametrize("drop", [False, True])
def test_non_finite_losses(drop):
  bad = TASK._replace(init=lambda key: {"p": jnp.where(
      jax.random.bits(key) % 2, jnp.inf, 1.0) * jnp.ones(3)})
  estimator = estimators.get(
      "pes", task=bad, opt_fn=sgd, truncation=2, shortest=2, longest=2,
      drop_nonfinite=drop)
  keys = jax.random.split(jax.random.key(0), 16)
  out, _ = jax.jit(estimator.estimate)(
      keys, THETA, jax.jit(estimator.init)(keys, THETA), TASK.data)
  assert 0 < out.info["diverged"] < out.info["inner_steps"]
  assert np.isfinite(out.meta_loss) == drop
  assert np.isfinite(out.grad["log_step"]) == drop
  assert (out.info["dropped"] > 0) == drop


def test_dropping_averages_over_the_remaining_copies():
  directions = {"x": jnp.array([1.0, 2.0, 3.0])}
  losses = jnp.array([[1.0, 0.0], [jnp.nan, 0.0], [0.0, 1.0]])
  out = perturb.estimate(directions, losses, 1.0, 0.0, 0.0, True, {})
  np.testing.assert_allclose(out.grad["x"], (1.0 - 3.0) / 2 / 2)
  assert out.copies == 2 and out.info["dropped"] == 1
  np.testing.assert_allclose(out.meta_loss, 0.5)
  grads = {"x": jnp.array([[1.0, 2.0], [3.0, jnp.inf], [5.0, 6.0]])}
  out = backprop.estimate(grads, jnp.array([1.0, 2.0, 3.0]), True, {})
  np.testing.assert_allclose(out.grad["x"], [3.0, 4.0])
  assert out.meta_loss == 2 and out.copies == 2


def test_clipping_and_signs_of_differences():
  directions = {"x": jnp.array([1.0, 10.0])}
  losses = jnp.array([[5.0, 0.0], [0.0, 0.25]])
  estimate = lambda clip, sign: perturb.estimate(
      directions, losses, 1.0, clip, sign, False, {}).grad["x"]
  np.testing.assert_allclose(estimate(0.0, 0.0), (5 - 2.5) / 4)
  np.testing.assert_allclose(estimate(1.0, 0.0), (1 - 2.5) / 4)
  np.testing.assert_allclose(estimate(0.0, 0.5), (0.5 - 5) / 4)


def test_curriculum_reaches_the_episodes():
  """The curriculum depends on the outer steps that a copy counts."""
  estimator = make(shortest=TRUNCATION, longest=8 * TRUNCATION, curriculum=4)
  _, states = episode(estimator, 64, windows=9)
  lengths = [int(state.inner.length.max()) for state in states]
  assert lengths[0] == TRUNCATION and lengths[-1] > 4 * TRUNCATION
  assert all(int(state.outer_step[0]) == i + 1
             for i, state in enumerate(states))


def test_noise_reuse():
  """An episode has one eps, and the mean of the estimates is exact."""
  copies = 4096
  outs, states = episode(make(1e-3, "noise_reuse_es"), copies,
                         windows=WINDOWS + 1)
  noise = [np.asarray(state.noise["momentum"]) for state in states]
  for other in noise[1:WINDOWS]:
    np.testing.assert_array_equal(noise[0], other)
  assert np.all(noise[WINDOWS] != noise[0])
  jacobian = {name: np.asarray(a) for name, a in exact().items()}
  for k in range(WINDOWS):
    total = sum(np.sum(a[k])**2 for a in jacobian.values())
    for name, a in jacobian.items():
      mean = np.sum(a[k])
      error = np.sqrt((total + mean**2) / copies)
      assert abs(outs[k].grad[name] - mean) < 4 * error, (k, name)
      assert error < 0.2 * abs(mean)


def test_truncated_es_sees_one_truncation_only():
  """The mean is the derivative with respect to the truncation's own theta."""
  copies = 4096
  outs, states = episode(make(1e-4, "truncated_es"), copies)
  assert states[0].inner.step.shape == (copies, 1)
  jacobian = {name: np.asarray(a) for name, a in exact().items()}
  for k in range(WINDOWS):
    total = sum(a[k, k]**2 for a in jacobian.values())
    for name, a in jacobian.items():
      error = np.sqrt((total + a[k, k]**2) / copies)
      assert abs(outs[k].grad[name] - a[k, k]) < 4 * error + 1e-3 * abs(a[k, k])


def test_backprop_is_exact():
  """Truncated over one truncation, full over one episode."""
  jacobian = {name: np.asarray(a) for name, a in exact().items()}
  settings = dict(task=TASK, opt_fn=sgd, truncation=TRUNCATION,
                  shortest=LENGTH, longest=LENGTH)
  for remat in (False, True):
    truncated = estimators.get(
        "truncated_backprop", remat=remat, stagger=False, **settings)
    outs, _ = episode(truncated, 2)
    for name, a in jacobian.items():
      for k in range(WINDOWS):
        np.testing.assert_allclose(outs[k].grad[name], a[k, k], rtol=1e-4)
    full = estimators.get("full_backprop", remat=remat, **settings)
    (out, *_), _ = episode(full, 2)
    for name, a in jacobian.items():
      np.testing.assert_allclose(
          out.grad[name], np.sum(a) / WINDOWS, rtol=1e-4)
    assert out.info["inner_steps"] == 2 * LENGTH


def test_full_es_trains_each_copy_for_its_own_length():
  settings = dict(task=TASK, opt_fn=sgd, truncation=TRUNCATION, std=1e-3)
  copies = 2048
  keys = jax.random.split(jax.random.key(0), copies)
  uniform = estimators.get("full_es", shortest=LENGTH, longest=LENGTH,
                           **settings)
  estimate = lambda estimator, data=TASK.data: jax.jit(estimator.estimate)(
      keys, THETA, jax.jit(estimator.init)(keys, THETA), data)[0]
  out = estimate(uniform)
  jacobian = {name: np.sum(np.asarray(a)) / WINDOWS
              for name, a in exact().items()}
  total = sum(a**2 for a in jacobian.values())
  for name, a in jacobian.items():
    assert abs(out.grad[name] - a) < 4 * np.sqrt((total + a**2) / copies)
  mixed = estimators.get("full_es", shortest=TRUNCATION, longest=LENGTH,
                         **settings)
  steps = estimate(mixed).info["inner_steps"]
  assert 2 * copies * TRUNCATION < steps < 2 * copies * LENGTH


@pytest.mark.parametrize("name", estimators.names())
def test_every_estimator(name):
  """Shapes and dtypes are right, with default settings."""
  estimator = estimators.get(name, task=TASK, opt_fn=sgd)
  keys = jax.random.split(jax.random.key(0), 3)
  state = jax.jit(estimator.init)(keys, THETA)
  out, new = jax.jit(estimator.estimate)(keys, THETA, state, TASK.data)
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  chex.assert_trees_all_equal_shapes_and_dtypes(out.grad, THETA)
  chex.assert_tree_shape_prefix(state, (3,))
  assert out.info["inner_steps"] > 0
  chex.assert_tree_all_finite(out)


@pytest.mark.parametrize("settings, message", [
    ({"std": 0.0}, "std > 0"), ({"truncation": 0}, "truncation 0"),
    ({"shortest": 24}, "longest 12"),
    ({"shortest": 4, "longest": 5}, "whole number"),
    ({"loss_split": "test"}, "available: train, inner_valid, outer_valid"),
    ({"loss": "worst"}, "available: mean, late, end, last"),
    ({"clip": -1.0}, "clip must not be negative"),
    ({"sign": -1.0}, "sign must not be negative"),
    ({"curriculum": -1}, "curriculum must not be negative"),
    ({"nope": 1}, "does not take the settings")])
def test_settings_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    make(**settings)


def test_noise_and_batches_differ_between_outer_steps():
  """Every outer step draws anew, even if theta does not move."""
  task = families.get("mlp", parametrizations.get("mup"), width=4, batch_size=4)
  lopt = learned_opt_base.LearnedOptimizer(lambda key: THETA, sgd)
  estimator = estimators.get(
      "pes", task=task, opt_fn=sgd, truncation=2, shortest=8, longest=8)
  init, step = step_lib.make(
      lopt, {"a": estimator, "b": estimator}, optax.sgd(0.0), 3, seed=0)
  state, xi, losses = init(), [], []
  for _ in range(3):
    state, metrics = step(state, {"a": task.data, "b": task.data})
    xi.append([np.asarray(state.estimator_states[name].noise["momentum"])
               for name in ("a", "b")])
    losses += [float(metrics[f"{name}/meta_loss"]) for name in ("a", "b")]
  # xi of a new episode is an eps. The change of xi of an old episode is one.
  eps = [*np.ravel(xi[0]), *np.ravel(np.diff(xi, axis=0)), *np.ravel(xi[1:])]
  assert len(np.unique(np.round(eps, 8))) == len(eps)
  assert len(set(losses)) == len(losses)
