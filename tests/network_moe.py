"""For `mulo.doctor`: the mixture of experts of public_models on digits."""

import network_data
import public_models


def init(key, width):
  return public_models.Moe(width).init(key, network_data.digits(key, 1)[0])


def loss(params, key, width):
  images, labels = network_data.digits(key)
  return network_data.cross_entropy(
      public_models.Moe(width).apply(params, images), labels)
