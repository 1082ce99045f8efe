"""Newton-Schulz iterations, which make a matrix more like an orthogonal one.

Reference:
  Jordan et al., 2024, https://kellerjordan.github.io/posts/muon (coefficients).
  Amsel et al., 2025, https://arxiv.org/abs/2505.16932 (polar_express, with the
  safety factor of modded-nanogpt).
  Bernstein and Newhouse, 2024, https://arxiv.org/abs/2409.20325.
"""

import jax
import jax.numpy as jnp

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# {name: (a, b, c) of each iteration; the last ones are repeated}.
SCHEDULES = {
    "muon": (COEFFICIENTS,),
    # For singular values from 0.003 to 1: they end between 0.86 and 1.14.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323))}
# Singular values end at ||x|| / sqrt(SIDE). A SIDE x SIDE matrix with equal
# singular values then keeps its Frobenius norm.
SIDE = 16
SAFETY = 1.02  # as the coefficients of polar_express assume
MAX_ITERATIONS = 100  # far more than anyone needs; programs grow with them
MAX_GRAM_ITERATIONS = 3
BLOCK = 512  # longest side of a matrix that is treated as a whole


def check_iterations(iterations: int) -> None:
  """Raise ValueError unless `iterations` is a number of iterations."""
  if isinstance(iterations, bool) or not isinstance(
      iterations, int) or not 0 <= iterations <= MAX_ITERATIONS:
    raise ValueError(
        f"newton_schulz = {iterations!r} is not a number of iterations; "
        "give 0 or a few, such as 5.")


def check_schedule(name: str) -> None:
  """Raise ValueError unless `name` is in SCHEDULES."""
  if name not in SCHEDULES:
    raise ValueError(f"Unknown coefficients {name!r}; available: "
                     f"{', '.join(SCHEDULES)}.")


def iterate(y: jax.Array, iterations: int, schedule: str = "muon"
            ) -> jax.Array:
  """Return y after Newton-Schulz iterations.

  One iteration is y = a y + b (y y^T) y + c (y y^T)^2 y. Each singular value s
  becomes a s + b s^3 + c s^5.

  Args:
    y: matrices [..., m, n], fastest if m <= n; singular values of at most 1.
    iterations: see `equalize`.
    schedule: one of SCHEDULES.
  """
  coefficients = SCHEDULES[schedule]
  for i in range(iterations):
    a, b, c = coefficients[min(i, len(coefficients) - 1)]
    gram = y @ y.mT
    y = a * y + (b * gram + c * gram @ gram) @ y
  return y


def iterate_grams(y: jax.Array, iterations: int) -> jax.Array:
  """Return `iterate` with 63 % of the products, for 3 iterations and n = 4 m.

  One iteration multiplies y by a polynomial in gram = y y^T. The product of
  these polynomials needs m x m matrices alone.

  The result equals that of `iterate` up to rounding if iterations are few. The
  rounding errors of zero eigenvalues grow twelvefold with each iteration,
  while `iterate` computes y y^T anew each time.

  Args:
    y: as in `iterate`.
    iterations: from 1 to MAX_GRAM_ITERATIONS.
  """
  a, b, c = COEFFICIENTS
  gram = y @ y.mT
  eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=y.dtype), gram.shape)
  product = step = a * eye + b * gram + c * gram @ gram
  for _ in range(iterations - 1):
    gram = step @ gram @ step  # the Gram matrix of step @ y
    step = a * eye + b * gram + c * gram @ gram
    product = step @ product
  return product @ y


def equalize(x: jax.Array, iterations: int) -> jax.Array:
  """Bring the singular values of x to about ||x|| / 4 (||.||: Frobenius norm).

  The spectral norm then grows with width as that of a rank-one matrix with
  entries of the size of x. muP takes gradients for such matrices, so
  multipliers of Adam-like updates stay valid.

  If both sides are longer than BLOCK, blocks of the shorter side are treated
  one by one, each with its own norm. The cost per element is then the same in
  matrices of all sizes. The spectral norm is about ||x|| / 4 if x has rank one,
  and smaller otherwise.

  Args:
    x: float array of two or more axes; all but the last become one axis.
    iterations: with more iterations, smaller singular values reach the target.
      A singular value grows at most 3.4-fold per iteration. Singular values end
      between 0.7 and 1.2 times the target.

  Returns:
    Array of the shape of x. It is zero if x is zero, and odd and homogeneous
    in x.
  """
  y, sizes, restore = _unit_blocks(x)
  _, side, columns = y.shape
  # One block is iterated directly, which keeps the bits of published theta.
  grams = (len(y) > 1 and columns >= 2 * side and
           1 <= iterations <= MAX_GRAM_ITERATIONS)
  y = (iterate_grams if grams else iterate)(y, iterations)
  return restore(y * (sizes * SIDE**-0.5))


def effective_rank(x: jax.Array) -> jax.Array:
  """Return (sum s^2)^2 / sum s^4 over the singular values s of a matrix.

  It is the number of singular values if they are equal, and 1 for a matrix of
  rank one or zero. If both sides are longer than BLOCK, it is the mean over the
  blocks that `polar` treats one by one.

  Args:
    x: [m, n], float.
  """
  y, _, _ = _unit_blocks(x)
  gram = y @ y.mT
  total = jnp.trace(gram, axis1=-2, axis2=-1)
  squares = jnp.sum(jnp.square(gram), (-2, -1))
  return jnp.mean(jnp.where(
      squares > 0, total**2 / jnp.where(squares > 0, squares, 1), 1))


def polar(x: jax.Array, iterations: int, schedule: str) -> jax.Array:
  """Bring the singular values of a matrix to about 1; zero stays zero.

  Sides longer than BLOCK are treated as in `equalize`.

  Args:
    x: [m, n], float.
    iterations: 5 for all singular values above a thousandth of the norm.
    schedule: one of SCHEDULES.
  """
  y, _, restore = _unit_blocks(x)
  # Matrices of up to 1.02 times the norm, so that rounding cannot leave the
  # interval that the coefficients are made for.
  return restore(iterate(y / SAFETY, iterations, schedule))


def _unit_blocks(x):
  """Return (blocks [b, m, n] of norm 1, their norms [b, 1, 1], inverse).

  The inverse takes blocks and returns an array of the shape of x.
  """
  matrix = x.reshape(-1, x.shape[-1])
  wide = matrix.shape[0] <= matrix.shape[1]
  matrix = matrix if wide else matrix.T  # Gram matrices of the shorter side
  rows, columns = matrix.shape
  num_blocks = -(-rows // BLOCK)
  side = -(-rows // num_blocks)
  # Rows of zeros stay zero and change no other row.
  y = jnp.pad(matrix, ((0, num_blocks * side - rows), (0, 0)))
  y = y.reshape(num_blocks, side, columns)
  # Dividing by the largest entry first keeps squares from overflowing.
  largest = jnp.max(jnp.abs(y), (1, 2), keepdims=True)
  nonzero = largest > 0
  y /= jnp.where(nonzero, largest, 1)
  # In a zero block the norm is set to 1, so that derivatives are finite.
  norm = jnp.sqrt(jnp.where(nonzero, jnp.sum(y**2, (1, 2), keepdims=True), 1))
  y /= norm

  def restore(y):
    y = y.reshape(-1, columns)[:rows]
    return (y if wide else y.T).reshape(x.shape)

  return y, norm * largest, restore
