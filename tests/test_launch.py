"""Example jobs for clusters: their syntax, flags, and what clusters do."""

import os
import pathlib
import random
import re
import subprocess
import sys

import pytest
import tiny_config
import tiny_run
import yaml

from meta_train import config_flag
from meta_train.configs import mulo_s

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "examples" / "launch").iterdir())


def text_of(path):
  """Return the text of a file, with continued lines joined."""
  return re.sub(r"\\\n\s*#?", " ", path.read_text())


def test_clusters():
  assert {path.name for path in FILES} >= {
      "train_slurm.sh", "sweep_slurm.sh", "jobset.yaml", "skypilot.yaml",
      "tpu_vm.sh", "ray_jax_trainer.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_syntax(path):
  if path.suffix == ".sh":
    subprocess.run(["bash", "-n", str(path)], check=True)
  elif path.suffix == ".py":
    compile(path.read_text(), path.name, "exec")
  else:
    content = yaml.safe_load(path.read_text())
    assert content.get("kind") == "JobSet" or content["num_nodes"] == 2


def scripts(path):
  """Yield the shell scripts in a YAML file."""
  content = yaml.safe_load(path.read_text())
  if "run" in content:
    yield from (content["setup"], content["run"])
  else:
    for job in content["spec"]["replicatedJobs"]:
      spec = job["template"]["spec"]["template"]["spec"]
      for container in spec["containers"]:
        yield container["command"][-1]


@pytest.mark.parametrize("name", ["jobset.yaml", "skypilot.yaml"])
def test_scripts_in_yaml(name):
  for script in scripts(ROOT / "examples" / "launch" / name):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def flags_of(module):
  """Return the names of the flags that a command defines."""
  paths = [ROOT / f"{module.replace('.', '/')}.py",
           ROOT / "experiments" / "command.py",
           ROOT / "meta_train" / "config_flag.py"]
  names = [name for path in paths for name in re.findall(
      r'DEFINE_\w+\(\s*"(\w+)"', path.read_text())]
  return {*names, config_flag.NAME}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_flags_exist(path):
  commands = re.findall(r"python -m ([\w.]+)(.*)", text_of(path))
  assert commands or path.suffix == ".py"
  for module, arguments in commands:
    known = flags_of(module)
    for flag in re.findall(r"(?<!\S)--([\w.]+)", arguments):
      if flag.startswith("config."):
        config_flag.check_key(mulo_s.get_config(), flag[len("config."):])
      else:
        assert flag in known, (path.name, flag)


FAKE_RAY = """
import runpy, sys, types
import jax

class JaxTrainer:
  def __init__(self, train_loop_per_worker, train_loop_config, scaling_config,
               run_config):
    self.work = lambda: train_loop_per_worker(train_loop_config)
    assert scaling_config["use_tpu"] and scaling_config["topology"] == "4x4"
  def fit(self):
    if not jax.distributed.is_initialized():
      jax.distributed.initialize("127.0.0.1:" + port, 1, 0)
    self.work()

modules = {name: types.ModuleType(name) for name in (
    "ray", "ray.train", "ray.train.v2", "ray.train.v2.jax")}
sys.modules.update(modules)
modules["ray"].init = lambda: None
for name in ("ScalingConfig", "RunConfig", "FailureConfig"):
  setattr(modules["ray.train"], name, dict)
modules["ray.train.v2.jax"].JaxTrainer = JaxTrainer
path, port, config, folder = sys.argv[1:]
for i, more in enumerate((["--config.seed=1", "--config.num_steps=3"], [])):
  sys.argv = [path, f"--config={config}", f"--workdir={folder}/{i}", *more]
  runpy.run_path(path)["main"]()
"""


def test_twice_in_a_process_of_ray(tmp_path):
  """As Ray does it: JAX knows its processes before meta-training starts."""
  port = str(random.randrange(20000, 30000))
  done = subprocess.run(
      [sys.executable, "-c", FAKE_RAY,
       str(ROOT / "examples" / "launch" / "ray_jax_trainer.py"), port,
       tiny_config.__file__, str(tmp_path)], cwd=ROOT, capture_output=True,
      text=True, env=tiny_run.ENVIRONMENT)
  assert done.returncode == 0, done.stderr
  steps = [re.search(r"(\d+) outer steps", line)[1]
           for line in done.stdout.splitlines() if "outer steps, meta" in line]
  # Nothing of the first call is left in the second.
  assert steps == ["3", "40"]
  assert all((tmp_path / str(i) / "theta.safetensors").exists()
             for i in range(2))


def test_cluster_is_detected(tmp_path):
  """Two processes that Slurm has started, by its variables."""
  job = random.randrange(10**6)
  processes = [subprocess.Popen(
      [sys.executable, "-m", "meta_train.train",
       f"--config={tiny_config.__file__}", f"--workdir={tmp_path / str(i)}",
       "--config.num_steps=3", "--cluster"], cwd=ROOT, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True, env={
          **tiny_run.ENVIRONMENT, "SLURM_JOB_ID": str(job),
          "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
          "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i),
          "SLURM_STEP_NUM_NODES": "1"}) for i in range(2)]
  try:
    for process in processes:
      _, errors = process.communicate(timeout=600)
      assert process.returncode == 0, errors
  finally:
    for process in processes:
      process.kill()
  assert os.listdir(tmp_path) == ["0"]
  assert (tmp_path / "0" / "theta.safetensors").exists()
