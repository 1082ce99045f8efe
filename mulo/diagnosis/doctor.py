"""Check of an optimizer on a user's network: `mulo.doctor`."""

import dataclasses
import functools
import os
import time
from typing import Any, Callable, Sequence
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from learned_opt import base
from learned_opt import schedules
from learned_opt.scaling import roles as roles_lib
from mulo import _base_shapes as base_shapes_lib
from mulo import _coord_check as coord_check_lib
from mulo import _loading as loading
from mulo.diagnosis import speed

Init = Callable[[jax.Array, int], Any]
Loss = Callable[[Any, jax.Array, int], Any]
Rule = Callable[[Any], optax.GradientTransformation]  # of the learning rate

WARM_UP, WEIGHT_DECAY, RMS = 0.05, 0.1, 0.2
# {name: learning rates}. The rules are in `_rivals`.
RIVALS = {"AdamW": (1e-3, 3e-3, 1e-2, 3e-2), "Muon": (3e-3, 1e-2, 3e-2)}
CHECK_STEPS, CHECK_SEEDS = (2, 5, 10), 4  # of the coordinate check
TIMINGS = 5


@dataclasses.dataclass(frozen=True)
class Report:
  """Result of `doctor`.

  Attributes:
    optimizer: its name.
    widths: of the narrow copies.
    width: of the network itself.
    coord_check: the coordinate check over the copies; None if the loss returns
      no layers.
    speedups: {rival: speed-up of the optimizer over it}. Rivals are tuned on
      each copy, over the learning rates in RIVALS.
    rates: {rival: best learning rate of each copy}.
    losses: {optimizer or rival: mean over the last tenth of the steps, of each
      copy}.
    num_params: parameters of the network itself.
    state_bytes: bytes of optimizer state of the network itself.
    update_ms: estimated milliseconds of one update of the network itself on the
      device at hand, from its operations and from the time of a copy.
    gradient_ms: the same of a loss and its gradient.
    warnings: what to look at.
  """

  optimizer: str
  widths: tuple[int, ...]
  width: int
  coord_check: coord_check_lib.CoordCheckReport | None
  speedups: dict[str, speed.Speedup]
  rates: dict[str, tuple[float, ...]]
  losses: dict[str, tuple[float, ...]]
  num_params: int
  state_bytes: int
  update_ms: float
  gradient_ms: float
  warnings: tuple[str, ...]

  def text(self) -> str:
    """Return the report in Markdown."""
    lines = [
        f"{self.optimizer} on a network of width {self.width}, judged by "
        f"copies of widths {', '.join(map(str, self.widths))}", ""]
    for rival, x in self.speedups.items():
      lines.append(
          f"- Speed-up in steps over {rival} (tuned): {x.mean:.2f}, 95 % "
          f"prediction interval {x.low:.2f} to {x.high:.2f}; best rates "
          f"{', '.join(f'{rate:.0e}' for rate in self.rates[rival])}")
    check = self.coord_check
    lines += [
        "- Coordinate check: " + (
            "none, because loss returns no layers; let it return (loss, "
            "{layer: activations})" if check is None else
            "PASS" if check.passed else "FAIL"),
        f"- Parameters: {self.num_params:,}; optimizer state: "
        f"{self.state_bytes / 1e6:.1f} MB",
        f"- One step, estimated: {self.update_ms:.1f} ms for the update, "
        f"{self.gradient_ms:.1f} ms for the gradient"]
    lines += [f"- WARNING: {x}" for x in self.warnings]
    return "\n".join([*lines, *(["", check.table()] if check else [])])


