"""config.json: the config of a run, its data, and the software it ran on."""

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


def facts(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Return all that must be equal on all hosts: settings and software.

  Also settings that do not change theta, such as log_every: processes that do
  not log in the same step would wait for each other forever.
  """
  # The time limit of one process stops all.
  settings = {f"config.{name}": value for name, value in flat(config.to_dict())
              if name != "max_minutes"}
  return settings | software(jax.local_device_count())


def compare_config(config: ml_collections.ConfigDict, path: pathlib.Path
                   ) -> None:
  """Raise ValueError if the workdir belongs to a run with another config.

  Args:
    config: config of this run.
    path: config.json of the workdir, which may be missing.
  """
  if not path.exists():
    return
  old = dict(flat(_read(path)["config"]))
  # Through JSON, which turns tuples into lists.
  now = dict(flat(json.loads(json.dumps(result_config(config)))))
  changed = [f"{k}: {old.get(k)} -> {now.get(k)}"
             for k in sorted({*old, *now}) if old.get(k) != now.get(k)]
  if changed:
    raise ValueError(
        f"{path.parent} holds a run with another config ({'; '.join(changed)})"
        ". Use another --workdir, or the config of that run.")


def compare_data(data: dict[str, str], path: pathlib.Path) -> None:
  """Raise ValueError if the run in the workdir began with other data.

  Args:
    data: {task: hash of its arrays}.
    path: config.json of the workdir, which may be missing.
  """
  old = _read(path)["data"] if path.exists() else {}
  changed = [name for name in data if data[name] != old.get(name, data[name])]
  if changed:
    name = changed[0]
    raise ValueError(
        f"{path.parent} holds a run with other data for "
        f"{', '.join(changed)}: their sha256 was {old[name][:12]}..., now it "
        f"is {data[name][:12]}.... Use the data of that run, or another "
        "--workdir.")


def note(config: ml_collections.ConfigDict, path: pathlib.Path, devices: int,
         data: dict[str, str]) -> list[dict[str, Any]]:
  """Write config, data and software to config.json.

  Args:
    config: config of this run.
    path: config.json of the workdir, which may be missing.
    devices: number of devices.
    data: see `compare_data`.

  Returns:
    The software so far, with a new entry for each change. More than one entry
    means that the run was resumed by other software or on another number of
    devices. Then theta differs from that of an uninterrupted run in its bits.
  """
  old: dict[str, Any] = _read(path) if path.exists() else {
      "software": [], "data": {}, "had_checkpoint": False}
  used, current = list(old["software"]), software(devices)
  if used and used[-1] != current:
    changed = [k for k in current if used[-1].get(k) != current[k]]
    print(f"Warning: resuming with other software ({', '.join(changed)}); "
          "the result will say so.", file=sys.stderr, flush=True)
  if not used or used[-1] != current:
    used.append(current)
  known = {**data, **old["data"]}
  if used != old["software"] or known != old["data"]:
    _write(path, {"config": result_config(config), "data": known,
                  "software": used, "had_checkpoint": old["had_checkpoint"]})
  return used


def had_checkpoint(path: pathlib.Path) -> bool:
  """Return whether the run in the workdir has ever had a checkpoint."""
  return path.exists() and _read(path)["had_checkpoint"]


def note_checkpoint(path: pathlib.Path) -> None:
  """Note in config.json that the run has a checkpoint."""
  content = _read(path)
  if not content["had_checkpoint"]:
    _write(path, content | {"had_checkpoint": True})


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Write config.json; it appears whole or not at all."""
  new = path.with_name(f".{path.name}.new")
  new.write_text(json.dumps(content, indent=2, sort_keys=True))
  os.replace(new, path)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Read config.json; raise ValueError if it is damaged."""
  try:
    content = json.loads(path.read_text())
    # Earlier versions noted neither data nor checkpoints.
    return {"config": dict(content["config"]),
            "data": dict(content.get("data", {})),
            "had_checkpoint": bool(content.get("had_checkpoint", False)),
            "software": list(content["software"])}
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(
        f"{path} is damaged ({e}), so the config of this run is unknown. Use "
        "another --workdir.") from e


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yield ("section.key", value) of a nested dict."""
  for k, v in tree.items():
    if isinstance(v, dict):
      yield from flat(v, f"{prefix}{k}.")
    else:
      yield prefix + k, v
