"""Jumps of the parameters to where they will be, around any optimizer."""

import os
from typing import Mapping

import optax

from learned_opt import artifact as artifact_lib
from learned_opt import base
from learned_opt import nowcasting
from mulo import _loading as loading

Weights = artifact_lib.Artifact | str | os.PathLike[str] | None


def nowcast(tx: optax.GradientTransformation, weights: Weights = None, *,
            every: int, num_steps: int, power: float = 2.0,
            dtype: str | None = None, types: Mapping[str, str] | None = None
            ) -> optax.GradientTransformationExtraArgs:
  """Return an optimizer whose parameters jump to a prediction now and then.

  Five snapshots of the parameters are taken, one every `every / 5` steps; they
  take 20 bytes per parameter in float32, 10 with dtype="bfloat16". Then, in
  place of a step, the parameters jump to the prediction of an MLP, or of a
  straight line. The state of `tx` stays as it is, and the gradient of this step
  is not used. How far a prediction reaches falls over the run, from 40 to 1
  distances of snapshots under the published weights, and from 5 to 1 on a line.

  The loss rises right after a jump, and falls below its old level within some
  steps: do not evaluate or keep a checkpoint there, and let no guard against
  spikes undo it.

  Args:
    tx: any optax optimizer. Weight decay, averages of parameters and clips
      belong inside: nothing may change the updates afterwards.
    weights: of the optimizer "nowcast_adam": an artifact, as `mulo.convert`
      makes of the published WNN+ ("nino/wnn"), or the name of its file. None
      for straight lines, which need no weights.
    every: steps from one jump to the next, a multiple of 5. The published
      weights were made for 1000.
    num_steps: planned number of steps. A number that is too large makes jumps
      reach too far.
    power: how fast the reach falls, see `learned_opt.nowcasting.reach`.
    dtype: of snapshots, "float32" or "bfloat16"; None for that of parameters.
    types: {path, with * for any text: type}, for parameters that their number
      of axes does not show; by default, they are of type vector, matrix or
      conv. The others are norm (scale of a norm), embedding, position, query,
      key and value.

  Returns:
    A transformation whose `update` needs `params`. Its state is a
    `learned_opt.nowcasting.NowcastState`, split as the parameters are.

  Raises:
    FileNotFoundError, ArtifactError: see `mulo.read`.
    ValueError: a setting makes no sense, or weights of another optimizer.
      `init`: a type or a path of `types` does not exist.

  Examples:
    >>> import jax.numpy as jnp
    >>> import mulo
    >>> import optax
    >>> tx = mulo.nowcast(optax.sgd(0.1), every=5, num_steps=5)
    >>> params = {"w": jnp.ones(3)}
    >>> state = tx.init(params)
    >>> for _ in range(5):
    ...   updates, state = tx.update(params, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> print(f"{params['w'][0]:.3f}")  # four steps, and a jump of five
    0.227

  Reference:
    Knyazev et al., 2024, https://arxiv.org/abs/2409.04434.
  """
  base.check_sizes(every=every, num_steps=num_steps)
  if num_steps < every:
    raise ValueError("every must be at most num_steps, or there is no jump, "
                     f"got every {every} and num_steps {num_steps}.")
  theta = None
  if weights is not None:
    artifact = weights if isinstance(
        weights, artifact_lib.Artifact) else loading.read(weights)
    if artifact.optimizer != "nowcast_adam":
      raise ValueError(
          f"nowcast needs weights of nowcast_adam, got those of "
          f"{artifact.optimizer}; see mulo.convert, layout \"nino/wnn\".")
    theta = artifact.theta
  return nowcasting.nowcast(
      tx, theta, every=every, num_steps=num_steps, power=power, dtype=dtype,
      types=types)
