"""Baselines: their budget, their rules, and grids that grow."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tqdm

from experiments import baselines
from experiments import methods
from experiments.baselines import page
from experiments.studies import transfer
from learned_opt.scaling import parametrizations
from meta_train import evaluate
from tasks import families

# Their grids are in the identity of cells that studies have computed.
OLDER = {"adam", "adamw", "muon", "muon_tuned", "muon_fixed", "mu_adam",
         "mu_adam_transferred", "mu_adam_balanced", "sgd", "lion", "adafactor",
         "adamw_tuned"}
NEWER = sorted(set(baselines.names()) - OLDER)
FIXED = {"adamw_fixed"}


@functools.cache
def task_of(width, parametrization):
  """Return a perceptron with an input, a hidden and an output matrix."""
  return families.get("mlp", parametrizations.get(parametrization),
                      width=width, depth=2, batch_size=4)


@pytest.mark.parametrize("name", NEWER)
def test_budgets_are_equal(name):
  method, = methods.parse([name], ["constant"])
  assert len(method.candidates) == (
      1 if name in FIXED else baselines.BUDGET)
  assert method.tuned_at_base == name.endswith("_transferred")
  labels = {(c.schedule, c.learning_rate) for c in method.candidates}
  assert len(labels) == len(method.candidates)


@pytest.mark.parametrize("name", NEWER)
def test_every_candidate_moves(name):
  """All numbers of an `opt_fn` are one vmapped program; each matters."""
  method, = methods.parse([name], ["constant"])
  task = task_of(4, method.parametrization)
  params = task.init(jax.random.key(0))
  grads = jax.tree.map(lambda p: jax.random.normal(
      jax.random.key(p.size), p.shape), params)
  by_fn = {}
  for c in method.candidates:
    if c.schedule.startswith(method.candidates[0].schedule.split(",")[0]):
      by_fn.setdefault(c.opt_fn, []).append(c)
  moved = []
  for opt_fn, group in by_fn.items():
    complete = methods.complete(
        opt_fn, parametrizations.get(method.parametrization), task)

    def two_steps(theta, complete=complete):
      tx = complete(theta, num_steps=20)
      state, x = tx.init(params), params
      for grad in (grads, params):
        updates, state = tx.update(grad, state, x)
        x = optax.apply_updates(x, updates)
      return x

    ends = jax.jit(jax.vmap(two_steps))(jax.tree.map(
        lambda *x: jnp.stack(x), *[c.theta for c in group]))
    moved += [jax.tree.map(lambda x, i=i: np.asarray(x[i]), ends)
              for i in range(len(group))]
  for x in moved:
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(x))
    assert all(np.any(a != b) for a, b in zip(
        jax.tree.leaves(x), jax.tree.leaves(params)))
  flat = {np.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(x)])
          .tobytes() for x in moved}
  assert len(flat) == len(moved)  # no two settings do the same


def updates(name, width, settings=None, grads=None, rate=0.1):
  """Return the first update of a baseline at a constant rate, and parameters.
  """
  baseline = baselines.get(name)
  task = task_of(width, baseline.parametrization)
  params = task.init(jax.random.key(0))
  grads = jax.tree.map(jnp.ones_like, params) if grads is None else grads(
      params)
  opt_fn = baselines.opt_fn(baseline, "constant", **(settings or {}))
  tx = methods.complete(
      opt_fn, parametrizations.get(baseline.parametrization), task)(
          np.float32(rate), num_steps=10)
  return jax.jit(tx.update)(grads, tx.init(params), params)[0], params


def normal(params):
  return jax.tree.map(lambda p: jax.random.normal(
      jax.random.key(p.shape[-1] + 7 * p.ndim), p.shape), params)


def test_muon_on_hidden_matrices():
  """Adam has the first and last layers, at a rate of its own, with decay."""
  muon, params = updates("muon_matrices_tuned", 8, {
      "matrices": "hidden", "adam_rate": 3.0, "weight_decay": 0.1}, normal)
  grads = normal(params)
  nadam = optax.adamw(0.3, weight_decay=0.1, nesterov=True)
  adam, _ = nadam.update(grads, nadam.init(params), params)
  layers = sorted(params)
  hidden = [x for x in layers if params[x]["w"].shape == (8, 8)]
  assert len(hidden) == 1
  for layer in layers:
    if layer in hidden:
      # Newton-Schulz leaves singular values between 0.7 and 1.2.
      direction = (muon[layer]["w"] + 0.01 * params[layer]["w"]) / (
          0.1 * 0.2 * 8**0.5)
      values = np.linalg.svd(direction, compute_uv=False)
      assert np.all((values > 0.6) & (values < 1.3))
    else:
      chex.assert_trees_all_close(muon[layer], adam[layer], rtol=1e-4)


def test_normuon_equalizes_outputs():
  plain, params = updates("muon_matrices_tuned", 8, {}, normal)
  rows, _ = updates("normuon_tuned", 8, {}, normal)
  of_outputs = lambda u: np.mean(np.square(u["layer_1"]["w"]), 0)
  assert np.ptp(of_outputs(plain)) > 1e-2 * np.mean(of_outputs(plain))
  assert np.ptp(of_outputs(rows)) < 1e-4 * np.mean(of_outputs(rows))
  norm = lambda u: np.linalg.norm(u["layer_1"]["w"])
  np.testing.assert_allclose(norm(rows), norm(plain), rtol=1e-4)


@pytest.mark.parametrize("name, kept", [
    ("muon_ball_tuned", {"matrices": "hidden"}), ("adam_ball_tuned", {})])
def test_balls(name, kept):
  update, params = updates(name, 8, kept, normal)
  after = optax.apply_updates(params, update)
  for layer in params:
    size = [np.linalg.norm(x[layer]["w"]) for x in (params, after)]
    on_ball = not kept or params[layer]["w"].shape == (8, 8)
    assert (abs(size[1] / size[0] - 1) < 1e-5) == on_ball


def test_transferred_rules():
  """Updates scale with width as muP says; decay shrinks all widths alike."""
  first = lambda u: np.abs(u["layer_1"]["w"][0, 0])
  narrow, wide = (first(updates("mu_adamw_transferred", n)[0]) for n in (8, 32))
  np.testing.assert_allclose(narrow / wide, 4, rtol=1e-3)
  for n in (8, 32):
    decayed, params = updates("mu_adamw_transferred", n, {"weight_decay": 0.1})
    plain, _ = updates("mu_adamw_transferred", n)
    np.testing.assert_allclose(
        decayed["layer_1"]["w"] - plain["layer_1"]["w"],
        -0.01 * params["layer_1"]["w"], rtol=1e-3, atol=1e-7)
  # The spectral norm of a square hidden matrix is the learning rate.
  for n in (8, 32):
    muon, params = updates("mu_muon_transferred", n, None, normal)
    values = np.linalg.svd(muon["layer_1"]["w"], compute_uv=False)
    assert np.all((values > 0.06) & (values < 0.13))


def test_schedule_free_ends_at_the_average():
  """The last of three steps leads to the mean of z, weighted by the rate."""
  tx = baselines.opt_fn(baselines.get("schedule_free_tuned"), "constant")(
      np.float32(0.1), num_steps=3)
  plain = optax.contrib.schedule_free_adamw(0.1)
  states, ends = [tx.init(jnp.ones(2)), plain.init(jnp.ones(2))], [
      jnp.ones(2), jnp.ones(2)]
  for step in range(3):
    for i, each in enumerate((tx, plain)):
      update, states[i] = each.update(
          ends[i] + step, states[i], ends[i], value=1.0)
      ends[i] = ends[i] + update
    assert np.allclose(ends[0], ends[1], rtol=1e-5) == (step < 2)
  np.testing.assert_allclose(
      ends[0], optax.contrib.schedule_free_eval_params(states[1], ends[1]),
      rtol=1e-5)


def tune(folder, monkeypatch, score, max_growth=4, name="adamw_b2_tuned"):
  """Tune a baseline on scores; return the results and what was trained."""
  asked = []

  def train(self, method, candidates, section, seeds):
    asked.append([c.identity for c in candidates])
    return [{"seed": seed, "final_train_loss": score(c)}
            for c in candidates for seed in seeds]

  monkeypatch.setattr(transfer.Study, "_train", train)
  study = transfer.Study(folder, None, 2, 1, "final_train_loss",
                         tqdm.tqdm(disable=True), max_growth)
  results = study.compare(methods.parse([name], []), {
      "a": {"name": "mlp", "num_steps": 10}})
  return results.iloc[0], asked


@pytest.mark.parametrize("best, max_growth, grown, edge", [
    (-4, 4, 0, False), (-1, 4, 3, False), (-7, 4, 3, False), (2, 4, 4, True),
    (-1, 0, 0, True), (-1, 2, 2, True)])
def test_grids_grow(best, max_growth, grown, edge, tmp_path, monkeypatch):
  """The grid of one setting grows to where the best is inside, or a bound."""
  exponent = lambda c: 2 * np.log10(c.learning_rate)

  def score(c):
    other = c.identity["variant"] != {"b2": 0.95, "weight_decay": 0.1}
    return abs(exponent(c) - best) + 10 * other

  result, asked = tune(tmp_path, monkeypatch, score, max_growth)
  assert (result.grown, result.grid_edge) == (grown, edge)
  assert result.tuning_runs == 2 * (24 + grown)
  assert len(asked) == 8 + grown + 1  # settings, growth, the reported runs
  for identity, in asked[8:-1]:
    assert identity["variant"] == {"b2": 0.95, "weight_decay": 0.1}
    rate = identity["learning_rate"]
    assert rate == baselines.base.half_decades(
        *[round(2 * np.log10(rate))] * 2)[0]
  if not edge:
    assert round(2 * np.log10(result.learning_rate)) == best


def test_known_answers(tmp_path, monkeypatch):
  """Tuning finds the best rate of descent on a quadratic, and flags ascent.

  The largest and the smallest curvature have the sum 2, so the best rate is 1.
  """
  rates = baselines.base.half_decades(-5, -3)
  for name, sign in (("descent", 1), ("ascent", -1)):
    monkeypatch.setitem(baselines.BASELINES, name, baselines.Baseline(
        name, lambda rate, sign=sign: optax.chain(
            optax.sgd(rate), optax.scale(sign)), "standard", rates,
        schedules=("constant",)))
  study = transfer.Study(tmp_path, None, 1, 2, "final_train_loss",
                         tqdm.tqdm(disable=True))
  results = study.compare(methods.parse(["descent", "ascent"], []), {
      "quadratic": {"name": "quadratic", "num_steps": 20}})
  descent, ascent = (results[results.method == name].iloc[0]
                     for name in ("descent", "ascent"))
  assert (descent.learning_rate, descent.grown) == (1.0, 4)
  assert not descent.grid_edge
  assert ascent.grid_edge and ascent.learning_rate < min(rates)


def test_a_grid_that_diverges_grows_down(tmp_path, monkeypatch):
  score = lambda c: np.inf if c.learning_rate > 1e-3 else c.learning_rate + 1
  result, _ = tune(tmp_path, monkeypatch, score)
  assert result.grid_edge and result.grown == 4
  assert result.learning_rate < 1e-3


def test_settings_share_a_program(tmp_path, monkeypatch):
  """Weight decays and momenta are numbers of one program."""
  made = []

  def trainer(task, opt_fn):
    made.append(opt_fn)
    return lambda thetas, keys, num_steps, **_: evaluate.Result(
        np.ones((len(keys), num_steps)) * np.asarray(
            thetas["learning_rate"])[:, None], {})

  monkeypatch.setattr(evaluate, "trainer", trainer)
  study = transfer.Study(tmp_path, None, 1, 1, "final_train_loss",
                         tqdm.tqdm(disable=True), 0)
  study.compare(methods.parse(["adamw_b2_tuned", "muon_matrices_tuned"], []), {
      "a": {"name": "mlp", "width": 4, "num_steps": 10}})
  # Two schedules; Muon has two choices of matrices. Then the best, in each.
  assert len(made) in range(2 + 4, 2 + 4 + 3)


def test_page_is_current():
  text = (pathlib.Path(__file__).parents[1] / "docs/baselines.md").read_text()
  assert text == page.page() + "\n", (
      "run: python -m experiments.baselines.page > docs/baselines.md")


def test_task_is_needed():
  opt_fn = baselines.opt_fn(baselines.get("normuon_tuned"), "linear")
  with pytest.raises(ValueError, match="NorMuon, tuned reads the roles of"):
    opt_fn(np.float32(0.1), num_steps=10)
