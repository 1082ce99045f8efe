"""From a config to the functions of meta-training.

`build` and `evaluator` cut the config into its sections. Every other function
receives the section that it needs, never the whole config.
"""

import functools
from typing import Any, Callable, Iterable, Mapping, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from learned_opt import artifact as artifact_lib
from learned_opt import base as learned_opt_base
from learned_opt import optimizers
from learned_opt import registry
from learned_opt.scaling import parametrizations
from meta_train import base
from meta_train import estimators
from meta_train import ranges
from meta_train import selection
from meta_train import step as step_lib
from meta_train import unroll
from meta_train import workers
from meta_train.devices import parallel
from meta_train.devices import stream
from tasks import augment
from tasks import base as tasks_base
from tasks import families
from tasks import normalizers
from tasks.data import identity

# Settings in the section of a task that are not settings of its family.
NOT_OF_THE_FAMILY = (
    "weight", "augment", "num_steps", "normalizer", "workers")

# {task name: (task, inner optimizer for this task)}.
BuiltTasks = dict[str, tuple[tasks_base.Task, unroll.OptFn]]
# `(first, last)`: the data of each outer step after step `first`, up to `last`.
DataFn = Callable[[int, int], Iterable[dict[str, Any]]]


class Program(NamedTuple):
  """The functions that a config describes.

  Attributes:
    init: see `step.make`.
    step: see `step.make`.
    data: `(first, last) -> iterable of {task: data}`, one entry for each outer
      step that follows the first `first` steps, up to step `last`.
    devices: the mesh that the functions run on.
    identity: {task: hash of its data}.
  """

  init: step_lib.InitFn
  step: step_lib.StepFn
  data: DataFn
  devices: jax.sharding.Mesh
  identity: dict[str, str]


def build(config: ml_collections.ConfigDict, data_dir: str | None) -> Program:
  """Return the program of a config.

  Args:
    config: see meta_train/configs.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: an unknown name, or a setting that does not fit.
  """
  check(config)
  lopt = optimizer(config.optimizer)
  if config.start:
    theta = start(config).theta
    lopt = lopt._replace(init=lambda key: theta)
  built_tasks = tasks(
      config.tasks, parametrizations.get(config.parametrization), lopt.opt_fn,
      data_dir)
  devices = parallel.mesh(config.copies, config.devices)
  init, step = step_lib.make(
      lopt, task_estimators(config.estimator, built_tasks, config.stream),
      theta_optimizer(config.theta_opt, config.num_steps), config.copies,
      config.seed, devices, how=config.mapping, weights=weights(config.tasks),
      streamed=config.stream,
      average_after=average_after(config))
  if config.stream:
    data = _streamed_data(
        built_tasks, config.estimator, config.seed, config.copies, devices)
  else:
    data = _resident_data(built_tasks, devices)
  return Program(init, step, data, devices, {
      name: identity.sha256(task.data)
      for name, (task, _) in built_tasks.items()})


def start(config: ml_collections.ConfigDict) -> artifact_lib.Artifact:
  """Return the artifact that meta-training starts from.

  Args:
    config: see meta_train/configs; `start` is the path of the file.

  Raises:
    ValueError: the file cannot be read, is not the one of `start_sha256`, or
      belongs to another optimizer.
  """
  try:
    artifact = artifact_lib.read(
        config.start, trust=(config.optimizer.name, config.parametrization))
  except OSError as e:
    raise ValueError(f"config.start: {e}") from e
  sha256 = artifact_lib.sha256(artifact.theta)
  if config.start_sha256 not in ("", sha256):
    raise ValueError(
        f"config.start: the theta of {config.start} has the sha256 {sha256}, "
        f"not {config.start_sha256}, with which this run began.")
  section = config.optimizer
  wanted = jax.eval_shape(optimizer(section).init, jax.random.key(0))
  if artifact.optimizer != section.name or (
      jax.tree.map(np.shape, artifact.theta) !=
      jax.tree.map(np.shape, wanted)):
    raise ValueError(
        f"config.start: {config.start} belongs to {artifact.optimizer} with "
        f"{artifact.settings}, not to config.optimizer {section.to_dict()}.")
  return artifact


