"""For `mulo.doctor`: the recurrent network of public_models on source code."""

import network_data
import public_models


def init(key, width):
  return public_models.Lstm(width).init(key, network_data.text(key, 1)[:, :-1])


def loss(params, key, width):
  tokens = network_data.text(key)
  return network_data.cross_entropy(
      public_models.Lstm(width).apply(params, tokens[:, :-1]), tokens[:, 1:])
