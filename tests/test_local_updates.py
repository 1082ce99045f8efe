"""Local updates: exact special cases, meshes, and the K-worker task."""

import functools
import re

import chex
import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_training_loops
import tiny_config

from learned_opt import optimizers
from learned_opt import workers
from learned_opt.scaling import parametrizations
from meta_train import build
from meta_train import workers as workers_task
import mulo

P = jax.sharding.PartitionSpec
K, H = 8, 2
AXES = mulo.LocalUpdatesState(None, 0, None, None)
PARAMS = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
          "b": np.ones(4, np.float32)}


def loss_fn(params, x):
  return jnp.mean(jnp.square(jnp.tanh(x @ params["w"]) - params["b"][None]))


def batches(rounds, count=K, every=H):
  """Return random inputs [rounds * every, workers, 5, 3]."""
  rng = np.random.default_rng(0)
  return rng.normal(size=(rounds * every, count, 5, 3)).astype(np.float32)


def one_step(tx, params, state, x):
  """Take a step of one worker."""
  loss, grads = jax.value_and_grad(loss_fn)(params, x)
  updates, state = tx.update(grads, state, params, value=loss)
  return optax.apply_updates(params, updates), state


def started(tx, count=K):
  """Return (parameters, state) of workers."""
  state = jax.vmap(tx.init, in_axes=None, out_axes=AXES, axis_size=count)(
      PARAMS)
  return jax.tree.map(lambda x: jnp.stack([x] * count), PARAMS), state


@functools.cache
def vmapped(tx):
  return jax.jit(jax.vmap(functools.partial(one_step, tx), (0, AXES, 0),
                          (0, AXES), axis_name="workers"))


def on_vmap(tx, xs, params, state):
  """Train all workers on one device."""
  for x in xs:
    params, state = vmapped(tx)(params, state, x)
  return params, state


