"""Tasks: the contract of every task, and properties of some families."""

import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from learned_opt.scaling import fan
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles
from meta_train import unroll
from tasks import base
from tasks import families
from tasks import layers
from tasks import normalizers
from tasks import text_tasks
from tasks.families import conv_lm
from tasks.families import gated_transformer
from tasks.families import rnn_lm
from tasks.families import transformer_lm

MUP, STANDARD = (parametrizations.get(n) for n in ("mup", "standard"))
needs_files = pytest.mark.skipif(
    not os.environ.get("MULO_DATA_DIR"),
    reason="MULO_DATA_DIR, the folder of data sets, is not set")
SMALL = {  # settings that make a family fast
    "autoencoder": {"width": 16}, "contrastive": {"width": 8},
    "conv": {"width": 8}, "conv_lm": {"width": 16, "length": 8},
    "deep_sets": {"width": 16},
    "denoising": {"width": 16}, "diffusion": {"width": 4, "batch_size": 16},
    "gated_transformer": {"width": 16, "length": 8}, "image_rnn": {"width": 16},
    "mixer": {"width": 16}, "mlp": {"width": 16},
    "poisson": {"width": 16}, "resnet": {"width": 4, "batch_size": 16},
    "rnn_lm": {"width": 16, "length": 8},
    "separable": {"width": 8},
    "siren": {"width": 16}, "table_mlp": {"width": 16},
    "table_transformer": {"width": 16, "batch_size": 16},
    "transformer_lm": {"width": 16, "length": 8},
    "vae": {"width": 16}, "vit": {"width": 16, "batch_size": 16}}
VARIANTS = [
    *[(name, SMALL.get(name, {})) for name in families.names()],
    *[(name, SMALL.get(name, {}) | settings) for name, settings in (
        ("conv", {"pooling": "max", "norm": "layer"}),
        ("conv", {"pooling": "average", "activation": "silu", "depth": 3}),
        ("conv", {"pooling": "none", "norm": "group", "init_scale": 2.0}),
        ("gated_transformer", {"depth": 2, "tied": True}),
        ("mlp", {"depth": 3, "activation": "tanh", "label_noise": 0.1}),
        ("resnet", {"depth_exponent": 1.0, "norm": "rms", "stages": 1}),
        ("rnn_lm", {"cell": "lstm", "depth": 2}),
        ("table_mlp", {"dataset": "scales", "standardize": False,
                       "depth": 2, "norm": "layer"}),
        ("transformer_lm", {"positions": "learned", "tied": True}),
        ("vit", {"depth_exponent": 0.5, "depth": 2, "patch": 4}))]]
label = lambda x: x if isinstance(x, str) else ",".join(
    f"{k}={v}" for k, v in x.items())
variants = pytest.mark.parametrize("name, settings", VARIANTS, ids=label)
# Under the standard parametrization, one family of each kind of data.
CASES = [(*x, "mup") for x in VARIANTS] + [
    (name, SMALL.get(name, {}), "standard") for name in (
        "conv", "mlp", "quadratic", "table_mlp", "transformer_lm", "vit")]
every_family = pytest.mark.parametrize("name", families.names())


def batch_of(task, seed=1):
  return task.sample_batch(
      jax.random.key(seed), jax.device_put(task.data["train"]))


