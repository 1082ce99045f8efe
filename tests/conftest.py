"""Strict JAX, and inputs and fixtures that several tests use."""

import gc
import os
import pathlib
import sys
import types
from typing import Iterable

import jax
import numpy as np
import pytest

# Most of the time of the tests is compilation: it takes a third of the time
# without most optimizations. A program is not split into 32 parts, which would
# be compiled beside each other: both cores have tests to run. Processes that
# tests start compile in the same way, so that results can be compared bit for
# bit. To compile as users do:
# XLA_FLAGS= JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false "
                      "--xla_cpu_parallel_codegen_split_count=1")
jax.config.update("jax_disable_most_optimizations", os.environ.setdefault(
    "JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1")
jax.config.update("jax_numpy_rank_promotion", "raise")
# For the tests of 8 devices, see `parallel.set_cpu_devices`; all others run on
# the first.
jax.config.update("jax_num_cpu_devices", 17)
# Two programs at a time on more devices than cores may wait for each other.
jax.config.update("jax_cpu_enable_async_dispatch", False)
# Compiled programs are kept from one test run to the next.
jax.config.update("jax_compilation_cache_dir", os.environ.get(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.dirname(__file__), "..", ".cache", "jax")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_collection_finish():
  """Keep what is imported out of garbage collections, which become rare.

  Traces allocate hundreds of thousands of objects, nearly all of which die
  without a collection.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 10, 10)


# Ranks 0 to 4, ties between axis sizes, and both sides of the size at which
# the kernel changes its lowering.
SHAPES = {
    "scalar": (), "vector": (7,), "long_vector": (300,), "matrix": (5, 7),
    "tall": (40, 9), "square": (16, 16), "cube": (6, 5, 6), "tie": (3, 8, 8),
    "conv": (3, 3, 4, 8), "small_conv": (3, 3, 2, 2)}
FEW = ("scalar", "vector", "tall", "conv")


def normal_tree(seed: int, scale: float = 1.0, names: Iterable[str] = SHAPES
                ) -> dict[str, np.ndarray]:
  """Return normal arrays, by default one for each of SHAPES."""
  rng = np.random.default_rng(seed)
  return {k: (scale * rng.normal(size=SHAPES[k])).astype(np.float32)
          for k in names}


def small_tree(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
  """Return normal arrays of FEW shapes, which compile in half the time."""
  return normal_tree(seed, scale, FEW)


def perturbed(theta, seed: int, std: float = 0.1):
  """theta plus noise, so that no part of it is at its initial value."""
  leaves, treedef = jax.tree.flatten(theta)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(treedef, [
      (x + std * rng.normal(size=x.shape)).astype(np.float32)
      for x in leaves])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Folder of a run of tiny_config that nothing interrupted."""
  import tiny_config

  from meta_train import train
  folder = tmp_path_factory.mktemp("finished")
  train.meta_train(tiny_config.get_config(), str(folder))
  return folder


@pytest.fixture
def uploads(monkeypatch):
  """Replacement of huggingface_hub: {file: content} of each upload."""
  calls = []

  class HfApi:
    def create_repo(self, repo_id, *, private, exist_ok):
      calls.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
      assert commit_message
      calls.append((repo_id, {path.name: path.read_bytes() for path in
                              pathlib.Path(folder_path).iterdir()}))
      return types.SimpleNamespace(oid="ab12")

  monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(
      HfApi=HfApi, get_token=lambda: "hf_secret"))
  return calls
