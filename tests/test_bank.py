"""Episodes that go on from hard states: unbiased, and what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_estimators as lib

from meta_train import estimators
from meta_train import unroll
from meta_train.estimators.shared import bank as bank_lib
from meta_train.estimators.shared import perturb

TASK, THETA, sgd = lib.TASK, lib.THETA, lib.sgd
TRUNCATION, LENGTH, WINDOWS = lib.TRUNCATION, lib.LENGTH, lib.WINDOWS


def exact(first):
  """Return the gradient of the mean loss of the steps after step `first`."""
  def loss(theta):
    steps = first + TRUNCATION
    state = unroll.start(TASK, sgd, theta, jax.random.key(0), steps)
    _, losses = unroll.unroll(
        TASK, sgd, theta, state, jax.random.key(0), TASK.data, steps)
    return jnp.mean(losses[first:])
  return jax.jit(jax.grad(loss))(THETA)


@pytest.mark.parametrize("name", ["pes", "noise_reuse_es"])
def test_estimates_of_resumed_episodes_are_unbiased(name):
  """The stored noise counts: losses depend on theta from the first step on.

  The quadratic falls steadily, so the last truncation of each episode is
  stored, and episodes go on from step 9, 18, ... for 12 more.
  """
  copies = 2**13
  outs, states = lib.episode(
      lib.make(1e-3, name, resume=1.0), copies, windows=WINDOWS + 3)
  first = [int(s.inner.step[0, 0]) - TRUNCATION for s in states]
  again = LENGTH - TRUNCATION
  assert first == [0, 3, 6, 9, again, again + 3, again + 6]
  for out, step in list(zip(outs, first))[-3:]:
    for key, value in exact(step).items():
      # The variance per pair is at most that of the test of PES, see there.
      assert abs(out.grad[key] - value) < 0.25 * abs(value), (step, key)


def test_the_noise_of_the_stored_state_comes_back():
  """xi goes on from the stored one, which lacks the truncation repeated."""
  _, states = lib.episode(lib.make(resume=1.0), 2, windows=WINDOWS + 1)
  *_, before, last, resumed = states
  for stored in (before.noise, last.bank.noise):
    np.testing.assert_array_equal(stored["momentum"], before.noise["momentum"])
  keys = jax.random.split(jax.random.fold_in(jax.random.key(1), WINDOWS), 2)
  eps = perturb.sample(jax.random.split(keys[0], 3)[2], THETA, 0.01)
  np.testing.assert_allclose(
      resumed.noise["momentum"][0],
      before.noise["momentum"][0] + eps["momentum"], rtol=1e-6)


def test_probability_of_resuming():
  _, states = lib.episode(lib.make(resume=0.25), 4096, windows=WINDOWS + 1)
  resumed = np.asarray(states[-1].inner.step[:, 0]) > TRUNCATION
  assert np.mean(resumed) == pytest.approx(0.25, abs=0.03)
  lengths = np.asarray(states[-1].inner.length[:, 0])
  assert set(lengths[resumed]) == {2 * LENGTH - TRUNCATION}
  assert set(lengths[~resumed]) == {LENGTH}
  with pytest.raises(ValueError, match="resume is a probability"):
    lib.make(resume=1.5)


def run(losses, lengths=100, networks=2):
  """Return the numbers of truncations that a bank stores.

  Args:
    losses: of the truncations of one episode, [truncations, steps].
    lengths: inner steps of the episode.
    networks: of a copy.
  """
  inner = lambda step: unroll.InnerState(
      {"p": jnp.full([networks, 1], step, jnp.float32)}, (),
      jnp.full([networks], step, jnp.int32),
      jnp.full([networks], lengths, jnp.int32))
  bank, stored = bank_lib.empty(inner(0), {"e": jnp.zeros(2)}), []
  steps = len(losses[0])
  for i, row in enumerate(losses):
    bank = bank_lib.end(
        bank, (inner(i * steps), {"e": jnp.full(2, i)}),
        inner((i + 1) * steps),
        jnp.stack([jnp.float32(row)] * networks) + jnp.array([[0.5], [-0.5]]))
    stored.append(int(bank.noise["e"][0]) if bool(bank.filled) else None)
    if stored[-1] is not None:
      assert int(bank.inner.step[0]) == stored[-1] * steps
  return stored


def test_the_state_before_the_largest_rise_is_stored():
  """A rise counts from the lowest loss before it, over truncations, too."""
  assert run([[9, 8, 7], [6, 5, 4], [4, 5, 5]]) == [None, None, 2]
  # A rise of 1, then one of 1.5 that two truncations share.
  assert run([[9, 8, 9], [5, 4, 5], [5, 5, 5.5], [5, 5, 5]]) == [0, 0, 2, 2]


def test_the_last_truncation_is_stored():
  assert run([[3, 2], [2, 1], [1, 0]], lengths=6) == [None, None, 2]


def test_states_without_finite_losses_are_not_stored():
  nan = float("nan")
  assert run([[1, 2], [2, nan], [nan, nan], [nan, nan]], lengths=8) == [
      0, 0, 0, 0]
  assert run([[1, nan], [nan, nan]], lengths=4) == [None, None]


def test_resume_with_merged_networks():
  """Truncated ES keeps one network; its bank has the same shapes."""
  estimator = estimators.get(
      "truncated_es", task=TASK, opt_fn=sgd, truncation=TRUNCATION,
      shortest=LENGTH, longest=LENGTH, stagger=False, resume=1.0)
  _, states = lib.episode(estimator, 2, windows=WINDOWS + 1)
  assert int(states[-1].inner.step[0, 0]) == LENGTH
