"""Contract: gradients that are zero, and derivatives of updates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mulo.testing import kit


@kit.contract
def zero_gradients(factory: kit.Factory) -> None:
  """Tensors, rows and columns whose gradients are all 0 stay as they are."""
  shapes = {"frozen": (6, 5), "bias": (5,), "scalar": (), "rows": (6, 5),
            "columns": (6, 5), "kernel": (2, 3, 4)}
  params = kit.tree(0, shapes)
  grads = kit.tree(1, shapes)
  for name in ("frozen", "bias", "scalar"):
    grads[name] = jnp.zeros_like(grads[name])
  unseen = {"rows": np.s_[2:4], "columns": np.s_[:, 3:], "kernel": np.s_[0]}
  for name, index in unseen.items():
    grads[name] = grads[name].at[index].set(0)
  tx = kit.make(factory, params)
  for updates in kit.updates(tx, params, [grads] * 3):
    for name, x in updates.items():
      moved = np.abs(np.asarray(x))[unseen.get(name, ...)]
      kit.require(np.all(moved == 0), f"{name} has gradients of 0 and moves by "
                  f"up to {np.max(moved)}")


@kit.contract
def second_order(factory: kit.Factory) -> None:
  """The derivative of a loss after two updates is finite."""
  params = kit.tree(0)["c"]
  tx = kit.make(factory, params)
  loss: Any = lambda tree: sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))

  def after_two(params: kit.Tree) -> Any:
    def step(carry: Any, _: Any) -> Any:
      params, state = carry
      updates, state = tx.update(
          jax.grad(loss)(params), state, params, value=kit.VALUE)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(
        step, (params, tx.init(params)), None, length=2)
    return loss(params)

  derivative: Any = jax.jit(jax.grad(after_two))
  kit.finite(derivative(params), "the derivative")
