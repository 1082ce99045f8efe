"""The platform for which an update is compiled, known while it is traced.

On a CPU, XLA needs help to keep arrays in its cache, to compute them once and
to compile fast. The same help costs a GPU or TPU launches of kernels, and waits
of the host for the device.
"""

import contextlib
from typing import Iterator

import jax

_chosen: list[str] = []


def name() -> str:
  """Return the platform: the default backend, unless `tracing_for` chose one.
  """
  return _chosen[-1] if _chosen else jax.default_backend()


def is_cpu() -> bool:
  """Return whether the update is compiled for a CPU."""
  return name() == "cpu"


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
  """Trace updates for a platform that this machine need not have.

  Functions that are traced inside must not have been traced outside, because
  JAX remembers traces.

  Args:
    platform: as in `jax.export`, such as "cuda" or "tpu".
  """
  _chosen.append(platform)
  try:
    yield
  finally:
    _chosen.pop()
