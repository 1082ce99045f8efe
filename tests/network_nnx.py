"""For `mulo.doctor`: the network of examples/flax_nnx.py."""

import pathlib
import sys

from flax import nnx
import network_data

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import flax_nnx  # noqa: E402, in the folder that was added


def model(key, width):
  return flax_nnx.Classifier(
      flax_nnx.Config(width, width // 4), nnx.Rngs(params=key))


def init(key, width):
  return nnx.state(model(key, width), nnx.Param)


def loss(params, key, width):
  graph, _ = nnx.split(nnx.eval_shape(lambda: model(key, width)))
  images, labels = network_data.digits(key)
  return network_data.cross_entropy(nnx.merge(graph, params)(images), labels)
