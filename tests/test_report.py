"""Tables and plots of comparisons."""

import pathlib

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

from experiments import report


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
  both = report.with_speedup(pd.concat([rows, rows.assign(
      method="Muon, tuned with decay", curve=[[0.5, 0.5]] * 2)],
                                       ignore_index=True))
  assert list(both["speedup over Muon"]) == [0.5, 0.5, 2, 2]
  assert "speed-ups over Muon" in report.summary(both)
  low, high = report.interval(pd.Series([1.0, 2.0, 3.0, 4.0]))
  assert 1 < low < 2.5 < high < 4


@pytest.fixture
def saved(monkeypatch):
  """Return a list that receives figures instead of their files."""
  figures = []
  monkeypatch.setattr(
      matplotlib.figure.Figure, "savefig",
      lambda figure, *args, **settings: figures.append(figure))
  return figures


def runs(targets, last=1.0):
  """Return results of a learned optimizer and a baseline; the second ends high.
  """
  return pd.DataFrame([
      {"target": target, "method": name, "num_steps": 10, "curve": curve,
       "learning_rate": rate, "final_train_loss": curve[-1]}
      for target in targets
      for name, rate, curve in (("learned", None, [2.0, 1.0]),
                                ("AdamW", 0.1, [2.0, last]))])


@pytest.mark.parametrize("last", [1.0, 1000.0, float("inf"), float("nan")])
def test_a_run_that_diverges_does_not_flatten_the_plot(saved, last):
  report.plot(runs(["width 8"], last), pathlib.Path("x.png"))
  report.plot(runs(["mlp", "conv"], last), pathlib.Path("x.png"))
  for figure in saved:
    low, high = figure.axes[0].get_ylim()
    assert low < 1 and 2 < high <= 4


def test_plot_along_an_axis(saved):
  targets = [f"width {2**i}" for i in range(3, 8)]
  report.plot(runs(targets), pathlib.Path("x.png"), "mlp on digits")
  figure = saved[0]
  *panels, final = figure.axes[:6]
  assert figure.get_suptitle() == "mlp on digits"
  assert [panel.get_title() for panel in panels] == targets
  assert len({panel.get_ylim() for panel in (*panels, final)}) == 1
  assert final.get_xscale() == "log" and final.get_xlabel() == "width"
  assert list(final.get_xticks()) == [8, 16, 32, 64, 128]
  labels = [x.get_text() for x in panels[0].get_yticklabels()]
  assert {"1", "2"} <= set(labels)
  for panel in (*panels, final):
    learned, baseline = panel.get_lines()
    assert learned.get_linestyle() == "-" != baseline.get_linestyle()
    assert learned.get_color() != baseline.get_color()


@pytest.mark.parametrize("last", [1.5, 1000.0, float("inf"), float("nan")])
def test_plot_of_final_losses_along_an_axis(saved, last):
  trained = {"learned": {"width": (8, 32), "num_steps": (10, 20)}}
  report.figures.plot_final(
      runs(["width 64", "width 128"], last), pathlib.Path("x.png"), "mlp",
      trained)
  panel, = saved[0].axes
  assert panel.get_title() == "mlp"  # not of the figure, which has the legend
  assert [x.get_text() for x in saved[0].legends[0].get_texts()] == [
      "AdamW", "learned", "meta-training"]
  assert list(panel.get_xticks()) == [8, 32, 64, 128]
  band, = [x for x in panel.patches if x.get_label() == "meta-training"]
  assert (band.get_x(), band.get_x() + band.get_width()) == (8, 32)
  assert panel.get_ylim()[0] < 1 and panel.get_ylim()[1] <= 4


def test_plot_of_unrelated_tasks(saved):
  report.plot(runs(["conv", "mlp"]), pathlib.Path("x.png"))
  report.plot(runs(["mlp"]), pathlib.Path("x.png"))
  final = saved[0].axes[2]
  assert all(x.get_linestyle() == "None" for x in final.get_lines())
  assert [x.get_text() for x in final.get_xticklabels()] == ["conv", "mlp"]
  assert len(saved[1].axes) == 1  # one task needs no panel of final losses


@pytest.mark.parametrize("targets, axis", [
    (["width 8", "width 16"], ("width", [8, 16])), (["lr 0.5"], ("lr", [0.5])),
    (["width 8", "depth 8"], None), (["width 0", "width 8"], None),
    (["conv_w32", "vit"], None), (["norm rms"], None)])
def test_axis_of_targets(targets, axis):
  assert report.axis_of(targets) == axis
