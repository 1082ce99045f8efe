"""Timing of several programs next to each other, in one process.

The speed of a machine varies over time. Programs therefore take turns, so that
a slow moment slows all programs and not one of them. At the start of each turn,
a program takes one step that is not timed, while the memory of the program
before it is freed.
"""

import time
from typing import Any, Callable, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np

from experiments import command


class Compiled(NamedTuple):
  """A compiled program.

  Attributes:
    call: the program.
    seconds: duration of tracing and compilation.
    temporary_bytes: memory that the program needs in addition to its inputs and
      outputs; NaN if the backend does not report it.
  """

  call: Callable
  seconds: float
  temporary_bytes: float


def compile_fn(fn: Callable, *args: Any, donate: tuple[int, ...] = ()
               ) -> Compiled:
  """Compile `fn(*args)` without the persistent compilation cache.

  Args:
    fn: function to compile.
    *args: example arguments.
    donate: positions of the arguments that the program may overwrite.
  """
  enabled = jax.config.values["jax_enable_compilation_cache"]
  jax.config.update("jax_enable_compilation_cache", False)
  # JAX reads the setting once; after a reset it reads the setting again.
  compilation_cache.reset_cache()
  try:
    start = time.perf_counter()
    call = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - start
  finally:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()
  analysis = call.memory_analysis()
  bytes_ = analysis.temp_size_in_bytes if analysis else float("nan")
  return Compiled(call, seconds, bytes_)


def interleave(steps: dict[str, Callable[[], Any]], rounds: int, repeats: int
               ) -> dict[str, np.ndarray]:
  """Return the duration of each timed step of each program.

  Args:
    steps: {name: function}; a function takes one step of a program and returns
      arrays to wait for.
    rounds: turns of each program.
    repeats: timed steps per turn.

  Returns:
    {name: [rounds * repeats] seconds}.
  """
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for step in steps.values():  # the first call may allocate or compile
    jax.block_until_ready(step())
  with command.progress(rounds * len(steps), "turn", "timing",
                        leave=False) as bar:
    for _ in range(rounds):
      for name, step in steps.items():
        jax.block_until_ready(step())  # not timed, see the module docstring
        for _ in range(repeats):
          start = time.perf_counter()
          jax.block_until_ready(step())
          seconds[name].append(time.perf_counter() - start)
        bar.update()
  return {name: np.array(values) for name, values in seconds.items()}


class Roofline(NamedTuple):
  """Measured limits of this machine.

  Attributes:
    flops: floating-point operations per second of a matrix product.
    bandwidth: bytes per second, read plus written, when 1 is added in place.
  """

  flops: float
  bandwidth: float


def roofline(rounds: int = 5, side: int = 2048, size: int = 2**26,
             dtype: Any = jnp.float32) -> Roofline:
  """Measure a product of matrices and an addition in place.

  Args:
    rounds: turns of each.
    side: of the matrices.
    size: numbers in the sum, float32.
    dtype: of the matrices.
  """
  matrix, kept = jnp.ones((side, side), dtype), [jnp.ones(size)]
  product = jax.jit(lambda x: x @ x)
  increment = jax.jit(lambda x: x + 1, donate_argnums=0)

  def add():
    kept[0] = increment(kept[0])  # the old array is donated: keep the new one
    return kept[0]

  seconds = interleave({"product": lambda: product(matrix), "add": add},
                       rounds, 3)
  # side**3 multiplications and additions; 4 bytes read and 4 written per
  # number.
  return Roofline(2 * side**3 / float(np.median(seconds["product"])),
                  2 * 4 * size / float(np.median(seconds["add"])))
