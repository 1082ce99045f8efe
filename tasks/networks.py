"""Networks that are scaled by a parametrization, from their shapes alone.

A network is written once, in flax or as functions, without any scaling. This
module gives each matrix, from its shapes at two widths, two scales of the
parametrization:

* its initial entries are `init_std * normal`,
* the forward pass reads `output_mult * matrix` in place of the matrix.
"""

from typing import Any, Callable, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from tasks import base


class Network(NamedTuple):
  """A network without its loss.

  Attributes:
    init: `(key) -> params`, float32.
    apply: `(params, inputs) -> outputs`; both can be trees of arrays.
    base_shapes: shapes of the params at another width, or None.
    activations: `(params, inputs) -> {layer: outputs of the layer}`, or None.
    blocks: see `tasks.base.Task`.
    tables: see `tasks.base.Task`.
  """

  init: Callable[[jax.Array], base.Params]
  apply: Callable[[base.Params, Any], Any]
  base_shapes: Any
  activations: Callable[
      [base.Params, Any], dict[str, jax.Array]] | None = None
  blocks: dict[str, int] | None = None
  tables: dict[str, str] | None = None


def from_flax(parametrization: base.Parametrization,
              build: Callable[[int], nn.Module], width: int,
              inputs: Any, init_scale: float = 1.0,
              blocks: dict[str, int] | None = None,
              tables: dict[str, str] | None = None) -> Network:
  """Return a flax module as a network that the parametrization scales.

  Parameters with two axes or more are drawn here from a normal distribution.
  The module must initialise them with zeros. Parameters with one axis start as
  in the module.

  Args:
    parametrization: see `tasks.families.get`.
    build: `(width) -> module`; the module has parameters and no other state.
    width: width of the network; base shapes are the shapes at twice this width.
    inputs: shape and dtype of a batch of inputs, or a tree of such.
    init_scale: factor on `init_std`.
    blocks: see `tasks.base.Task`.
    tables: see `tasks.base.Task`.
  """
  module = build(width)

  def shapes(module: nn.Module) -> Any:
    tree = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

  bases = shapes(build(2 * width))

  def per_matrix(scale: Callable[[base.Shape, base.Shape], float]) -> Any:
    """Return a tree of scales, None for parameters with fewer than two axes."""
    return jax.tree.map(
        lambda x, base_x: scale(x.shape, base_x.shape) if len(x.shape) > 1
        else None, shapes(module), bases)

  stds = per_matrix(parametrization.init_std)
  mults = per_matrix(parametrization.output_mult)

  def init(key: jax.Array) -> base.Params:
    params = module.lazy_init(key, inputs)["params"]
    # A matrix whose standard deviation is 0 stays zero without a draw.
    count = lambda p, std: 0 if p.ndim < 2 else p.size if std else 0
    sizes = jax.tree.map(count, params, stds, is_leaf=_is_none)
    # One draw for all matrices, because a draw is a hundred small kernels on a
    # CPU.
    noise = jax.random.normal(key, (sum(jax.tree.leaves(sizes)),), jnp.float32)
    used = 0

    def draw(p: jax.Array, std: Any, size: int) -> jax.Array:
      nonlocal used
      if not size:
        return p
      used += size
      return init_scale * std * noise[used - size:used].reshape(p.shape)

    return jax.tree.map(draw, params, stds, sizes, is_leaf=_is_none)

  def variables(params: base.Params) -> dict[str, Any]:
    # No product with 1, which would be one more operation per parameter.
    scale = lambda p, mult: p if mult in (None, 1.0) else p * mult
    return {"params": jax.tree.map(scale, params, mults, is_leaf=_is_none)}

  def activations(params: base.Params, x: Any) -> dict[str, jax.Array]:
    _, state = module.apply(
        variables(params), x, capture_intermediates=True,
        mutable=["intermediates"])
    leaves = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    # A module whose outputs are a tree is left out, but not the layers in it.
    return {_layer(path): x for path, x in leaves
            if all(hasattr(key, "key") for key in path[:-1])}

  def apply(params: base.Params, x: Any) -> Any:
    return module.apply(variables(params), x)

  return Network(init, apply, bases, activations, blocks, tables)


def _layer(path: tuple[Any, ...]) -> str:
  """Return the name of a layer, from its path in flax's intermediates.

  The name is the path of the module, plus the name given to `sow` if the module
  sowed the value. The name of the whole network is "output".
  """
  keys = [key.key for key in path[:-1]]  # without the index of the call
  return "/".join(key for key in keys if key != "__call__") or "output"


def of_batches(network: Network, inputs: Callable[[base.Batch], Any]
               ) -> Callable[[base.Params, base.Batch],
                             dict[str, jax.Array]] | None:
  """Return `Task.activations` of a network.

  Args:
    network: a network.
    inputs: `(batch) -> inputs` of the network.
  """
  of_inputs = network.activations
  if of_inputs is None:
    return None
  return lambda params, batch: of_inputs(params, inputs(batch))


def _is_none(x: Any) -> bool:
  return x is None  # jax.tree.map would otherwise take None for an empty tree


def computed_in(network: Network, dtype: str) -> Network:
  """Return the network computing in a dtype; params and outputs stay float32.

  Args:
    network: a network in float32.
    dtype: "float32" or "bfloat16".

  Raises:
    ValueError: another dtype.
  """
  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"Unknown compute_dtype {dtype!r}; available: float32, "
                     "bfloat16.")
  if dtype == "float32":
    return network

  def apply(params: base.Params, x: Any) -> Any:
    # Tokens are integers and stay integers.
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(
        x.dtype, jnp.floating) else x
    outputs = network.apply(*jax.tree.map(cast, (params, x)))
    return jax.tree.map(lambda y: y.astype(jnp.float32), outputs)

  return network._replace(apply=apply)
