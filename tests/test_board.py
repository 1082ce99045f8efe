"""The board and the page of a study: known answers at toy size."""

import pathlib
import re
import types
import xml.etree.ElementTree

import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import tqdm

from experiments import baselines
from experiments import board
from experiments import cost
from experiments import methods
from experiments import report
from experiments.baselines import base
from experiments.report import ranks
from experiments.report import statistics
from experiments.report import styles
from experiments.report import svg
from experiments.studies import transfer
from tasks import suites

ROOT = pathlib.Path(__file__).parents[1]
TRACK = {"name": "quadratic", "num_steps": 20}
ENTRY = """
import optax
from experiments import baselines

ENTRY = baselines.Baseline(
    "mine", optax.{rule}, "standard", baselines.half_decades(-3, -1),
    schedules=("constant",))
"""


@pytest.fixture
def toy(monkeypatch):
  """Replace the tracks by a quadratic, and timing by a fixed time."""
  monkeypatch.setitem(suites._SUITES, "board", {"bowl": TRACK})
  monkeypatch.setattr(suites, "BOARD_TARGETS", {"bowl": 0.5})
  monkeypatch.setattr(
      cost.timing, "interleave", lambda steps, rounds, repeats: {
          name: np.full(rounds * repeats, seconds)
          for name, seconds in (("entry", 0.04), ("reference", 0.02))})


def run(workdir, entries, **flags):
  board.main(types.SimpleNamespace(**{
      "workdir": str(workdir), "data_dir": None, "trust": [], "tracks": [],
      "entries": entries, "seeds": 3, "tuning_seeds": 1, "targets": False,
      **flags}))
  return report.files.load(workdir)


def test_board(toy, tmp_path, monkeypatch, capsys):
  """An entry from a file; two names for one rule share a rank; a rerun does
  nothing; an entry that does not reach the target says so.
  """
  for rule in ("sgd", "sign_sgd"):
    (tmp_path / f"{rule}.py").write_text(ENTRY.format(rule=rule))
  still = baselines.untuned("still", lambda: optax.set_to_zero())
  monkeypatch.setitem(baselines.BASELINES, "still", still)
  entries = [f"{tmp_path}/sgd.py", f"twin={tmp_path}/sgd.py",
             f"signs={tmp_path}/sign_sgd.py", "still", "adamw"]
  results, record = run(tmp_path / "board", entries)
  assert record["sources"]["twin"] == ENTRY.format(rule="sgd")
  assert set(results["seconds"]) == {0.002}
  assert set(results["reference_seconds"]) == {0.001}
  standings = ranks.standings(results).set_index("method")
  mine, twin = standings.loc["mine"], standings.loc["twin"]
  assert mine["steps"] == twin["steps"] and mine["reached"] == 3
  assert mine["steps rank"] == twin["steps rank"] == 1
  assert standings.loc["signs", "steps"] != mine["steps"]
  assert mine["seconds"] == pytest.approx(0.002 * mine["steps"])
  assert standings.loc["still", "reached"] == 0
  assert np.isnan(standings.loc["still", "steps rank"])
  page = (tmp_path / "board/report.html").read_text()
  markdown = (tmp_path / "board/report.md").read_text()
  for text in ("NOT: 0 of 3", "optax.sign_sgd", "speed-up in seconds",
               "still"):
    assert text in markdown and text in page
  # Well formed: every element of the plots is closed.
  plots = re.findall(r"<svg viewBox.*?</svg></svg>", page)
  assert len(plots) == 2 + 2 + 3 + 1  # profiles, curves, final, cost
  for plot in plots:
    xml.etree.ElementTree.fromstring(plot)
  assert "http" not in re.sub(r"https?://\S*arxiv\S*", "", page)

  def nothing(*_):
    raise AssertionError("A rerun computes a cell.")

  monkeypatch.setattr(transfer.Study, "_train", nothing)
  monkeypatch.setattr(cost, "_measure", nothing)
  files = {path: path.read_bytes() for path in (tmp_path / "board").iterdir()
           if path.is_file() and path.suffix != ".png"}
  run(tmp_path / "board", entries)
  assert files == {path: path.read_bytes() for path in files}


def compare(folder, names, max_growth=4):
  study = transfer.Study(folder, None, 1, 2, "final_train_loss",
                         tqdm.tqdm(disable=True), max_growth)
  return study.compare(methods.parse(names, ["constant"]), {"bowl": TRACK})


