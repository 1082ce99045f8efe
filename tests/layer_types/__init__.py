"""Every type of layer with parameters, and what its parameters are.

A layer stands first, in the middle or last in a small network: between a matrix
that leads to its inputs and one that leads from its outputs. `expected` is
stated by hand. `python -m tests.layer_types` prints docs/layer_types.md.
"""

from typing import Any

from learned_opt.scaling import roles

from .flax_layers import LINEN
from .flax_layers import NNX_LAYERS
from .kit import BASE
from .kit import HEAD
from .kit import Layer
from .kit import RANK
from .kit import ROWS
from .kit import WIDTH
from .kit import inferred
from .kit import network
from .kit import stated
from .other_layers import EQUINOX
from .other_layers import HAIKU

__all__ = ["CASES", "LAYERS", "inferred", "page", "stated"]

LAYERS = [Layer(*x) for x in (*LINEN, *NNX_LAYERS, *EQUINOX, *HAIKU)]
CASES = [(layer, position) for layer in LAYERS for position in layer.positions]


HEAD_OF_PAGE = f"""# Types of layers

What `mulo.scaling.infer` says about the parameters of each type of layer that
has parameters. Tests compare the table with answers stated by hand
(`tests/test_layer_types.py`). This command prints the page. It needs flax,
equinox and haiku:

```sh
.venv/bin/python -m tests.layer_types > docs/layer_types.md
```

Each layer stands in the middle of a network of width {WIDTH}, which is compared
with width {BASE}. It has {WIDTH} inputs, and {2 * WIDTH} outputs where the
numbers may differ. Layers marked "first" have 3 inputs and {WIDTH} outputs, and
layers marked "last" have {WIDTH} inputs and 12 outputs. Heads have size {HEAD},
embeddings have {ROWS} rows, and LoRA has rank {RANK}. Layers that stand first
or last are tested, too.

The last column says what to declare where neither the shape nor the parameters
beside it tell. Without the declaration there is an error, or the parameter is
taken for another one of the same shape. An embedding that is called an input
needs no declaration, because its multipliers are those of an input.
"""
COLUMNS = ("layer", "parameter", "shape", "role", "fan-in", "fan-out",
           "overrides")


def page() -> str:
  """docs/layer_types.md."""
  lines = [HEAD_OF_PAGE]
  for framework in dict.fromkeys(layer.framework for layer in LAYERS):
    lines += [f"## {framework}", "", f"| {' | '.join(COLUMNS)} |",
              f"|{'---|' * len(COLUMNS)}"]
    for layer in LAYERS:
      if layer.framework == framework:
        lines += rows(layer)
    lines.append("")
  return "\n".join(lines)


def rows(layer: Layer) -> list[str]:
  """Lines of the table, one for each parameter."""
  position = "middle" if "middle" in layer.positions else layer.positions[0]
  shapes = {path.removeprefix("layer/"): x for path, x in roles.by_path(
      network(layer, position, WIDTH)).items()}
  lines, name = [], layer.name + ("" if position == "middle" else
                                  f" ({position})")
  for path, (role, *fans) in inferred(layer, position).items():
    override = next((x for pattern, x in layer.declare.items()
                     if pattern in (path, "*")), None)
    cells = (name, f"`{path.removeprefix('./')}`", shapes[path], role, *fans,
             "" if override is None else said(override, layer.otherwise))
    lines.append(f"| {' | '.join(map(str, cells))} |")
    name = ""
  return lines


def said(override: Any, otherwise: str) -> str:
  """An override as one writes it, and what happens without it."""
  fields = {} if isinstance(override, str) else {
      name: x for name, x in override._asdict().items() if x}
  text = f'"{override}"' if isinstance(override, str) else (
      f"Override({', '.join(f'{k}={v}' for k, v in fields.items())})")
  return f"`{text}`; otherwise {otherwise.replace('error', 'an error')}"
