"""The time limit of a run, and the signals that stop it."""

import signal
import time
import types
from typing import Any

from meta_train.devices import hosts
from meta_train.devices import parallel

# Exit status of a run that a signal has stopped.
STATUS = {name: 128 + getattr(signal, name)
          for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)}
# From the least to the most urgent.
_REASONS = ("", "max_minutes", "preemption", *STATUS)


class Clock:
  """Decides when to stop: after a signal, or before the time limit is exceeded.

  A context manager, also several times. Inside, the first SIGTERM, SIGINT or
  SIGHUP is only noted; the next one has its usual effect.
  """

  def __init__(self, max_minutes: float):
    """Start the clock; `max_minutes` 0 is no limit."""
    self._limit = 60 * max_minutes
    self._start = time.monotonic()
    self._last_call: float | None = None
    self._longest = 0.0  # seconds between two calls
    self._old_handlers: dict[int, Any] = {}
    self._received = ""
    self._calls = 0

  def reason(self) -> str | None:
    """Return the reason to stop now, or None to continue.

    A name of STATUS, "preemption" or "max_minutes".

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
    self._calls += 1
    preempted = hosts.preempted(self._calls)
    reason = self._received or ("preemption" if preempted else
                                "max_minutes" if over else "")
    # The process with the most urgent reason decides for all.
    return _REASONS[parallel.highest(_REASONS.index(reason))] or None

  def __enter__(self) -> "Clock":
    def note(number: int, unused_frame: types.FrameType | None) -> None:
      self._received = self._received or signal.Signals(number).name
      self.__exit__()
    for name in STATUS:
      number = getattr(signal, name)
      if self._received or signal.getsignal(number) == signal.SIG_IGN:
        continue  # as `nohup` ignores SIGHUP
      try:
        self._old_handlers[number] = signal.signal(number, note)
      except ValueError:
        pass  # not the main thread, which alone can handle signals
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._old_handlers.items():
      signal.signal(number, handler)
    self._old_handlers = {}
