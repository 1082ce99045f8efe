"""Updates as they are lowered for GPUs and TPUs, without one."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import gpu_plan
from experiments.benchmarks import hopper
from experiments.benchmarks import networks
from experiments.benchmarks import optimizer_cases
from learned_opt import kinds as kinds_lib
from learned_opt import optimizers
from learned_opt.update import blocks
from learned_opt.update import groups
from learned_opt.update import platform
from tests import conftest

LOOPS = ("stablehlo.while", "stablehlo.case", "stablehlo.if")


def trees(count, shape):
  """Parameters and gradients: equal matrices, vectors, a stack of layers."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return [{"w": [normal(*shape) for _ in range(count)],
           "b": [normal(shape[1]) for _ in range(2)],
           "layers": normal(3, *shape)} for _ in range(2)]


def transformation(name="mulo", **settings):
  lopt = optimizers.get(name, hidden=3, newton_schulz=1, **settings)
  theta = conftest.perturbed(lopt.init(jax.random.key(0)), 1, 0.03)
  return lopt.opt_fn(theta, kinds=lambda tree: {
      "layers": kinds_lib.Kind((0,), "hidden")})


def lowered(tx, target, count=6, shape=(112, 112)):
  """The text of an update, lowered for a platform.

  For two at once, JAX itself adds branches, one for each.
  """
  params, grads = trees(count, shape)
  with platform.tracing_for(target):
    return jax.export.export(
        jax.jit(lambda *args: tx.update(*args)), platforms=[target])(
            grads, jax.eval_shape(tx.init, params), params).mlir_module()


@pytest.mark.parametrize("name", ["mulo", "mulo2"])
@pytest.mark.parametrize("target", ["cuda", "tpu"])
def test_accelerators_have_no_loops_and_no_branches(name, target):
  text = lowered(transformation(name), target)
  assert {loop: text.count(loop) for loop in LOOPS} == dict.fromkeys(LOOPS, 0)


def test_many_equal_parameters_share_one_body_on_a_cpu():
  texts = [lowered(transformation(), "cpu", count=n) for n in (6, 16)]
  assert all(texts[0].count(x) for x in LOOPS[:2])  # as counted above
  # Otherwise each matrix calls the rule, which XLA inlines.
  rules = [text.count("call @rule") for text in texts]
  assert rules == [rules[0]] * 2


def updates(target):
  """Updates after two steps."""
  tx = transformation()
  params, grads = trees(6, (6, 9))
  with platform.tracing_for(target):
    update = jax.jit(lambda *args: tx.update(*args))
    _, state = update(grads, tx.init(params), params)
    return jax.tree.leaves(update(grads, state, params))


def test_all_ways_to_group_give_the_same_updates(monkeypatch):
  """One body, one after the other, stacked, batches of layers."""
  monkeypatch.setattr(blocks, "CPU_SIZE", 20)
  shared = updates("cpu")
  monkeypatch.setattr(groups, "MANY", 100)
  others = {"in turn": updates("cpu"), "stacked": updates("cuda")}
  for name, other in others.items():
    for x, y in zip(shared, other, strict=True):
      np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6, err_msg=name)


def test_a_shared_body_has_a_derivative(monkeypatch):
  monkeypatch.setattr(blocks, "CPU_SIZE", 20)
  tx = transformation()
  params, grads = trees(6, (6, 9))

  def moved(grads):
    change, _ = tx.update(grads, tx.init(params), params)
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(change))

  # JAX has no reverse mode of loops whose number of turns is not known.
  derivative = jax.eval_shape(jax.jit(jax.grad(moved)), grads)
  assert jax.tree.map(jnp.shape, derivative) == jax.tree.map(jnp.shape, grads)


PROGRAM = """HloModule jit_step, is_scheduled=true

%body.1 (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %neg.1 = f32[8]{0} fusion(%p.1), kind=kLoop, calls=%inner.1
}

%inner.1 (q.1: f32[8]) -> f32[8] {
  %q.1 = f32[8]{0} parameter(0)
  ROOT %n.1 = f32[8]{0} negate(%q.1)
}

%sliced (r.1: f32[100,8], r.2: s32[]) -> (f32[8], bf16[8]) {
  %r.1 = f32[100,8]{1,0} parameter(0)
  %r.2 = s32[] parameter(1)
  %d.1 = f32[1,8]{1,0} dynamic-slice(%r.1, %r.2, %r.2), dynamic_slice_sizes={1,8}
  %b.1 = f32[8]{0} bitcast(%d.1)
  %c.1 = bf16[8]{0} convert(%b.1)
  ROOT %t.1 = (f32[8]{0}, bf16[8]{0}) tuple(%b.1, %c.1)
}

ENTRY %main (a.1: f32[100,8], a.2: s32[], a.3: f32[8]) -> f32[8] {
  %a.1 = f32[100,8]{1,0} parameter(0)
  %a.2 = s32[] parameter(1)
  %a.3 = f32[8]{0} parameter(2)
  %f.1 = (f32[8]{0}, /*index=1*/bf16[8]{0}) fusion(%a.1, %a.2), kind=kLoop, calls=%sliced
  %g.1 = f32[8]{0} get-tuple-element(%f.1), index=0
  %w.1 = f32[8]{0} while(%g.1), condition=%inner.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %w.2 = f32[8]{0} while(%w.1), condition=%inner.1, body=%body.1
  ROOT %k.1 = f32[8]{0} copy(%w.2)
}
"""  # noqa: E501


def test_a_program_is_read():
  """Three turns, one turn of an unknown number, a fusion and a copy."""
  # A fusion reads 32 bytes of a slice and an index, and writes two arrays.
  assert hopper.read(PROGRAM) == (3 + 1 + 1 + 1, 1, 6 * 64 - 64 + 36 + 48)


class Flags:
  network, scale, optimizers = "mlp", 0.02, ["adamw", "mulo"]


def test_plan(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(Flags, "workdir", str(tmp_path / "plan"), raising=False)
  gpu_plan.main(Flags)
  printed = capsys.readouterr().out
  if hopper.why_not():
    assert printed == f"Skipped. {hopper.why_not()}\n"
    assert not (tmp_path / "plan" / "table.md").exists()
  else:
    assert (tmp_path / "plan" / "table.md").read_text() in printed


@pytest.mark.skipif(bool(hopper.why_not()), reason=hopper.why_not())
def test_the_host_does_not_wait_for_a_gpu():
  params = networks.gpt2(0.02)
  tx = optimizer_cases.CASES["mulo"]()
  program = hopper.compile_fn(
      optimizer_cases.step_fn(tx), params, jax.eval_shape(tx.init, params),
      params, donate=(0, 1))
  assert program.syncs == 0
  assert program.launches < 5 * len(jax.tree.leaves(params))
