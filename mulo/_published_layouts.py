"""Weights published elsewhere, as artifacts."""

from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers
from learned_opt.update import velo_features


class Layout(NamedTuple):
  """Where the arrays of a theta are in files of others.

  Attributes:
    optimizer: name of ours.
    names: {name of ours: names of theirs}; several are blocks of rows.
    sizes: {setting: (name of theirs, axis)}, settings that shapes show.
    transposed: whether matrices are, as in torch.
    arguments: arrays of theta that are not in such files.
  """

  optimizer: str
  names: dict[str, tuple[str, ...]]
  sizes: dict[str, tuple[str, int]]
  transposed: bool = False
  arguments: tuple[str, ...] = ()


_DECAYS = ("momentum_decays", "rms_decays", "adafactor_decays")


def _layers(weight: str, bias: str, layers: tuple) -> dict:
  """{w0: ..., b0: ...} of the layers of an MLP."""
  return {f"{kind}{i}": (name.format(layer),)
          for kind, name in (("w", weight), ("b", bias))
          for i, layer in enumerate(layers)}


def _first_in_blocks() -> dict:
  """An MLP whose first layer is in blocks, one for each group of features."""
  prefix = "ff_mod_stack/~/"
  names = _layers(prefix + "w{}", prefix + "b{}", (0, 1, 2))
  return names | {"w0": tuple(
      f"{prefix}w0__{i}" for i in range(len(velo_features.GROUP_SIZES)))}


def _hyper_v2() -> dict:
  dense = {"mixing/unused": "linear", "mixing/shared": "linear_1",
           "mixing/own": "linear_2", "lstm": "rnn/linear",
           "controls": "rnn_to_controls", "step_size": "step_size"}
  return {
      **{f"bank/{ours}": names for ours, names in _first_in_blocks().items()},
      **{f"{ours}/{kind}": (f"rnn_params/{theirs}/{kind}",)
         for ours, theirs in dense.items() for kind in "wb"},
      **{f"initial/{name}": (f"lstm_init_state/{name}",)
         for name in ("hidden", "cell")}}


LAYOUTS = {
    "learned_optimization/mlp_lopt": Layout(
        "mlp_lopt", _layers(
            "mlp/~/linear_{}/w", "mlp/~/linear_{}/b", (0, 1, 2)),
        {"hidden": ("mlp/~/linear_0/b", 0)}),
    "learned_optimization/adafac_mlp_lopt": Layout(
        "adafac_mlp", _layers("nn/~/w{}", "nn/~/b{}", (0, 1, 2)) | {
            name: (name,) for name in _DECAYS},
        {"hidden": ("nn/~/b0", 0)}),
    "learned_optimization/hyper_v2": Layout(
        "velo", _hyper_v2(),
        {"lstm_hidden": ("rnn_params/step_size/w", 0),
         "bank": ("rnn_params/rnn_to_controls/b", 0),
         "hidden": ("ff_mod_stack/~/b0", 1)}),
    "celo2": Layout(
        "celo2", _first_in_blocks(), {"hidden": ("ff_mod_stack/~/b0", 0)}),
    "pylo/meta_mlp": Layout(
        "adafac_mlp", _layers(
            "network.{}.weight", "network.{}.bias",
            ("input", "linear_0", "output")),
        {"hidden": ("network.input.bias", 0)}, True, _DECAYS)}


