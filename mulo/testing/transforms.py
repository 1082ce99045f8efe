"""Contract: the transformations of JAX."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mulo.testing import kit


def _scan(factory, dtype):
  params, grads = kit.tree(0, dtype=dtype), kit.tree(1, dtype=dtype)
  tx = kit.make(factory, params)
  state = tx.init(params)
  step = lambda state: tx.update(grads, state, params, value=kit.VALUE)
  updates, after = jax.eval_shape(step, state)
  kit.same_types(updates, params, "updates")
  kit.same_types(after, state, "the state after a step")

  def body(carry, _):
    params, state = carry
    updates, state = tx.update(grads, state, params, value=kit.VALUE)
    return (optax.apply_updates(params, updates), state), None

  (params, after), _ = jax.lax.scan(body, (params, state), length=3)
  kit.same_types(after, state, "the state after three steps")
  kit.require(all(np.all(np.isfinite(np.asarray(x, np.float32)))
                  for x in jax.tree.leaves(params)),
              "parameters are not finite")


@kit.contract
def scan_float32(factory):
  """`jax.lax.scan` in float32; shapes and dtypes of the state stay."""
  _scan(factory, jnp.float32)


@kit.contract
def scan_bfloat16(factory):
  """`jax.lax.scan` in bfloat16; shapes and dtypes of the state stay."""
  _scan(factory, jnp.bfloat16)


@kit.contract
def jit(factory):
  """`jax.jit` with donation; the second call compiles nothing."""
  params, grads = kit.tree(0, kit.RANKS), kit.tree(1, kit.RANKS)
  tx = kit.make(factory, params)
  traces: list[None] = []

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, grads):
    traces.append(None)
    updates, state = tx.update(grads, state, params, value=kit.VALUE)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*donated buffers.*")
    for _ in range(2):
      params, state = step(params, state, grads)
  jax.block_until_ready(params)
  kit.require(len(traces) == 1, "the second call was compiled again: types of "
              f"the state changed, now {jax.tree.map(jax.typeof, state)}")


@kit.contract
def vmap(factory):
  """`jax.vmap` over replicas of a network."""
  replicas = [kit.tree(0), kit.tree(1)]
  tx = kit.make(factory, replicas[0])
  stack = jax.tree.map(lambda *x: jnp.stack(x), *replicas)
  first = lambda params: tx.update(
      params, tx.init(params), params, value=kit.VALUE)[0]
  together = jax.jit(jax.vmap(first))(stack)
  for i, params in enumerate(replicas):
    kit.same(jax.tree.map(lambda x: x[i], together),
             kit.updates(tx, params, [params])[0], f"replica {i}")


@kit.contract
def eval_shape(factory):
  """`jax.eval_shape` of init tells the state."""
  params = kit.tree(0)
  tx = kit.make(factory, params)
  found = jax.eval_shape(tx.init, jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
  kit.same_types(found, tx.init(params), "the state by eval_shape")
