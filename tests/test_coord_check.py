"""The coordinate check, as a function and as a command."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pandas as pd
import pytest

from experiments.studies import coord_check
from experiments.studies import epsilon_study
from learned_opt.scaling import parametrizations
from meta_train import unroll
import mulo
from mulo import _coord_check as coord_check_lib
from mulo import scaling
from tasks import families

WIDTHS = (16, 64, 256)


def init(key, width):
  keys = jax.random.split(key, 2)
  return {"first": jax.random.normal(keys[0], (8, width)) / 8**0.5,
          "second": jax.random.normal(keys[1], (width, width)) / width**0.5,
          "readout": jnp.zeros((width, 2))}


def apply_and_loss(params, key, width):
  x = jax.random.normal(key, (64, 8))
  first = x @ params["first"]
  second = jax.nn.relu(first) @ params["second"]
  logits = jax.nn.relu(second) @ params["readout"]
  loss = jnp.mean((logits - jnp.tanh(x[:, :2]))**2)
  return loss, {"first": first, "second": second, "logits": logits}


def test_it_tells_right_from_wrong():
  base = init(jax.random.key(0), 16)
  delta = init(jax.random.key(0), 32)
  # One optimizer serves all widths: its multipliers follow from shapes.
  right = mulo.coord_check(
      init, apply_and_loss, scaling.mu_adamw(
          0.02, base, delta_shapes=delta, eps=1e-12), WIDTHS,
      steps=(1, 2, 5), kinds={"first": "input"}, limits={"input": (-0.1, 0.1)})
  assert right.passed, right.table()
  assert right.layers["second"].kind == "hidden"
  assert right.layers["logits"].kind == "output"
  assert right.layers["second"].change.shape == (3, 3, 3)
  assert right.layers["second"].size.shape == (3, 3, 4)
  assert right.loss.shape == (3, 3, 5)
  assert np.mean(right.loss[..., -1]) < 0.9 * np.mean(right.loss[..., 0])
  # Behind a readout of zeros, nothing changes in step 1, which is not judged.
  assert np.isnan(right.layers["second"].fits[1].slope)
  wrong = mulo.coord_check(
      init, apply_and_loss, lambda width: optax.adam(0.02), WIDTHS,
      seeds=2, steps=(2,))
  assert not wrong.passed
  assert wrong.layers["second"].fits[2].slope > 0.4
  assert wrong.layers["logits"].fits[2].slope > 0.6
  assert wrong.table().count("FAIL") == 2 and "| PASS |" in wrong.table()


@pytest.mark.parametrize("make, plain, rate", [
    (scaling.mu_sgd, optax.sgd, 0.3), (scaling.mu_lion, optax.lion, 0.02),
    (scaling.mu_muon, optax.contrib.muon, 0.05)])
def test_other_optimizers_of_optax(make, plain, rate):
  base, delta = (init(jax.random.key(0), n) for n in (16, 32))
  under_mup, standard = [mulo.coord_check(
      init, apply_and_loss, tx, WIDTHS, steps=(2,), kinds={"first": "input"},
      limits={"input": (-0.15, 0.15), "hidden": (-0.15, 0.15)})
                         for tx in (
                             make(rate, base,
                                  delta_shapes=delta),
                             plain(rate))]
  assert under_mup.passed, under_mup.table()
  assert not standard.passed, standard.table()


def attention(scale):
  """Return `init` and `apply_and_loss` of attention with two growing heads.

  Args:
    scale: `(head size) -> multiplier of the attention logits`.
  """
  names = ("q", "k", "v", "o")

  def init(key, width):
    keys = jax.random.split(key, 5)
    params = {name: jax.random.normal(k, (width, width)) / width**0.5
              for name, k in zip(names, keys)}
    return params | {"embed": jax.random.normal(keys[4], (8, width)) / 8**0.5,
                     "readout": jnp.zeros((width, 2))}

  def apply_and_loss(params, key, width):
    tokens = jax.random.normal(key, (32, 6, 8))
    x = tokens @ params["embed"]
    norm = lambda x: x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True))
    q, k, v = ((norm(x) @ params[name]).reshape(32, 6, 2, width // 2)
               for name in names[:3])
    logits = scale(width // 2) * jnp.einsum("bqhd,bkhd->bhqk", q, k)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
    x = x + mixed.reshape(x.shape) @ params["o"]
    out = norm(x) @ params["readout"]
    target = jnp.max(tokens[..., :2], 1, keepdims=True)
    return jnp.mean((out - target)**2), {
        "stream": x, "attention": logits, "logits": out}

  return init, apply_and_loss


@pytest.mark.parametrize("name, scale", [
    ("over size", lambda d: scaling.attention_mult(d, 8)),
    ("over its root", lambda d: d**-0.5)])
def test_attention_logits_of_heads_that_grow_in_size(name, scale):
  init, apply_and_loss = attention(scale)
  base, delta = (jax.eval_shape(lambda: init(jax.random.key(0), n))
                 for n in (16, 32))
  report = mulo.coord_check(
      init, apply_and_loss, scaling.mu_adamw(
          0.01, base, eps=1e-12, delta_shapes=delta),
      (16, 64, 256), steps=(2, 5), kinds={"attention": "attention"})
  slope = report.layers["attention"].fits[2].slope
  if name == "over size":
    assert report.passed, report.table()
  else:
    assert slope > 0.3 and not report.passed
    assert not report.layers["logits"].reasons  # the logits do not show it


def check_mlp(opt_fn, parametrization, widths=(32, 128, 512)):
  """Return the report on an MLP, and its slopes by kind and step."""
  if isinstance(parametrization, str):
    parametrization = parametrizations.get(parametrization)
  report = coord_check.check(
      opt_fn, parametrization, {"name": "mlp", "depth": 2}, "width", widths, 2,
      (2, 5), None, lambda size: None)
  return report, {
      layer.kind: {step: fit.slope for step, fit in layer.fits.items()}
      for layer in report.layers.values()}


def test_a_learned_optimizer_with_random_weights():
  opt_fn, parametrization = coord_check.opt_fn_of(
      "adafac_mlp", settings={"hidden": 4})
  assert parametrization == "mup"
  _, slopes = check_mlp(opt_fn, parametrization, (32, 256))
  for kind, floor in (("input", -0.2), ("hidden", -0.2), ("output", -0.3)):
    for slope in slopes[kind].values():
      assert floor <= slope <= 0.1, (kind, slope)


def aligned(rate):
  """Return an `opt_fn` whose updates have the signs of the momentum."""
  return lambda theta, *, num_steps=None: optax.chain(
      optax.scale_by_adam(eps=1e-16), optax.stateless(
          lambda updates, params: jax.tree.map(
              lambda x: -rate * jnp.tanh(x), updates)))


def test_updates_that_are_aligned_with_gradients():
  """Only muP passes, not a subset of its multipliers."""
  report, slopes = check_mlp(aligned(0.05), "mup")
  assert report.passed, report.table()
  assert abs(slopes["hidden"][5]) < 0.05
  # The slope of a line through three widths is that of its ends.
  ends = (32, 512)
  _, slopes = check_mlp(aligned(0.01), "standard", ends)
  assert slopes["hidden"][2] > 0.4
  _, slopes = check_mlp(aligned(0.3), "standard_per_layer", ends)
  assert abs(slopes["hidden"][2]) < 0.2
  hidden_alone = parametrizations.get("standard")._replace(
      update_mult=parametrizations.get("mup").update_mult,
      needs_base_shapes=True)
  _, slopes = check_mlp(aligned(0.05), hidden_alone, ends)
  assert abs(slopes["hidden"][2]) < 0.2
  assert slopes["output"][2] > 0.4


def test_scaled_gradients_stay_above_epsilons():
  """The published epsilons stop wide layers; scaled gradients move them again.
  """
  lopt, theta = epsilon_study.optimizer("as published", "normalised gradient")
  plain, scaled = [coord_check.check(
      lambda _, **settings: lopt.opt_fn(theta), parametrizations.get("mup"),
      {"name": "mlp", "depth": 2}, "width", (64, 256), 3, (2,), None,
      lambda size: None, scale).layers["layer_1"].fits[2].slope
                   for scale in (False, True)]
  assert plain < -1 and abs(scaled) < 0.3, (plain, scaled)


def test_fit():
  sizes = np.array([64, 128, 256, 512])
  line = 3.0 * np.stack([sizes**0.5, sizes**0.5], 1)
  np.testing.assert_allclose(
      coord_check_lib.fit(sizes, line), (0.5, 0, 0), atol=1e-6)
  bent = line * np.array([1, 1, 1, 2])[:, None]
  assert coord_check_lib.fit(sizes, bent).residual > 0.25
  assert coord_check_lib.fit(sizes, line * [[0.9, 1.1]]).error > 0
  for bad in (0, np.nan):
    assert np.isnan(coord_check_lib.fit(sizes, line * bad).slope)


@pytest.mark.parametrize("slope, residual, step, words", [
    (0.05, 0.1, 2, ""), (0.3, 0.1, 2, "slope +0.30"), (0.3, 0.1, 1, ""),
    (0.05, 0.3, 2, "off the line"), (np.nan, np.nan, 2, "not finite")])
def test_verdicts(slope, residual, step, words):
  layer = coord_check_lib.Layer(
      "hidden", (-0.1, 0.1), np.ones((2, 1, 1)), np.ones((2, 1, 2)),
      {step: coord_check_lib.Fit(slope, 0.01, residual)})
  assert words in " ".join(layer.reasons) and bool(layer.reasons) == bool(words)
  report = mulo.CoordCheckReport(
      "width", (1, 2), {"h": layer}, np.ones((2, 1, 1)))
  assert report.passed == (not words)
  assert ("FAIL" in report.table()) == bool(words)


@pytest.mark.parametrize("settings, message", [
    ({"widths": (32, 16)}, "increasing"), ({"steps": ()}, "at least 2, got"),
    ({"steps": (1,)}, "at least 2, got"), ({"steps": (0, 2)}, "at least 1"),
    ({"kinds": {"third": "input"}}, "'third', which is not a layer"),
    ({"kinds": {"second": "middle"}}, "is 'middle', which has no limits")])
def test_errors(settings, message):
  """Errors are raised before any network is trained."""

  def fail(width):
    raise AssertionError(f"Trained at width {width}.")

  with pytest.raises(ValueError, match=message):
    mulo.coord_check(init, apply_and_loss, optax.sgd(0.1), **{
        "widths": (16, 32), "on_width": fail, **settings})


@pytest.mark.parametrize("axis", ["width", "depth"])
def test_no_common_layer(axis):

  def renamed(params, key, width):
    loss, layers = apply_and_loss(params, key, width)
    return loss, {f"{name} {width}": x for name, x in layers.items()}

  with pytest.raises(ValueError, match="No layer is in"):
    mulo.coord_check(init, renamed, optax.sgd(0.1), (16, 32), axis=axis)


def test_depth_has_its_own_kind_and_limits():
  """A layer of fixed size is an output along width, but not along depth."""
  report = mulo.coord_check(
      lambda key, depth: init(key, 4), apply_and_loss, optax.sgd(0.1), (1, 2),
      seeds=1, steps=(2,), axis="depth")
  assert {(x.kind, x.limits) for x in report.layers.values()} == {
      ("hidden", (-0.2, 0.2))}


@pytest.mark.parametrize("name, settings, expected", [
    ("mlp", {"width": 8, "depth": 2}, {
        "layer_0": "input", "layer_1": "hidden", "output": "output"}),
    ("vit", {"width": 8, "depth": 1}, {
        "Dense_0": "input", "Block_0/Dense_3": "hidden", "Block_0": "hidden",
        "Block_0/attention": "attention", "Dense_1": "output",
        "output": "output"}),
    ("conv", {"width": 8}, {
        "Conv_0": "input", "Conv_1": "hidden", "Dense_0": "output"}),
    ("transformer_lm", {"width": 8, "length": 4}, {
        "Block_0/LayerNorm_1": "hidden", "Dense_0": "output"})])
def test_layers_of_tasks(name, settings, expected):
  task = families.get(name, parametrizations.get("mup"), **settings)

  def layers(key):
    batch = task.sample_batch(key, jax.tree.map(
        jnp.asarray, task.data["train"]))
    return task.activations(task.init(key), batch)

  shapes = jax.eval_shape(layers, jax.random.key(0))
  kinds = coord_check.kinds_of(task, list(shapes))
  assert expected.items() <= kinds.items(), kinds
  ends = coord_check.ends(dict.fromkeys(
      ("layer_0", "layer_2", "layer_10", "output", "Block_3/Dense_0"), 0))
  assert sorted(ends) == ["first layer", "last layer", "output"]


def test_depth_in_tasks():
  """Multipliers are on the branch, and on the updates of its parameters."""
  networks = {}
  for name in ("mup", "depth_mup", "completep"):
    parametrization = parametrizations.get(name)
    task = families.get(
        "mlp", parametrization, width=4, depth=5, residual=True)
    params = task.init(jax.random.key(0))
    tx = unroll.scaled(
        lambda theta, **_: optax.identity(), parametrization, task)(None)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    batch = {"image": jnp.ones((1, 8, 8, 1))}
    networks[name] = updates, task.activations(params, batch)
  plain, plain_layers = networks["mup"]
  for name, branch_mult, update_mult in (
      ("depth_mup", 0.5, 0.5), ("completep", 0.25, 1)):
    updates, layers = networks[name]
    for i in range(6):
      inside = 1 <= i <= 4
      for leaf in "wb":
        np.testing.assert_allclose(
            updates[f"layer_{i}"][leaf],
            (update_mult if inside else 1) * plain[f"layer_{i}"][leaf],
            rtol=1e-6)
    np.testing.assert_allclose(
        layers["layer_0"], plain_layers["layer_0"], rtol=1e-6)
    np.testing.assert_allclose(
        layers["layer_1"] - layers["layer_0"],
        branch_mult * (plain_layers["layer_1"] - plain_layers["layer_0"]),
        rtol=1e-4, atol=1e-6)


def asked(tmp_path, **flags):
  """Return flags of the command, with defaults for all others."""
  return types.SimpleNamespace(**{
      "workdir": str(tmp_path), "optimizer": "adam", "optimizer_settings": [],
      "parametrization": None, "control": None, "with_control": True,
      "task": "mlp", "settings": ["batch_size=16", "depth=2"], "axis": "width",
      "sizes": ["8", "16"], "seeds": 1, "steps": ["1", "2"],
      "learning_rate": None, "control_learning_rate": None, "data_dir": None,
      "scale_gradients": False, "trust": [],
      **flags})


def test_a_learning_rate_of_zero_is_not_the_default():
  tx = coord_check.opt_fn_of("adam", 0.0)[0](None)
  updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
  np.testing.assert_array_equal(updates, 0)


def test_command(tmp_path, capsys):
  status = coord_check.main(asked(
      tmp_path, parametrization="standard", with_control=False))
  out = capsys.readouterr().out
  assert f"adam under standard: {'FAIL' if status else 'PASS'}" in out
  assert (tmp_path / "check.png").read_bytes()[:4] == b"\x89PNG"
  rows = pd.read_csv(tmp_path / "check.csv")
  assert set(rows.layer) == {"layer_0", "layer_1", "output"}
  assert len(rows) == 3 * 2 * 2  # layers, steps, sizes


@pytest.mark.parametrize("slope, of_control, status", [
    (0.0, 0.9, 0), (0.9, 0.9, 1), (0.0, 0.0, 2), (0.9, 0.0, 2)])
def test_exit_status(tmp_path, monkeypatch, slope, of_control, status):
  """The status is 0 only if the check passes and the control fails."""

  def check(opt_fn, parametrization, section, axis, sizes, *args):
    ones = np.ones((len(sizes), 1, 1))
    layer = coord_check_lib.Layer("hidden", (-0.1, 0.1), ones, np.ones(
        (len(sizes), 1, 2)), {2: coord_check_lib.Fit(
            slope if parametrization.needs_base_shapes else of_control, 0, 0)})
    return mulo.CoordCheckReport(axis, sizes, {"h": layer}, ones)

  monkeypatch.setattr(coord_check, "check", check)
  assert coord_check.main(asked(tmp_path, steps=["2"])) == status


@pytest.mark.parametrize("flags, message", [
    ({"optimizer": "adamm"}, "neither a file nor"),
    ({"task": "quadratic", "settings": []}, "no layers to look at|not take"),
    ({"optimizer_settings": ["hidden=4"]}, "takes no settings"),
    ({"scale_gradients": True, "axis": "depth"}, "is for width"),
    ({"sizes": ["8"]}, "at least two")])
def test_errors_of_the_command(tmp_path, flags, message):
  with pytest.raises((ValueError, OSError), match=message):
    coord_check.main(asked(tmp_path, **flags))
