"""Functions of every element of a parameter, computed block by block.

Whole-size intermediate arrays would cost memory, and the time to move them:
what a block of some thousand elements needs stays in the cache instead.

Inputs are trees of arrays [..., *S], where S is the parameter's shape with any
axis replaced by 1; leading axes are the caller's own. A function of a block
gets the same tree with blocks in place of S.
"""

import math
import sys
from typing import Any, Callable

import jax
import jax.numpy as jnp

from learned_opt.update import placement

CPU_SIZE = 3 * 2**12  # elements; 32 activations of each about fit the cache
ACCELERATOR_SIZE = 2**20  # so large that starting kernels costs little


def default_size() -> int:
  """Elements per block on the default backend; no limit on a mesh.

  Blocks of a parameter that is split over devices would be moved between them.
  """
  if placement.on_mesh():
    return sys.maxsize
  return CPU_SIZE if jax.default_backend() == "cpu" else ACCELERATOR_SIZE


def block_shape(shape: tuple, size: int) -> tuple:
  """Shape of blocks of at most `size` elements.

  The last axes whole, one axis cut in nearly equal parts, the axes before it
  one by one, so that a block is one piece of memory. A part that does not
  divide the axis makes the last block overlap the one before.
  """
  block = list(shape)
  for axis, n in enumerate(shape):
    if math.prod(block) <= size:
      break
    most = max(1, size // math.prod(shape[axis + 1:]))
    block[axis] = -(-n // -(-n // most))
  return tuple(block)


def _loop(body: Callable, inputs: Any, shape: tuple, block: tuple, carry: Any):
  """Folds `body(carry, block of inputs, start, excess)` over the blocks.

  `start` are the indices of the block's first element; `excess`, along each
  axis, is how far the block reaches back into the one before.
  """
  counts = tuple(-(-n // b) for n, b in zip(shape, block))

  def step(i, carry):
    first = [index * b for index, b in zip(jnp.unravel_index(i, counts), block)]
    start = [jnp.minimum(f, n - b) for f, n, b in zip(first, shape, block)]

    def take(x):
      own = x.ndim - len(shape)
      starts: list = [0] * own
      sizes = list(x.shape[:own])
      for axis, n in enumerate(x.shape[own:]):
        starts.append(start[axis] if n > 1 else 0)
        sizes.append(block[axis] if n > 1 else 1)
      return jax.lax.dynamic_slice(x, starts, sizes)

    excess = [f - s for f, s in zip(first, start)]
    return body(carry, jax.tree.map(take, inputs), start, excess)

  return jax.lax.fori_loop(0, math.prod(counts), step, carry)


def elementwise(fn: Callable[[Any], jax.Array], inputs: Any, shape: tuple,
                size: int) -> jax.Array:
  """`fn` of every element: [*S], float32.

  Args:
    fn: `block of inputs -> [*block]`, float32.
    inputs: see the module docstring; at least one array.
    shape: S, of at least one axis.
    size: most elements in a block.
  """
  block = block_shape(shape, size)
  if block == shape:
    return fn(inputs)
  write = lambda out, x, start, excess: jax.lax.dynamic_update_slice(
      out, fn(x), start)
  # All is overwritten. Zeros would do, but would take memory from the start of
  # the program, not only from when the last inputs are known.
  last = jax.tree.leaves(inputs)[-1].astype(jnp.float32)
  anything = jnp.broadcast_to(last[(0,) * last.ndim], shape)
  return _loop(write, inputs, shape, block, anything)


def mean_squares(fn: Callable[[Any], tuple], inputs: Any, shape: tuple,
                 size: int) -> jax.Array:
  """Mean squares over all elements of functions: [sum of n], float32.

  Args:
    fn: `block of inputs -> arrays [n, *block]`, float32.
    inputs: see the module docstring.
    shape: S, of at least one axis.
    size: most elements in a block.
  """
  block = block_shape(shape, size)
  count = math.prod(shape)
  axes = tuple(range(1, len(shape) + 1))
  total = lambda values: jnp.concatenate([
      jnp.sum(jnp.square(x), axes) for x in values])
  if block == shape:
    return total(fn(inputs)) / count

  def add(carry, x, start, excess):
    del start
    values = list(fn(x))
    for axis, (n, b) in enumerate(zip(shape, block)):
      if n % b:
        values = [jnp.where(jax.lax.broadcasted_iota(
            jnp.int32, x.shape, axis + 1) >= excess[axis], x, 0)
                  for x in values]
    return carry + total(values)

  n = sum(len(x) for x in jax.eval_shape(fn, inputs))
  return _loop(add, inputs, shape, block, jnp.zeros(n, jnp.float32)) / count


@jax.custom_jvp
def materialize(x: jax.Array, count: jax.Array) -> jax.Array:
  """x, computed once and kept in memory.

  On a CPU, XLA computes what is elementwise again for each of its uses, however
  costly, and drops `optimization_barrier`. What a loop carries is in memory,
  also if the loop is never entered.

  Args:
    x: an array.
    count: an integer that is not negative, which the compiler must not know.
  """
  return jax.lax.while_loop(
      lambda carry: carry[0] < 0, lambda carry: (carry[0] + 1, -carry[1]),
      (count, x))[1]


@materialize.defjvp
def _materialize_jvp(primals, tangents):
  return materialize(*primals), tangents[0]
