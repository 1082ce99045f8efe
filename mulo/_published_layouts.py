"""Turn weights that other projects published into artifacts.

A published layout is the set of names under which a project stores its theta,
with the shapes of the arrays. (In `learned_opt.scaling`, "layout" is the order
of a kernel's axes.)
"""

from typing import Any, Collection, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.optimizers.shared import velo_features

Shape = tuple[int, ...]


class PublishedLayout(NamedTuple):
  """Names and shapes of a theta's arrays in the files of another project.

  Attributes:
    optimizer: name of this project's optimizer.
    names: {path in theta: published names}. If a path has several published
      names, their arrays are blocks of rows of the array in theta.
    sizes: {setting: (published name, axis)}. The setting is the size of this
      axis of the published array.
    transposed: whether published matrices are transposed, as in torch.
    arguments: paths in theta whose arrays are not in the files, but arguments
      of `convert`.
    switches: settings in which published files differ without saying so, and
      which are therefore arguments of `convert`.
  """

  optimizer: str
  names: dict[str, tuple[str, ...]]
  sizes: dict[str, tuple[str, int]]
  transposed: bool = False
  arguments: tuple[str, ...] = ()
  switches: tuple[str, ...] = ()


_DECAYS = ("momentum_decays", "rms_decays", "adafactor_decays")


def _layers(weight: str, bias: str, layers: tuple[int | str, ...]
            ) -> dict[str, tuple[str, ...]]:
  """Return the names of an MLP's layers.

  Args:
    weight: published name of a weight matrix, with {} for the layer.
    bias: published name of a bias, with {} for the layer.
    layers: published names of the layers, in order.

  Returns:
    {"w0": (name,), "b0": (name,), "w1": ...}, by path in theta.
  """
  return {f"{kind}{i}": (name.format(layer),)
          for kind, name in (("w", weight), ("b", bias))
          for i, layer in enumerate(layers)}


def _first_in_blocks() -> dict[str, tuple[str, ...]]:
  """Return the names of an MLP whose w0 is published in blocks of rows.

  Each group of features has one block, named w0__0, w0__1, ...
  """
  prefix = "ff_mod_stack/~/"
  names = _layers(prefix + "w{}", prefix + "b{}", (0, 1, 2))
  return names | {"w0": tuple(
      f"{prefix}w0__{i}" for i in range(len(velo_features.GROUP_SIZES)))}


def _hyper_v2() -> dict[str, tuple[str, ...]]:
  """Return the names of VeLO: a bank of MLPs, dense layers and an LSTM."""
  dense = {"mixing/unused": "linear", "mixing/shared": "linear_1",
           "mixing/own": "linear_2", "lstm": "rnn/linear",
           "controls": "rnn_to_controls", "step_size": "step_size"}
  return {
      **{f"bank/{path}": names for path, names in _first_in_blocks().items()},
      **{f"{path}/{kind}": (f"rnn_params/{name}/{kind}",)
         for path, name in dense.items() for kind in "wb"},
      **{f"initial/{name}": (f"lstm_init_state/{name}",)
         for name in ("hidden", "cell")}}


def _wnn() -> dict[str, tuple[str, ...]]:
  """Return the names of WNN+: types of parameters, and an MLP of five layers.
  """
  prefix = "edge_mlp.fc.{}."
  first = {f"{kind}0": (f"edge_proj.fc.0.{name}",)
           for kind, name in (("w", "weight"), ("b", "bias"))}
  rest = _layers(prefix + "weight", prefix + "bias", (0, 2, 4, 6))
  return {"types": ("layer_embed.weight",), **first, **{
      f"{path[0]}{int(path[1]) + 1}": name for path, name in rest.items()}}