def evaluator(config: ml_collections.ConfigDict, data_dir: str | None
              ) -> selection.Evaluator:
  """Return the evaluator of theta on the tasks of config.evaluation.

  Args:
    config: see meta_train/configs.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: an unknown name, or a setting that does not fit.
  """
  lopt = optimizer(config.optimizer)
  return selection.Evaluator(config.evaluation, tasks(
      config.evaluation.tasks, parametrizations.get(config.parametrization),
      lopt.opt_fn, data_dir))


def settings_of(section: Mapping[str, Any]) -> dict[str, Any]:
  """Return a section of the config without its name, as keyword arguments."""
  return {k: v for k, v in section.items() if k != "name"}


def task_of(section: Mapping[str, Any],
            parametrization: learned_opt_base.Parametrization,
            data_dir: str | None) -> tasks_base.Task:
  """Return the task of a section such as config.tasks.digits.

  Args:
    section: name of the family, settings of the family, and
      NOT_OF_THE_FAMILY.
    parametrization: decides initialisation and forward pass.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: an unknown name, or a setting that does not fit.
  """
  task = families.get(
      section["name"], parametrization, data_dir=data_dir,
      **{k: v for k, v in settings_of(section).items()
         if k not in NOT_OF_THE_FAMILY})
  if (name := section.get("normalizer")) is not None:
    if name != "log" or task.chance_loss is None:
      raise ValueError(
          f"Unknown normalizer {name!r}; available: 'log', for tasks with a "
          "loss of chance. Leave it out for the task's own normalizer.")
    task = task._replace(normalize=normalizers.log_bounded(task.chance_loss))
  for name, wrap in (("augment", augment.reparametrize),
                     ("workers", functools.partial(
                         workers.local_rounds, parametrization))):
    if section.get(name) is None:
      continue
    try:
      task = wrap(task, **section[name])
    except TypeError as e:
      raise ValueError(f"{name} does not take {section[name]}: {e}.") from e
  return task


def tasks(sections: Mapping[str, Mapping[str, Any]],
          parametrization: learned_opt_base.Parametrization,
          opt_fn: unroll.OptFn, data_dir: str | None) -> BuiltTasks:
  """Return each task with the inner optimizer for this task.

  The inner optimizer of a task is `opt_fn` followed by the update multipliers
  of the task's parameters.

  Args:
    sections: {task name: section}, such as config.tasks.
    parametrization: decides initialisation, forward pass and multipliers.
    opt_fn: `LearnedOptimizer.opt_fn`.
    data_dir: see `tasks.data.images.image_data`.

  Raises:
    ValueError: an unknown name, or a setting that does not fit.
  """
  built_tasks = {}
  for name, section in sections.items():
    task = task_of(section, parametrization, data_dir)
    built_tasks[name] = task, unroll.scaled(opt_fn, parametrization, task)
  return built_tasks


