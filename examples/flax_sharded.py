"""A flax.linen network, split over devices, trained by a learned optimizer.

python examples/flax_sharded.py [--width=512] [--num_steps=200]

This is flax's recipe for sharding: the network names the mesh axes of its
parameters, and `TrainState` is made under jit, with these names as
out_shardings. The state of the learned optimizer is split like the parameters.
The width must be a multiple of the number of devices. To make 8 devices of the
CPU: XLA_FLAGS=--xla_force_host_platform_device_count=8
"""

import argparse
import sys

import flax.linen as nn
from flax.training import train_state
import jax
import numpy as np
import optax
from sklearn import datasets

import mulo


class Classifier(nn.Module):
  """Two hidden layers, split along their width over the mesh axis "x"."""

  width: int

  @nn.compact
  def __call__(self, x):
    split = nn.with_partitioning
    bias = split(nn.initializers.zeros, ("x",))
    kernel = split(nn.initializers.lecun_normal(), (None, "x"))
    for _ in range(2):
      x = nn.relu(nn.Dense(self.width, kernel_init=kernel, bias_init=bias)(x))
    # The readout starts at zero, as muP has it.
    return nn.Dense(10, kernel_init=split(
        nn.initializers.zeros, ("x", None)))(x)


@jax.jit
def step(state, x, y):
  def loss_fn(params):
    logits = state.apply_fn({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss


def make_state(mesh, x, width: int, num_steps: int) -> train_state.TrainState:
  """Make the state where it belongs: each device has its part of it."""
  key = jax.random.key(0)
  init = lambda size: Classifier(size).init(key, x)["params"]
  tx = mulo.load("mulo-s", num_steps=num_steps,
                 base_shapes=mulo.scaling.base_shapes(init, width=8))
  create = lambda: train_state.TrainState.create(
      apply_fn=Classifier(width).apply, params=init(width), tx=tx)
  specs = nn.get_partition_spec(jax.eval_shape(create))
  return jax.jit(create, out_shardings=jax.tree.map(
      lambda spec: jax.sharding.NamedSharding(mesh, spec), specs))()


def main(argv: list[str]) -> None:
  """Train, and print losses and the bytes of the state."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--num_steps", type=int, default=200)
  args = parser.parse_args(argv)

  images, labels = datasets.load_digits(return_X_y=True)
  images = (images / 16).astype(np.float32)
  rng = np.random.default_rng(0)
  mesh = jax.make_mesh((jax.device_count(),), ("x",),
                       axis_types=(jax.sharding.AxisType.Auto,))
  with jax.set_mesh(mesh):
    state = make_state(mesh, images[:1], args.width, args.num_steps)
    for i in range(args.num_steps):
      rows = rng.integers(len(images), size=128)
      state, loss = step(state, images[rows], labels[rows])
      if i % 20 == 0 or i == args.num_steps - 1:
        print(f"step {i}: loss {loss:.4f}")
  arrays = jax.tree.leaves(state)
  here = sum(x.addressable_shards[0].data.nbytes for x in arrays)
  print(f"device 0 has {here} of {sum(x.nbytes for x in arrays)} bytes of the "
        "state")


if __name__ == "__main__":
  main(sys.argv[1:])
