"""config.json: the config of a run, and the software that it ran on."""

import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any, Iterator

import jax
import jaxlib
import ml_collections
import numpy as np
import optax

# Settings that do not change theta, except for rounding on other devices. They
# may differ between two starts of one run.
NOT_IN_RESULT = (
    "log_every", "checkpoint_every", "keep_checkpoints", "max_minutes",
    "devices", "stream", "evaluation")


def software(devices: int) -> dict[str, Any]:
  """Return versions of everything that computes theta.

  Args:
    devices: number of devices, which is included.
  """
  root = pathlib.Path(__file__).parents[2]
  git = lambda *words: subprocess.run(
      ["git", "-C", str(root), *words], capture_output=True, text=True,
      check=True).stdout.strip()
  try:
    revision = "unknown"
    # An installed copy may lie in a checkout of another project.
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
  """Return the CPU's model and vector extensions.

  XLA compiles for them, so the last bits of theta depend on them.
  """
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:  # not Linux
    return f"{platform.machine()} {platform.processor()}"
  model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
  vectors = sorted(set(re.findall(r"\b(avx2|avx512f|amx_tile|sve)\b", text)))
  return " ".join([
      platform.machine(), *([model.group(1)] if model else []), *vectors])


def result_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Return the settings that theta depends on."""
  return {k: v for k, v in config.to_dict().items() if k not in NOT_IN_RESULT}


def compare_config(config: ml_collections.ConfigDict, path: pathlib.Path
                   ) -> None:
  """Raise ValueError if the workdir belongs to a run with another config.

  Args:
    config: config of this run.
    path: config.json of the workdir, which may be missing.
  """
  if not path.exists():
    return
  old = dict(_flat(_read(path)["config"]))
  # Through JSON, which turns tuples into lists.
  now = dict(_flat(json.loads(json.dumps(result_config(config)))))
  changed = [f"{k}: {old.get(k)} -> {now.get(k)}"
             for k in sorted({*old, *now}) if old.get(k) != now.get(k)]
  if changed:
    raise ValueError(
        f"{path.parent} holds a run with another config ({'; '.join(changed)})"
        ". Use another --workdir, or the config of that run.")


def note_software(config: ml_collections.ConfigDict, path: pathlib.Path,
                  devices: int) -> list[dict[str, Any]]:
  """Write config and software to config.json.

  Args:
    config: config of this run.
    path: config.json of the workdir, which may be missing.
    devices: number of devices.

  Returns:
    The software so far, with a new entry for each change. More than one entry
    means that the run was resumed by other software or on another number of
    devices. Then theta differs from that of an uninterrupted run in its bits.
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
    os.replace(new, path)  # the file appears whole or not at all
  return used


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Read config.json; raise ValueError if it is damaged."""
  try:
    content = json.loads(path.read_text())
    return {"config": dict(content["config"]), "software": content["software"]}
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
        f"{path} is damaged ({e}), so the config of this run is unknown. Use "
        "another --workdir.") from e


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yield ("section.key", value) of a nested dict."""
  for k, v in tree.items():
    if isinstance(v, dict):
      yield from _flat(v, f"{prefix}{k}.")
    else:
      yield prefix + k, v
