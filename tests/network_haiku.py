"""For `mulo.doctor`: the network of examples/haiku_mlp.py."""

import pathlib
import sys

import network_data

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import haiku_mlp  # noqa: E402, in the folder that was added


def init(key, width):
  return haiku_mlp.classifier(width).init(key, network_data.digits(key, 1)[0])


def loss(params, key, width):
  images, labels = network_data.digits(key)
  return network_data.cross_entropy(
      haiku_mlp.classifier(width).apply(params, images), labels)
