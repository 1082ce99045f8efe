"""The same meta-gradients on any number of devices and processes."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_config

from learned_opt import optimizers
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import estimators
from meta_train import train
from meta_train.devices import parallel
import mulo
from tasks import families

ROOT = pathlib.Path(__file__).parents[1]
COPIES = 8
MUP = parametrizations.get("mup")
TASK = families.get("mlp", MUP, width=4, depth=1, batch_size=4)


def sgd(theta, *, num_steps=None):
  del num_steps
  return optax.with_extra_args_support(optax.chain(
      optax.trace(theta["momentum"]), optax.scale(-jnp.exp(theta["log_step"]))))


THETA = {"log_step": jnp.float32(-1.0), "momentum": jnp.float32(0.5)}


def outs(estimator, theta, count, how, data=TASK.data):
  """Return the estimates of the first two outer steps, and the last state.

  Args:
    estimator: one estimator.
    theta: meta-parameters.
    count: number of devices.
    how: the mapping.
    data: `Task.data`.
  """
  devices = parallel.mesh(COPIES, count)
  assert devices.size == count
  init, estimate = parallel.shard({"task": estimator}, devices, how)
  keys = jax.random.split(jax.random.key(0), COPIES)
  state = jax.jit(init)({"task": keys}, theta)
  estimate = jax.jit(estimate)
  estimates = []
  for t in range(2):
    step_keys = jax.vmap(lambda key, t=t: jax.random.fold_in(key, t))(keys)
    out, state = estimate({"task": step_keys}, theta, state, {"task": data})
    estimates.append(out["task"])
  return jax.device_get(estimates), jax.device_get(state)


def assert_close(actual, expected, rtol):
  """Compare two trees, relative to the largest entry of each array."""
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("name", estimators.names())
def test_device_counts_and_mappings(name):
  """Compare meta-gradients, because Adam would hide a constant multiple."""
  estimator = estimators.get(name, task=TASK, opt_fn=sgd, truncation=3,
                             shortest=3, longest=6)
  expected = outs(estimator, THETA, 1, "shard_map")
  assert all(np.any(x != 0) for x in jax.tree.leaves(expected[0][0].grad))
  more = ((2, "shard_map"), (8, "pmap")) if name in (
      "pes", "truncated_backprop") else ()
  for count, how in ((8, "shard_map"), *more):
    # Estimates are differences of nearly equal losses, so rounding matters.
    assert_close(outs(estimator, THETA, count, how), expected, 2e-4)


def test_truncated_backprop_of_a_learned_optimizer():
  """The meta-gradient is finite, even if a parameter never has a gradient."""
  shapes = {"w": (3, 4), "dead": (2, 2)}
  task = families.get("quadratic", None, dim=2)._replace(
      init=lambda key: {name: jax.random.normal(key, shape)
                        for name, shape in shapes.items()},
      loss=lambda params, key, batch: (
          jnp.sum((jnp.ones(3) @ params["w"])**2), {}))
  lopt = optimizers.get("mulo", hidden=3, lowering="blocked")
  theta = lopt.init(jax.random.key(0))
  estimator = estimators.get(
      "truncated_backprop", task=task, opt_fn=lopt.opt_fn, truncation=3,
      shortest=3, longest=3)
  (_, expected), _ = outs(estimator, theta, 1, "shard_map", task.data)
  (_, actual), _ = outs(estimator, theta, 8, "shard_map", task.data)
  chex.assert_tree_all_finite(actual.grad)
  assert all(np.any(x != 0) for x in jax.tree.leaves(actual.grad))
  difference = jax.tree.map(np.subtract, actual.grad, expected.grad)
  assert optax.tree.norm(difference) < 1e-4 * optax.tree.norm(expected.grad)


def test_copies_that_are_dropped_do_not_weigh():
  """The devices have different numbers of copies left."""
  bad = TASK._replace(init=lambda key: jax.tree.map(
      lambda x: jnp.where(jax.random.bits(key) % 3 > 0, x, jnp.inf),
      TASK.init(key)), normalize=lambda loss: loss)
  for name in ("pes", "truncated_backprop"):
    estimator = estimators.get(
        name, task=bad, opt_fn=sgd, truncation=2, shortest=2, longest=4,
        drop_nonfinite=True)
    expected, _ = outs(estimator, THETA, 1, "shard_map")
    assert 0 < expected[0].info["dropped"] < COPIES
    assert expected[0].copies == COPIES - expected[0].info["dropped"]
    actual, _ = outs(estimator, THETA, 8, "shard_map")
    assert_close(actual, expected, 2e-4)


def test_meshes():
  assert parallel.mesh(6, 8).size == 6
  assert parallel.mesh(6, 4).size == 3
  assert parallel.mesh(7, 4).size == 1
  assert parallel.mesh(8 * parallel.cpu_cores()).size == min(
      parallel.cpu_cores(), jax.local_device_count())
  with pytest.raises(ValueError, match="available: shard_map, pmap"):
    parallel.shard({"task": estimators.get("pes", task=TASK, opt_fn=sgd)},
                   parallel.mesh(8, 8), "nope")


def test_one_collective_in_an_outer_step():
  """Several collectives could block each other's threads on CPU devices."""
  config = tiny_config.get_config()
  config.update(devices=2)
  built = build.build(config, None)
  data, = built.data(0, 1)
  text = jax.jit(built.step).lower(built.init(), data).compile().as_text()
  collectives = re.findall(
      r" (all-reduce|all-gather|collective-permute|all-to-all|"
      r"reduce-scatter)(?:-start)?\(", text)
  assert collectives == ["all-reduce"]


def test_hosts(tmp_path):
  """Two processes give the same theta as one process with two devices."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = {
      **os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
  run = lambda process: subprocess.Popen(
      [sys.executable, "-m", "meta_train.train",
       f"--config={ROOT / 'tests' / 'tiny_config.py'}",
       f"--workdir={tmp_path / 'two'}", "--config.num_steps=6",
       f"--coordinator=127.0.0.1:{port}", "--num_processes=2",
       f"--process_id={process}"], cwd=ROOT, env=environment,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  processes = [run(process) for process in range(2)]
  try:
    for process in processes:
      _, errors = process.communicate(timeout=240)
      assert process.returncode == 0, errors
  finally:
    for process in processes:
      process.kill()
  config = tiny_config.get_config()
  config.update(num_steps=6, devices=2)
  path = train.meta_train(config, str(tmp_path / "one"))
  expected = mulo.read(path).theta
  theta = mulo.read(tmp_path / "two" / "theta.safetensors").theta
  assert theta.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(theta[name], x)
  assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
      "checkpoints", "config.json", "metrics.jsonl", "theta.safetensors"]


def test_processes_that_cannot_be_joined(tmp_path):
  done = subprocess.run(
      [sys.executable, "-m", "meta_train.train",
       f"--config={ROOT / 'tests' / 'tiny_config.py'}",
       f"--workdir={tmp_path}", "--coordinator=127.0.0.1:1"], cwd=ROOT,
      capture_output=True, text=True)
  assert done.returncode == 1
  assert "need all of --coordinator" in done.stderr.strip().splitlines()[-1]
