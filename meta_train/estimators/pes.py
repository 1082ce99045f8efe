"""Persistent evolution strategies (PES): unbiased over truncated unrolls.

Every truncation draws a new eps. xi is the sum of the eps of this episode so
far, and the estimate is `xi * (loss+ - loss-) / (2 std^2)`. Its variance grows
with the number of truncations in an episode.

Reference:
  Vicol et al., Unbiased gradient estimation in unrolled computation graphs
  with persistent evolution strategies, 2021, https://arxiv.org/abs/2112.13835,
  algorithm 2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from meta_train.estimators.shared import antithetic


def _xi(eps: Any, kept: Any, begins: jax.Array) -> Any:
  """Add eps to the sum `kept`, which starts from 0 in each episode."""
  return jax.tree.map(
      lambda e, xi: e + jnp.where(begins, 0, xi), eps, kept)


NOISE = antithetic.Noise(eps=antithetic.fresh_eps, direction=_xi)

# make(task=..., opt_fn=..., **settings), see `antithetic.make`.
make = functools.partial(antithetic.make, "pes", NOISE)
