"""A dense layer and an LSTM cell, for rows that each stand for one parameter.

Products are computed in full float32 on every backend: they are few, and what
they decide is a learning rate.

Reference:
  Hochreiter and Schmidhuber, 1997; the forget gate has a bias of 1, as in
  Jozefowicz et al., 2015.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
  """Of n rows.

  Attributes:
    hidden: [n, hidden size].
    cell: [n, hidden size].
  """

  hidden: jax.Array
  cell: jax.Array


def weights(key: jax.Array, shape: tuple, fan_in: int) -> jax.Array:
  """Truncated normal on two standard deviations, std 1/sqrt(fan_in) before."""
  return jax.random.truncated_normal(
      key, -2, 2, shape, jnp.float32) / fan_in**0.5


def init_dense(key: jax.Array, inputs: int, outputs: int) -> dict:
  """Random weights w [inputs, outputs] and zero biases b [outputs]."""
  return {"w": weights(key, (inputs, outputs), inputs),
          "b": jnp.zeros(outputs, jnp.float32)}


def dense(theta: dict, x: jax.Array) -> jax.Array:
  """x w + b: [n, inputs] -> [n, outputs]."""
  return jnp.dot(x, theta["w"], precision="highest") + theta["b"][None]


def init(key: jax.Array, inputs: int, hidden: int) -> dict:
  """w [inputs + hidden, 4 hidden], b [4 hidden]."""
  return init_dense(key, inputs + hidden, 4 * hidden)


def start(theta: dict, rows: int) -> State:
  """The state of all rows at first.

  Args:
    theta: hidden [1, hidden size] and cell [1, hidden size].
    rows: n.
  """
  # Copies: a state may be donated.
  return State(*(jnp.zeros((rows, 1), jnp.float32) + theta[name]
                 for name in State._fields))


def step(theta: dict, x: jax.Array, state: State) -> State:
  """One step of all rows; the new hidden state is the output.

  Args:
    theta: as `init` returns it; columns are those of input gate, candidate,
      forget gate and output gate.
    x: [n, inputs].
    state: of n rows.
  """
  z = dense(theta, jnp.concatenate([x, state.hidden], 1))
  add, candidate, keep, out = jnp.split(z, 4, 1)
  cell = (jax.nn.sigmoid(keep + 1) * state.cell +
          jax.nn.sigmoid(add) * jnp.tanh(candidate))
  return State(jax.nn.sigmoid(out) * jnp.tanh(cell), cell)
