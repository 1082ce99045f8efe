"""Claims: one process works on something, and others on any machine see it.

A claim is a file with a number in a folder that all processes see. It is made
exclusively, tells who made it, and its time is renewed as long as the process
lives. The claim with the highest number counts. A claim that is dead is taken
over by the next number, and never deleted by others, so that only one process
can take it over.

A claim saves work and protects files, but it is no proof: a process that was
frozen for long may wake up and find that its claim was taken over. Ask `lost`
before something is written.
"""

import json
import os
import pathlib
import shutil
import socket
import sys
import threading
import time
from typing import Any

HEARTBEAT = 10.0  # seconds between two renewals
# Seconds without a renewal after which a claim is dead. A network disk may show
# times that are a minute old.
STALE = 120.0


class Claim:
  """A claim of this process; a context manager that gives it up at its end."""

  def __init__(self, file: pathlib.Path):
    """Renew the claim from now on.

    Args:
      file: the file of the claim, which `take` has made.
    """
    self.file = file
    self._over = threading.Event()
    threading.Thread(target=self._renew, daemon=True).start()

  def lost(self) -> bool:
    """Return whether another process has taken over."""
    return _newest(self.file.parent) != int(self.file.name)

  def release(self) -> None:
    """Give the claim up."""
    self._over.set()
    if self.lost():
      self.file.unlink(missing_ok=True)
    else:
      shutil.rmtree(self.file.parent, ignore_errors=True)

  def _renew(self) -> None:
    while not self._over.wait(HEARTBEAT):
      try:
        os.utime(self.file)
      except OSError:
        pass  # a disk that is away for a moment, or the claim is lost

  def __enter__(self) -> "Claim":
    return self

  def __exit__(self, *exception: object) -> None:
    self.release()


def take(folder: pathlib.Path) -> Claim | None:
  """Return a claim, or None if a living process has one.

  Args:
    folder: folder of the claims on one thing. It is made, and disappears with
      the claim; its own folder must exist.

  Raises:
    OSError: the folder cannot be written.
  """
  while True:
    if not folder.is_dir():
      folder.mkdir(exist_ok=True)
    newest = _newest(folder)
    if newest is not None and not _dead(folder / str(newest)):
      return None
    file = folder / str(0 if newest is None else newest + 1)
    try:
      _make(file, json.dumps({
          "host": socket.gethostname(), "machine": _machine(),
          "pid": os.getpid(), "began": _began(os.getpid())}))
      return Claim(file)
    except FileExistsError:
      return None  # another process was faster
    except FileNotFoundError:
      pass  # the last claim was given up in between


def hold(folder: pathlib.Path, what: str) -> Claim:
  """Return a claim; wait for the end of one that may be dead.

  Args:
    folder: see `take`.
    what: what is claimed, for the error message.

  Raises:
    OSError: a living process has the claim, or the folder cannot be written.
  """
  first: tuple[pathlib.Path, float] | None = None
  while (claim := take(folder)) is None:
    file = folder / str(_newest(folder))
    owner, renewed = _owner(file), _renewed(file)
    if renewed is None:
      continue  # given up in between
    process = f"process {owner.get('pid')} on {owner.get('host')}"
    # The process cannot be asked on another machine. If it lives, it renews.
    if owner.get("machine") == _machine() or (
        first is not None and (file, renewed) != first):
      raise OSError(f"{what} is in use by {process}. Wait for its end, stop "
                    "it, or use another folder.")
    if first is None:
      first = file, renewed
      print(f"{what} was in use by {process}; waiting up to {STALE:.0f} s to "
            "see whether it lives.", file=sys.stderr, flush=True)
    time.sleep(min(1.0, HEARTBEAT))
  return claim


def _make(file: pathlib.Path, text: str) -> None:
  """Make a file; it appears with its text.

  A process that is killed here leaves no claim of which nobody knows whose it
  is, and for which others would wait.

  Raises:
    FileExistsError: the file exists.
    FileNotFoundError: its folder does not.
  """
  own = file.with_name(f"new-{os.getpid()}-{threading.get_ident()}")
  try:
    own.write_text(text)
    os.link(own, file)
  except (FileExistsError, FileNotFoundError):
    raise
  except OSError:  # disks without hard links
    with open(file, "x", encoding="utf-8") as opened:
      opened.write(text)
  finally:
    own.unlink(missing_ok=True)


def _newest(folder: pathlib.Path) -> int | None:
  """Return the highest number of a claim in a folder; None without a claim."""
  try:
    names = os.listdir(folder)
  except FileNotFoundError:
    return None
  return max((int(name) for name in names if name.isdigit()), default=None)


def _owner(file: pathlib.Path) -> dict[str, Any]:
  """Return what a claim tells about its process; {} if it is not readable."""
  try:
    owner = json.loads(file.read_text())
    return owner if isinstance(owner, dict) else {}
  except (OSError, ValueError):
    return {}


def _renewed(file: pathlib.Path) -> float | None:
  """Return the time of the last renewal, None if the claim is gone."""
  try:
    return file.stat().st_mtime
  except FileNotFoundError:
    return None


def _dead(file: pathlib.Path) -> bool:
  """Return whether the process of a claim has ended, or seems to have."""
  owner, renewed = _owner(file), _renewed(file)
  if renewed is None:
    return False
  if owner.get("machine") == _machine() and (
      _began(owner.get("pid", 0)) != owner.get("began")):
    return True
  if 0 <= time.time() - renewed < 2 * HEARTBEAT:
    return False
  # Clocks of machines differ, so the disk's own clock decides.
  probe = file.with_name(f"now-{os.getpid()}-{threading.get_ident()}")
  try:
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
  except FileNotFoundError:
    return False  # the claim was given up in between
  return now - renewed > STALE


def _machine() -> str:
  """Return what distinguishes machines, and containers on one machine.

  Process ids mean something only where this is the same.
  """
  parts = [socket.gethostname()]
  try:
    parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text())
    parts.append(os.readlink("/proc/self/ns/pid"))
  except OSError:
    pass  # not Linux
  return " ".join(part.strip() for part in parts)


def _began(pid: int) -> str | None:
  """Return what distinguishes a living process from later ones of its number.

  None for a process that has ended.
  """
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    # After the name in brackets: the state, and 19 fields on the start time.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
  except OSError:
    if pathlib.Path("/proc/self/stat").exists():
      return None
  try:  # not Linux
    os.kill(pid, 0)
    return "alive"
  except ProcessLookupError:
    return None
  except OSError:
    return "alive"  # of another user
