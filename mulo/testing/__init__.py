"""The optax contract: checks that a transformation fits any training loop.

The checks compare trees by chex, which has to be installed. With pytest, three
lines test an optimizer:

  @pytest.mark.parametrize("check", testing.CHECKS, ids=lambda c: c.__name__)
  def test_contract(check):
    check(my_optimizer)

`my_optimizer` is a factory: a function that returns an
`optax.GradientTransformation`. A check calls the factory without arguments, or
with learning_rate, weight_decay, base_shapes or deeper_shapes (see `mulo.load`)
if the factory has parameters of these names. Updates must be proportional to
the learning rate. A factory should return the same object from each call
without arguments: the checks then share compiled programs.

A check that fails raises AssertionError, with a message about the fault. A
check that cannot run raises `unittest.SkipTest`, which pytest reports as
skipped. The reason may be that the factory lacks the parameter that the check
is about, that a package is missing, or that there are fewer than 8 devices.
`jax.config.update("jax_num_cpu_devices", 8)` makes 8 devices of the CPU.
"""

import unittest

from mulo.testing import combinators
from mulo.testing import devices
from mulo.testing import gradients
from mulo.testing import kit
from mulo.testing import states
from mulo.testing import transforms
from mulo.testing import trees

CHECKS: tuple[kit.Check, ...] = (
    combinators.chain, combinators.extra_args, combinators.masked,
    combinators.multi_transform, trees.empty_leaves, trees.scalars,
    combinators.inject_hyperparams, combinators.schedules,
    combinators.multi_steps, combinators.apply_if_finite,
    transforms.scan_float32, transforms.scan_bfloat16, transforms.x64,
    transforms.jit, transforms.vmap, transforms.eval_shape, trees.flax_linen,
    trees.flax_nnx, trees.equinox, trees.haiku, trees.params_none,
    trees.other_leaves, trees.stacked_layers, gradients.zero_gradients,
    gradients.second_order, states.map_params, states.names,
    states.structure, states.flax_partitioned, states.flax_metadata,
    devices.sharding_automatic, devices.sharding_explicit,
    devices.sharding_partial, devices.checkpoint)


def run(factory: kit.Factory) -> dict[str, str | None]:
  """Run all checks on one optimizer.

  Args:
    factory: see the module docstring.

  Returns:
    {name of the check: result}. The result is None if the check passed, the
    error message if it failed, or "skipped: " and the reason.
  """
  results: dict[str, str | None] = {}
  for check in CHECKS:
    try:
      check(factory)
      results[check.__name__] = None
    except unittest.SkipTest as e:
      results[check.__name__] = f"skipped: {e}"
    except AssertionError as e:
      results[check.__name__] = str(e)
  return results
