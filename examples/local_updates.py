"""Eight workers on one to eight devices, which communicate once in eight steps.

python examples/local_updates.py
"""

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
from sklearn import datasets

import mulo

WORKERS, STEPS, ROUNDS = 8, 8, 20
tx = mulo.local_updates(
    optax.sgd(0.3), mulo.load("mulo-s-sp", num_steps=ROUNDS), every=STEPS,
    axis_name=("device", "local"))


def step(params, state, x, y):  # of one worker
  loss, grads = jax.value_and_grad(lambda p: jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(
          jnp.tanh(x @ p["w"]) @ p["v"], y)))(params)
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state, loss


x, y = datasets.load_digits(return_X_y=True)
rng = np.random.default_rng(0)
common = {"w": rng.normal(size=(64, 32)) / 8, "v": np.zeros((32, 10))}
common = jax.tree.map(jnp.float32, common)
axes = mulo.LocalUpdatesState(None, 0, None, None)
specs = mulo.LocalUpdatesState(P(), P("device"), P(), P())
state = jax.vmap(tx.init, None, axes, axis_size=WORKERS)(common)
params = jax.tree.map(lambda p: jnp.stack([p] * WORKERS), common)
step = jax.jit(jax.shard_map(
    jax.vmap(step, (0, axes, 0, 0), (0, axes, 0), axis_name="local"),
    mesh=jax.sharding.Mesh(jax.devices(), "device"), check_vma=False,
    in_specs=(P("device"), specs, P("device"), P("device")),
    out_specs=(P("device"), specs, P("device"))))
for i in range(STEPS * ROUNDS):
  rows = rng.integers(len(x), size=(WORKERS, 32))  # each worker has its own
  params, state, loss = step(params, state, jnp.float32(x[rows] / 16), y[rows])
  if i % STEPS == 0:
    print(f"{WORKERS} workers, round {i // STEPS}: loss {loss.mean():.3f}")
