"""muP with each update in the natural size of what the parameter does.

A matrix changes the RMS of its inputs by its spectral norm times sqrt(fan-in /
fan-out), so the natural size of its update is a spectral norm of sqrt(fan-out /
fan-in). An optimizer whose updates have the spectral norm of a matrix of ones,
sqrt(fan-in fan-out), therefore divides by fan-in, whatever the role. Tables, of
which one row at a time is looked up, have the natural size of a row. Initial
standard deviations and multipliers on outputs are those of `mup`.

| role          | update mult                      |
| hidden        | 1/fan_in                         |
| input, fixed  | 0.4/fan_in                       |
| output        | 1.6; its output mult is 1/fan_in |
| vector, table | 1                                |

A table is an input parameter of canonical shape (1, n), as a declared embedding
has. Exponents of width are those of `mup`. The two constants, of the order of
1, are from random search on the suite prior_valid, see
experiments/studies/prior_scan.py.

Reference:
  Yang et al., 2023, https://arxiv.org/abs/2310.17813 (spectral condition).
  Bernstein and Newhouse, 2024, https://arxiv.org/abs/2410.21265 (norms of
  layers). Large et al., 2024, https://arxiv.org/abs/2405.14813.
"""

from learned_opt import base
from learned_opt.scaling import fan
from learned_opt.scaling.parametrizations import mup

INPUT, OUTPUT = 0.4, 1.6


def make() -> base.Parametrization:
  """Return `mup` with the update multipliers in the table above."""

  def update_mult(shape: base.Shape, base_shape: base.Shape) -> float:
    role = fan.role(shape, base_shape)
    fan_in = fan.fan_in(shape, base_shape)
    if role == "output":
      return OUTPUT
    if role == "vector" or role == "input" and fan_in == 1:  # a table
      return 1.0
    return (1.0 if role == "hidden" else INPUT) / fan_in

  return mup.make()._replace(
      update_mult=update_mult, knows_tables=True)
