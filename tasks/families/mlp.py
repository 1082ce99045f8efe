"""Image classification by a multilayer perceptron."""

import jax
import jax.numpy as jnp

from tasks import base
from tasks import image_tasks
from tasks import layers
from tasks import networks


@image_tasks.classification
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         width: int = 64, depth: int = 2, residual: bool = False,
         activation: str = "relu", init_scale: float = 1.0) -> networks.Network:
  """Make a multilayer perceptron on flattened pixels.

  Layer i computes `output_mult * (x @ w) + b`, with w [fan-in, fan-out] and
  b [fan-out]. Initially, `w = init_scale * init_std * normal` and `b = 0`.

  Args:
    parametrization: see `tasks.families.get`.
    images: see `tasks.image_tasks.load`.
    width: units of each hidden layer.
    depth: number of hidden layers, at least 1.
    residual: whether the hidden layers after the first are residual blocks,
      `h = h + branch_mult * layer(h)`.
    activation: see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: width or depth below 1, or an unknown activation.
  """
  layers.check(width=width, depth=depth)
  act = layers.activation(activation)
  blocks = depth - 1 if residual else 0
  branch = parametrization.branch_mult(blocks) if blocks else 1.0
  num_inputs = images.shape[0] * images.shape[1] * images.shape[2]

  def shapes(width: int) -> list[tuple[int, int]]:
    sizes = (num_inputs, *[width] * depth, images.num_classes)
    return list(zip(sizes, sizes[1:]))

  pairs = list(zip(shapes(width), shapes(2 * width)))  # (shape, base shape)
  mults = [parametrization.output_mult(*pair) for pair in pairs]
  stds = [init_scale * parametrization.init_std(*pair) for pair in pairs]

  def init(key: jax.Array) -> base.Params:
    keys = jax.random.split(key, len(pairs))
    return {
        f"layer_{i}": {
            "w": std * jax.random.normal(k, shape, jnp.float32),
            "b": jnp.zeros(shape[1:], jnp.float32)}
        for i, (k, std, (shape, _)) in enumerate(zip(keys, stds, pairs))}

  def activations(params: base.Params, x: jax.Array) -> dict[str, jax.Array]:
    h = x.reshape(len(x), num_inputs)  # pre-activations, but pixels at first
    outputs = {}
    for i, mult in enumerate(mults):
      x = act(h) if i else h
      layer = params[f"layer_{i}"]
      x = mult * (x @ layer["w"]) + layer["b"][None]
      name = f"layer_{i}" if i < depth else "output"
      # Layers 1 ... blocks are residual blocks; layer 0 changes the width.
      outputs[name] = h = h + branch * x if 0 < i <= blocks else x
    return outputs

  apply = lambda params, x: activations(params, x)["output"]

  base_shapes = {
      f"layer_{i}": {
          "w": jax.ShapeDtypeStruct(shape, jnp.float32),
          "b": jax.ShapeDtypeStruct(shape[1:], jnp.float32)}
      for i, shape in enumerate(shapes(2 * width))}
  return networks.Network(init, apply, base_shapes, activations, {
      f"layer_{i}/*": blocks for i in range(1, blocks + 1)})