def doctor(init: Init, loss: Loss, *, width: int, widths: Sequence[int],
           num_steps: int,
           optimizer: str | os.PathLike[str] | Callable[..., Any] = "mulo-s",
           trial_steps: int = 200, seed: int = 0, **settings: Any) -> Report:
  """Try an optimizer on narrow copies of a network, beside AdamW and Muon.

  Each copy is trained for a few hundred steps by the optimizer, by AdamW at
  four learning rates and by Muon at three, both with warm-up, linear decay of
  the learning rate and weight decay. Muon is tried on all matrices, and on
  hidden matrices alone. The network itself is only traced. Three small copies
  take a minute on a CPU.

  Args:
    init: `(key, width) -> params`, of the user's network.
    loss: `(params, key, width) -> loss`, where the key decides the batch. It
      may return `(loss, {layer: activations})`: then there is a coordinate
      check of these layers, see `mulo.coord_check`. The loss alone cannot be
      judged, because it falls faster in wider networks.
    width: of the network itself.
    widths: of the copies, at least two, increasing; such as a sixteenth, an
      eighth and a quarter of `width`.
    num_steps: planned number of steps of the network itself.
    optimizer: name or file, see `mulo.load`; or a function that takes
      `base_shapes` and `num_steps` and returns a transformation.
    trial_steps: steps of each copy.
    seed: of initial parameters and batches.
    **settings: further arguments of `mulo.load`.

  Returns:
    A report with `.text()` and all numbers.

  Raises:
    ValueError: widths that are no increasing numbers or contain `width`, or
      fewer than 10 trial steps; or see `mulo.load`.
  """
  widths = tuple(widths)
  _check(width, widths, trial_steps)
  key = jax.random.key(seed)
  shapes_of = functools.cache(lambda n: base_shapes_lib.base_shapes(
      functools.partial(init, key), n))
  load = functools.partial(_load, optimizer, settings)
  tx, state, found = traced(
      load, shapes_of(width), shapes_of(widths[0]), num_steps, settings)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # copies are narrow, and trials are short
    txs = {n: load(shapes_of(width), trial_steps) for n in widths}
    trials = [trial(init, loss, txs[n], n, shapes_of(width), trial_steps,
                    jax.random.fold_in(key, n), settings) for n in widths]
    report = coord_check_lib.coord_check(
        init, loss, lambda n: txs[n], widths, seeds=CHECK_SEEDS,
        steps=CHECK_STEPS, limits=None) if (
            _has_layers(init, loss, widths[0])) else None
  found += trials[0].frozen
  update_ms, gradient_ms = _times(
      init, loss, txs[widths[-1]], tx, widths[-1], width, key)
  return Report(
      optimizer if isinstance(optimizer, str) else str(getattr(
          optimizer, "__name__", optimizer)), widths, width, report,
      {rival: speed.predicted([speed.speedup(
          x.losses["optimizer"], x.losses[rival]) for x in trials])
       for rival in RIVALS},
      {rival: tuple(x.rates[rival] for x in trials) for rival in RIVALS},
      {name: tuple(final(x.losses[name]) for x in trials)
       for name in ("optimizer", *RIVALS)},
      sum(x.size for x in jax.tree.leaves(shapes_of(width))),
      sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
      update_ms, gradient_ms, tuple(found))


def _check(width: int, widths: tuple[int, ...], trial_steps: int) -> None:
  """Raise ValueError for wrong sizes; see `doctor`."""
  if len(widths) < 2 or sorted(set(widths)) != list(widths) or (
      width in widths):
    raise ValueError("widths must be at least two increasing numbers without "
                     f"width {width}, got {list(widths)}.")
  if trial_steps < max(CHECK_STEPS):
    raise ValueError(f"trial_steps must be at least {max(CHECK_STEPS)}, got "
                     f"{trial_steps}.")


def _load(optimizer: Any, settings: dict[str, Any], base_shapes: Any,
          num_steps: int) -> optax.GradientTransformationExtraArgs:
  if callable(optimizer):
    tx = optimizer(base_shapes=base_shapes, num_steps=num_steps, **settings)
    return optax.with_extra_args_support(tx)
  return loading.load(
      optimizer, base_shapes=base_shapes, num_steps=num_steps, **settings)


def _loss_alone(loss: Loss, params: Any, key: jax.Array, width: int
                ) -> jax.Array:
  value = loss(params, key, width)
  first: jax.Array = value[0] if isinstance(value, tuple) else value
  return first


def _has_layers(init: Init, loss: Loss, width: int) -> bool:
  """Return whether the loss also returns layers."""
  value: Callable[[jax.Array], Any] = lambda key: loss(
      init(key, width), key, width)
  return isinstance(jax.eval_shape(value, jax.random.key(0)), tuple)


def traced(load: Callable[..., optax.GradientTransformationExtraArgs],
           params: Any, base_shapes: Any, num_steps: int,
           settings: dict[str, Any]) -> tuple[
               optax.GradientTransformationExtraArgs, Any, list[str]]:
  """Return the optimizer of the network itself, its state, and warnings.

  Args:
    load: `(base_shapes, num_steps) -> optimizer`.
    params: shapes of the network itself.
    base_shapes: shapes of a copy.
    num_steps: see `doctor`.
    settings: see `doctor`.

  Returns:
    (optimizer, shapes of the state, warnings). The warnings are those of
    `mulo.load` and `init`, and one for each parameter whose axes shapes do not
    tell.
  """
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    tx = load(base_shapes, num_steps)
    state = jax.eval_shape(tx.init, params)
  infos = roles_lib.infer(params, base_shapes, **_inference(settings))
  return tx, state, [str(x.message) for x in caught] + [
      f"{path}: shapes do not tell {info.open}; declare it in overrides."
      for path, info in infos.items() if info.open]


@dataclasses.dataclass(frozen=True)
class Trial:
  """Runs of a network: losses [steps], best rates, and frozen parameters."""

  losses: dict[str, np.ndarray]
  rates: dict[str, float]
  frozen: list[str]


