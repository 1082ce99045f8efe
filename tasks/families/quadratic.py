"""A quadratic with a known optimum, for testing optimizers and estimators."""

import jax
import jax.numpy as jnp

from tasks import base
from tasks import normalizers


def make(parametrization, dim: int = 4, condition: float = 3.0) -> base.Task:
  """Loss 0.5 sum_i h_i p_i^2 of one vector; the optimum is 0 at p = 0.

  Gradient descent with step size a gives p_i(t) = (1 - a h_i)^t p_i(0).

  Args:
    parametrization: not used, there is no width.
    dim: number of parameters.
    condition: largest over smallest curvature; the curvatures are evenly
      spaced and their mean is 1.
  """
  del parametrization
  curvature = 2 * jnp.linspace(1, condition, dim) / (1 + condition)  # [dim]

  def init(key):
    return {"p": jax.random.normal(key, (dim,), jnp.float32)}

  def loss(params, key, batch):
    del key, batch
    return 0.5 * jnp.sum(curvature * params["p"]**2), {}

  return base.Task(
      init, loss, sample_batch=lambda key, split: {},
      data={split: {} for split in base.SPLITS}, base_shapes=None,
      normalize=normalizers.Normalizer(),
      optimum=lambda: {"p": jnp.zeros([dim], jnp.float32)})
