"""The optax contract: what a transformation must do to fit anyone's loop.

With pytest, one line tests an optimizer:

  @pytest.mark.parametrize("check", testing.CHECKS, ids=lambda c: c.__name__)
  def test_contract(check):
    check(my_optimizer)

A factory is a function that returns an `optax.GradientTransformation`; it is
called without arguments, and with learning_rate, weight_decay or base_shapes
(see `mulo.load`) if it has parameters of these names. Updates must be
proportional to the learning rate. One that returns the same object whenever it
is called without arguments lets the checks share compiled programs.

Each check raises AssertionError that says what is wrong, and
`unittest.SkipTest` (which pytest reports as skipped) where it cannot be made:
the factory does not take what it is about, a package is missing, or there are
fewer than 8 devices; `jax.config.update("jax_num_cpu_devices", 8)` makes them.
"""

import unittest

from mulo.testing import combinators
from mulo.testing import devices
from mulo.testing import kit
from mulo.testing import transforms
from mulo.testing import trees

CHECKS: tuple[kit.Check, ...] = (
    combinators.chain, combinators.extra_args, combinators.masked,
    combinators.multi_transform, trees.empty_leaves, trees.scalars,
    combinators.inject_hyperparams, combinators.schedules,
    combinators.multi_steps, combinators.apply_if_finite,
    transforms.scan_float32, transforms.scan_bfloat16, transforms.jit,
    transforms.vmap, transforms.eval_shape, trees.flax_linen,
    trees.flax_nnx, trees.equinox, trees.haiku, trees.params_none,
    devices.sharding_automatic, devices.sharding_explicit,
    devices.checkpoint)


def run(factory: kit.Factory) -> dict[str, str | None]:
  """Every check of one optimizer.

  Args:
    factory: see the module docstring.

  Returns:
    {name of the check: None if passed, else what is wrong, or "skipped: " and
    why}.
  """
  found: dict[str, str | None] = {}
  for check in CHECKS:
    try:
      check(factory)
      found[check.__name__] = None
    except unittest.SkipTest as e:
      found[check.__name__] = f"skipped: {e}"
    except AssertionError as e:
      found[check.__name__] = str(e)
  return found
