"""Networks whose scales follow from a parametrization, and from shapes alone.

A network is written once, in flax or as functions. Here its matrices are drawn
with the standard deviation, and multiplied in the forward pass by the factor,
that the parametrization gives for their shapes at two widths.
"""

from typing import Any, Callable, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp


class Network(NamedTuple):
  """A network without its loss.

  Attributes:
    init: `(key) -> params`, float32.
    apply: `(params, inputs) -> outputs`.
    base_shapes: shapes of the params at another width, or None.
    activations: `(params, inputs) -> {layer: what it computes}`, or None.
    blocks: see `tasks.base.Task`.
  """

  init: Callable[[jax.Array], Any]
  apply: Callable[[Any, jax.Array], jax.Array]
  base_shapes: Any
  activations: Callable[[Any, jax.Array], dict[str, jax.Array]] | None = None
  blocks: dict[str, int] | None = None


def from_flax(parametrization, build: Callable[[int], nn.Module], width: int,
              inputs: jax.ShapeDtypeStruct, init_scale: float = 1.0,
              blocks: dict[str, int] | None = None) -> Network:
  """A flax module under a parametrization.

  Parameters of at least two axes are drawn from a normal distribution, others
  start as in the module, which initialises the former with zeros.

  Args:
    parametrization: see `tasks.families.get`.
    build: `(width) -> module` with parameters only, no other state.
    width: of the network; the base shapes are those at twice the width.
    inputs: an example of the inputs.
    init_scale: factor on the standard deviations of the parametrization.
    blocks: see `tasks.base.Task`.
  """
  module = build(width)

  def shapes(module):
    tree = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

  bases = shapes(build(2 * width))
  at = lambda rule: jax.tree.map(
      lambda x, base: rule(x.shape, base.shape) if len(x.shape) > 1 else None,
      shapes(module), bases)
  stds, mults = at(parametrization.init_std), at(parametrization.output_mult)

  def init(key):
    params = module.lazy_init(key, inputs)["params"]
    drawn = lambda p, std: 0 if p.ndim < 2 else p.size if std else 0
    sizes = jax.tree.map(drawn, params, stds, is_leaf=_is_none)
    # One draw for all, since each draw is a hundred small kernels on a CPU.
    noise = jax.random.normal(key, (sum(jax.tree.leaves(sizes)),), jnp.float32)
    used = 0

    def add(p, std, size):
      nonlocal used
      if not size:
        return p
      used += size
      return init_scale * std * noise[used - size:used].reshape(p.shape)

    return jax.tree.map(add, params, stds, sizes, is_leaf=_is_none)

  def variables(params):
    scale = lambda p, mult: p if mult in (None, 1.0) else p * mult
    return {"params": jax.tree.map(scale, params, mults, is_leaf=_is_none)}

  def activations(params, x):
    _, found = module.apply(
        variables(params), x, capture_intermediates=True,
        mutable=["intermediates"])
    leaves = jax.tree_util.tree_leaves_with_path(found["intermediates"])
    return {_layer(path): x for path, x in leaves}

  def apply(params, x):
    return module.apply(variables(params), x)

  return Network(init, apply, bases, activations, blocks)


def _layer(path: tuple) -> str:
  """The module, or the name under which it sowed; "output" for the network."""
  keys = [key.key for key in path[:-1]]  # the last counts calls
  return "/".join(key for key in keys if key != "__call__") or "output"


def of_batches(network: Network, inputs: Callable[[Any], jax.Array]):
  """`Task.activations` of a network whose inputs follow from batches."""
  found = network.activations
  return None if found is None else lambda params, batch: found(
      params, inputs(batch))


def _is_none(x) -> bool:
  return x is None


def computed_in(network: Network, dtype: str) -> Network:
  """The network computing in "float32" or "bfloat16"; params stay float32.

  Raises:
    ValueError: another dtype.
  """
  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"Unknown compute_dtype {dtype!r}; available: float32, "
                     "bfloat16.")
  if dtype == "float32":
    return network

  def apply(params, x):
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(
        x.dtype, jnp.floating) else x
    return network.apply(
        jax.tree.map(cast, params), cast(x)).astype(jnp.float32)

  return network._replace(apply=apply)
