"""Optimizers of optax under a parametrization, to be used from `mulo.scaling`.

`infer` and `multipliers` below are `mulo.scaling.infer` and `mulo.scaling.multipliers`.
"""

import functools
from typing import Any, Callable, Mapping, TypeAlias

import jax
import optax
import optax.contrib

from learned_opt import base
from learned_opt.scaling import multipliers as multipliers_lib
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib

ParamInfo = roles_lib.ParamInfo
Rate: TypeAlias = float | optax.Schedule


def scale_gradients(base_shapes: Any, *,
                    parametrization: str | base.Parametrization = "mup",
                    forward: bool = False,
                    inference: Mapping[str, Any] | None = None
                    ) -> optax.GradientTransformationExtraArgs:
  """Brings gradients to the size that they have at the base width.

  That is, to what the parametrization says of it; "standard" says nothing. In
  front of an optimizer with epsilons, or with any other constant that is
  compared with gradients, it makes these mean the same at all widths:

      tx = optax.chain(
          mulo.scaling.scale_gradients(base),
          mulo.load("adafac-mup-s", base_shapes=base, forward=False))

  Args:
    base_shapes: see `infer`.
    parametrization: see `multipliers`.
    forward: see `multipliers`; the same as for `mulo.load`, where it is True by
      default.
    inference: further arguments of `infer`.

  Returns:
    A stateless transformation; its `init` raises what `infer` does.

  Raises:
    ValueError: an unknown parametrization.
  """
  rule = parametrizations.find(parametrization)
  return multipliers_lib.scale_by_role(
      lambda info: 1 / multipliers_lib.relative(
          rule, info, forward=forward).gradient, base_shapes,
      **(inference or {}))


def mu(core: optax.GradientTransformation, learning_rate: Rate,
       base_shapes: Any, *, spectral: bool = False, weight_decay: float = 0.0,
       kappa: float = 0.0,
       parametrization: str | base.Parametrization = "mup",
       forward: bool = False, inference: Mapping[str, Any] | None = None
       ) -> optax.GradientTransformationExtraArgs:
  """An optimizer with the learning rates and decays of a parametrization.

      tx = mulo.scaling.mu(optax.scale_by_adan(), 3e-3, base)

  The optimizer sees gradients of the size that they have at the base width.
  That leaves its epsilons their meaning, and what is linear in gradients, as
  momentum is, needs the same factors as what does not depend on their size.

  Args:
    core: a `scale_by_...` of optax: without learning rate and decay, its
      updates not yet negated. Not one that reads the size of parameters (LAMB,
      Prodigy), the loss or its curvature (Polyak, Sophia, L-BFGS), or a norm
      over all parameters (clipping by it).
    learning_rate: what was tuned at the base width, or a schedule.
    base_shapes: see `infer`.
    spectral: False if entries of updates are of a size that does not depend on
      width, as those of Adam, or of SGD under gradients as above. True if for
      matrices singular values are, as those of Shampoo with a fourth root for
      each side, or of Muon (for which there is `mu_muon`); for vectors, which
      are biases and gains, entries then as well.
    weight_decay: at the base width; times the learning rate. Vectors do not
      decay.
    kappa: each step takes a part of matrices with a growing number of inputs
      that falls as width**-kappa: 0 (the part does not depend on width), 1/2,
      or 1 (one weight_decay for all, times learning rates that fall).
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    inference: further arguments of `infer`.

  Returns:
    A transformation; its `init` raises what `infer` does.

  Raises:
    ValueError: an unknown parametrization; spectral, and one without a rule
      for width.

  Reference:
    Yang et al., 2022, https://arxiv.org/abs/2203.03466; spectral: Yang et al.,
    2023, https://arxiv.org/abs/2310.17813; kappa: Fan et al., 2025,
    https://arxiv.org/abs/2510.15262.
  """
  rule = parametrizations.find(parametrization)
  if spectral and not rule.needs_base_shapes:
    raise ValueError("Optimizers such as Muon need a parametrization with a "
                     f"rule for width, got {parametrization!r}.")
  inference = inference or {}
  of = functools.partial(
      multipliers_lib.relative, rule, forward=forward, kappa=kappa)

  def of_update(info):
    if not spectral or info.role == "vector":
      return of(info).update
    # Where singular values stay, entries fall by the root of this.
    entries = multipliers_lib.ratio_in(info) * multipliers_lib.ratio_out(info)
    return entries**0.5 * of(info).update

  links = [scale_gradients(base_shapes, parametrization=parametrization,
                           forward=forward, inference=inference), core,
           multipliers_lib.scale_by_role(of_update, base_shapes, **inference)]
  if not _is_zero(weight_decay):
    decays = lambda params: multipliers_lib.map_roles(
        lambda info: weight_decay * of(info).decay * of(info).update, params,
        base_shapes, **inference)
    links.append(_add_decay(decays))
  return optax.chain(*links, optax.scale_by_learning_rate(learning_rate))


def _is_zero(x: Any) -> bool:
  """Whether it is the number 0; what `inject_hyperparams` traces is not."""
  return isinstance(x, (int, float)) and x == 0


