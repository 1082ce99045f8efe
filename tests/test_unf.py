"""The terms and the symmetry of unf."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_training_loops

from learned_opt import artifact as artifact_lib
from learned_opt import kinds as kinds_lib
from learned_opt import optimizers
from learned_opt.optimizers.shared import permutations
import mulo

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "unf" / "second_matrix.npz"
MLP = {"layer_9": {"b": (4,), "w": (3, 4)},
       "layer_10": {"b": (5,), "w": (4, 5)},
       "layer_11": {"b": (2,), "w": (5, 2)}}
CONV = {"a": {"b": (4,), "w": (3, 2, 1, 4)},
        "b": {"b": (6,), "w": (2, 2, 4, 6)}, "c": {"w": (6, 3)}}


def tree(shapes, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: np.float32(0.3 * rng.normal(size=shape)),
                      shapes, is_leaf=lambda x: isinstance(x, tuple))


def run(params, grads, kinds=None, **settings):
  """Return the updates of two steps, in which the network dominates."""
  lopt = optimizers.get("unf", **{"hidden": 4, "out_mult": 1.0, **settings})
  tx = lopt.opt_fn(lopt.init(jax.random.key(0)), kinds=kinds)
  state, update = tx.init(params), jax.jit(tx.update)
  for grad in grads:
    updates, state = update(grad, state, params)
  return updates


def sites_by_path(shapes, **settings):
  paths = [jax.tree_util.keystr(path, simple=True, separator="/")
           for path, _ in jax.tree_util.tree_leaves_with_path(tree(shapes, 0))]
  return {paths[site.leaf]: site
          for site in permutations.sites(tree(shapes, 0), **settings)}


def test_terms_are_those_of_the_published_layer():
  golden = np.load(GOLDEN)
  named = {"1": ("W1", "b1"), "2": ("W2", "b2"), "3": ("W3", "b3")}
  params = {k: {x: golden[f"in_{x}"] for x in v} for k, v in named.items()}
  found = permutations.sites(params)
  leaves = jax.tree.leaves(params)
  output = next(x for x in found if x.shape == (1, 4, 5))
  terms = [
      np.broadcast_to(permutations.placed(permutations.reduce(
          permutations.view(leaves[source.leaf], source)[..., None],
          "".join(y for _, y in term.pairs))[..., 0], term), (1, 4, 5))[0]
      for source in found for term in permutations.terms(output, source)]
  expected = [golden[k] for k in golden.files if k.startswith("term_")]
  assert len(terms) == len(expected) == 13
  unmatched = list(range(13))
  for term in terms:
    errors = [np.max(np.abs(term - expected[i])) for i in unmatched]
    assert min(errors) < 1e-6
    unmatched.pop(int(np.argmin(errors)))
  total = sum(w * x for w, x in zip(golden["theta"], expected)) + golden["bias"]
  np.testing.assert_allclose(total, golden["out"], atol=1e-6)


def permuted(params, hidden):
  """Permute the hidden units; hidden: {leaf path: {axis: permutation}}."""
  def one(path, x):
    for axis, order in hidden.get(
        jax.tree_util.keystr(path, simple=True, separator="/"), {}).items():
      x = np.take(x, order, axis)
    return x
  return jax.tree_util.tree_map_with_path(one, params)


@pytest.mark.parametrize("shapes, hidden", [
    (MLP, {"layer_9/w": {1: [2, 0, 3, 1]}, "layer_9/b": {0: [2, 0, 3, 1]},
           "layer_10/w": {0: [2, 0, 3, 1], 1: [4, 1, 0, 2, 3]},
           "layer_10/b": {0: [4, 1, 0, 2, 3]},
           "layer_11/w": {0: [4, 1, 0, 2, 3]}}),
    (CONV, {"a/w": {3: [1, 3, 0, 2]}, "a/b": {0: [1, 3, 0, 2]},
            "b/w": {2: [1, 3, 0, 2], 3: [5, 4, 0, 1, 3, 2]},
            "b/b": {0: [5, 4, 0, 1, 3, 2]},
            "c/w": {0: [5, 4, 0, 1, 3, 2]}})], ids=["mlp", "conv"])
def test_permuting_hidden_units_permutes_the_update(shapes, hidden):
  params, grads = tree(shapes, 0), [tree(shapes, i) for i in (1, 2)]
  change = lambda x: permuted(x, hidden)
  there = change(jax.device_get(run(params, grads)))
  back = run(change(params), [change(g) for g in grads])
  chex.assert_trees_all_close(there, back, atol=1e-5)
  # Elements do hear of each other: the control has other updates.
  alone = run(params, grads, equivariant=False)
  chex.assert_trees_all_close(
      change(jax.device_get(alone)),
      run(change(params), [change(g) for g in grads], equivariant=False),
      atol=1e-5)


def test_one_unit_alone_is_no_symmetry():
  params, grads = tree(MLP, 0), [tree(MLP, i) for i in (1, 2)]
  wrong = lambda x: permuted(x, {"layer_10/w": {0: [2, 0, 3, 1]}})
  there = wrong(jax.device_get(run(params, grads)))
  back = run(wrong(params), [wrong(g) for g in grads])
  assert np.max(np.abs(there["layer_10"]["w"] - back["layer_10"]["w"])) > 1e-3


def test_names_follow_the_order_of_layers():
  found = sites_by_path(MLP)
  names = lambda path: tuple(found[path].names[x] for x in "io")
  assert names("layer_10/w")[0] == names("layer_9/w")[1]
  assert names("layer_11/w")[0] == names("layer_10/w")[1]
  assert found["layer_10/b"].names["o"] == names("layer_10/w")[1]
  given = sites_by_path(
      MLP, axes="layer_9/w=pixels,stream layer_11/w=stream,classes")
  assert given["layer_11/w"].names["i"] == given["layer_10/w"].names["i"] == (
      "stream")


@pytest.mark.parametrize("axes, message", [
    ("layer_7/w=a,b", "layer_7/w"), ("layer_9/w=a", "one name"),
    ("layer_9/w", "expected path=inputs,outputs"),
    ("layer_9/w=a,b,c", "expected path=inputs,outputs")])
def test_wrong_names_are_one_error(axes, message):
  with pytest.raises(ValueError, match=message):
    permutations.sites(tree(MLP, 0), axes=axes)


def test_a_stack_is_a_list_of_layers():
  layer = {"b": (4,), "w": (4, 4)}
  as_list = lambda seed: tree({f"layer_{i}": layer for i in range(3)}, seed)
  stacked = lambda x: {"layers": jax.tree.map(
      lambda *leaves: np.stack(leaves, 1), *x.values())}
  kinds = lambda tree: {f"layers/{x}": kinds_lib.Kind(stack=(1,))
                        for x in layer}
  updates = run(as_list(0), [as_list(1), as_list(2)])
  both = run(stacked(as_list(0)), [stacked(as_list(i)) for i in (1, 2)],
             kinds=kinds)
  chex.assert_trees_all_close(stacked(updates), both, atol=1e-6)


def test_theta_serves_any_depth_and_odd_leaves():
  lopt = optimizers.get("unf", hidden=4)
  theta = lopt.init(jax.random.key(0))
  params = tree(MLP | {"layer_12": {"w": (2, 7)}}, 0) | {
      "scalar": np.float32(1), "empty": np.zeros((0, 3), np.float32)}
  tx = lopt.opt_fn(theta)
  updates, _ = tx.update(params, tx.init(params), params)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
  chex.assert_tree_all_finite(updates)
  assert jnp.all(updates["layer_12"]["w"] != 0)


def test_example(tmp_path, monkeypatch, capsys):
  settings = optimizers.all_settings("unf", hidden=4)
  theta = jax.device_get(
      optimizers.get("unf", **settings).init(jax.random.key(0)))
  mulo.save(tmp_path / "theta.safetensors", artifact_lib.Artifact(
      "unf", settings, "standard", theta))
  printed = test_training_loops.run_here(
      "unf_mlp", str(tmp_path / "theta.safetensors"), monkeypatch=monkeypatch,
      capsys=capsys)
  assert float(printed.split()[-1]) < 1
