"""muP for optax: tune a learning rate at a narrow width, use it at any width.

    base = narrow.init(key, x)
    params = mulo.scaling.rescale_init(wide.init(key, x), base)
    tx = mulo.scaling.mu_adamw(3e-3, base)

`mu_sgd`, `mu_lion` and `mu_muon` are used like `mu_adamw`; `mu` takes most
other optimizers of optax. At the base width, each update is that of the
optimizer in optax, except that vectors do not decay. At any other width,
multipliers follow from the shapes of the parameters at both widths. If the
network has the base width, no axis differs; then pass `delta_shapes`, the
shapes at a third width.

The forward pass stays as it is, with three exceptions:

* Attention, if the size of a head grows: multiply query times key by
  `attention_mult`. If only the number of heads grows, nothing changes.
* A readout that is also the embedding: multiply the logits by the number that
  `describe` prints; under "mup" this number is base width / width.
* Residual branches, under a parametrization for depth: multiply them by
  `branch_mult`.

`describe` prints what was inferred about each parameter, and which of these
exceptions apply. `infer` lists the cases in which shapes do not suffice.
`base_shapes` makes the shapes at another width, and `scale_config` a config
whose sizes are multiplied.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt.scaling import multipliers as multipliers_lib
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles as roles_lib
from mulo import _base_shapes
from mulo import _mu_optimizers as mu_optimizers

__all__ = ["Multipliers", "Override", "ParamInfo", "attention_mult",
           "base_shapes", "branch_mult", "describe", "infer", "mu", "mu_adamw",
           "mu_lion", "mu_muon", "mu_sgd", "multipliers", "rescale_init",
           "scale_config", "scale_gradients"]

ParamInfo = roles_lib.ParamInfo
Override = roles_lib.Override
Multipliers = multipliers_lib.Multipliers
infer = roles_lib.infer
base_shapes = _base_shapes.base_shapes
scale_config = _base_shapes.scale_config
mu = mu_optimizers.mu
mu_adamw = mu_optimizers.mu_adamw
mu_lion = mu_optimizers.mu_lion
mu_muon = mu_optimizers.mu_muon
mu_sgd = mu_optimizers.mu_sgd
scale_gradients = mu_optimizers.scale_gradients


def __dir__() -> list[str]:
  return sorted(__all__)


def multipliers(params: Any, base_shapes: Any, *,
                parametrization: str | base.Parametrization = "mup",
                forward: bool = False, kappa: float = 0.0,
                **inference: Any) -> dict[str, Multipliers]:
  """Return the multipliers of each parameter: {path: Multipliers}.

  At the base shapes, all multipliers are 1, except that `decay` is 0 for
  vectors.

  Args:
    params: see `infer`.
    base_shapes: see `infer`.
    parametrization: name of a file in learned_opt/scaling/parametrizations, or
      the result of its `make`.
    forward: True: the network itself multiplies by `Multipliers.output`. False:
      the network stays unchanged. `output` is then 1, and its multiplier is
      moved into `std`, `update` and `gradient`.
    kappa: exponent of weight decay, see `mu`.
    **inference: further arguments of `infer`.

  Raises:
    ValueError: an unknown parametrization; or see `infer`.

  Examples:
    >>> import jax
    >>> import mulo
    >>> init = lambda n: {"w": jax.ShapeDtypeStruct((n, 10), "float32")}
    >>> mulo.scaling.multipliers(init(1024), init(256))["w"]
    Multipliers(std=0.25, output=1.0, update=0.25, gradient=1.0, decay=4.0)
  """
  mults_of = functools.partial(
      multipliers_lib.relative, parametrizations.find(parametrization),
      forward=forward, kappa=kappa)
  return {path: mults_of(info) for path, info in roles_lib.infer(
      params, base_shapes, **inference).items()}


def describe(params: Any, base_shapes: Any, *,
             parametrization: str | base.Parametrization = "mup",
             forward: bool = False, kappa: float = 0.0, **inference: Any
             ) -> str:
  """Return a table of what was inferred about each parameter.

  Args:
    params: see `infer`.
    base_shapes: see `infer`; or the result of `mulo.load`, whose arguments then
      replace all that follow.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    kappa: see `multipliers`.
    **inference: further arguments of `infer`.

  Returns:
    One line per parameter: shapes, role, fan-in, fan-out; multipliers on
    initial weights, outputs, learning rate of Adam and of SGD, epsilon of Adam
    and weight decay; and number of residual blocks. Further lines say which
    changes you have to make in the forward pass.

  Raises:
    ValueError: see `multipliers`; or an optimizer that was meta-trained under
      the standard parametrization, which has no multipliers.

  Examples:
    >>> import jax
    >>> import mulo
    >>> init = lambda n: {"w": jax.ShapeDtypeStruct((n, 10), "float32")}
    >>> text = mulo.scaling.describe(init(1024), init(256))
    >>> for line in text.splitlines()[:2]:
    ...   print(line[:64].rstrip())
    parameter  shape       base shape  role    fan-in  fan-out  init
    w          (1024, 10)  (256, 10)   output  1024    10       0.25
  """
  if isinstance(base_shapes, optax.GradientTransformation):
    return describe(params, **_arguments(base_shapes))
  resolved = parametrizations.find(parametrization)
  infos = roles_lib.infer(params, base_shapes, **inference)
  mults = multipliers(params, base_shapes, parametrization=resolved,
                      forward=forward, kappa=kappa, **inference)
  shapes, bases = (roles_lib.by_path(x) for x in (params, base_shapes))
  rows: list[tuple[str, ...]] = [(
      "parameter", "shape", "base shape", "role", "fan-in", "fan-out", "init",
      "output", "lr Adam", "lr SGD", "eps", "decay", "depth")]
  for path, info in infos.items():
    m = mults[path]
    numbers = (m.std, m.output, m.update, m.update / m.gradient, m.gradient,
               m.decay)
    rows.append((
        path, str(shapes[path]), str(bases[path]), info.role, str(info.fan_in),
        str(info.fan_out), *(f"{x:.4g}" for x in numbers), str(info.depth)))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(x.ljust(n) for x, n in zip(row, widths)).rstrip()
           for row in rows]
  return "\n".join([*lines, "", *_remains(infos, mults, resolved)])


def _arguments(tx: optax.GradientTransformation) -> dict[str, Any]:
  """Return the arguments of `describe` for a result of `mulo.load`."""
  arguments: dict[str, Any] | None = getattr(tx, "scaling", None)
  if arguments is None:
    raise ValueError("describe takes base_shapes or the result of mulo.load, "
                     f"got {tx!r}.")
  if arguments["base_shapes"] is None:
    raise ValueError(
        "The optimizer was meta-trained under the parametrization "
        f"{arguments['parametrization']} and has no multipliers.")
  # As in `load`: a network whose outputs grow has no readout.
  return {"readout": False, **arguments}


def _remains(infos: dict[str, ParamInfo], mults: dict[str, Multipliers],
             parametrization: base.Parametrization) -> list[str]:
  """Return lines on what the user has to change in the forward pass."""
  lines = [f"{path}: shapes do not tell {info.open}; except for decay, the "
           "multipliers above do not depend on this."
           for path, info in infos.items() if info.open]
  lines += [f"{path}: multiply the outputs computed with it by {m.output:.4g}."
            for path, m in mults.items() if m.output != 1]
  for path, info in infos.items():
    if info.role == "tied" and (
        mult := _tied_mult(info, parametrization)) != 1:
      lines.append(
          f"{path} is the embedding and the readout: multiply the logits by "
          f"{mult:.4g}.")
  blocks = {(info.depth, info.base_depth) for info in infos.values()}
  for depth, base_depth in sorted(blocks):
    mult = branch_mult(depth, base_depth, parametrization=parametrization)
    if mult != 1:
      lines.append(f"Multiply the residual branches of {depth} blocks by "
                   f"{mult:.4g}.")
  return [*lines, "If the size of attention heads grows, multiply query times "
          "key by mulo.scaling.attention_mult(head size, base head size)."]


def _tied_mult(info: ParamInfo, parametrization: base.Parametrization) -> float:
  """Return the multiplier of the logits, for an embedding that is the readout.

  Entries of a table (rows, width) have fan-in 1 where rows are looked up, and
  fan-in `width` where the table is the readout.
  """

  def readout_mult(width: int) -> float:
    # Shapes of a readout with one output, at this width and at another width.
    return parametrization.output_mult((width, 1), (2 * width, 1))

  at_base = info._replace(shape=info.base_shape)
  return readout_mult(info.fan_out) / readout_mult(at_base.fan_out)


def attention_mult(head_size: int, base_head_size: int, *,
                   parametrization: str | base.Parametrization = "mup"
                   ) -> float:
  """Return the multiplier of attention logits (query times key).

  The multiplier is `1 / sqrt(base_head_size)` at the base head size. Under
  "mup" it is `sqrt(base_head_size) / head_size` at any other.

  Args:
    head_size: size of a head in the network at hand.
    base_head_size: size of a head in the base network.
    parametrization: see `multipliers`.

  Examples:
    >>> import mulo
    >>> mulo.scaling.attention_mult(64, 64)  # 1 / sqrt(64)
    0.125
    >>> mulo.scaling.attention_mult(256, 64)
    0.03125
  """
  mult_of = parametrizations.find(parametrization).attention_mult
  mult: float = base_head_size**-0.5 * (
      mult_of(head_size) / mult_of(base_head_size))
  return mult


def branch_mult(depth: int, base_depth: int, *,
                parametrization: str | base.Parametrization = "completep"
                ) -> float:
  """Return the multiplier on residual branches; 1 at the base depth.

  Args:
    depth: number of residual blocks in the network at hand.
    base_depth: number of residual blocks in the base network.
    parametrization: see `multipliers`; one with multipliers for depth.

  Examples:
    >>> import mulo
    >>> mulo.scaling.branch_mult(8, 2)
    0.25
    >>> mulo.scaling.branch_mult(8, 2, parametrization="depth_mup")
    0.5
  """
  mult_of = parametrizations.find(parametrization).branch_mult
  return mult_of(depth) / mult_of(base_depth)


def rescale_init(params: Any, base_params: Any, *,
                 parametrization: str | base.Parametrization = "mup",
                 forward: bool = False, **inference: Any) -> Any:
  """Return initial parameters, rescaled according to the parametrization.

  For each matrix `rms(result) = Multipliers.std * rms(base parameter)`,
  whatever the initialiser. Vectors and parameters that are zero stay unchanged.
  Rescaling twice is the same as rescaling once.

  Args:
    params: initial parameters, arrays.
    base_params: initial parameters of the same network at the base width,
      arrays.
    parametrization: see `multipliers`.
    forward: see `multipliers`.
    **inference: further arguments of `infer`.

  Raises:
    ValueError: shapes instead of arrays; or see `infer`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> params = {"readout": jnp.full((64, 4), 0.5)}
    >>> base = {"readout": jnp.full((16, 4), 1.0)}
    >>> float(mulo.scaling.rescale_init(params, base)["readout"][0, 0])
    0.25
  """
  for name, tree in (("params", params), ("base_params", base_params)):
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
      raise ValueError(f"{name} must be arrays, not shapes, because the size "
                       "of their entries matters. Initialise the network.")
  stds = {path: m.std for path, m in multipliers(
      params, base_params, parametrization=parametrization, forward=forward,
      **inference).items()}
  roles = {path: info.role for path, info in roles_lib.infer(
      params, base_params, **inference).items()}
  base_arrays = {roles_lib.path_of(path): x for path, x in
                 jax.tree_util.tree_leaves_with_path(base_params)}

  def scale(keys: tuple[Any, ...], x: Any) -> Any:
    path = roles_lib.path_of(keys)
    # Leaves without a shape, such as functions in equinox, have no role.
    if roles.get(path, "vector") == "vector":
      return x
    rms = _rms(x)
    # The inner where keeps a matrix of zeros from giving 0 / 0.
    mult = jnp.where(rms > 0, stds[path] * _rms(base_arrays[path]) / jnp.where(
        rms > 0, rms, 1), 1)
    return (x * mult).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(scale, params)


def _rms(x: jax.Array) -> jax.Array:
  """Return the root mean square of the entries, float32 []."""
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
