"""The interface of a gradient estimator, and the state of meta-training."""

from typing import Any, Callable, NamedTuple

import jax


class EstimatorOut(NamedTuple):
  """One estimate from a number of independent copies of a task.

  Attributes:
    meta_loss: mean over the copies, float32 scalar.
    grad: tree like theta, mean over the copies of the estimated gradient of
      the meta-loss.
    copies: how many copies the means are over, float32 scalar: what estimates
      from several devices are weighted with.
    info: dict of float32 scalars, sums over all copies. Every estimator has
      "inner_steps" that were taken, "diverged": those of them whose loss was
      not finite before normalisation, and "dropped": copies that were left
      out.
  """

  meta_loss: jax.Array
  grad: Any
  copies: jax.Array
  info: dict[str, jax.Array]


class GradientEstimator(NamedTuple):
  """Estimates the gradient of a task's meta-loss with respect to theta.

  `keys` has one key per independent copy of the task, and its length is the
  leading axis of every array in the state. What happens to a copy must follow
  from its own key and state, so that results do not depend on which device
  has which copies.

  Attributes:
    init: `(keys, theta) -> state`.
    estimate: `(keys, theta, state, data) -> (EstimatorOut, state)`, with
      `data` the task's.
  """

  init: Callable[[jax.Array, Any], Any]
  estimate: Callable[[jax.Array, Any, Any, Any], tuple[EstimatorOut, Any]]


class MetaState(NamedTuple):
  """All that meta-training carries from step to step: a checkpoint.

  Random keys are not in it: they follow from the seed and the step.

  Attributes:
    step: outer steps taken, int32 scalar.
    theta: meta-parameters.
    opt_state: state of the meta-optimizer.
    estimator_states: {task name: state of its estimator}.
  """

  step: jax.Array
  theta: Any
  opt_state: Any
  estimator_states: dict[str, Any]
