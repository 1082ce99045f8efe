"""`mulo.probe` records known answers, and `mulo.explain` writes a page."""

import functools
import html.parser
import unittest

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mulo
from mulo import testing
from mulo.diagnosis import explain
from mulo.diagnosis import probe as probe_lib
from mulo.testing import kit


def train(tx, grads, shape=(8, 8)):
  """Return (updates [steps, ...], last state) for gradients [steps, ...]."""
  params = {"w": jnp.full(shape, 0.5), "b": jnp.ones(shape[-1:])}

  def step(state, grad):
    updates, state = tx.update(
        {"w": grad, "b": grad[0]}, state, params, value=0.0)
    return state, updates

  state, updates = jax.jit(lambda: jax.lax.scan(step, tx.init(params), grads))()
  return updates, state


def noise(steps):
  return jax.random.normal(jax.random.key(0), (steps, 8, 8))


def test_updates_stay():
  plain, _ = train(optax.adam(0.1), noise(6))
  probed, _ = train(mulo.probe(optax.adam(0.1), 6, points=3), noise(6))
  chex.assert_trees_all_equal(plain, probed)


def test_known_answers():
  grads = noise(200)
  updates, state = train(mulo.probe(optax.adam(0.1), 200, points=10), grads)
  names, steps, records = probe_lib.recorded(state)
  assert names == ["b", "w"] and list(steps) == list(range(0, 200, 20))
  u = np.asarray(updates["w"])[::20].reshape(10, -1)
  np.testing.assert_allclose(
      records["step"][:, 1], np.linalg.norm(u, axis=1) / 4, rtol=1e-5)
  np.testing.assert_allclose(
      records["rms"][:, 1], np.sqrt(np.mean(u**2, 1)), rtol=1e-5)
  np.testing.assert_allclose(records["adam"], 1, rtol=1e-4)
  assert np.all(np.isnan(records["muon"][:, 0]))  # a vector
  assert np.all(records["muon"][:, 1] < 0.99)
  # Pure noise: sqrt((1 - 0.9) / (1 + 0.9)) = 0.23.
  np.testing.assert_allclose(
      np.mean(records["agreement"][3:]), 0.23, atol=0.03)
  _, state = train(mulo.probe(optax.adam(0.1), 20), jnp.stack([grads[0]] * 20))
  np.testing.assert_allclose(
      probe_lib.recorded(state)[2]["agreement"], 1, rtol=1e-3)


def test_muon_is_recognized():
  muon = optax.contrib.muon(0.1, beta=0.9, nesterov=False, ns_steps=10)
  _, state = train(mulo.probe(muon, 3), noise(3))
  cosines = probe_lib.recorded(state)[2]["muon"][:, 1]
  assert np.all((cosines > 0.95) & (cosines <= 1.001))


def test_steps_beyond_the_plan_are_dropped():
  _, short = train(mulo.probe(optax.sgd(0.1), 6, points=3), noise(6))
  _, long = train(mulo.probe(optax.sgd(0.1), 6, points=3), noise(9))
  chex.assert_trees_all_equal(short.records, long.records)
  assert list(probe_lib.recorded(long)[1]) == [0, 2, 4]


@functools.cache
def probed():
  return mulo.probe(optax.adam(1e-2), 4)


@pytest.mark.parametrize("check", [
    x for x in testing.CHECKS if x.__name__ in (
        "masked", "empty_leaves", "scan_bfloat16", "jit", "eval_shape",
        "sharding_automatic", "flax_partitioned")],
                         ids=lambda x: x.__name__)
def test_contract(check):
  try:
    check(probed)
  except unittest.SkipTest as e:
    pytest.skip(str(e))


class Page(html.parser.HTMLParser):
  """Counts tags, and collects text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text, self.open = [], "", []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ("meta", "line"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_page(tmp_path):
  _, state = train(mulo.probe(optax.adam(0.1), 6), noise(6))
  mulo.explain((state,), tmp_path / "page.html")
  text = (tmp_path / "page.html").read_text()
  page = Page(text)
  assert not page.open or page.open == ["html"]
  # Five measures of two tensors, but for Muon, of one.
  assert page.tags.count("svg") == 5 and page.tags.count("path") == 9
  assert "6 of its steps, from step 0 to 5" in page.text
  assert "http" not in text and "script" not in page.tags


def test_names_are_escaped():
  row = explain.table({"step": np.ones((1, 1))}, ["<b>&"])
  assert "&lt;b&gt;&amp;" in row and "<b>" not in row


@pytest.mark.parametrize("low, high, whole, expected", [
    (0.1, 0.93, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (-3.2, -1.0, True, [-4, -3, -2, -1]), (-12, 3, True, [-15, -10, -5, 0, 5])])
def test_ticks(low, high, whole, expected):
  np.testing.assert_allclose(
      explain.ticks(low, high, whole), expected, atol=1e-12)
  assert len(explain.ticks(5.0, 5.0, False)) > 1


@pytest.mark.parametrize("make, message", [
    (lambda: mulo.probe(optax.sgd(1.0), 0), "num_steps must be a positive"),
    (lambda: mulo.probe(optax.sgd(1.0), 5, points=2.0), "points must be"),
    (lambda: mulo.explain(optax.sgd(1.0).init({}), "x"), "has 0 probes"),
    (lambda: mulo.explain(probed().init({"w": jnp.ones(2)}), "x"),
     "has seen no step"),
    (lambda: mulo.explain(jax.vmap(probed().init)({"w": jnp.ones((3, 2))}),
                          "x"), "is batched"),
    (lambda: probed().update(kit.tree(0), probed().init(kit.tree(0))),
     "probe reads the parameters")])
def test_errors(make, message):
  with pytest.raises(ValueError, match=message):
    make()
