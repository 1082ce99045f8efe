"""muP for optax optimizers: learning rates that are tuned on a narrow network.

base = narrow.init(key, x)
params = mulo.scaling.rescale_init(wide.init(key, x), base)
tx = mulo.scaling.mu_adamw(3e-3, base)

At the base width both change nothing; at any other width they follow from the
shapes of the parameters there. At the base width itself `infer` sees no axis
grow and needs `delta_shapes`, the shapes at a third width. The forward pass
stays as it is, but for

* attention: query times key is multiplied by `attention_mult`, if the size of a
  head grows, and not only the number of heads;
* a readout that is the embedding as well: logits are multiplied by what the
  parametrization has on readouts, for `mup` base width over width;
* residual branches, under a parametrization for depth: `branch_mult`.

`describe` prints what was concluded about each parameter, and which of these
changes remain. `infer` says when there are errors instead of conclusions.
"""

import functools
from typing import Any, Callable, Mapping, TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from learned_opt import base
from learned_opt import factors as factors_lib
from learned_opt import facts as facts_lib
from learned_opt import parametrizations

Facts = facts_lib.Facts
Override = facts_lib.Override
Factors = factors_lib.Factors
infer = facts_lib.infer
Rate: TypeAlias = float | optax.Schedule


def _rule(parametrization) -> base.Parametrization:
  return parametrizations.get(parametrization) if isinstance(
      parametrization, str) else parametrization


def factors(params: Any, base_shapes: Any, *,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False, kappa: float = 0.0,
            **inference) -> dict[str, Factors]:
  """Factors of each parameter, by path; all are 1 at the base shapes.

  Args:
    params: see `infer`.
    base_shapes: see `infer`.
    parametrization: name of a file in learned_opt/parametrizations, or what
      its `make` returns.
    forward: whether the network itself multiplies by `Factors.output`.
    kappa: exponent of weight decay, see `mu_adamw`.
    **inference: see `infer`.
  """
  of = functools.partial(factors_lib.relative, _rule(parametrization),
                         forward=forward, kappa=kappa)
  return {path: of(fact) for path, fact in facts_lib.infer(
      params, base_shapes, **inference).items()}


def describe(params: Any, base_shapes: Any, *,
             parametrization: str | base.Parametrization = "mup",
             forward: bool = False, kappa: float = 0.0, **inference) -> str:
  """A table of what was concluded about each parameter.

  Args:
    params: see `infer`.
    base_shapes: see `infer`.
    parametrization: see `factors`.
    forward: see `factors`.
    kappa: see `factors`.
    **inference: see `infer`.

  Returns:
    A line per parameter: shapes, role, inputs and outputs, and the factors on
    initial weights, forward pass, Adam's and SGD's learning rate, Adam's
    epsilon and weight decay; then what remains to be done.
  """
  rule = _rule(parametrization)
  facts = facts_lib.infer(params, base_shapes, **inference)
  found = factors(params, base_shapes, parametrization=rule, forward=forward,
                  kappa=kappa, **inference)
  shapes, bases = (facts_lib.by_path(x) for x in (params, base_shapes))
  rows: list[tuple[str, ...]] = [(
      "parameter", "shape", "base shape", "role", "inputs", "outputs", "init",
      "output", "lr Adam", "lr SGD", "eps", "decay", "depth")]
  number = lambda x: f"{x:.4g}"
  for path, fact in facts.items():
    f = found[path]
    rows.append((
        path, str(shapes[path]), str(bases[path]), fact.role,
        str(fact.fan_in), str(fact.fan_out), *map(number, (
            f.std, f.output, f.update, f.update / f.gradient, f.gradient,
            f.decay)), str(fact.depth)))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ["  ".join(x.ljust(n) for x, n in zip(row, widths)).rstrip()
           for row in rows]
  return "\n".join([*lines, "", *_remains(facts, found, rule)])


