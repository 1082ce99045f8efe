"""For `mulo.doctor`: the network of examples/equinox_mlp.py."""

import equinox as eqx
import jax
import network_data

SETTINGS = {"layout": "out_in"}  # of equinox's kernels


def model(key, width):
  return eqx.nn.MLP(64, 10, width, depth=2, key=key)


def init(key, width):
  return eqx.filter(model(key, width), eqx.is_inexact_array)


def loss(params, key, width):
  rest = eqx.filter(model(key, width), eqx.is_inexact_array, inverse=True)
  images, labels = network_data.digits(key)
  return network_data.cross_entropy(
      jax.vmap(eqx.combine(params, rest))(images), labels)
