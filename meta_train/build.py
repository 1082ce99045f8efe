"""From a config to the functions of meta-training."""

from typing import Any, Callable, Iterable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from learned_opt import base as learned_opt_base
from learned_opt import optimizers
from learned_opt import registry
from learned_opt.scaling import parametrizations
from meta_train import base
from meta_train import estimators
from meta_train import step as step_lib
from meta_train import unroll
from meta_train.devices import parallel
from meta_train.devices import stream
from tasks import augment
from tasks import base as tasks_base
from tasks import families
from tasks import normalizers


class Program(NamedTuple):
  """What a config means.

  Attributes:
    init: see `step.make`.
    step: see `step.make`.
    data: `(first, last) -> data` of each outer step after `first` others.
    devices: the mesh that it runs on.
  """

  init: Callable[[], base.MetaState]
  step: Callable[[base.MetaState, Any], tuple[base.MetaState, dict]]
  data: Callable[[int, int], Iterable[dict]]
  devices: jax.sharding.Mesh


# What the section of a task says beside the settings of its family.
NOT_OF_THE_FAMILY = ("weight", "augment", "num_steps", "normalizer")


def settings_of(section) -> dict:
  """A section of the config without its name, as keyword arguments."""
  return {k: v for k, v in section.items() if k != "name"}


def task_of(section, parametrization: learned_opt_base.Parametrization,
            data_dir: str | None) -> tasks_base.Task:
  """The task of a section.

  Raises:
    ValueError: an unknown name or a setting that does not fit.
  """
  task = families.get(
      section["name"], parametrization, data_dir=data_dir,
      **{k: v for k, v in settings_of(section).items()
         if k not in NOT_OF_THE_FAMILY})
  if (name := section.get("normalizer")) is not None:
    if name != "log" or task.chance_loss is None:
      raise ValueError(
          f"Unknown normalizer {name!r}; available: 'log' for tasks with a "
          "loss of chance, or leave it out for that of the task.")
    task = task._replace(normalize=normalizers.log_bounded(task.chance_loss))
  if section.get("augment") is None:
    return task
  try:
    return augment.reparametrize(task, **section["augment"])
  except TypeError as e:
    raise ValueError(f"augment does not take {section['augment']}: {e}.") from e


def optimizer(config) -> learned_opt_base.LearnedOptimizer:
  """The learned optimizer of a config; raises ValueError."""
  settings = settings_of(config.optimizer)
  known = registry.all_settings(
      optimizers.__name__, config.optimizer.name, **settings)
  if config.estimator.name.endswith("backprop") and "lowering" in known:
    # What is written out takes minutes to compile once it is differentiated.
    settings["lowering"] = known["lowering"] or "blocked"
  return optimizers.get(config.optimizer.name, **settings)


def tasks(config, sections, data_dir: str | None
          ) -> dict[str, tuple[tasks_base.Task, unroll.OptFn]]:
  """Each task with the optimizer for it, which scales as its parameters grow.

  Raises:
    ValueError: an unknown name or a setting that does not fit.
  """
  parametrization = parametrizations.get(config.parametrization)
  opt_fn = optimizer(config).opt_fn
  found = {}
  for name, section in sections.items():
    task = task_of(section, parametrization, data_dir)
    found[name] = task, unroll.scaled(opt_fn, parametrization, task)
  return found


def build(config: ml_collections.ConfigDict, data_dir: str | None) -> Program:
  """The program that a config asks for.

  Raises:
    ValueError: an unknown name or a setting that does not fit.
  """
  check(config)
  pairs = tasks(config, config.tasks, data_dir)
  devices = parallel.mesh(config.copies, config.devices)
  estimator_of = {
      name: estimators.get(
          config.estimator.name,
          task=stream.task_of(task) if config.stream else task, opt_fn=opt_fn,
          **settings_of(config.estimator))
      for name, (task, opt_fn) in pairs.items()}
  init, step = step_lib.make(
      optimizer(config), estimator_of, theta_optimizer(config), config.copies,
      config.seed, devices, config.mapping,
      {name: section.get("weight", 1.0)
       for name, section in config.tasks.items()}, config.stream)
  return Program(init, step, _data(config, pairs, devices), devices)


