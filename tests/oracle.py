"""The learned optimizers written naively, in numpy and float64.

All features are stacked into one (N, features) array, as in the papers.
"""

import numpy as np

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)


def factored_axes(shape):
  """(second largest axis, largest axis); later axes win ties."""
  order = sorted(range(len(shape)), key=lambda i: (shape[i], i))
  return order[-2], order[-1]


class Statistics:
  """Moving averages of one parameter's gradients."""

  def __init__(self, shape, floor):
    self.m = [np.zeros(shape)] * 3
    self.v = np.zeros(shape)
    self.r = [0.0] * 3
    self.c = [0.0] * 3
    self.floor = floor
    self.axes = factored_axes(shape) if len(shape) > 1 else None

  def update(self, g, momentum, second, factored):
    s = g**2 + self.floor
    self.m = [b * m + (1 - b) * g for b, m in zip(momentum, self.m)]
    self.v = second * self.v + (1 - second) * g**2
    if self.axes is None:
      row = column = s
    else:
      row = s.mean(self.axes[1], keepdims=True)
      column = s.mean(self.axes[0], keepdims=True)
    self.r = [b * r + (1 - b) * row for b, r in zip(factored, self.r)]
    self.c = [b * c + (1 - b) * column for b, c in zip(factored, self.c)]


def mlp(theta, features):
  """[N, features] -> direction [N], magnitude [N]."""
  x = features
  for i in range(3):
    x = x @ np.float64(theta[f"w{i}"]) + np.float64(theta[f"b{i}"])
    x = np.maximum(x, 0) if i < 2 else x
  return x[:, 0], x[:, 1]


def stack(features, shape):
  """Features that broadcast against the shape, as [N, features]."""
  return np.stack([np.broadcast_to(f, shape).ravel() for f in features], -1)


def run(step_one, theta, params, grads):
  """Applies a rule to each parameter; returns the parameters after each."""
  params = {k: np.float64(p) for k, p in params.items()}
  states = {k: None for k in params}
  after = []
  for t, grad in enumerate(grads):
    for k in params:
      shape = params[k].shape or (1,)
      g = np.float64(grad[k]).reshape(shape)
      p = params[k].reshape(shape)
      step, states[k] = step_one(theta, g, p, states[k], t)
      params[k] = params[k] + step.reshape(params[k].shape)
    after.append(dict(params))
  return after


def adafac_mlp(step_mult, exp_mult=0.001):
  """small_fc_lopt, spec by Metz et al., 2022."""

  def decay(initial, residual):
    b = 1 - (1 - np.array(initial)) * np.exp(10 * np.float64(residual))
    return b

  def step_one(theta, g, p, s, t):
    s = s or Statistics(g.shape, 1e-30)
    initial = (0.9, 0.99, 0.999)
    s.update(g, decay(initial, theta["momentum_decays"]),
             decay(0.999, theta["rms_decays"])[0].clip(0, 1),
             decay(initial, theta["adafactor_decays"]).clip(0, 1))
    rsqrt = lambda x: x**-0.5
    safe = lambda x: rsqrt(np.maximum(x, 1e-9))
    if s.axes is None:
      for_g = [safe(v + 1e-9) for v in s.r]
      for_m = [rsqrt(v + 1e-6) for v in s.r]
    else:
      mean = [r.mean(s.axes[0], keepdims=True) for r in s.r]
      for_g = for_m = [safe(r / (mu + 1e-9)) * safe(c)
                       for r, c, mu in zip(s.r, s.c, mean)]
    inverse = rsqrt(s.v + 1e-6)
    features = stack([
        g, p, *s.m, s.v, *[m * inverse for m in s.m], inverse,
        *[g * f for f in for_g], *s.r, *s.c,
        *[rsqrt(r + 1e-8) for r in s.r], *[rsqrt(c + 1e-8) for c in s.c],
        *[m * f for m, f in zip(s.m, for_m)]], g.shape)
    features *= rsqrt(1e-5 + np.mean(features**2, 0))
    time = np.tanh(t / np.array(TIME_SCALES) - 1)
    time = np.broadcast_to(time, (len(features), len(time)))
    d, e = mlp(theta, np.concatenate([features, time], 1))
    return -step_mult * (d * np.exp(exp_mult * e)).reshape(g.shape), s

  return step_one


def mulo(step_mult, exp_mult=0.1, floor=1e-8, max_inverse=10.0):
  """mulo in plain units: float64 neither overflows nor vanishes here."""

  def decay(initial, residual):
    b = 1 - (1 - np.array(initial)) * np.exp(10 * np.float64(residual))
    return b.clip(0, 0.99999)

  def roots(x):
    if x.mean() == 0:
      return np.zeros_like(x), np.zeros_like(x)
    root = (x + floor * x.mean())**-0.5
    return root, np.minimum(root, max_inverse * x.mean()**-0.5)

  def step_one(theta, g, p, s, t):
    s = s or Statistics(g.shape, 0.0)
    initial = (0.9, 0.99, 0.999)
    momentum = decay(initial, theta["momentum_decays"])
    second = decay(0.999, theta["second_decay"])
    s.update(g, momentum, second, decay(initial, theta["factored_decays"]))
    inverse, inverse_feature = roots(s.v)
    row, row_feature = zip(*[roots(r) for r in s.r])
    column, column_feature = zip(*[roots(c) for c in s.c])
    if s.axes is None:
      factored = row
    else:
      factored = [
          a * b * (r.mean(s.axes[0], keepdims=True) + floor * r.mean())**0.5
          for a, b, r in zip(row, column, s.r)]
    features = stack([
        g, p, *s.m, s.v, *[m * inverse for m in s.m], inverse_feature,
        *[g * f for f in factored], *s.r, *s.c, *row_feature, *column_feature,
        *[m * f for m, f in zip(s.m, factored)]], g.shape)
    rms = np.mean(features**2, 0)**0.5
    features = np.clip(features / np.where(rms > 0, rms, 1), -5, 5)
    noise = np.zeros(3)
    if s.v.any():
      unbiased = [(m**2).mean() / (1 - b**(t + 1))**2
                  for m, b in zip(s.m, momentum)]
      noise = 0.5 * np.log(
          np.array(unbiased) / (s.v.mean() / (1 - second**(t + 1))))
    tensor = np.concatenate(
        [np.tanh(t / np.array(TIME_SCALES) - 1), noise])
    tensor = np.broadcast_to(tensor, (len(features), len(tensor)))
    d, e = mlp(theta, np.concatenate([features, tensor], 1))
    return -step_mult * (d * np.exp(exp_mult * e)).reshape(g.shape), s

  return step_one
