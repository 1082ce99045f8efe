"""What muP says of an optimizer that is not an optax transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import test_scaling

from mulo import scaling

DAMPING = 0.1  # of each factor, in proportion to its trace


def damped(x):
  """Second moments of the columns of x, [n, n]."""
  moments = x.T @ x / len(x)
  return moments + DAMPING * jnp.trace(moments) * jnp.eye(len(moments))


def moves(n, initial):
  """How far each layer moves in one step of K-FAC, [3]."""
  base = test_scaling.params_of(jax.random.key(0), test_scaling.BASE)
  params = initial(test_scaling.params_of(jax.random.key(1), n), base)
  x, y = jax.random.normal(jax.random.key(5), (2, 32, 5))

  sizes = {"input": n, "hidden": n, "output": 3}

  def loss(added):
    h, inputs = x, {}
    for name in sizes:
      inputs[name] = h
      h = h @ params[name] + added[name]
      if name != "output":
        h = jnp.tanh(h)
    return jnp.sum((h - y[:, :3])**2), inputs

  deltas, inputs = jax.grad(loss, has_aux=True)(
      {name: jnp.zeros((len(x), size)) for name, size in sizes.items()})
  found = []
  for name in sizes:
    update = inputs[name].T @ deltas[name] / len(x)
    update = jnp.linalg.solve(damped(inputs[name]), update)
    update = jnp.linalg.solve(damped(deltas[name]), update.T).T
    found.append(jnp.mean(jnp.abs(inputs[name] @ update)))
  return jnp.stack(found)


def test_it_needs_no_factor():
  """Ishikawa and Karakida, 2023, https://arxiv.org/abs/2312.12226."""
  widths = (64, 128, 256)
  of = jax.jit(moves, static_argnums=(0, 1))
  slopes = lambda initial: np.polyfit(np.log2(widths), np.log2(
      [of(n, initial) for n in widths]), 1)[0]
  assert np.all(np.abs(slopes(scaling.rescale_init)) < 0.15)
  assert np.all(slopes(lambda params, base: params)[:2] < -0.3)
