"""Filter of what a process of a multi-host run prints to stderr.

python messages.py '{"process": 1, "processes": 2, ...}'

JAX's C++ code ends a process with up to 80 lines when another process dies, and
no Python code runs then. So stderr is a pipe to this filter, in a process of
its own, which outlives the end. It passes on what Python prints. It keeps the
lines of the C++ code to itself, and at the end says in one line what they
mean. The lines go to a file that this line names.
"""

import json
import os
import re
import signal
import sys
import tempfile

# Marks of lines of Python: a last line; what is known after all have met.
SAID, EVENT = "\x01", "\x02"
_CPP = re.compile(r"[WEIF]\d{4} \d\d:\d\d:\d\d\.\d{6}")
_MORE = re.compile(
    r"\s*$|\d+$|\s+@|Additional GRPC|:UNKNOWN|RPC: |The tasks have crashed|"
    r"\*\*\* Check failure|\[Gloo\]|:\s*\w+:Error received")
_AGAIN = "Start all processes again; they continue from the last checkpoint."


class Filter:
  """Decides line by line; `finish` says what the C++ code meant."""

  def __init__(self, run: dict):
    """Begin.

    Args:
      run: process, processes, coordinator, heartbeat_timeout and
        initialization_timeout of this process.
    """
    self.run = run
    self.kept: list[str] = []
    self.connected = self.said = self.inside = False

  def line(self, text: str) -> str:
    """Return what to print of a line."""
    if EVENT in text:
      self.connected = True
      before, _, event = text.partition(EVENT)
      self.run |= json.loads(event)
      return before
    if SAID in text:
      self.said = True
      return text.replace(SAID, "")
    if self.said:  # the process is about to end
      return ""
    found = _CPP.search(text)
    if found:
      self.inside = True
      self.kept.append(text[found.start():])
      return text[:found.start()]
    if self.inside and (_MORE.match(text) or self.fatal()):
      self.kept.append(text)
      return ""
    self.inside = False
    return text

  def fatal(self) -> bool:
    """Return whether the C++ code has ended the process."""
    return any(text.startswith("F") for text in self.kept)

  def finish(self) -> str:
    """Return the last line; "" if there is nothing to say."""
    if self.said or not self.fatal():
      return ""
    text = "".join(self.kept)
    with tempfile.NamedTemporaryFile(
        "w", prefix=f"mulo-process-{self.run['process']}-", suffix=".log",
        delete=False) as file:
      file.write(text)
    return f"{self.meaning(text)} Details: {file.name}\n"

  def meaning(self, text: str) -> str:
    """Return one line for what the C++ code printed."""
    run = self.run
    others = ", ".join(
        str(i) for i in range(run["processes"]) if i != run["process"])
    if "ALREADY_EXISTS" in text or "different incarnation" in text:
      numbers = set(re.findall(r"(\d+) unexpectedly tried", text))
      number = numbers.pop() if len(numbers) == 1 else run["process"]
      return (f"Two processes have --process_id={number}, or one was started "
              f"again while the others ran. Give each process another number "
              f"from 0 to {run['processes'] - 1}. {_AGAIN}")
    if not self.connected:
      return (f"Not all {run['processes']} processes came to "
              f"{run['coordinator']} within {run['initialization_timeout']} s "
              "(--initialization_timeout). Start each of them, with "
              f"--process_id from 0 to {run['processes'] - 1}, each once.")
    silent = set(re.findall(r"/task:(\d+)", text))
    if "unhealthy" in text and silent:
      return (f"Process {', '.join(sorted(silent))} has not answered for "
              f"{run['heartbeat_timeout']} s (--heartbeat_timeout): it has "
              f"ended, is frozen or cut off. {_AGAIN}")
    if run["process"]:
      return (f"Process 0 at {run['coordinator']} has ended, is frozen or cut "
              f"off. {_AGAIN}")
    return f"One of the processes {others} has ended or is cut off. {_AGAIN}"


def main() -> None:
  """Filter stdin to stderr until the process has ended."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  lines, left, shown = Filter(json.loads(sys.argv[1])), "", "\n"

  def show(text: str) -> None:
    nonlocal shown
    shown = text or shown
    sys.stderr.write(text)
    sys.stderr.flush()

  while data := os.read(0, 2**16):
    left += data.decode(errors="replace")
    # Progress bars end with a carriage return.
    *whole, left = re.split(r"(?<=[\n\r])", left)
    for text in whole:
      show(lines.line(text))
    # A bar has no end of line; a line of the C++ code comes as a whole.
    if left.startswith("\r") or left.startswith("meta-training"):
      show(left)
      left = ""
  show(lines.line(left) if left else "")
  if last := lines.finish():
    # A bar may be in front of it.
    show(last if shown.endswith("\n") else f"\n{last}")


if __name__ == "__main__":
  main()
