"""A network over all weights that commutes with permutations of hidden units.

At step t, p is a parameter [*S] and g its gradient:

1. Momenta m_k = b_k m_k + (1 - b_k) g, for b = 0.1, 0.5, 0.9, 0.99, 0.999,
   0.9999; they start at 0.
2. Features of an element: p, g and the six momenta, clipped to [-1, 1] and
   divided by sqrt(1e-5 + their mean square over p); then 11 time features
   tanh(t / tau - 1).
3. Three dense layers of C units with ReLU, the same for all elements: x
   [*S, C] for each parameter.
4. An equivariant layer, the most general linear map from all x to all p
   that commutes with permutations of hidden units:
     f_i = bias + sum over terms T and parameters j of weight(T) . T(x_j)
   A term is a mean over some axes of x_j, see `shared.permutations`. Terms of
   one kind from several parameters are averaged.
5. update = -step_mult * (out_mult * f + m_0.9)

In the published layer each pair of parameters has weights of its own, so that
theta is for one list of parameters. Here weights depend on what two parameters
are to each other: the same, the layer before, the layer after, the bias, any
other. One theta serves networks of any width and depth.

Limits: C numbers are kept for each element, 128 bytes for C = 32, and the
number of terms grows with the square of the number of parameters. Inputs and
classes are taken for units that may be permuted, as in the published code.
Updates depend on the size of gradients. An element without gradient moves.

Reference:
  Zhou, Finn, Harrison, Universal neural functionals, 2024,
  https://arxiv.org/abs/2402.05232.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import base
from learned_opt.optimizers.shared import permutations
from learned_opt.update import features as features_lib
from learned_opt.update import mlp
from learned_opt.update import per_parameter
from learned_opt.update import sharding

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
HEAVY_BALL = 2  # the momentum that is part of the update
NUM_FEATURES = 2 + len(DECAYS) + len(features_lib.TIME_SCALES)
FLOOR = 1e-5  # of mean squares
LAYERS = 3  # dense


class Statistics(NamedTuple):
  """Statistics of one parameter."""

  momentum: tuple[jax.Array, ...]  # arrays [*S], one for each of DECAYS


def make(hidden: int = 32, step_mult: float = 0.1, out_mult: float = 1e-4,
         equivariant: bool = True, axes: str = "") -> base.LearnedOptimizer:
  """Return the optimizer; formulas are in the module docstring.

  Args:
    hidden: C, width of the dense layers.
    step_mult: multiplies the update.
    out_mult: multiplies the output of the network.
    equivariant: False for a dense layer in place of the equivariant one: the
      same per-parameter network without exchange between elements.
    axes: names of axes, see `permutations.sites`; needed where the layers are
      no chain.

  Raises:
    ValueError: hidden is not a positive integer, a multiplier is not a positive
      number, equivariant is no bool or axes is no text. `init` of the
      transformation raises it for axes that do not fit the parameters.
  """
  mlp.check_settings(hidden, 1, step_mult=step_mult, out_mult=out_mult)
  if not isinstance(equivariant, bool) or not isinstance(axes, str):
    raise ValueError(f"equivariant must be a bool and axes a text, got "
                     f"{equivariant!r} and {axes!r}.")

  def opt_fn(theta, *, num_steps=None, kinds=None):
    del num_steps
    states = per_parameter.Statistics(_init_one, kinds=kinds)

    def start(params):
      statistics = states.init(params)
      permutations.sites(params, kinds, axes)  # for its errors
      return per_parameter.State(
          sharding.whole(lambda: jnp.zeros([], jnp.int32), params), statistics)

    def update(grads, state, params=None, **extra_args):
      del extra_args
      params = states.matched(grads, params, state.statistics)
      leaves = [g.astype(jnp.float32) for g in jax.tree.leaves(grads)]
      fields = jax.tree.leaves(state.statistics)
      momenta = [fields[i::len(leaves)] for i in range(len(leaves))]
      momenta = [_accumulate(g, m) for g, m in zip(leaves, momenta)]
      sites = permutations.sites(params, kinds, axes)
      wide = [p.astype(jnp.float32) for p in jax.tree.leaves(params)]
      hiddens = [_dense(theta, _features([
          permutations.view(x, site)
          for x in (wide[site.leaf], leaves[site.leaf], *momenta[site.leaf])],
          state.step)) for site in sites]
      outputs = (_exchanged if equivariant else _alone)(theta, hiddens, sites)
      updates = [-step_mult * m[HEAVY_BALL] for m in momenta]
      for i in {site.leaf for site in sites}:
        own = [k for k, site in enumerate(sites) if site.leaf == i]
        updates[i] -= step_mult * out_mult * permutations.from_views(
            [outputs[k] for k in own], [sites[k] for k in own])
      updates = [u.astype(g.dtype) for u, g in zip(
          updates, jax.tree.leaves(grads))]
      statistics = jax.tree.unflatten(
          jax.tree.structure(state.statistics),
          [m[k] for k in range(len(DECAYS)) for m in momenta])
      return jax.tree.unflatten(
          jax.tree.structure(grads), updates), per_parameter.State(
              optax.safe_increment(state.step), statistics)

    return optax.GradientTransformationExtraArgs(start, update)

  return base.LearnedOptimizer(functools.partial(
      _init, hidden=hidden, equivariant=equivariant), opt_fn)


def _init(key, hidden, equivariant):
  """Return theta: random layers, zero biases."""
  dense = mlp.init(key, NUM_FEATURES, hidden, hidden)
  if not equivariant:
    return dense | {
        "w3": _normal(key, [hidden], hidden), "b3": jnp.zeros([], jnp.float32)}
  counts = jnp.float32([
      sum(x[0] == output for x in permutations.all_terms())
      for output, _, _ in permutations.all_terms()])
  return dense | {
      "terms": _normal(
          key, [len(counts), hidden], hidden * counts.reshape(-1, 1)),
      "bias": jnp.zeros(len(permutations.AXES), jnp.float32)}


def _normal(key, shape, fan_in):
  """Return normal numbers of standard deviation 1/sqrt(fan-in)."""
  return jax.random.normal(
      jax.random.fold_in(key, LAYERS), shape, jnp.float32) / fan_in**0.5


def _init_one(shape) -> Statistics:
  """Return the first statistics of a parameter."""
  return Statistics(tuple(jnp.zeros(shape, jnp.float32) for _ in DECAYS))


def _accumulate(grad, momenta):
  """Return the momenta of a parameter with its gradient, [*S]."""
  return [b * m + (1 - b) * grad for b, m in zip(DECAYS, momenta)]


def _features(arrays, step):
  """Return the features of a site: [*view, NUM_FEATURES].

  Args:
    arrays: parameter, gradient, momenta, as views of the site.
    step: number of steps taken before this step.
  """
  x = jnp.clip(jnp.stack(arrays, -1), -1, 1)
  x *= jax.lax.rsqrt(FLOOR + jnp.mean(x * x, (0, 1, 2), keepdims=True))
  time = jnp.tanh(step / features_lib.TIME_SCALES - 1).astype(jnp.float32)
  return jnp.concatenate(
      [x, jnp.broadcast_to(time, (*x.shape[:-1], len(time)))], -1)


def _dense(theta, x):
  """Return the outputs of the dense layers: [*view, C]."""
  for i in range(LAYERS):
    bias = theta[f"b{i}"].reshape(1, 1, 1, -1)
    x = jax.nn.relu(x @ theta[f"w{i}"] + bias)
  return x


def _alone(theta, hiddens, sites):
  """Return the last layer without exchange: a view for each site."""
  del sites
  return [x @ theta["w3"] + theta["b3"] for x in hiddens]


def _exchanged(theta, hiddens, sites):
  """Return the equivariant layer: a view for each site."""
  index = {x: i for i, x in enumerate(permutations.all_terms())}

  @functools.cache
  def reduced(j, kept):
    return permutations.reduce(hiddens[j], kept)

  outputs = []
  for output in sites:
    parts: dict[int, list[jax.Array]] = {}
    for j, source in enumerate(sites):
      for term in permutations.terms(output, source):
        kept = "".join(sorted(x for _, x in term.pairs))
        weights = index[output.what, source.what, term]
        parts.setdefault(weights, []).append(permutations.placed(
            reduced(j, kept) @ theta["terms"][weights], term))
    bias = theta["bias"][list(permutations.AXES).index(output.what)]
    total = jnp.broadcast_to(bias, output.shape)
    for part in parts.values():
      total += sum(part) / len(part)
    outputs.append(total)
  return outputs
