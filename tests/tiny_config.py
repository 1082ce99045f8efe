"""The quickstart's config, but so small that it runs in seconds."""

from meta_train.configs import quickstart


def get_config():
  """Return a config of two tasks with a few parameters, 40 outer steps."""
  config = quickstart.get_config()
  config.unlock()
  config.num_steps = 40
  config.copies = 2
  config.optimizer = {"name": "hyperparam_adam", "learning_rate": 0.1}
  config.tasks = {
      "digits": {"name": "mlp", "dataset": "digits", "width": 3, "depth": 1,
                 "batch_size": 2},
      "bowl": {"name": "quadratic", "dim": 2}}
  config.estimator.update(truncation=2, shortest=2, longest=6)
  config.theta_opt.warmup = 2
  config.devices = 1
  config.log_every = 1
  config.checkpoint_every = 2
  return config.lock()


def number(num_steps):
  """Return no meta-optimizer, for a test of `theta_opt.make`."""
  return num_steps
