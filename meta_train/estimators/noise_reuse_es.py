"""Noise-reuse evolution strategies: one eps for a whole episode.

Unbiased over truncated unrolls like PES, and without its growing sum, so with
less variance where losses of one episode go up and down together.

Reference:
  Li et al., Noise-reuse in online evolution strategies, 2023,
  https://arxiv.org/abs/2304.12180, algorithm 1.
"""

import functools

import jax
import jax.numpy as jnp

from meta_train.estimators.shared import antithetic

RULE = antithetic.Rule(
    eps=lambda fresh, kept, begins: jax.tree.map(
        lambda new, old: jnp.where(begins, new, old), fresh, kept),
    direction=lambda eps, kept, begins: eps)

# make(task=..., opt_fn=..., **settings), see there.
make = functools.partial(antithetic.make, "noise_reuse_es", RULE)
