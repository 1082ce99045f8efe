"""VeLO with the settings in which its published weights differ."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest
import test_golden

from learned_opt import optimizers
import mulo

NAME = "velo_lstm16_bank8"
LAYOUT = "learned_optimization/hyper_v2"
SWITCHES = ("use_bugged_loss_features", "use_bugged_next_lstm_state")
DECAYS = (0.9, 0.99, 0.999)


class Naive:
  """VeLO from its formulas, in float64, one parameter after the other.

  It reads the arrays of a published file by their published names.
  """

  def __init__(self, arrays, params, num_steps, bugged_loss, bugged_state):
    self.a = {k: np.float64(x) for k, x in arrays.items()}
    self.num_steps, self.bugged_state = num_steps, bugged_state
    self.t = 0
    self.times = np.geomspace(10, 10 if bugged_loss else num_steps, 10)
    self.mean, self.least = np.zeros(10), np.full(10, 1e12)
    self.m = {k: [np.zeros(p.shape) for _ in DECAYS]
              for k, p in params.items()}
    self.v = {k: np.zeros(p.shape) for k, p in params.items()}
    self.f = {k: [None] * len(DECAYS) for k in params}
    self.h, self.c = ({k: self.a[f"lstm_init_state/{name}"][0] for k in params}
                      for name in ("hidden", "cell"))

  def dense(self, name, x):
    return x @ self.a[f"rnn_params/{name}/w"] + self.a[f"rnn_params/{name}/b"]

  def loss_features(self, loss):
    keep = np.exp(-1 / self.times)
    corrected = lambda: self.mean / (1 - keep**(self.t + 1))
    loss = min(loss, 2 * abs(corrected().max())) if self.t else loss
    self.mean = keep * self.mean + (1 - keep) * loss
    mean = corrected()
    self.least = np.minimum(self.least, mean)
    ratio = (mean - self.least)[:-1] / np.maximum(
        1e-8, mean[1:] - self.least[:-1])
    return np.clip(ratio - 1, -1, 1) if self.t > 1 else np.zeros(9)

  def tensor_features(self, k, p, loss):
    log = lambda x: 0.5 * np.clip(np.log(1e-8 + abs(10 * x)), -5, 5)
    q = max(1e-9, np.mean(p**2))**-0.5
    centers = [np.mean(q * m) for m in self.m[k]]
    rank = np.zeros(5)
    rank[sum(n > 1 for n in p.shape)] = 1
    return np.concatenate([
        np.tanh(10 * (self.t / self.num_steps - np.array(
            [0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1]))),
        loss, [log(np.mean(q * self.v[k]))], rank,
        [log(np.mean((q * m - c)**2)) for m, c in zip(self.m[k], centers)],
        [log(np.mean((q * self.v[k] - c)**2)) for c in centers]])

  def lstm(self, x, h, c):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    add, new, keep, out = np.split(
        self.dense("rnn/linear", np.concatenate([x, h])), 4)
    c = sigmoid(keep + 1) * c + sigmoid(add) * np.tanh(new)
    return sigmoid(out) * np.tanh(c), c

  def element_features(self, k, g, p):
    """Update the statistics; return features [30, *S]."""
    self.m[k] = [b * m + (1 - b) * g for b, m in zip(DECAYS, self.m[k])]
    self.v[k] = v = 0.999 * self.v[k] + 0.001 * g**2
    order = np.argsort(p.shape, kind="stable")[::-1]  # largest axis first
    factored = p.ndim > 1
    means = [np.mean(g**2 + 1e-30, axis, keepdims=True) for axis in order[:2]
             ] if factored else [g**2 + 1e-30] * 2
    self.f[k] = [[b * old + (1 - b) * new for old, new in zip(
        f or (0, 0), means)] for b, f in zip(DECAYS, self.f[k])]
    rows, columns = zip(*self.f[k])
    safe = lambda x: np.maximum(x, 1e-9)**-0.5
    if factored:
      for_g = for_m = [safe(r / (r.mean(order[1], keepdims=True) + 1e-9)) *
                       safe(c) for r, c in self.f[k]]
    else:
      for_g, for_m = [safe(r + 1e-9) for r in rows], [r**-0.5 for r in rows]
    m, inverse = self.m[k], (v + 1e-6)**-0.5
    features = [g, np.clip(g, -0.1, 0.1), p, *m, v, *[x * inverse for x in m],
                inverse, *[g * x for x in for_g], g * inverse, *rows, *columns,
                *[(x + 1e-8)**-0.5 for x in (*rows, *columns)],
                *[x * y for x, y in zip(m, for_m)]]
    features = np.stack([np.broadcast_to(x, p.shape) for x in features])
    axes = tuple(range(1, p.ndim + 1))
    return features / np.sqrt(
        1e-5 + np.mean(features**2, axes, keepdims=True))

  def update(self, grads, params, loss):
    loss = self.loss_features(loss)
    x = {k: self.tensor_features(k, np.float64(p), loss)
         for k, p in params.items()}
    pooled = np.max([np.maximum(0, self.dense("linear_1", row))
                     for row in x.values()], 0)
    updates = {}
    for k, p in params.items():
      p, g = np.float64(p), np.clip(np.float64(grads[k]), -1000, 1000)
      h, c = self.lstm(
          self.dense("linear_2", x[k]) + pooled, self.h[k], self.c[k])
      if not self.bugged_state:
        self.h[k], self.c[k] = h, c
      controls = self.dense("rnn_to_controls", h)
      mixed = lambda name: 100 * np.mean([
          c * w for c, w in zip(controls, self.a[f"ff_mod_stack/~/{name}"])], 0)
      out = self.element_features(k, g, p)
      for i in range(3):
        weights = mixed(f"w{i}") if i else np.concatenate(
            [mixed(f"w0__{j}") for j in range(14)])
        out = np.tensordot(weights.T, out, 1)
        out += mixed(f"b{i}").reshape(-1, *[1] * p.ndim)
        out = np.maximum(out, 0) if i < 2 else out
      rate = 0.001 * self.dense("step_size", h)[0]
      updates[k] = -rate * np.sqrt(np.mean(p**2) + 1e-9) * out[0] * np.exp(
          0.001 * out[1])
    self.t += 1
    return updates


def published():
  """Arrays of the golden file, by the first part of their names."""
  part, _ = test_golden.read(test_golden.GOLDEN / f"{NAME}.npz")
  return part


def trained(update, part, losses):
  """Parameters after each step; `update(grads, params, loss)`."""
  params, after = part("params"), []
  for t in range(6):
    updates = update(part(f"grads/{t}"), params, losses[t])
    params = {k: np.asarray(p + updates[k]) for k, p in params.items()}
    after.append(params)
  return after


def assert_close(found, expected, start):
  """Raise unless deviations are small compared with the movement."""
  for k, p in start.items():
    movement = np.max(np.abs(np.float64(expected[-1][k]) - p))
    difference = max(np.max(np.abs(np.float64(x[k]) - y[k]))
                     for x, y in zip(found, expected))
    assert difference <= test_golden.ROUNDING * movement, k


def test_the_naive_form_repeats_the_golden_vectors():
  part = published()
  naive = Naive(part("theta"), part("params"), 20, False, False)
  with np.load(test_golden.GOLDEN / f"{NAME}.npz") as file:
    naive.num_steps = int(file["num_steps"])
  naive.times = np.geomspace(10, naive.num_steps, 10)
  losses = [float(part("loss")[str(t)]) for t in range(6)]
  assert_close(trained(naive.update, part, losses),
               [part(f"after/{t}") for t in range(6)], part("params"))


LOSSES = (2.0, 1.5, 1.8, 1.7, 1.4, 1.6)  # neither falling nor rising


@pytest.mark.parametrize(
    "switches", list(itertools.product([False, True], repeat=2)))
def test_bugged_settings(switches):
  part = published()
  naive = Naive(part("theta"), part("params"), 1000, *switches)
  artifact = mulo.convert(
      part("theta"), LAYOUT, **dict(zip(SWITCHES, switches)))
  tx = artifact.lopt.opt_fn(artifact.theta, num_steps=1000)
  state, step = tx.init(part("params")), jax.jit(tx.update)

  def update(grads, params, loss):
    nonlocal state
    updates, state = step(grads, state, params, value=loss)
    return updates

  found = trained(update, part, LOSSES)
  expected = trained(naive.update, part, LOSSES)
  assert_close(found, expected, part("params"))
  same = jax.tree.map(np.array_equal, state.lstm, tx.init(part("params")).lstm)
  assert all(jax.tree.leaves(same)) == switches[1]


def test_each_setting_changes_updates():
  """By far more than the deviations that the comparison above allows."""
  part, after = published(), []
  for switches in ((False, False), (True, False), (False, True)):
    naive = Naive(part("theta"), part("params"), 1000, *switches)
    after.append(trained(naive.update, part, LOSSES)[-1])
  for other in after[1:]:
    with pytest.raises(AssertionError):
      assert_close([other], [after[0]], part("params"))


@pytest.mark.parametrize("given, missing", [
    ({}, "use_bugged_loss_features and use_bugged_next_lstm_state"),
    ({SWITCHES[0]: False}, "differ in use_bugged_next_lstm_state without"),
    ({SWITCHES[1]: True}, "differ in use_bugged_loss_features without")])
def test_published_files_do_not_say(given, missing, tmp_path):
  theta = published()("theta")
  with pytest.raises(ValueError, match=missing):
    mulo.convert(theta, LAYOUT, **given)
  # A file that was converted before the settings existed.
  artifact = mulo.convert(theta, LAYOUT, **dict.fromkeys(SWITCHES, False))
  stored = {k: x for k, x in artifact.settings.items()
            if k not in SWITCHES} | given
  path = tmp_path / "velo.safetensors"
  mulo.save(path, dataclasses.replace(artifact, settings=stored))
  with pytest.raises(ValueError, match=missing):
    mulo.load(path, num_steps=10)
  tx = mulo.load(path, num_steps=10, **dict.fromkeys(SWITCHES, True))
  assert isinstance(tx, optax.GradientTransformation)


def test_switches_are_booleans():
  for name in SWITCHES:
    with pytest.raises(ValueError, match=f"{name} must be True or False"):
      optimizers.get("velo", **{name: 1})
