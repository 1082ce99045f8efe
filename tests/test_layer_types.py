"""Types of layers of flax, equinox and haiku: roles, fan-in and fan-out."""

import pathlib

import layer_types
import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "layer_types.md"
name = lambda case: f"{case[0].framework} {case[0].name}, {case[1]}"


@pytest.mark.parametrize("case", layer_types.CASES, ids=name)
def test_layer(case):
  layer, position = case
  pytest.importorskip(layer.framework)
  assert layer_types.inferred(*case) == layer_types.stated(*case)


@pytest.mark.parametrize("case", [
    case for case in layer_types.CASES if case[0].declare], ids=name)
def test_declarations_are_needed(case):
  layer, position = case
  pytest.importorskip(layer.framework)
  infer = lambda: layer_types.inferred(*case, declare=False)
  if layer.otherwise == "error":
    with pytest.raises(ValueError, match=r"overrides=\{"):
      infer()
  else:
    assert infer() != layer_types.stated(*case)


def test_page():
  for framework in ("flax", "equinox", "haiku"):
    pytest.importorskip(framework)
  assert PAGE.read_text() == layer_types.page(), (
      "run: python -m tests.layer_types > docs/layer_types.md")
