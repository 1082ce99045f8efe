"""The interface of a gradient estimator, and the state of meta-training."""

from typing import Any, Callable, NamedTuple, TypeAlias

import jax

Theta: TypeAlias = Any  # pytree of float32 arrays: the meta-parameters


class EstimatorOut(NamedTuple):
  """One estimate, averaged over independent copies of one task.

  Attributes:
    meta_loss: mean over the copies, float32 scalar.
    grad: tree like theta: mean over the copies of the estimated gradient of the
      meta-loss.
    copies: number of copies in the two means, float32 scalar. It is the weight
      of this estimate in a mean over several devices.
    info: dict of float32 scalars, each a sum over all copies. Every estimator
      has "inner_steps" (inner steps taken), "diverged" (inner steps whose loss
      was not finite before normalisation), "dropped" (copies left out of the
      means) and "gradient_squares" (squared norms of the copies' gradients).
  """

  meta_loss: jax.Array
  grad: Theta
  copies: jax.Array
  info: dict[str, jax.Array]


class GradientEstimator(NamedTuple):
  """Estimates the gradient of a task's meta-loss with respect to theta.

  `keys` has one key per independent copy of the task. The number of copies is
  the leading axis of every array in the state. The results of a copy must
  depend on its own key and state alone. Then they do not depend on how the
  copies are divided among devices.

  Attributes:
    init: `(keys, theta) -> state`.
    estimate: `(keys, theta, state, data) -> (EstimatorOut, state)`, where
      `data` is `tasks.base.Task.data`.
  """

  init: Callable[[jax.Array, Theta], Any]
  estimate: Callable[[jax.Array, Theta, Any, Any], tuple[EstimatorOut, Any]]


class MetaState(NamedTuple):
  """Everything that an outer step receives from the step before.

  A checkpoint is one MetaState. Random keys are not in it: they are computed
  from the seed and the step.

  Attributes:
    step: outer steps taken, int32 scalar.
    theta: meta-parameters.
    average: mean of theta over the last outer steps, zeros before.
    grad: the latest meta-gradient, tree like theta.
    opt_state: state of the meta-optimizer.
    estimator_states: {task name: state of the task's estimator}.
  """

  step: jax.Array
  theta: Theta
  average: Theta
  grad: Theta
  opt_state: Any
  estimator_states: dict[str, Any]
