"""Read trained optimizers, and turn them into optax transformations."""

import dataclasses
import functools
import importlib.resources
from importlib.resources import abc
import numbers
import os
from typing import Any, Collection

import jax
import optax

from learned_opt import artifact as artifact_lib
from learned_opt import kinds as kinds_lib
from learned_opt import optimizers
from learned_opt import registry
from learned_opt import schedules
from learned_opt.scaling import multipliers
from learned_opt.scaling import parametrizations
from learned_opt.scaling import roles
from mulo import _hub as hub
from mulo import _published_layouts as published_layouts
from mulo import _rates as rates
from mulo import _warnings as warnings

save = artifact_lib.write
UNTRAINED = "untrained:"


def _pretrained_folder() -> abc.Traversable:
  return importlib.resources.files("mulo") / "pretrained"


def list_pretrained() -> list[str]:
  """Return the names of the trained optimizers in this package."""
  suffix = ".safetensors"
  return sorted(f.name.removesuffix(suffix)
                for f in _pretrained_folder().iterdir()
                if f.name.endswith(suffix))


def read(name_or_path: str | os.PathLike[str], trust: Collection[str] = ()
         ) -> artifact_lib.Artifact:
  """Read and check a trained optimizer.

  Args:
    name_or_path: one of `list_pretrained()`, a path to a .safetensors file, or
      "hf://owner/name", the file theta.safetensors of this repository on
      Hugging Face. "hf://owner/name@revision/file" is another file, at a
      branch, tag or commit. "untrained:" before one of these is the start of
      its meta-training, "untrained:optimizer/parametrization" that of a file
      of learned_opt/optimizers, such as "untrained:mulo2/natural".
    trust: names of code, each as "package.module:make", that the file may give
      as its optimizer or parametrization. Reading imports and runs this code.
      Optimizers of this package and of entry points need no trust.

  Returns:
    An artifact with `.lopt`, `.theta`, `.settings`, `.parametrization`,
    `.record` and `.trained`.

  Raises:
    FileNotFoundError: neither a pretrained optimizer nor a file.
    ArtifactError: a file that is damaged, of another format or of a newer
      version, or that names code that is not in `trust`.
    ImportError: huggingface_hub is needed but missing.
    ValueError: "untrained:" with an unknown parametrization.
  """
  name = os.fspath(name_or_path)
  if name.startswith(UNTRAINED):
    return _untrained(name.removeprefix(UNTRAINED), trust)
  if hub.is_name(name):
    return artifact_lib.read(hub.download(name), trust)
  known = list_pretrained()
  if name in known:
    with importlib.resources.as_file(
        _pretrained_folder() / f"{name}.safetensors") as path:
      return artifact_lib.read(path, trust)
  if not os.path.exists(name):
    raise FileNotFoundError(
        f"{name!r} is neither a file nor a pretrained optimizer; pretrained: "
        f"{', '.join(known) or 'none'}.{registry.similar(name, known)}")
  return artifact_lib.read(name, trust)


def _untrained(name: str, trust: Collection[str], **settings: Any
               ) -> artifact_lib.Artifact:
  """Return the start of meta-training, with random key 0.

  Args:
    name: what follows "untrained:", see `read`.
    trust: see `read`.
    **settings: of the optimizer; they replace its defaults, or those of the
      artifact.
  """
  optimizer, _, parametrization = name.partition("/")
  if optimizer in optimizers.names() and parametrization:
    parametrizations.get(parametrization)  # for its error
    settings = optimizers.all_settings(optimizer, **settings)
  else:
    artifact = read(name, trust)
    optimizer, settings = artifact.optimizer, artifact.settings | settings
    parametrization = artifact.parametrization
  theta = jax.device_get(
      optimizers.get(optimizer, **settings).init(jax.random.key(0)))
  return artifact_lib.Artifact(optimizer, settings, parametrization, theta)


def _read_with(name: str, trust: Collection[str], settings: dict[str, Any]
               ) -> artifact_lib.Artifact:
  """Return an artifact of which these settings are replaced; see `read`."""
  if name.startswith(UNTRAINED):
    return _untrained(name.removeprefix(UNTRAINED), trust, **settings)
  artifact = read(name, trust)
  return dataclasses.replace(artifact, settings=artifact.settings | settings)


