"""Adam with a meta-learned learning rate, decays and epsilon: four numbers.

A grid search can find the best theta, so this optimizer is a test bed for
gradient estimators.

Reference:
  Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980.
"""

import math

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt.update import per_parameter


def make(learning_rate: float = 0.001, b1: float = 0.9, b2: float = 0.999,
         epsilon: float = 1e-8) -> base.LearnedOptimizer:
  """Return the optimizer: `optax.adam`, with statistics in float32.

  theta holds the logs of learning_rate, 1 - b1, 1 - b2 and epsilon: four
  scalars, named after the settings. The settings are their initial values.

  Args:
    learning_rate: multiplies the update.
    b1: decay of the momentum.
    b2: decay of the second moment.
    epsilon: added to the root of the second moment.

  Raises:
    ValueError: learning_rate or epsilon is not a positive number, or a decay
      is not between 0 and 1.
  """
  base.check_positive(learning_rate=learning_rate, epsilon=epsilon)
  base.check_decays(b1=b1, b2=b2)
  initial = dict(learning_rate=learning_rate, b1=1 - b1, b2=1 - b2,
                 epsilon=epsilon)

  def init(key):
    del key
    return {name: jnp.float32(math.log(x)) for name, x in initial.items()}

  def opt_fn(theta, *, num_steps=None, stacks=None):
    del num_steps, stacks  # every entry is updated by itself
    x = {name: jnp.exp(log) for name, log in theta.items()}
    tx = optax.chain(
        optax.scale_by_adam(1 - x["b1"], 1 - x["b2"], x["epsilon"]),
        optax.scale(-x["learning_rate"]))
    # Statistics in bfloat16 could not move, and their dtype would change.
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(grads, state, params=None, **extra_args):
      del extra_args
      base.check_params(params)
      updates, state = tx.update(wide(grads), state)
      return jax.tree.map(lambda u, g: u.astype(g.dtype), updates, grads), state

    def start(params):
      per_parameter.check_arrays(params)
      return tx.init(wide(params))

    return optax.GradientTransformationExtraArgs(start, update)

  return base.LearnedOptimizer(init, opt_fn)
