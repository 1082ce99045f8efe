"""Optimizers of optax under a parametrization; public as `mulo.scaling`.

In docstrings, `infer` and `multipliers` are `mulo.scaling.infer` and
`mulo.scaling.multipliers`.
"""

import functools
from typing import Any, TypeAlias

import optax
import optax.contrib

from learned_opt import base
from learned_opt.scaling import multipliers as multipliers_lib
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from mulo import _rates as rates

ParamInfo = roles_lib.ParamInfo
Rate: TypeAlias = float | optax.Schedule


def scale_gradients(base_shapes: Any, *,
                    parametrization: str | base.Parametrization = "mup",
                    forward: bool = False, **inference: Any
                    ) -> optax.GradientTransformationExtraArgs:
  """Rescale gradients to their expected magnitude at the base width.

  Put the transformation in front of an optimizer with epsilons, or with other
  constants that are compared with gradients. The constants then have the same
  effect at all widths. Under "standard" the transformation does nothing.

      tx = optax.chain(
          mulo.scaling.scale_gradients(base),
          mulo.load("adafac-mup-s", base_shapes=base))

  Args:
    base_shapes: see `infer`.
    parametrization: see `multipliers`.
    forward: see `multipliers`. Give `mulo.load` the same value.
    **inference: further arguments of `infer`, such as `overrides`.

  Returns:
    A stateless transformation. Its `init` raises the errors of `infer`.

  Raises:
    ValueError: an unknown parametrization.

  Examples:
    Under muP, gradients of this matrix fall as 1 / width:

    >>> import jax.numpy as jnp
    >>> import mulo
    >>> init = lambda width: {"readin": jnp.ones((8, width))}
    >>> params, base = init(64), init(16)
    >>> tx = mulo.scaling.scale_gradients(base, readout=False)
    >>> grads = {"readin": jnp.full((8, 64), 0.25)}
    >>> updates, _ = tx.update(grads, tx.init(params))
    >>> float(updates["readin"][0, 0])
    1.0
  """
  inference = rates.keywords("inference", inference)
  mults_of = functools.partial(
      multipliers_lib.relative, parametrizations.find(parametrization),
      forward=forward)
  return multipliers_lib.scale_by_role(
      lambda info: 1 / mults_of(info).gradient, base_shapes,
      **inference)


def mu(core: optax.GradientTransformation, learning_rate: Rate,
       base_shapes: Any, *, spectral: bool = False, weight_decay: float = 0.0,
       kappa: float = 0.0,
       parametrization: str | base.Parametrization = "mup",
       forward: bool = False, **inference: Any
       ) -> optax.GradientTransformationExtraArgs:
  """Put an optimizer of optax under a parametrization.

  The optimizer receives gradients rescaled to their magnitude at the base
  width. Epsilons therefore keep their meaning, and all optimizers share one set
  of multipliers.

  Args:
    core: a `scale_by_...` of optax: no learning rate, no decay, updates not
      negated. Updates must not depend on the size of parameters (LAMB,
      Prodigy), on the loss (Polyak, Sophia, L-BFGS), or on a global norm.
    learning_rate: number or schedule, tuned at the base width.
    base_shapes: see `infer`.
    spectral: which size of core's updates is the same at all widths. False: the
      size of entries, as in Adam, or in SGD on rescaled gradients. True: the
      size of singular values for matrices, and of entries for vectors, as in
      Muon (see `mu_muon`) or Shampoo with a fourth root per side.
    weight_decay: number or schedule, tuned at the base width; multiplied by the
      learning rate. Vectors do not decay.
    kappa: one step of weight decay shrinks a hidden or output matrix by a
      fraction proportional to fan_in**-kappa. 0: the fraction does not depend
      on width. 1/2: as Fan et al. propose. 1: the fraction falls like muP's
      learning rate.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    **inference: further arguments of `infer`, such as `overrides`.

  Returns:
    A transformation. Its `init` raises the errors of `infer`.

  Raises:
    ValueError: an unknown parametrization; spectral is True and it has no
      multipliers for width; or a rate is neither finite nor a schedule.

  Reference:
    Yang et al., 2022, https://arxiv.org/abs/2203.03466; spectral: Yang et al.,
    2023, https://arxiv.org/abs/2310.17813; kappa: Fan et al., 2025,
    https://arxiv.org/abs/2510.15262.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> import optax
    >>> init = lambda n: {"in": jnp.ones((8, n)), "out": jnp.ones((n, 4))}
    >>> params, base = init(64), init(16)
    >>> tx = mulo.scaling.mu(optax.scale_by_sign(), 0.5, base)
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> {name: float(u[0, 0]) for name, u in updates.items()}
    {'in': -0.5, 'out': -0.125}
  """
  inference = rates.keywords("inference", inference)
  rates.check("learning_rate", learning_rate)
  rates.check_decay(weight_decay)
  resolved = parametrizations.find(parametrization)
  if spectral and not resolved.needs_base_shapes:
    raise ValueError("Muon, as any `mu` with spectral=True, needs multipliers "
                     f"for width, as 'mup' has, got {parametrization!r}.")
  mults_of = functools.partial(
      multipliers_lib.relative, resolved, forward=forward, kappa=kappa)

  def update_mult(info: ParamInfo) -> float:
    mult = mults_of(info).update
    return mult * _singular_value(info) if spectral else mult

  def decay_mult(info: ParamInfo) -> float:
    return mults_of(info).decay * mults_of(info).update

  return optax.chain(
      scale_gradients(base_shapes, parametrization=parametrization,
                      forward=forward, **inference), core,
      multipliers_lib.scale_by_role(update_mult, base_shapes, **inference),
      rates.add_decay(weight_decay, functools.partial(
          multipliers_lib.map_roles, decay_mult, base_shapes=base_shapes,
          **inference)),
      optax.scale_by_learning_rate(learning_rate))


