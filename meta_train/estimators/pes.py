"""Persistent evolution strategies: unbiased over truncated unrolls.

Every truncation draws a new eps; xi sums those of the episode so far, and the
estimate is xi * (loss+ - loss-) / (2 std^2). Its variance grows with the number
of truncations in an episode.

Reference:
  Vicol et al., Unbiased gradient estimation in unrolled computation graphs
  with persistent evolution strategies, 2021, https://arxiv.org/abs/2112.13835,
  algorithm 2.
"""

import functools

import jax
import jax.numpy as jnp

from meta_train.estimators.shared import antithetic

RULE = antithetic.Rule(
    eps=lambda fresh, kept, begins: fresh,
    direction=lambda eps, kept, begins: jax.tree.map(
        lambda e, xi: e + jnp.where(begins, 0, xi), eps, kept))

# make(task=..., opt_fn=..., **settings), see there.
make = functools.partial(antithetic.make, "pes", RULE)