def _remains(facts, found, rule) -> list[str]:
  """What a user has to do in the forward pass."""
  lines = [f"{path}: {fact.open} is open; it matters for absolute numbers only."
           for path, fact in facts.items() if fact.open]
  lines += [f"{path}: multiply what is computed with it by {f.output:.4g}."
            for path, f in found.items() if f.output != 1]
  for path, fact in facts.items():
    if fact.role == "tied" and (mult := _tied_mult(fact, rule)) != 1:
      lines.append(
          f"{path} reads out as well: multiply the logits by {mult:.4g}.")
  blocks = {(fact.depth, fact.base_depth) for fact in facts.values()}
  for depth, base_depth in sorted(blocks):
    if (mult := branch_mult(depth, base_depth, parametrization=rule)) != 1:
      lines.append(f"Multiply the residual branches of {depth} blocks by "
                   f"{mult:.4g}.")
  return [*lines, "If the size of attention heads grows, multiply query times "
          "key by mulo.scaling.attention_mult(head size, base head size)."]


def _tied_mult(fact: Facts, rule: base.Parametrization) -> float:
  """What the rule has on a readout, for a table that is one as well."""
  mult = lambda n: rule.output_mult((n, 1), (2 * n, 1))
  before = fact._replace(shape=fact.base_shape)
  return mult(fact.fan_out) / mult(before.fan_out)


def attention_mult(head_size: int, base_head_size: int, *,
                   parametrization: str | base.Parametrization = "mup"
                   ) -> float:
  """Factor on query times key; 1/sqrt(head size) at the base size."""
  rule = _rule(parametrization).attention_mult
  return base_head_size**-0.5 * (rule(head_size) / rule(base_head_size))


def branch_mult(depth: int, base_depth: int, *,
                parametrization: str | base.Parametrization = "completep"
                ) -> float:
  """Factor on residual branches; 1 at the base depth."""
  rule = _rule(parametrization).branch_mult
  return rule(depth) / rule(base_depth)


def rescale_init(params: Any, base_params: Any, *,
                 parametrization: str | base.Parametrization = "mup",
                 forward: bool = False, **inference) -> Any:
  """Initial parameters with the standard deviations that muP wants.

  The root mean square of each matrix becomes that at the base width, times the
  factor for its shape, whatever the initialiser does with width. Vectors, and
  what is zero, stay. Doing it twice changes nothing.

  Args:
    params: just initialised.
    base_params: the same network, initialised at the base width: arrays.
    parametrization: see `factors`.
    forward: see `factors`.
    **inference: see `infer`.

  Raises:
    ValueError: shapes instead of arrays; and see `infer`.
  """
  for name, tree in (("params", params), ("base_params", base_params)):
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
      raise ValueError(f"{name} must be arrays, not shapes: the size of their "
                       "entries is read. Initialise the network.")
  stds = {path: f.std for path, f in factors(
      params, base_params, parametrization=parametrization, forward=forward,
      **inference).items()}
  roles = {path: fact.role for path, fact in facts_lib.infer(
      params, base_params, **inference).items()}
  rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
  before = {facts_lib.path_of(path): x for path, x in
            jax.tree_util.tree_leaves_with_path(base_params)}

  def scale(path, x):
    path = facts_lib.path_of(path)
    if roles.get(path, "vector") == "vector":
      return x
    found = rms(x)
    mult = jnp.where(found > 0, stds[path] * rms(before[path]) / jnp.where(
        found > 0, found, 1), 1)
    return (x * mult).astype(x.dtype)

  return jax.tree_util.tree_map_with_path(scale, params)


