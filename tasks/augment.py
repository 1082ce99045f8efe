"""Random variants of a task, for meta-training on more variety."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from tasks import base

LEVELS = ("global", "tensor", "parameter")


def reparametrize(task: base.Task, level: str = "tensor", low: float = 0.01,
                  high: float = 100.0) -> base.Task:
  """Return the task as a function of `params / factors`, with random factors.

  The optimizer trains `q = params / factors`. The network and its loss stay the
  same, but `d loss / d q = factors * d loss / d params`. The factors are drawn
  again for every episode, log-uniformly from low to high.

  Args:
    task: a task without factors.
    level: "global" for one factor, "tensor" for one factor per tensor, or
      "parameter" for one factor per entry of each tensor.
    low: smallest factor, positive.
    high: largest factor.

  Raises:
    ValueError: an unknown level, an impossible range, or a task that has
      factors already.

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

  def scales(key: jax.Array, params: base.Params) -> Any:
    leaves, structure = jax.tree.flatten(params)
    # Factors that each leaf uses up. With "global", no leaf uses up the single
    # factor, so every leaf starts at index 0.
    sizes = {"global": [0] * len(leaves), "tensor": [1] * len(leaves),
             "parameter": [x.size for x in leaves]}[level]
    drawn = jnp.exp(jax.random.uniform(
        key, (max(1, sum(sizes)),), jnp.float32, math.log(low),
        math.log(high)))
    factors, used = [], 0
    for x, size in zip(leaves, sizes):
      of_leaf = drawn[used:used + max(1, size)]
      factors.append(of_leaf.reshape(x.shape if level == "parameter" else ()))
      used += size
    return jax.tree.unflatten(structure, factors)

  return task._replace(scales=scales)
