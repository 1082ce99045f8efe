"""A quadratic with a known optimum, for testing optimizers and estimators."""

import jax
import jax.numpy as jnp

from tasks import base
from tasks import normalizers


def make(parametrization: base.Parametrization | None, dim: int = 4,
         condition: float = 3.0) -> base.Task:
  """Make the task of minimising `0.5 * sum_i h_i * p_i**2` over a vector p.

  The minimum is 0, at p = 0. After t steps of gradient descent with step size
  a, `p_i(t) = (1 - a * h_i)**t * p_i(0)`.

  Args:
    parametrization: ignored, because there is no width.
    dim: number of entries of p.
    condition: largest curvature h_i divided by the smallest. Curvatures are
      evenly spaced, with mean 1.
  """
  del parametrization
  curvature = 2 * jnp.linspace(1, condition, dim) / (1 + condition)  # [dim]

  def init(key: jax.Array) -> base.Params:
    return {"p": jax.random.normal(key, (dim,), jnp.float32)}

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    del key, batch
    return 0.5 * jnp.sum(curvature * params["p"]**2), {}

  return base.Task(
      init, loss, sample_batch=lambda key, split: {},
      data={split: {} for split in base.SPLITS}, base_shapes=None,
      normalize=normalizers.Normalizer(),
      optimum=lambda: {"p": jnp.zeros([dim], jnp.float32)})
