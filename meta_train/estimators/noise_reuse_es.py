"""Noise-reuse evolution strategies: one eps for a whole episode.

Unbiased over truncated unrolls, like PES, but without the growing sum of noise.
The variance is therefore smaller if the losses of an episode rise and fall
together.

Reference:
  Li et al., Noise-reuse in online evolution strategies, 2023,
  https://arxiv.org/abs/2304.12180, algorithm 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from meta_train.estimators.shared import antithetic


def _eps_of_episode(fresh: Any, kept: Any, begins: jax.Array) -> Any:
  """Draw a new eps at the beginning of an episode, otherwise keep the eps."""
  return jax.tree.map(
      lambda new, old: jnp.where(begins, new, old), fresh, kept)


NOISE = antithetic.Noise(
    eps=_eps_of_episode, direction=antithetic.eps_direction)

# make(task=..., opt_fn=..., **settings), see `antithetic.make`.
make = functools.partial(antithetic.make, "noise_reuse_es", NOISE)
