"""A flax network of your own on MNIST, trained by a learned optimizer.

python examples/mnist_flax.py --data_dir=DIR [--width=512]

DIR holds the four files of MNIST as they are distributed (IDX, gzip). Only the
optimizer comes from mulo; the three comments that start with muP are all that
the network needs for it. With --adamw=1e-3, AdamW instead.
"""

import argparse
import gzip
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import mulo


class Classifier(nn.Module):
  """Three hidden layers."""

  width: int

  @nn.compact
  def __call__(self, x):
    for _ in range(3):
      x = nn.relu(nn.Dense(self.width)(x))  # muP: entries of 1/sqrt(inputs)
    # muP: the readout starts at zero
    return nn.Dense(10, kernel_init=nn.initializers.zeros)(x)


def read(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images [n, 784] of mean 0 and variance 1 or so, and labels [n]."""
  load = lambda name, header: np.frombuffer(
      gzip.decompress((folder / f"{split}-{name}-ubyte.gz").read_bytes()),
      np.uint8, offset=header)
  images = load("images-idx3", 16).reshape(-1, 784) / np.float32(255)
  return (images - 0.13) / 0.31, load("labels-idx1", 8).astype(np.int32)


def main(argv: list[str]) -> float:
  """Trains; returns the accuracy on the test images."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", type=pathlib.Path, required=True)
  which = parser.add_mutually_exclusive_group()
  which.add_argument("--optimizer", default="mulo-s",
                     help="name, or file that meta-training wrote")
  which.add_argument("--adamw", type=float, help="learning rate")
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--num_steps", type=int, default=1000)
  parser.add_argument("--batch_size", type=int, default=128)
  args = parser.parse_args(argv)

  images, labels = read(args.data_dir, "train")
  key = jax.random.key(0)
  params = Classifier(args.width).init(key, images[:1])
  if args.adamw is None:
    # muP: shapes of the same network at another width
    base_shapes = mulo.scaling.base_shapes(
        lambda width: Classifier(width).init(key, images[:1]), width=8)
    optimizer = mulo.load(args.optimizer, base_shapes=base_shapes,
                          num_steps=args.num_steps)
  else:
    optimizer = optax.adamw(args.adamw)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optimizer)

  def loss_fn(params, x, y):
    logits = Classifier(args.width).apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @jax.jit
  def step(params, state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  state, losses = tx.init(params), []
  rng = np.random.default_rng(0)
  for _ in tqdm.trange(args.num_steps, mininterval=1):
    rows = rng.integers(len(images), size=args.batch_size)
    params, state, loss = step(params, state, images[rows], labels[rows])
    losses.append(loss)
  test_images, test_labels = read(args.data_dir, "t10k")
  logits = Classifier(args.width).apply(params, test_images)
  accuracy = float(jnp.mean(jnp.argmax(logits, -1) == test_labels))
  last = float(np.mean(losses[-max(1, len(losses) // 10):]))
  print(f"train loss of the last tenth: {last:.4f}; "
        f"test accuracy: {accuracy:.2%}")
  return accuracy


if __name__ == "__main__":
  main(sys.argv[1:])