LAYOUTS = {
    "learned_optimization/mlp_lopt": PublishedLayout(
        "mlp_lopt", _layers(
            "mlp/~/linear_{}/w", "mlp/~/linear_{}/b", (0, 1, 2)),
        {"hidden": ("mlp/~/linear_0/b", 0)}),
    "learned_optimization/adafac_mlp_lopt": PublishedLayout(
        "adafac_mlp", _layers("nn/~/w{}", "nn/~/b{}", (0, 1, 2)) | {
            name: (name,) for name in _DECAYS},
        {"hidden": ("nn/~/b0", 0)}),
    "learned_optimization/hyper_v2": PublishedLayout(
        "velo", _hyper_v2(),
        {"lstm_hidden": ("rnn_params/step_size/w", 0),
         "bank": ("rnn_params/rnn_to_controls/b", 0),
         "hidden": ("ff_mod_stack/~/b0", 1)},
        switches=("use_bugged_loss_features", "use_bugged_next_lstm_state")),
    "celo2": PublishedLayout(
        "celo2", _first_in_blocks(), {"hidden": ("ff_mod_stack/~/b0", 0)}),
    "pylo/meta_mlp": PublishedLayout(
        "adafac_mlp", _layers(
            "network.{}.weight", "network.{}.bias",
            ("input", "linear_0", "output")),
        {"hidden": ("network.input.bias", 0)}, True, _DECAYS),
    "nino/wnn": PublishedLayout(
        "nowcast_adam", _wnn(),
        {"hidden": ("edge_proj.fc.0.bias", 0),
         "horizons": ("edge_mlp.fc.6.bias", 0)}, True)}


@artifact_lib.refusing("The input of convert")
def convert(flat_arrays: Mapping[str, Any], layout: str, *,
            parametrization: str = "standard", licence: str = "unknown",
            **settings: Any) -> artifact_lib.Artifact:
  """Return an artifact made from arrays in a published layout.

  Published layouts, with the optimizer of this project and the array names:

  * "learned_optimization/mlp_lopt", mlp_lopt: w and b of mlp/~/linear_0,
    linear_1 and linear_2.
  * "learned_optimization/adafac_mlp_lopt", adafac_mlp: nn/~/w0, b0, w1, b1, w2,
    b2, momentum_decays, rms_decays, adafactor_decays.
  * "learned_optimization/hyper_v2", velo: ff_mod_stack/~/w0__0 to w0__13 (rows
    of w0), b0, w1, b1, w2, b2; w and b of rnn_params/linear (unused), linear_1
    (shared), linear_2 (own), rnn/linear (lstm), rnn_to_controls and step_size;
    lstm_init_state/hidden and cell.
  * "celo2", celo2: ff_mod_stack/~/... as for hyper_v2.
  * "pylo/meta_mlp", adafac_mlp: network.input.weight (w0, transposed as in
    torch) and network.input.bias (b0); network.linear_0 holds w1 and b1,
    network.output holds w2 and b2.
  * "nino/wnn", nowcast_adam: the names in its state_dict. Licence: MIT.

  Files of VeLO do not have use_bugged_loss_features and
  use_bugged_next_lstm_state: pass them, too. Both are False for the final VeLO.

  PyLO has the learned decays in its code, not in its files. Pass them as the
  settings momentum_decays, rms_decays and adafactor_decays: residuals r, from
  which decay = 1 - (1 - initial decay) * exp(10 * r), as in PyLO's optimizers.
  The defaults of PyLO's MuLO belong to the weights btherien/mulo: (0.15216392,
  0.14245212, 0.06812963), (0.01079706,) and (0.18621896, -0.10864615,
  -0.06185547), with step_mult=0.01 and parametrization="mup".

  Args:
    flat_arrays: {published name: array}.
    layout: name of the published layout, see above.
    parametrization: "standard" or "mup", as in the meta-training of the
      weights.
    licence: licence of the weights, an SPDX identifier.
    **settings: settings of the optimizer that the arrays do not show, such as
      step_mult=0.01. Sizes are taken from the shapes of the arrays.

  Returns:
    The artifact; `mulo.save` writes it to a file.

  Raises:
    ArtifactError: unknown layout, missing or additional names, shapes that do
      not fit, entries that are not finite real numbers, or wrong settings.
  """
  if layout not in LAYOUTS:
    raise ValueError(
        f"Unknown layout {layout!r}; available: {', '.join(LAYOUTS)}.")
  published = LAYOUTS[layout]
  arrays = _arrays(published, layout, flat_arrays)
  given = {name: x.shape for name, x in arrays.items()}
  # Arrays that the files lack are given as settings, but are part of theta.
  arguments = {name: _numbers(name, settings.pop(name))
               for name in published.arguments if name in settings}
  if len(arguments) < len(published.arguments):
    raise ValueError(
        f"{layout} files do not have {', '.join(published.arguments)}: give "
        "them as arguments; missing: "
        f"{sorted(set(published.arguments) - set(arguments))}.")
  # Settings that are sizes follow from the shapes, unless the user gives them.
  for setting, (name, axis) in published.sizes.items():
    if len(given[name]) <= axis:
      raise ValueError(
          f"{name} has the shape {list(given[name])}, which has no axis "
          f"{axis}. The size of this axis is the setting {setting}.")
    settings.setdefault(setting, given[name][axis])
  known = set(settings)
  settings = optimizers.all_settings(published.optimizer, **settings)
  theta = optimizers.theta_shapes(published.optimizer, **settings)
  _check_shapes(given, shapes(published, theta),
                f"{layout} with the settings {settings}")
  check_switches(layout, known)
  flat = arguments | {
      path: _joined(published, [arrays[name] for name in names])
      for path, names in published.names.items()}
  return artifact_lib.Artifact(
      published.optimizer, settings, parametrization,
      artifact_lib.unflatten(theta, flat), {"converted_from": layout}, licence)


