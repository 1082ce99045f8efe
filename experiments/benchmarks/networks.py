"""Shapes of the parameters of well-known networks, for measurements of updates.

A scale below 1 makes networks of the same layers that are narrower.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp

Shapes = Any  # tree of jax.ShapeDtypeStruct


def gpt2(scale: float = 1.0) -> Shapes:
  """Return GPT-2 small: 148 tensors, 124 million parameters."""
  array, d = _array, _width(768, scale)
  return {
      "embedding": array(_width(50257, scale), d), "positions": array(1024, d),
      "norm": _norm(d), "blocks": [{
          "qkv": _dense(d, 3 * d), "out": _dense(d, d), "up": _dense(d, 4 * d),
          "down": _dense(4 * d, d), "norm_1": _norm(d), "norm_2": _norm(d)}
                                   for _ in range(12)]}


def vit_b(scale: float = 1.0) -> Shapes:
  """Return ViT-B/16: 152 tensors, 86 million parameters."""
  array, d = _array, _width(768, scale)
  return {
      "patches": {"kernel": array(16, 16, 3, d), "bias": array(d)},
      "positions": array(197, d), "class": array(d), "norm": _norm(d),
      "head": _dense(d, 1000), "blocks": [{
          "qkv": _dense(d, 3 * d), "out": _dense(d, d), "up": _dense(d, 4 * d),
          "down": _dense(4 * d, d), "norm_1": _norm(d), "norm_2": _norm(d)}
                                          for _ in range(12)]}


def resnet50(scale: float = 1.0) -> Shapes:
  """Return ResNet-50: 161 tensors, 26 million parameters."""
  array, first = _array, _width(64, scale)
  conv = lambda size, n, m: {"kernel": array(size, size, n, m), **_norm(m)}
  stages, inputs = [], first
  for i, count in enumerate((3, 4, 6, 3)):
    d, blocks = first * 2**i, []
    for j in range(count):
      block = {"conv_1": conv(1, inputs, d), "conv_2": conv(3, d, d),
               "conv_3": conv(1, d, 4 * d)}
      if not j:
        block["shortcut"] = conv(1, inputs, 4 * d)
      blocks.append(block)
      inputs = 4 * d
    stages.append(blocks)
  return {"stem": conv(7, 3, first), "stages": stages,
          "head": _dense(inputs, 1000)}


def mlp(scale: float = 1.0) -> Shapes:
  """Return a perceptron of three layers: 6 tensors, 6 million parameters."""
  d = _width(2048, scale)
  return [_dense(784, d), _dense(d, d), _dense(d, 10)]


NETWORKS: dict[str, Callable[..., Shapes]] = {
    "gpt2": gpt2, "vit_b": vit_b, "resnet50": resnet50, "mlp": mlp}


def size(shapes: Shapes) -> int:
  """Return the number of parameters."""
  return sum(x.size for x in jax.tree.leaves(shapes))


def _array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _dense(n, m):
  return {"kernel": _array(n, m), "bias": _array(m)}


def _norm(d):
  return {"scale": _array(d), "bias": _array(d)}


def _width(n, scale):
  return max(16, 16 * round(n * scale / 16)) if scale != 1 else n
