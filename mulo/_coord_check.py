"""Coordinate check: does the change of activations depend on the width?

Under a correct parametrization, the activations of each layer change by about
the same amount in wide and in narrow networks, after a few training steps with
the same learning rate. This condition is necessary for hyperparameters to
transfer across widths, but not sufficient.

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

# Slopes of log change against log width that pass, by kind of layer.
LIMITS = {"input": (-0.05, 0.05), "hidden": (-0.1, 0.1),
          "attention": (-0.25, 0.25), "output": (-0.25, 0.1)}
DEPTH_LIMITS = {kind: (-0.2, 0.2) for kind in LIMITS}  # against log depth
MAX_RESIDUAL = 0.25  # of the fit, in octaves
# First step that is judged. A readout that starts at zero passes no gradient
# back, so before this step the other layers have not moved.
FIRST_JUDGED = 2

Layers = Mapping[str, jax.Array]  # {layer: activations [batch, ...]}
Init = Callable[[jax.Array, int], Any]
ApplyAndLoss = Callable[[Any, jax.Array, int], tuple[jax.Array, Layers]]
# {layer: mean absolute value}; a scalar, or one value per step [steps].
Means = dict[str, jax.Array]
Run = Callable[[jax.Array], tuple[jax.Array, Means, Means]]
OfWidth = Callable[[int], optax.GradientTransformation]


class Fit(NamedTuple):
  """Straight line through log2 change against log2 size.

  Attributes:
    slope: slope of the line through the means over seeds.
    error: two standard errors of the slope, from the distances of all single
      networks from the line.
    residual: largest distance between a mean over seeds and the line, in
      octaves.
  """

  slope: float
  error: float
  residual: float


@dataclasses.dataclass(frozen=True)
class Layer:
  """Result of the check for one layer; h are its activations.

  Attributes:
    kind: "input", "hidden", "attention" or "output"; a key of the limits.
    limits: (smallest, largest) slope that passes.
    change: mean |h - h at the start| on a fixed batch, [sizes, seeds, steps].
    size: mean |h|, [sizes, seeds, steps + 1]; index 0 is the start.
    fits: {step: Fit}.
  """

  kind: str
  limits: tuple[float, float]
  change: np.ndarray
  size: np.ndarray
  fits: dict[int, Fit]

  @property
  def reasons(self) -> list[str]:
    """Reasons why the layer fails; empty if it passes."""
    reasons = []
    for step, fit in self.fits.items():
      if step < FIRST_JUDGED:
        continue
      if not np.isfinite(fit.slope):
        reasons.append(f"step {step}: change is zero or not finite")
      elif not self.limits[0] <= fit.slope <= self.limits[1]:
        reasons.append(f"step {step}: slope {fit.slope:+.2f}")
      elif fit.residual > MAX_RESIDUAL:
        reasons.append(f"step {step}: {fit.residual:.2f} octaves off the line")
    return reasons


@dataclasses.dataclass(frozen=True)
class CoordCheckReport:
  """Result of a coordinate check.

  Attributes:
    axis: "width" or "depth".
    sizes: widths or depths.
    layers: {layer: its result}.
    loss: loss of each batch before its update, [sizes, seeds, steps].
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
    """Return a Markdown table: slopes by layer and step, and PASS or FAIL."""
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
  """Fit a line through log2 change against log2 size; see `Fit`.

  Args:
    sizes: at least two widths or depths.
    change: [sizes, seeds]. The slope is NaN unless all entries are finite and
      all means over seeds are positive.
  """
  means = change.mean(1)  # [sizes]
  if not (np.all(np.isfinite(change)) and np.all(means > 0)):
    return Fit(np.nan, np.nan, np.nan)
  x, y = np.log2(np.asarray(sizes, float)), np.log2(means)
  slope, intercept = np.polyfit(x, y, 1)
  residual = float(np.max(np.abs(y - slope * x - intercept)))
  # Distance of every single network from the line, [sizes, seeds]. If one of
  # several networks does not change, `maximum` keeps the logarithm finite.
  points = np.log2(np.maximum(change, 1e-30)) - (
      slope * x + intercept)[:, None]
  variance = np.sum(points**2) / max(points.size - 2, 1)
  error = 2 * np.sqrt(
      variance / (change.shape[1] * np.sum((x - x.mean())**2)))
  return Fit(float(slope), float(error), residual)


