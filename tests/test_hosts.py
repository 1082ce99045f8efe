"""Processes of one run: they agree before they start, and end in one line."""

import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from meta_train.devices import hosts
from meta_train.devices import messages

ROOT = pathlib.Path(__file__).parents[1]

# A process that meets another one, compares facts and waits for it in a loop.
PROCESS = """
import json, sys, time
import jax
import numpy as np
from meta_train import train
from meta_train.devices import hosts
from meta_train.devices import parallel

port, process, facts, loop = sys.argv[1:]
try:
  hosts.connect(f"127.0.0.1:{port}", 2, int(process), 60, 10)
  hosts.agree({"same": [1, 2]})
  hosts.agree(json.loads(facts))
  print("agreed", flush=True)
  while loop == "loop":
    parallel.anywhere(False)
    time.sleep(0.05)
except Exception as e:
  lost = hosts.lost(e)
  if lost is None and not isinstance(e, train.ERRORS):
    raise
  train._fail(lost or f"{type(e).__name__}: {e}", others_live=lost is None)
"""


def start(facts, loop="once"):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(port), str(i), json.dumps(x), loop],
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
          for i, x in enumerate(facts)]


def one_line(process):
  """Return the line that a process ended with."""
  errors = process.communicate(timeout=300)[1]
  line, = errors.strip().splitlines()
  assert process.returncode
  return line


def test_facts_that_differ():
  """Both processes say which, and with which values."""
  for process in start([{"a": 1, "b": 2, "same": 0},
                        {"a": 1, "b": 3, "same": 0}]):
    line = one_line(process)
    assert "Process 1 (on " in line and "differs from process 0" in line
    assert "in b: 3, not 2. Start all" in line


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies(victim):
  processes = start([{}, {}], "loop")
  for process in processes:
    assert "agreed" in [
        process.stdout.readline().strip() for _ in range(2)]
  time.sleep(0.3)
  processes[victim].send_signal(signal.SIGKILL)
  line = one_line(processes[1 - victim])
  assert line.startswith(f"Process {victim}") and "Start all" in line
  processes[victim].communicate()


@pytest.mark.parametrize("arguments, message", [
    (("foo", 2, 0, 1), "--coordinator=foo: expected address:port"),
    (("a:99999", 2, 0, 1), "with a port from 1 to 65535"),
    (("a:0", 2, 0, 1), "with a port from 1 to 65535"),
    (("a:1", 2, 2, 1), "--process_id=2 must be from 0"),
    (("a:1", 2, -1, 1), "--process_id=-1 must be from 0"),
    (("a:1", 0, 0, 1), "and --num_processes is 0"),
    (("127.0.0.1:1", 2, 1, 0), "Nobody answers at .*within 0 s"),
    (("host.invalid:9", 2, 1, 0), "Nobody answers at --coordinator=host.inv")])
def test_arguments_that_cannot_be_right(arguments, message):
  with pytest.raises((ValueError, OSError), match=message) as error:
    hosts._check(*arguments)
  assert "\n" not in str(error.value)


def test_a_port_in_use():
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(OSError, match=f"Port {port} .*cannot be used"):
      hosts._check(f"127.0.0.1:{port}", 2, 0, 1)


def filtered(text, connected=True, process=0):
  """Return what the filter prints for the output of a process."""
  lines = messages.Filter({
      "process": process, "processes": 3, "coordinator": "a:1",
      "initialization_timeout": 7, "heartbeat_timeout": 9})
  printed = io.StringIO()
  if connected:
    lines.line(f"{messages.EVENT}{{}}\n")
  for line in text.splitlines(keepends=True):
    printed.write(lines.line(line))
  printed.write(lines.finish())
  return printed.getvalue()


STAMP = "1128 00:13:34.402656   29356 x.cc:5] "
FATAL = (f"F{STAMP}Terminating process because the JAX distributed service "
         "detected fatal errors. {}\n\nRPC: /a/B\n*** Check failure stack "
         "trace: ***\n    @     0x7f21f7c40634  absl::SendToLog()\n")


@pytest.mark.parametrize("detail, options, message", [
    ("absl::Status: UNAVAILABLE: Socket closed", {"process": 2},
     "Process 0 at a:1 has ended"),
    ("absl::Status: DEADLINE_EXCEEDED", {"connected": False},
     r"Not all 3 processes came to a:1 within 7 s"),
    ("ABORTED: 1 unexpectedly tried to connect with a different incarnation",
     {}, "Two processes have --process_id=1"),
    ("ALREADY_EXISTS", {"connected": False, "process": 2},
     "Two processes have --process_id=2"),
    ("UNAVAILABLE: The following tasks are unhealthy (stopped sending "
     "heartbeats):\n/job:jax_worker/replica:0/task:2\nThe tasks have crashed.",
     {}, "Process 2 has not answered for 9 s"),
    ("something new", {}, "One of the processes 1, 2 has ended")])
def test_dumps_become_one_line(detail, options, message, tmp_path, monkeypatch):
  monkeypatch.setattr(messages.tempfile, "tempdir", str(tmp_path))
  text = filtered(f"Hello\nE{STAMP}Polled an error\n" + FATAL.format(detail),
                  **options)
  first, line = text.splitlines()
  assert first == "Hello" and line.startswith(message)
  path = pathlib.Path(line.rpartition("Details: ")[2])
  assert detail in path.read_text()  # nothing of the dump is lost


def test_what_python_prints_passes():
  text = ("Warning: x\nTraceback (most recent call last):\n  File\nError: y\n")
  assert filtered(text) == text
  assert filtered(f"a\nW{STAMP}z\n:UNKNOWN:Error received\n1\nb\n") == "a\nb\n"
  # After a last line of Python, the dump says nothing new.
  assert filtered(f"{messages.SAID}ValueError: x\nB\n" + FATAL.format("")) == (
      "ValueError: x\n")


def test_the_filter_as_a_program():
  run = {"process": 1, "processes": 2, "coordinator": "a:1",
         "initialization_timeout": 7, "heartbeat_timeout": 9}
  done = subprocess.run(
      [sys.executable, "-S", "-E", messages.__file__, json.dumps(run)],
      input=f"meta-training: 1%\rmeta-training: 2%F{STAMP}Terminating\n" +
      "end without newline", capture_output=True, text=True,
      env={**os.environ, "PYTHONUNBUFFERED": "1"})
  assert done.stderr.startswith("meta-training: 1%")
  assert "Terminating" not in done.stderr
  # Not behind the progress bar, which has no end of line.
  assert done.stderr.splitlines()[-1].startswith("Not all 2 processes came")
