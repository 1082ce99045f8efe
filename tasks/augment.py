"""Variants of a task, for meta-training on more than one has."""

import math

import jax
import jax.numpy as jnp

from tasks import base

LEVELS = ("global", "tensor", "parameter")


def reparametrize(task: base.Task, level: str = "tensor", low: float = 0.01,
                  high: float = 100.0) -> base.Task:
  """The task as a function of `params / factors`, with random factors.

  The network and its loss are the same, but gradients are multiplied by the
  factors and params divided by them. The factors are redrawn for every
  episode, log-uniform from low to high.

  Args:
    task: without factors so far.
    level: one factor for all ("global"), one for each "tensor" or for each
      "parameter", which are the single numbers in tensors.
    low: smallest factor, positive.
    high: largest factor.

  Raises:
    ValueError: an unknown level, an impossible range, or a task with factors.

  Reference:
    Metz et al., VeLO, 2022, https://arxiv.org/abs/2211.09760; Moudgil et al.,
    Celo, 2025, https://arxiv.org/abs/2501.12670.
  """
  if level not in LEVELS:
    raise ValueError(
        f"Unknown level {level!r}; available: {', '.join(LEVELS)}.")
  if not 0 < low <= high < math.inf:
    raise ValueError(f"Factors must be positive and low at most high, got low "
                     f"{low} and high {high}.")
  if task.scales is not None:
    raise ValueError("The task is reparametrized already.")

  def scales(key, params):
    leaves, structure = jax.tree.flatten(params)
    sizes = {"global": [0] * len(leaves), "tensor": [1] * len(leaves),
             "parameter": [x.size for x in leaves]}[level]
    drawn = jnp.exp(jax.random.uniform(
        key, (max(1, sum(sizes)),), jnp.float32, math.log(low),
        math.log(high)))
    factors, used = [], 0
    for x, size in zip(leaves, sizes):
      own = drawn[used:used + max(1, size)]
      factors.append(own.reshape(x.shape if level == "parameter" else ()))
      used += size
    return jax.tree.unflatten(structure, factors)

  return task._replace(scales=scales)
