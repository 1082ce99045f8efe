"""The time limit and SIGTERM of a run."""

import signal
import time
import types
from typing import Any

from meta_train.devices import parallel


class Clock:
  """Decides when to stop: after SIGTERM, or before the time limit is exceeded.

  A context manager. Inside, the first SIGTERM only sets `terminated`; a second
  one has its usual effect.
  """

  def __init__(self, max_minutes: float):
    """Start the clock; `max_minutes` 0 is no limit."""
    self._limit = 60 * max_minutes
    self._start = time.monotonic()
    self._last_call: float | None = None
    self._longest = 0.0  # seconds between two calls
    self._old_handler: Any = None
    self.terminated = False

  def reason(self) -> str | None:
    """Return the reason to stop now, or None to continue.

    Call it at regular intervals: the longest interval so far must fit into the
    remaining time. Every process of a run gets the same answer.
    """
    now = time.monotonic()
    # The time before the first call is mostly compilation.
    if self._last_call is not None:
      self._longest = max(self._longest, now - self._last_call)
    self._last_call = now
    over = bool(self._limit) and (
        now + self._longest - self._start > self._limit)
    if parallel.anywhere(self.terminated):
      return "SIGTERM"
    return "max_minutes" if parallel.anywhere(over) else None

  def __enter__(self) -> "Clock":
    def terminate(number: int, unused_frame: types.FrameType | None) -> None:
      self.terminated = True
      signal.signal(number, self._old_handler)
    try:
      self._old_handler = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread, which alone can handle signals
      self._old_handler = None
    return self

  def __exit__(self, *exception: object) -> None:
    if self._old_handler is not None:
      signal.signal(signal.SIGTERM, self._old_handler)