def coord_check(
    init: Init, apply_and_loss: ApplyAndLoss,
    tx: optax.GradientTransformation | OfWidth, widths: Sequence[int], *,
    seeds: int = 3, steps: Sequence[int] = (1, 2, 5, 10),
    kinds: Mapping[str, str] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    axis: str = "width", on_width: Callable[[int], None] = lambda width: None
    ) -> CoordCheckReport:
  """Train networks of several widths for a few steps, and fit slopes.

  Choose a large learning rate, tuned at the smallest width, so that losses move
  within ten steps. Use no weight decay, clipping, dropout or schedule, and a
  readout that starts at zero. Use at least five widths, the largest 16 times
  the smallest. Run the check with a wrong parametrization, too: it must fail.

  Args:
    init: `(key, width) -> params`.
    apply_and_loss: `(params, key, width) -> (loss, {layer: activations})`. The
      key decides the batch. Activations [batch, ...] are pre-activations; the
      logits are among the layers.
    tx: the optimizer, or a function `width -> optimizer`.
    widths: widths in increasing order.
    seeds: number of networks of each width. The seed also decides the batches,
      which are the same for all widths.
    steps: steps after which activations are measured, counted from 1. Step 1
      is not judged, so a later step is required.
    kinds: {layer: "input", "hidden", "attention" (attention logits) or
      "output"}. By default, a layer with equally many activations at all widths
      is an output, and any other layer is hidden. With the axis "depth", all
      layers are hidden by default.
    limits: {kind: (smallest, largest) slope that passes}. Entries replace those
      of LIMITS, or of DEPTH_LIMITS with the axis "depth".
    axis: "width", or "depth" if `widths` are depths.
    on_width: called with each width after its networks have been trained.

  Returns:
    A report with `.passed`, `.table()` and the measured numbers.

  Raises:
    ValueError: fewer than two widths; no step that is judged; networks of two
      widths have different layers; networks of all depths have no layer in
      common; or `kinds` names an unknown layer or a kind without limits.

  Examples:
    >>> import jax
    >>> import mulo
    >>> def init(key, width):
    ...   return {"hidden": jax.random.normal(key, (4, width)),
    ...           "output": jax.numpy.zeros((width, 4))}
    >>> def apply_and_loss(params, key, width):
    ...   x = jax.numpy.eye(4)  # the same batch for all keys
    ...   hidden = x @ params["hidden"]
    ...   logits = hidden @ params["output"]
    ...   return ((logits - x)**2).mean(), {"hidden": hidden, "logits": logits}
    >>> base = jax.eval_shape(lambda key: init(key, 8), jax.random.key(0))
    >>> report = mulo.coord_check(
    ...     init, apply_and_loss, mulo.scaling.mu_sgd(0.1, base),
    ...     widths=(16, 64), steps=(2,))
    >>> report.passed
    True
  """
  all_limits = {
      **(DEPTH_LIMITS if axis == "depth" else LIMITS), **(limits or {})}
  _check_numbers(widths, steps)
  # `_runner` compiles nothing. Wrong layers therefore raise an error before any
  # compilation.
  runs, shapes = zip(*(
      _runner(init, apply_and_loss, tx, width, max(steps)) for width in widths))
  kinds = _all_kinds(shapes, axis, kinds or {}, all_limits)
  results = []
  for width, run in zip(widths, runs):
    results.append(_over_seeds(run, seeds))
    on_width(width)
  losses, changes, sizes = zip(*results)
  layers = {name: _layer(name, kind, all_limits[kind], widths, steps, changes,
                         sizes) for name, kind in kinds.items()}
  return CoordCheckReport(axis, tuple(widths), layers, np.stack(losses))


def _over_seeds(run: Run, seeds: int) -> Any:
  """Return the results of `run` for all seeds: numpy arrays [seeds, ...]."""
  results = [jax.device_get(run(jax.random.key(seed))) for seed in range(seeds)]
  return jax.tree.map(lambda *x: np.stack(x), *results)


def _layer(name: str, kind: str, limits: tuple[float, float],
           widths: Sequence[int], steps: Sequence[int],
           changes: Sequence[Mapping[str, np.ndarray]],
           sizes: Sequence[Mapping[str, np.ndarray]]) -> Layer:
  """Return the result of one layer at the chosen steps.

  Args:
    name: the layer.
    kind: see `Layer`.
    limits: see `Layer`.
    widths: see `coord_check`.
    steps: see `coord_check`.
    changes: by width: {layer: change after every step, [seeds, num_steps]}.
    sizes: by width: {layer: size at the start and after every step,
      [seeds, num_steps + 1]}.
  """
  change = np.stack([by_layer[name] for by_layer in changes])
  size = np.stack([by_layer[name] for by_layer in sizes])
  return Layer(
      kind, limits, change[..., [t - 1 for t in steps]],
      size[..., [0, *steps]],
      {t: fit(widths, change[..., t - 1]) for t in steps})


