"""Comparisons on other tasks, at a size that takes seconds."""

import functools
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import test_train
import tqdm

from experiments import baselines
from experiments import report
from experiments import sweep
from experiments.studies import transfer
from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.scaling import parametrizations
from meta_train import evaluate
from meta_train import unroll
import mulo
from tasks import families


def artifact():
  lopt = optimizers.get("mulo", hidden=3)
  return artifact_lib.Artifact(
      "mulo", optimizers.all_settings("mulo", hidden=3), "mup",
      lopt.init(jax.random.key(0)))


def test_command_is_resumable(tmp_path):
  mulo.save(tmp_path / "a.safetensors", artifact())
  folder = tmp_path / "study"
  command = [
      sys.executable, "-m", "experiments.studies.transfer", f"--workdir={folder}",
      f"--optimizers=ours={tmp_path / 'a.safetensors'},adamw",
      "--settings=depth=1,batch_size=4", "--values=2,3", "--num_steps=20",
      "--seeds=2", "--schedules=cosine"]

  def run():
    done = subprocess.run(command, cwd=test_train.ROOT, capture_output=True,
                          env=test_train.ENVIRONMENT, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  first = run()
  results = pd.read_csv(folder / "results.csv")
  assert len(results) == 2 * 2 * 2  # targets, methods, seeds
  assert set(results.method) == {"ours", "AdamW"}
  assert set(results.target) == {"width 2", "width 3"}
  assert np.all(np.isfinite(results.final_train_loss))
  assert np.all(results.speedup > 0)
  # For each width a cell of either method, and one for tuning.
  cells = sorted((folder / "cells").iterdir())
  assert len(cells) == 2 * 3
  assert (folder / "transfer.png").read_bytes()[:4] == b"\x89PNG"
  assert (folder / "command.txt").read_text() == (
      "python -m experiments.studies.transfer " + " ".join(command[3:]) + "\n")
  # A cell that is not done is computed again, the others are not.
  (cells[0] / "DONE").unlink()
  (cells[0] / "metrics.jsonl").write_text("")
  times = {c: (c / "metrics.jsonl").stat().st_mtime_ns for c in cells}
  assert run() == first
  changed = [c for c in cells
             if (c / "metrics.jsonl").stat().st_mtime_ns != times[c]]
  assert changed == cells[:1]
  pd.testing.assert_frame_equal(
      pd.read_csv(folder / "results.csv"), results)


def test_cells(tmp_path):
  calls = []

  def compute():
    calls.append(1)
    return [{"x": 1.5}]

  for config in ({"a": 1}, {"a": 1}, {"a": 2}):
    assert sweep.run_cell(tmp_path, config, compute) == [{"x": 1.5}]
  assert len(calls) == 2
  found = {json.loads((c / "config.json").read_text())["a"]
           for c in tmp_path.iterdir()}
  assert found == {1, 2}


def study(folder):
  return transfer.Study(folder, None, 1, 1, "final_train_loss", tqdm.tqdm(
      disable=True))


def test_tuning(tmp_path, monkeypatch):
  """The smallest score wins, never one that is not a number."""
  scores = {("constant", 1e-3): 2.0, ("cosine", 1e-1): float("nan"),
            ("cosine", 1e-2): 0.5}
  asked = []

  def rows(self, method, candidates, section, seeds):
    asked.append((section["width"], len(candidates), tuple(seeds)))
    return [{"seed": seed, "final_train_loss": scores.get(
        (c.schedule, round(c.learning_rate, 6)), 3.0)}
            for c in candidates for seed in seeds]

  monkeypatch.setattr(transfer.Study, "rows", rows)
  found = transfer.methods(
      ["adamw", "mu_adam_transferred"], ["constant", "cosine"])
  results = study(tmp_path).compare(found, {
      f"width {n}": {"name": "mlp", "width": n, "num_steps": 10}
      for n in (4, 8)})
  assert set(results.learning_rate.round(6)) == {1e-2}
  assert set(results.schedule) == {"cosine"} and not results.grid_edge.any()
  tuning = [width for width, n, seeds in asked if n == 9]
  assert tuning == [4, 4, 4, 4, 8, 8]  # muAdam at the first width alone
  assert {seeds for _, n, seeds in asked if n == 9} == {(1000,)}


def test_labels(tmp_path, monkeypatch):
  path = str(tmp_path / "a.safetensors")
  mulo.save(path, artifact())
  labels = lambda: [m.label for m in (
      *transfer.methods([path, f"ours={path}", f"{path}@8"], []),
      transfer.with_bfloat16_state(path))]
  more = ", gradients as at width 8", ", bfloat16 state"
  assert labels() == ["mulo", "ours", *(f"mulo{x}" for x in more)]
  monkeypatch.setattr(mulo, "list_pretrained", lambda: [path])  # as if shipped
  assert labels() == [path, "ours", *(f"{path}{x}" for x in more)]


def test_gradients_of_another_width(tmp_path, monkeypatch):
  """What trains sees gradients eight times as large at width 16 as at 2."""
  seen = []

  def trainer(task, opt_fn):
    seen.append((task, opt_fn))
    raise StopIteration

  monkeypatch.setattr(evaluate, "trainer", trainer)
  found = transfer.methods(["adafac-mup-s", "adafac-mup-s@2"], [])
  for method in found:
    with pytest.raises(StopIteration):
      study(tmp_path).rows(method, method.candidates, {
          "name": "mlp", "depth": 2, "width": 16, "num_steps": 20}, [0])
  (task, plain), (_, scaled) = seen
  params = task.init(jax.random.key(0))
  theta = jax.tree.map(jnp.asarray, found[0].candidates[0].theta)

  @functools.partial(jax.jit, static_argnums=0)
  def updates(opt_fn, grads):
    tx = opt_fn(theta, num_steps=20)
    return tx.update(grads, tx.init(params), params)[0]

  small = jax.tree.map(lambda x: 1e-3 * jnp.ones_like(x), params)
  large = jax.tree.map(lambda x: x if x.shape == (10,) else 8 * x, small)
  expected, other = updates(plain, large), updates(plain, small)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
               updates(scaled, small), expected)
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


