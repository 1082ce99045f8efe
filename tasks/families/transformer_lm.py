"""Language modelling by a transformer."""

from typing import Any

from flax import linen as nn
import jax

from tasks import base
from tasks import layers
from tasks import networks
from tasks import text_tasks

POSITIONS = ("learned", "rotary")


class Transformer(nn.Module):
  """Embedding, causal blocks, and a readout."""

  width: int
  depth: int
  vocab_size: int
  block: dict[str, Any]  # attributes of `tasks.layers.Block`
  tied_mult: float | None  # multiplier of a tied readout; None: not tied

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:  # int32 [n, length]
    embed = self.param("embed", layers.ZEROS, (self.vocab_size, self.width))
    x = embed[tokens]  # [n, length, width]
    if not self.block["rotary"]:
      x = x + self.param("position", layers.ZEROS, x.shape[1:])[None]
    for _ in range(self.depth):
      x = layers.Block(causal=True, **self.block)(x)
    x = layers.norm(self.block["norm"])(x)
    if self.tied_mult is not None:
      return self.tied_mult * (x @ embed.T)
    return layers.dense(self.vocab_size)(x)


@text_tasks.language_model
def make(parametrization: base.Parametrization, text: text_tasks.Text,
         width: int = 32, depth: int = 1, head_size: int = 8,
         positions: str = "rotary", tied: bool = False,
         depth_exponent: float = 0.0, activation: str = "gelu",
         norm: str = "layer", init_scale: float = 1.0) -> networks.Network:
  """Make a pre-norm transformer decoder.

  Args:
    parametrization: see `tasks.families.get`.
    text: see `tasks.text_tasks.load`.
    width: size of the residual stream; hidden layers of blocks are 4 times as
      wide.
    depth: number of blocks.
    head_size: size of an attention head; the number of heads grows with width.
    positions: "learned" or "rotary".
    tied: whether the readout is the transposed embedding, multiplied by the
      `output_mult` of a readout.
    depth_exponent: residual branches are multiplied by
      `depth**-depth_exponent`, in addition to the `branch_mult` of the
      parametrization.
    activation: see `tasks.layers.activation`.
    norm: see `tasks.layers.norm`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: a number below 1, sizes that do not fit, or an unknown name.
  """
  layers.check_choice("positions", positions, POSITIONS)
  return network(
      parametrization, text, width, depth, tied, init_scale, {
          "head_size": head_size, "norm": norm, "activation": activation,
          "rotary": positions == "rotary"}, depth_exponent)


def network(parametrization: base.Parametrization, text: text_tasks.Text,
            width: int, depth: int, tied: bool, init_scale: float,
            block: dict[str, Any], depth_exponent: float = 0.0
            ) -> networks.Network:
  """Return a transformer whose blocks have any attributes; see `make`.

  Args:
    parametrization: see `tasks.families.get`.
    text: see `tasks.text_tasks.load`.
    width: size of the residual stream.
    depth: number of blocks.
    tied: whether the readout is the transposed embedding.
    init_scale: factor on the standard deviations at initialisation.
    block: attributes of `tasks.layers.Block`, without those that depth and
      parametrization decide.
    depth_exponent: see `make`.

  Raises:
    ValueError: see `make`.
  """
  head_size = block["head_size"]
  layers.check(depth=depth)
  layers.check_heads(width, head_size)
  if block["rotary"] and head_size % 2:
    raise ValueError(f"Rotary positions need an even head_size, got "
                     f"{head_size}.")
  vocab = text.vocab_size
  # The shape of the embedding alone has the role of an input, not of a readout.
  tied_mult = parametrization.output_mult(
      (width, vocab), (2 * width, vocab)) if tied else None
  block = block | {
      "branch": depth**-depth_exponent * parametrization.branch_mult(depth),
      "logit_scale": parametrization.attention_mult(head_size)}
  build = lambda width: Transformer(width, depth, vocab, block, tied_mult)
  tables = {"embed": "tied" if tied else "embedding"}
  if not block["rotary"]:
    tables["position"] = "embedding"
  return networks.from_flax(
      parametrization, build, width, text.batch, init_scale, {"Block_*": depth},
      tables)
