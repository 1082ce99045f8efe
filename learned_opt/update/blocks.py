"""Functions of every element of a parameter, computed block by block.

Intermediate arrays of the parameter's size would cost memory, and time to move
them. Intermediate arrays of a block of some thousand elements stay in the
cache.

Inputs are trees of arrays [..., *S], where S is the parameter's shape with any
axis replaced by 1. Leading axes have any meaning. A function of a block
receives the same tree with the shape of the block in place of S.
"""

import math
import sys
from typing import Any, Callable

import jax
import jax.numpy as jnp

from learned_opt.update import platform
from learned_opt.update import sharding

CPU_SIZE = 3 * 2**12  # elements; 32 activations of each about fit the cache
ACCELERATOR_SIZE = 2**20  # so large that starting kernels costs little


def default_size() -> int:
  """Return the elements per block; no limit on a mesh.

  Blocks of a parameter that is split over devices would be moved between
  devices.
  """
  if sharding.on_mesh():
    return sys.maxsize
  return CPU_SIZE if platform.is_cpu() else ACCELERATOR_SIZE


def fused_size() -> int:
  """Return the elements per block where XLA can fuse all that a block computes.

  Only a CPU then needs blocks: XLA fuses sums into loops elsewhere.
  """
  return default_size() if platform.is_cpu() else sys.maxsize


def block_shape(shape: tuple, size: int) -> tuple:
  """Return the shape of blocks of at most `size` elements.

  A block is one piece of memory: the last axes are whole, one axis is cut into
  nearly equal pieces, and the axes before it have size 1. For example, (3, 3,
  4, 8) with size 40 gives (1, 1, 4, 8). If the pieces do not divide the axis,
  the last block overlaps the block before.
  """
  block = list(shape)
  for axis, n in enumerate(shape):
    if math.prod(block) <= size:
      break
    most = max(1, size // math.prod(shape[axis + 1:]))
    # ceil(n / most) pieces, each of ceil(n / pieces) elements.
    block[axis] = -(-n // -(-n // most))
  return tuple(block)


def _loop(body: Callable, inputs: Any, shape: tuple, block: tuple, carry: Any):
  """Fold `body(carry, block of inputs, start, excess)` over the blocks.

  Args:
    body: returns the next carry. `start` is the index of the block's first
      element [one number per axis]. `excess` is how far the block reaches back
      into the block before, along each axis.
    inputs: see the module docstring.
    shape: S.
    block: shape of a block.
    carry: the first carry.
  """
  counts = tuple(-(-n // b) for n, b in zip(shape, block))
  cut = [axis for axis, count in enumerate(counts) if count > 1]

  def step(i, carry):
    first: list = [0] * len(shape)
    start: list = [0] * len(shape)
    for axis in reversed(cut):
      if axis != cut[0]:
        i, index = jax.lax.div(i, counts[axis]), jax.lax.rem(i, counts[axis])
      else:
        index = i
      first[axis] = index * block[axis]
      # All blocks have one shape: the last block is moved back to fit into S.
      start[axis] = jnp.minimum(first[axis], shape[axis] - block[axis])

    def take(x):
      leading = x.ndim - len(shape)
      starts: list = [0] * leading
      sizes = list(x.shape[:leading])
      for axis, n in enumerate(x.shape[leading:]):
        # Axes of size 1 broadcast: every block gets all of them.
        starts.append(start[axis] if n > 1 else 0)
        sizes.append(block[axis] if n > 1 else 1)
      return jax.lax.dynamic_slice(x, starts, sizes)

    excess = [f - s for f, s in zip(first, start)]
    return body(carry, jax.tree.map(take, inputs), start, excess)

  return jax.lax.fori_loop(0, math.prod(counts), step, carry)


def elementwise(fn: Callable[[Any], jax.Array], inputs: Any, shape: tuple,
                size: int) -> jax.Array:
  """Return `fn` of every element: [*S], float32.

  Args:
    fn: `block of inputs -> [*block]`, float32.
    inputs: see the module docstring; at least one array.
    shape: S, of at least one axis.
    size: maximum of elements in a block.
  """
  block = block_shape(shape, size)
  if block == shape:
    return fn(inputs)
  # Blocks that overlap write equal values twice.
  write = lambda out, x, start, excess: jax.lax.dynamic_update_slice(
      out, fn(x), start)
  # Every element is overwritten, so zeros would do, too. But XLA would allocate
  # zeros at the start of the program, and an array made from the last input
  # only when that input is known.
  last = jax.tree.leaves(inputs)[-1].astype(jnp.float32)
  anything = jnp.broadcast_to(last[(0,) * last.ndim], shape)
  return _loop(write, inputs, shape, block, anything)


def mean_squares(fn: Callable[[Any], tuple], inputs: Any, shape: tuple,
                 size: int) -> jax.Array:
  """Return mean squares of functions over all elements: [sum of n], float32.

  Args:
    fn: `block of inputs -> arrays [n, *block]`, float32; n may differ.
    inputs: see the module docstring.
    shape: S, of at least one axis.
    size: maximum of elements in a block.
  """
  block = block_shape(shape, size)
  count = float(math.prod(shape))  # as an int, it may not fit into int32
  axes = tuple(range(1, len(shape) + 1))
  total = lambda values: jnp.concatenate([
      jnp.sum(jnp.square(x), axes) for x in values])
  if block == shape:
    return total(fn(inputs)) / count

  def add(carry, x, start, excess):
    del start
    values = list(fn(x))
    # Elements in two blocks count once: the second block sets them to zero.
    for axis, (n, b) in enumerate(zip(shape, block)):
      if n % b:
        values = [jnp.where(jax.lax.broadcasted_iota(
            jnp.int32, x.shape, axis + 1) >= excess[axis], x, 0)
                  for x in values]
    return carry + total(values)

  n = sum(len(x) for x in jax.eval_shape(fn, inputs))
  return _loop(add, inputs, shape, block, jnp.zeros(n, jnp.float32)) / count


def materialize(x: jax.Array, count: jax.Array) -> jax.Array:
  """Return x, computed once and kept in memory.

  On a CPU, XLA computes elementwise functions again for each use, however
  costly they are, and drops `optimization_barrier`. The carry of a loop is in
  memory, even if the loop is never entered. Elsewhere the barrier does it,
  where a loop would make the host wait for the device.

  Args:
    x: an array.
    count: a nonnegative integer whose value the compiler must not know.
  """
  if not platform.is_cpu():
    return jax.lax.optimization_barrier(x)
  return _in_memory(x, count)


@jax.custom_jvp
def _in_memory(x, count):
  """Return x from the carry of a loop; see `materialize`."""
  # Never entered. Its body changes x, so that XLA cannot remove the loop.
  return jax.lax.while_loop(
      lambda carry: carry[0] < 0, lambda carry: (carry[0] + 1, -carry[1]),
      (count, x))[1]


@_in_memory.defjvp
def _in_memory_jvp(primals, tangents):
  # JAX has no reverse mode of while loops; the derivative is the identity.
  return _in_memory(*primals), tangents[0]
