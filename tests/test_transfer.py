"""Comparisons of optimizers, on tasks that take seconds."""

import functools
import gzip
import subprocess
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import tiny_run
import tqdm

from experiments import baselines
from experiments import methods
from experiments.studies import transfer
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.scaling import parametrizations
from meta_train import evaluate
from meta_train import unroll
import mulo
from tasks import families


def artifact():
  """Return an artifact with initial weights."""
  lopt = optimizers.get("mulo", hidden=3)
  return artifact_lib.Artifact(
      "mulo", optimizers.all_settings("mulo", hidden=3), "mup",
      lopt.init(jax.random.key(0)))


def simple_artifact():
  """Return an artifact of an optimizer that compiles fast."""
  lopt = optimizers.get("hyperparam_adam")
  return artifact_lib.Artifact(
      "hyperparam_adam", optimizers.all_settings("hyperparam_adam"), "mup",
      lopt.init(jax.random.key(0)))


def test_command_is_resumable(tmp_path):
  mulo.save(tmp_path / "a.safetensors", simple_artifact())
  folder = tmp_path / "study"
  arguments = [
      sys.executable, "-m", "experiments.studies.transfer",
      f"--workdir={folder}",
      f"--optimizers=ours={tmp_path / 'a.safetensors'},adamw",
      "--settings=depth=1,batch_size=4", "--values=2,3", "--num_steps=20",
      "--seeds=2", "--schedules=cosine"]

  def run():
    process = subprocess.run(
        arguments, cwd=tiny_run.ROOT, capture_output=True,
        env=tiny_run.ENVIRONMENT, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout

  first = run()
  results = pd.read_csv(folder / "results.csv")
  assert len(results) == 2 * 2 * 2  # targets, methods, seeds
  assert set(results.method) == {"ours", "AdamW"}
  assert set(results.target) == {"width 2", "width 3"}
  assert np.all(np.isfinite(results.final_train_loss))
  assert np.all(results.speedup > 0)
  # For each width: a cell per method, and one to tune AdamW.
  packed = folder / "cells.jsonl.gz"
  content = packed.read_bytes()
  assert len(gzip.decompress(content).splitlines()) == 2 * 3
  assert not (folder / "cells").exists()
  assert (folder / "transfer.png").read_bytes()[:4] == b"\x89PNG"
  assert (folder / "command.txt").read_text() == (
      f"python -m experiments.studies.transfer {' '.join(arguments[3:])}\n")
  # A cell that is lost is computed again, to the same numbers.
  packed.write_bytes(gzip.compress(
      b"".join(gzip.decompress(content).splitlines(True)[1:]), mtime=0))
  assert run() == first
  assert gzip.decompress(packed.read_bytes()) == gzip.decompress(content)
  pd.testing.assert_frame_equal(
      pd.read_csv(folder / "results.csv"), results)


def study(folder):
  """Return a study with one seed for tuning and one for the result."""
  return transfer.Study(folder, None, 1, 1, "final_train_loss", tqdm.tqdm(
      disable=True))


def test_tuning(tmp_path, monkeypatch):
  """The lowest score wins; a score of NaN never does."""
  scores = {("constant", 1e-3): 2.0, ("cosine", 1e-1): float("nan"),
            ("cosine", 1e-2): 0.5}
  asked = []

  def train(self, method, candidates, section, seeds):
    asked.append((section["width"], len(candidates), tuple(seeds)))
    return [{"seed": seed, "final_train_loss": scores.get(
        (c.schedule, round(c.learning_rate, 6)), 3.0)}
            for c in candidates for seed in seeds]

  monkeypatch.setattr(transfer.Study, "_train", train)
  compared = methods.parse(
      ["adamw", "mu_adam_transferred"], ["constant", "cosine"])
  results = study(tmp_path).compare(compared, {
      f"width {n}": {"name": "mlp", "width": n, "num_steps": 10}
      for n in (4, 8)})
  assert set(results.learning_rate.round(6)) == {1e-2}
  assert set(results.schedule) == {"cosine"} and not results.grid_edge.any()
  tuning = [width for width, n, seeds in asked if n == 9]
  # Two schedules of two methods at width 4; muAdam is not tuned at width 8.
  assert sorted(tuning) == [4, 4, 4, 4, 8, 8]
  assert {seeds for _, n, seeds in asked if n == 9} == {(1000,)}


def test_labels(tmp_path, monkeypatch):
  path = str(tmp_path / "a.safetensors")
  mulo.save(path, artifact())
  names = [path, f"ours={path}", f"{path}@8", f"untrained:{path}", "adam"]

  def labels():
    parsed = methods.parse(names, ["constant"])
    return [m.label for m in (
        *parsed, *methods.with_bfloat16_state(names, parsed))]

  def expected(own):
    return [own, "ours", f"{own}, gradients as at width 8",
            f"{own}, untrained", "Adam", f"{own}, bfloat16 state",
            "ours, bfloat16 state"]

  assert labels() == expected("mulo")
  monkeypatch.setattr(mulo, "list_pretrained", lambda: [path])
  assert labels() == expected(path)


def test_gradients_of_another_width(tmp_path, monkeypatch):
  """At width 16, gradients are multiplied by 8 to be as large as at width 2."""
  seen = []

  def trainer(task, opt_fn):
    seen.append((task, opt_fn))
    raise StopIteration

  monkeypatch.setattr(evaluate, "trainer", trainer)
  compared = methods.parse(["adafac-mup-s", "adafac-mup-s@2"], [])
  for method in compared:
    with pytest.raises(StopIteration):
      study(tmp_path)._train(method, method.candidates, {
          "name": "mlp", "depth": 2, "width": 16, "num_steps": 20}, [0])
  (task, plain), (_, scaled) = seen
  params = task.init(jax.random.key(0))
  theta = jax.tree.map(jnp.asarray, compared[0].candidates[0].theta)

  @functools.partial(jax.jit, static_argnums=0)
  def updates(opt_fn, grads):
    tx = opt_fn(theta, num_steps=20)
    return tx.update(grads, tx.init(params), params)[0]

  small = jax.tree.map(lambda x: 1e-3 * jnp.ones_like(x), params)
  large = jax.tree.map(lambda x: x if x.shape == (10,) else 8 * x, small)
  expected, other = updates(plain, large), updates(plain, small)
  chex.assert_trees_all_close(updates(scaled, small), expected, rtol=1e-5)
  assert not np.allclose(
      other["layer_1"]["w"], expected["layer_1"]["w"], rtol=1e-3)


def test_schedules():
  steps = jnp.arange(101.0)
  at = lambda name: np.array(jax.vmap(
      lambda step: baselines.SCHEDULES[name](step, jnp.float32(100)))(steps))
  np.testing.assert_array_equal(at("constant"), 1)
  cosine = at("cosine")
  np.testing.assert_allclose(cosine[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-5)
  assert np.all(np.diff(cosine[5:]) < 0) and abs(cosine[100]) < 1e-6
  assert cosine[52] == pytest.approx(0.5, abs=0.02)
  np.testing.assert_allclose(at("linear")[[0, 4, 5, 100]], [0.2, 1, 1, 0])


def test_variants():
  """Settings that are tried are part of the identity, of the label and run."""
  method, = methods.parse(["muon_tuned"], ["constant"])
  first, decayed = method.candidates[0], method.candidates[5]
  assert (first.schedule, decayed.schedule) == (
      "linear, weight_decay 0.0", "linear, weight_decay 0.1")
  assert "constant" not in {c.identity["schedule"] for c in method.candidates}
  params = {"w": jnp.ones((3, 4))}
  moved = []
  for candidate in (first, decayed):
    tx = candidate.opt_fn(candidate.theta, num_steps=1)
    moved.append(tx.update(params, tx.init(params), params)[0]["w"])
  np.testing.assert_allclose(
      moved[1] - moved[0], -0.1 * first.learning_rate, rtol=1e-3)


def test_untrained():
  start, own = methods.parse(
      ["untrained:mulo-s", "x=untrained:mulo2/natural"], [])
  assert (start.label, own.label) == ("mulo-s, untrained", "x")
  assert (start.parametrization, own.parametrization) == (
      "mup_balanced", "natural")
  trained = mulo.read("mulo-s")
  assert start.candidates[0].identity["settings"] == trained.settings
  chex.assert_trees_all_equal(
      start.candidates[0].theta,
      jax.device_get(trained.lopt.init(jax.random.key(0))))
  with pytest.raises(ValueError, match="nautral"):
    methods.parse(["untrained:mulo2/nautral"], [])


def test_baselines():
  assert {"sgd", "adam", "adamw", "lion", "adafactor", "muon"} <= set(
      baselines.names())
  for name in baselines.names():
    rates = baselines.get(name).learning_rates
    assert list(rates) == sorted(rates)
    assert len(rates) == 9 or baselines.get(name).schedules
  with pytest.raises(ValueError, match="'adamm'; available: adam, adamw, muon"):
    baselines.get("adamm")


@pytest.mark.parametrize("name, settings, update", [
    ("sgd", {}, -0.1), ("sgd", {"momentum": None}, -0.1), ("adam", {}, -0.1),
    ("adam", {"eps": 1.0}, -0.05), ("lion", {"weight_decay": 1.0}, -0.3)])
def test_settings_of_a_baseline(name, settings, update):
  """Settings replace arguments of the optax function."""
  tx = baselines.get(name).make(0.1, **settings)
  params = jnp.full(3, 2.0)
  updates, _ = tx.update(jnp.ones(3), tx.init(params), params)
  np.testing.assert_allclose(updates, update, rtol=1e-5)


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon"])
def test_baselines_train(name):
  opt_fn = baselines.opt_fn(baselines.get(name), "cosine")
  task = families.get(
      "mlp", parametrizations.get("standard"), width=4, depth=1, batch_size=4)
  rates = np.float32(baselines.get(name).learning_rates[4:5])
  result = evaluate.train(
      task, opt_fn, rates, jax.random.split(jax.random.key(0), 1), 5)
  assert np.all(np.isfinite(result.train_loss))


def test_cells_of_the_repository_are_found(monkeypatch):
  """The command of docs/studies/width finds all its cells."""
  folder = tiny_run.ROOT / "docs" / "studies" / "width"

  def train(self, method, candidates, section, seeds):
    raise AssertionError(f"{method.label} would be trained again.")

  monkeypatch.setattr(transfer.Study, "_train", train)
  monkeypatch.setattr(jax, "__version__", "0.10.2")  # of the stored cells
  results = transfer.Study(
      folder, None, 1, 3, "final_train_loss", tqdm.tqdm(disable=True)).compare(
          methods.parse(["mulo-s", "mulo-s-sp", "adafac-mup-s",
                         "adafac-mup-s@32", "mu_adam_transferred", "adamw"],
                        ["constant", "cosine"]),
          transfer.targets_of(asked(
              settings=["dataset=cifar10", "image_size=16", "standardize=True",
                        "depth=2"], values=["128", "512", "2048"])))
  stored = pd.read_csv(folder / "results.csv")
  assert list(results.method) == list(stored.method)
  for column in ("learning_rate", "test_loss"):
    np.testing.assert_array_equal(
        results[column].astype(float), stored[column])


def test_runs_are_independent():
  """The result of a run depends on its theta and key, not on other runs."""
  standard = parametrizations.get("standard")
  task = families.get("mlp", standard, width=4, depth=1, batch_size=4)
  adam = baselines.opt_fn(baselines.get("adam"), "constant")
  opt_fn = unroll.scaled(adam, standard, task)
  keys = jax.random.split(jax.random.key(0), 2)
  rates = np.float32([0.1, 0.01])
  both = evaluate.train(task, opt_fn, rates, keys, 12, chunk=5)
  alone = evaluate.train(task, opt_fn, rates[1:], keys[1:], 12, chunk=5)
  assert both.train_loss.shape == (2, 12)
  np.testing.assert_allclose(
      both.train_loss[1], alone.train_loss[0], rtol=1e-4)
  np.testing.assert_allclose(
      both.final["test"]["loss"][1], alone.final["test"]["loss"][0], rtol=1e-4)


def asked(**flags):
  """Return flags of the command, with defaults for all others."""
  return types.SimpleNamespace(**{
      "num_steps": None, "suite": None, "tasks": None, "task": "mlp",
      "settings": [], "axis": "width", "values": ["8"], **flags})


def test_targets():
  assert transfer.targets_of(asked(
      settings=["dataset=mnist", "depth=3"], values=["8", "16"])) == {
          f"width {n}": {"name": "mlp", "num_steps": 1000, "dataset": "mnist",
                         "depth": 3, "width": n} for n in (8, 16)}
  assert transfer.targets_of(asked(axis="num_steps", num_steps=50)) == {
      "num_steps 8": {"name": "mlp", "num_steps": 8}}
  (section,) = transfer.targets_of(
      asked(suite="heldout", tasks=["rnn_w64"])).values()
  assert section["name"] == "rnn_lm" and section["num_steps"] == 2000


@pytest.mark.parametrize("call, message", [
    (lambda: methods.parse(["adamm"], []), "'adamm'; available: adam"),
    (lambda: methods.parse(["mulo-s@0"], []), "'mulo-s@0'; available"),
    (lambda: methods.parse(["mulo-s", "mulo-s=mulo-s-sp"], []),
     "Two optimizers are called 'mulo-s'"),
    (lambda: methods.parse(["mulo-s-sp@8"], []), "leave out the width"),
    (lambda: transfer.targets_of(asked(axis="num_steps", values=["x"])),
     "num_steps must be a positive integer, got 'x'"),
    (lambda: transfer.targets_of(asked(suite="trained")), "suite 'trained'"),
    (lambda: transfer.targets_of(asked(suite="train_small", tasks=["a"])),
     "train_small has no task 'a'")])
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
