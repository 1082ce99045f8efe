"""Roles, fan-in and fan-out of parameters, from shapes alone."""

import public_models
import pytest

from learned_opt.scaling import axis_rules
from mulo import scaling

tree = public_models.tree


def inferred(shapes, settings):
  """{path: (role, fan-in, fan-out)} at width 16, with base width 64."""
  infos = scaling.infer(shapes(16), shapes(64), **settings)
  return {path: (x.role, x.fan_in, x.fan_out) for path, x in infos.items()}


@pytest.mark.parametrize("name", public_models.MODELS)
def test_roles(name):
  model = public_models.MODELS[name]
  assert inferred(model.shapes, model.settings) == model.expected


@pytest.mark.parametrize("name", public_models.EQUINOX_MODELS)
def test_roles_in_equinox(name):
  pytest.importorskip("equinox")
  make, expected, overrides = public_models.EQUINOX_MODELS[name]
  settings = {"layout": "out_in", "overrides": overrides}
  assert inferred(public_models.of_equinox(make), settings) == expected


def test_blocks():
  """A deeper network has more parameters, or longer axes, for its blocks."""
  gpt = public_models.linen(
      lambda width, depth: public_models.Gpt(width, depth),
      public_models.TOKENS)
  infos = scaling.infer(gpt(16, 3), gpt(64, 3), deeper_shapes=gpt(64, 5),
                        base_depth=2)
  for path, info in infos.items():
    assert (info.depth, info.base_depth) == (
        (3, 2) if path.startswith("Block") else (1, 1)), path
  model = public_models.MODELS["gpt, scan"]
  infos = scaling.infer(model.shapes(16), model.shapes(64), **model.settings)
  for path, info in infos.items():
    stack = path.startswith("blocks")
    assert (info.depth, info.stack) == ((3, (0,)) if stack else (1, ())), path


def test_heads_that_grow_in_size():
  gpt = public_models.linen(
      lambda head_size: public_models.Gpt(8 * head_size, 1,
                                          head_size=head_size),
      public_models.TOKENS)
  infos = scaling.infer(gpt(2), gpt(4))
  for name in "qkvo":
    info = infos[f"Block_0/Attention_0/{name}/kernel"]
    assert info.role == "hidden" and info.open
  info = scaling.infer(gpt(2), gpt(4), overrides={
      "*/[qkv]/kernel": scaling.Override(inputs=(0,))})[
          "Block_0/Attention_0/k/kernel"]
  assert (info.fan_in, info.fan_out, info.open) == (16, 8, "")
  assert scaling.attention_mult(8, 2) == pytest.approx(2**0.5 / 8)
  assert scaling.attention_mult(2, 2) == 2**-0.5


@pytest.mark.parametrize(
    "axis_rule", axis_rules.AXIS_RULES, ids=lambda x: x.network)
def test_axis_rules_decide_their_examples(axis_rule):
  """Each rule is the first that applies to its example, also within `infer`."""
  example, expected = axis_rule.example, axis_rule.expected
  assert axis_rules.find(example) is axis_rule
  name = "bias" if example.is_bias else "kernel"
  # Another module has axes that grow, where the example has none.
  bases, shapes = {"x/kernel": (8, 8)}, {"x/kernel": (16, 16)}
  for sizes, pair in zip((bases, shapes), example.pairs):
    sizes |= {"y/kernel": pair[0], "y/bias": pair[1]}
  bases[f"y/{name}"], shapes[f"y/{name}"] = example.base_shape, example.shape
  override = scaling.Override(example.role, example.inputs, example.outputs)
  infer = lambda: scaling.infer(
      tree(**shapes), tree(**bases), layout=example.layout, readout=False,
      overrides={f"y/{name}": override})[f"y/{name}"]
  if isinstance(expected, str):
    with pytest.raises(ValueError, match=expected):
      infer()
  else:
    info = infer()
    assert (info.inputs, info.outputs) == expected
    assert info.open == axis_rule.open


OUT = {"o": (8, 3)}, {"o": (16, 3)}


@pytest.mark.parametrize("shapes, bases, settings, message", [
    ({"w": (8, 4, 2)}, {"w": (16, 8, 4)}, {}, "axes .0, 1, 2. grow"),
    ({"w": (5, 4, 2)}, {"w": (5, 8, 2)}, {}, "axes .1,. grows"),
    ({"a": (7, 8)}, {"a": (7, 16)}, {"layout": "out_in"}, "an embedding or a"),
    ({"w": (8, 5), "b": (8,)}, {"w": (16, 5), "b": (16,)}, {},
     "layout='out_in'"),
    ({"w": (7, 8)}, {"w": (7, 16)}, {}, "No parameter reads out"),
    ({"w": (7, 8)}, {"w": (7, 8)}, {}, "another width"),
    ({"w": (7, 8)}, {"v": (7, 8)}, {}, "no entry for w"),
    ({"w": (8,)}, {"w": (4, 4)}, {}, "number of axes"),
    (*OUT, {"overrides": {"x*": "input"}}, "fits none"),
    (*OUT, {"overrides": {"o": "readout"}}, "Unknown role"),
    (*OUT, {"overrides": {"o": "hidden"}}, "it is output"),
    (*OUT, {"overrides": {"o": "tied"}}, "not its last"),
    (*OUT, {"overrides": {"o": "output", "*": "input"}}, "Two overrides"),
    (*OUT, {"overrides": {"o": scaling.Override(inputs=(0, 1, 1))}}, "once"),
    (*OUT, {"layout": "io"}, "Unknown layout"),
    (*OUT, {"deeper_shapes": {}}, "no entry for o"),
    (*OUT, {"deeper_shapes": tree(o=(16, 3))}, "must differ"),
    (*OUT, {"deeper_shapes": tree(o=(16, 16), p=(16, 3))}, "names do not"),
    ({"d0": (7, 8), "d1": (8, 8), "o": (8, 3)},
     {"d0": (7, 16), "d1": (16, 16), "o": (16, 3)},
     {"deeper_shapes": tree(d0=(7, 16), d1=(16, 16), d2=(16, 16), o=(16, 3))},
     "d0 has the name")])
def test_no_guesses(shapes, bases, settings, message):
  with pytest.raises(ValueError, match=message):
    scaling.infer(tree(**shapes), tree(**bases), **settings)


def test_a_large_network_takes_no_memory():
  model = public_models.MODELS["gpt, gqa"]
  text = scaling.describe(model.shapes(2**16), model.shapes(64))
  assert "65536" in text and "attention_mult" in text
  lines = text.splitlines()
  assert {line.split()[0] for line in lines[1:lines.index("")]} == set(
      model.expected)
  assert "Block_1/Attention_0/o/kernel: shapes do not tell which side" in text