def on_mesh(tx, devices, xs, params, state):
  """Train workers on several devices, one or more on each."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("device",))
  specs = mulo.LocalUpdatesState(P(), P("device"), P(), P())
  step = functools.partial(one_step, tx)
  if devices < K:
    step = jax.vmap(step, (0, AXES, 0), (0, AXES), axis_name="workers")
  else:
    only = lambda tree: jax.tree.map(lambda x: x[0], tree)
    lead = lambda tree: jax.tree.map(lambda x: x[None], tree)

    def step(params, state, x):
      params, state = one_step(
          tx, only(params), state._replace(inner=only(state.inner)), x[0])
      return lead(params), state._replace(inner=lead(state.inner))

  step = jax.jit(jax.shard_map(
      step, mesh=mesh, in_specs=(P("device"), specs, P("device")),
      out_specs=(P("device"), specs), check_vma=devices == K))
  for x in xs:
    params, state = step(params, state, x)
  return params, state


def close(actual, expected, tolerance=1e-6):
  chex.assert_trees_all_close(
      actual, expected, rtol=tolerance, atol=tolerance)


def test_one_worker_and_one_step_is_the_inner_optimizer():
  inner = optax.adam(0.1)
  tx = mulo.local_updates(inner, optax.sgd(1.0), every=1)
  params, state = PARAMS, tx.init(PARAMS)
  plain, plain_state = PARAMS, inner.init(PARAMS)
  for x in batches(3, 1, 1)[:, 0]:
    params, state = one_step(tx, params, state, x)
    grads = jax.grad(loss_fn)(plain, x)
    updates, plain_state = inner.update(grads, plain_state)
    plain = optax.apply_updates(plain, updates)
  close(params, plain)
  close(state.anchor, plain)


def test_a_round_by_hand():
  """SGD on three workers, then Nesterov on the mean difference."""
  tx = mulo.local_updates(optax.sgd(0.1), optax.sgd(0.7, 0.9, True), every=H,
                          axis_name="workers")
  xs = batches(2, 3)
  params, state = on_vmap(tx, xs, *started(tx, 3))
  common, momentum = PARAMS, jax.tree.map(np.zeros_like, PARAMS)
  for r in range(2):
    ends = []
    for k in range(3):
      q = common
      for x in xs[r * H:(r + 1) * H, k]:
        q = jax.tree.map(lambda p, g: p - 0.1 * g, q, jax.grad(loss_fn)(q, x))
      ends.append(q)
    grad = jax.tree.map(lambda p, *q: p - sum(q) / 3, common, *ends)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grad)
    common = jax.tree.map(lambda p, g, m: p - 0.7 * (g + 0.9 * m), common,
                          grad, momentum)
  close(state.anchor, common)
  close(params, jax.tree.map(lambda x: jnp.stack([x] * 3), common))


def test_workers_agree_after_a_round_and_differ_within():
  tx = mulo.local_updates(optax.sgd(0.1), optax.sgd(1.0), every=H,
                          axis_name="workers")
  xs = batches(2)
  within, _ = on_vmap(tx, xs[:H + 1], *started(tx))
  after, state = on_vmap(tx, xs[:H], *started(tx))
  assert np.ptp(within["w"], 0).max() > 1e-3
  close(after, jax.tree.map(lambda x: jnp.stack([x] * K), state.anchor))


@pytest.mark.parametrize("devices, average", [
    (1, False), (2, True), (8, False), (8, True)])
def test_mesh(devices, average):
  """Workers on devices, one or more on each, are the same as on one."""
  xs = batches(2)[:2 * H - 1]  # ends within a round, where workers differ
  make = lambda name: mulo.local_updates(
      optax.adam(0.1), optax.adam(0.1), every=H, axis_name=name,
      average_inner=average)
  tx = make("workers")
  expected = on_vmap(tx, xs, *started(tx))
  tx = make("device" if devices == K else ("device", "workers"))
  actual = on_mesh(tx, devices, xs, *started(tx))
  close(jax.device_get(actual), jax.device_get(expected), 1e-5)
  assert np.ptp(expected[1].inner[0].mu["w"], 0).max() > 1e-4


def test_average_inner():
  make = lambda average: mulo.local_updates(
      optax.adam(0.1), optax.sgd(1.0), every=H, axis_name="workers",
      average_inner=average)
  xs = batches(1)
  _, own = on_vmap(make(False), xs, *started(make(False)))
  _, mean = on_vmap(make(True), xs, *started(make(True)))
  close(mean.inner[0].mu, jax.tree.map(
      lambda x: jnp.stack([x.mean(0)] * K), own.inner[0].mu))
  np.testing.assert_array_equal(mean.inner[0].count, own.inner[0].count)


def test_communication_is_in_the_branch_alone():
  """All collectives of a step are inside of the condition."""
  tx = mulo.local_updates(optax.sgd(0.1), optax.sgd(1.0), every=H,
                          axis_name="workers")
  traced = jax.make_jaxpr(functools.partial(one_step, tx), axis_env=[
      ("workers", K)])(PARAMS, tx.init(PARAMS), batches(1)[0, 0])
  outside = [e for e in traced.eqns if "psum" in str(e.primitive)]
  (branch,) = [e for e in traced.eqns if str(e.primitive) == "cond"]
  counts = [sum("psum" in str(e.primitive) for e in b.eqns)
            for b in branch.params["branches"]]
  assert not outside and min(counts) == 0 < max(counts)


def test_spread():
  rng = np.random.default_rng(1)
  x = rng.normal(size=(5, 7)).astype(np.float32)
  x[:, 0], x[:, 1] = 0, 3
  of = lambda x: jax.vmap(lambda d: workers.spread(d, "k"), axis_name="k",
                          out_axes=None)(x)
  actual = of(x)
  rms = np.sqrt(np.mean(np.square(x), 0))
  for name, value in (("agreement", x.mean(0)), ("high", x.max(0)),
                      ("low", x.min(0))):
    expected = np.divide(value, rms, out=np.zeros(7, np.float32),
                         where=rms > 0)
    np.testing.assert_allclose(getattr(actual, name), expected, rtol=1e-5)
  assert actual.agreement[0] == 0 and abs(actual.agreement[1] - 1) < 1e-6
  close(of(x[::-1]), actual)
  close(of(1e-6 * x), actual, 1e-5)
  close(of(np.concatenate([x, x])), actual)


def test_resumes_within_a_round():
  tx = mulo.local_updates(optax.adam(0.1), optax.sgd(0.7, 0.9, True), every=3,
                          axis_name="workers")
  xs = batches(2, every=3)
  whole = on_vmap(tx, xs, *started(tx))
  kept = jax.device_get(on_vmap(tx, xs[:4], *started(tx)))
  chex.assert_trees_all_equal(
      jax.device_get(on_vmap(tx, xs[4:], *kept)), jax.device_get(whole))


def task_of(**settings):
  """Return a small task of three workers, and its parts."""
  build_one = lambda section: build.task_of(
      section, parametrizations.get("standard"), None)
  section = {"name": "mlp", "dataset": "digits", "width": 4, "depth": 1,
             "batch_size": 8}
  given = {"count": 3, "every": H, "learning_rate": 0.1, **settings}
  return build_one({**section, "workers": given}), build_one(section)


def learned():
  """Return lagg with random weights, which compiles fast."""
  lopt = optimizers.get("lagg", hidden=2, lowering="blocked")
  return lopt.opt_fn(conftest.perturbed(lopt.init(jax.random.key(0)), 0))


def test_task_of_workers_is_local_updates():
  """The engine's rounds are those of the transformation, on equal batches."""
  task, one = task_of()
  tx = learned()
  data, key = jax.device_put(task.data["train"]), jax.random.key(1)
  params = task.init(jax.random.key(2))

  state = tx.init(params)
  around = mulo.local_updates(
      optax.sgd(0.1), optax.chain(optax.scale(1 / (0.1 * H)), tx), every=H,
      axis_name="workers")
  own = jax.tree.map(lambda x: jnp.stack([x] * 3), params)
  own_state = jax.vmap(around.init, None, AXES, axis_size=3)(params)

  def step(q, state, batch):
    grads = jax.grad(lambda q: one.loss(q, key, batch)[0])(q)
    updates, state = around.update(grads, state, q)
    return optax.apply_updates(q, updates), state

  step = jax.jit(jax.vmap(step, (0, AXES, 0), (0, AXES), axis_name="workers"))

  @jax.jit
  def one_round(params, state, key):
    batch = task.sample_batch(key, data)
    value, grads, extra = task.gradients(task.loss, params, key, batch)
    updates, state = tx.update(grads, state, params, value=value, **extra)
    return optax.apply_updates(params, updates), state, value, batch

  for r in range(2):
    before = params
    params, state, value, batch = one_round(
        params, state, jax.random.fold_in(key, r))
    first = jax.tree.map(lambda x: x[:, :1], batch)
    np.testing.assert_allclose(value, task.loss(before, key, first)[0], 1e-5)
    for h in range(H):
      own, own_state = step(own, own_state, jax.tree.map(
          lambda x: x[:, h], batch))
    close(own_state.anchor, params, 1e-5)


