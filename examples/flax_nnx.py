"""A flax.nnx network, trained by a learned optimizer.

python examples/flax_nnx.py [--width=512] [--num_steps=200]

The sizes of the network are in a config. The base shapes are those of the same
network with all widths of the config divided by 16.
"""

import argparse
import dataclasses
import sys

from flax import nnx
import numpy as np
import optax
from sklearn import datasets

import mulo


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes; the bottleneck is narrower than the other layers."""

  width: int = 512
  bottleneck: int = 128
  classes: int = 10


class Classifier(nnx.Module):
  """Three hidden layers."""

  def __init__(self, config: Config, rngs: nnx.Rngs):
    self.encoder = nnx.Linear(64, config.width, rngs=rngs)
    self.bottleneck = nnx.Linear(config.width, config.bottleneck, rngs=rngs)
    self.decoder = nnx.Linear(config.bottleneck, config.width, rngs=rngs)
    # The readout starts at zero, as muP has it.
    self.readout = nnx.Linear(config.width, config.classes, rngs=rngs,
                              kernel_init=nnx.initializers.zeros)

  def __call__(self, x):
    for layer in (self.encoder, self.bottleneck, self.decoder):
      x = nnx.relu(layer(x))
    return self.readout(x)


@nnx.jit
def step(model, optimizer, x, y):
  def loss_fn(model):
    return optax.softmax_cross_entropy_with_integer_labels(
        model(x), y).mean()

  loss, grads = nnx.value_and_grad(loss_fn)(model)
  optimizer.update(model, grads)
  return loss


def main(argv: list[str]) -> None:
  """Train, and print losses."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--num_steps", type=int, default=200)
  args = parser.parse_args(argv)

  config = Config(args.width, args.width // 4)
  make = lambda config: Classifier(config, nnx.Rngs(0))
  base_shapes = mulo.scaling.base_shapes(
      lambda config: nnx.state(make(config), nnx.Param),
      mulo.scaling.scale_config(config, 1 / 16, ["width", "bottleneck"]))
  model = make(config)
  optimizer = nnx.Optimizer(model, wrt=nnx.Param, tx=mulo.load(
      "mulo-s", base_shapes=base_shapes, num_steps=args.num_steps))

  images, labels = datasets.load_digits(return_X_y=True)
  images = (images / 16).astype(np.float32)
  rng = np.random.default_rng(0)
  for i in range(args.num_steps):
    rows = rng.integers(len(images), size=128)
    loss = step(model, optimizer, images[rows], labels[rows])
    if i % 20 == 0 or i == args.num_steps - 1:
      print(f"step {i}: loss {loss:.4f}")


if __name__ == "__main__":
  main(sys.argv[1:])