def _data(config, pairs, devices):
  """`Program.data`."""
  if config.stream:
    return lambda first, last: stream.batches(
        {name: task for name, (task, _) in pairs.items()}, config.seed,
        config.copies, config.estimator.truncation,
        config.estimator.loss_split, devices, first, last)
  data = {name: task.data for name, (task, _) in pairs.items()}
  # Tasks on one data set share its arrays, on the device, too.
  arrays = {id(x): x for x in jax.tree.leaves(data)}
  placed = parallel.replicate(arrays, devices)
  data = jax.tree.map(lambda x: placed[id(x)], data)
  return lambda first, last: (data for _ in range(first, last))


def theta_optimizer(config) -> optax.GradientTransformation:
  """The meta-optimizer.

  By default clipping of the meta-gradient, then AdamW with warm-up and cosine;
  or what theta_opt.expression says, Python that may use optax and jnp.

  Raises:
    ValueError: an expression that is not one of a gradient transformation.
  """
  section = config.theta_opt
  if section.get("expression"):
    try:
      found = eval(  # pylint: disable=eval-used
          section.expression, {"optax": optax, "jnp": jnp})
      found.init, found.update  # pylint: disable=pointless-statement
      return found
    except Exception as e:
      raise ValueError(
          f"theta_opt.expression {section.expression!r} does not give an optax "
          f"transformation: {type(e).__name__}: {e}.") from e
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, section.learning_rate, section.warmup, config.num_steps,
      section.final_learning_rate)
  return optax.chain(
      optax.clip_by_global_norm(section.clip),
      optax.adamw(schedule, weight_decay=section.weight_decay))


def check(config) -> None:
  """Raises ValueError for numbers that make no sense."""
  for key in ("num_steps", "copies", "log_every", "checkpoint_every",
              "keep_checkpoints"):
    if config[key] < 1:
      raise ValueError(f"config.{key} must be at least 1, got {config[key]}.")
  for key in ("max_minutes", "devices"):
    if config[key] < 0:
      raise ValueError(
          f"config.{key} must not be negative, got {config[key]}.")
  for key, value in (("checkpoint_every", config.checkpoint_every),
                     ("evaluation.every", config.evaluation.every)):
    if value % config.log_every:
      raise ValueError(f"{key} ({value}) must be a multiple of log_every "
                       f"({config.log_every}).")
  if not config.tasks:
    raise ValueError("config.tasks is empty: there is nothing to train on.")
  for name, section in config.tasks.items():
    if section.get("weight", 1.0) <= 0:
      raise ValueError(f"config.tasks.{name}.weight must be positive, got "
                       f"{section.weight}.")
    if "num_steps" in section:
      raise ValueError(f"config.tasks.{name}.num_steps means nothing: lengths "
                       "of episodes are set in config.estimator.")
  if config.evaluation.every and not config.evaluation.tasks:
    raise ValueError("config.evaluation.tasks is empty: there is nothing to "
                     "evaluate on; set evaluation.every to 0.")
  if config.stream and config.estimator.name.startswith("full_"):
    raise ValueError("config.stream is for estimators that make one truncation "
                     f"in an outer step, not for {config.estimator.name}.")
  if config.theta_opt.clip <= 0:
    raise ValueError(
        f"theta_opt.clip must be positive, got {config.theta_opt.clip}.")
  if not 0 <= config.theta_opt.warmup < config.num_steps:
    raise ValueError(
        f"theta_opt.warmup ({config.theta_opt.warmup}) must be less than "
        f"num_steps ({config.num_steps}).")
