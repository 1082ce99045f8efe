"""The examples in docstrings of the public face run."""

import doctest
import inspect

import pytest

import mulo
from mulo import _base_shapes
from mulo import _coord_check
from mulo import _loading
from mulo import _mu_optimizers
from mulo._wrappers import local_updates
from mulo._wrappers import nowcast

MODULES = (mulo.scaling, _base_shapes, _mu_optimizers, _loading, _coord_check,
           local_updates, nowcast)


def documented() -> dict[str, object]:
  """Functions that a user calls, by the name that a user calls them."""
  functions = {f"mulo.{name}": getattr(mulo, name)
               for name in ("load", "coord_check", "local_updates",
                            "nowcast")}
  for name in mulo.scaling.__all__:
    if inspect.isfunction(getattr(mulo.scaling, name)):
      functions[f"mulo.scaling.{name}"] = getattr(mulo.scaling, name)
  return functions


def examples() -> dict[str, doctest.DocTest]:
  """Docstrings with doctest lines, each of them once."""
  finder = doctest.DocTestFinder(exclude_empty=True)
  # Nothing of the module is in scope, as in the shell of a user.
  tests = [x for module in MODULES for x in finder.find(module, globs={})]
  for name, function in documented().items():
    tests += finder.find(function, name, module=False, globs={})
  # Functions of mulo.scaling come from other modules, so that they are found
  # twice; the public name is the later one.
  by_text = {x.docstring: x for x in tests if x.examples}
  return {x.name: x for x in by_text.values()}


@pytest.mark.parametrize("name", documented())
def test_there_are_examples(name):
  doc = inspect.getdoc(documented()[name])
  assert "\nExamples:\n" in doc and ">>> " in doc


@pytest.mark.parametrize("name", examples())
def test_examples_run(name):
  report: list[str] = []
  doctest.DocTestRunner(verbose=False).run(examples()[name], out=report.append)
  assert not report, "".join(report)


def test_a_wrong_example_is_noticed():
  def wrong():
    """
    >>> 1 + 1
    3
    """

  (test,) = doctest.DocTestFinder().find(wrong, module=False)
  assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1


def test_the_public_names_of_scaling():
  assert dir(mulo.scaling) == sorted(mulo.scaling.__all__)
  assert all(hasattr(mulo.scaling, name) for name in mulo.scaling.__all__)