@pytest.mark.parametrize("name, settings, parametrization", CASES, ids=label)
def test_every_task(name, settings, parametrization):
  parametrization = parametrizations.get(parametrization)
  task = families.get(name, parametrization, **settings)
  assert set(task.data) == set(base.SPLITS)
  keys = jax.random.split(jax.random.key(0), 2)
  many = jax.jit(jax.vmap(task.init))(keys)
  params = jax.tree.map(lambda x: x[1], many)
  # A seed gives the same params under vmap, shown once for each family.
  if parametrization is MUP and settings == SMALL.get(name, {}):
    init = jax.jit(task.init)
    for i, key in enumerate(keys):
      chex.assert_trees_all_close(
          init(key), jax.tree.map(lambda x, i=i: x[i], many), rtol=1e-6)
  assert any(np.any(x[0] != x[1]) for x in jax.tree.leaves(many))
  check_base_shapes(task, params)
  check_init(task, params, settings, parametrization)

  data = jax.device_put(task.data["train"])
  rates = jnp.array([1e-3, 0.03 if parametrization is MUP else 0.01])

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))  # over theta
  def train(params, theta):
    tx = optax.adam(theta)

    def step(carry, key):
      params, state = carry
      (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(
          params, key, task.sample_batch(key, data))
      updates, state = tx.update(grads, state, params)
      largest = jax.tree.map(lambda g: jnp.max(jnp.abs(g)), grads)
      return (optax.apply_updates(params, updates), state), (loss, largest)
    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(
        jax.random.key(1), 60))[1]

  losses, gradients = jax.tree.map(lambda x: x[1], train(params, rates))
  assert losses.dtype == jnp.float32
  if task.chance_loss is not None:
    # Outputs that are not zero at first add their square to a squared error.
    assert 0.7 * task.chance_loss < losses[0] < 4 * task.chance_loss
  # From the third step on, because no gradient passes a readout of zeros.
  jax.tree.map(lambda g: np.testing.assert_array_less(0, g[2]), gradients)
  losses = task.normalize(losses)
  assert np.mean(losses[-10:]) < np.mean(losses[:10])


@variants
def test_roles(name, settings):
  """Roles of the update multipliers are the roles of the initial scales."""
  task = families.get(name, MUP, **settings)
  if task.base_shapes is None:
    return
  params = jax.eval_shape(task.init, jax.random.key(0))
  # Raises if a pattern in `Task.blocks` matches no parameter.
  unroll.scaled(lambda theta, **_: optax.identity(), MUP, task)(None).init(
      params)
  infos = roles.infer(params, task.base_shapes, readout=False)
  bases = roles.by_path(task.base_shapes)
  for path, shape in roles.by_path(params).items():
    assert infos[path].role == fan.role(shape, bases[path]), path
    assert infos[path].fan_in == fan.fan_in(shape, bases[path]), path
  batch = jax.eval_shape(
      task.sample_batch, jax.random.key(0), task.data["train"])
  outputs = jax.eval_shape(task.activations, params, batch)
  assert len(outputs) > 1 and all(x.shape for x in outputs.values())


@pytest.mark.parametrize("name, path, role", [
    ("separable", "Depthwise_0/kernel", "input"),
    ("separable", "Dense_0/kernel", "hidden"),
    ("mixer", "Dense_1/kernel", "fixed"), ("mixer", "Dense_3/kernel", "hidden"),
    ("vae", "Dense_1/kernel", "output"), ("vae", "Dense_3/kernel", "input"),
    ("contrastive", "Dense_1/kernel", "hidden"),
    ("conv_lm", "CausalConv_1/kernel", "hidden"),
    ("diffusion", "Conv_3/kernel", "output"),
    ("factorization", "embed_1", "input"),
    ("table_transformer", "offset", "input")])
def test_roles_of_unusual_layers(name, path, role):
  task = families.get(name, MUP, **SMALL.get(name, {}))
  params = jax.eval_shape(task.init, jax.random.key(0))
  assert roles.infer(
      params, task.base_shapes, readout=False)[path].role == role


@pytest.mark.parametrize("norm", ["none", "group"])
def test_blocks_of_resnets(norm):
  """The patterns in `Task.blocks` match parameters of the network."""
  task = families.get("resnet", MUP, norm=norm, **SMALL["resnet"])
  unroll.scaled(lambda theta, **_: optax.identity(), MUP, task)(None).init(
      jax.eval_shape(task.init, jax.random.key(0)))