def _singular_value(info: ParamInfo) -> float:
  """Return the further multiplier of updates whose singular values have size 1.

  `Multipliers.update` is the multiplier of updates whose entries have size 1.
  The further multiplier is the singular value of a matrix of ones, divided by
  the same singular value at the base width. For a vector it is 1.
  """
  if info.role == "vector":
    return 1.0
  size = multipliers_lib.ratio_in(info) * multipliers_lib.ratio_out(info)
  return float(size**0.5)


def mu_adamw(learning_rate: Rate, base_shapes: Any, *, b1: float = 0.9,
             b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
             kappa: float = 0.0,
             parametrization: str | base.Parametrization = "mup",
             forward: bool = False, **inference: Any
             ) -> optax.GradientTransformationExtraArgs:
  """Return AdamW with hyperparameters that transfer from the base width.

  At the base shapes this is `optax.adamw` without decay of vectors.

  Args:
    learning_rate: see `mu`.
    base_shapes: see `infer`.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: epsilon at the base width; its effect is the same at all widths.
    weight_decay: see `mu`.
    kappa: see `mu`.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    **inference: further arguments of `infer`, such as `overrides`.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> init = lambda n: {"in": jnp.ones((8, n)), "out": jnp.ones((n, 4))}
    >>> params, base = init(64), init(16)
    >>> tx = mulo.scaling.mu_adamw(0.5, base)
    >>> updates, _ = jax.jit(tx.update)(params, tx.init(params))
    >>> {name: round(float(u[0, 0]), 3) for name, u in updates.items()}
    {'in': -0.5, 'out': -0.125}
  """
  return mu(
      optax.scale_by_adam(b1, b2, eps), learning_rate, base_shapes,
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, **inference)


def mu_sgd(learning_rate: Rate, base_shapes: Any, *,
           momentum: float | None = None,
           nesterov: bool = False, weight_decay: float = 0.0,
           kappa: float = 0.0,
           parametrization: str | base.Parametrization = "mup",
           forward: bool = False, **inference: Any
           ) -> optax.GradientTransformationExtraArgs:
  """Return SGD with hyperparameters that transfer from the base width.

  Arguments that are not listed are those of `mu_adamw`.

  Args:
    momentum: see `optax.sgd`.
    nesterov: see `optax.sgd`.

  Examples:
    Under muP, gradients of "in" fall as 1 / width. Here all gradients are 1:

    >>> import jax.numpy as jnp
    >>> import mulo
    >>> init = lambda n: {"in": jnp.ones((8, n)), "out": jnp.ones((n, 4))}
    >>> params, base = init(64), init(16)
    >>> tx = mulo.scaling.mu_sgd(0.5, base)
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> {name: float(u[0, 0]) for name, u in updates.items()}
    {'in': -2.0, 'out': -0.125}
  """
  core = optax.identity() if momentum is None else optax.trace(
      momentum, nesterov)
  return mu(
      core, learning_rate, base_shapes, weight_decay=weight_decay,
      parametrization=parametrization, forward=forward, kappa=kappa,
      **inference)


def mu_lion(learning_rate: Rate, base_shapes: Any, *, b1: float = 0.9,
            b2: float = 0.99, weight_decay: float = 0.0, kappa: float = 0.0,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False, **inference: Any
            ) -> optax.GradientTransformationExtraArgs:
  """Return Lion with hyperparameters that transfer from the base width.

  Arguments that are not listed are those of `mu_adamw`.

  Args:
    b1: see `optax.lion`.
    b2: see `optax.lion`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> init = lambda n: {"in": jnp.ones((8, n)), "out": jnp.ones((n, 4))}
    >>> params, base = init(64), init(16)
    >>> tx = mulo.scaling.mu_lion(0.5, base)
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> {name: float(u[0, 0]) for name, u in updates.items()}
    {'in': -0.5, 'out': -0.125}
  """
  return mu(
      optax.scale_by_lion(b1, b2), learning_rate, base_shapes,
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, **inference)


