"""How a network becomes the `make` of a family of tasks."""

import functools
import inspect
from typing import Callable


def decorator(load: Callable, finish: Callable) -> Callable:
  """A decorator of functions that make networks.

  Args:
    load: `(**settings) -> data set`.
    finish: `(network, data set, **settings) -> Task`.

  Returns:
    Decorator of `(parametrization, data set, **settings) -> Network`; the
    result takes the parametrization and the settings of all three.
  """
  parameters = lambda function, skip: list(
      inspect.signature(function).parameters.values())[skip:]

  def decorate(network_of):
    own, loading, shared = (
        parameters(network_of, 2), parameters(load, 0), parameters(finish, 2))
    signature = inspect.Signature([
        inspect.Parameter("parametrization", inspect.Parameter.POSITIONAL_ONLY),
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
          for p in (*own, *shared, *loading))])

    @functools.wraps(network_of)
    def make(parametrization, **settings):
      signature.bind(parametrization, **settings)  # else raises TypeError
      take = lambda parameters: {
          p.name: settings[p.name] for p in parameters if p.name in settings}
      data = load(**take(loading))
      network = network_of(parametrization, data, **take(own))
      return finish(network, data, **take(shared))

    make.__signature__ = signature  # type: ignore[attr-defined]
    return make

  return decorate
