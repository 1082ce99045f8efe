"""Factors on updates, gradients and weight decay, and optax links for them."""

from typing import Any, Callable, NamedTuple

import jax
import optax

from learned_opt import base
from learned_opt.scaling import roles as roles_lib


class Multipliers(NamedTuple):
  """What a parametrization says of one parameter, relative to the base width.

  Attributes:
    std: on the standard deviation at initialisation.
    output: on what the forward pass computes with the parameter.
    update: on updates whose entries do not depend on the gradient's size.
    gradient: what gradients grow with; epsilons beside them must, too.
    decay: on weight decay that is multiplied by the learning rate and `update`.
  """

  std: float
  output: float
  update: float
  gradient: float
  decay: float


def relative(parametrization: base.Parametrization, info: roles_lib.ParamInfo, *,
             forward: bool = False, kappa: float = 0.0) -> Multipliers:
  """Factors of one parameter; all are 1 at the base shapes.

  A factor in the forward pass can as well be one on the initial weights and on
  their updates: the network computes and learns the same (for gradients the
  factor is inverse).

  Args:
    parametrization: see `learned_opt.scaling.parametrizations`.
    info: see `learned_opt.scaling.roles`.
    forward: whether the forward pass has the factor `output`; else that is 1,
      and `std`, `update` and `gradient` make up for it.
    kappa: of a matrix with a growing number of inputs, one step of decay takes
      a part that falls as width**-kappa.

  Reference:
    Yang et al., 2022, https://arxiv.org/abs/2203.03466, appendix J.2.1.
  """
  by_depth = lambda rule: rule(info.depth) / rule(info.base_depth)
  std, output = (info.ratio(rule) for rule in (
      parametrization.init_std, parametrization.output_mult))
  update = info.ratio(parametrization.update_mult) * by_depth(
      parametrization.block_update_mult)
  gradient = info.ratio(parametrization.gradient_scale) * by_depth(
      parametrization.branch_mult)
  if not forward:
    std, update, gradient = std * output, update * output, gradient / output
    output = 1.0
  decay = 0.0 if info.role == "vector" else 1 / update
  if info.role in ("hidden", "output"):
    decay *= ratio_in(info)**-kappa
  return Multipliers(std, output, update, gradient, decay)


def ratio_in(info: roles_lib.ParamInfo) -> float:
  """Inputs over those at the base width."""
  return info.fan_in / info._replace(shape=info.base_shape).fan_in


def ratio_out(info: roles_lib.ParamInfo) -> float:
  """Outputs over those at the base width."""
  return info.fan_out / info._replace(shape=info.base_shape).fan_out


def map_roles(of: Callable[[roles_lib.ParamInfo], Any], tree: Any, base_shapes: Any,
             **inference) -> Any:
  """A function of the facts of each parameter, as a tree like `tree`.

  Raises:
    ValueError: a leaf without a shape; and see `learned_opt.scaling.roles.infer`.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if not hasattr(x, "shape"):
      raise ValueError(
          f"Parameter {roles_lib.path_of(path)} is {x!r}, which has no shape: "
          "make it an array, or take it out of the parameters.")
  found = roles_lib.infer(tree, base_shapes, **inference)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: of(found[roles_lib.path_of(path)]), tree)


def scale_by_role(of: Callable[[roles_lib.ParamInfo], float], base_shapes: Any,
                   **inference) -> optax.GradientTransformationExtraArgs:
  """Multiplies each update by a function of what its parameter is.

  Args:
    of: see `map_roles`.
    base_shapes: see `learned_opt.scaling.roles.infer`.
    **inference: further arguments of that.

  Returns:
    A stateless transformation. `init` raises ValueError where base_shapes do
    not fit the parameters.
  """

  def init(params):
    map_roles(of, params, base_shapes, **inference)
    return optax.EmptyState()

  def update(updates, state, params=None, **extra_args):
    del params, extra_args
    factors = map_roles(of, updates, base_shapes, **inference)
    return jax.tree.map(lambda u, factor: u * factor, updates, factors), state

  return optax.GradientTransformationExtraArgs(init, update)


def scale_by_parametrization(
    parametrization: base.Parametrization, base_shapes: Any, *,
    forward: bool = True, **inference
    ) -> optax.GradientTransformationExtraArgs:
  """Multiplies each update by its update multiplier; the last link of a chain.

  Multipliers are absolute, see `base.Parametrization`.

  Args:
    parametrization: see `learned_opt.scaling.parametrizations`.
    base_shapes: tree of arrays or `jax.ShapeDtypeStruct`, the parameters of
      the same network at another width.
    forward: whether the forward pass has the output multipliers; else updates
      are multiplied by these, too.
    **inference: further arguments of `learned_opt.scaling.roles.infer`.
  """
  if not parametrization.needs_base_shapes:
    return optax.with_extra_args_support(optax.identity())

  def of(info):
    update = info.at(parametrization.update_mult) * (
        parametrization.block_update_mult(info.depth))
    return update if forward else update * info.at(parametrization.output_mult)

  return scale_by_role(
      of, base_shapes, **{"readout": False, **inference})