def check_switches(layout: Any, settings: Collection[str]) -> None:
  """Raise ValueError if settings lack those in which published files differ.

  Args:
    layout: name of the published layout; any other value passes.
    settings: names of the settings that were given or stored.
  """
  published = LAYOUTS.get(layout) if isinstance(layout, str) else None
  missing = [x for x in published.switches if x not in settings
             ] if published else []
  if missing:
    raise ValueError(
        f"{layout} files differ in {' and '.join(missing)} without saying so: "
        "give the values that the weights were meta-trained with, such as "
        f"{', '.join(f'{x}=False' for x in missing)}.")


def _numbers(name: str, x: Any) -> np.ndarray:
  """Return x as float32; raise ValueError unless x is real numbers."""
  try:
    x = np.asarray(x)
  except Exception as e:  # the `__array__` of an object may raise anything
    raise ValueError(f"{name} is not an array of numbers: {e}") from e
  if not (jnp.issubdtype(x.dtype, np.floating) or
          jnp.issubdtype(x.dtype, np.integer)):
    raise ValueError(f"{name} is not an array of real numbers, but of dtype "
                     f"{x.dtype}.")
  # A float64 may become infinite in float32; `Artifact` refuses such numbers.
  with np.errstate(over="ignore"):
    return np.asarray(x.astype(np.float32))


def _arrays(published: PublishedLayout, layout: str,
            flat_arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Return the arrays as float32; raise ValueError if the names do not fit.

  Args:
    published: the layout.
    layout: its name, for the message.
    flat_arrays: see `convert`.
  """
  known = {name for names in published.names.values() for name in names}
  if set(flat_arrays) != known:
    raise ValueError(
        f"{layout} has the names {sorted(known)}; missing: "
        f"{sorted(known - set(flat_arrays))}, unexpected: "
        f"{sorted(map(str, set(flat_arrays) - known))}.")
  return {name: _numbers(name, x) for name, x in flat_arrays.items()}


def _check_shapes(given: Mapping[str, Shape], expected: Mapping[str, Shape],
                  what: str) -> None:
  """Raise ValueError unless all shapes are as expected."""
  wrong = [name for name in given if expected[name] != given[name]]
  if wrong:
    raise ValueError(
        f"These arrays are not those of {what}. Expected "
        f"{_listed(expected, wrong)}, found {_listed(given, wrong)}.")


def _joined(published: PublishedLayout, blocks: list[np.ndarray]) -> np.ndarray:
  """Return an array of theta from its published block or blocks of rows."""
  turned = [x.T if published.transposed else x for x in blocks]
  return np.concatenate(turned, -2) if len(turned) > 1 else turned[0]


def shapes(published: PublishedLayout, theta: Any) -> dict[str, Shape]:
  """Return {published name: shape} for a theta.

  Args:
    published: the layout.
    theta: theta of the optimizer, arrays or `jax.ShapeDtypeStruct`.
  """
  leaves = jax.tree_util.tree_leaves_with_path(theta)
  in_theta = {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
              for path, x in leaves}
  expected = {}
  for path, names in published.names.items():
    shape = in_theta[path]
    # Rows of each block: all rows if there is one block, and none in a vector.
    rows = velo_features.GROUP_SIZES if len(names) > 1 else shape[-2:-1]
    for n, name in zip(rows or (0,), names):
      block = (*shape[:-2], n, *shape[-1:]) if len(shape) > 1 else shape
      expected[name] = block[::-1] if published.transposed else block
  return expected


def _listed(shapes: Mapping[str, Shape], names: list[str]) -> str:
  """Return "name: shape, ..." of some names, for a message."""
  return ", ".join(f"{name}: {list(shapes[name])}" for name in names)
