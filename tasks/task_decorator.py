"""Turn a function that makes a network into the `make` of a task family.

The files in tasks/families write the network alone:

    @image_tasks.classification
    def make(parametrization, images, width=64):
      return networks.Network(...)

`image_tasks.classification` is `decorator(image_tasks.load,
image_tasks.classify)`. The decorated function behaves like

    def make(parametrization, /, *, width=64,
             batch_size=64, compute_dtype="float32",
             dataset="digits", image_size=0, ..., data_dir=None):
      images = image_tasks.load(dataset=dataset, image_size=image_size, ...,
                                data_dir=data_dir)
      network = undecorated_make(parametrization, images, width=width)
      return image_tasks.classify(network, images, batch_size=batch_size,
                                  compute_dtype=compute_dtype)

so that `make(parametrization, width=32, dataset="mnist")` returns a task.
"""

import functools
import inspect
from typing import Any, Callable

from tasks import base
from tasks import networks

Make = Callable[..., base.Task]


def decorator(load: Callable[..., Any], finish: Make
              ) -> Callable[[Callable[..., networks.Network]], Make]:
  """Return a decorator of functions that make networks.

  Args:
    load: `(**settings) -> data set`.
    finish: `(network, data set, **settings) -> Task`.

  Returns:
    Decorator of `(parametrization, data set, **settings) -> Network`. The
    decorated function takes the parametrization and the settings of the three
    functions, and returns a task. A setting of one function must not have the
    name of a setting of another.
  """

  def decorate(network_of: Callable[..., networks.Network]) -> Make:
    of_network = _parameters(network_of)[2:]  # the rest are settings
    of_finish = _parameters(finish)[2:]
    of_load = _parameters(load)
    # The explicit signature lists every setting with its default, for
    # `families.get` and `help`. Binding to it refuses misspelt settings.
    signature = inspect.Signature([
        inspect.Parameter("parametrization", inspect.Parameter.POSITIONAL_ONLY),
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
          for p in (*of_network, *of_finish, *of_load))])

    @functools.wraps(network_of)
    def make(parametrization: base.Parametrization, /, **settings: Any
             ) -> base.Task:
      signature.bind(parametrization, **settings)  # raises TypeError
      data = load(**_chosen(settings, of_load))
      network = network_of(
          parametrization, data, **_chosen(settings, of_network))
      return finish(network, data, **_chosen(settings, of_finish))

    make.__signature__ = signature  # type: ignore[attr-defined]
    return make

  return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
  return list(inspect.signature(function).parameters.values())


def _chosen(settings: dict[str, Any], parameters: list[inspect.Parameter]
            ) -> dict[str, Any]:
  """Return the settings that have the names of parameters."""
  return {p.name: settings[p.name] for p in parameters if p.name in settings}