def check_base_shapes(task, params):
  """Check that axes of base shapes have equal size or twice the size."""
  if task.base_shapes is None:
    return
  assert jax.tree.structure(params) == jax.tree.structure(task.base_shapes)
  axes = [axis for x, b in zip(
      jax.tree.leaves(params), jax.tree.leaves(task.base_shapes))
          for axis in zip(x.shape, b.shape, strict=True)]
  assert all(b in (n, 2 * n) for n, b in axes)
  assert any(b == 2 * n for n, b in axes)


def check_init(task, params, settings, parametrization):
  """Check the standard deviation of matrices; vectors must be constant."""
  bases = params if task.base_shapes is None else task.base_shapes
  for (path, x), b in zip(jax.tree_util.tree_leaves_with_path(params),
                          jax.tree.leaves(bases), strict=True):
    if x.ndim < 2:
      # The quadratic has a random vector "p".
      assert "p" in path[0].key or np.ptp(x) == 0, path
      continue
    std = settings.get("init_scale", 1.0) * parametrization.init_std(
        x.shape, b.shape)
    assert abs(np.mean(x)) <= 5 * std / x.size**0.5
    assert abs(np.std(x) - std) <= 5 * std / (2 * x.size)**0.5, path


@pytest.mark.parametrize("name", [
    name for name in families.names() if name != "quadratic"])  # no network
def test_bfloat16_is_close(name):
  settings = SMALL.get(name, {})
  full, half = (families.get(name, STANDARD, **settings, compute_dtype=dtype)
                for dtype in ("float32", "bfloat16"))
  params = jax.jit(full.init)(jax.random.key(0))
  values = [jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
      params, jax.random.key(2), batch_of(task)) for task in (full, half)]
  ((loss, _), grads), ((half_loss, _), half_grads) = values
  assert half_loss.dtype == jnp.float32 and loss != half_loss
  np.testing.assert_allclose(half_loss, loss, rtol=0.03)
  for g, h in zip(jax.tree.leaves(grads), jax.tree.leaves(half_grads)):
    assert h.dtype == jnp.float32
    cosine = jnp.vdot(g, h) / (jnp.linalg.norm(g) * jnp.linalg.norm(h))
    assert cosine > 0.97


def test_readout_under_mup_is_divided_by_width():
  for name, layer, kind in (
      ("mlp", "layer_2", "w"), ("vit", "Dense_1", "kernel")):
    tasks = [families.get(name, p, width=32) for p in (MUP, STANDARD)]
    params = jax.jit(tasks[1].init)(jax.random.key(0))
    scaled = jax.tree.map(lambda x: x, params)
    scaled[layer][kind] = 32 * params[layer][kind]
    # The two parametrizations also differ in the scale of attention logits,
    # which has no effect on logits of zero.
    if name == "vit":
      for tree in (params, scaled):
        tree["Block_0"]["Dense_0"]["kernel"] *= 0
    batch = batch_of(tasks[0])
    losses = [jax.jit(t.loss)(p, None, batch)[0]
              for t, p in zip(tasks, (scaled, params))]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_attention_logits():
  """The scale is 1 / head size under muP, otherwise 1 / sqrt(head size)."""
  tasks = [families.get("vit", p, width=16, head_size=4)
           for p in (MUP, STANDARD)]
  params = jax.jit(tasks[1].init)(jax.random.key(0))
  params["Dense_1"]["kernel"] *= 0  # the readout
  halved = jax.tree.map(lambda x: x, params)
  halved["Block_0"]["Dense_0"]["kernel"] *= 0.5  # of the queries
  # The gradient of the readout depends on the activations that it reads, and so
  # on the attention.
  gradient = lambda task, params: jax.jit(jax.grad(
      lambda p: task.loss(p, None, batch_of(tasks[0]))[0]))(
          params)["Dense_1"]["kernel"]
  mup, standard = (gradient(task, params) for task in tasks)
  # Under muP, the readout and so its gradient are divided by the width, 16.
  assert not np.allclose(16 * mup, standard, rtol=1e-3)
  # 1 / 4 is half of 1 / sqrt(4).
  np.testing.assert_allclose(
      16 * mup, gradient(tasks[1], halved), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make, settings", [
    (transformer_lm.make, {}), (transformer_lm.make, {"positions": "learned"}),
    (rnn_lm.make, {"cell": "lstm"}), (gated_transformer.make, {}),
    (conv_lm.make, {})])
