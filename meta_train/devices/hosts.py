"""Processes of a multi-host run: they meet, agree, and part.

JAX ends a process in which another process of the run has died, with a dump
from C++ that no Python code can prevent. `messages` turns it into one line.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Iterator, NoReturn

import jax
from jax.experimental import multihost_utils

from meta_train.devices import messages
from meta_train.devices import parallel

# Errors of a collective whose other side is gone.
_GONE = re.compile(
    r"Gloo .* failed|Connection closed by peer|coordination service|"
    r"NCCL|DEADLINE_EXCEEDED|UNAVAILABLE")
_LEAVE = 10.0  # seconds that a process waits for others with the same error
_LOST = 1.0  # seconds, when another process is gone
# Seconds to wait for a host that reads its data; heartbeats find dead ones.
_SLOWEST = 3600
_numbers = itertools.count()  # every process calls `agree` equally often


def connect(coordinator: str | None, processes: int | None,
            process: int | None, initialization_timeout: int = 300,
            heartbeat_timeout: int = 100) -> None:
  """Join the processes of a multi-host run; call it before any use of JAX.

  Nothing happens if `jax.distributed` is initialised already.

  Args:
    coordinator: address:port of process 0. None: JAX detects all three
      arguments, on a Cloud TPU, under Slurm or Open MPI, or in a JobSet.
    processes: number of processes.
    process: number of this process, from 0.
    initialization_timeout: seconds to wait for the other processes.
    heartbeat_timeout: seconds without a sign of life after which a process
      counts as dead.

  Raises:
    ValueError: an address or number that cannot be right.
    OSError: nobody answers at the address, or its port is in use.
  """
  if jax.distributed.is_initialized():
    return
  if coordinator is not None:
    _check(coordinator, processes, process, initialization_timeout)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  _filter_stderr(dict(
      coordinator=coordinator or "the coordinator", processes=processes or 0,
      process=process or 0, initialization_timeout=initialization_timeout,
      heartbeat_timeout=heartbeat_timeout))
  jax.distributed.initialize(
      coordinator, processes, process,
      initialization_timeout=initialization_timeout,
      heartbeat_timeout_seconds=heartbeat_timeout)
  met = {"process": jax.process_index(), "processes": jax.process_count()}
  print(f"{messages.EVENT}{json.dumps(met)}", file=sys.stderr, flush=True)


def _check(coordinator: str, processes: int | None, process: int | None,
           seconds: int) -> None:
  """Raise an error if the arguments of `connect` cannot be right."""
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ValueError(f"--coordinator={coordinator}: expected address:port, "
                     "with a port from 1 to 65535.")
  if processes is None or process is None or not 0 <= process < processes:
    raise ValueError(
        f"--process_id={process} must be from 0 to --num_processes - 1, and "
        f"--num_processes is {processes}.")
  if process == 0:
    with socket.socket() as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        probe.bind(("", int(port)))
      except OSError as e:
        raise OSError(
            f"Port {port} of --coordinator={coordinator} cannot be used here "
            f"({e.strerror}): another run has it, or two processes have "
            "--process_id=0. Choose another port.") from e
    return
  end = time.monotonic() + seconds
  while True:
    try:
      socket.create_connection(
          (host.strip("[]"), int(port)), timeout=min(10, seconds)).close()
      return
    except OSError as e:
      if time.monotonic() > end:
        raise OSError(
            f"Nobody answers at --coordinator={coordinator} within {seconds} s "
            f"({e}): does process 0 run there, and is the port open? "
            "--initialization_timeout sets the time.") from e
    time.sleep(0.2)


def _filter_stderr(run: dict[str, Any]) -> None:
  """Let stderr of this process go through `messages`."""
  path = str(pathlib.Path(messages.__file__))
  process = subprocess.Popen(
      [sys.executable, "-S", "-E", path, json.dumps(run)],
      stdin=subprocess.PIPE)
  assert process.stdin is not None
  sys.stderr.flush()
  os.dup2(process.stdin.fileno(), 2)
  process.stdin.close()


def say(text: str) -> None:
  """Print a last line to stderr; nothing that is printed later changes it."""
  mark = messages.SAID if jax.distributed.is_initialized() else ""
  print(f"{mark}{text}", file=sys.stderr, flush=True)


def lost(error: Exception) -> str | None:
  """Return what an error says about other processes; None if it does not."""
  if not (jax.distributed.is_initialized() and jax.process_count() > 1 and
          _GONE.search(str(error))):
    return None
  peer = re.search(r"closed by peer \[?([^\]]+)\]?", str(error))
  others = ", ".join(str(i) for i in range(jax.process_count())
                     if i != jax.process_index())
  who = f"Process {others}" if jax.process_count() == 2 else (
      f"One of the processes {others}")
  where = f" (at {peer[1]})" if peer else ""
  return (f"{who}{where} has ended or cannot be reached; what it printed says "
          "why. Start all processes again; they continue from the last "
          "checkpoint.")


def leave(status: int, others_live: bool = True) -> NoReturn:
  """End this process after an error, without waiting long for the others.

  Args:
    status: exit status.
    others_live: whether the others may still need this process.
  """
  # Not a process that ends on its own: JAX would wait for the others, for
  # minutes if they have died. The others need the coordinator until they have
  # printed their own line.
  thread = threading.Thread(target=_shut_down, daemon=True)
  thread.start()
  thread.join(_LEAVE if others_live else _LOST)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _shut_down() -> None:
  try:
    jax.distributed.shutdown()
  except Exception:  # pylint: disable=broad-except
    pass  # the others are gone


def agree(facts: dict[str, Any]) -> None:
  """Raise ValueError on all processes unless their facts are equal.

  Args:
    facts: {name: JSON value}.

  Raises:
    ValueError: names the fact, the process and both values.
    OSError: a process did not answer.
  """
  if jax.process_count() == 1:
    return
  client = _client()
  mine = {"host": socket.gethostname(),
          "facts": json.loads(json.dumps(facts, sort_keys=True))}
  text = json.dumps(mine["facts"], sort_keys=True)
  prefix = f"mulo/{next(_numbers)}"
  me = jax.process_index()
  client.key_value_set(f"{prefix}/facts/{me}", json.dumps(mine))
  client.key_value_set(
      f"{prefix}/hash/{me}", hashlib.sha256(text.encode()).hexdigest())

  def get(what: str, process: int) -> str:
    try:
      return str(client.blocking_key_value_get(
          f"{prefix}/{what}/{process}", 1000 * _SLOWEST))
    except jax.errors.JaxRuntimeError as e:
      raise OSError(f"Process {process} does not answer within {_SLOWEST} s. "
                    "Start all processes again.") from e

  hashes = [get("hash", process) for process in range(jax.process_count())]
  other = next((i for i, x in enumerate(hashes) if x != hashes[0]), None)
  if other is None:
    return
  first, second = (json.loads(get("facts", i)) for i in (0, other))
  raise ValueError(_difference(other, first, second))


def _difference(process: int, first: dict[str, Any], other: dict[str, Any]
                ) -> str:
  """Return the message about the facts in which two processes differ.

  Args:
    process: number of the other process.
    first: host and facts of process 0.
    other: host and facts of the other process.
  """
  a, b = first["facts"], other["facts"]
  names = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
  changed = "; ".join(
      f"{name}: {b.get(name)}, not {a.get(name)}" for name in names[:5])
  more = f", and {len(names) - 5} more" if len(names) > 5 else ""
  return (f"Process {process} (on {other['host']}) differs from process 0 (on "
          f"{first['host']}) in {changed}{more}. Start all processes with the "
          "same config, software and data.")


def _client() -> Any:
  """Return the client of the key-value store that all processes share."""
  # JAX has no public name for it; orbax uses this one, too.
  from jax._src import distributed
  return distributed.global_state.client


def preempted(call: int) -> bool:
  """Return whether the cluster will take a machine away.

  All processes get True in the same call.

  Args:
    call: number of this call.
  """
  if jax.process_count() == 1:
    return False
  try:
    return bool(multihost_utils.reached_preemption_sync_point(call))
  except RuntimeError:
    return False  # switched off by jax_enable_preemption_service


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Re-raise an exception of one process on all processes.

  Otherwise the other processes would wait forever in a collective.
  """
  error = None
  try:
    yield
  except Exception as e:  # pylint: disable=broad-except
    error = e
  if parallel.anywhere(error is not None):
    raise error or OSError(
        "Another process failed; see the error message of that process.")
