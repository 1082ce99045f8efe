"""Poisson's equation, solved by a network of the position."""

import jax
import jax.numpy as jnp

from tasks import base
from tasks import networks
from tasks import normalizers
from tasks import table_tasks
from tasks import task_decorator
from tasks.families import siren

# Solutions with a right-hand side of variance 1 are about as large.
SCALE = 0.25


def _load(dataset: str = "sources", data_dir: str | None = None
          ) -> table_tasks.Table:
  """Return the table as it is: positions are from -1 to 1."""
  return table_tasks.load(dataset, False, data_dir)


def _solve(network: networks.Network, table: table_tasks.Table,
           batch_size: int = 64, compute_dtype: str = "float32") -> base.Task:
  """Return the task with the mean squared residual of the equation."""
  task = table_tasks.predict(network, table, batch_size, compute_dtype)
  network = networks.computed_in(network, compute_dtype)

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    del key
    x = batch["x"]  # [n, axes]

    def solution(x: jax.Array) -> jax.Array:
      inside = jnp.prod(1 - jnp.square(x), 1, keepdims=True)
      return SCALE * inside * network.apply(params, x)

    def second(axis: int) -> jax.Array:
      """Return the second derivative along an axis, [n, outputs]."""
      tangent = jnp.zeros_like(x).at[:, axis].set(1)
      first = lambda x: jax.jvp(solution, (x,), (tangent,))[1]
      return jax.jvp(first, (x,), (tangent,))[1]

    laplacian = sum((second(axis) for axis in range(x.shape[1])),
                    start=jnp.zeros_like(batch["y"]))
    return jnp.mean(jnp.square(laplacian + batch["y"])), {}

  # The solution 0 has the loss of guessing zeros in `predict`: 1.
  return task._replace(loss=loss, normalize=normalizers.bounded(1.0))


@task_decorator.decorator(_load, _solve)
def make(parametrization: base.Parametrization, table: table_tasks.Table,
         width: int = 32, depth: int = 2, frequency: float = 2.0,
         init_scale: float = 1.0) -> networks.Network:
  """Make a physics-informed network of sines.

  The network N solves `-laplacian(u) = f` for `u(x) = prod(1 - x**2) * N(x) /
  4`, which is 0 on the border of the square from -1 to 1. The loss is the mean
  of `(laplacian(u) + f)**2`; f has mean 0 and variance 1.

  Args:
    parametrization: see `tasks.families.get`.
    table: see `tasks.table_tasks.load`; positions and f, as in "sources".
    width: units of each hidden layer.
    depth: number of hidden layers.
    frequency: see `tasks.families.siren`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: see `tasks.families.siren`.

  Reference:
    Raissi et al., Physics-informed neural networks, 2017,
    https://arxiv.org/abs/1711.10561, equation 3;
    Lagaris et al., 1998, for solutions that are right on the border.
  """
  return siren.network(
      parametrization, table, width, depth, frequency, init_scale)
