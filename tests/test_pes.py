"""PES against exact meta-gradients, and its bookkeeping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import base as learned_opt_base
from learned_opt import parametrizations
from meta_train import estimators
from meta_train import perturb
from meta_train import step as step_lib
from meta_train import truncation
from meta_train import unroll
from tasks import suite

TRUNCATION, WINDOWS = 3, 4
LENGTH = TRUNCATION * WINDOWS


def sgd(theta, *, num_steps=None):
  """Gradient descent with momentum; theta: log step size and momentum."""
  del num_steps
  return optax.with_extra_args_support(optax.chain(
      optax.trace(theta["momentum"]), optax.scale(-jnp.exp(theta["log_step"]))))


THETA = {"log_step": jnp.float32(-1.5), "momentum": jnp.float32(0.3)}


def same_start(task):
  """The task with one initial point, so that one exact gradient exists."""
  return task._replace(init=lambda key: {"p": jnp.array([1.0, -0.5, 2.0])})


TASK = same_start(suite.get("quadratic", None, dim=3))


def make(std=0.01, **settings):
  return estimators.get("pes", task=TASK, opt_fn=sgd, std=std, **{
      "truncation": TRUNCATION, "shortest": LENGTH, "longest": LENGTH,
      **settings})


def episode(estimator, copies, seed=0, windows=WINDOWS):
  """(estimates, states) of each truncation of episodes that start together."""
  keys = jax.random.split(jax.random.key(seed), copies)
  state = estimator.init(keys, THETA)
  length = jnp.full_like(state.inner.length, LENGTH)  # not staggered
  state = state._replace(inner=state.inner._replace(length=length))
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
  """Mean loss of each truncation, with its own theta in each. [windows]."""
  state = unroll.start(TASK, sgd, THETA, jax.random.key(0), LENGTH)
  losses = []
  for t in range(WINDOWS):
    theta = jax.tree.map(lambda x, t=t: x[t], thetas)
    state, loss = unroll.unroll(
        TASK, sgd, theta, state, jax.random.key(0), TASK.data, TRUNCATION)
    losses.append(jnp.mean(loss))
  return jnp.stack(losses)


def exact():
  """d loss of window k / d theta of window i, per parameter: [k, i]."""
  thetas = jax.tree.map(lambda x: jnp.full(WINDOWS, x), THETA)
  return jax.jit(jax.jacobian(window_losses))(thetas)


def test_bias_and_variance_on_a_quadratic():
  """Mean and variance per pair are those that the theory gives.

  Where losses are linear in the noise, the estimate of window k is
  xi_k * sum_i a_ki eps_i / std^2, so its mean is sum_i a_ki and its variance,
  by Isserlis' theorem for Gaussian eps, is k |a_k|^2 + (sum_i a_ki)^2, where
  |a_k|^2 runs over all numbers in theta.
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
      assert error < 0.2 * abs(mean)  # so the line above says something


def test_variance_of_single_pairs():
  """The variance that the test above takes from theory."""
  repeats = 300
  estimator = make(1e-3)
  keys = jax.random.split(jax.random.key(7), repeats)

  def last(key):
    start, *rest = jax.random.split(key, WINDOWS + 1)
    state = estimator.init(start[None], THETA)
    state = state._replace(inner=state.inner._replace(
        length=jnp.full_like(state.inner.length, LENGTH)))
    for k in rest:
      out, state = estimator.estimate(k[None], THETA, state, TASK.data)
    return out.grad

  grads = jax.jit(jax.vmap(last))(keys)
  jacobian = exact()
  total = sum(np.sum(np.asarray(a)[-1]**2) for a in jacobian.values())
  for name, a in jacobian.items():
    expected = WINDOWS * total + np.sum(np.asarray(a)[-1])**2
    assert 0.6 < np.var(grads[name]) / expected < 1.6


def test_episode_boundary():
  """A new episode starts before a truncation, with xi at its own eps."""
  _, states = episode(make(), 2, windows=WINDOWS + 1)
  steps = [int(s.inner.step[0, 0]) for s in states]
  assert steps == [TRUNCATION * (i + 1) for i in range(WINDOWS)] + [TRUNCATION]
  xi = [s.xi["log_step"][0] for s in states]
  # Recover each eps from xi, and the first of the second episode.
  keys = jax.random.split(
      jax.random.fold_in(jax.random.key(1), WINDOWS), 2)
  eps = perturb.sample(jax.random.split(keys[0], 3)[1], THETA, 0.01)
  np.testing.assert_allclose(xi[WINDOWS], eps["log_step"], rtol=1e-6)