def _scaled(core: optax.GradientTransformation, learning_rate: Rate,
            base_shapes: Any, *, weight_decay: float,
            parametrization: str | base.Parametrization, forward: bool,
            kappa: float, inference: Mapping[str, Any] | None,
            extra: Callable = lambda fact: 1.0
            ) -> optax.GradientTransformationExtraArgs:
  """`core` on gradients of like size, decay, and a learning rate for each.

  Gradients are brought to the size that they have at the base width, which
  leaves an epsilon in `core` its meaning, and makes what is linear in them
  need the same factor as what does not depend on their size.
  """
  inference = inference or {}
  of = functools.partial(factors_lib.relative, _rule(parametrization),
                         forward=forward, kappa=kappa)
  by = lambda f: factors_lib.scale_by_facts(f, base_shapes, **inference)
  links = [by(lambda fact: 1 / of(fact).gradient), core,
           by(lambda fact: extra(fact) * of(fact).update)]
  if not _is_zero(weight_decay):
    decays = lambda params: factors_lib.by_facts(
        lambda fact: weight_decay * of(fact).decay * of(fact).update, params,
        base_shapes, **inference)
    links.append(_add_decay(decays))
  return optax.chain(*links, optax.scale_by_learning_rate(learning_rate))


def _is_zero(x: Any) -> bool:
  """Whether it is the number 0; what `inject_hyperparams` traces is not."""
  return isinstance(x, (int, float)) and x == 0


def _add_decay(decays: Callable) -> optax.GradientTransformation:
  """Adds each parameter times its own factor, those of `decays(params)`."""

  def update(updates, state, params=None):
    if params is None:
      raise ValueError("Weight decay reads the parameters: call "
                       "update(grads, state, params).")
    return jax.tree.map(lambda u, p, decay: u + (decay * p).astype(u.dtype),
                        updates, params, decays(params)), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def mu_adamw(learning_rate: Rate, base_shapes: Any, *, b1: float = 0.9,
             b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
             kappa: float = 0.0,
             parametrization: str | base.Parametrization = "mup",
             forward: bool = False,
             inference: Mapping[str, Any] | None = None
             ) -> optax.GradientTransformationExtraArgs:
  """AdamW with the learning rates, epsilons and decays of a parametrization.

  At the base shapes it is `optax.adamw`, but that vectors do not decay.

  Args:
    learning_rate: what was tuned at the base width, or a schedule.
    base_shapes: see `infer`.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: at the base width; scaled as gradients are.
    weight_decay: at the base width; times the learning rate.
    kappa: each step takes a part of a hidden matrix that falls as
      width**-kappa: 0 (the part does not depend on width), 1/2, or 1 (one
      weight_decay for all, times learning rates that fall).
    parametrization: see `factors`.
    forward: see `factors`.
    inference: further arguments of `infer`.

  Reference:
    Yang et al., 2022, https://arxiv.org/abs/2203.03466; kappa: Fan et al.,
    2025, https://arxiv.org/abs/2510.15262.
  """
  return _scaled(
      optax.scale_by_adam(b1, b2, eps), learning_rate, base_shapes,
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, inference=inference)


def mu_sgd(learning_rate: Rate, base_shapes: Any, *, momentum: float = 0.0,
           nesterov: bool = False, weight_decay: float = 0.0,
           kappa: float = 0.0,
           parametrization: str | base.Parametrization = "mup",
           forward: bool = False,
           inference: Mapping[str, Any] | None = None
           ) -> optax.GradientTransformationExtraArgs:
  """SGD; arguments as in `mu_adamw`, and momentum as in `optax.sgd`."""
  core = optax.identity() if _is_zero(momentum) else optax.trace(
      momentum, nesterov)
  return _scaled(
      core, learning_rate, base_shapes, weight_decay=weight_decay,
      parametrization=parametrization, forward=forward, kappa=kappa,
      inference=inference)


def mu_lion(learning_rate: Rate, base_shapes: Any, *, b1: float = 0.9,
            b2: float = 0.99, weight_decay: float = 0.0, kappa: float = 0.0,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False,
            inference: Mapping[str, Any] | None = None
            ) -> optax.GradientTransformationExtraArgs:
  """Lion; arguments as in `mu_adamw`, see `optax.lion`."""
  return _scaled(
      optax.scale_by_lion(b1, b2), learning_rate, base_shapes,
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, inference=inference)


