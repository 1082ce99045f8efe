"""A haiku network, trained by a learned optimizer.

python examples/haiku_mlp.py [--width=512] [--num_steps=200]
"""

import argparse
import sys

import haiku as hk
import jax
import numpy as np
import optax
from sklearn import datasets

import mulo


def classifier(width: int) -> hk.Transformed:
  """Two hidden layers."""

  def forward(x):
    x = hk.nets.MLP([width, width], activate_final=True)(x)
    # The readout starts at zero, as muP has it.
    return hk.Linear(10, w_init=hk.initializers.Constant(0), name="readout")(x)

  return hk.without_apply_rng(hk.transform(forward))


def main(argv: list[str]) -> None:
  """Train, and print losses."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--num_steps", type=int, default=200)
  args = parser.parse_args(argv)

  images, labels = datasets.load_digits(return_X_y=True)
  images = (images / 16).astype(np.float32)
  init = lambda width: classifier(width).init(jax.random.key(0), images[:1])
  params = init(args.width)
  tx = mulo.load("mulo-s", num_steps=args.num_steps,
                 base_shapes=mulo.scaling.base_shapes(init, width=8))

  def loss_fn(params, x, y):
    logits = classifier(args.width).apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @jax.jit
  def step(params, state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  state = tx.init(params)
  rng = np.random.default_rng(0)
  for i in range(args.num_steps):
    rows = rng.integers(len(images), size=128)
    params, state, loss = step(params, state, images[rows], labels[rows])
    if i % 20 == 0 or i == args.num_steps - 1:
      print(f"step {i}: loss {loss:.4f}")


if __name__ == "__main__":
  main(sys.argv[1:])
