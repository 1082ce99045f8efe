"""config.json: what a run is, and which software it ran on."""

import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import jax
import jaxlib
import numpy as np
import optax

# Settings that change how a run is done, logged and saved, but, up to rounding
# where devices differ, not its result.
NOT_IN_RESULT = (
    "log_every", "checkpoint_every", "keep_checkpoints", "max_minutes",
    "devices", "stream", "evaluation")


def software(devices: int) -> dict:
  """Versions of what computes theta, and on how many devices."""
  root = pathlib.Path(__file__).parents[1]
  git = lambda *words: subprocess.run(
      ["git", "-C", str(root), *words], capture_output=True, text=True,
      check=True).stdout.strip()
  try:
    revision = "unknown"
    if pathlib.Path(git("rev-parse", "--show-toplevel")) == root.resolve():
      revision = git("describe", "--always", "--dirty", "--abbrev=40",
                     "--exclude=*")
  except (OSError, subprocess.CalledProcessError):
    pass  # no git, or not a checkout
  return {"python": platform.python_version(), "jax": jax.__version__,
          "jaxlib": jaxlib.__version__, "numpy": np.__version__,
          "optax": optax.__version__, "backend": jax.default_backend(),
          "cpu": _cpu(), "devices": devices, "git_revision": revision}


def _cpu() -> str:
  """What decides which code is made for the CPU, and so the last bits."""
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:  # not Linux
    return f"{platform.machine()} {platform.processor()}"
  model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
  vectors = sorted(set(re.findall(r"\b(avx2|avx512f|amx_tile|sve)\b", text)))
  return " ".join([
      platform.machine(), *([model.group(1)] if model else []), *vectors])


def result_config(config) -> dict:
  """The settings that theta depends on."""
  return {k: v for k, v in config.to_dict().items() if k not in NOT_IN_RESULT}


def compare_config(config, path: pathlib.Path) -> None:
  """Raises ValueError if the workdir belongs to a run with another config."""
  if not path.exists():
    return
  old = dict(_dotted(_read(path)["config"]))
  # Through JSON, which turns tuples into lists.
  now = dict(_dotted(json.loads(json.dumps(result_config(config)))))
  changed = [f"{k}: {old.get(k)} -> {now.get(k)}"
             for k in sorted({*old, *now}) if old.get(k) != now.get(k)]
  if changed:
    raise ValueError(
        f"{path.parent} holds a run with another config ({'; '.join(changed)})"
        ". Use another --workdir, or the config of that run.")


def note_software(config, path: pathlib.Path, devices: int) -> list[dict]:
  """Writes config and software to config.json; returns all software so far.

  More than one entry means that the run was resumed by other software or on
  another number of devices, and that its bits are not those of a run by either.
  """
  used = _read(path)["software"] if path.exists() else []
  current = software(devices)
  if used and used[-1] != current:
    changed = [k for k in current if used[-1].get(k) != current[k]]
    print(f"Warning: resuming with other software ({', '.join(changed)}); "
          "the result will say so.", file=sys.stderr, flush=True)
  if not used or used[-1] != current:
    used.append(current)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(
        {"config": result_config(config), "software": used}, indent=2,
        sort_keys=True))
    os.replace(new, path)
  return used


def _read(path):
  try:
    found = json.loads(path.read_text())
    return {"config": dict(found["config"]), "software": found["software"]}
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
        f"{path} is damaged ({e}): it does not say whose run this is. Use "
        "another --workdir.") from e


def _dotted(tree: dict, prefix: str = ""):
  for k, v in tree.items():
    if isinstance(v, dict):
      yield from _dotted(v, f"{prefix}{k}.")
    else:
      yield prefix + k, v
