"""Speed of one training run compared with another, and its interval."""

import math
from typing import Callable, NamedTuple, Sequence

import numpy as np

ROUNDING = 1e-3  # relative difference of losses that is none
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Speedup(NamedTuple):
  """Steps that a reference takes / steps of the optimizer, see `speedup`.

  Attributes:
    mean: geometric mean over the copies.
    low: lower end of the 95 % prediction interval for one more network.
    high: upper end of it.
    copies: of each copy.
  """

  mean: float
  low: float
  high: float
  copies: tuple[float, ...]


def trailing_mean(losses: np.ndarray) -> np.ndarray:
  """Return means over a tenth of the steps, which end at each step.

  Entry i of n - window + 1 ends at step i + window.
  """
  window = max(1, len(losses) // 10)
  return np.convolve(losses, np.full(window, 1 / window), "valid")


def speedup(losses: np.ndarray, reference: np.ndarray) -> float:
  """Return the speed-up of a run of n steps over a reference of n steps.

  Curves are means over a tenth of the steps.

  * The run ends lower: n / the step from which it stays at the reference's last
    loss or below.
  * It ends higher: the step from which the reference stays at the run's last
    loss or below / n, at most 1, even if the run was there before it got stuck.
  * Both end equal, up to rounding: 1.
  * The run diverged: 0. The reference diverged: infinity.
  """
  finite = [bool(np.all(np.isfinite(x))) for x in (losses, reference)]
  if not all(finite):
    return math.inf if finite[0] else 0.0
  run, other = trailing_mean(losses), trailing_mean(reference)
  n, skipped = len(losses), len(losses) - len(run)
  needed: Callable[[np.ndarray, float], int] = lambda curve, goal: (
      skipped + 1 + int(np.max(np.flatnonzero(curve > goal), initial=-1) + 1))
  if np.isclose(run[-1], other[-1], rtol=ROUNDING, atol=0):
    return 1.0
  if run[-1] > other[-1]:
    return needed(other, run[-1]) / n
  return n / needed(run, other[-1])


def predicted(copies: Sequence[float]) -> Speedup:
  """Return the speed-up that one more network is predicted to have.

  Logarithms are taken as normal, with unknown mean and variance: with mean m
  and standard deviation s of n copies, the interval is m ± t s sqrt(1 + 1/n),
  with Student's t. A speed-up of 0 or infinity makes it unbounded.

  Args:
    copies: speed-ups of at least two copies.
  """
  values = np.asarray(copies, float)
  if not np.all(np.isfinite(values)) or np.any(values <= 0):
    return Speedup(float(np.median(values)), 0.0, math.inf, tuple(copies))
  logs = np.log(values)
  quantile = T_QUANTILES[min(len(logs) - 1, len(T_QUANTILES)) - 1]
  half = quantile * float(np.std(logs, ddof=1)) * math.sqrt(1 + 1 / len(logs))
  mean = float(np.mean(logs))
  return Speedup(math.exp(mean), math.exp(mean - half), math.exp(mean + half),
                 tuple(copies))
