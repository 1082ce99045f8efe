"""Lengths of episodes."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_train.estimators.shared import truncation


def test_lengths():
  sample = lambda lengths: jax.vmap(
      lambda key: lengths.sample(key, jnp.int32(0)))
  lengths = sample(truncation.lengths(5, 10, 100))(
      jax.random.split(jax.random.key(0), 4000))
  assert np.all(lengths % 5 == 0)
  assert lengths.min() == 10 and lengths.max() == 100
  uneven = sample(truncation.lengths(25, 30, 110))(
      jax.random.split(jax.random.key(2), 99))
  assert sorted(set(uneven.tolist())) == [50, 75, 100]
  # Log-uniform: half of the lengths are below the geometric mean.
  assert abs(np.mean(lengths < np.sqrt(1000)) - 0.5) < 0.05
  for stagger, expected in ((True, [5, 10, 15, 20]), (False, [20])):
    first = jax.vmap(truncation.lengths(5, 20, 20, stagger=stagger).first)(
        jax.random.split(jax.random.key(1), 400))
    assert sorted(set(first.tolist())) == expected


def test_curriculum():
  sample = truncation.lengths(5, 10, 1000, curriculum=100).sample
  keys = jax.random.split(jax.random.key(0), 500)
  for outer_step, longest in ((0, 10), (50, 100), (100, 1000), (900, 1000)):
    lengths = jax.vmap(sample, (0, None))(keys, jnp.int32(outer_step))
    assert lengths.min() == 10 and 0.9 * longest <= lengths.max() <= longest