def test_lagg_reads_the_spread_and_any_number_of_workers():
  tx = learned()
  rng = np.random.default_rng(2)
  deltas = rng.normal(size=(4, 3, 5)).astype(np.float32)

  @jax.jit
  def update(mean, spread):
    given = {} if spread is None else {"spread": lambda: spread}
    return tx.update(mean, tx.init(mean), jnp.ones_like(mean), **given)[0]

  def updates(x):
    return update(x.mean(0), jax.vmap(
        lambda d: workers.spread(d, "k"), axis_name="k", out_axes=None)(x))

  plain = updates(deltas)
  close(updates(deltas[[2, 0, 3, 1]]), plain)
  close(updates(np.concatenate([deltas] * 2)), plain, 1e-5)
  equal = updates(np.stack([deltas.mean(0)] * 4))
  assert np.abs(equal - plain).max() > 1e-4
  close(update(deltas.mean(0), None), equal, 1e-5)


def test_meta_training_of_workers_on_one_and_three_devices():
  config = tiny_config.get_config().unlock()
  config.parametrization = "standard"
  config.tasks = {"mlp": {
      "name": "mlp", "dataset": "digits", "width": 3, "depth": 1,
      "batch_size": 2, "workers": {
          "count": 2, "every": 2, "learning_rate": 0.1}}}
  config.update(num_steps=3, copies=3)
  config.theta_opt.warmup = 1
  thetas = []
  for devices in (1, 3):
    config.devices = devices
    program = build.build(config, None)
    state = program.init()
    start = jax.device_get(state.theta)
    for data in program.data(0, 3):
      state, _ = program.step(state, data)
    thetas.append(jax.device_get(state.theta))
  assert abs(thetas[0]["learning_rate"] - start["learning_rate"]) > 1e-4
  close(thetas[0], thetas[1], 1e-5)


@pytest.mark.parametrize("settings, message", [
    ({"count": 0}, "count must be a positive integer"),
    ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
    ({"other": 1}, "workers does not take")])
def test_wrong_workers(settings, message):
  with pytest.raises(ValueError, match=message):
    task_of(**settings)


def test_workers_need_the_standard_parametrization():
  _, one = task_of()
  with pytest.raises(ValueError, match="does not follow"):
    workers_task.local_rounds(parametrizations.get("mup"), one, count=2,
                              every=2, learning_rate=0.1)


def test_example():
  """Eight workers, one on each device."""
  text = test_training_loops.run(
      "local_updates",
      xla_flags="--xla_force_host_platform_device_count=8")
  losses = [float(x) for x in re.findall(r"loss ([\d.]+)", text)]
  assert "8 workers" in text and losses[0] > 1 and losses[-1] < 0.3


def test_errors():
  with pytest.raises(ValueError, match="every must be a positive integer"):
    mulo.local_updates(optax.sgd(0.1), optax.sgd(1.0), every=0)
  tx = mulo.local_updates(optax.sgd(0.1), optax.sgd(1.0), every=1,
                          axis_name="workers")
  with pytest.raises(ValueError, match="no axis 'workers'"):
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  with pytest.raises(ValueError, match="read the parameters"):
    tx.update(PARAMS, tx.init(PARAMS))
