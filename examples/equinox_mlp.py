"""An equinox network, trained by a learned optimizer.

python examples/equinox_mlp.py [--width=512] [--num_steps=200]

The network comes from equinox, and its readout does not start at zero:
`rescale_init` gives it the size that it needs under muP. Kernels of equinox are
(outputs, inputs): hence layout="out_in".
"""

import argparse
import sys

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn import datasets

import mulo


def main(argv: list[str]) -> None:
  """Train, and print losses."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--num_steps", type=int, default=200)
  args = parser.parse_args(argv)

  def make(width):
    return eqx.nn.MLP(64, 10, width, depth=2, key=jax.random.key(0))

  # What the optimizer sees: arrays, and None in place of all else.
  params_of = lambda model: eqx.filter(model, eqx.is_inexact_array)
  base_shapes = mulo.scaling.base_shapes(
      lambda width: params_of(make(width)), width=16)
  tx = mulo.load("mulo-s", base_shapes=base_shapes, layout="out_in",
                 num_steps=args.num_steps)
  model = mulo.scaling.rescale_init(make(args.width), make(16), layout="out_in")
  state = tx.init(params_of(model))

  @eqx.filter_value_and_grad
  def loss_and_grads(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(
        jax.vmap(model)(x), y).mean()

  @eqx.filter_jit
  def step(model, state, x, y):
    loss, grads = loss_and_grads(model, x, y)
    updates, state = tx.update(grads, state, params_of(model))
    return eqx.apply_updates(model, updates), state, loss

  images, labels = datasets.load_digits(return_X_y=True)
  images = (images / 16).astype(np.float32)
  rng = np.random.default_rng(0)
  for i in range(args.num_steps):
    rows = rng.integers(len(images), size=128)
    model, state, loss = step(model, state, images[rows], labels[rows])
    if i % 20 == 0 or i == args.num_steps - 1:
      print(f"step {i}: loss {loss:.4f}")


if __name__ == "__main__":
  main(sys.argv[1:])
