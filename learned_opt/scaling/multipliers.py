"""Multipliers for width and depth, and optax transformations that apply them.
"""

from typing import Any, Callable, NamedTuple

import jax
import optax

from learned_opt import base
from learned_opt import kinds as kinds_lib
from learned_opt.scaling import roles as roles_lib


class Multipliers(NamedTuple):
  """Multipliers of one parameter, relative to the base width and base depth.

  All are 1 at the base shapes, but `decay` is 0 for vectors. Below, `u` is an
  update whose entries do not depend on the size of gradients, as Adam's, and
  `g` is a gradient.

  Attributes:
    std: initialisation: `std(initial entries) = std * their std at base width`.
    output: forward pass: `outputs = output * (inputs @ parameter)`.
    update: learning rate: `parameter -= learning_rate * update * u`. For SGD
      `parameter -= learning_rate * update / gradient * g`.
    gradient: `expected size of gradients / expected size at the base width`.
      An epsilon that is added to gradients becomes `eps * gradient`.
    decay: weight decay: `parameter -= learning_rate * update * decay *
      weight_decay * parameter`. `update * decay` is 0 for a vector, `(fan-in /
      fan-in at the base width)**-kappa` for a hidden or output parameter, and 1
      for all other roles.
  """

  std: float
  output: float
  update: float
  gradient: float
  decay: float


def relative(parametrization: base.Parametrization, info: roles_lib.ParamInfo,
             *, forward: bool = False, kappa: float = 0.0) -> Multipliers:
  """Return the multipliers of one parameter; all are 1 at the base shapes.

  A multiplier in the forward pass can be moved into the initial weights and
  their updates: the network computes and learns the same. `std` and `update`
  are then multiplied by `output`, and `gradient` is divided by it.

  Args:
    parametrization: see `learned_opt.scaling.parametrizations`.
    info: see `learned_opt.scaling.roles`.
    forward: True: the network itself multiplies by `output`. False: `output` is
      1, and `std`, `update` and `gradient` contain its effect.
    kappa: one step of weight decay shrinks a hidden or output parameter by a
      fraction proportional to `fan_in**-kappa`.

  Reference:
    Yang et al., 2022, https://arxiv.org/abs/2203.03466, appendix J.2.1.
  """

  def depth_ratio(fn: Callable[[int], float]) -> float:
    return fn(info.depth) / fn(info.base_depth)

  std = info.ratio(parametrization.init_std)
  output = info.ratio(parametrization.output_mult)
  update = info.ratio(parametrization.update_mult) * depth_ratio(
      parametrization.block_update_mult)
  gradient = info.ratio(parametrization.gradient_scale) * depth_ratio(
      parametrization.branch_mult)
  if not forward:
    std, update, gradient = std * output, update * output, gradient / output
    output = 1.0
  # 1 / update: what a step of decay takes does not depend on width.
  decay = 0.0 if info.role == "vector" else 1 / update
  if info.role in ("hidden", "output"):
    decay *= ratio_in(info)**-kappa
  return Multipliers(std, output, update, gradient, decay)


def ratio_in(info: roles_lib.ParamInfo) -> float:
  """Return fan-in / fan-in at the base width."""
  return info.fan_in / info._replace(shape=info.base_shape).fan_in


def ratio_out(info: roles_lib.ParamInfo) -> float:
  """Return fan-out / fan-out at the base width."""
  return info.fan_out / info._replace(shape=info.base_shape).fan_out


def map_roles(fn: Callable[[roles_lib.ParamInfo], Any], tree: Any,
              base_shapes: Any, **inference: Any) -> Any:
  """Return a tree like `tree` with `fn(info)` of each parameter as its leaf.

  Args:
    fn: a function of `learned_opt.scaling.roles.ParamInfo`.
    tree: parameters, or a tree of the same structure and shapes.
    base_shapes: see `learned_opt.scaling.roles.infer`.
    **inference: further arguments of `learned_opt.scaling.roles.infer`.

  Raises:
    ValueError: a leaf has no shape; or see `learned_opt.scaling.roles.infer`.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    if not hasattr(x, "shape"):
      raise ValueError(
          f"Parameter {roles_lib.path_of(path)} is {x!r}, which has no shape: "
          "make it an array, or take it out of the parameters.")
  infos = roles_lib.infer(tree, base_shapes, **inference)
  return jax.tree_util.tree_map_with_path(
      lambda path, x: fn(infos[roles_lib.path_of(path)]), tree)


def kinds(base_shapes: Any, **inference: Any) -> kinds_lib.Kinds:
  """Return what shapes and declarations tell about parameters.

  Args:
    base_shapes: see `learned_opt.scaling.roles.infer`.
    **inference: further arguments of `learned_opt.scaling.roles.infer`. A
      network without a readout is no error unless `readout` is True.
  """
  inference = {"readout": False, **inference}
  return lambda tree: {
      path: kinds_lib.Kind(info.stack, info.role, info.outputs)
      for path, info in roles_lib.infer(tree, base_shapes, **inference).items()}


def scale_by_role(fn: Callable[[roles_lib.ParamInfo], float], base_shapes: Any,
                  **inference: Any) -> optax.GradientTransformationExtraArgs:
  """Multiply each update by `fn(info)`, a function of its parameter's role.

  Args:
    fn: a function of `learned_opt.scaling.roles.ParamInfo`.
    base_shapes: see `learned_opt.scaling.roles.infer`.
    **inference: further arguments of `learned_opt.scaling.roles.infer`.

  Returns:
    A stateless transformation. `init` raises ValueError if base_shapes do not
    fit the parameters.
  """

  def init(params: optax.Params) -> optax.OptState:
    map_roles(fn, params, base_shapes, **inference)  # for its errors only
    return optax.EmptyState()

  # Shapes are known while the update is traced, so that the multipliers are
  # constants of the compiled program and need no state.
  def update(updates: optax.Updates, state: optax.OptState,
             params: optax.Params | None = None, **extra_args: Any
             ) -> tuple[optax.Updates, optax.OptState]:
    del params, extra_args
    mults = map_roles(fn, updates, base_shapes, **inference)
    return jax.tree.map(lambda u, mult: u * mult, updates, mults), state

  return optax.GradientTransformationExtraArgs(init, update)


def scale_by_parametrization(
    parametrization: base.Parametrization, base_shapes: Any, *,
    forward: bool = False, **inference: Any
    ) -> optax.GradientTransformationExtraArgs:
  """Multiply each update by its update multiplier; the last link of a chain.

  Multipliers are absolute, see `learned_opt.base.Parametrization`.

  Args:
    parametrization: see `learned_opt.scaling.parametrizations`.
    base_shapes: tree of arrays or `jax.ShapeDtypeStruct`, the parameters of
      the same network at another width.
    forward: whether the network itself multiplies by the output multipliers. If
      not, updates are multiplied by the output multipliers, too.
    **inference: further arguments of `learned_opt.scaling.roles.infer`.
  """
  if not parametrization.needs_base_shapes:
    return optax.with_extra_args_support(optax.identity())

  def mult(info: roles_lib.ParamInfo) -> float:
    update = info.at(parametrization.update_mult) * (
        parametrization.block_update_mult(info.depth))
    return update if forward else update * info.at(parametrization.output_mult)

  # A network whose outputs grow has no readout, which is no error here.
  return scale_by_role(
      mult, base_shapes, **{"readout": False, **inference})