def trial(init: Init, loss: Loss, tx: optax.GradientTransformationExtraArgs,
          width: int, other_shapes: Any, num_steps: int, key: jax.Array,
          settings: dict[str, Any]) -> Trial:
  """Train one network by the optimizer and by its rivals.

  Args:
    init: see `doctor`.
    loss: see `doctor`.
    tx: the optimizer.
    width: of this network.
    other_shapes: shapes of the network at another width.
    num_steps: of each run.
    key: of initial parameters and batches.
    settings: see `doctor`.
  """
  params = init(key, width)
  of_batch = functools.partial(_loss_alone, loss, width=width)

  # Keys and parameters are arguments: another key needs no other program.
  def run(tx: optax.GradientTransformation, params: Any, key: jax.Array
          ) -> tuple[jax.Array, Any]:
    tx = optax.with_extra_args_support(tx)

    def step(carry: Any, key: jax.Array) -> Any:
      params, state = carry
      value, grads = jax.value_and_grad(of_batch)(params, key)
      updates, state = tx.update(grads, state, params, value=value)
      return (optax.apply_updates(params, updates), state), value

    (end, _), losses = jax.lax.scan(
        step, (params, tx.init(params)),
        jax.random.split(jax.random.fold_in(key, 1), num_steps))
    return losses, jax.grad(of_batch)(end, key)

  def curves_of(rule: Rule, rates: jax.Array) -> np.ndarray:
    runs = jax.vmap(lambda rate, params, key: run(rule(rate), params, key)[0],
                    (0, None, None))
    return np.asarray(jax.jit(runs)(rates, params, key))

  own, grads = jax.jit(functools.partial(run, tx))(params, key)
  losses, rates = {"optimizer": np.asarray(own)}, {}
  for rival, rules in _rivals(
      num_steps, other_shapes, _inference(settings)).items():
    grid = RIVALS[rival]
    curves = np.concatenate(
        [curves_of(rule, jnp.float32(grid)) for rule in rules])
    best = int(np.argmin([final(x) for x in curves]))
    losses[rival], rates[rival] = curves[best], grid[best % len(grid)]
  frozen = [
      f"{base.path_of(path)} has a gradient of exactly 0 after training: is it "
      "used? Mask it if it is frozen."
      for path, g in jax.tree_util.tree_leaves_with_path(grads)
      if not np.any(np.asarray(g))]
  return Trial(losses, rates, frozen)


def _inference(settings: dict[str, Any]) -> dict[str, Any]:
  """Return the arguments of `roles.infer` among settings of `mulo.load`."""
  return {"readout": False,
          **{x: settings[x] for x in roles_lib.SETTINGS if x in settings}}


def final(losses: np.ndarray) -> float:
  """Return the mean over the last tenth, infinite if it is not finite."""
  value = float(np.mean(losses[-max(1, len(losses) // 10):]))
  return value if np.isfinite(value) else float("inf")


def _rivals(num_steps: int, other_shapes: Any, inference: dict[str, Any]
            ) -> dict[str, list[Rule]]:
  """Return {rival: rules}, functions of the peak learning rate."""

  def rate(peak: Any) -> optax.Schedule:
    return lambda step: peak * schedules.multiplier(
        "linear", WARM_UP, jnp.asarray(step), num_steps)

  def hidden(params: Any) -> Any:
    infos = roles_lib.infer(params, other_shapes, **inference)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: optax.contrib.MuonDimensionNumbers(
            infos[base.path_of(path)].inputs, infos[base.path_of(path)].outputs)
        if infos[base.path_of(path)].role == "hidden" else None, params)

  def muon(peak: Any, numbers: Any, adam: float) -> Any:
    return optax.contrib.muon(
        rate(peak), consistent_rms=RMS, weight_decay=WEIGHT_DECAY,
        adam_learning_rate=rate(adam * peak),
        muon_weight_dimension_numbers=numbers)

  return {
      "AdamW": [lambda peak: optax.adamw(
          rate(peak), weight_decay=WEIGHT_DECAY)],
      "Muon": [lambda peak: muon(peak, None, 1.0),
               lambda peak: muon(peak, hidden, 3.0)]}


def _times(init: Init, loss: Loss, narrow_tx: Any, tx: Any, narrow: int,
           width: int, key: jax.Array) -> tuple[float, float]:
  """Return estimated milliseconds of (update, gradient) at full size.

  The time of a copy is multiplied by the ratio of floating point operations.
  """
  grad: Callable[[int], Any] = lambda n: jax.grad(
      functools.partial(_loss_alone, loss, width=n))
  shapes = jax.eval_shape(lambda key: init(key, width), key)
  params = jax.jit(lambda key: init(key, narrow))(key)
  results = []
  for fn_narrow, fn, arguments, shapes_only in (
      (narrow_tx.update, tx.update,
       (params, narrow_tx.init(params), params),
       (shapes, jax.eval_shape(tx.init, shapes), shapes)),
      (grad(narrow), grad(width), (params, key), (shapes, key))):
    compiled: Any = jax.jit(fn_narrow)
    _wait(compiled(*arguments))
    elapsed = []
    for _ in range(TIMINGS):
      start = time.perf_counter()
      _wait(compiled(*arguments))
      elapsed.append(time.perf_counter() - start)
    flops = [_operations(f, x)
             for f, x in ((fn_narrow, arguments), (fn, shapes_only))]
    results.append(1e3 * float(np.median(elapsed)) * flops[1] / flops[0])
  return results[0], results[1]


def _operations(fn: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
  """Return the floating point operations of a function, which is not run."""
  cost: Any = jax.jit(fn).lower(*arguments).cost_analysis()
  return float(cost["flops"])


_wait: Callable[[Any], Any] = jax.block_until_ready