def test_language_models_do_not_look_ahead(make, settings):
  network = make.__wrapped__(
      STANDARD, text_tasks.load(length=8), width=16, **settings)
  params = network.init(jax.random.key(0))
  token = jnp.arange(16).reshape(2, 8)
  apply = jax.jit(network.apply)
  logits, changed = (
      apply(params, x) for x in (token, token.at[:, 5].set(99)))
  np.testing.assert_allclose(
      logits[:, :5], changed[:, :5], rtol=1e-5, atol=1e-6)
  assert np.all(np.max(np.abs(logits - changed)[:, 5:], -1) > 1e-4)


def test_rotary_depends_on_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  tile = lambda x: layers.rotate(jnp.tile(x, (1, 6, 1, 1)))[0, :, 0]
  logits = tile(q) @ tile(k).T  # [6, 6], the same vectors at every position
  for shift in range(-3, 4):
    diagonal = jnp.diagonal(logits, shift)
    np.testing.assert_allclose(diagonal, diagonal[0] * jnp.ones_like(diagonal),
                               rtol=1e-4, atol=1e-5)
  assert not np.allclose(logits[0], logits[0, 0])


@pytest.mark.parametrize("stride, size", [(1, 5), (2, 5), (2, 8), (2, 1)])
def test_convolution_as_a_product(stride, size):
  x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
  expected = jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(1, 1), (1, 1)],
      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  np.testing.assert_allclose(
      layers.Conv(4, stride).product(x, kernel), expected, rtol=1e-4,
      atol=1e-5)


@every_family
def test_optimum(name):
  task = families.get(name, STANDARD, **SMALL.get(name, {}))
  assert (task.optimum is None) == (
      name not in ("quadratic", "logistic_regression"))
  if task.optimum is None:
    return
  best = task.optimum()
  split = task.data["train"]
  everything = {} if not split else {
      "image": jnp.asarray(split["image"], jnp.float32) / 16,
      "label": split["label"]}
  loss = jax.jit(lambda params: task.loss(params, None, everything)[0])
  gradient = optax.tree.norm(jax.grad(loss)(best))
  start = task.init(jax.random.key(0))
  assert gradient < 1e-4 * optax.tree.norm(jax.grad(loss)(start))
  noise = jax.tree.map(lambda x: 0.01 * x, start)
  assert loss(best) < loss(jax.tree.map(jnp.add, best, noise))
  assert loss(best) < 0.5 * loss(start)


def test_quadratic_under_gradient_descent():
  task = families.get("quadratic", None, dim=3, condition=3.0)
  params = task.init(jax.random.key(0))
  start = np.asarray(params["p"])
  grad = jax.jit(jax.grad(lambda p: task.loss(p, None, {})[0]))
  for _ in range(5):
    params = {"p": params["p"] - 0.3 * grad(params)["p"]}
  expected = (1 - 0.3 * np.array([0.5, 1.0, 1.5]))**5 * start
  np.testing.assert_allclose(params["p"], expected, rtol=1e-5)


