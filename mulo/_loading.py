"""Reading trained optimizers, and what optax gets."""

import dataclasses
import difflib
import importlib.resources
import os
from typing import Any

import jax
import optax

from learned_opt import artifact as artifact_lib
from learned_opt.scaling import multipliers
from learned_opt.scaling import parametrizations
from mulo import _horizon_warnings as horizon_warnings
from mulo import _hub as hub

save = artifact_lib.write


def _pretrained_folder():
  return importlib.resources.files("mulo") / "pretrained"


def list_pretrained() -> list[str]:
  """Names of the trained optimizers that come with this package."""
  suffix = ".safetensors"
  return sorted(f.name.removesuffix(suffix)
                for f in _pretrained_folder().iterdir()
                if f.name.endswith(suffix))


def read(name_or_path: str | os.PathLike) -> artifact_lib.Artifact:
  """Reads and checks a trained optimizer.

  Args:
    name_or_path: one of `list_pretrained()`, a path to a .safetensors file, or
      "hf://owner/name" for theta.safetensors of that repository on Hugging Face
      (`hub.download` knows more forms).

  Returns:
    An artifact with `.lopt`, `.theta`, `.settings`, `.parametrization`,
    `.record` and `.trained`.

  Raises:
    FileNotFoundError: neither a name nor a file.
    ArtifactError: a file that is damaged, foreign or of a newer format.
    ImportError: huggingface_hub is needed, and missing.
  """
  name = os.fspath(name_or_path)
  if hub.is_name(name):
    return artifact_lib.read(hub.download(name))
  known = list_pretrained()
  if name in known:
    with importlib.resources.as_file(
        _pretrained_folder() / f"{name}.safetensors") as path:
      return artifact_lib.read(path)
  if not os.path.exists(name):
    close = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(
        f"{name!r} is neither a file nor a pretrained optimizer; pretrained: "
        f"{', '.join(known) or 'none'}.{hint}")
  return artifact_lib.read(name)


def load(name_or_path: str | os.PathLike, *, base_shapes: Any = None,
         learning_rate: float | optax.Schedule = 1.0,
         weight_decay: float = 0.0, num_steps: int | None = None,
         forward: bool = True, inference: dict[str, Any] | None = None,
         **settings: Any) -> optax.GradientTransformationExtraArgs:
  """A trained optimizer as an optax transformation.

  One step changes the parameters p by
  `learning_rate * (update multiplier * learned update - weight_decay * p)`;
  parameters of fewer than two axes are not decayed.

  Args:
    name_or_path: see `read`.
    base_shapes: shapes of the parameters of the same network at any other
      width, as `jax.eval_shape(init, key)` returns them. From the axes that
      differ follows what muP needs to know (`mulo.scaling.describe` prints
      it). Required unless the optimizer was meta-trained under the standard
      parametrization.
    learning_rate: factor, or an optax schedule of it; 1 is what the optimizer
      was meta-trained with.
    weight_decay: see the formula. Not multiplied by the update multiplier.
    num_steps: number of steps planned, for optimizers that use it, and to warn
      where that is more than the optimizer was meta-trained for.
    forward: whether the network multiplies what its readout computes by 1 /
      inputs, as muP says. Else updates of the readout are multiplied, which
      for a readout that starts at zero and an optimizer that is invariant to
      the scale of gradients and parameters is the same.
    inference: further arguments of `mulo.scaling.infer`: `overrides` for what
      shapes do not tell (embeddings need none), `layout="out_in"` for
      equinox, `deeper_shapes` for layers stacked on a leading axis.
    **settings: of the optimizer, instead of those it was meta-trained with:
      `accumulator_dtype="bfloat16"` halves the state, `lowering` says how
      the update is computed (`learned_opt.update.mlp`), and so does `recompute`.

  Returns:
    A transformation; its `update` needs `params`. load warns of a horizon, and
    `init` of a width, that is far from what the optimizer was meta-trained on
    (`BeyondTrainingWarning`, see `mulo._horizon_warnings`).

  Raises:
    FileNotFoundError: see `read`.
    ValueError: see `read`; a setting that the optimizer does not take or that
      theta does not fit; or base_shapes are missing. `init` raises it if
      they do not fit the parameters.
  """
  artifact = read(name_or_path)
  if settings:
    artifact = dataclasses.replace(
        artifact, settings=artifact.settings | settings)
  horizon_warnings.check_horizon(artifact, name_or_path, num_steps)
  parametrization = parametrizations.get(artifact.parametrization)
  links = [artifact.lopt.opt_fn(
      jax.tree.map(jax.numpy.asarray, artifact.theta), num_steps=num_steps)]
  if parametrization.needs_base_shapes:
    if base_shapes is None:
      raise ValueError(
          f"{name_or_path} was meta-trained under {artifact.parametrization}: "
          "load needs base_shapes, the parameter shapes of the same network "
          "at another width. For a flax module Net(width), for example: "
          "base_shapes=jax.eval_shape(Net(width=8).init, key, example_input).")
    links.append(multipliers.scale_by_parametrization(
        parametrization, base_shapes, forward=forward, **(inference or {})))
  if not (isinstance(weight_decay, (int, float)) and weight_decay == 0):
    matrices = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
    links.append(optax.add_decayed_weights(-weight_decay, matrices))
  if not (isinstance(learning_rate, (int, float)) and learning_rate == 1):
    links.append(
        optax.scale_by_learning_rate(learning_rate, flip_sign=False))
  tx = optax.chain(*links)
  grows = base_shapes if parametrization.needs_base_shapes else None

  def init(params):
    horizon_warnings.check_width(artifact, name_or_path, params, grows)
    return tx.init(params)

  return optax.GradientTransformationExtraArgs(init, tx.update)
