"""Factors of parametrizations, and optimizers of optax that have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import public_models
import pytest

from learned_opt import optimizers
from learned_opt.scaling import multipliers
from learned_opt.scaling import parametrizations
from learned_opt.scaling import width
from mulo import scaling

tree = public_models.tree

ROLES = {"input": ((5, 16), (5, 64)), "hidden": ((16, 16), (64, 64)),
         "output": ((16, 3), (64, 3)), "vector": ((16,), (64,))}
SAME = (1, 1, 1, 1, 1, 1)
FIRST, LAST = (1, 1, 1, 4, 1 / 4, 1), (1 / 4, 1, 1 / 4, 1 / 4, 1, 4)
GOLDEN = {  # at 4 times the width: init, output, Adam, SGD, eps, decay
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
# Balanced muP differs by constants, unit scaling by what is in which place.
for _name in ("mup_balanced", "depth_mup", "completep", "unit_scaled"):
  GOLDEN[_name, False] = GOLDEN["mup", False]
GOLDEN["unit_scaled", True] = {
    "input": FIRST, "hidden": (1, 1 / 2, 1 / 2, 4, 1 / 8, 2),
    "output": (1, 1 / 4, 1, 4, 1 / 4, 1), "vector": (*FIRST[:5], 0)}


@pytest.mark.parametrize("name, forward", GOLDEN)
def test_golden_factors(name, forward):
  bases, shapes = (tree(**{k: v[i] for k, v in ROLES.items()}) for i in (0, 1))
  found = scaling.multipliers(
      shapes, bases, parametrization=name, forward=forward)
  for role, f in found.items():
    assert (f.std, f.output, f.update, f.update / f.gradient, f.gradient,
            f.decay) == pytest.approx(GOLDEN[name, forward][role]), role
  same = scaling.multipliers(bases, bases, delta_shapes=shapes, forward=forward,
                         parametrization=name)
  for role, f in same.items():
    assert f == (1, 1, 1, 1, role != "vector")


def symmetric():
  """Table 9 of Tensor Programs V: muP with its factors shared out evenly."""

  def rule(of_width):
    def scale(shape, base_shape):
      role = width.role(shape, base_shape)
      n = width.fan_in(shape, base_shape) if role == "output" else (
          width.fan_out(shape, base_shape))
      return of_width(n, role)
    return scale

  mup = parametrizations.get("mup")
  hidden = lambda of, of_width: lambda shape, base_shape: (
      of if width.role(shape, base_shape) == "hidden" else rule(of_width))(
          shape, base_shape)
  root = lambda n, role: n**-0.5
  return mup._replace(
      init_std=hidden(mup.init_std, root),
      output_mult=hidden(mup.output_mult, lambda n, role: n**(
          -0.5 if role == "output" else 0.5)),
      update_mult=hidden(mup.update_mult, root),
      gradient_scale=hidden(mup.gradient_scale, root))


def test_golden_factors_of_table_9():
  bases, shapes = (tree(**{k: v[i] for k, v in ROLES.items()}) for i in (0, 1))
  found = scaling.multipliers(
      shapes, bases, parametrization=symmetric(), forward=True)
  first = (1 / 2, 2, 1 / 2, 1, 1 / 2)
  expected = {
      "input": (*first, 2), "vector": (*first, 0),
      "hidden": GOLDEN["mup", True]["hidden"],
      "output": (1 / 2, 1 / 2, 1 / 2, 1, 1 / 2, 2)}
  for role, f in found.items():
    assert (f.std, f.output, f.update, f.update / f.gradient, f.gradient,
            f.decay) == pytest.approx(expected[role]), role


@pytest.mark.parametrize("name, settings, branch, update, gradient", [
    ("mup", {}, 1, 1, 1), ("depth_mup", {}, 1 / 2, 1 / 2, 1 / 2),
    ("completep", {}, 1 / 4, 1, 1 / 4),
    ("completep", {"alpha": 0.5}, 1 / 2, 1 / 2, 1 / 2),
    ("unit_scaled", {}, 1 / 2, 1 / 2, 1 / 2)])
def test_golden_factors_of_depth(name, settings, branch, update, gradient):
  rule = parametrizations.get(name, **settings)
  bases, shapes = (tree(**{k: v[i] for k, v in ROLES.items()}) for i in (0, 1))
  overrides = {"hidden": scaling.Override(depth=8)}
  found = scaling.multipliers(shapes, bases, parametrization=rule, base_depth=2,
                          overrides=overrides)
  assert scaling.branch_mult(8, 2, parametrization=rule) == branch
  assert found["hidden"].update == pytest.approx(update / 4)
  assert found["hidden"].gradient == pytest.approx(gradient / 4)
  assert found["input"].update == 1 and found["output"].gradient == 1


def test_branches_of_unit_scaled_mup():
  """The published rule and one factor for all, where all read through norms."""
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


BASE, WIDE = 16, 64  # factors are powers of two
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
def test_a_factor_in_the_forward_pass_can_be_in_the_update(name):
  """Tables 3, 8 and 9 of Tensor Programs V are the same."""
  base = params_of(jax.random.key(0), BASE)
  start = params_of(jax.random.key(1), WIDE)
  found = []
  for rule, forward in (("mup", False), ("mup", True), (symmetric(), True)):
    settings = {"parametrization": rule, "forward": forward}
    params = scaling.rescale_init(start, base, **settings)
    mults = {k: f.output for k, f in scaling.multipliers(
        start, base, **settings).items()}
    found.append(losses(
        OPTIMIZERS[name](base_shapes=base, **settings), params, mults))
  assert found[0][-1] < 0.95 * found[0][0]
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
  np.testing.assert_allclose(found[2], found[0], rtol=1e-5)


def test_epsilons_follow_gradients():
  """Gradients 1,000 times as small, with an epsilon as much smaller."""
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  grads = params_of(jax.random.key(1), WIDE)
  rule = parametrizations.get("mup")
  small = rule._replace(gradient_scale=lambda shape, base: (
      1e-3 if shape[-1] == WIDE else 1) * rule.gradient_scale(shape, base))

  def update(grads, parametrization):
    tx = scaling.mu_adamw(1.0, base, eps=0.1, parametrization=parametrization)
    return jax.jit(tx.update)(grads, tx.init(params))[0]

  tiny = dict(grads, hidden=1e-3 * grads["hidden"])
  first, second, unscaled = (update(*x)["hidden"] for x in (
      (grads, rule), (tiny, small), (tiny, rule)))
  np.testing.assert_allclose(first, second, rtol=1e-4)
  assert np.max(np.abs(unscaled)) < 0.5 * np.max(np.abs(first))


def test_factors_on_gradients():
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  ratio = WIDE / BASE
  for forward, of_readout in ((False, 1), (True, ratio)):
    tx = scaling.scale_gradients(base, forward=forward)
    updates, _ = tx.update(params, tx.init(params))
    for name, update in updates.items():
      np.testing.assert_allclose(update, params[name] * (
          of_readout if name == "output" else ratio), rtol=1e-6)


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
      inference={"delta_shapes": params_of(jax.random.key(0), WIDE)})
  np.testing.assert_array_equal(
      losses(tx, params), losses(plain, params))


@pytest.mark.parametrize("kappa", [0, 0.5, 1])
def test_decay(kappa):
  """What a step takes of each parameter, without any gradient."""
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  params["vector"] += 1
  for make in (scaling.mu_adamw, scaling.mu_sgd, scaling.mu_muon):
    tx = make(0.5, base, weight_decay=0.1, kappa=kappa)
    updates, _ = tx.update(
        jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    found = jax.tree.map(lambda u, p: float(np.mean(u / p)), updates, params)
    part = -0.05 * (WIDE / BASE)**-kappa
    assert found == pytest.approx({
        "input": -0.05, "hidden": part, "output": part, "vector": 0},
        rel=1e-5)


def test_initial_weights():
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, 16 * BASE))
  constant = dict(params, hidden=0.02 * jnp.sign(params["hidden"]))
  rms = lambda x: float(jnp.sqrt(jnp.mean(x**2)))
  for start in (params, constant):
    found = scaling.rescale_init(start, base)
    for name, factor in (("input", 1), ("hidden", 1 / 4), ("output", 1 / 16)):
      assert rms(found[name]) == pytest.approx(factor * rms(base[name]))
    again = scaling.rescale_init(found, base)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
                 found, again)


@pytest.mark.parametrize("make", [scaling.mu_adamw, scaling.mu_sgd])
def test_hyperparameters_can_be_injected(make):
  """All of them, and they do what they do as constants."""
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  injected = optax.inject_hyperparams(make, static_args=("base_shapes",))
  found = []
  for tx in (make(1e-3, base, weight_decay=0.1),
             injected(learning_rate=1e-3, base_shapes=base, weight_decay=0.1)):
    found.append(jax.jit(tx.update)(params, tx.init(params), params)[0])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-5, atol=1e-9), *found)


def test_a_tied_readout_has_the_factor_of_the_rule():
  shapes, bases = tree(embed=(7, 64)), tree(embed=(7, 16))
  said = lambda name: scaling.describe(
      shapes, bases, parametrization=name, overrides={"embed": "tied"})
  assert "embed reads out as well: multiply the logits by 0.25." in said("mup")
  assert "reads out" not in said("standard")


def test_shapes_are_no_arrays():
  base, params = (params_of(jax.random.key(0), n) for n in (BASE, WIDE))
  with pytest.raises(ValueError, match="base_params must be arrays"):
    scaling.rescale_init(params, jax.eval_shape(lambda: base))
  with pytest.raises(ValueError, match="Parameter gain is 1.0, which has no"):
    scaling.mu_adamw(1.0, base | {"gain": 1.0}).init(params | {"gain": 1.0})


def test_muon():
  for make in (scaling.mu_muon, functools.partial(
      scaling.mu, optax.identity(), spectral=True)):
    with pytest.raises(ValueError, match="a rule for width, got 'standard'"):
      make(1.0, {}, parametrization="standard")
  base = {"w": np.ones((4, 8, 16)), "o": np.ones((8, 3))}
  params = {"w": np.ones((4, 32, 64)), "o": np.ones((32, 3))}
  with pytest.raises(ValueError, match="places or a stack"):
    tx = scaling.mu_muon(1.0, base)
    tx.update(params, tx.init(params), params)
  tx = scaling.mu_muon(
      1.0, base,
      inference={"overrides": {"w": scaling.Override(stack=(0,))}})
  grads = {"w": jax.random.normal(jax.random.key(0), (4, 32, 64)),
           "o": np.ones((32, 3))}
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  sizes = jnp.linalg.svd(updates["w"], compute_uv=False)
  assert sizes.shape == (4, 32)
  np.testing.assert_allclose(sizes, 2**0.5, rtol=0.4)
  np.testing.assert_allclose(updates["o"], -1 / 4, rtol=1e-5)


def shampoo(updates, params):
  """The first step: a fourth root of the moments of each side."""
  del params

  def of(g):
    if g.ndim < 2:
      return jnp.sign(g)
    u, sizes, v = jnp.linalg.svd(g, full_matrices=False)
    return (u * (sizes > 1e-6 * sizes[0])[None]) @ v

  return jax.tree.map(of, updates)


def test_exponents():
  """How far a layer moves in one step does not depend on its width."""
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

    def of(tx):
      updates, _ = tx.update(grads, tx.init(params), params)
      return jnp.stack([jnp.mean(jnp.abs(i @ jnp.atleast_2d(updates[k])))
                        for k, i in inputs.items()])

    return {name: of(tx) for name, tx in optimizers.items()}

  found = [moves(n) for n in widths]
  for name, limit in limits.items():
    slopes = np.polyfit(
        np.log2(widths), np.log2([x[name] for x in found]), 1)[0]
    assert np.all(np.abs(slopes) <= limit), (name, slopes)


def test_learned_optimizer_without_a_factor_in_the_forward_pass():
  """The factor of the readout, in the network or in the update."""
  rule = parametrizations.get("mup")
  lopt = optimizers.get("mulo", hidden=3)
  params = dict(params_of(jax.random.key(0), WIDE), output=jnp.zeros((WIDE, 3)))
  base = params_of(jax.random.key(0), BASE)
  found = []
  for forward in (True, False):
    tx = optax.chain(
        lopt.opt_fn(lopt.init(jax.random.key(0))),
        multipliers.scale_by_parametrization(rule, base, forward=forward))
    found.append(losses(
        tx, params, {"output": 1 / WIDE if forward else 1.0}, steps=8))
  assert abs(found[0][-1] / found[0][0] - 1) > 1e-3
  np.testing.assert_allclose(*found, rtol=1e-4)
