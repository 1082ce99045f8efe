"""The training loops in examples/ run, and their losses fall."""

import os
import pathlib
import re
import runpy
import subprocess
import sys
import warnings

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Bytes of state on a device, relative to an eighth of all bytes. Factors of
# rows and columns are whole on each device where their axis is not split.
MAX_SHARE = 1.03


def run(name: str, *flags: str, xla_flags: str = "") -> str:
  """Run an example in a process of its own; return what it prints.

  Args:
    name: name of a file in examples/, without ".py".
    *flags: arguments of the command.
    xla_flags: flags of XLA besides those of the tests.
  """
  done = subprocess.run(
      [sys.executable, "-W", "error", f"examples/{name}.py", *flags], cwd=ROOT,
      env={**os.environ,
           "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {xla_flags}",
           "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
      capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


def check_losses(text: str) -> None:
  """Raise unless the printed losses fall from that of chance to near 0."""
  losses = [float(x) for x in re.findall(r"loss ([\d.]+)", text)]
  assert losses[0] > 2 and losses[-1] < 0.2, text


def run_here(name: str, *flags: str, monkeypatch, capsys) -> str:
  """Run an example in this process, which has imported jax; see `run`.

  Ranks may be promoted, as where users run it.
  """
  path = ROOT / "examples" / f"{name}.py"
  monkeypatch.setattr(sys, "argv", [str(path), *flags])
  monkeypatch.syspath_prepend(str(path.parent))
  with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
    warnings.simplefilter("error")
    runpy.run_path(str(path), run_name="__main__")
  return capsys.readouterr().out


@pytest.mark.parametrize("name", ["flax_nnx", "equinox_mlp", "haiku_mlp"])
def test_loss_falls(name, monkeypatch, capsys):
  check_losses(run_here(name, "--width=64", "--num_steps=30",
                        monkeypatch=monkeypatch, capsys=capsys))


def test_state_is_sharded():
  """Eight devices: each holds an eighth of parameters and statistics."""
  text = run("flax_sharded", "--width=256", "--num_steps=30",
             xla_flags="--xla_force_host_platform_device_count=8")
  check_losses(text)
  here, total = map(int, re.search(r"(\d+) of (\d+) bytes", text).groups())
  assert total / 8 <= here <= MAX_SHARE * total / 8