def mu_muon(learning_rate: Rate, base_shapes: Any, *, beta: float = 0.95,
            eps: float = 1e-8, ns_steps: int = 5, weight_decay: float = 0.0,
            kappa: float = 0.0, adam_learning_rate: Rate | None = None,
            adam_b1: float = 0.9, adam_b2: float = 0.999,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False, **inference: Any
            ) -> optax.GradientTransformationExtraArgs:
  """Return Muon for hidden matrices and AdamW for all other parameters.

  The update of a hidden matrix, with O its orthogonalised momentum, is

      -learning_rate * c * sqrt(r_in * r_out) * Multipliers.update * O
      c = sqrt(max(1, base_fan_out / base_fan_in))

  where r_in is fan-in / base_fan_in, r_out is fan-out / base_fan_out, and base
  means at the base width. Under "mup", sqrt(r_in * r_out) * Multipliers.update
  is sqrt(r_out / r_in). At the base width the update is that of
  `optax.contrib.muon`. Each index of a stack (layers, experts) has its own O.

  Args:
    learning_rate: for hidden matrices; see `mu`.
    base_shapes: see `infer`.
    beta: see `optax.contrib.muon`.
    eps: see `mu_adamw`.
    ns_steps: see `optax.contrib.muon`.
    weight_decay: see `mu`.
    kappa: see `mu`.
    adam_learning_rate: for all other parameters; default: learning_rate.
    adam_b1: see `mu_adamw`.
    adam_b2: see `mu_adamw`.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    **inference: further arguments of `infer`, such as `overrides`.

  Returns:
    A transformation. Its `update` raises ValueError if shapes do not tell the
    rows and columns of a hidden parameter.

  Raises:
    ValueError: a parametrization without multipliers for width.

  Reference:
    Jordan et al., 2024, https://kellerjordan.github.io/posts/muon; Yang et al.,
    2023, https://arxiv.org/abs/2310.17813 (sizes of updates).

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> init = lambda n: {"hidden": jnp.eye(n), "out": jnp.ones((n, 4))}
    >>> params, base = init(64), init(16)
    >>> tx = mulo.scaling.mu_muon(0.02, base, adam_learning_rate=3e-3)
    >>> jax.eval_shape(tx.update, params, tx.init(params))[0]["hidden"].shape
    (64, 64)
  """
  inference = rates.keywords("inference", inference)
  # Muon and Adam each see some of the parameters; the readout may be missing.
  masked = inference | {"readout": False}
  common: dict[str, Any] = dict(
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, **masked)
  map_roles = functools.partial(
      multipliers_lib.map_roles, base_shapes=base_shapes)
  muon = optax.chain(
      optax.contrib.scale_by_muon(
          ns_steps=ns_steps, beta=beta, eps=eps,
          weight_dimension_numbers=functools.partial(
              map_roles, _rows_and_columns, **masked)),
      multipliers_lib.scale_by_role(_base_aspect, base_shapes, **masked))
  adam = optax.scale_by_adam(adam_b1, adam_b2, eps)
  if adam_learning_rate is None:
    adam_learning_rate = learning_rate
  return optax.partition(
      {"muon": mu(muon, learning_rate, base_shapes, spectral=True, **common),
       "adam": mu(adam, adam_learning_rate, base_shapes, **common)},
      functools.partial(map_roles, _muon_or_adam, **inference))


def _muon_or_adam(info: ParamInfo) -> str:
  """Return the name of the optimizer of one parameter."""
  return "muon" if info.role == "hidden" else "adam"


def _base_aspect(info: ParamInfo) -> float:
  """Return Muon's multiplier for the shape of a matrix, at the base width."""
  at_base = info._replace(shape=info.base_shape)
  return float(max(1, at_base.fan_out / at_base.fan_in)**0.5)


def _rows_and_columns(info: ParamInfo) -> optax.contrib.MuonDimensionNumbers:
  """Return the axes for Muon; raise ValueError if shapes do not tell them."""
  if info.open:
    raise ValueError(
        f"For a hidden parameter of canonical shape {info.shape}, shapes do "
        f"not tell {info.open}. Muon needs rows and columns: declare the axes "
        "of this parameter in overrides.")
  return optax.contrib.MuonDimensionNumbers(info.inputs, info.outputs)
