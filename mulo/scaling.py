"""muP for optax optimizers: learning rates that are tuned on a narrow network.

base = narrow.init(key, x)
params = mulo.scaling.rescale_init(wide.init(key, x), base)
tx = mulo.scaling.mu_adamw(3e-3, base)

`mu_sgd`, `mu_lion` and `mu_muon` are for these, `mu` for most other optimizers.
At the base width none of that changes anything; at any other width factors
follow from the shapes of the parameters there. At the base width itself `infer`
sees no axis grow and needs `delta_shapes`, the shapes at a third width. The
forward pass stays as it is, but for

* attention: query times key is multiplied by `attention_mult`, if the size of a
  head grows, and not only the number of heads;
* a readout that is the embedding as well: logits are multiplied by what the
  parametrization has on readouts, for `mup` base width over width;
* residual branches, under a parametrization for depth: `branch_mult`.

`describe` prints what was concluded about each parameter, and which of these
changes remain. `infer` says when there are errors instead of conclusions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from learned_opt import base
from learned_opt.scaling import multipliers as multipliers_lib
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from mulo import _mu_optimizers as mu_optimizers

ParamInfo = roles_lib.ParamInfo
Override = roles_lib.Override
Multipliers = multipliers_lib.Multipliers
infer = roles_lib.infer
mu = mu_optimizers.mu
mu_adamw = mu_optimizers.mu_adamw
mu_lion = mu_optimizers.mu_lion
mu_muon = mu_optimizers.mu_muon
mu_sgd = mu_optimizers.mu_sgd
scale_gradients = mu_optimizers.scale_gradients


def multipliers(params: Any, base_shapes: Any, *,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False, kappa: float = 0.0,
            **inference) -> dict[str, Multipliers]:
  """Factors of each parameter, by path; all are 1 at the base shapes.

  Args:
    params: see `infer`.
    base_shapes: see `infer`.
    parametrization: name of a file in learned_opt/parametrizations, or what
      its `make` returns.
    forward: whether the network itself multiplies by `Multipliers.output`.
    kappa: exponent of weight decay, see `mu`.
    **inference: see `infer`.
  """
  of = functools.partial(
      multipliers_lib.relative, parametrizations.find(parametrization),
      forward=forward, kappa=kappa)
  return {path: of(info) for path, info in roles_lib.infer(
      params, base_shapes, **inference).items()}


def describe(params: Any, base_shapes: Any, *,
             parametrization: str | base.Parametrization = "mup",
             forward: bool = False, kappa: float = 0.0, **inference) -> str:
  """A table of what was concluded about each parameter.

  Args:
    params: see `infer`.
    base_shapes: see `infer`.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    kappa: see `multipliers`.
    **inference: see `infer`.

  Returns:
    A line per parameter: shapes, role, inputs and outputs, and the factors on
    initial weights, forward pass, Adam's and SGD's learning rate, Adam's
    epsilon and weight decay; then what remains to be done.
  """
  rule = parametrizations.find(parametrization)
  facts = roles_lib.infer(params, base_shapes, **inference)
  found = multipliers(params, base_shapes, parametrization=rule,
                      forward=forward, kappa=kappa, **inference)
  shapes, bases = (roles_lib.by_path(x) for x in (params, base_shapes))
  rows: list[tuple[str, ...]] = [(
      "parameter", "shape", "base shape", "role", "inputs", "outputs", "init",
      "output", "lr Adam", "lr SGD", "eps", "decay", "depth")]
  number = lambda x: f"{x:.4g}"
  for path, info in facts.items():
    f = found[path]
    rows.append((
        path, str(shapes[path]), str(bases[path]), info.role,
        str(info.fan_in), str(info.fan_out), *map(number, (
            f.std, f.output, f.update, f.update / f.gradient, f.gradient,
            f.decay)), str(info.depth)))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(x.ljust(n) for x, n in zip(row, widths)).rstrip()
           for row in rows]
  return "\n".join([*lines, "", *_remains(facts, found, rule)])


def _remains(facts, found, rule) -> list[str]:
  """What a user has to do in the forward pass."""
  lines = [f"{path}: {info.open} is open; it matters for absolute numbers only."
           for path, info in facts.items() if info.open]
  lines += [f"{path}: multiply what is computed with it by {f.output:.4g}."
            for path, f in found.items() if f.output != 1]
  for path, info in facts.items():
    if info.role == "tied" and (mult := _tied_mult(info, rule)) != 1:
      lines.append(
          f"{path} reads out as well: multiply the logits by {mult:.4g}.")
  blocks = {(info.depth, info.base_depth) for info in facts.values()}
  for depth, base_depth in sorted(blocks):
    if (mult := branch_mult(depth, base_depth, parametrization=rule)) != 1:
      lines.append(f"Multiply the residual branches of {depth} blocks by "
                   f"{mult:.4g}.")
  return [*lines, "If the size of attention heads grows, multiply query times "
          "key by mulo.scaling.attention_mult(head size, base head size)."]


def _tied_mult(info: ParamInfo, rule: base.Parametrization) -> float:
  """What the rule has on a readout, for a table that is one as well."""
  mult = lambda n: rule.output_mult((n, 1), (2 * n, 1))
  before = info._replace(shape=info.base_shape)
  return mult(info.fan_out) / mult(before.fan_out)


def attention_mult(head_size: int, base_head_size: int, *,
                   parametrization: str | base.Parametrization = "mup"
                   ) -> float:
  """Factor on query times key; 1/sqrt(head size) at the base size."""
  rule = parametrizations.find(parametrization).attention_mult
  return base_head_size**-0.5 * (rule(head_size) / rule(base_head_size))


def branch_mult(depth: int, base_depth: int, *,
                parametrization: str | base.Parametrization = "completep"
                ) -> float:
  """Factor on residual branches; 1 at the base depth."""
  rule = parametrizations.find(parametrization).branch_mult
  return rule(depth) / rule(base_depth)


def rescale_init(params: Any, base_params: Any, *,
                 parametrization: str | base.Parametrization = "mup",
                 forward: bool = False, **inference) -> Any:
  """Initial parameters with the standard deviations that muP wants.

  The root mean square of each matrix becomes that at the base width, times the
  factor for its shape, whatever the initialiser does with width. Vectors, and
  what is zero, stay. Doing it twice changes nothing.

  Args:
    params: just initialised.
    base_params: the same network, initialised at the base width: arrays.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    **inference: see `infer`.

  Raises:
    ValueError: shapes instead of arrays; and see `infer`.
  """
  for name, tree in (("params", params), ("base_params", base_params)):
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
      raise ValueError(f"{name} must be arrays, not shapes: the size of their "
                       "entries is read. Initialise the network.")
  stds = {path: f.std for path, f in multipliers(
      params, base_params, parametrization=parametrization, forward=forward,
      **inference).items()}
  roles = {path: info.role for path, info in roles_lib.infer(
      params, base_params, **inference).items()}
  rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
  before = {roles_lib.path_of(path): x for path, x in
            jax.tree_util.tree_leaves_with_path(base_params)}

  def scale(path, x):
    path = roles_lib.path_of(path)
    if roles.get(path, "vector") == "vector":
      return x
    found = rms(x)
    mult = jnp.where(found > 0, stds[path] * rms(before[path]) / jnp.where(
        found > 0, found, 1), 1)
    return (x * mult).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(scale, params)