def mu_muon(learning_rate: Rate, base_shapes: Any, *, beta: float = 0.95,
            eps: float = 1e-8, ns_steps: int = 5, weight_decay: float = 0.0,
            kappa: float = 0.0, adam_learning_rate: Rate | None = None,
            adam_b1: float = 0.9, adam_b2: float = 0.999,
            parametrization: str | base.Parametrization = "mup",
            forward: bool = False,
            inference: Mapping[str, Any] | None = None
            ) -> optax.GradientTransformationExtraArgs:
  """Muon for hidden matrices, AdamW for all else.

  Updates of hidden matrices are orthogonal ones times sqrt(outputs / inputs)
  (at the base width times sqrt(max(1, outputs / inputs)), as in optax), each
  layer or expert of a stack by itself. That holds under parametrizations whose
  updates of hidden matrices are as 1 / inputs, as those of `mup` are; what
  others have besides is on Muon's updates, too.

  Args:
    learning_rate: of hidden matrices, tuned at the base width.
    base_shapes: see `infer`.
    beta: see `optax.contrib.muon`.
    eps: see `mu_adamw`.
    ns_steps: see `optax.contrib.muon`.
    weight_decay: see `mu_adamw`.
    kappa: see `mu_adamw`.
    adam_learning_rate: of all else; by default the same.
    adam_b1: see `mu_adamw`.
    adam_b2: see `mu_adamw`.
    parametrization: see `factors`.
    forward: see `factors`.
    inference: further arguments of `infer`.

  Returns:
    A transformation; its `init` raises ValueError where shapes leave open what
    the rows and columns of a hidden parameter are.

  Raises:
    ValueError: a parametrization without a rule for width.

  Reference:
    Jordan et al., 2024, https://kellerjordan.github.io/posts/muon; Yang et al.,
    2023, https://arxiv.org/abs/2310.17813 (sizes of updates).
  """
  if not _rule(parametrization).needs_base_shapes:
    raise ValueError("mu_muon needs a parametrization with a rule for width, "
                     f"got {parametrization!r}.")
  inference = dict(inference or {})
  # Each of the two sees a part of the parameters only.
  part = inference | {"readout": False}
  common: dict[str, Any] = dict(
      weight_decay=weight_decay, parametrization=parametrization,
      forward=forward, kappa=kappa, inference=part)

  def extra(fact):
    ins, outs = factors_lib.ratio_in(fact), factors_lib.ratio_out(fact)
    before = fact._replace(shape=fact.base_shape)
    return max(1, before.fan_out / before.fan_in)**0.5 * (ins * outs)**0.5

  label = lambda fact: "muon" if fact.role == "hidden" else "adam"
  by = lambda of, **settings: lambda tree: factors_lib.by_facts(
      of, tree, base_shapes, **(inference | settings))
  return optax.partition(
      {"muon": _scaled(
          optax.contrib.scale_by_muon(
              ns_steps=ns_steps, beta=beta, eps=eps,
              weight_dimension_numbers=by(_rows_and_columns, **part)),
          learning_rate, base_shapes, extra=extra, **common),
       "adam": _scaled(
           optax.scale_by_adam(adam_b1, adam_b2, eps),
           learning_rate if adam_learning_rate is None else adam_learning_rate,
           base_shapes, **common)}, by(label))


def _rows_and_columns(fact: Facts) -> optax.contrib.MuonDimensionNumbers:
  """What `optax.contrib.muon` has to know; raises ValueError if it is open."""
  if fact.open:
    raise ValueError(
        f"Of a hidden parameter that counts as {fact.shape} it is open "
        f"{fact.open}, and Muon has to know: declare the axes in overrides.")
  return optax.contrib.MuonDimensionNumbers(fact.inputs, fact.outputs)
