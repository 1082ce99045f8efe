"""Truncated evolution strategies: biased, and with little variance.

Both networks of a pair start every truncation from the same state, that of the
positive one, so how theta acts through earlier truncations is not seen.

Reference:
  Metz et al., Understanding and correcting pathologies in the training of
  learned optimizers, 2019, https://arxiv.org/abs/1810.10180.
"""

import functools

from meta_train.estimators.shared import antithetic

RULE = antithetic.Rule(
    eps=lambda fresh, kept, begins: fresh,
    direction=lambda eps, kept, begins: eps,
    merge=True)

# make(task=..., opt_fn=..., **settings), see there.
make = functools.partial(antithetic.make, "truncated_es", RULE)
