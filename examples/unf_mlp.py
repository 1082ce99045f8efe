"""Train a perceptron with unf, which sees the whole network at each step.

python -m meta_train.train --config=meta_train/configs/unf.py --workdir=runs/unf
python examples/unf_mlp.py runs/unf/theta.safetensors
"""

import sys

import jax
import jax.numpy as jnp
import optax
from sklearn import datasets

import mulo

x, y = map(jnp.asarray, datasets.load_digits(return_X_y=True))
x = (x / 16).astype(jnp.float32)
sizes = (64, 32, 32, 10)
params = [{"w": jax.random.normal(jax.random.key(i), (m, n)) / m**0.5,
           "b": jnp.zeros(n)} for i, (m, n) in enumerate(zip(sizes, sizes[1:]))]


def loss_of(params):
  h = x
  for layer in params:
    h = jax.nn.relu(h) @ layer["w"] + layer["b"]
  return optax.softmax_cross_entropy_with_integer_labels(h, y).mean()


tx = mulo.load(sys.argv[1], num_steps=200)
state = tx.init(params)
update = jax.jit(tx.update)
for _ in range(200):
  loss, grads = jax.value_and_grad(loss_of)(params)
  updates, state = update(grads, state, params)
  params = optax.apply_updates(params, updates)
print(f"loss {loss:.4f}")
