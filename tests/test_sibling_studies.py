"""Studies of outer optimizers and of nowcasting: scores, and a small run."""

import types

import jax
import numpy as np
import optax
import pandas as pd
import pytest
import tqdm

from experiments.around import communication
from experiments.around import nowcasting
from experiments.around import outers
from learned_opt import optimizers


def test_rounds_to():
  curve = [4.0, 3.0, 1.0, 2.0]
  every = communication.EVERY
  assert communication.rounds_to(curve, 3.5) == 0.5 * every
  assert communication.rounds_to(curve, 1.0) == 2 * every
  assert communication.rounds_to(curve, 5.0) == 0
  assert communication.rounds_to(curve, 0.5) == np.inf
  assert communication.rounds_to([np.nan, np.nan], 0.5) == np.inf


def test_goals_are_those_of_local_sgd():
  rows = [{"method": method, "workers": 8, "every": 4, "seed": seed,
           "test": test, "local_rate": 0.1, "settings": "",
           "bytes_per_round": size, "edge": False}
          for method, size, tests in (
              (outers.LOCAL_SGD, 4e6, ([3, 2, 1], [5, 4, 3])),
              ("fast", 16e6, ([4, 1, 1], [4, 2, 2]))) for seed, test in
          enumerate(tests)]
  results = communication.with_rounds(pd.DataFrame(rows))
  fast = results[results["method"] == "fast"]
  assert set(results["goal half"]) == {3} and set(results["goal end"]) == {2}
  np.testing.assert_allclose(fast["rounds half"], [2 / 3, 1])
  np.testing.assert_allclose(fast["rounds end"], [4 / 3, 2])
  lines = communication.table(results).splitlines()
  assert "never" in lines[2]  # one seed of local SGD stays above its mean
  assert "26.7 (21.3 to 32.0)" in lines[3]  # rounds x 16 MB


def test_who_reads_the_spread():
  for name, reads in (("lagg", True), ("hyperparam_adam", False)):
    lopt = optimizers.get(name)
    assert outers.reads_spread(
        lopt.opt_fn, lopt.init(jax.random.key(0))) == reads


def test_momentum_is_that_of_optax():
  """On differences that the engine has divided by rate * steps."""
  grads = [{"w": np.float32([x, -1])} for x in (1, 2, 3)]
  for nesterov in (False, True):
    ours = outers.momentum_sgd(0.4, nesterov)(np.float32([0.7, 0.9]))
    theirs = optax.sgd(0.7, 0.9, nesterov)
    state, other = ours.init(grads[0]), theirs.init(grads[0])
    for g in grads:
      actual, state = ours.update(
          jax.tree.map(lambda x: x / 0.4, g), state, g)
      expected, other = theirs.update(g, other)
      np.testing.assert_allclose(actual["w"], expected["w"], rtol=1e-6)


def test_a_small_comparison(tmp_path):
  flags = types.SimpleNamespace(
      workdir=tmp_path, num_rounds=4, data_dir=None, local_rates=["0.1", "0.3"],
      seeds=2)
  section = {"name": "mlp", "dataset": "digits", "width": 2, "depth": 1,
             "batch_size": 64, "workers": {"count": 2, "every": 2}}
  bar = tqdm.tqdm(disable=True)
  study = communication.Study(flags, bar)
  compare = lambda: study.run([
      study.compare(section, outers.get("local_sgd", 2, ()))])
  rows = compare()
  assert list(rows["seed"]) == [0, 1] and set(rows["bytes_per_round"]) == {
      4 * (64 * 2 + 2 + 2 * 10 + 10)}
  assert all(row[-1] < row[0] for row in rows["test"])
  assert len(rows["test"][rows.index[0]]) == 3
  pd.testing.assert_frame_equal(compare(), rows)


@pytest.mark.parametrize("optimum, tried, edge", [
    (0.3, [0.1, 0.3, 1.0], False), (3.0, [0.1, 0.3, 1.0, 3.33, 11.1], False),
    (1e-9, [0.0012, 0.0037, 0.0111, 0.0333, 0.1, 0.3, 1.0], True)])
def test_local_rates_grow(tmp_path, monkeypatch, optimum, tried, edge):
  """While the best local rate is at an edge, the next one is tried."""
  seen = []

  def curves(section, outer, candidates, seeds, *_):
    seen.extend(rate for rate, _ in candidates)
    return [{"seed": seed, "local_rate": rate, "theta": i, "parameters": 1,
             "valid": [abs(np.log(rate / optimum))], "test": [1.0]}
            for rate, i in candidates for seed in seeds]

  monkeypatch.setattr(communication, "curves", curves)
  flags = types.SimpleNamespace(
      workdir=tmp_path, num_rounds=2, data_dir=None, seeds=2,
      local_rates=["0.1", "0.3", "1"])
  study = communication.Study(flags, tqdm.tqdm(disable=True))
  rows = study.run([study.compare({"workers": {"count": 2, "every": 2}},
                                  outers.get("local_sgd", 2, ()))])
  np.testing.assert_allclose(sorted(seen), tried, rtol=0.05)
  assert set(rows["edge"]) == {edge} and list(rows["seed"]) == [0, 1]
  nearest = min(tried, key=lambda rate: abs(np.log(rate / optimum)))
  np.testing.assert_allclose(rows["local_rate"], nearest, rtol=0.05)


def test_scores_of_nowcasting():
  curve = [9.0] * 6 + [1.0] * 6
  assert nowcasting.steps_to(curve, 1.0) == 10 * nowcasting.EVERY
  assert nowcasting.steps_to(curve, 0.5) == np.inf
  assert nowcasting.ended(curve) == 1
  assert nowcasting.ended([np.nan] * 6) == np.inf
  batch = np.ones(40)
  batch[[20, 21, 33]] = 5, 3, 9  # 33 does not follow a jump
  assert nowcasting.spike(list(batch), 20) == pytest.approx(5)