def load(name_or_path: str | os.PathLike[str], *, base_shapes: Any = None,
         learning_rate: float | optax.Schedule = 1.0,
         weight_decay: float | optax.Schedule = 0.0,
         num_steps: int | None = None, forward: bool = False,
         trust: Collection[str] = (), **settings: Any
         ) -> optax.GradientTransformationExtraArgs:
  """Return a trained optimizer as an optax transformation.

  One step changes the parameters p by
  `learning_rate * (update_multiplier * learned_update - weight_decay * p)`.
  Parameters with fewer than two axes are not decayed. Mask parameters that are
  frozen: decay moves them, and so do most published optimizers.

  Args:
    name_or_path: see `read`.
    base_shapes: parameter shapes of the same network built at another width,
      as `mulo.scaling.base_shapes` or `jax.eval_shape` return them. mulo
      compares the shapes at the two widths to see which axes grow;
      `mulo.scaling.describe` prints the result. Required unless the optimizer
      was meta-trained under the standard parametrization.
    learning_rate: multiplier of the step (1 in meta-training), or an optax
      schedule of this multiplier.
    weight_decay: number or optax schedule, see the formula; not scaled by the
      update multiplier, but by the `schedule` of optimizers that have one.
    num_steps: planned number of steps, for optimizers that use it. A number
      beyond the horizon of meta-training causes a warning.
    forward: False (default): your network needs no change. Let output layers
      start at zero, or apply `mulo.scaling.rescale_init`; otherwise some wide
      networks train worse. True: your network divides the outputs of each
      output layer by its fan-in. Both are equivalent if output layers start at
      zero and the optimizer is invariant to scales of gradient and parameter.
    trust: see `read`.
    **settings: arguments of `mulo.scaling.infer`, such as `overrides` for roles
      that shapes do not show (embeddings need none), `layout="out_in"` for
      equinox and `deeper_shapes` for layers stacked on an axis. All
      others are settings of the optimizer that replace those of meta-training.
      `accumulator_dtype="bfloat16"` halves the state; `lowering` and
      `recompute` choose how the update is computed, see
      `learned_opt.update.mlp`.

  Returns:
    A transformation whose `update` needs `params`. Far beyond meta-training,
    `load` warns of the horizon, `init` of the width (`BeyondTrainingWarning`).

  Raises:
    FileNotFoundError: see `read`.
    ArtifactError, ImportError: see `read`.
    ValueError: a setting does not fit the optimizer or theta; a rate is neither
      finite nor a schedule; num_steps is not positive, or missing where
      meta-training had a horizon; or base_shapes are missing. `init` raises
      ValueError if base_shapes or parameters do not fit or are no real arrays.

  Examples:
    >>> import jax
    >>> import mulo
    >>> import numpy as np
    >>> def init(width):
    ...   return {"hidden": np.ones((64, width), np.float32) / 8,
    ...           "output": np.zeros((width, 64), np.float32)}
    >>> params = init(64)
    >>> tx = mulo.load("mulo-s", base_shapes=init(8), num_steps=1000)
    >>> state = tx.init(params)
    >>> grads = jax.tree.map(np.ones_like, params)
    >>> updates, state = jax.jit(tx.update)(grads, state, params)
    >>> jax.tree.map(np.shape, updates)
    {'hidden': (64, 64), 'output': (64, 64)}
  """
  settings = rates.keywords("settings", settings)
  scaling = dict(base_shapes=base_shapes, forward=forward, **{
      x: settings.pop(x) for x in roles.SETTINGS if x in settings})
  artifact = _read_with(os.fspath(name_or_path), trust, settings)
  _check_num_steps(artifact, name_or_path, num_steps)
  # Called here, not in a helper: its warning names the caller of `load`.
  warnings.check_horizon(artifact, name_or_path, num_steps)
  tx = optax.chain(
      *_learned_links(artifact, name_or_path, num_steps, scaling),
      *_rate_links(artifact, weight_decay, learning_rate, num_steps, scaling))
  return _loaded(tx, artifact, name_or_path, scaling)


def _learned_links(
    artifact: artifact_lib.Artifact, name: Any, num_steps: int | None,
    scaling: dict[str, Any]) -> list[optax.GradientTransformationExtraArgs]:
  """Return the learned update, and its multiplier if it needs one.

  Args:
    artifact: the trained optimizer.
    name: name of the optimizer, for the error message.
    num_steps: see `load`.
    scaling: base_shapes, forward and arguments of `mulo.scaling.infer`.

  Raises:
    ValueError: base_shapes are missing, or a setting that `mulo.convert` needs.
  """
  # A file that was converted by an earlier version may lack settings.
  published_layouts.check_switches(
      artifact.record.get("converted_from"), artifact.settings)
  theta = jax.tree.map(jax.numpy.asarray, artifact.theta)
  kinds = _kinds(artifact, **scaling)
  learned = kinds_lib.told(artifact.lopt.opt_fn, kinds)(
      theta, num_steps=num_steps)
  parametrization = parametrizations.get(artifact.parametrization)
  if not parametrization.needs_base_shapes:
    return [learned]
  if scaling["base_shapes"] is None:
    raise ValueError(
        f"{name} was meta-trained under {artifact.parametrization}: "
        "load needs base_shapes, the parameter shapes of the same network "
        "at another width. For a flax module Net(width), for example: "
        "base_shapes=mulo.scaling.base_shapes("
        "lambda width: Net(width).init(key, example_input), width=8).")
  return [learned, multipliers.scale_by_parametrization(
      parametrization, **scaling)]