def _add_decay(decays: Callable) -> optax.GradientTransformation:
  """Adds each parameter times its own factor, those of `decays(params)`."""

  def update(updates, state, params=None):
    if params is None:
      raise ValueError("Weight decay reads the parameters: call "
                       "update(grads, state, params).")
    return jax.tree.map(lambda u, p, decay: u + (decay * p).astype(u.dtype),
                        updates, params, decays(params)), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def mu_adamw(learning_rate: Rate, base_shapes: Any, *, b1: float = 0.9,
             b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
             kappa: float = 0.0,
             parametrization: str | base.Parametrization = "mup",
             forward: bool = False,
             inference: Mapping[str, Any] | None = None
             ) -> optax.GradientTransformationExtraArgs:
  """AdamW with the learning rates, epsilons and decays of a parametrization.

  At the base shapes it is `optax.adamw`, but that vectors do not decay.

  Args:
    learning_rate: see `mu`.
    base_shapes: see `infer`.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: at the base width; scaled as gradients are.
    weight_decay: see `mu`.
    kappa: see `mu`.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    inference: further arguments of `infer`.
  """
  return mu(
      optax.scale_by_adam(b1, b2, eps), learning_rate, base_shapes,
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, inference=inference)


def mu_sgd(learning_rate: Rate, base_shapes: Any, *, momentum: float = 0.0,
           nesterov: bool = False, weight_decay: float = 0.0,
           kappa: float = 0.0,
           parametrization: str | base.Parametrization = "mup",
           forward: bool = False,
           inference: Mapping[str, Any] | None = None
           ) -> optax.GradientTransformationExtraArgs:
  """SGD; arguments as in `mu_adamw`, and momentum as in `optax.sgd`."""
  core = optax.identity() if _is_zero(momentum) else optax.trace(
      momentum, nesterov)
  return mu(
      core, learning_rate, base_shapes, weight_decay=weight_decay,
      parametrization=parametrization, forward=forward, kappa=kappa,
      inference=inference)


def mu_lion(learning_rate: Rate, base_shapes: Any, *, b1: float = 0.9,
            b2: float = 0.99, weight_decay: float = 0.0, kappa: float = 0.0,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False,
            inference: Mapping[str, Any] | None = None
            ) -> optax.GradientTransformationExtraArgs:
  """Lion; arguments as in `mu_adamw`, see `optax.lion`."""
  return mu(
      optax.scale_by_lion(b1, b2), learning_rate, base_shapes,
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, inference=inference)


def mu_muon(learning_rate: Rate, base_shapes: Any, *, beta: float = 0.95,
            eps: float = 1e-8, ns_steps: int = 5, weight_decay: float = 0.0,
            kappa: float = 0.0, adam_learning_rate: Rate | None = None,
            adam_b1: float = 0.9, adam_b2: float = 0.999,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False,
            inference: Mapping[str, Any] | None = None
            ) -> optax.GradientTransformationExtraArgs:
  """Muon for hidden matrices, AdamW for all else.

  Updates of hidden matrices are orthogonal ones times sqrt(outputs / inputs)
  (at the base width times sqrt(max(1, outputs / inputs)), as in optax), each
  layer or expert of a stack by itself. That holds under parametrizations whose
  updates of hidden matrices are as 1 / inputs, as those of `mup` are; what
  others have besides is on Muon's updates, too.

  Args:
    learning_rate: of hidden matrices, tuned at the base width.
    base_shapes: see `infer`.
    beta: see `optax.contrib.muon`.
    eps: see `mu_adamw`.
    ns_steps: see `optax.contrib.muon`.
    weight_decay: see `mu`.
    kappa: see `mu`.
    adam_learning_rate: of all else; by default the same.
    adam_b1: see `mu_adamw`.
    adam_b2: see `mu_adamw`.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    inference: further arguments of `infer`.

  Returns:
    A transformation; its `init` raises ValueError where shapes leave open what
    the rows and columns of a hidden parameter are.

  Raises:
    ValueError: a parametrization without a rule for width.

  Reference:
    Jordan et al., 2024, https://kellerjordan.github.io/posts/muon; Yang et al.,
    2023, https://arxiv.org/abs/2310.17813 (sizes of updates).
  """
  inference = dict(inference or {})
  # Each of the two sees a part of the parameters only.
  part = inference | {"readout": False}
  common: dict[str, Any] = dict(
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, inference=part)

  def aspect(info):
    before = info._replace(shape=info.base_shape)
    return max(1, before.fan_out / before.fan_in)**0.5

  label = lambda info: "muon" if info.role == "hidden" else "adam"
  by = lambda of, **settings: lambda tree: multipliers_lib.map_roles(
      of, tree, base_shapes, **(inference | settings))
  return optax.partition(
      {"muon": mu(
          optax.chain(
              optax.contrib.scale_by_muon(
                  ns_steps=ns_steps, beta=beta, eps=eps,
                  weight_dimension_numbers=by(_rows_and_columns, **part)),
              multipliers_lib.scale_by_role(aspect, base_shapes, **part)),
          learning_rate, base_shapes, spectral=True, **common),
       "adam": mu(
           optax.scale_by_adam(adam_b1, adam_b2, eps),
           learning_rate if adam_learning_rate is None else adam_learning_rate,
           base_shapes, **common)}, by(label))


def _rows_and_columns(info: ParamInfo) -> optax.contrib.MuonDimensionNumbers:
  """What `optax.contrib.muon` has to know; raises ValueError if it is open."""
  if info.open:
    raise ValueError(
        f"Of a hidden parameter that counts as {info.shape} it is open "
        f"{info.open}, and Muon has to know: declare the axes in overrides.")
  return optax.contrib.MuonDimensionNumbers(info.inputs, info.outputs)
