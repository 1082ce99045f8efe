"""Timing several programs side by side in one process.

Machines are noisy, so cases take turns: what slows one down for a while slows
all of them. In each turn a case first takes one step that does not count; what
the case before left to be freed is freed meanwhile.
"""

import time
from typing import Any, Callable, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import tqdm


class Compiled(NamedTuple):
  """A compiled program.

  Attributes:
    call: the program.
    seconds: what tracing and compiling it took.
    temporary_bytes: memory that it takes beside inputs and outputs; NaN where
      the backend does not say.
  """

  call: Callable
  seconds: float
  temporary_bytes: float


def compile_fn(fn: Callable, *args: Any, donate: tuple[int, ...] = ()
               ) -> Compiled:
  """Compiles `fn(*args)` anew, past the persistent cache.

  Args:
    fn: what to compile.
    *args: example arguments.
    donate: positions of the arguments that the program may overwrite.
  """
  enabled = jax.config.values["jax_enable_compilation_cache"]
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # JAX asks only once whether to use it
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
  """Seconds of every counted step of every case.

  Args:
    steps: by name, functions that take one step and return what to wait for.
    rounds: turns of each case.
    repeats: counted steps in a turn.

  Returns:
    By name, [rounds * repeats] seconds.
  """
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for step in steps.values():  # whatever the first calls set up
    jax.block_until_ready(step())
  with tqdm.tqdm(total=rounds * len(steps), unit="turn", mininterval=1,
                 leave=False) as bar:
    for _ in range(rounds):
      for name, step in steps.items():
        jax.block_until_ready(step())
        for _ in range(repeats):
          start = time.perf_counter()
          jax.block_until_ready(step())
          seconds[name].append(time.perf_counter() - start)
        bar.update()
  return {name: np.array(values) for name, values in seconds.items()}


class Roofline(NamedTuple):
  """What this machine was measured to do.

  Attributes:
    flops: floating-point operations per second of a float32 matrix product.
    bandwidth: bytes per second, read plus written, of adding 1 in place.
  """

  flops: float
  bandwidth: float


def roofline(rounds: int = 5) -> Roofline:
  """Measures a product of 2048 x 2048 and additions to 256 MB."""
  n, size = 2048, 2**26
  matrix, kept = jnp.ones((n, n)), [jnp.ones(size)]
  product = jax.jit(lambda x: x @ x)
  increment = jax.jit(lambda x: x + 1, donate_argnums=0)

  def add():
    kept[0] = increment(kept[0])
    return kept[0]

  seconds = interleave({"product": lambda: product(matrix), "add": add},
                       rounds, 3)
  return Roofline(2 * n**3 / float(np.median(seconds["product"])),
                  2 * 4 * size / float(np.median(seconds["add"])))