def _kinds(artifact: artifact_lib.Artifact, base_shapes: Any, forward: bool,
           **inference: Any) -> kinds_lib.Kinds | None:
  """Return what is known about parameters, None if nothing is; see `load`."""
  del forward
  if base_shapes is None:
    if inference:
      raise ValueError(
          f"{', '.join(inference)} need base_shapes, the parameter shapes of "
          "the same network at another width.")
    return None
  if parametrizations.get(artifact.parametrization).needs_base_shapes:
    return multipliers.kinds(base_shapes, **inference)
  # Roles do not matter, and base_shapes may be those of the network itself.
  stacks = roles.stacks(base_shapes, **{
      name: x for name, x in inference.items()
      if name in ("deeper_shapes", "overrides")})
  kinds = {path: kinds_lib.Kind(axes) for path, axes in stacks.items()}
  return (lambda tree: kinds) if kinds else None


def _decay(artifact: artifact_lib.Artifact, weight_decay: Any, num_steps: Any
           ) -> Any:
  """Return the weight decay, which follows the schedule of the optimizer."""
  rates.check_decay(weight_decay)
  name = artifact.settings.get("schedule")
  if name is None or num_steps is None:
    return weight_decay
  at = weight_decay if callable(weight_decay) else lambda step: weight_decay
  return lambda step: at(step) * schedules.multiplier(
      name, artifact.settings["warmup"], step, num_steps)


def _rate_links(
    artifact: artifact_lib.Artifact, weight_decay: Any, learning_rate: Any,
    num_steps: Any, scaling: dict[str, Any]
    ) -> list[optax.GradientTransformation]:
  """Return the links for weight decay and learning rate; see `load`."""
  rates.check("learning_rate", learning_rate)
  weight_decay = _decay(artifact, weight_decay, num_steps)
  kinds = _kinds(artifact, **scaling)
  # Negative: learned updates are added, and no later link changes the sign.
  negative = (lambda step: -weight_decay(step)) if callable(
      weight_decay) else -weight_decay
  return [rates.add_decay(negative, functools.partial(_is_matrix, kinds)),
          optax.scale_by_learning_rate(learning_rate, flip_sign=False)]


def _check_num_steps(artifact: artifact_lib.Artifact, name: Any,
                     num_steps: Any) -> None:
  """Raise ValueError unless num_steps fits the optimizer.

  Args:
    artifact: the trained optimizer.
    name: name of the optimizer, for the error message.
    num_steps: see `load`; a traced number passes.
  """
  if num_steps is None:
    if artifact.settings.get("horizon"):
      raise ValueError(
          f"{name} was meta-trained with a horizon: load needs num_steps, the "
          "planned number of steps.")
  elif not isinstance(num_steps, jax.core.Tracer):
    number = isinstance(num_steps, numbers.Real) or jax.numpy.shape(
        num_steps) == () and hasattr(num_steps, "dtype")
    if isinstance(num_steps, bool) or not number or not num_steps >= 1:
      raise ValueError("num_steps must be the planned number of steps, at "
                       f"least 1, got {num_steps!r}.")


def _is_matrix(kinds: kinds_lib.Kinds | None, params: Any) -> Any:
  """Return a tree like params: 1 for two axes or more, otherwise 0."""
  return kinds_lib.tree_map(
      lambda p, kind: float(p.ndim - len(kind.stack) >= 2), params, kinds)


class _Loaded(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
  """A transformation that knows its multipliers, for `mulo.scaling.describe`.

  Attributes:
    scaling: arguments of `mulo.scaling.multipliers`.
  """

  scaling: dict[str, Any]


def _loaded(
    tx: optax.GradientTransformationExtraArgs, artifact: artifact_lib.Artifact,
    name: Any, scaling: dict[str, Any]) -> _Loaded:
  """Return `tx` with its multipliers, and with a warning of unusual widths.

  Args:
    tx: the chain of `load`.
    artifact: the trained optimizer.
    name: name of the optimizer, for the warning.
    scaling: see `_learned_links`.
  """
  parametrization = parametrizations.get(artifact.parametrization)
  kinds = _kinds(artifact, **scaling)
  # Without multipliers, `load` ignores base_shapes, and so does the warning.
  if not parametrization.needs_base_shapes:
    scaling["base_shapes"] = None

  def init(params: optax.Params) -> optax.OptState:
    state = tx.init(params)
    if not any(kinds_lib.stacks(params, kinds)):
      warnings.check_stacks(params)
    warnings.check_width(artifact, name, params, scaling["base_shapes"])
    return state

  loaded = _Loaded(init, tx.update)
  loaded.scaling = dict(scaling, parametrization=artifact.parametrization)
  return loaded