def test_known_answers(tmp_path, monkeypatch):
  """The page has the best rate of descent, which is 1, and the edge of a grid
  that is far off and must not grow.
  """
  for name, rates in (("descent", (-2, 1)), ("far_off", (-12, -10))):
    monkeypatch.setitem(baselines.BASELINES, name, baselines.Baseline(
        name, optax.sgd, "standard", baselines.half_decades(*rates)))
  results = compare(tmp_path, ["descent", "far_off"], max_growth=0)
  report.write(results, tmp_path, "bowl", tuning_seeds=[1000])
  report.write_page(tmp_path)
  text = (tmp_path / "report.md").read_text()
  rows = {line.split(" | ")[0].strip("| "): line for line in
          text.partition("## Cost of tuning")[2].splitlines() if "|" in line}
  assert "1.0e+00 constant" in rows["descent"]
  assert "EDGE" not in rows["descent"] and "| 4 |" in rows["descent"]
  assert "GRID EDGE: bowl" in rows["far_off"]
  assert "far_off: the best learning rate is at the edge" in text


def runs_of(steps, seconds=0.001, error=0.0, target="t"):
  """Return results whose runs reach the target 0.5 after these steps."""
  return pd.DataFrame([
      {"target": target, "method": method, "seed": i, "num_steps": 1000,
       "target_loss": 0.5, "seconds": seconds, "seconds_error": error,
       "curve": list(np.where(np.arange(1, 1001) < n, 1.0, -1e6))}
      for method, of_seeds in steps.items() for i, n in enumerate(of_seeds)])


def test_significance():
  """Means 300 and 320, standard deviations 10: z is 20 / (10 sqrt(2 / 3))."""
  steps = {"a": [290, 300, 310], "b": [310, 320, 330], "c": [340, 350, 360],
           "d": [290, 300, 2000]}
  table = ranks.standings(runs_of(steps)).set_index("method")
  assert list(table.loc["a":"c", "steps"]) == [300, 320, 350]
  error = ((100 + 1 / 12) / 3)**0.5
  np.testing.assert_allclose(table.loc["a":"c", "steps error"], error)
  a, b, c = (ranks.Mean(*row) for row in table.loc[
      "a":"c", ["steps", "steps error"]].to_numpy())
  assert ranks.z(a, b) == pytest.approx(20 / (error * 2**0.5))
  assert ranks.z(b, a) == -ranks.z(a, b)
  # a and b are 2.4 errors apart, b and c 3.7: only c is beaten, by both.
  assert list(table.loc["a":"c", "steps rank"]) == [1, 1, 3]
  assert table.loc["d", "reached"] == 2 and np.isnan(
      table.loc["d", "steps rank"])
  overall = ranks.overall(table.reset_index()).set_index("method")
  assert list(overall.index) == ["a", "b", "c", "d"]
  assert overall.loc["d", "rank by steps"] == 4 and not overall.loc[
      "d", "reached"]


def test_uncertain_seconds():
  """With half of a step's time uncertain, nothing is apart; one seed is none.
  """
  steps = {"a": [290, 300, 310], "c": [340, 350, 360]}
  table = ranks.standings(runs_of(steps, 2.0, 1.0)).set_index("method")
  assert table.loc["a", "seconds"] == 600
  assert table.loc["a", "seconds error"] == pytest.approx(
      ((2 * table.loc["a", "steps error"])**2 + 300**2)**0.5)
  assert list(table["steps rank"]) == [1, 2]
  assert list(table["seconds rank"]) == [1, 1]
  single = ranks.standings(runs_of({"a": [110], "b": [900]}))
  assert list(single["steps rank"]) == [1, 1]


def test_speedups_in_seconds():
  """Half as many steps, each three times as long, is 2/3 of the speed."""
  curve = list(np.linspace(2, 1, 100))
  fast = list(np.linspace(2, 0, 100))
  rows = statistics.with_speedup(pd.DataFrame([
      {"target": "t", "method": method, "curve": x, "seconds": s}
      for method, x, s in (("AdamW", curve, 1.0), ("x", fast, 3.0))]))
  assert rows["speedup"][1] == pytest.approx(2, rel=0.1)
  assert rows["speedup in seconds"][1] == rows["speedup"][1] / 3
  shares = statistics.profile(rows, "speedup", np.array([0.5, 1.5, 3.0]))
  assert list(shares["x"]) == [1, 1, 0] and list(shares["AdamW"]) == [1, 0, 0]


