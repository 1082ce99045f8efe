"""Contract: the transformations of JAX."""

from typing import Any
import warnings

import chex
import jax
import jax.numpy as jnp
import optax

from mulo.testing import kit


def _scan(factory: kit.Factory, dtype: Any) -> None:
  """Raise unless steps in a scan keep all shapes and dtypes."""
  params, grads = kit.tree(0, dtype=dtype), kit.tree(1, dtype=dtype)
  # Compiled by itself, so that it is traced once.
  tx = kit.compiled(kit.make(factory, params))
  state = tx.init(params)
  updates, after = jax.eval_shape(
      lambda state: tx.update(grads, state, params, value=kit.VALUE), state)
  kit.same_types(updates, params, "updates")
  kit.same_types(after, state, "the state after a step")

  def body(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
    params, state = carry
    updates, state = tx.update(grads, state, params, value=kit.VALUE)
    return (optax.apply_updates(params, updates), state), None

  (params, after), _ = jax.lax.scan(body, (params, state), length=3)
  kit.same_types(after, state, "the state after three steps")
  kit.finite(params, "parameters after three steps")


@kit.contract
def scan_float32(factory: kit.Factory) -> None:
  """`jax.lax.scan` in float32; the state keeps its shapes and dtypes."""
  _scan(factory, jnp.float32)


@kit.contract
def scan_bfloat16(factory: kit.Factory) -> None:
  """`jax.lax.scan` in bfloat16; the state keeps its shapes and dtypes."""
  _scan(factory, jnp.bfloat16)


@kit.contract
def x64(factory: kit.Factory) -> None:
  """`jax_enable_x64`, with parameters in float32, bfloat16 and float64."""
  with jax.enable_x64(True):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
      _scan(factory, dtype)


@kit.contract
def jit(factory: kit.Factory) -> None:
  """`jax.jit` with donation; the second call compiles nothing."""
  params, grads = kit.tree(0, kit.RANKS), kit.tree(1, kit.RANKS)
  tx = kit.make(factory, params)

  def take_step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params, value=kit.VALUE)
    return optax.apply_updates(params, updates), state

  chex.clear_trace_counter()  # it counts the calls of this check together
  step = jax.jit(chex.assert_max_traces(take_step, n=1), donate_argnums=(0, 1))
  state = tx.init(params)
  with warnings.catch_warnings():
    # JAX warns if a donated array is not used, such as one that is in the
    # state twice.
    warnings.filterwarnings("error", message=".*donated buffers.*")
    params, state = step(params, state, grads)
    types = jax.tree.map(jax.typeof, state)
    try:
      params, state = step(params, state, grads)
    except AssertionError as e:
      raise AssertionError("the second call was compiled again: types of the "
                           f"state changed, now {types}") from e
  jax.tree.map(lambda x: x.block_until_ready(), params)


@kit.contract
def vmap(factory: kit.Factory) -> None:
  """`jax.vmap` over replicas of a network."""
  replicas = [kit.tree(0), kit.tree(1)]
  tx = kit.make(factory, replicas[0])
  stack = jax.tree.map(lambda *x: jnp.stack(x), *replicas)

  def first_update(params: Any) -> Any:
    return tx.update(params, tx.init(params), params, value=kit.VALUE)[0]

  together = jax.jit(jax.vmap(first_update))(stack)
  for i, params in enumerate(replicas):
    kit.same(jax.tree.map(lambda x: x[i], together),
             kit.updates(tx, params, [params])[0], f"replica {i}")


@kit.contract
def eval_shape(factory: kit.Factory) -> None:
  """`jax.eval_shape` of init gives the shapes and dtypes of the state."""
  params = kit.tree(0)
  tx = kit.make(factory, params)
  shapes = jax.tree.map(lambda x: kit.struct(x.shape, x.dtype), params)
  kit.same_types(jax.eval_shape(tx.init, shapes), tx.init(params),
                 "the state by eval_shape")
