"""The per-parameter MLP as two Pallas kernels for GPUs.

The first kernel computes the mean squares of the features, which the
normalizers need. The second computes features, MLP and update. No other array
of the parameter's size is written.

Each program of a kernel computes BLOCK elements, in the order of memory. It
finds its elements of row and column factors from their indices, so shapes of
any rank work. On a CPU the kernels are interpreted, for tests.

The kernels have never run on a GPU. Two things are tested: the results when
interpreted, and lowering to Triton with jax 0.10. From 0.11 on, JAX warns that
the Triton backend of Pallas will be removed.
"""

import math
from typing import Callable

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from learned_opt.update import features as features_lib
from learned_opt.update import platform

BLOCK = 128  # elements per program
MIN_WIDTH = 16  # of a matrix product in Triton


def mean_squares(features: features_lib.Features, shape: tuple) -> jax.Array:
  """Return mean squares of the element features, [16 or 22].

  Args:
    features: see `learned_opt.update.features`.
    shape: S.
  """
  count = sum(features_lib.counts(features))

  def kernel(*refs):
    out = refs[-1]
    index, inside = _elements(shape)
    inputs = _gather(features.inputs, refs[:-1], index, inside, shape)
    for i, x in enumerate(features_lib.one_by_one(features, inputs)):
      out[0, i] = jnp.sum(jnp.where(inside, x * x, 0))

  # Each program writes a row of partial sums; XLA adds the rows.
  blocks = pl.cdiv(math.prod(shape), BLOCK)
  partial = _call(
      kernel, features.inputs, [], jax.ShapeDtypeStruct(
          (blocks, count), jnp.float32), pl.BlockSpec(
              (1, count), lambda i: (i, 0)), blocks)
  return jnp.sum(partial, 0) / float(math.prod(shape))


def update(features: features_lib.Features, more: dict, layers: list,
           limits: jax.Array | None, scale: jax.Array, shape: tuple,
           output: Callable) -> jax.Array:
  """Return `output(direction, magnitude)` of every element, [*S].

  Args:
    features: see `learned_opt.update.features`.
    more: {name: [n, ...]}, features that follow the element features and
      broadcast against S.
    layers: three pairs (weights [fan-in, fan-out], bias [fan-out]). The first
      layer receives the element features, then `more`.
    limits: of the absolute values of element features, or None.
    scale: normalizers of the odd features, see `features.Features`.
    shape: S.
    output: elementwise function.
  """
  size = math.prod(shape)
  arrays = features.inputs | {name: list(x) for name, x in more.items()}
  # Triton needs powers of two; hidden units of zeros change nothing.
  width = max(MIN_WIDTH, pl.next_power_of_2(layers[0][0].shape[1]))
  pad = lambda x, *shape: jnp.pad(
      x, [(0, n - k) for n, k in zip(shape, x.shape)])
  (w0, b0), (w1, b1), (w2, b2) = layers
  small = [pad(w0, len(w0), width), pad(b0, width), pad(w1, width, width),
           pad(b1, width), pad(w2.T, w2.shape[1], width), b2]
  if features.odd:
    small.append(scale)
  if limits is not None:
    small.append(limits)

  def kernel(*refs):
    count = sum(map(len, arrays.values()))
    big, small, out = refs[:count], refs[count:-1], refs[-1]
    w0, b0, w1, b1, w2, b2 = small[:6]
    index, inside = _elements(shape)
    inputs = _gather(arrays, big, index, inside, shape)
    x = features_lib.one_by_one(
        features, {name: inputs[name] for name in features.inputs})
    if limits is not None:
      x = [jnp.clip(x, -small[-1][i], small[-1][i]) for i, x in enumerate(x)]
    odd = x[:features.odd]
    x = [*features_lib.seen(features, x),
         *[x for name in more for x in inputs[name]]]
    # First layer by outer products: features are separate arrays [BLOCK].
    h = jnp.broadcast_to(b0[...][None], (BLOCK, width))
    for i, feature in enumerate(x):
      h += feature[:, None] * w0[i, :][None]
    h = jnp.dot(jnp.maximum(h, 0), w1[...], precision="highest",
                preferred_element_type=jnp.float32) + b1[...][None]
    h = jnp.maximum(h, 0)
    outputs = [jnp.sum(h * w2[i, :][None], 1) + b2[i]
               for i in range(b2.shape[0])]
    if features.odd:
      outputs = [sum(w * x * small[6][i]
                     for i, (w, x) in enumerate(zip(outputs, odd)))]
    triton.store(out.at[pl.ds(0, BLOCK)], features_lib.gated(
        features, inputs, output(*outputs)))

  blocks = pl.cdiv(size, BLOCK)
  padded = _call(kernel, arrays, small, jax.ShapeDtypeStruct(
      (blocks * BLOCK,), jnp.float32), pl.BlockSpec((BLOCK,), lambda i: (i,)),
                 blocks)
  return padded[:size].reshape(shape)


def _call(kernel, arrays, small, out_shape, out_spec, blocks):
  """Run a kernel; every program sees all of `arrays`, flat, and of `small`."""
  flat = [x.reshape(-1) for xs in arrays.values() for x in xs]
  interpret = platform.is_cpu()
  params = None if interpret else triton.CompilerParams(num_warps=4)
  return pl.pallas_call(
      kernel, out_shape=out_shape, grid=(blocks,), out_specs=out_spec,
      in_specs=[pl.no_block_spec] * (len(flat) + len(small)),
      interpret=interpret, compiler_params=params)(*flat, *small)


def _elements(shape):
  """Return (indices of this program's elements, whether each is in S).

  Both have shape [BLOCK]. The last program may have indices beyond S.
  """
  index = pl.program_id(0) * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
  return index, index < math.prod(shape)


def _gather(arrays, refs, index, inside, shape):
  """Return {name: n arrays [BLOCK]} from flat refs of {name: n arrays}."""
  refs = iter(refs)

  def load(x):
    # Unravel the index in S and ravel it in the shape of x, where axes of size
    # 1 broadcast.
    offset, stride, quotient = jnp.zeros_like(index), 1, index
    for n, size in zip(reversed(shape), reversed(x.shape)):
      if size > 1:
        offset += quotient % n * stride
        stride *= size
      quotient //= n
    return triton.load(next(refs).at[offset], mask=inside, other=0.0)

  return {name: [load(x) for x in xs] for name, xs in arrays.items()}
