"""Reparametrised tasks, and named suites of tasks."""

import importlib
import inspect
import itertools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt.scaling import parametrizations
from meta_train import evaluate
from meta_train import unroll
from tasks import augment
from tasks import families
from tasks import suites

PRIOR = ("prior_train", "prior_valid", "prior_hidden")
MUP, STANDARD = (parametrizations.get(n) for n in ("mup", "standard"))
needs_files = pytest.mark.skipif(
    not os.environ.get("MULO_DATA_DIR"),
    reason="MULO_DATA_DIR, the folder of data sets, is not set")


@pytest.mark.parametrize("level, numbers", [
    ("global", 1), ("tensor", 6), ("parameter", 4 + 2 * 300)])
def test_reparametrization(level, numbers):
  """Gradients are multiplied by factors that every episode draws again."""
  plain = families.get("mlp", MUP, width=4)
  task = augment.reparametrize(plain, level, 0.1, 10.0)
  seen = {}

  def opt_fn(theta, *, num_steps=None):
    def update(grads, state, params, **extra):
      return jax.tree.map(lambda g: -theta * g, grads), state
    return optax.GradientTransformationExtraArgs(
        lambda params: seen.setdefault("params", params), update)

  start = lambda task, seed: unroll.start(
      task, opt_fn, 0.1, jax.random.key(seed), jnp.int32(9))
  state = start(task, 3)
  factors = lambda state: np.concatenate([
      np.broadcast_to(f, x.shape).ravel() for f, x in zip(
          jax.tree.leaves(state.scales), jax.tree.leaves(state.params))])
  joined = factors(state)
  distinct = len(np.unique(joined))
  assert distinct == (numbers if level != "parameter" else joined.size)
  assert 0.1 <= joined.min() <= joined.max() <= 10
  params = unroll.task_params(state.params, state.scales)
  chex.assert_trees_all_close(
      params, plain.init(jax.random.key(3)), rtol=1e-6)
  chex.assert_trees_all_equal(seen["params"], state.params)
  assert not np.allclose(joined, factors(start(task, 4)))

  data = jax.device_put(plain.data)
  # One step of gradient descent. Its learning rate is 0.1 * factor**2, because
  # the gradient is multiplied by the factor, and then the update again.
  after, losses = jax.jit(lambda state: unroll.unroll(
      task, opt_fn, 0.1, state, jax.random.key(5), data, 1))(state)
  trained = unroll.task_params(after.params, after.scales)
  keys = unroll.step_keys(jax.random.key(5), 1)[0]
  batch = plain.sample_batch(keys[0], data["train"])
  loss, grads = jax.value_and_grad(
      lambda p: plain.loss(p, None, batch)[0])(params)
  np.testing.assert_allclose(losses[0], loss, rtol=1e-5)
  expected = jax.tree.map(
      lambda p, g, f: p - 0.1 * f**2 * g, params, grads, state.scales)
  chex.assert_trees_all_close(trained, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", augment.LEVELS)
def test_evaluation_of_reparametrized_tasks(level):
  """With a learning rate of 0, factors do not change the loss."""
  plain = families.get("mlp", MUP, width=2, depth=1)
  opt_fn = lambda rate, *, num_steps=None: optax.with_extra_args_support(
      optax.sgd(rate))
  keys = jax.random.split(jax.random.key(0), 10)  # as many as classes
  losses = [evaluate.train(task, opt_fn, np.zeros(10, np.float32), keys, 2
                           ).final["test"]["loss"]
            for task in (plain, augment.reparametrize(plain, level))]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_factors_do_not_depend_on_params():
  task = augment.reparametrize(families.get("mlp", MUP, width=4), "parameter")

  def draw(key):
    state = unroll.start(task, lambda theta, num_steps: optax.sgd(0.0), None,
                         key, 1)
    params = unroll.task_params(state.params, state.scales)
    joined = jnp.concatenate([x.ravel() for x in jax.tree.leaves(
        state.scales)])  # in the order of drawing
    return jnp.log(joined[:16]), [
        params[f"layer_{i}"]["w"].ravel()[:16] for i in (0, 1)]

  factors, params = jax.jit(jax.vmap(draw))(
      jax.random.split(jax.random.key(0), 200))
  for x in params:
    correlation = np.corrcoef(np.ravel(factors), np.ravel(x))[0, 1]
    assert abs(correlation) < 0.1  # 3200 pairs: standard error 0.02


@pytest.mark.parametrize("arguments, message", [
    (("tensors",), "available: global, tensor, parameter"),
    (("tensor", 0.0, 1.0), "low 0.0"), (("tensor", 2.0, 1.0), "at most high")])
def test_reparametrization_errors(arguments, message):
  task = families.get("quadratic", None)
  with pytest.raises(ValueError, match=message):
    augment.reparametrize(task, *arguments)
  with pytest.raises(ValueError, match="already"):
    augment.reparametrize(augment.reparametrize(task))


def setting(section, key):
  """A setting of the family of a section, by default that of the family."""
  make = importlib.import_module(f"tasks.families.{section['name']}").make
  return section.get(key, inspect.signature(make).parameters[key].default)


def pairs(name):
  """Pairs of family and data set in a suite."""
  return {(section["name"], setting(section, "dataset"))
          for section in suites.get(name).values()}


def test_no_heldout_task_is_trained_on_or_chosen_by():
  for name in suites.names():
    assert name == "heldout" or not pairs(name) & pairs("heldout")
  assert {s["num_steps"] for s in suites.get("heldout").values()} == {2000}
  assert set(suites.names()) == {
      *suites.TRAINING, "validation", "heldout", *PRIOR, "board"}
  with pytest.raises(ValueError, match="available: train_small"):
    suites.get("train")


@pytest.mark.parametrize(
    "first, second", list(itertools.combinations(PRIOR, 2)))
def test_prior_suites_are_disjoint(first, second):
  assert not pairs(first) & pairs(second)
  for a, b in itertools.product(
      suites.get(first).values(), suites.get(second).values()):
    if a["name"] == b["name"]:
      assert any(setting(a, key) != setting(b, key)
                 for key in ("width", "depth")), (a, b)


def test_tracks_of_the_board_are_of_their_own():
  """No pair of family and data set was trained on or chosen by."""
  others = set().union(*(pairs(x) for x in suites.names() if x != "board"))
  assert len(pairs("board")) == 6 and not others & pairs("board")
  hidden = pairs("prior_hidden")
  for column in (0, 1):
    assert not ({pair[column] for pair in hidden} &
                {pair[column] for pair in pairs("board")})
  assert set(suites.BOARD_TARGETS) == set(suites.get("board"))


def test_hidden_tasks_have_families_and_data_of_their_own():
  hidden = pairs("prior_hidden")
  assert 6 <= len(hidden) <= 8
  for column in (0, 1):
    others = {pair[column] for name in PRIOR[:2] for pair in pairs(name)}
    assert not others & {pair[column] for pair in hidden}


def test_prior_suites_say_steps_and_batches():
  for name in PRIOR:
    for section in suites.get(name).values():
      assert 200 <= section["num_steps"] <= 2000, section
      assert 8 <= section["batch_size"] <= 512, section


def test_tasks_to_choose_by_are_of_many_kinds():
  valid = list(suites.get("prior_valid").values())
  assert 8 <= len(valid) <= 10 and len({s["name"] for s in valid}) >= 7
  dense_pixels = [s for s in valid if setting(s, "dataset") == "mnist"
                  and s["name"] in ("mlp", "autoencoder", "denoising", "vae")]
  assert len(dense_pixels) <= 2


def test_heldout_networks_are_larger():
  """Each is wider or deeper than the training networks of its family."""
  for name, section in suites.get("heldout").items():
    same = [s for suite_name in suites.TRAINING
            for s in suites.get(suite_name).values()
            if s["name"] == section["name"]]
    assert all(any(setting(section, key) > setting(s, key)
                   for key in ("width", "depth")) for s in same), name
  # The small suite uses default data sets, which need no files.
  assert not any("dataset" in s for s in suites.get("train_small").values())


@pytest.mark.parametrize("name", [
    name if name in ("train_small", "prior_train", "board")
    else pytest.param(name, marks=needs_files) for name in suites.names()])
def test_every_section_of_the_suites_is_a_task(name):
  for section in suites.get(name).values():
    settings = {k: v for k, v in section.items()
                if k not in ("name", "augment", "num_steps")}
    task = families.get(section["name"], MUP, **settings)
    if "augment" in section:
      augment.reparametrize(task, **section["augment"])