def weights(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Return the weight of each task of config.tasks in the meta-gradient."""
  return {name: section.get("weight", 1.0)
          for name, section in sections.items()}


def optimizer(section: Mapping[str, Any]) -> learned_opt_base.LearnedOptimizer:
  """Return the learned optimizer of config.optimizer.

  Args:
    section: name of the optimizer, and its settings.

  Raises:
    ValueError: an unknown name, or a setting that does not fit.
  """
  return optimizers.get(section["name"], **settings_of(section))


def task_estimators(section: Mapping[str, Any], built_tasks: BuiltTasks,
                    streamed: bool) -> dict[str, base.GradientEstimator]:
  """Return one gradient estimator per task.

  Args:
    section: config.estimator: name of the estimator, and its settings.
    built_tasks: see `tasks`.
    streamed: whether data are the batches of one outer step, see `stream`.

  Raises:
    ValueError: an unknown name, or a setting that does not fit.
  """
  return {
      name: estimators.get(
          section["name"], task=stream.task_of(task) if streamed else task,
          opt_fn=opt_fn, **settings_of(section))
      for name, (task, opt_fn) in built_tasks.items()}


def _streamed_data(built_tasks: BuiltTasks, estimator: Mapping[str, Any],
                   seed: int, copies: int, devices: jax.sharding.Mesh
                   ) -> DataFn:
  """Return `Program.data` that sends the batches of each step to devices."""
  only_tasks = {name: task for name, (task, _) in built_tasks.items()}
  return lambda first, last: stream.batches(
      only_tasks, seed, copies, estimator["truncation"],
      estimator["loss_split"], devices, first, last)


def _resident_data(built_tasks: BuiltTasks, devices: jax.sharding.Mesh
                   ) -> DataFn:
  """Return `Program.data` that stays on the devices, the same in each step."""
  data = {name: task.data for name, (task, _) in built_tasks.items()}
  # Tasks on one data set share its arrays on the host. By id, each array is
  # sent to the devices only once, and tasks share it there, too.
  arrays = {id(x): x for x in jax.tree.leaves(data)}
  placed = parallel.replicate(arrays, devices)
  data = jax.tree.map(lambda x: placed[id(x)], data)
  return lambda first, last: (data for _ in range(first, last))


def average_after(config: ml_collections.ConfigDict) -> int | None:
  """Return the outer step after which theta is averaged, None for never."""
  if not config.average:
    return None
  return int(round((1 - config.average) * config.num_steps))


def theta_optimizer(section: Mapping[str, Any], num_steps: int
                    ) -> optax.GradientTransformation:
  """Return the meta-optimizer of config.theta_opt.

  By default the meta-gradient is clipped, then AdamW takes a step. Its learning
  rate warms up linearly and then decays with a cosine.

  Args:
    section: settings of the default meta-optimizer, and `make`. `make` is "" or
      "package.module:make", a function
      `make(num_steps) -> optax.GradientTransformation`. It replaces the
      default: the other settings have no effect.
    num_steps: outer steps of the run.

  Raises:
    ValueError: `make` cannot be imported, does not take num_steps or does not
      return an optax transformation.
  """
  if section.get("make"):
    return _imported_theta_optimizer(section["make"], num_steps)
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, section["learning_rate"], section["warmup"], num_steps,
      section["final_learning_rate"])
  return optax.chain(
      optax.clip_by_global_norm(section["clip"]),
      optax.adamw(schedule, weight_decay=section["weight_decay"]))


def _imported_theta_optimizer(name: str, num_steps: int
                              ) -> optax.GradientTransformation:
  """Return `make(num_steps)` of "package.module:make"; see above."""
  if not registry.is_import(name):
    raise ValueError(
        f"theta_opt.make {name!r} is not of the form package.module:make; set "
        "it to '' for the default meta-optimizer.")
  # Without a folder of meta-optimizers: a name with a colon needs none.
  tx = registry.get("", name, num_steps=num_steps)
  if not (hasattr(tx, "init") and hasattr(tx, "update")):
    raise ValueError(
        f"theta_opt.make {name!r} must return an optax transformation, got "
        f"{tx!r}.")
  return tx


def check(config: ml_collections.ConfigDict) -> None:
  """Raise ValueError if a number or a section of the config makes no sense."""
  ranges.check(config)
  # Rows of metrics are written every log_every steps. Checkpoints and
  # evaluations happen at these steps only.
  for key, value in (("checkpoint_every", config.checkpoint_every),
                     ("evaluation.every", config.evaluation.every)):
    if value % config.log_every:
      raise ValueError(f"{key} ({value}) must be a multiple of log_every "
                       f"({config.log_every}).")
  _check_tasks(config.tasks, config.evaluation)
  if config.stream and config.estimator.name.startswith("full_"):
    raise ValueError("config.stream is for estimators that make one truncation "
                     f"in an outer step, not for {config.estimator.name}.")
  if not 0 <= config.theta_opt.warmup < config.num_steps:
    raise ValueError(
        f"theta_opt.warmup ({config.theta_opt.warmup}) must be less than "
        f"num_steps ({config.num_steps}).")


def _check_tasks(sections: Mapping[str, Mapping[str, Any]],
                 evaluation: ml_collections.ConfigDict) -> None:
  """Raise ValueError if config.tasks or config.evaluation makes no sense."""
  if not sections:
    raise ValueError("config.tasks is empty: there is nothing to train on.")
  for name, section in sections.items():
    if "num_steps" in section:
      raise ValueError(f"config.tasks.{name}.num_steps means nothing: lengths "
                       "of episodes are set in config.estimator.")
  if evaluation.every and not evaluation.tasks:
    raise ValueError("config.evaluation.tasks is empty: there is nothing to "
                     "evaluate on; set evaluation.every to 0.")
