"""muP for an optimizer that is not an optax transformation: K-FAC."""

import jax
import jax.numpy as jnp
import numpy as np
import test_scaling

from mulo import scaling

DAMPING = 0.1  # of each Kronecker factor, in proportion to its trace


def damped(x):
  """Return damped second moments of the columns of x, [n, n]."""
  moments = x.T @ x / len(x)
  return moments + DAMPING * jnp.trace(moments) * jnp.eye(len(moments))


def moves(n, initial):
  """Return how far each layer's outputs move in one step of K-FAC, [3]."""
  base = test_scaling.params_of(jax.random.key(0), test_scaling.BASE)
  params = initial(test_scaling.params_of(jax.random.key(1), n), base)
  x, y = jax.random.normal(jax.random.key(5), (2, 32, 5))

  sizes = {"input": n, "hidden": n, "output": 3}

  # The gradient with respect to `added` is that of the pre-activations.
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
  distances = []
  for name in sizes:
    # update = (A + damping)^-1 gradient (G + damping)^-1, A of the layer's
    # inputs and G of the gradients of its outputs.
    update = inputs[name].T @ deltas[name] / len(x)
    update = jnp.linalg.solve(damped(inputs[name]), update)
    update = jnp.linalg.solve(damped(deltas[name]), update.T).T
    distances.append(jnp.mean(jnp.abs(inputs[name] @ update)))
  return jnp.stack(distances)


def test_kfac_needs_no_update_multiplier():
  """Initial scales alone make movement independent of width.

  Reference:
    Ishikawa and Karakida, 2023, https://arxiv.org/abs/2312.12226.
  """
  widths = (64, 128, 256)
  compiled = jax.jit(moves, static_argnums=(0, 1))
  slopes = lambda initial: np.polyfit(np.log2(widths), np.log2(
      [compiled(n, initial) for n in widths]), 1)[0]
  assert np.all(np.abs(slopes(scaling.rescale_init)) < 0.15)
  # Without the scales, movement falls with width.
  assert np.all(slopes(lambda params, base: params)[:2] < -0.3)
