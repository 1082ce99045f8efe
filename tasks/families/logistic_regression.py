"""Convex image classification, with an optimum that can be computed."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import linear_model

from tasks import base
from tasks import image_tasks
from tasks import networks
from tasks import task_decorator


def _regularised(network: networks.Network, images: image_tasks.Images,
                 batch_size: int = 64, compute_dtype: str = "float32",
                 decay: float = 1e-2) -> base.Task:
  if images.num_classes < 3:
    raise ValueError("logistic_regression is for at least 3 classes.")
  if not decay > 0:
    raise ValueError(f"decay must be positive, got {decay}: without it the "
                     "optimum may be infinitely far away.")
  task = image_tasks.classify(network, images, batch_size, compute_dtype)

  def loss(params, key, batch):
    value, aux = task.loss(params, key, batch)
    return value + 0.5 * decay * jnp.sum(jnp.square(params["w"])), aux

  def optimum():
    train = images.splits["train"]
    n = len(train["label"])
    x = np.asarray(images.pixels(jnp.asarray(train["image"])), np.float64)
    solver = linear_model.LogisticRegression(
        C=1 / (n * decay), tol=1e-8, max_iter=10000)
    solver.fit(x.reshape(n, -1), train["label"])
    return {"w": jnp.asarray(solver.coef_.T, jnp.float32),
            "b": jnp.asarray(solver.intercept_, jnp.float32)}

  return task._replace(loss=loss, optimum=optimum)


@task_decorator.decorator(image_tasks.load, _regularised)
def make(parametrization, images: image_tasks.Images, init_scale: float = 1.0
         ) -> networks.Network:
  """Softmax regression on pixels, plus decay / 2 times the squared weights.

  Its settings are those of `tasks.image_tasks.classification` and decay, positive.
  `Task.optimum` gives the params of least loss over the train split.

  Args:
    parametrization: see `tasks.families.get`; there is no width.
    images: see `tasks.image_tasks.load`.
    init_scale: factor on the standard deviation at initialisation.
  """
  shape = (int(np.prod(images.shape)), images.num_classes)
  std = init_scale * parametrization.init_std(shape, shape)

  def init(key):
    return {"w": std * jax.random.normal(key, shape, jnp.float32),
            "b": jnp.zeros(shape[1:], jnp.float32)}

  def apply(params, x):
    return x.reshape(len(x), -1) @ params["w"] + params["b"][None]

  return networks.Network(init, apply, None)
