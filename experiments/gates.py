"""Gates: what any learned optimizer must do before it is released.

Each gate is a measurement on one network of made-up gradients, with the
parameters held, and takes seconds:

* noise: RMS of the update of a matrix under pure noise, divided by the RMS when
  all gradients agree. A rule without a noise-adaptive step has 1.
* zero gradient: largest entry of an update when all gradients are 0.
* end of run: RMS of the update at the last hundredth of the steps, divided by
  the RMS at the first tenth, when all gradients agree.
* drift: largest factor by which the size of the update of a role has moved from
  the untrained start, up or down.
"""

from typing import Any, Collection

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from learned_opt import artifact as artifact_lib
from learned_opt import kinds as kinds_lib
from learned_opt.scaling import multipliers

NUM_STEPS = 400
WIDTH = 32
# {gate: largest value}
LIMITS = {"noise": 0.5, "zero gradient": 0.0, "end of run": 0.1, "drift": 4.0}


def _shapes(width: int) -> dict[str, Any]:
  shapes = {"input": (16, width), "hidden": (width, width),
            "output": (width, 8), "vector": (width,)}
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32)
          for name, shape in shapes.items()}


def _updates(artifact: artifact_lib.Artifact, thetas: list[Any],
             agree: list[float]) -> dict[str, np.ndarray]:
  """Return the RMS of the update of each role at each step, [runs, NUM_STEPS].

  Args:
    artifact: the optimizer.
    thetas: meta-parameters of each run.
    agree: for each run, the part of the gradient that is the same at all steps,
      from 0 to 1, or NaN for gradients of 0; the rest is noise.
  """
  opt_fn = kinds_lib.told(
      artifact.lopt.opt_fn, multipliers.kinds(_shapes(2 * WIDTH)))
  draw = lambda key: {
      name: jax.random.normal(jax.random.fold_in(key, i), x.shape)
      for i, (name, x) in enumerate(_shapes(WIDTH).items())}
  params = jax.tree.map(lambda x: 0.1 * x, draw(jax.random.key(0)))
  fixed = draw(jax.random.key(1))

  def run(theta: Any, agree: jax.Array) -> Any:
    tx = opt_fn(theta, num_steps=NUM_STEPS)

    def step(state: Any, key: jax.Array) -> Any:
      grads = jax.tree.map(
          lambda same, noise: jnp.where(
              jnp.isnan(agree), 0, agree * same + (1 - agree) * noise),
          fixed, draw(key))
      # The loss, for optimizers that read it.
      updates, state = tx.update(
          grads, state, params, value=jnp.ones([], jnp.float32))
      return state, jax.tree.map(
          lambda u: jnp.sqrt(jnp.mean(jnp.square(u))), updates)

    keys = jax.random.split(jax.random.key(2), NUM_STEPS)
    return jax.lax.scan(step, tx.init(params), keys)[1]

  return jax.device_get(jax.jit(jax.vmap(run))(
      jax.tree.map(lambda *x: jnp.stack(x), *thetas),
      jnp.asarray(agree, jnp.float32)))


def measure(artifact: artifact_lib.Artifact) -> pd.DataFrame:
  """Return a row for each gate: gate, value, limit, passed.

  Args:
    artifact: the optimizer.
  """
  theta, start = (jax.tree.map(jnp.asarray, x) for x in (
      artifact.theta, artifact.lopt.init(jax.random.key(0))))
  # All runs in one program.
  sizes = _updates(artifact, [theta, theta, theta, start],
                   [1.0, 0.0, np.nan, 1.0])
  half, tenth = NUM_STEPS // 2, NUM_STEPS // 10
  agree, noise = sizes["hidden"][:2]
  mean = lambda x: float(np.mean(x))
  drift = [abs(np.log(mean(x[0]) / mean(x[3]))) for x in sizes.values()]
  values = {
      "noise": mean(noise[half:half + 20]) / mean(agree[half:half + 20]),
      "zero gradient": max(float(np.max(x[2])) for x in sizes.values()),
      "end of run": mean(agree[-NUM_STEPS // 100:]) / mean(
          agree[tenth // 2:tenth]),
      "drift": float(np.exp(np.max(drift)))}
  return pd.DataFrame([
      {"gate": gate, "value": value, "limit": LIMITS[gate],
       "passed": "yes" if value <= LIMITS[gate] else "no"}
      for gate, value in values.items()])


def check(artifact: artifact_lib.Artifact, accepted: Collection[str] = ()
          ) -> pd.DataFrame:
  """Return `measure`; raise ValueError if a gate that is not accepted fails.

  Args:
    artifact: the optimizer.
    accepted: gates that may fail.
  """
  unknown = sorted(set(accepted) - set(LIMITS))
  if unknown:
    raise ValueError(
        f"Unknown gates {unknown}; available: {', '.join(LIMITS)}.")
  rows = measure(artifact)
  failed = rows[(rows["passed"] == "no") & ~rows["gate"].isin(accepted)]
  if len(failed):
    raise ValueError("The optimizer fails " + "; ".join(
        f"the gate {row.gate!r}: {row.value:.3g}, at most {row.limit}"
        for row in failed.itertuples()) + ". See experiments/gates.py.")
  return rows


def table(rows: pd.DataFrame) -> str:
  """Return the rows of `measure` as a Markdown table."""
  return rows.to_markdown(index=False, floatfmt=".3g")
