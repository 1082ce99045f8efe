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
  """Return the classification task with weight decay in its loss."""
  if images.num_classes < 3:
    raise ValueError("logistic_regression is for at least 3 classes.")
  if not decay > 0:
    raise ValueError(f"decay must be positive, got {decay}: without it the "
                     "optimum may be infinitely far away.")
  task = image_tasks.classify(network, images, batch_size, compute_dtype)

  def loss(params: base.Params, key: jax.Array, batch: base.Batch
           ) -> tuple[jax.Array, dict[str, jax.Array]]:
    value, aux = task.loss(params, key, batch)
    return value + 0.5 * decay * jnp.sum(jnp.square(params["w"])), aux

  def optimum() -> base.Params:
    train = images.splits["train"]
    n = len(train["label"])
    # scikit-learn minimises C * (sum of losses) + 0.5 * |w|**2, which is
    # n * C times the loss above for C = 1 / (n * decay).
    x = np.asarray(images.pixels(jnp.asarray(train["image"])), np.float64)
    solver = linear_model.LogisticRegression(
        C=1 / (n * decay), tol=1e-8, max_iter=10000)
    solver.fit(x.reshape(n, -1), train["label"])
    return {"w": jnp.asarray(solver.coef_.T, jnp.float32),
            "b": jnp.asarray(solver.intercept_, jnp.float32)}

  return task._replace(loss=loss, optimum=optimum)


@task_decorator.decorator(image_tasks.load, _regularised)
def make(parametrization: base.Parametrization, images: image_tasks.Images,
         init_scale: float = 1.0) -> networks.Network:
  """Make a softmax regression on pixels, without a width.

  The loss is `cross-entropy + 0.5 * decay * |w|**2`. The family has the
  settings of `tasks.image_tasks.classification`, and decay, a positive number.
  `Task.optimum` returns the params with the minimum loss on the train split.

  Args:
    parametrization: see `tasks.families.get`; its `init_std` is used.
    images: see `tasks.image_tasks.load`.
    init_scale: factor on the standard deviation at initialisation.
  """
  shape = (int(np.prod(images.shape)), images.num_classes)
  std = init_scale * parametrization.init_std(shape, shape)

  def init(key: jax.Array) -> base.Params:
    return {"w": std * jax.random.normal(key, shape, jnp.float32),
            "b": jnp.zeros(shape[1:], jnp.float32)}

  def apply(params: base.Params, x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1) @ params["w"] + params["b"][None]

  return networks.Network(init, apply, None)
