"""Contract: the wrappers that optax puts around a transformation."""

import functools
from typing import Any
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mulo.testing import kit


@kit.contract
def chain(factory: kit.Factory) -> None:
  """`optax.chain` with links before and after, compiled as one program."""
  params = kit.tree(0)
  tx = kit.make(factory, params)
  grads = [kit.tree(1), kit.tree(2)]
  actual = kit.updates(optax.chain(optax.scale(2.0), tx, optax.scale(-0.5)),
                       params, grads)
  expected = kit.updates(tx, params, [kit.scaled(g, 2.0) for g in grads])
  kit.same(actual, kit.scaled(expected, -0.5), "the second link of a chain")


@kit.contract
def extra_args(factory: kit.Factory) -> None:
  """`value=` and unknown extra arguments are used or ignored."""
  params = kit.tree(0)
  tx = kit.make(factory, params)
  update = functools.partial(tx.update, params, tx.init(params), params)
  jax.eval_shape(functools.partial(update, value=kit.VALUE, unknown=np.ones(3)))
  try:
    jax.eval_shape(update)
  except ValueError as e:
    kit.require("value" in str(e), "without value=, the error does not mention "
                f"value: {e}")


def _only_a(tree: kit.Tree) -> kit.Tree:
  """Return a mask of kit.SHAPES that selects the parameters of "a"."""
  return {"a": jax.tree.map(lambda _: True, tree["a"]),
          "c": jax.tree.map(lambda _: False, tree["c"])}


def _all_but_v(tree: kit.Tree) -> kit.Tree:
  """Return a mask of kit.SHAPES that selects all parameters but "a/v"."""
  return {**jax.tree.map(lambda _: True, tree), "a": {"w": True, "v": False}}


def _nothing(tree: kit.Tree) -> kit.Tree:
  """Return a mask that selects no parameter."""
  return jax.tree.map(lambda _: False, tree)


@kit.contract
def masked(factory: kit.Factory) -> None:
  """`optax.masked` with a part of the tree, nested, and with an empty part."""
  params, grads = kit.tree(0), kit.tree(1)
  tx = kit.compiled(kit.make(factory, params))

  def updates(tx: optax.GradientTransformationExtraArgs) -> kit.Tree:
    return tx.update(grads, tx.init(params), params, value=kit.VALUE)[0]

  part = {"a": params["a"]}
  alone = tx.update({"a": grads["a"]}, tx.init(part), part, value=kit.VALUE)[0]
  kit.same(updates(optax.masked(tx, _only_a)), {**alone, "c": grads["c"]},
           "partial")
  nested = updates(optax.masked(optax.masked(tx, _all_but_v), _only_a))
  kit.same([nested["a"]["v"], nested["c"]], [grads["a"]["v"], grads["c"]],
           "nested, the parameters left out")
  kit.require(not np.allclose(nested["a"]["w"], grads["a"]["w"]),
              "nested: a parameter that both masks select was left out")
  kit.same(updates(optax.masked(tx, _nothing)), grads, "empty")


@kit.contract
def multi_transform(factory: kit.Factory) -> None:
  """`optax.partition` with three groups, one of them without parameters."""
  params, grads = kit.tree(0), kit.tree(1)
  tx = kit.compiled(kit.make(factory, params))
  whole = optax.partition(
      {"ours": tx, "other": optax.sgd(0.5), "empty": tx},
      {"a": {"w": "ours", "v": "ours"}, "c": {"w": "other"}})
  actual, _ = whole.update(grads, whole.init(params), params, value=kit.VALUE)
  part = {"a": params["a"]}
  alone = tx.update({"a": grads["a"]}, tx.init(part), part, value=kit.VALUE)[0]
  kit.same(actual, {**alone, "c": kit.scaled(grads["c"], -0.5)}, "groups")


@kit.contract
def inject_hyperparams(factory: kit.Factory) -> None:
  """`optax.inject_hyperparams` on learning_rate and weight_decay."""
  if not kit.takes(factory, "learning_rate"):
    raise unittest.SkipTest("the factory takes no learning_rate")
  decays = kit.takes(factory, "weight_decay")
  params, grads = kit.tree(0), kit.tree(1)
  values = {"learning_rate": 0.5, **({"weight_decay": 0.25} if decays else {})}
  tx = optax.inject_hyperparams(factory)(
      **kit.settings(factory, params, **values))
  state, update = tx.init(params), jax.jit(tx.update)

  def updates(**changes: float) -> kit.Tree:
    """Return the updates after a change of hyperparameters in the state."""
    hyperparams = {**state.hyperparams, **{
        name: jnp.asarray(value, state.hyperparams[name].dtype)
        for name, value in changes.items()}}
    return update(grads, state._replace(hyperparams=hyperparams), params,
                  value=kit.VALUE)[0]

  def effect_of_decay(decay: float) -> kit.Tree:
    return jax.tree.map(
        jnp.subtract, updates(weight_decay=decay), updates(weight_decay=0.0))

  plain = updates()
  kit.same(updates(learning_rate=1.0), kit.scaled(plain, 2),
           "twice learning_rate")
  if decays:
    kit.same(effect_of_decay(2.0)["c"],
             kit.scaled(effect_of_decay(1.0)["c"], 2), "twice weight_decay")
    kit.require(np.max(np.abs(effect_of_decay(1.0)["c"]["w"])) > 0,
                "weight_decay changes nothing")


def _norm(tree: kit.Tree) -> Any:
  """Return the Euclidean norm of all entries together."""
  return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))**0.5


@kit.contract
def schedules(factory: kit.Factory) -> None:
  """A schedule as learning_rate."""
  if not kit.takes(factory, "learning_rate"):
    raise unittest.SkipTest("the factory takes no learning_rate")
  params, grads = kit.tree(0), [kit.tree(1), kit.tree(2)]
  actual = kit.updates(
      kit.make(factory, params, learning_rate=lambda t: 0.5**t), params, grads)
  plain = kit.updates(kit.make(factory, params), params, grads)
  # The default learning rate of the factory is unknown. The first update of the
  # schedule has the learning rate 1, so this ratio is 1 / default.
  rate = _norm(actual[0]) / _norm(plain[0])
  kit.same(actual, [kit.scaled(plain[0], rate),
                    kit.scaled(plain[1], 0.5 * rate)],
           "learning rates of 1 and 1/2")


@kit.contract
def multi_steps(factory: kit.Factory) -> None:
  """`optax.MultiSteps`: an update after every second gradient."""
  params, grads = kit.tree(0), [kit.tree(1), kit.tree(2)]
  tx = kit.make(factory, params)
  actual = kit.updates(optax.MultiSteps(tx, 2).gradient_transformation(),
                       params, grads)
  kit.same(actual[0], kit.scaled(params, 0), "updates after one gradient")
  mean = jax.tree.map(lambda x, y: (x + y) / 2, *grads)
  kit.same(actual[1], kit.updates(tx, params, [mean])[0], "updates of the mean")


@kit.contract
def apply_if_finite(factory: kit.Factory) -> None:
  """`optax.apply_if_finite`: a gradient of NaN leaves no trace."""
  params, grads = kit.tree(0), kit.tree(1)
  tx = kit.make(factory, params)
  actual = kit.updates(optax.apply_if_finite(tx, 5), params,
                       [kit.scaled(grads, np.nan), grads])
  kit.same(actual[0], kit.scaled(params, 0), "updates from NaN")
  kit.same(actual[1], kit.updates(tx, params, [grads])[0], "updates after NaN")
