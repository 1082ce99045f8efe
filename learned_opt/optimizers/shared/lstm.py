"""A dense layer and an LSTM cell; each row of a batch is one parameter.

Products are computed in full float32 on every backend: they are few, and they
decide a learning rate.

Reference:
  Hochreiter and Schmidhuber, 1997; the forget gate has a bias of 1, as in
  Jozefowicz et al., 2015.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from learned_opt.update import per_parameter


class State(NamedTuple):
  """State of n rows, or trees of the states of single rows.

  Attributes:
    hidden: [n, hidden size], or a tree of arrays [hidden size].
    cell: as hidden.
  """

  hidden: Any
  cell: Any


def weights(key: jax.Array, shape: tuple, fan_in: int) -> jax.Array:
  """Return truncated normal numbers (cut at two standard deviations).

  The standard deviation before truncation is 1/sqrt(fan_in).
  """
  return jax.random.truncated_normal(
      key, -2, 2, shape, jnp.float32) / fan_in**0.5


def init_dense(key: jax.Array, inputs: int, outputs: int) -> dict:
  """Return random weights w [inputs, outputs] and zero biases b [outputs].

  Args:
    key: of the random weights.
    inputs: fan-in.
    outputs: fan-out.
  """
  return {"w": weights(key, (inputs, outputs), inputs),
          "b": jnp.zeros(outputs, jnp.float32)}


def dense(theta: dict, x: jax.Array) -> jax.Array:
  """Return x w + b: [n, fan-in] -> [n, fan-out]."""
  return jnp.dot(x, theta["w"], precision="highest") + theta["b"][None]


def init(key: jax.Array, inputs: int, hidden: int) -> dict:
  """Return the theta of an LSTM: w [inputs + hidden, 4 hidden], b [4 hidden].

  Args:
    key: of the random weights.
    inputs: size of the input of a row.
    hidden: size of the hidden state.
  """
  return init_dense(key, inputs + hidden, 4 * hidden)


def start(theta: dict, states: per_parameter.Statistics, params: Any) -> State:
  """Return the first state: trees like the parameters, one row for each.

  Args:
    theta: hidden [1, hidden size] and cell [1, hidden size].
    states: tells which arrays of params are several parameters.
    params: tree of arrays, possibly in boxes.
  """
  # Adding zeros makes copies: the caller may donate the state, but not theta.
  row = lambda name: theta[name][0] + jnp.zeros([], jnp.float32)
  return State(*(states.repeated(functools.partial(row, name), params)
                 for name in State._fields))


def step(theta: dict, x: jax.Array, state: State) -> State:
  """Return the state after one step; the new hidden state is the output.

  Args:
    theta: as `init` returns it; columns: input gate, candidate, forget gate,
      output gate.
    x: [n, inputs].
    state: of n rows.
  """
  z = dense(theta, jnp.concatenate([x, state.hidden], 1))
  add, candidate, keep, out = jnp.split(z, 4, 1)  # [n, hidden size] each
  cell = (jax.nn.sigmoid(keep + 1) * state.cell +
          jax.nn.sigmoid(add) * jnp.tanh(candidate))
  return State(jax.nn.sigmoid(out) * jnp.tanh(cell), cell)
