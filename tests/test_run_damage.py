"""Meta-training on full disks and with damaged files."""

import re
import shutil
import subprocess
import sys

import jax
import pytest
import tiny_config
import tiny_run

from meta_train import build
from meta_train import train
from meta_train.workdir import checkpoint


def damage(folder, how):
  """Damage every file in a folder that is larger than 16 bytes."""
  for path in folder.rglob("*"):
    if path.is_file() and path.stat().st_size > 16:
      data = bytearray(path.read_bytes())
      if how == "truncated":
        data = data[:len(data) // 2]
      else:
        data[len(data) // 2] ^= 255
      path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_damaged_checkpoints(how, finished, tmp_path, capsys):
  """An earlier checkpoint is used. Without any, the run does not start anew."""
  folder = tmp_path / "run"
  shutil.copytree(finished, folder)
  (folder / "theta.safetensors").unlink()
  damage(folder / "checkpoints" / "40", how)
  train.meta_train(tiny_config.get_config(), str(folder))
  assert "checkpoint of step 40 cannot be read" in capsys.readouterr().err
  assert tiny_run.same_result(folder, finished)
  assert (folder / "damaged" / "40").is_dir()
  (folder / "theta.safetensors").unlink()
  damage(folder / "checkpoints", how)
  with pytest.raises(OSError, match="None of the checkpoints.*Remove"):
    train.meta_train(tiny_config.get_config(), str(folder))
  assert not (folder / "theta.safetensors").exists()


def test_damage_that_the_format_does_not_notice(finished, tmp_path,
                                                monkeypatch):
  """The hash of the saved state finds it."""
  with checkpoint.Checkpointer(finished / "checkpoints", 2) as saved:
    built = build.build(tiny_config.get_config(), None)
    state = saved.restore_latest(jax.eval_shape(built.init))
  monkeypatch.setattr(checkpoint, "_hash", lambda state: "another")
  with checkpoint.Checkpointer(tmp_path / "new", 2) as saved:
    saved.save(state)
  monkeypatch.undo()
  with checkpoint.Checkpointer(tmp_path / "new", 2) as saved:
    with pytest.raises(OSError, match="None of the checkpoints"):
      saved.restore_latest(state)


FULL_DISK = """
import resource, sys
import tiny_config
import tqdm
from meta_train import train
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # bytes of any file
try:
  train.meta_train(tiny_config.get_config(), sys.argv[1])
except (ValueError, OSError) as e:
  sys.exit(f"{type(e).__name__}: {e}")
"""


def test_disk_full_and_folders_that_cannot_be_written(finished, tmp_path):
  environment = {
      **tiny_run.ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE": "false"}
  folder = tmp_path / "full"
  done = subprocess.run(
      [sys.executable, "-c", FULL_DISK, str(folder)], cwd=tiny_run.ROOT,
      env=environment, capture_output=True, text=True)
  lines = [line for line in re.split(r"[\r\n]+", done.stderr)
           if line.strip() and not line.startswith(
               ("compiling:", "meta-training:"))]
  assert len(lines) == 1, done.stderr
  line, = lines
  assert done.returncode == 1 and line.startswith(
      "OSError: A checkpoint can"), done.stderr
  # With space again, the run continues: nothing is lost or half-written.
  train.meta_train(tiny_config.get_config(), str(folder))
  assert tiny_run.same_result(folder, finished)
  (tmp_path / "file").write_text("")
  done = tiny_run.run(tmp_path / "file" / "run")
  assert done.returncode == 1
  assert "NotADirectoryError" in done.stderr.splitlines()[-1]


def test_damaged_config_json(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json is damaged"):
    train.meta_train(tiny_config.get_config(), str(tmp_path))
