"""Weights published elsewhere, as artifacts."""

from typing import Any, Mapping

import numpy as np

from learned_opt import artifact as artifact_lib
from learned_opt import optimizers

# Layout -> (optimizer, {name of ours: name of theirs}).
_ADAFAC_MLP = {
    **{f"{kind}{i}": f"nn/~/{kind}{i}" for kind in "wb" for i in range(3)},
    **{f"{name}_decays": f"{name}_decays"
       for name in ("momentum", "rms", "adafactor")}}
LAYOUTS = {
    "learned_optimization/adafac_mlp_lopt": ("adafac_mlp", _ADAFAC_MLP)}


@artifact_lib.refusing("What convert was given")
def convert(flat_arrays: Mapping[str, Any], layout: str, *,
            parametrization: str = "standard", licence: str = "unknown",
            **settings) -> artifact_lib.Artifact:
  """An artifact from arrays in a published layout.

  Args:
    flat_arrays: {name in that layout: array}.
    layout: "learned_optimization/adafac_mlp_lopt": nn/~/w0, b0, w1, b1, w2,
      b2, momentum_decays, rms_decays, adafactor_decays.
    parametrization: what the weights were meta-trained under, "standard" or
      "mup".
    licence: of the weights, an SPDX identifier.
    **settings: settings of the optimizer that the arrays do not show, such as
      step_mult=0.01. `hidden` is read off the arrays.

  Returns:
    The artifact; `mulo.save` writes it.

  Raises:
    ArtifactError: unknown layout, missing or additional names, shapes that do
      not fit, or unknown settings.
  """
  if layout not in LAYOUTS:
    raise ValueError(
        f"Unknown layout {layout!r}; available: {', '.join(LAYOUTS)}.")
  optimizer, names = LAYOUTS[layout]
  if set(flat_arrays) != set(names.values()):
    raise ValueError(
        f"{layout} has the names {sorted(names.values())}; missing: "
        f"{sorted(set(names.values()) - set(flat_arrays))}, unexpected: "
        f"{sorted(set(flat_arrays) - set(names.values()))}.")
  flat = {ours: np.asarray(flat_arrays[theirs], np.float32)
          for ours, theirs in names.items()}
  settings = optimizers.all_settings(
      optimizer, **{"hidden": flat["b0"].size, **settings})
  lopt = optimizers.get(optimizer, **settings)
  return artifact_lib.Artifact(
      optimizer, settings, parametrization,
      artifact_lib.unflatten(lopt, flat), {"converted_from": layout}, licence)
