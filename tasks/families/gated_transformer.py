"""Language modelling by a transformer with gates, as in LLaMA."""

from tasks import base
from tasks import networks
from tasks import text_tasks
from tasks.families import transformer_lm


@text_tasks.language_model
def make(parametrization: base.Parametrization, text: text_tasks.Text,
         width: int = 32, depth: int = 1, head_size: int = 8,
         tied: bool = False, activation: str = "silu", init_scale: float = 1.0
         ) -> networks.Network:
  """Make a decoder with rotary positions, RMS norms and gated layers (SwiGLU).

  No layer of a block has a bias.

  Args:
    parametrization: see `tasks.families.get`.
    text: see `tasks.text_tasks.load`.
    width: size of the residual stream; gated layers are 3 times as wide.
    depth: number of blocks.
    head_size: size of an attention head; the number of heads grows with width.
    tied: see `tasks.families.transformer_lm`.
    activation: of the gates, see `tasks.layers.activation`.
    init_scale: factor on the standard deviations at initialisation.

  Raises:
    ValueError: a number below 1, sizes that do not fit, or an unknown name.

  Reference:
    Touvron et al., LLaMA, 2023, https://arxiv.org/abs/2302.13971;
    Shazeer, GLU variants, 2020, https://arxiv.org/abs/2002.05202, equation 6.
  """
  return transformer_lm.network(
      parametrization, text, width, depth, tied, init_scale, {
          "head_size": head_size, "norm": "rms", "rotary": True,
          "activation": activation, "gated": True})
