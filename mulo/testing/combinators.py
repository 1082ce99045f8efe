"""Contract: what is put around a transformation in optax."""

import functools
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mulo.testing import kit


@kit.contract
def chain(factory):
  """`optax.chain` with links before and after, compiled as one."""
  params = kit.tree(0)
  tx = kit.make(factory, params)
  grads = [kit.tree(1), kit.tree(2)]
  found = kit.updates(optax.chain(optax.scale(2.0), tx, optax.scale(-0.5)),
                      params, grads)
  expected = kit.updates(tx, params, [kit.scaled(g, 2.0) for g in grads])
  kit.same(found, kit.scaled(expected, -0.5), "the second link of a chain")


@kit.contract
def extra_args(factory):
  """`value=` and unknown extra arguments are used or ignored."""
  params = kit.tree(0)
  tx = kit.make(factory, params)
  update = functools.partial(tx.update, params, tx.init(params), params)
  jax.eval_shape(functools.partial(update, value=kit.VALUE, unknown=np.ones(3)))
  try:
    jax.eval_shape(update)
  except ValueError as e:
    kit.require("value" in str(e), "without value=, the error does not say "
                f"that it is missing: {e}")


@kit.contract
def masked(factory):
  """`optax.masked`: a part of the tree, a part of a part, and nothing."""
  params, grads = kit.tree(0), kit.tree(1)
  tx = kit.compiled(kit.make(factory, params))
  first = lambda tree: {"a": jax.tree.map(lambda _: True, tree["a"]),
                        "c": jax.tree.map(lambda _: False, tree["c"])}
  second = lambda tree: {**jax.tree.map(lambda _: True, tree), "a": {
      "w": True, "v": False}}
  nothing = lambda tree: jax.tree.map(lambda _: False, tree)

  def updates(tx):
    return tx.update(grads, tx.init(params), params, value=kit.VALUE)[0]

  part = {"a": params["a"]}
  alone = tx.update({"a": grads["a"]}, tx.init(part), part, value=kit.VALUE)[0]
  kit.same(updates(optax.masked(tx, first)), {**alone, "c": grads["c"]},
           "partial")
  nested = updates(optax.masked(optax.masked(tx, second), first))
  kit.same([nested["a"]["v"], nested["c"]], [grads["a"]["v"], grads["c"]],
           "nested, what is left out")
  kit.require(not np.allclose(nested["a"]["w"], grads["a"]["w"]),
              "nested: a parameter was left out that should not be")
  kit.same(updates(optax.masked(tx, nothing)), grads, "empty")


@kit.contract
def multi_transform(factory):
  """`optax.partition`, with a group that has no parameters, too."""
  params, grads = kit.tree(0), kit.tree(1)
  tx = kit.compiled(kit.make(factory, params))
  whole = optax.partition(
      {"ours": tx, "other": optax.sgd(0.5), "empty": tx},
      {"a": {"w": "ours", "v": "ours"}, "c": {"w": "other"}})
  found, _ = whole.update(grads, whole.init(params), params, value=kit.VALUE)
  part = {"a": params["a"]}
  alone = tx.update({"a": grads["a"]}, tx.init(part), part, value=kit.VALUE)[0]
  kit.same(found, {**alone, "c": kit.scaled(grads["c"], -0.5)}, "groups")


@kit.contract
def inject_hyperparams(factory):
  """`optax.inject_hyperparams` on learning_rate and weight_decay."""
  if not kit.takes(factory, "learning_rate"):
    raise unittest.SkipTest("the factory takes no learning_rate")
  decays = kit.takes(factory, "weight_decay")
  params, grads = kit.tree(0), kit.tree(1)
  values = {"learning_rate": 0.5, **({"weight_decay": 0.25} if decays else {})}
  tx = optax.inject_hyperparams(factory)(
      **kit.settings(factory, params, **values))
  state, update = tx.init(params), jax.jit(tx.update)

  def updates(**changes):
    hyperparams = {**state.hyperparams, **{
        name: jnp.asarray(value, state.hyperparams[name].dtype)
        for name, value in changes.items()}}
    return update(grads, state._replace(hyperparams=hyperparams), params,
                  value=kit.VALUE)[0]

  plain = updates()
  kit.same(updates(learning_rate=1.0), kit.scaled(plain, 2),
           "twice learning_rate")
  if decays:
    effect = lambda decay: jax.tree.map(
        jnp.subtract, updates(weight_decay=decay), updates(weight_decay=0.0))
    kit.same(effect(2.0)["c"], kit.scaled(effect(1.0)["c"], 2),
             "twice weight_decay")
    kit.require(np.max(np.abs(effect(1.0)["c"]["w"])) > 0,
                "weight_decay changes nothing")


@kit.contract
def schedules(factory):
  """A schedule as learning_rate."""
  if not kit.takes(factory, "learning_rate"):
    raise unittest.SkipTest("the factory takes no learning_rate")
  params, grads = kit.tree(0), [kit.tree(1), kit.tree(2)]
  found = kit.updates(kit.make(factory, params, learning_rate=lambda t: 0.5**t),
                      params, grads)
  plain = kit.updates(kit.make(factory, params), params, grads)
  # The factory's own learning rate is not known.
  size = lambda tree: sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))**0.5
  rate = size(found[0]) / size(plain[0])
  kit.same(found, [kit.scaled(plain[0], rate),
                   kit.scaled(plain[1], 0.5 * rate)],
           "learning rates of 1 and 1/2")


@kit.contract
def multi_steps(factory):
  """`optax.MultiSteps`: an update after every second gradient."""
  params, grads = kit.tree(0), [kit.tree(1), kit.tree(2)]
  tx = kit.make(factory, params)
  found = kit.updates(optax.MultiSteps(tx, 2).gradient_transformation(), params,
                      grads)
  kit.same(found[0], kit.scaled(params, 0), "updates after one gradient")
  mean = jax.tree.map(lambda x, y: (x + y) / 2, *grads)
  kit.same(found[1], kit.updates(tx, params, [mean])[0], "updates of the mean")


@kit.contract
def apply_if_finite(factory):
  """`optax.apply_if_finite`: a gradient of NaN leaves no trace."""
  params, grads = kit.tree(0), kit.tree(1)
  tx = kit.make(factory, params)
  found = kit.updates(optax.apply_if_finite(tx, 5), params,
                      [kit.scaled(grads, np.nan), grads])
  kit.same(found[0], kit.scaled(params, 0), "updates from NaN")
  kit.same(found[1], kit.updates(tx, params, [grads])[0], "updates after NaN")
