"""Bias of the gradient estimators against the exact gradient of a quadratic."""

import numpy as np
import pytest

from experiments.benchmarks import estimator_bench
from meta_train import estimators

UNBIASED = ["full_backprop", "full_es", "noise_reuse_es", "pes"]
BIASED = ["truncated_backprop", "truncated_es"]
PARTS = list(estimator_bench.THETA)


@pytest.fixture(scope="module", name="table")
def fixture_table():
  return estimator_bench.accuracies(estimators.names(), 8192, seed=1)


def row(table, name):
  return table.set_index("estimator").loc[name]


def test_exact_gradient():
  """Compare with central differences in float64, without JAX."""
  dim, condition = estimator_bench.DIM, estimator_bench.CONDITION
  curvature = 2 * np.linspace(1, condition, dim) / (1 + condition)

  def mean_loss(log_step, momentum):
    p, velocity, losses = 1 / np.sqrt(dim * curvature), np.zeros(dim), []
    for _ in range(estimator_bench.LENGTH):
      losses.append(0.5 * np.sum(curvature * p**2))
      velocity = momentum * velocity + curvature * p
      p = p - np.exp(log_step) * velocity
    return np.mean(losses)

  theta = np.array([float(x) for x in estimator_bench.THETA.values()])
  expected = [(mean_loss(*(theta + d)) - mean_loss(*(theta - d))) / 2e-5
              for d in 1e-5 * np.eye(2)]
  np.testing.assert_allclose(estimator_bench.exact(), expected, rtol=1e-5)


def test_every_estimator_is_in_the_table(table):
  assert list(table["estimator"]) == estimators.names()
  windows = estimator_bench.LENGTH // estimator_bench.TRUNCATION
  for name, outer_steps in {
      "full_backprop": 1, "full_es": 1, "pes": windows,
      "truncated_backprop": windows}.items():
    assert row(table, name)["outer steps per episode"] == outer_steps


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased(table, name):
  columns = row(table, name)
  for part in PARTS:
    error, bar = abs(columns[f"error {part}"]), columns[f"3 SE {part}"]
    assert error < max(4 / 3 * bar, 1e-3)
    assert bar / 3 < 0.03  # otherwise the line above would hold by chance
  if name != "full_backprop":
    assert columns["std per copy"] > 0.1


@pytest.mark.parametrize("name", BIASED)
def test_biased(table, name):
  columns = row(table, name)
  assert columns["bias"] > max(0.5, 10 / 3 * columns["3 standard errors"])
  assert columns["within 3 standard errors"] == "no"


def test_truncated_estimators_share_their_bias(table):
  backprop, es = (row(table, name) for name in BIASED)
  for part in PARTS:
    error = abs(es[f"error {part}"] - backprop[f"error {part}"])
    assert error < 4 / 3 * es[f"3 SE {part}"]
  assert backprop["std per copy"] == pytest.approx(0, abs=1e-5)
  assert es["std per copy"] < 0.5 * row(table, "pes")["std per copy"]


def test_variance_of_full_es(table):
  """The total variance is 3 |g|^2: theta has two numbers, the loss is linear.

  The estimate is eps (eps . g) / std^2, with covariance |g|^2 I + g g^T.
  """
  assert row(table, "full_es")["std per copy"] == pytest.approx(
      np.sqrt(3), rel=0.1)


def test_smoothing_and_rounding_are_negligible(table):
  """Scale the noise: smoothing grows with it, rounding shrinks."""
  grads = estimator_bench.estimates("pes", 8192, 1, 3e-3)
  large = estimator_bench.accuracy(grads, estimator_bench.exact())
  small = row(table, "pes")
  for part in PARTS:
    error = f"error {part}"
    assert abs(large[error] - small[error]) < 0.05 * small[f"3 SE {part}"]
  assert large["bias"] != small["bias"]


@pytest.mark.parametrize("offset, noise, expected", [
    (0.0, 1.0, "yes"), (1.0, 1.0, "no"), (1e-4, 0.0, "yes"),
    (1e-2, 0.0, "no")])
def test_within(offset, noise, expected):
  target = np.array([3.0, -4.0])
  rng = np.random.default_rng(0)
  grads = target + 5 * (
      offset * np.array([0, 1]) + noise * rng.normal(size=(1000, 2)))
  columns = estimator_bench.accuracy(grads, target)
  assert columns["within 3 standard errors"] == expected
  bar = 3 * noise / np.sqrt(1000)
  assert columns["bias"] == pytest.approx(
      offset, rel=1e-6, abs=1.5 * bar)
  assert columns["std per copy"] == pytest.approx(
      np.sqrt(2) * noise, rel=0.05, abs=1e-12)
  assert columns["3 SE momentum"] == pytest.approx(bar, rel=0.1, abs=1e-12)


def test_files(table, tmp_path):
  costs = estimator_bench.costs(["pes"], copies=2, rounds=1)
  assert costs["inner steps per outer step"][0] == (
      2 * 2 * estimator_bench.TRUNCATION)
  text = estimator_bench.write(
      table.merge(costs, how="left"), "About.", tmp_path / "new")
  for name in estimators.names():
    assert f"| {name} " in text
  assert (tmp_path / "new/table.md").read_text() == text
  assert "ms per outer step" in (tmp_path / "new/results.csv").read_text()
  assert (tmp_path / "new/estimators.png").stat().st_size > 1000
