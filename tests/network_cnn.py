"""For `mulo.doctor`: the convolutional network of public_models on digits."""

import network_data
import public_models


def init(key, width):
  images, _ = network_data.digits(key, 1)
  return public_models.Cnn(width).init(key, images.reshape(-1, 8, 8, 1))


def loss(params, key, width):
  images, labels = network_data.digits(key, 16)
  logits = public_models.Cnn(width).apply(params, images.reshape(-1, 8, 8, 1))
  return network_data.cross_entropy(logits, labels // 2)  # it has 5 outputs