def test_normalizers():
  losses = jnp.array([-1.0, 0.5, 100.0, jnp.inf, jnp.nan])
  worst = 1.5 * np.log(10)
  task = families.get("mlp", MUP, width=4)
  np.testing.assert_allclose(
      task.normalize(losses), [0, 0.5, worst, worst, worst], rtol=1e-6)
  auto = families.get("autoencoder", MUP, width=4)
  np.testing.assert_allclose(
      auto.normalize(auto.chance_loss * losses),
      [0, 0.5, 1.5, 1.5, 1.5], rtol=1e-6)
  free = families.get("quadratic", None).normalize
  np.testing.assert_array_equal(free(losses), losses)
  scaled = normalizers.Normalizer(-2.0, 1.0, 0.5, 10.0, log=True)
  np.testing.assert_allclose(
      scaled(jnp.array([-1.0, 0.0, 1.0, jnp.e, 9.0, jnp.nan])),
      [-25, -25, -5, 5, 5, 5], rtol=1e-6)
  log = normalizers.log_bounded(2.0)
  np.testing.assert_allclose(
      log(jnp.array([0.0, 0.01, 0.2, 2.0, 9.0, jnp.nan])),
      np.log([0.01, 0.01, 0.1, 1.0, 1.5, 1.5]), rtol=1e-5, atol=1e-6)
  slope = jax.grad(lambda x: jnp.sum(scaled(x)))(losses)
  assert np.all(np.isfinite(slope))
  slope = jax.grad(lambda x: jnp.sum(task.normalize(x)))(losses)
  assert np.all(np.isfinite(slope))


def test_family_of_another_module():
  task = families.get("tasks.families.quadratic:make", None, dim=2)
  assert task.init(jax.random.key(0))["p"].shape == (2,)
  task = families.get("tasks.families.mlp:make", MUP, width=8, dataset="digits")
  assert task.base_shapes["layer_1"]["w"].shape == (16, 16)


@pytest.mark.parametrize("name, settings, message", [
    ("mpl", {}, "available: " + ", ".join(families.names())),
    ("quadratic", {"width": 3},
     "does not take the settings .*; its settings are dim, condition"),
    ("vit", {"widht": 3}, "'widht'; its settings are width, depth, patch"),
    ("tasks.base:make", {}, "cannot be imported"),
    ("mlp", {"width": 0}, "width must be a whole number of at least 1, got 0"),
    ("mlp", {"batch_size": 0}, "batch_size must be a whole"),
    ("mlp", {"activation": "swish"}, "available: relu, gelu"),
    ("mlp", {"dataset": "minst"}, "available: cifar10, cifar100, digits"),
    ("mlp", {"compute_dtype": "int8"}, "available: float32, bfloat16"),
    ("autoencoder", {"width": 4, "squeeze": 8}, "squeeze .8. must be at most"),
    ("conv", {"pooling": "avg"}, "available: stride, max"),
    ("resnet", {"norm": "batch"}, "available: none, layer"),
    ("vit", {"width": 12}, "must be a multiple of head_size"),
    ("transformer_lm", {"width": 9, "head_size": 3}, "an even head_size"),
    ("conv", {"width": 2.5}, "whole number of at least 1, got 2.5"),
    ("vit", {"patch": 3}, "must divide height and width"),
    ("transformer_lm", {"positions": "sine"}, "available: learned, rotary"),
    ("rnn_lm", {"cell": "mlp"}, "available: gru, lstm"),
    ("image_rnn", {"cell": "mlp"}, "available: gru, lstm"),
    ("mixer", {"patch": 3}, "must divide height and width"),
    ("siren", {"frequency": 0.0}, "frequency must be positive, got 0.0"),
    ("vae", {"sigma": 0.0}, "sigma must be positive, got 0.0"),
    ("denoising", {"corruption": -1.0}, "be negative, got -1.0"),
    ("contrastive", {"batch_size": 1}, "batch_size of at least 2"),
    ("contrastive", {"temperature": 0.0}, "temperature must be positive"),
    ("deep_sets", {"point_size": 5}, "must divide the number of inputs, 48"),
    ("factorization", {"dataset": "wine"}, "inputs of this table are not ids"),
    ("table_mlp", {"dataset": "whine"}, "available: breast_cancer, china"),
    ("rnn_lm", {"length": 0}, "length must be a whole"),
    ("logistic_regression", {"decay": 0.0}, "decay must be positive")])
def test_errors(name, settings, message):
  with pytest.raises(ValueError, match=message):
    families.get(name, MUP, **settings)
