"""Parameters with more elements than an int32 can count."""

import jax
import jax.numpy as jnp
import pytest

from experiments.robustness import contract
from learned_opt import optimizers


@pytest.mark.parametrize("shape", [(80, 8192, 28672), (262144, 8192)])
@pytest.mark.parametrize("name", optimizers.names())
def test_updates_trace(name, shape, tmp_path):
  tx = contract.learned(name, tmp_path)()
  params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32),
            "b": jax.ShapeDtypeStruct((8,), jnp.float32)}
  state = jax.eval_shape(tx.init, params)
  updates, after = jax.eval_shape(
      lambda g, s, p: tx.update(g, s, p, value=jnp.float32(1)),
      params, state, params)
  assert updates["w"].shape == shape
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