def test_cost_of_a_step():
  """Adam has two numbers for each parameter, and two counts of steps."""
  method, = methods.parse(["adam"], ["constant"])
  row, = cost._measure(method, method.candidates[0], {
      "name": "mlp", "width": 4, "depth": 1, "batch_size": 4,
      "num_steps": 20}, None)
  assert row["params"] == 64 * 4 + 4 + 4 * 10 + 10
  assert row["state_bytes"] == 8 * row["params"] + 8
  assert row["ratio"] > 0 and row["ratio_error"] >= 0


@pytest.mark.parametrize("text, message", [
    ("x = 1", "must have the name ENTRY.*it has none"),
    ("ENTRY = 1", "it has int"), ("1 / 0", "fails: ZeroDivisionError"),
    (ENTRY.format(rule="sgd").replace('("constant",)', '("consant",)'),
     "unknown schedule 'consant'; available: constant"),
    (ENTRY.format(rule="sgd").replace("(-3, -1)", "(1, 0)"),
     "no learning rates")])
def test_wrong_files(text, message, tmp_path):
  (tmp_path / "a.py").write_text(text)
  with pytest.raises(ValueError, match=message):
    methods.parse([str(tmp_path / "a.py")], [])


def test_ready_transformations(tmp_path):
  """A file may give the transformation of each task, with its horizon."""
  (tmp_path / "a.py").write_text(
      "import optax\nfrom experiments import baselines\n"
      "def make(num_steps, task):\n"
      "  assert task.base_shapes is None\n"
      "  return optax.sgd(optax.linear_schedule(1.0, 0.0, num_steps))\n"
      "ENTRY = baselines.untuned('ready', make)\n")
  method, = methods.parse([str(tmp_path / "a.py")], [])
  _, opt_fn = methods.of_task(
      method, method.candidates[0].opt_fn, TRACK, None)
  tx = opt_fn(method.candidates[0].theta, num_steps=2)
  one = jnp.ones([])
  state = tx.init(one)
  for expected in (-1.0, -0.5, 0.0):
    update, state = tx.update(one, state, one)
    assert update == expected
  assert len(method.candidates) == 1


def test_entries_of_the_page(tmp_path):
  """The page shows two files that work, with 24 settings and with one."""
  text = (ROOT / "docs/board.md").read_text()
  paths = []
  for i, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.S)):
    paths.append(tmp_path / f"{i}.py")
    paths[-1].write_text(code)
  tuned, ready = methods.parse([str(path) for path in paths], [])
  assert len(tuned.candidates) == baselines.BUDGET
  assert len(ready.candidates) == 1
  for candidate in (*tuned.candidates[::6], *ready.candidates):
    tx = candidate.opt_fn(candidate.theta, num_steps=100)
    update, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    assert np.all(np.isfinite(update))


def test_targets():
  """The loss after 80 of 100 points, over ten points, in the worst run."""
  falling = np.linspace(1, 0, 100)
  results = pd.DataFrame([
      {"target": "t", "method": label, "curve": list(factor * falling)}
      for label, factor in (("AdamW, tuned with decay", 1.0), ("other", 9.0),
                            ("AdamW, tuned with decay", 2.0))])
  assert board.targets_of(results) == {
      "t": float(f"{np.mean(2 * falling[70:80]):.3g}")}


def test_unknown_names(tmp_path):
  with pytest.raises(ValueError, match="no track 'x'; available: perceptron"):
    board.tracks(["x"])
  with pytest.raises(ValueError, match="--targets needs the entry adamw_tuned"):
    run(tmp_path / "new", ["adamw"], targets=True)
  assert not (tmp_path / "new").exists()
  with pytest.raises(FileNotFoundError, match="is no workdir of experiments"):
    report.write_page(tmp_path)
  (tmp_path / "command.txt").write_text("python -m x\n")
  with pytest.raises(FileNotFoundError, match="again.*: python -m x"):
    report.write_page(tmp_path)
  with pytest.raises(FileNotFoundError):
    methods.parse([str(tmp_path / "none.py")], [])
  (tmp_path / "a.py").write_text(ENTRY.format(rule="sgd"))
  with pytest.raises(ValueError, match="must not be called 'AdamW'"):
    methods.parse([f"AdamW={tmp_path}/a.py"], [])


