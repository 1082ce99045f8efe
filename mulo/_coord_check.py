"""The coordinate check: does the change of every layer depend on the width?

Under a right parametrization what a layer computes changes by as much in a wide
network as in a narrow one, after the first steps and with the same learning
rate. That is necessary for hyperparameters to transfer, not sufficient.

Reference:
  Yang et al., Tensor Programs V, 2022, https://arxiv.org/abs/2203.03466,
  appendix D.1.
"""

import dataclasses
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Slopes that pass, of log change against log width.
LIMITS = {"input": (-0.05, 0.05), "hidden": (-0.1, 0.1),
          "attention": (-0.25, 0.25), "output": (-0.25, 0.1)}
DEPTH_LIMITS = {kind: (-0.2, 0.2) for kind in LIMITS}  # against log depth
MAX_RESIDUAL = 0.25  # of the fit, in octaves
FIRST_JUDGED = 2  # a readout that starts at zero moves nothing before


class Fit(NamedTuple):
  """A straight line through log2 change against log2 size.

  Attributes:
    slope: of the line through the means over seeds.
    error: two standard errors of it, from widths and seeds.
    residual: largest distance of a mean from the line, in octaves.
  """

  slope: float
  error: float
  residual: float


@dataclasses.dataclass(frozen=True)
class Layer:
  """What was found out about one layer.

  Attributes:
    kind: a key of the limits.
    limits: slopes that pass.
    change: mean |h - h at the start| on a fixed batch, [sizes, seeds, steps].
    size: mean |h|, [sizes, seeds, steps + 1], that at the start first.
    fits: by step.
  """

  kind: str
  limits: tuple[float, float]
  change: np.ndarray
  size: np.ndarray
  fits: dict[int, Fit]

  @property
  def reasons(self) -> list[str]:
    """Why it fails; empty if it passes."""
    found = []
    for step, fit in self.fits.items():
      if step < FIRST_JUDGED:
        continue
      if not np.isfinite(fit.slope):
        found.append(f"step {step}: does not move, or not by a number")
      elif not self.limits[0] <= fit.slope <= self.limits[1]:
        found.append(f"step {step}: slope {fit.slope:+.2f}")
      elif fit.residual > MAX_RESIDUAL:
        found.append(f"step {step}: {fit.residual:.2f} octaves off the line")
    return found


@dataclasses.dataclass(frozen=True)
class CoordCheckReport:
  """The result of a coordinate check.

  Attributes:
    axis: "width" or "depth".
    sizes: widths or depths.
    layers: by name.
    loss: of each batch before its update, [sizes, seeds, steps].
  """

  axis: str
  sizes: tuple[int, ...]
  layers: dict[str, Layer]
  loss: np.ndarray

  @property
  def passed(self) -> bool:
    """Whether every layer passes."""
    return not any(layer.reasons for layer in self.layers.values())

  def table(self) -> str:
    """Markdown: slopes of each layer after each step, and PASS or FAIL."""
    steps = list(next(iter(self.layers.values())).fits)
    lines = [["layer", "kind", "limits", *(f"slope, step {t}" for t in steps),
              "verdict"]]
    for name, layer in self.layers.items():
      lines.append([
          name, layer.kind, "{:+.2f} to {:+.2f}".format(*layer.limits),
          *(f"{fit.slope:+.3f} ± {fit.error:.3f}"
            for fit in layer.fits.values()),
          "FAIL, " + "; ".join(layer.reasons) if layer.reasons else "PASS"])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fit(sizes: Sequence[int], change: np.ndarray) -> Fit:
  """See `Fit`.

  Args:
    sizes: at least two.
    change: [sizes, seeds], finite and of means over seeds that are positive,
      else the slope is NaN.
  """
  means = change.mean(1)
  if not (np.all(np.isfinite(change)) and np.all(means > 0)):
    return Fit(np.nan, np.nan, np.nan)
  x, y = np.log2(np.asarray(sizes, float)), np.log2(means)
  slope, at_zero = np.polyfit(x, y, 1)
  residual = float(np.max(np.abs(y - slope * x - at_zero)))
  points = np.log2(np.maximum(change, 1e-30)) - (slope * x + at_zero)[:, None]
  spread = np.sum(points**2) / max(points.size - 2, 1)
  error = 2 * np.sqrt(spread / (change.shape[1] * np.sum((x - x.mean())**2)))
  return Fit(float(slope), float(error), residual)


