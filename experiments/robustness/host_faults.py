"""Faults of meta-training on two hosts, which are two processes here."""

import functools
import pathlib
import random
import signal
import socket
import subprocess
from typing import Callable, Iterator

from experiments.robustness import run_faults

HEARTBEAT = 10  # seconds


class Pair:
  """Two processes of one run, each with a workdir of its own."""

  def __init__(self, runs: run_faults.Runs, folder: pathlib.Path):
    """Choose a port.

    Args:
      runs: starts processes.
      folder: for the workdirs.
    """
    self.runs, self.folder = runs, folder
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      self.port = free.getsockname()[1]

  def start(self, process: int, *flags: str, count: int = 2
            ) -> subprocess.Popen:
    """Start a process; later flags replace earlier ones."""
    return self.runs.start(
        self.folder / str(process), f"--coordinator=127.0.0.1:{self.port}",
        f"--num_processes={count}", f"--process_id={process}",
        f"--heartbeat_timeout={HEARTBEAT}", *flags)

  def both(self, *flags: str) -> list[subprocess.Popen]:
    """Start both; `flags` are those of process 1 alone."""
    return [self.start(0), self.start(1, *flags)]


def refused(processes: list[subprocess.Popen]) -> str:
  """Return run_faults.REFUSED if all processes end with one line."""
  ends = [run_faults.end(process) for process in processes]
  bad = [f"{i}: {x.outcome}" for i, x in enumerate(ends)
         if x.outcome != run_faults.REFUSED]
  return "; ".join(bad) or run_faults.REFUSED


def differing(runs: run_faults.Runs, flags: Callable[[pathlib.Path], list[str]],
              folder: pathlib.Path) -> str:
  """Start process 1 with other flags."""
  return refused(Pair(runs, folder).both(*flags(folder)))


@functools.lru_cache(maxsize=1)
def reference(runs: run_faults.Runs) -> bytes:
  """theta.safetensors of two hosts without faults."""
  folder = runs.folder / "two"
  for process in Pair(runs, folder).both():
    run_faults.end(process)
  return (folder / "0" / "theta.safetensors").read_bytes()


def lost(runs: run_faults.Runs, victim: int, number: int, step: int,
         folder: pathlib.Path) -> str:
  """Kill or freeze a host after some steps; then start both again."""
  pair = Pair(runs, folder)
  processes = pair.both()
  run_faults.wait_for_rows(processes[0], folder / "0", step)
  processes[victim].send_signal(number)
  survivor = run_faults.end(processes[1 - victim])
  processes[victim].kill()
  run_faults.end(processes[victim])
  if survivor.outcome != run_faults.REFUSED:
    return survivor.outcome
  for process in Pair(runs, folder).both():
    ended = run_faults.end(process)
    if ended.status:
      return f"again: status {ended.status}: {' | '.join(ended.errors)[:300]}"
  path = folder / "0" / "theta.safetensors"
  right = path.read_bytes() == reference(runs)
  return run_faults.REFUSED if right else "another theta"


def terminated(runs: run_faults.Runs, victim: int, folder: pathlib.Path) -> str:
  """Send SIGTERM to one host: both must stop at the same step."""
  processes = Pair(runs, folder).both()
  run_faults.wait_for_rows(processes[0], folder / "0", 4)
  processes[victim].send_signal(signal.SIGTERM)
  for process in processes:
    ended = run_faults.end(process)
    if ended.status != 128 + signal.SIGTERM or ended.errors:
      return f"status {ended.status}: {' | '.join(ended.errors)[:300]}"
  for process in Pair(runs, folder).both():
    run_faults.end(process)
  path = folder / "0" / "theta.safetensors"
  right = path.read_bytes() == reference(runs)
  return run_faults.SURVIVED if right else "another theta"


def never_together(runs: run_faults.Runs, numbers: tuple[int, ...], count: int,
                   folder: pathlib.Path) -> str:
  """Start processes that cannot form a run."""
  pair = Pair(runs, folder)
  return refused([pair.start(number, "--initialization_timeout=15",
                             count=count) for number in numbers])


def address(runs: run_faults.Runs, text: str, process: int,
            folder: pathlib.Path) -> str:
  """Give an address that cannot be right."""
  return refused([Pair(runs, folder).start(
      process, f"--coordinator={text}", "--initialization_timeout=2")])


def taken(runs: run_faults.Runs, folder: pathlib.Path) -> str:
  """Let another program have the port."""
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    text = f"127.0.0.1:{other.getsockname()[1]}"
    return address(runs, text, 0, folder)


def other_data(folder: pathlib.Path) -> list[str]:
  """Write other data; return the flags of a host that has them."""
  run_faults.write_data(folder / "data", 1)
  return [f"--data_dir={folder / 'data'}"]


def faults(runs: run_faults.Runs, rng: random.Random, kills: int = 10
           ) -> Iterator[run_faults.Fault]:
  """Yield the faults of two hosts."""
  make = lambda name, function, *args: run_faults.Fault(
      "hosts", name, functools.partial(function, runs, *args))
  for flag in ("theta_opt.learning_rate=0.5", "log_every=4", "devices=2",
               "tasks.images.width=5", "checkpoint_every=8", "num_steps=50"):
    yield make(f"other {flag}", differing,
               lambda folder, flag=flag: [f"--config.{flag}"])
  yield make("other data", differing, other_data)
  for text, process in (("foo", 0), ("127.0.0.1:99999", 1), ("127.0.0.1:1", 1),
                        ("host.invalid:8000", 1), ("127.0.0.1:", 0)):
    yield make(f"address {text}", address, text, process)
  yield make("port in use", taken)
  yield make("process 1 never comes", never_together, (0,), 2)
  yield make("two equal numbers", never_together, (0, 1, 1), 3)
  yield make("a number too high", never_together, (5,), 2)
  for victim in (0, 1):
    yield make(f"SIGTERM to {victim}", terminated, victim)
    yield make(f"{victim} is frozen", lost, victim, signal.SIGSTOP, 6)
  for i in range(kills):
    step = rng.randrange(2, 40)
    yield make(f"SIGKILL of {i % 2} after step {step}", lost, i % 2,
               signal.SIGKILL, step)