def _check_numbers(widths: Sequence[int], steps: Sequence[int]) -> None:
  """Raise ValueError if no slope can be fitted or no step is judged."""
  if len(widths) < 2 or sorted(set(widths)) != list(widths):
    raise ValueError(f"widths must be at least two increasing numbers, got "
                     f"{list(widths)}.")
  if not steps or min(steps) < 1 or max(steps) < FIRST_JUDGED:
    raise ValueError(f"steps must be at least 1, and one of them at least "
                     f"{FIRST_JUDGED}, got {list(steps)}.")


def _all_kinds(shapes: Sequence[Mapping[str, Any]], axis: str,
               kinds: Mapping[str, str],
               limits: Mapping[str, tuple[float, float]]) -> dict[str, str]:
  """Return {layer: kind} of the layers that all sizes have.

  Args:
    shapes: {layer: shape of its activations}, for each width or depth.
    axis: see `coord_check`.
    kinds: see `coord_check`.
    limits: limits of all kinds.

  Raises:
    ValueError: see `coord_check`.
  """
  names = [name for name in shapes[0] if all(name in x for x in shapes)]
  if not names:
    raise ValueError("No layer is in the networks of all sizes; their layers: "
                     f"{[sorted(x) for x in shapes]}.")
  # Deeper networks have more layers; wider networks have the same ones.
  if axis == "width" and any(set(x) != set(names) for x in shapes):
    raise ValueError("All widths must have the same layers. Layers that only "
                     "some widths have, for each width: "
                     f"{[sorted(set(x) - set(names)) for x in shapes]}.")
  for name, kind in kinds.items():
    if name not in names:
      raise ValueError(f"kinds names {name!r}, which is not a layer of all "
                       f"sizes; layers of all sizes: {', '.join(names)}.")
    if kind not in limits:
      raise ValueError(f"kinds[{name!r}] is {kind!r}, which has no limits; "
                       f"kinds with limits: {', '.join(limits)}.")
  # Outputs have equally many activations at all widths; hidden layers have more
  # in wider networks.
  grows = {name: len({x[name].size for x in shapes}) > 1 for name in names}
  return {name: kinds.get(
      name, "hidden" if axis == "depth" or grows[name] else "output")
          for name in names}


def _mean_abs(x: jax.Array) -> jax.Array:
  return jnp.mean(jnp.abs(x.astype(jnp.float32)))


def _runner(init: Init, apply_and_loss: ApplyAndLoss,
            tx: optax.GradientTransformation | OfWidth, width: int,
            num_steps: int) -> tuple[Run, dict[str, Any]]:
  """Return a compiled training run, and the shapes of the activations.

  Returns:
    (run, {layer: shape}). `run(key)` returns the losses [num_steps], the
    changes {layer: [num_steps]} and the sizes {layer: [num_steps + 1]}.
  """
  # A GradientTransformation is a tuple; a function of the width is not.
  optimizer = optax.with_extra_args_support(
      tx if isinstance(tx, tuple) else tx(width))
  # Key of the batch on which activations are measured, at all steps.
  probe = jax.random.fold_in(jax.random.key(0), 2**31)

  def layers_of(params: Any) -> dict[str, jax.Array]:
    return dict(apply_and_loss(params, probe, width)[1])

  def run(key: jax.Array) -> tuple[jax.Array, Means, Means]:
    params = init(jax.random.fold_in(key, 0), width)
    start = layers_of(params)

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[
        tuple[Any, Any], tuple[jax.Array, Means, Means]]:
      params, state = carry
      loss, grads = jax.value_and_grad(
          lambda params: apply_and_loss(params, key, width)[0])(params)
      updates, state = optimizer.update(grads, state, params, value=loss)
      params = optax.apply_updates(params, updates)
      now = layers_of(params)
      change = jax.tree.map(lambda x, y: _mean_abs(x - y), now, start)
      return (params, state), (loss, change, jax.tree.map(_mean_abs, now))

    keys = jax.random.split(jax.random.fold_in(key, 1), num_steps)
    _, (loss, change, size) = jax.lax.scan(
        step, (params, optimizer.init(params)), keys)
    # The size at the start goes first.
    size = jax.tree.map(lambda x, y: jnp.concatenate([_mean_abs(x)[None], y]),
                        start, size)
    return loss, change, size

  shapes = jax.eval_shape(
      lambda key: layers_of(init(key, width)), jax.random.key(0))
  return jax.jit(run), shapes
