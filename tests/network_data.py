"""Batches for the networks that `mulo.doctor` is tried on: digits and text."""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

LETTERS = "abcdefghijklmnopqrstuvwxyz _\n"  # all others are the last of 30
LENGTH = 32


def digits(key: jax.Array, size: int = 64) -> tuple[jax.Array, jax.Array]:
  """Return images [size, 64] between 0 and 1, and labels [size]."""
  images, labels = datasets.load_digits(return_X_y=True)
  rows = jax.random.randint(key, (size,), 0, len(images))
  return (jnp.asarray(images / 16, jnp.float32)[rows],
          jnp.asarray(labels, jnp.int32)[rows])


def text(key: jax.Array, size: int = 16) -> jax.Array:
  """Return characters [size, LENGTH + 1] of the source code of argparse."""
  source = pathlib.Path(argparse.__file__).read_text().lower()
  codes = jnp.asarray(np.array(
      [LETTERS.find(x) % 30 for x in source], np.int32))
  starts = jax.random.randint(key, (size,), 0, len(codes) - LENGTH - 1)
  return codes[starts[:, None] + jnp.arange(LENGTH + 1)]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Return the mean cross-entropy."""
  return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels).mean()
