"""Truncated evolution strategies: biased, with a small variance.

Both networks of a pair start each truncation from the same state, at which the
network with theta + eps ended the last truncation. The estimate therefore
misses the effect of theta through earlier truncations.

Reference:
  Metz et al., Understanding and correcting pathologies in the training of
  learned optimizers, 2019, https://arxiv.org/abs/1810.10180.
"""

import functools

from meta_train.estimators.shared import antithetic

NOISE = antithetic.Noise(
    eps=antithetic.fresh_eps, direction=antithetic.eps_direction, merge=True)

# make(task=..., opt_fn=..., **settings), see `antithetic.make`.
make = functools.partial(antithetic.make, "truncated_es", NOISE)