def coord_check(
    init: Callable[[jax.Array, int], Any],
    apply_and_loss: Callable[
        [Any, jax.Array, int], tuple[jax.Array, Mapping[str, jax.Array]]],
    tx: optax.GradientTransformation | Callable[
        [int], optax.GradientTransformation],
    widths: Sequence[int], *, seeds: int = 3,
    steps: Sequence[int] = (1, 2, 5, 10),
    kinds: Mapping[str, str] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    axis: str = "width", on_width: Callable[[int], None] = lambda width: None
    ) -> CoordCheckReport:
  """Trains networks of several widths for a few steps and fits slopes.

  Take a large learning rate, tuned at the least width, so that losses move
  within ten steps; no weight decay, clipping, dropout or schedule; a readout
  that starts at zero; at least five widths, 16 times apart; and run it with a
  wrong parametrization as well, which it must find wrong.

  Args:
    init: `(key, width) -> params`.
    apply_and_loss: `(params, key, width) -> (loss, {layer: activations})`, on a
      batch that the key decides. Activations before nonlinearities, of a shape
      [batch, ...]; logits among them.
    tx: the optimizer, or a function of the width.
    widths: in increasing order.
    seeds: networks of each width; also of the batches, equal for all widths.
    steps: after which it is measured, from 1; those before step 2 are not
      judged, so that there must be a later one.
    kinds: by layer, "input", "hidden", "attention" (logits of it), "output".
      By default what has as many entries at all widths is an output, all else
      hidden; at several depths all is hidden.
    limits: by kind, slopes that pass, instead of those in LIMITS, or in
      DEPTH_LIMITS.
    axis: "width", or "depth" if that is what the numbers are.
    on_width: called with each width when it is done.

  Returns:
    A report; `.passed`, `.table()`, and the numbers.

  Raises:
    ValueError: less than two widths, no step that is judged, layers that not
      all widths have (for depth: none that all have), or kinds of no such
      layer or without limits.
  """
  known = {**(DEPTH_LIMITS if axis == "depth" else LIMITS), **(limits or {})}
  kinds = kinds or {}
  _check_numbers(widths, steps)
  of_width = tx if not isinstance(tx, tuple) else lambda width: tx
  runs, shapes = zip(*(_runner(
      init, apply_and_loss, of_width(width), width, max(steps))
                       for width in widths))
  entries = [{name: x.size for name, x in found.items()} for found in shapes]
  names = _common(entries, axis, kinds, known)
  found = []
  for width, run in zip(widths, runs):
    found.append(jax.tree.map(lambda *x: np.stack(x), *[
        jax.device_get(run(jax.random.key(seed))) for seed in range(seeds)]))
    on_width(width)
  loss = np.stack([x[0] for x in found])
  change, size = ({name: np.stack([x[i][name] for x in found])
                   for name in names} for i in (1, 2))
  layers = {}
  for name in names:
    grows = axis == "depth" or len({x[name] for x in entries}) > 1
    kind = kinds.get(name, "hidden" if grows else "output")
    at = [t - 1 for t in steps]
    layers[name] = Layer(
        kind, known[kind], change[name][..., at],
        size[name][..., [0, *steps]],
        {t: fit(widths, change[name][..., t - 1]) for t in steps})
  return CoordCheckReport(axis, tuple(widths), layers, loss)


def _check_numbers(widths, steps) -> None:
  """Raises ValueError unless there is a slope, and a step that is judged."""
  if len(widths) < 2 or sorted(set(widths)) != list(widths):
    raise ValueError(f"widths must be at least two increasing numbers, got "
                     f"{list(widths)}.")
  if not steps or min(steps) < 1 or max(steps) < FIRST_JUDGED:
    raise ValueError(f"steps must be at least 1, and one of them at least "
                     f"{FIRST_JUDGED}, got {list(steps)}.")


def _common(entries, axis, kinds, limits) -> list[str]:
  """Layers that all sizes have; raises ValueError where they do not fit."""
  names = [name for name in entries[0] if all(name in x for x in entries)]
  if not names:
    raise ValueError("There is no layer that all sizes have, they have: "
                     f"{[sorted(x) for x in entries]}.")
  if axis == "width" and any(set(x) != set(names) for x in entries):
    raise ValueError("Not all widths have the same layers: "
                     f"{[sorted(set(x) - set(names)) for x in entries]}.")
  for name, kind in kinds.items():
    if name not in names:
      raise ValueError(f"kinds has {name!r}, which is no layer that all sizes "
                       f"have; these are {', '.join(names)}.")
    if kind not in limits:
      raise ValueError(f"kinds says {kind!r} of {name}, a kind without limits; "
                       f"with limits are {', '.join(limits)}.")
  return names


def _runner(init, apply_and_loss, tx, width, num_steps):
  """(`(key) -> (losses, changes, sizes)` of one run, shapes of the layers)."""
  tx = optax.with_extra_args_support(tx)
  probe = jax.random.fold_in(jax.random.key(0), 2**31)
  mean = lambda x: jnp.mean(jnp.abs(x.astype(jnp.float32)))

  def run(key):
    params = init(jax.random.fold_in(key, 0), width)
    layers = lambda params: dict(apply_and_loss(params, probe, width)[1])
    start = layers(params)

    def step(carry, key):
      params, state = carry
      loss, grads = jax.value_and_grad(
          lambda params: apply_and_loss(params, key, width)[0])(params)
      updates, state = tx.update(grads, state, params, value=loss)
      params = optax.apply_updates(params, updates)
      now = layers(params)
      change = jax.tree.map(lambda x, y: mean(x - y), now, start)
      return (params, state), (loss, change, jax.tree.map(mean, now))

    keys = jax.random.split(jax.random.fold_in(key, 1), num_steps)
    _, (loss, change, size) = jax.lax.scan(
        step, (params, tx.init(params)), keys)
    size = jax.tree.map(lambda x, y: jnp.concatenate([mean(x)[None], y]),
                        start, size)
    return loss, change, size

  shapes = jax.eval_shape(lambda key: dict(apply_and_loss(
      init(key, width), probe, width)[1]), jax.random.key(0))
  return jax.jit(run), shapes
