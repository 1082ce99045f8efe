"""Base shapes: the parameter shapes of a network at another width."""

from collections.abc import Mapping
import copy
import dataclasses
import math
import numbers
from typing import Any, Callable, Iterable, TypeVar

import jax

Width = TypeVar("Width")
Config = TypeVar("Config")


def base_shapes(init: Callable[[Width], Any], width: Width) -> Any:
  """Return the parameter shapes of a network at another width.

  Nothing is allocated: `init` is only traced, as by `jax.eval_shape`.

  Args:
    init: function of the width that makes what the optimizer gets: variables or
      params of flax linen, `nnx.state(module, nnx.Param)` of flax nnx, a module
      of equinox, whole or filtered, params of haiku, or any other tree of
      arrays. `nnx.Rngs` have to be made inside.
    width: any width but that of the network at hand, or whatever else `init`
      takes, such as a config from `scale_config`.

  Returns:
    A tree like the result of `init`: `jax.ShapeDtypeStruct` in place of arrays,
    None in place of leaves that are no arrays, such as activation functions.

  Raises:
    ValueError: a width that is a number but no positive integer, or a result
      without arrays.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> init = lambda width: {"hidden": jnp.ones((64, width)),
    ...                       "output": jnp.zeros((width, 10))}
    >>> base_shapes = mulo.scaling.base_shapes(init, width=8)
    >>> base_shapes["output"]
    ShapeDtypeStruct(shape=(8, 10), dtype=float32)
    >>> tx = mulo.load("mulo-s", base_shapes=base_shapes, num_steps=1000)
  """
  if isinstance(width, numbers.Number) and not _is_size(width):
    raise ValueError(f"width is {width!r}. Pass a positive integer.")

  def arrays() -> Any:
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else None,
                        init(width))

  shapes: Any = jax.eval_shape(arrays)
  if not jax.tree.leaves(shapes):
    raise ValueError(f"init({width!r}) returned no arrays. It must return the "
                     "parameters of a network of this width.")
  return shapes


def scale_config(config: Config, factor: float, fields: Iterable[str]
                 ) -> Config:
  """Return a config with some sizes multiplied; `config` stays as it is.

  This is for networks that have no argument for the width, but several sizes
  that grow together, such as those of the embedding and of the MLP.

  Args:
    config: a dataclass, such as a flax.linen module that is not bound; a dict;
      an ml_collections.ConfigDict, whose references follow; or any other object
      with attributes.
    factor: positive number, such as 1/8.
    fields: names of the fields that are multiplied: integers, or tuples and
      lists of integers. Leave out sizes that do not grow with the width, such
      as the number of classes.

  Raises:
    ValueError: a field that does not exist, that is no size, or whose product
      is no positive integer.

  Examples:
    >>> import mulo
    >>> config = {"width": 512, "mlp": (2048, 512), "classes": 10}
    >>> mulo.scaling.scale_config(config, 1/8, ["width", "mlp"])
    {'width': 64, 'mlp': (256, 64), 'classes': 10}
  """
  names = (fields,) if isinstance(fields, str) else tuple(fields)
  known = _fields(config)
  for name in names:
    if name not in known:
      raise ValueError(f"The config has no field {name!r}. Its fields are "
                       f"{', '.join(known)}.")
  changes = {name: _scaled(known[name], factor, name) for name in names}
  # Ignore: mypy does not see that these results have the type of the config.
  if dataclasses.is_dataclass(config):
    return dataclasses.replace(config, **changes)  # type: ignore
  if isinstance(config, Mapping):
    return {**config, **changes}  # type: ignore
  result = copy.deepcopy(config)
  for name, value in changes.items():
    setattr(result, name, value)
  return result


def _fields(config: Any) -> dict[str, Any]:
  """Return {name: value} of a config; raise ValueError if it is a class."""
  if isinstance(config, type):
    raise ValueError(f"The config is the class {config.__name__}. Pass an "
                     "instance of it.")
  if dataclasses.is_dataclass(config):
    return {x.name: getattr(config, x.name)
            for x in dataclasses.fields(config) if x.init}
  # A ConfigDict is no Mapping, but has items, as a dict does.
  return dict(config.items() if hasattr(config, "items") else vars(config))


def _scaled(value: Any, factor: float, name: str) -> Any:
  """Return a size, or sizes, times factor; see `scale_config` for errors."""
  if isinstance(value, (tuple, list)):
    return type(value)(_scaled(x, factor, name) for x in value)
  if not _is_size(value):
    raise ValueError(f"Field {name!r} is {value!r}. Only positive integers, "
                     "and tuples and lists of them, can be scaled.")
  product = value * factor
  # A product such as 49 * (1/49) is rounded.
  if math.isfinite(product) and product > 0.5 and math.isclose(
      product, round(product), rel_tol=1e-9):
    return round(product)
  raise ValueError(f"Field {name!r} is {value}, times {factor} is {product}. "
                   "Choose a factor that makes it a positive integer.")


def _is_size(value: Any) -> bool:
  """Return whether a value is a positive integer."""
  return isinstance(value, numbers.Integral) and not isinstance(
      value, bool) and int(value) > 0