def test_entries():
  """The entries that run by default exist, and the null models are in them.
  """
  labels = [method.label for method in methods.parse(
      list(board.ENTRIES), list(base.DECAYING))]
  assert {"mulo-s", "mulo-s, untrained", "mulo2/natural, untrained",
          "AdamW, one setting", "Muon, one setting",
          "Muon, tuned with matrices"} <= set(labels)
  assert not any("transferred" in label for label in labels)


@pytest.mark.parametrize("low, high, ticks", [
    (0.1, 10.0, [0.1, 1, 10]), (0.9, 1.3, [0.9, 1, 1.1, 1.2, 1.3]),
    (1e-6, 1e6, [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6]), (1, 7, [1, 2, 5])])
def test_log_ticks(low, high, ticks):
  np.testing.assert_allclose(svg.log_ticks(low, high), ticks)


def test_ticks_are_few():
  for high in np.geomspace(1e-3, 1e5, 50):
    for ticks in (svg.round_ticks(0, high), svg.log_ticks(1e-4, high)):
      assert 3 <= len(ticks) <= 7 and max(ticks) <= high * (1 + 1e-9)


def test_colours():
  """An optimizer has one colour on all pages, readable on white and black."""
  rates = {"AdamW": 0.1, "ours": None, "mine": 0.1, "Muon": 0.1}
  rows = lambda names: pd.DataFrame([
      {"method": name, "learning_rate": rates.get(name, 0.1)}
      for name in names])
  labels = [baseline.label for baseline in baselines.BASELINES.values()]
  some, all_ = styles.of(rows(rates)), styles.of(rows([*labels, "ours"]))
  assert some["AdamW"] == all_["AdamW"] and some["Muon"] == all_["Muon"]
  assert [x.kind for x in some.values()] == [
      "baseline", "learned", "entry", "baseline"]
  looks = [(style.color, style.dash) for style in all_.values()]
  assert len(set(looks)) == len(looks)
  assert not some["ours"].dash and some["AdamW"].dash
  for color in (*(x.color for x in all_.values()), *styles.WARM,
                *styles.VIOLET):
    luminance = styles.luminance_of(color)
    assert 1.05 / (luminance + 0.05) >= 2.9, color
    assert (luminance + 0.05) / (styles.luminance_of("#121212") + 0.05) >= 2.9


def test_divergence_is_gapped_and_cut():
  """NaN ends a line, and a huge loss does not decide about the axis."""
  rows = pd.DataFrame([
      {"target": "width 8", "method": "AdamW", "learning_rate": 0.1, "seed": i,
       "num_steps": 4, "curve": curve, "final_train_loss": curve[-1],
       "outer_valid_loss": 1.0, "test_loss": 1.0}
      for i, curve in enumerate(([2.0, 1.0, 1e9, float("nan")],
                                 [2.0, 1.0, 0.5, float("inf")]))])
  plots = report.page.panels.curves(rows, True)["width 8"][0]
  assert "nan" not in plots and "inf" not in plots
  labels = re.findall(r'class="end">([\d.]+)</text>', plots)
  assert 1 in map(float, labels) and max(map(float, labels)) <= 3


def test_axes():
  """Panels of one axis have equal scales, and its values are the ticks;
  unrelated tasks have scales of their own and no lines between them.
  """
  def rows(*targets):
    return pd.DataFrame([
        {"target": target, "method": "AdamW", "learning_rate": 0.1, "seed": 0,
         "num_steps": 2, "curve": [10.0**i, 10.0**i / 2],
         "final_train_loss": 10.0**i, "outer_valid_loss": 1.0,
         "test_loss": 1.0} for i, target in enumerate(targets)])

  scale = lambda plot: re.findall(r'class="end">([\d.]+)</text>', plot)
  panels = report.page.panels
  along, apart = rows("width 8", "width 32"), rows("mlp", "conv")
  assert len({str(scale(x)) for x, in panels.curves(along, True).values()}) == 1
  assert len({str(scale(x)) for x, in panels.curves(apart, False).values()}
             ) == 2
  final = panels.final(along)[0]
  assert "<path" in final and ">8</text>" in final and ">32</text>" in final
  final = panels.final(apart)[0]
  assert "<path" not in final and ">mlp</text>" in final
