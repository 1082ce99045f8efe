"""Published optimizers against vectors from their own implementations."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.optimizers import adafac_mlp
from learned_opt.optimizers.shared import loss_features
from learned_opt.update import accumulators
from learned_opt.update import features as features_lib
import mulo
from mulo import _published_layouts as published_layouts

GOLDEN = pathlib.Path(__file__).parent / "golden"
LO = "learned_optimization/"
ROUNDING = 3e-4  # of the parameters, in steps of 0.001
EXACT = 2e-5

# Settings that published files of VeLO do not show.
VELO = {"use_bugged_loss_features": False, "use_bugged_next_lstm_state": False}
# Files in a published layout: the layout, settings that the file does not show,
# and the largest deviation relative to the movement. Any other file holds
# "optimizer" and "settings" (JSON), and has this project's names in theta.
FILES = {
    "mlp_lopt": (f"{LO}mlp_lopt", {}, ROUNDING),
    "adafac_mlp_lopt_h4": (
        f"{LO}adafac_mlp_lopt", {"step_mult": 0.001}, ROUNDING),
    "adafac_mlp_lopt_h32_step0.01": (
        f"{LO}adafac_mlp_lopt", {"step_mult": 0.01}, EXACT),
    "velo_lstm16_bank8": (f"{LO}hyper_v2", VELO, EXACT),
    "celo2_base": ("celo2", {"step_mult": 1.0, "newton_schulz": 0}, EXACT),
    "celo2_orthogonalized": ("celo2", {"step_mult": 1.0}, EXACT)}


def read(path):
  """Return (arrays by the first part of their names, transformation)."""
  with np.load(path) as file:
    arrays = dict(file)
  part = lambda prefix: {
      k.removeprefix(f"{prefix}/"): v for k, v in arrays.items()
      if k.startswith(f"{prefix}/")}
  if path.stem in FILES:
    layout, settings, _ = FILES[path.stem]
    artifact = mulo.convert(part("theta"), layout, **settings)
  else:
    name, settings = str(arrays["optimizer"]), json.loads(
        str(arrays["settings"]))
    artifact = artifact_lib.Artifact(
        name, settings, "standard", artifact_lib.unflatten(
            optimizers.theta_shapes(name, **settings), part("theta")))
  num_steps = int(arrays["num_steps"]) if "num_steps" in arrays else None
  return part, artifact.lopt.opt_fn(artifact.theta, num_steps=num_steps)


def compare(path):
  """Raise AssertionError unless an optimizer repeats the steps in a file."""
  part, tx = read(path)
  params, update = part("params"), jax.jit(tx.update)
  state, start, worst = tx.init(params), params, {}
  # A file holds the parameters after each step, or the steps themselves. In
  # the second case, the parameters stay where they are.
  moves = not part("step/0")
  losses = part("loss")
  for t in range(6):
    loss = losses.get(str(t), 0.0)
    updates, state = update(part(f"grads/{t}"), state, params, value=loss)
    if moves:
      params = optax.apply_updates(params, updates)
      found, expected, zero = params, part(f"after/{t}"), start
    else:
      found = jax.tree.map(jnp.negative, updates)
      expected, zero = part(f"step/{t}"), dict.fromkeys(start, 0)
    for k, x in expected.items():
      difference = np.max(np.abs(np.float64(found[k]) - x))
      movement = np.max(np.abs(np.float64(x) - zero[k]))
      worst.setdefault(k, []).append((difference, movement))
  assert set(worst) == set(start)
  for pairs in worst.values():
    differences, movements = zip(*pairs)
    limit = FILES[path.stem][2] if path.stem in FILES else EXACT
    assert max(differences) <= limit * movements[-1]


@pytest.mark.parametrize("name", sorted(x.stem for x in GOLDEN.glob("*.npz")))
def test_vectors(name):
  compare(GOLDEN / f"{name}.npz")


def test_every_file_is_there():
  assert set(FILES) <= {path.stem for path in GOLDEN.glob("*.npz")}


# Formulas define the vectors below, so these vectors need no files.
PARAMS = {"b": np.float32([0.05, -0.15, 0.25]),
          "w": np.float32([[0.1, -0.2, 0.3], [0.4, -0.5, 0.6]])}
GRADS = {"b": np.float32([0.02, -0.01, 0.03]),
         "w": np.float32([[0.01, -0.02, 0.03], [-0.04, 0.05, -0.06]])}
LOSSES = (2.0, 1.8, 1.9)


def mlp_shapes(weight, bias, *sizes):
  """Return [(name, shape)] of weights and biases, by layer."""
  return [pair for i, shape in enumerate(zip(sizes, sizes[1:])) for pair in (
      (bias.format(i), shape[1:]), (weight.format(i), shape))]


def adafac_shapes(hidden):
  layers = mlp_shapes("nn/~/w{}", "nn/~/b{}", 39, hidden, hidden, 2)
  return [("adafactor_decays", (3,)), ("momentum_decays", (3,)),
          *sorted(layers), ("rms_decays", (1,))]


def velo_shapes(size, bank):
  groups = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
  layers = [("b0", (4,)), ("b1", (4,)), ("b2", (3,)),
            *sorted((f"w0__{i}", (n, 4)) for i, n in enumerate(groups)),
            ("w1", (4, 4)), ("w2", (4, 3))]
  dense = {"linear": (30, size), "linear_1": (30, size),
           "linear_2": (30, size), "rnn/linear": (2 * size, 4 * size),
           "rnn_to_controls": (size, bank), "step_size": (size, 1)}
  return [*[(f"ff_mod_stack/~/{name}", (bank, *shape))
            for name, shape in layers],
          *[(f"lstm_init_state/{name}", (1, size))
            for name in ("hidden", "cell")],
          *[(f"rnn_params/{name}/{kind}", shape[-1:] if kind == "b" else shape)
            for name, shape in dense.items() for kind in "bw"]]


# (layout, names and shapes of theta, b and w after three updates).
FORMULAS = [
    ("mlp_lopt",
     mlp_shapes("mlp/~/linear_{}/w", "mlp/~/linear_{}/b", 19, 32, 32, 2),
     [0.109440, -0.105556, 0.312080],
     [0.147904, -0.159187, 0.358371, 0.465452, -0.479196, 0.676104]),
    ("adafac_mlp_lopt", adafac_shapes(4),
     [0.055777, -0.144840, 0.255569],
     [0.105313, -0.194687, 0.305339, 0.405313, -0.493017, 0.605313]),
    ("adafac_mlp_lopt", adafac_shapes(32),
     [0.087872, -0.125423, 0.284378],
     [0.133319, -0.168681, 0.330295, 0.408420, -0.444660, 0.584820]),
    ("hyper_v2", velo_shapes(4, 2),
     [0.037872, -0.162330, 0.237823],
     [0.073018, -0.227063, 0.273257, 0.372937, -0.526412, 0.572937])]


@pytest.mark.parametrize("layout, shapes, b, w", FORMULAS)
def test_formulas(layout, shapes, b, w):
  theta = {name: 0.1 * np.sin(1.3 * n + 1 + 0.7 * np.arange(
      np.prod(shape))).reshape(shape) for n, (name, shape) in enumerate(shapes)}
  artifact = mulo.convert(theta, LO + layout, step_mult=1.0,
                          **(VELO if layout == "hyper_v2" else {}))
  tx = artifact.lopt.opt_fn(artifact.theta, num_steps=20)
  params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
  for factor, loss in zip((1.0, 0.5, -0.25), LOSSES):
    grads = jax.tree.map(lambda g: np.float32(factor) * g, GRADS)
    updates, state = update(grads, state, params, value=loss)
    params = optax.apply_updates(params, updates)
  for name, x in (("b", b), ("w", w)):
    movement = np.max(np.abs(np.asarray(x) - PARAMS[name].reshape(-1)))
    limit = ROUNDING if movement < 0.01 else EXACT
    np.testing.assert_allclose(  # printed to six digits after the point
        params[name].reshape(-1), x, rtol=0, atol=6e-7 + limit * movement)


def test_loss_features():
  state, found = loss_features.init(), []
  update = jax.jit(loss_features.update)
  for t, loss in enumerate((*LOSSES, 5.0, 1.0)):
    state, features = update(state, loss, t, 20)
    found.append(features[np.array([0, -1])])
  np.testing.assert_allclose(found, [
      [0, 0], [0, 0], [-0.108143, -0.117530], [0.009707, 0.005426],
      [-0.065981, -0.025157]], atol=2e-4)  # differences of nearly equal means


def adafac_features(name):
  """Return features after two updates, raw and normalized; two of [28].

  The features are those of the first element of the parameter.
  """
  decays = adafac_mlp._decays({
      key: jnp.zeros(len(x)) for key, x in adafac_mlp.INITIAL_DECAYS.items()})
  acc, param = accumulators.init(PARAMS[name].shape), PARAMS[name]
  for t, factor in enumerate((1.0, 0.5)):
    grad = jnp.float32(factor) * GRADS[name]
    acc = accumulators.update(acc, grad, decays, t, floor=1e-30)
  features = adafac_mlp._features(grad, param, acc, t)
  element = jnp.concatenate(features_lib.stacked(features, features.inputs))
  row, column = features.row, features.column
  if row is None:
    element, row = element[:-6], element[-6:]
    column = row
  whole = np.zeros((28, *param.shape), np.float32)
  for rows, x in zip(features.layout, (element, row, column)):
    whole[rows] = x
  squares = np.mean(whole**2, tuple(range(1, whole.ndim)))
  first = whole.reshape(28, -1)[:, 0]
  return first, first * features.normalizer(squares)


def test_features_of_adafac_mlp():
  raw, normalized = adafac_features("w")
  np.testing.assert_allclose(raw, [
      5e-3, 0.1, 1.4e-3, 1.49e-4, 1.499e-5, 1.249e-7, 1.319991, 0.1404848,
      0.01413334, 942.8509, 0.9117055, 2.776534, 8.750555, 5.366666e-5,
      5.786666e-6, 5.828666e-7, 9.775e-5, 1.054e-5, 1.06165e-6, 136.4920,
      415.3468, 1298.738, 101.1392, 307.8745, 965.9920, 0.2552775, 0.0827407,
      0.02623416], rtol=2e-5)
  np.testing.assert_allclose(normalized, [
      .2534558, .2567678, .2221196, .04634416, .004739447, 3.949683e-5,
      .4551803, .4551567, .4528381, 1.383999, .6369019, .6369033, .6369034,
      .01693283, .001829857, 1.843186e-4, .03085766, .003332973, 3.357231e-4,
      1.300872, 1.300746, 1.299489, 1.235908, 1.235781, 1.234517, .6368836,
      .6367148, .6350347], rtol=2e-5)
  _, normalized = adafac_features("b")
  factor = [.01454334, .001568486, 1.579874e-4]
  root = [.7424816, .7439149, .7575934]
  np.testing.assert_allclose(normalized, [
      .8885233, .2927198, .639899, .09375147, .009480011, 1.579874e-4, 1.0133,
      1.013213, 1.004731, .9935481, 1.000007, 1.000082, 1.000809, *factor,
      *factor, *root, *root, 1.008073, 1.040691, 1.004731], rtol=2e-5)


def published(name):
  """Return the theta of a file, and its layout."""
  part, _ = read(GOLDEN / f"{name}.npz")
  return part("theta"), FILES[name][0]


@pytest.mark.parametrize("name, change, settings, message", [
    ("mlp_lopt", {"mlp/~/linear_0/w": np.ones((20, 32))}, {},
     r"Expected mlp/~/linear_0/w: \[19, 32\], found .*\[20, 32\]"),
    ("mlp_lopt", {"mlp/~/linear_0/b": np.float32(1)}, {}, "has no axis 0"),
    ("mlp_lopt", {"mlp/~/linear_0/b": "text"}, {}, "not an array of real"),
    ("mlp_lopt", {}, {"hidden": 16}, r"Expected .*\[19, 16\].*, found"),
    ("mlp_lopt", {}, {"accumulator_dtype": "float32"}, "does not take"),
    ("celo2_base", {"ff_mod_stack/~/w0__3": np.ones((1, 8))}, {},
     r"Expected ff_mod_stack/~/w0__3: \[3, 8\], found"),
    ("velo_lstm16_bank8", {"ff_mod_stack/~/w0__3": np.ones((8, 1, 4))}, {},
     r"w0__3: \[8, 3, 4\], found .*w0__3: \[8, 1, 4\]"),
    ("velo_lstm16_bank8", {"rnn_params/linear/w": np.ones((31, 16))}, {},
     r"Expected rnn_params/linear/w: \[30, 16\], found .*\[31, 16\]"),
    ("velo_lstm16_bank8", {}, {"bank": 256}, r"Expected .*\[256, 4\].*, found"),
    ("velo_lstm16_bank8", {"more": np.ones(1)}, {}, r"unexpected: \['more'\]")])
def test_convert_refuses(name, change, settings, message):
  theta, layout = published(name)
  with pytest.raises(ValueError, match=message):
    mulo.convert(theta | change, layout, **settings)


def test_convert_from_torch():
  theta, _ = published("adafac_mlp_lopt_h4")
  decays = {name: theta[name].tolist() for name in theta if "decays" in name}
  torch = {f"network.{layer}.{kind}": theta[f"nn/~/{kind[0]}{i}"].T
           for i, layer in enumerate(("input", "linear_0", "output"))
           for kind in ("weight", "bias")}
  found = mulo.convert(torch, "pylo/meta_mlp", **decays)
  expected = mulo.convert(theta, f"{LO}adafac_mlp_lopt")
  chex.assert_trees_all_equal(found.theta, expected.theta)
  assert found.settings == expected.settings
  with pytest.raises(ValueError, match=r"missing: \['rms_decays'\]"):
    mulo.convert(torch, "pylo/meta_mlp", **{
        k: v for k, v in decays.items() if k != "rms_decays"})
  with pytest.raises(ValueError, match=r"Expected .*rms_decays.*\[1\].*found"):
    mulo.convert(torch, "pylo/meta_mlp", **decays | {"rms_decays": [1.0, 2.0]})


def test_all_published_layouts_are_tested():
  tested = {layout for layout, *_ in FILES.values()} | {
      "pylo/meta_mlp", "nino/wnn"}  # the last one in test_nowcast.py
  assert tested == set(published_layouts.LAYOUTS)
