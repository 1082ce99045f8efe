"""Roles that follow from the parameters beside a parameter; declarations."""

import public_models
import pytest

from mulo import scaling

WIDTH, BASE = 16, 64


def infer(shapes, **settings):
  """Inferred at WIDTH, from `(width) -> {path: shape}`."""
  trees = [public_models.tree(**shapes(width)) for width in (WIDTH, BASE)]
  return scaling.infer(*trees, **{"readout": False, **settings})


def roles(shapes, **settings):
  return {path: (x.role, x.fan_in, x.fan_out)
          for path, x in infer(shapes, **settings).items()}


def test_biases_of_heads_in_one_module():
  """Attention whose kernels and biases are in one module."""
  assert roles(lambda w: {
      "q": (w, w // 4, 4), "q_bias": (w // 4, 4), "o": (w // 4, 4, w),
      "o_bias": (w,)}) == {
          "q": ("hidden", 16, 16), "q_bias": ("vector", 1, 16),
          "o": ("hidden", 16, 16), "o_bias": ("vector", 1, 16)}


def test_biases_of_experts_in_one_module():
  infos = infer(lambda w: {
      "up": (8, w, 3 * w), "up_bias": (8, 3 * w), "down": (8, 3 * w, w),
      "down_bias": (8, w), "router": (w, 8)})
  assert {path: (x.role, x.fan_in, x.fan_out, x.stack)
          for path, x in infos.items()} == {
              "up": ("hidden", 16, 48, (0,)),
              "up_bias": ("vector", 1, 48, (0,)),
              "down": ("hidden", 48, 16, (0,)),
              "down_bias": ("vector", 1, 16, (0,)),
              "router": ("output", 16, 8, ())}


def test_a_stack_of_heads_that_is_declared_or_found():
  """Biases (layers, heads, head size), with and without `deeper_shapes`."""
  shapes = lambda layers: lambda w: {
      "q": (layers, w, w // 4, 4), "b": (layers, w // 4, 4)}
  deeper = public_models.tree(**shapes(5)(BASE))
  for settings in ({}, {"deeper_shapes": deeper}, {
      "overrides": {"*": scaling.Override(stack=(0,))}}):
    infos = infer(shapes(3), **settings)
    assert [(x.role, x.fan_in, x.fan_out, x.stack) for x in infos.values()] == [
        ("vector", 1, 16, (0,)), ("hidden", 16, 16, (0,))]


@pytest.mark.parametrize("shapes", [
    lambda w: {"conv": (5, w, w), "dense": (w, w)},
    lambda w: {"experts": (8, w, w), "shared": (w, w)}])
def test_a_matrix_is_no_bias(shapes):
  """A square matrix has the shape of the last axes of a larger kernel."""
  small = list(shapes(1))[1]
  assert infer(shapes)[small].role == "hidden"


def test_layers_are_no_outputs():
  infos = infer(lambda w: {"w": (5, w, w), "b": (w,)})
  assert (infos["w"].fan_in, infos["w"].stack) == (5 * 16, ())
  infos = infer(lambda w: {"w": (5, w, w), "b": (5, w)})
  assert (infos["w"].fan_in, infos["w"].stack) == (16, (0,))
  infos = infer(lambda w: {"w": (5, w, w), "b": (5, w)}, overrides={
      "w": scaling.Override(inputs=(0, 1))})
  assert (infos["w"].fan_in, infos["w"].stack) == (5 * 16, ())


@pytest.mark.parametrize("shapes", [
    lambda w: {"m/w": (5, w, 2 * w), "m/b": (5, 2 * w)},
    lambda w: {"m/w": (w // 4, w, 4), "m/b": (w // 4, 4)},
    lambda w: {"m/w": (3, 3, 2 * w, w), "m/b": (2 * w,)},
    lambda w: {"m/w": (w, w // 4, 4), "m/b": (w // 4, 4), "m/o": (w, 3)}])
def test_masks_change_nothing(shapes):
  """A parameter may be missing in the network at hand, as in optax.masked."""
  full, base = (public_models.tree(**shapes(w)) for w in (WIDTH, BASE))
  whole = scaling.infer(full, base, readout=False)
  for path in full:
    masked = {k: x if k == path else None for k, x in full.items()}
    infos = scaling.infer(masked, base, readout=False)
    assert infos == {path: whole[path]}


def test_what_is_ambiguous_can_be_declared():
  shapes = lambda w: {"w": (4, 4, w), "b": (4, w)}
  infos = infer(shapes, overrides={
      "w": scaling.Override(inputs=(1,), outputs=(2,), stack=(0,)),
      "b": "vector"})
  assert [(x.role, x.fan_in, x.fan_out) for x in infos.values()] == [
      ("vector", 1, 64), ("input", 4, 16)]


CELL = lambda w: {"ih": (4 * w, 3), "hh": (4 * w, w), "bias": (4 * w,)}
GRU = lambda w: {"ih": (3 * w, 3), "hh": (3 * w, w), "bias": (3 * w,),
                 "bias_n": (w,)}
TURNED = lambda w: {"i": (3, 4 * w), "h": (w, 4 * w), "b": (4 * w,)}


@pytest.mark.parametrize("shapes, settings, message", [
    (CELL, {}, "layout='out_in'"),
    (GRU, {}, "layout='out_in'"),
    (TURNED, {"layout": "out_in"}, "layout='in_out'"),
    # Gain and offset of a norm over heads, or two readouts.
    (lambda w: {"a": (w, 4), "b": (w, 4)}, {}, "or two kernels"),
    # A gain of heads, or a readout.
    (lambda w: {"gain": (w // 4, 4), "n/q": (w, w // 4, 4)}, {},
     "two of the axes of n/q"),
    # A bias whose first axis may be the layers or the outputs.
    (lambda w: {"w": (4, 4, w), "b": (4, w)}, {}, "outputs or a stack")])
def test_no_guesses(shapes, settings, message):
  with pytest.raises(ValueError, match=message):
    infer(shapes, **settings)


def test_cells():
  expected = {"ih": ("input", 3, 64), "hh": ("hidden", 16, 64),
              "bias": ("vector", 1, 64)}
  assert roles(CELL, layout="out_in") == expected
  assert list(roles(TURNED).values()) == [
      ("vector", 1, 64), ("hidden", 16, 64), ("input", 3, 64)]


def test_gains_that_may_be_tables_are_open():
  infos = infer(lambda w: {"scale": (5, w), "bias": (5, w)})
  assert all(x.role == "input" and '"vector"' in x.open for x in infos.values())
  infos = infer(lambda w: {"scale": (5, w), "bias": (5, w)},
                overrides={"*": "vector"})
  assert all(x.role == "vector" and not x.open for x in infos.values())


NETWORK = lambda w: {"w": (w, 2 * w), "s": (), "b": (2 * w,)}


@pytest.mark.parametrize("pattern, override, message", [
    ("s", {"stack": (0,)}, r"s has stack=\(0,\), but .* \(\) has no axes"),
    ("w", {"stack": (2,)}, r"w has stack=\(2,\), .*64, 128\) has axes 0 to 1"),
    ("*", {"stack": (1,)}, r"b has stack=\(1,\), .*has axes 0 to 0"),
    ("w", {"inputs": (-3,)}, r"inputs=\(-3,\), .* has axes 0 to 1"),
    ("w", {"outputs": (5,)}, r"outputs=\(5,\), .* has axes 0 to 1"),
    ("w", {"stack": (0, 0)}, "axis 0 is among its stack: name each axis once"),
    ("w", {"inputs": (0, -2)}, "axis -2 is among its inputs"),
    ("w", {"inputs": (0,), "outputs": (0, 1)}, "axis 0 is among its inputs"),
    ("w", {"inputs": (0,), "stack": (0,)}, "axis 0 is among its inputs"),
    ("w", {"inputs": 0}, r"w has inputs=0, but .* such as \(0,\)"),
    ("w", {"stack": 0}, r"w has stack=0, but .* such as \(0,\)"),
    ("w", {"stack": None}, r"w has stack=None, but .*\(\) for none"),
    ("w", {"outputs": (1.0,)}, r"outputs=\(1.0,\), but .* tuple of axes"),
    ("w", {"outputs": (True,)}, r"outputs=\(True,\), but .* tuple of axes"),
    ("w", {"depth": 0}, "w has depth=0, but depth must be"),
    ("w", {"depth": -2}, "depth=-2"), ("w", {"depth": 2.0}, "depth=2.0"),
    ("w", {"depth": True}, "depth=True"),
    ("w", {"role": 3}, "Unknown role 3 for 'w'; available: input")])
def test_overrides_that_make_no_sense(pattern, override, message):
  with pytest.raises(ValueError, match=message):
    infer(NETWORK, overrides={pattern: scaling.Override(**override)})


@pytest.mark.parametrize("value", [3, None, ("input",), {"role": "input"}])
def test_overrides_of_another_type(value):
  with pytest.raises(ValueError, match="'w' must be a role or a scaling.Over"):
    infer(NETWORK, overrides={"w": value})


@pytest.mark.parametrize("depth", [0, -1, 1.5, "2"])
def test_base_depth(depth):
  with pytest.raises(ValueError, match="base_depth must be a number of resid"):
    infer(NETWORK, base_depth=depth)


def test_axes_may_count_from_the_end():
  shapes = lambda w: {"w": (5, w, 2 * w), "s": (5,)}
  info = infer(shapes, overrides={"w": scaling.Override(
      inputs=(-2,), outputs=[-1], stack=(-3,))})["w"]
  assert (info.inputs, info.outputs, info.stack) == ((1,), (2,), (0,))
  info = infer(shapes, overrides={"s": scaling.Override(stack=(0,))})["s"]
  assert (info.role, info.fan_in, info.fan_out) == ("vector", 1, 1)
