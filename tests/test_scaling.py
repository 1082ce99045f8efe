"""Multipliers of parametrizations, and optimizers of optax with multipliers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import public_models
import pytest

from learned_opt import optimizers
from learned_opt.scaling import fan
from learned_opt.scaling import multipliers
from learned_opt.scaling import parametrizations
from mulo import scaling

tree = public_models.tree

ROLES = {"input": ((5, 16), (5, 64)), "hidden": ((16, 16), (64, 64)),
         "output": ((16, 3), (64, 3)), "vector": ((16,), (64,))}
SAME = (1, 1, 1, 1, 1, 1)
FIRST, LAST = (1, 1, 1, 4, 1 / 4, 1), (1 / 4, 1, 1 / 4, 1 / 4, 1, 4)
# Multipliers at 4 times the width: init, output, Adam, SGD, eps, decay.
GOLDEN = {
    ("standard", False): {
        "input": SAME, "hidden": (1 / 2, 1, 1, 1, 1, 1),
        "output": (1 / 2, 1, 1, 1, 1, 1), "vector": (*SAME[:5], 0)},
    ("mup", False): {
        "input": FIRST, "hidden": (1 / 2, 1, 1 / 4, 1, 1 / 4, 4),
        "output": LAST, "vector": (*FIRST[:5], 0)},
    ("mup", True): {
        "input": FIRST, "hidden": (1 / 2, 1, 1 / 4, 1, 1 / 4, 4),
        "output": (1, 1 / 4, 1, 4, 1 / 4, 1), "vector": (*FIRST[:5], 0)},
    ("standard_per_layer", False): {
        "input": (1, 1, 1, 2, 1 / 2, 1),
        "hidden": (1 / 2, 1, 1 / 4, 1 / 2, 1 / 2, 4),
        "output": (1 / 2, 1, 1 / 4, 1 / 4, 1, 4),
        "vector": (1, 1, 1, 2, 1 / 2, 0)}}
# Balanced muP differs by constants that do not depend on width; unit-scaled muP
# only moves multipliers between the forward pass, initialisation and updates.
for _name in ("mup_balanced", "depth_mup", "completep", "unit_scaled"):
  GOLDEN[_name, False] = GOLDEN["mup", False]
GOLDEN["unit_scaled", True] = {
    "input": FIRST, "hidden": (1, 1 / 2, 1 / 2, 4, 1 / 8, 2),
    "output": (1, 1 / 4, 1, 4, 1 / 4, 1), "vector": (*FIRST[:5], 0)}


@pytest.mark.parametrize("name, forward", GOLDEN)
def test_golden_multipliers(name, forward):
  bases, shapes = (tree(**{k: v[i] for k, v in ROLES.items()}) for i in (0, 1))
  wide = scaling.multipliers(
      shapes, bases, parametrization=name, forward=forward)
  for role, m in wide.items():
    assert numbers(m) == pytest.approx(GOLDEN[name, forward][role]), role
  at_base = scaling.multipliers(
      bases, bases, delta_shapes=shapes, forward=forward, parametrization=name)
  for role, m in at_base.items():
    assert m == (1, 1, 1, 1, role != "vector")


def numbers(m: scaling.Multipliers) -> tuple[float, ...]:
  """The multipliers in the order of GOLDEN."""
  return (m.std, m.output, m.update, m.update / m.gradient, m.gradient, m.decay)


def symmetric():
  """Table 9 of Tensor Programs V: muP, all exponents of width 1/2 or -1/2.

  Hidden matrices are as in muP.
  """

  def by_width(of_width):
    def scale(shape, base_shape):
      role = fan.role(shape, base_shape)
      n = fan.fan_in(shape, base_shape) if role == "output" else (
          fan.fan_out(shape, base_shape))
      return of_width(n, role)
    return scale

  mup = parametrizations.get("mup")
  hidden = lambda of_hidden, of_width: lambda shape, base_shape: (
      of_hidden if fan.role(shape, base_shape) == "hidden" else (
          by_width(of_width)))(shape, base_shape)
  root = lambda n, role: n**-0.5
  return mup._replace(
      init_std=hidden(mup.init_std, root),
      output_mult=hidden(mup.output_mult, lambda n, role: n**(
          -0.5 if role == "output" else 0.5)),
      update_mult=hidden(mup.update_mult, root),
      gradient_scale=hidden(mup.gradient_scale, root))


def test_golden_multipliers_of_table_9():
  bases, shapes = (tree(**{k: v[i] for k, v in ROLES.items()}) for i in (0, 1))
  wide = scaling.multipliers(
      shapes, bases, parametrization=symmetric(), forward=True)
  first = (1 / 2, 2, 1 / 2, 1, 1 / 2)
  expected = {
      "input": (*first, 2), "vector": (*first, 0),
      "hidden": GOLDEN["mup", True]["hidden"],
      "output": (1 / 2, 1 / 2, 1 / 2, 1, 1 / 2, 2)}
  for role, m in wide.items():
    assert numbers(m) == pytest.approx(expected[role]), role


@pytest.mark.parametrize("name, settings, branch, update, gradient", [
    ("mup", {}, 1, 1, 1), ("depth_mup", {}, 1 / 2, 1 / 2, 1 / 2),
    ("completep", {}, 1 / 4, 1, 1 / 4),
    ("completep", {"alpha": 0.5}, 1 / 2, 1 / 2, 1 / 2),
    ("unit_scaled", {}, 1 / 2, 1 / 2, 1 / 2)])
def test_golden_multipliers_of_depth(
    name, settings, branch, update, gradient):
  parametrization = parametrizations.get(name, **settings)
  bases, shapes = (tree(**{k: v[i] for k, v in ROLES.items()}) for i in (0, 1))
  overrides = {"hidden": scaling.Override(depth=8)}
  mults = scaling.multipliers(
      shapes, bases, parametrization=parametrization, base_depth=2,
      overrides=overrides)
  assert scaling.branch_mult(
      8, 2, parametrization=parametrization) == branch
  assert mults["hidden"].update == pytest.approx(update / 4)
  assert mults["hidden"].gradient == pytest.approx(gradient / 4)
  assert mults["input"].update == 1 and mults["output"].gradient == 1


def test_branches_of_unit_scaled_mup():
  """One multiplier for all branches equals the published ones, through norms.
  """
  depth = 3
  weights = jax.random.normal(jax.random.key(0), (2 * depth, 8, 8))
  norm = lambda x: x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True))
  x = published = jax.random.normal(jax.random.key(1), (4, 8))
  mult = parametrizations.get("unit_scaled").branch_mult(depth)
  for i, w in enumerate(weights):
    tau = (depth + i)**-0.5
    root = (1 + tau**2)**0.5
    published = published / root + tau / root * (norm(published) @ w)
    x = x + mult * (norm(x) @ w)
  assert not np.allclose(x, published, rtol=0.1)
  np.testing.assert_allclose(norm(x), norm(published), rtol=1e-5)


def params_of(key, n):
  keys = jax.random.split(key, 3)
  return {k: jax.random.normal(key, shape) * shape[0]**-0.5
          for k, key, shape in zip(
              ("input", "hidden", "output"), keys, ((5, n), (n, n), (n, 3)))
          } | {"vector": jnp.zeros(n)}


def outputs(params, x, mults=None):
  params = params | {k: mult * params[k] for k, mult in (mults or {}).items()}
  h = jnp.tanh(x @ params["input"] + params["vector"][None])
  return jnp.tanh(h @ params["hidden"]) @ params["output"]


BASE, WIDE = 16, 64  # so that multipliers are powers of two
OPTIMIZERS = {
    "adamw": functools.partial(scaling.mu_adamw, 0.03, weight_decay=0.1),
    "sgd": functools.partial(scaling.mu_sgd, 0.3, momentum=0.9),
    "lion": functools.partial(scaling.mu_lion, 0.03, weight_decay=0.1)}


def losses(tx, params, mults=None, steps=20):
  x, y = jax.random.normal(jax.random.key(5), (2, 32, 5))
  loss = lambda params: jnp.mean((outputs(params, x, mults) - y[:, :3])**2)

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), value

  return jax.jit(lambda params: jax.lax.scan(
      step, (params, tx.init(params)), length=steps)[1])(params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_multiplier_in_the_forward_pass_can_be_in_the_update(name):
  """Tables 3, 8 and 9 of Tensor Programs V give the same losses."""
  base = params_of(jax.random.key(0), BASE)
  start = params_of(jax.random.key(1), WIDE)
  curves = []
  for parametrization, forward in (
      ("mup", False), ("mup", True), (symmetric(), True)):
    settings = {"parametrization": parametrization, "forward": forward}
    params = scaling.rescale_init(start, base, **settings)
    mults = {k: m.output for k, m in scaling.multipliers(
        start, base, **settings).items()}
    curves.append(losses(
        OPTIMIZERS[name](base_shapes=base, **settings), params, mults))
  assert curves[0][-1] < 0.95 * curves[0][0]
  np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
  np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)


def test_epsilons_follow_gradients():
  """Gradients and epsilon 1,000 times smaller give the same update."""
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  grads = params_of(jax.random.key(1), WIDE)
  mup = parametrizations.get("mup")
  small = mup._replace(gradient_scale=lambda shape, base: (
      1e-3 if shape[-1] == WIDE else 1) * mup.gradient_scale(shape, base))

  def update(grads, parametrization):
    tx = scaling.mu_adamw(1.0, base, eps=0.1, parametrization=parametrization)
    return jax.jit(tx.update)(grads, tx.init(params))[0]

  tiny = dict(grads, hidden=1e-3 * grads["hidden"])
  first, second, unscaled = (update(*x)["hidden"] for x in (
      (grads, mup), (tiny, small), (tiny, mup)))
  np.testing.assert_allclose(first, second, rtol=1e-4)
  assert np.max(np.abs(unscaled)) < 0.5 * np.max(np.abs(first))


def test_scaled_gradients():
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  ratio = WIDE / BASE
  for forward, readout_mult in ((False, 1), (True, ratio)):
    tx = scaling.scale_gradients(base, forward=forward)
    updates, _ = tx.update(params, tx.init(params))
    for name, update in updates.items():
      np.testing.assert_allclose(update, params[name] * (
          readout_mult if name == "output" else ratio), rtol=1e-6)


@pytest.mark.parametrize("name, plain", [
    ("adamw", optax.adamw(0.03, weight_decay=0.1, mask=lambda params: {
        k: k != "vector" for k in params})),
    ("sgd", optax.sgd(0.3, 0.9)),
    ("lion", optax.lion(0.03, weight_decay=0.1, mask=lambda params: {
        k: k != "vector" for k in params}))])
def test_nothing_changes_at_the_base_width(name, plain):
  params = params_of(jax.random.key(0), BASE)
  tx = OPTIMIZERS[name](
      base_shapes=params,
      delta_shapes=params_of(jax.random.key(0), WIDE))
  np.testing.assert_array_equal(
      losses(tx, params), losses(plain, params))


@pytest.mark.parametrize("kappa", [0, 0.5, 1])
def test_decay(kappa):
  """The fraction by which one step without gradients shrinks parameters."""
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  params["vector"] += 1
  for make in (scaling.mu_adamw, scaling.mu_sgd, scaling.mu_muon):
    tx = make(0.5, base, weight_decay=0.1, kappa=kappa)
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    fractions = jax.tree.map(
        lambda u, p: float(np.mean(u / p)), updates, params)
    expected = -0.05 * (WIDE / BASE)**-kappa
    assert fractions == pytest.approx({
        "input": -0.05, "hidden": expected, "output": expected, "vector": 0},
        rel=1e-5)


def test_initial_weights():
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, 16 * BASE))
  constant = dict(params, hidden=0.02 * jnp.sign(params["hidden"]))
  rms = lambda x: float(jnp.sqrt(jnp.mean(x**2)))
  for start in (params, constant):
    rescaled = scaling.rescale_init(start, base)
    for name, mult in (("input", 1), ("hidden", 1 / 4), ("output", 1 / 16)):
      assert rms(rescaled[name]) == pytest.approx(mult * rms(base[name]))
    again = scaling.rescale_init(rescaled, base)
    chex.assert_trees_all_close(rescaled, again, rtol=1e-6)


@pytest.mark.parametrize("make", [scaling.mu_adamw, scaling.mu_sgd])
def test_hyperparameters_can_be_injected(make):
  """Injected hyperparameters give the same update as constants."""
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  injected = optax.inject_hyperparams(make, static_args=("base_shapes",))
  both = []
  for tx in (make(1e-3, base, weight_decay=0.1),
             injected(learning_rate=1e-3, base_shapes=base, weight_decay=0.1)):
    both.append(jax.jit(tx.update)(params, tx.init(params), params)[0])
  chex.assert_trees_all_close(*both, rtol=1e-5, atol=1e-9)


def test_a_tied_readout_has_the_multiplier_of_a_readout():
  shapes, bases = tree(embed=(7, 64)), tree(embed=(7, 16))
  describe = lambda name: scaling.describe(
      shapes, bases, parametrization=name, overrides={"embed": "tied"})
  assert ("embed is the embedding and the readout: multiply the logits by 0.25."
          in describe("mup"))
  assert "the readout" not in describe("standard")


def test_shapes_are_no_arrays():
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  with pytest.raises(ValueError, match="base_params must be arrays"):
    scaling.rescale_init(params, jax.eval_shape(lambda: base))
  with pytest.raises(ValueError, match="Parameter gain is 1.0, which has no"):
    scaling.mu_adamw(1.0, base | {"gain": 1.0}).init(params | {"gain": 1.0})


def test_muon():
  for make in (scaling.mu_muon, functools.partial(
      scaling.mu, optax.identity(), spectral=True)):
    with pytest.raises(ValueError, match="for width, .*, got 'standard'"):
      make(1.0, {}, parametrization="standard")
  base = {"w": np.ones((4, 8, 16)), "o": np.ones((8, 3))}
  params = {"w": np.ones((4, 32, 64)), "o": np.ones((32, 3))}
  with pytest.raises(ValueError, match="places or a stack"):
    tx = scaling.mu_muon(1.0, base)
    tx.update(params, tx.init(params), params)
  tx = scaling.mu_muon(
      1.0, base,
      overrides={"w": scaling.Override(stack=(0,))})
  grads = {"w": jax.random.normal(jax.random.key(0), (4, 32, 64)),
           "o": np.ones((32, 3))}
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  sizes = jnp.linalg.svd(updates["w"], compute_uv=False)
  assert sizes.shape == (4, 32)
  np.testing.assert_allclose(sizes, 2**0.5, rtol=0.4)
  np.testing.assert_allclose(updates["o"], -1 / 4, rtol=1e-5)


def shampoo(updates, params):
  """The first step of Shampoo: fourth roots of the moments of both sides."""
  del params

  def orthogonal(g):
    if g.ndim < 2:
      return jnp.sign(g)
    u, sizes, v = jnp.linalg.svd(g, full_matrices=False)
    return (u * (sizes > 1e-6 * sizes[0])[None]) @ v

  return jax.tree.map(orthogonal, updates)


def test_exponents():
  """The change of a layer's outputs in one step does not depend on width."""
  # Largest slopes of log change against log width, by layer: input, hidden,
  # output, vector.
  limits = {"adamw": (0.1, 0.2, 0.35, 0.1), "lion": (0.1, 0.2, 0.35, 0.1),
            "sgd": (0.15, 0.35, 0.55, 0.15), "muon": (0.1, 0.2, 0.35, 0.1),
            "adan": (0.1, 0.2, 0.35, 0.1), "shampoo": (0.1, 0.1, 0.2, 0.1)}
  base = params_of(jax.random.key(0), BASE)
  optimizers = {
      "muon": scaling.mu_muon(0.03, base),
      "adan": scaling.mu(optax.scale_by_adan(), 0.03, base),
      "shampoo": scaling.mu(
          optax.stateless(shampoo), 0.03, base, spectral=True), **{
              name: make(base_shapes=base)
              for name, make in OPTIMIZERS.items()}}
  x, y = jax.random.normal(jax.random.key(5), (2, 32, 5))
  widths = (32, 128, 512)

  @functools.partial(jax.jit, static_argnums=0)
  def moves(n):
    params = scaling.rescale_init(params_of(jax.random.key(1), n), base)
    grads = jax.grad(lambda params: jnp.mean(
        (outputs(params, x) - y[:, :3])**2))(params)
    h = jnp.tanh(x @ params["input"])
    inputs = {"input": x, "hidden": h, "output": jnp.tanh(h @ params["hidden"]),
              "vector": jnp.ones((1, 1))}

    def changes(tx):
      updates, _ = tx.update(grads, tx.init(params), params)
      return jnp.stack([jnp.mean(jnp.abs(i @ jnp.atleast_2d(updates[k])))
                        for k, i in inputs.items()])

    return {name: changes(tx) for name, tx in optimizers.items()}

  changes_by_width = [moves(n) for n in widths]
  for name, limit in limits.items():
    slopes = np.polyfit(
        np.log2(widths), np.log2([x[name] for x in changes_by_width]), 1)[0]
    assert np.all(np.abs(slopes) <= limit), (name, slopes)


def test_learned_optimizer_without_a_multiplier_in_the_forward_pass():
  """The readout's multiplier in the network or in the update: same losses."""
  mup = parametrizations.get("mup")
  lopt = optimizers.get("mulo", hidden=3)
  params = dict(params_of(jax.random.key(0), WIDE), output=jnp.zeros((WIDE, 3)))
  base = params_of(jax.random.key(0), BASE)
  curves = []
  for forward in (True, False):
    tx = optax.chain(
        lopt.opt_fn(lopt.init(jax.random.key(0))),
        multipliers.scale_by_parametrization(mup, base, forward=forward))
    curves.append(losses(
        tx, params, {"output": 1 / WIDE if forward else 1.0}, steps=8))
  assert abs(curves[0][-1] / curves[0][0] - 1) > 1e-3
  np.testing.assert_allclose(*curves, rtol=1e-4)
