"""Tasks of several workers: local steps, then one step of the optimizer.

In config.tasks, an entry "workers" of a section makes any task such a task:

    "mlp": {"name": "mlp", ...,
            "workers": {"count": 8, "every": 4, "learning_rate": 0.1}}

An inner step is then a round, and all that counts inner steps counts rounds.
Estimators and optimizers stay the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from learned_opt import base as learned_opt_base
from learned_opt import workers
from tasks import base as tasks_base

_AXIS = "workers"


def local_rounds(parametrization: learned_opt_base.Parametrization,
                 task: tasks_base.Task, *, count: int, every: int,
                 learning_rate: Any) -> tasks_base.Task:
  """Return the task with rounds of local SGD in place of gradients.

  In a round, each worker starts from the common parameters p and takes `every`
  steps of SGD on batches of its own, without momentum. The optimizer receives
  the mean, over workers, of (p - parameters of the worker) divided by
  `learning_rate * every`: an average gradient. `spread` are the differences of
  workers, see `learned_opt.workers`. `mulo.local_updates` with SGD does the
  same on a mesh.

  The loss of a round is that of p on the first batch of each worker. Other
  splits than train serve as before, with batches of all workers.

  Args:
    parametrization: of the task.
    task: any task without `gradients`.
    count: number of workers.
    every: local steps in a round.
    learning_rate: of local steps; a traced number passes.

  Raises:
    ValueError: a number is not positive, the task has workers already, or a
      parametrization whose learning rates depend on width.
  """
  learned_opt_base.check_sizes(count=count, every=every)
  if not isinstance(learning_rate, jax.core.Tracer):
    learned_opt_base.check_positive(learning_rate=learning_rate)
  if task.gradients is not None:
    raise ValueError("The task has workers already.")
  if parametrization.needs_base_shapes:
    raise ValueError(
        "workers take steps of plain SGD, whose learning rate does not follow "
        "this parametrization: set config.parametrization to \"standard\".")

  def sample_batch(key: jax.Array, split: Any) -> tasks_base.Batch:
    keys = jax.random.split(key, (count, every))
    return jax.vmap(jax.vmap(task.sample_batch, (0, None)), (0, None))(
        keys, split)

  def loss(params: Any, key: jax.Array, batch: tasks_base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    # Workers and steps of this batch.
    keys = jax.random.split(key, jax.tree.leaves(batch)[0].shape[:2])
    of_all = jax.vmap(jax.vmap(task.loss, (None, 0, 0)), (None, 0, 0))
    return jax.tree.map(jnp.mean, of_all(params, keys, batch))

  def gradients(loss_of: Any, params: Any, key: jax.Array,
                batch: tasks_base.Batch) -> tuple[Any, Any, dict[str, Any]]:

    def local_step(q: Any, drawn: Any) -> tuple[Any, jax.Array]:
      key, batch = drawn
      # `loss_of` is `loss`, of one worker and one step here.
      (value, _), grads = jax.value_and_grad(loss_of, has_aux=True)(
          q, key, jax.tree.map(lambda x: x[None, None], batch))
      return jax.tree.map(lambda x, g: x - learning_rate * g, q, grads), value

    def one_worker(keys: Any, batch: Any) -> tuple[Any, Any, workers.Spread]:
      q, losses = jax.lax.scan(local_step, params, (keys, batch))
      differences = jax.tree.map(
          lambda p, x: (p - x) / (learning_rate * every), params, q)
      return (jax.lax.pmean(losses[0], _AXIS),
              workers.mean(differences, _AXIS),
              workers.spread(differences, _AXIS))

    value, mean, spread = jax.vmap(one_worker, axis_name=_AXIS, out_axes=None)(
        jax.random.split(key, (count, every)), batch)
    return value, mean, {"spread": lambda: spread}

  return task._replace(
      sample_batch=sample_batch, loss=loss, gradients=gradients)
