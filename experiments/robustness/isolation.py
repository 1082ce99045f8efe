"""Try hostile cases in a process with limits, and report their effects.

A case is a function without arguments that reads a hostile file. The process
has a limit on its memory, and an audit hook notes each effect of a case on the
world outside. A second process waits for each case for a limited time.
"""

import multiprocessing
import pathlib
import resource
import sys
import tempfile
import traceback
from typing import Any, Callable

from experiments import command
import mulo

SECONDS = 30.0  # limit for a case; a usual case takes milliseconds
START_SECONDS = 300.0  # limit for the start of a process
MEMORY = 2**31  # bytes that a process may use in addition to those at its start
# Audit events (or beginnings of their names) that a case must not cause.
EFFECTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove",
           "os.rename", "os.mkdir", "subprocess.Popen", "socket.connect",
           "pickle.find_class", "shutil.", "ctypes.dlopen", "urllib.", "fuzz.")


def outcome(attempt: Callable[[], Any], effects: list) -> str:
  """Try a case.

  Args:
    attempt: reads the file.
    effects: list that an audit hook adds to; emptied first.

  Returns:
    "read", "refused", or a description of the failure.
  """
  del effects[:]
  try:
    attempt()
    result = "read"
  except mulo.ArtifactError as e:
    result = "refused"
    if not 10 < len(str(e)) < 4000 or not str(e).isprintable():
      result = f"a message that is empty, long or not printable: {e!r:.300}"
  except BaseException:  # any other exception is a failure
    result = traceback.format_exc()
  if effects:
    return f"it did {effects[:3]}"
  return result


def worker(connection, make_case: Callable, first: int, last: int) -> None:
  """Try the cases `first` to `last` - 1 in a process of their own.

  Args:
    connection: receives (None, "ready"), then (seed, outcome) for each case.
    make_case: `(seed, folder) -> attempt`, as `fuzz.case`.
    first: seed of the first case.
    last: seed after the last case.
  """
  effects: list[str] = []

  def watch(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(
        args[1]) & set("wax+")
    if writes or event.startswith(EFFECTS):
      effects.append(f"{event} {args!r:.100}")

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    # The first cases import and compile; this must not count as their effect.
    for seed in range(8):
      outcome(make_case(seed, folder), effects)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send((None, "ready"))
    sys.addaudithook(watch)  # cannot be removed again
    for seed in range(first, last):
      connection.send((seed, outcome(make_case(seed, folder), effects)))


def run(make_case: Callable, first: int, count: int,
        seconds: float = SECONDS) -> dict[int, str]:
  """Try cases in another process, which is started again if it ends.

  Args:
    make_case: `(seed, folder) -> attempt`, as `fuzz.case`.
    first: seed of the first case.
    count: number of cases.
    seconds: limit for each case.

  Returns:
    {seed: "read", "refused" or a description of the failure}. After
    KeyboardInterrupt the last cases are missing.
  """
  context = multiprocessing.get_context("spawn")
  outcomes: dict[int, str] = {}
  last = first + count
  with command.progress(count, "case", leave=False) as bar:
    while len(outcomes) < count:
      here, there = context.Pipe()
      seed = first + len(outcomes)
      process = context.Process(
          target=worker, args=(there, make_case, seed, last), daemon=True)
      process.start()
      there.close()  # so that `recv` raises EOFError when the process ends
      wait = START_SECONDS
      try:
        while len(outcomes) < count:
          if not here.poll(wait):
            outcomes[first + len(outcomes)] = f"no end within {wait} s"
            break
          seed, message = here.recv()
          wait = seconds
          if seed is not None:
            # One object for equal texts: of millions, most are equal.
            outcomes[seed] = sys.intern(message)
            bar.update()
      except EOFError:
        process.join()
        outcomes[first + len(outcomes)] = (
            f"the process ended with status {process.exitcode}")
      except KeyboardInterrupt:
        break
      finally:
        process.kill()
        process.join()
  return outcomes