@artifact_lib.refusing("What convert was given")
def convert(flat_arrays: Mapping[str, Any], layout: str, *,
            parametrization: str = "standard", licence: str = "unknown",
            **settings) -> artifact_lib.Artifact:
  """An artifact from arrays in a published layout.

  Layouts, optimizers of ours, and names of arrays:

  * "learned_optimization/mlp_lopt", mlp_lopt: w and b of mlp/~/linear_0,
    linear_1 and linear_2.
  * "learned_optimization/adafac_mlp_lopt", adafac_mlp: nn/~/w0, b0, w1, b1, w2,
    b2, momentum_decays, rms_decays, adafactor_decays.
  * "learned_optimization/hyper_v2", velo: ff_mod_stack/~/w0__0 to w0__13 (rows
    of w0), b0, w1, b1, w2, b2; w and b of rnn_params/linear (unused), linear_1
    (shared), linear_2 (own), rnn/linear (lstm), rnn_to_controls and step_size;
    lstm_init_state/hidden and cell.
  * "celo2", celo2: ff_mod_stack/~/... as for hyper_v2.
  * "pylo/meta_mlp", adafac_mlp: network.input.weight is w0 transposed, as torch
    has it, network.input.bias b0; network.linear_0 has w1 and b1,
    network.output w2 and b2.

  PyLO has the learned decays in its code, not in its files: give them as
  momentum_decays, rms_decays and adafactor_decays, the residuals that its
  optimizers take by these names. The defaults of PyLO's MuLO belong to the
  weights btherien/mulo: (0.15216392, 0.14245212, 0.06812963), (0.01079706,)
  and (0.18621896, -0.10864615, -0.06185547), with step_mult=0.01 and
  parametrization="mup".

  Args:
    flat_arrays: {name in that layout: array}.
    layout: see above.
    parametrization: what the weights were meta-trained under, "standard" or
      "mup".
    licence: of the weights, an SPDX identifier.
    **settings: settings of the optimizer that the arrays do not show, such as
      step_mult=0.01. Sizes are read off the arrays.

  Returns:
    The artifact; `mulo.save` writes it.

  Raises:
    ArtifactError: unknown layout, missing or additional names, shapes that do
      not fit, numbers that are none, or unknown settings.
  """
  if layout not in LAYOUTS:
    raise ValueError(
        f"Unknown layout {layout!r}; available: {', '.join(LAYOUTS)}.")
  rule = LAYOUTS[layout]
  arrays = _arrays(rule, layout, flat_arrays)
  found = {name: x.shape for name, x in arrays.items()}
  arguments = {name: _numbers(name, settings.pop(name))
               for name in rule.arguments if name in settings}
  if len(arguments) < len(rule.arguments):
    raise ValueError(
        f"{layout} files do not have {', '.join(rule.arguments)}: give them as "
        f"arguments; missing: {sorted(set(rule.arguments) - set(arguments))}.")
  for name, (theirs, axis) in rule.sizes.items():
    if len(found[theirs]) <= axis:
      raise ValueError(f"{theirs} needs {axis + 1} axes or more. Expected a "
                       f"size of the network, found {list(found[theirs])}.")
    settings.setdefault(name, found[theirs][axis])
  settings = optimizers.all_settings(rule.optimizer, **settings)
  lopt = optimizers.get(rule.optimizer, **settings)
  expected = shapes(rule, jax.eval_shape(lopt.init, jax.random.key(0)))
  if expected != found:
    wrong = [name for name in found if expected[name] != found[name]]
    raise ValueError(
        f"These arrays are not those of {layout} with the settings {settings}. "
        f"Expected {_listed(expected, wrong)}, found {_listed(found, wrong)}.")
  flat = arguments | {
      ours: np.concatenate([_turned(rule, arrays[name]) for name in theirs], -2)
      if len(theirs) > 1 else _turned(rule, arrays[theirs[0]])
      for ours, theirs in rule.names.items()}
  return artifact_lib.Artifact(
      rule.optimizer, settings, parametrization,
      artifact_lib.unflatten(lopt, flat), {"converted_from": layout}, licence)


def _numbers(name, x) -> np.ndarray:
  """x as float32, if it is real numbers."""
  try:
    x = np.asarray(x)
  except Exception as e:  # whatever an object's __array__ may raise
    raise ValueError(f"{name} is not an array of numbers: {e}") from e
  if not (jnp.issubdtype(x.dtype, np.floating) or
          jnp.issubdtype(x.dtype, np.integer)):
    raise ValueError(f"{name} is not an array of real numbers, but of dtype "
                     f"{x.dtype}.")
  with np.errstate(over="ignore"):  # the artifact refuses what is not finite
    return x.astype(np.float32)


def _arrays(rule, layout, flat_arrays) -> dict[str, np.ndarray]:
  """The given arrays, if their names are those of the layout."""
  known = {name for theirs in rule.names.values() for name in theirs}
  if set(flat_arrays) != known:
    raise ValueError(
        f"{layout} has the names {sorted(known)}; missing: "
        f"{sorted(known - set(flat_arrays))}, unexpected: "
        f"{sorted(map(str, set(flat_arrays) - known))}.")
  return {name: _numbers(name, x) for name, x in flat_arrays.items()}


def _turned(rule, x):
  return x.T if rule.transposed else x


def shapes(rule: Layout, theta: Any) -> dict[str, tuple]:
  """Shapes of their arrays, by their names.

  Args:
    rule: the layout.
    theta: of ours, arrays or `jax.ShapeDtypeStruct`.
  """
  leaves = jax.tree_util.tree_leaves_with_path(theta)
  ours = {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
          for path, x in leaves}
  expected = {}
  for name, theirs in rule.names.items():
    shape = ours[name]
    sizes = velo_features.GROUP_SIZES if len(theirs) > 1 else shape[-2:-1]
    for n, one in zip(sizes or (0,), theirs):
      whole = (*shape[:-2], n, *shape[-1:]) if len(shape) > 1 else shape
      expected[one] = whole[::-1] if rule.transposed else whole
  return expected


def _listed(shapes, names) -> str:
  return ", ".join(f"{name}: {list(shapes[name])}" for name in names)
