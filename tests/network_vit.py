"""For `mulo.doctor`: the vision transformer of public_models on digits."""

import network_data
import public_models


def init(key, width):
  images, _ = network_data.digits(key, 2)
  return public_models.Vit(width).init(key, images.reshape(-1, 8, 8, 1))


def loss(params, key, width):
  images, labels = network_data.digits(key)
  logits = public_models.Vit(width).apply(params, images.reshape(-1, 8, 8, 1))
  return network_data.cross_entropy(logits, labels)