@pytest.mark.parametrize("curve, expected", [
    ([4.0, 2.0, 1.0, 1.0], 4 / 3), ([1.0, 1.0, 1.0, 1.0], 4.0),
    ([4.0, 3.0, 2.5, 1.0], 1.0), ([4.0, 4.0, 3.0, 3.0], 2 / 4),
    ([1.0, 2.0, float("nan"), float("nan")], 0.0),
    ([9.0, 9.0, 9.0, 9.0], 1 / 4)])
def test_speedup(curve, expected):
  reference = np.array([4.0, 3.0, 2.0, 1.0])
  assert report.speedup(curve, reference) == expected


def test_noise_does_not_make_an_optimizer_faster_than_itself():
  noise = np.random.default_rng(0).normal(size=(16, 100))
  curves = np.exp(-np.linspace(0, 1, 100)) * (1 + 0.2 * noise)
  speedups = [report.speedup(curve, curves.mean(0)) for curve in curves]
  assert 0.9 < np.mean(speedups) < 1.1
  assert report.speedup([*curves[0][:50], *[float("nan")] * 50],
                        curves[1]) == 0


def test_table_and_interval():
  row = {"target": "t", "method": "AdamW", "learning_rate": 0.1,
         "schedule": "cosine", "grid_edge": True, "mean_train_loss": 2.0,
         "outer_valid_loss": 3.0, "test_loss": 3.0, "curve": [2.0, 1.0],
         "num_steps": 2}
  rows = report.with_speedup(pd.DataFrame([
      {**row, "final_train_loss": 1.0, "test_accuracy": 0.5},
      {**row, "final_train_loss": float("inf"), "test_accuracy": 0.7}]))
  line = report.table(rows).splitlines()[-1]
  for text in ("1.0e-01 cosine (grid edge)", "60.0%", "1 of 2", "3 (3 to 3)",
               "1 (1 to 1)"):
    assert text in line
  assert "| AdamW       | 2      | 1.00 (1.00 to 1.00)" in (
      report.summary(rows))
  low, high = report.interval(pd.Series([1.0, 2.0, 3.0, 4.0]))
  assert 1 < low < 2.5 < high < 4


def test_what_diverges_does_not_flatten_the_plot(tmp_path, monkeypatch):
  saved = []
  monkeypatch.setattr(
      matplotlib.figure.Figure, "savefig",
      lambda figure, *args, **settings: saved.append(figure))
  for last, top in ((1000.0, 4.0), (1.0, 4.0)):
    report.plot(pd.DataFrame([
        {"target": "width 8", "method": name, "num_steps": 10,
         "curve": curve, "final_train_loss": curve[-1]}
        for name, curve in (("a", [2.0, 1.0]), ("b", [2.0, last]))]),
        tmp_path / "x.png")
    low, high = saved[-1].axes[0].get_ylim()
    assert low < 1 and 2 < high <= top


def test_runs_do_not_depend_on_their_company():
  """A run's result is that of its theta and key, whatever runs beside it."""
  standard = parametrizations.get("standard")
  task = families.get("mlp", standard, width=4, depth=1, batch_size=4)
  adam = baselines.opt_fn(baselines.BASELINES["adam"], "constant")
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
    (lambda: transfer.methods(["adamm"], []), "'adamm'; available: adam"),
    (lambda: transfer.methods(["mulo-s@0"], []), "'mulo-s@0'; available"),
    (lambda: transfer.methods(["mulo-s-sp@8"], []), "leave out the width"),
    (lambda: transfer.parse(["width"]), "not of the form setting=value"),
    (lambda: transfer.targets_of(asked(suite="trained")), "suite 'trained'"),
    (lambda: transfer.targets_of(asked(suite="train_small", tasks=["a"])),
     "train_small has no task 'a'")])
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_error_of_the_command_is_one_line(tmp_path):
  done = subprocess.run(
      [sys.executable, "-m", "experiments.studies.transfer",
       "--optimizers=nothing.safetensors", f"--workdir={tmp_path / 'x'}"],
      cwd=test_train.ROOT, capture_output=True, text=True,
      env=test_train.ENVIRONMENT)
  assert done.returncode != 0
  assert "neither a file nor" in done.stderr.strip().splitlines()[-1]
  assert not (tmp_path / "x").exists()