def test_first_loss_of_an_episode_knows_only_its_own_noise():
  """The gradient right after the boundary is that of a first truncation."""
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
  xi = np.stack([np.stack([s.xi[n] for n in THETA]) for s in states])
  eps = np.diff(xi, axis=0, prepend=0)  # [windows, theta, copies]
  assert len(np.unique(np.round(eps, 9))) == eps.size


def test_pairs_share_start_and_batches():
  """With no noise the two networks of a pair stay equal."""
  task = suite.get("mlp", parametrizations.get("mup"), width=4, batch_size=4)
  estimator = estimators.get(
      "pes", task=task, opt_fn=lambda theta, num_steps=None: sgd(THETA),
      truncation=2, shortest=4, longest=4)
  keys = jax.random.split(jax.random.key(0), 2)
  theta = {"x": jnp.float32(0)}
  out, state = jax.jit(estimator.estimate)(
      keys, theta, estimator.init(keys, theta), task.data)
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
      keys, THETA, estimator.init(keys, THETA), TASK.data)
  assert 0 < out.info["diverged"] < 1
  assert np.isfinite(out.meta_loss) == drop
  assert np.isfinite(out.grad["log_step"]) == drop
  assert (out.info["dropped"] > 0) == drop


def test_dropping_averages_over_the_rest():
  directions = {"x": jnp.array([1.0, 2.0, 3.0])}
  losses = jnp.array([[1.0, 0.0], [jnp.nan, 0.0], [0.0, 1.0]])
  grad, dropped = perturb.mean_gradient(directions, losses, 1.0, True)
  np.testing.assert_allclose(grad["x"], (1.0 - 3.0) / 2 / 2)
  assert dropped == 1


def test_lengths():
  sample = truncation.log_uniform(10, 100, 5)
  lengths = jax.vmap(sample)(jax.random.split(jax.random.key(0), 4000))
  assert np.all(lengths % 5 == 0)
  assert lengths.min() == 10 and lengths.max() == 100
  uneven = truncation.log_uniform(30, 110, 25)
  lengths_uneven = jax.vmap(uneven)(jax.random.split(jax.random.key(2), 99))
  assert sorted(set(lengths_uneven.tolist())) == [50, 75, 100]
  # Half of them are below the geometric mean.
  assert abs(np.mean(lengths < np.sqrt(1000)) - 0.5) < 0.05
  first = jax.vmap(lambda k: truncation.staggered(20, 5, k))(
      jax.random.split(jax.random.key(1), 400))
  assert sorted(set(first.tolist())) == [5, 10, 15, 20]


@pytest.mark.parametrize("name", estimators.names())
def test_every_estimator(name):
  """Shapes of what any estimator returns, with its default settings."""
  estimator = estimators.get(name, task=TASK, opt_fn=sgd)
  keys = jax.random.split(jax.random.key(0), 3)
  state = estimator.init(keys, THETA)
  out, new = jax.jit(estimator.estimate)(keys, THETA, state, TASK.data)
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert types(new) == types(state)
  assert types(out.grad) == types(THETA)
  assert all(x.shape[0] == 3 for x in jax.tree.leaves(state))
  assert out.info["inner_steps"] > 0
  for x in jax.tree.leaves(out):
    assert np.all(np.isfinite(x))


@pytest.mark.parametrize("settings, message", [
    ({"std": 0.0}, "std > 0"), ({"truncation": 0}, "truncation 0"),
    ({"shortest": 24}, "longest 12"),
    ({"shortest": 4, "longest": 5}, "whole number"),
    ({"loss_split": "test"}, "available: train, inner_valid, outer_valid")])
def test_settings_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    make(**settings)


def test_noise_and_batches_differ_between_outer_steps():
  """At a theta that does not move, every outer step draws anew."""
  task = suite.get("mlp", parametrizations.get("mup"), width=4, batch_size=4)
  lopt = learned_opt_base.LearnedOptimizer(lambda key: THETA, sgd)
  estimator = estimators.get(
      "pes", task=task, opt_fn=sgd, truncation=2, shortest=8, longest=8)
  init, step = step_lib.make(
      lopt, {"a": estimator, "b": estimator}, optax.sgd(0.0), 3, seed=0)
  state, xi, losses = init(), [], []
  for _ in range(3):
    state, metrics = step(state, {"a": task.data, "b": task.data})
    xi.append([np.asarray(state.estimator_states[name].xi["momentum"])
               for name in ("a", "b")])
    losses += [float(metrics[f"{name}/meta_loss"]) for name in ("a", "b")]
  # An episode that began anew shows its eps, one that went on a sum with it.
  eps = [*np.ravel(xi[0]), *np.ravel(np.diff(xi, axis=0)), *np.ravel(xi[1:])]
  assert len(np.unique(np.round(eps, 8))) == len(eps)
  assert len(set(losses)) == len(losses)
