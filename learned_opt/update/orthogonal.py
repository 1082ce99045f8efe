"""Newton-Schulz iterations, which make a matrix more like an orthogonal one.

Reference:
  Jordan et al., 2024, https://kellerjordan.github.io/posts/muon (coefficients).
  Bernstein and Newhouse, 2024, https://arxiv.org/abs/2409.20325.
"""

import jax
import jax.numpy as jnp

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SIDE = 16  # of matrices whose RMS does not change when all values are equal
MAX_ITERATIONS = 100  # far more than anyone needs; programs grow with them
MAX_GRAM_ITERATIONS = 3
BLOCK = 512  # longest side of a matrix that is treated as one


def check_iterations(iterations: int) -> None:
  """Raises ValueError unless it is a number of iterations."""
  if isinstance(iterations, bool) or not isinstance(
      iterations, int) or not 0 <= iterations <= MAX_ITERATIONS:
    raise ValueError(
        f"newton_schulz = {iterations!r} is not a number of iterations; "
        "give 0 or a few, such as 5.")


def iterate(y: jax.Array, iterations: int) -> jax.Array:
  """Newton-Schulz iterations of matrices [..., m, n], best with m <= n.

  Args:
    y: float array; singular values of at most 1.
    iterations: see `equalize`.
  """
  a, b, c = COEFFICIENTS
  for _ in range(iterations):
    gram = y @ y.mT
    y = a * y + (b * gram + c * gram @ gram) @ y
  return y


def iterate_grams(y: jax.Array, iterations: int) -> jax.Array:
  """`iterate` with 63 % of its products, for 3 iterations and n = 4 m.

  An iteration multiplies by a polynomial in y @ y.mT, so the product of these
  can be found from m x m matrices alone. Equal but for rounding as long as
  iterations are few: what rounding makes of eigenvalues that are zero grows
  twelvefold with each, where `iterate` begins from y @ y.mT again.

  Args:
    y: as in `iterate`.
    iterations: from 1 to MAX_GRAM_ITERATIONS.
  """
  a, b, c = COEFFICIENTS
  gram = y @ y.mT
  eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=y.dtype), gram.shape)
  product = step = a * eye + b * gram + c * gram @ gram
  for _ in range(iterations - 1):
    gram = step @ gram @ step
    step = a * eye + b * gram + c * gram @ gram
    product = step @ product
  return product @ y


def equalize(x: jax.Array, iterations: int) -> jax.Array:
  """Brings the singular values of x to about ||x|| / 4, with ||.|| Frobenius.

  That is the spectral norm that grows with width as that of a matrix of rank
  one with the entries of x does, which is what muP takes gradients for, so
  multipliers of Adam-like updates keep their meaning.

  Where both sides are longer than BLOCK, blocks of the shorter side are
  treated one by one, each with its own norm. The spectral norm is about
  ||x|| / 4 then too where x has rank one, else less, and the cost of a number
  is the same in matrices of all sizes.

  Args:
    x: float array of two or more axes; all but the last are one axis.
    iterations: the more, the nearer small singular values come. The largest
      amplification is 3.4 to this power, values end between 0.7 and 1.2 times
      the aim.

  Returns:
    Of the shape of x; zero where x is zero, and odd and homogeneous in x.
  """
  matrix = x.reshape(-1, x.shape[-1])
  wide = matrix.shape[0] <= matrix.shape[1]
  matrix = matrix if wide else matrix.T
  rows, columns = matrix.shape
  num_blocks = -(-rows // BLOCK)
  side = -(-rows // num_blocks)
  # Rows of zeros stay zero and change no other.
  y = jnp.pad(matrix, ((0, num_blocks * side - rows), (0, 0)))
  y = y.reshape(num_blocks, side, columns)
  largest = jnp.max(jnp.abs(y), (1, 2), keepdims=True)
  some = largest > 0
  y /= jnp.where(some, largest, 1)  # so that squares have no overflow
  norm = jnp.sqrt(jnp.where(some, jnp.sum(y**2, (1, 2), keepdims=True), 1))
  y /= norm
  # One block keeps the bits that optimizers were meta-trained with.
  grams = (num_blocks > 1 and columns >= 2 * side and
           1 <= iterations <= MAX_GRAM_ITERATIONS)
  y = (iterate_grams if grams else iterate)(y, iterations)
  y *= norm * largest * SIDE**-0.5
  y = y.reshape(-1, columns)[:rows]
  return (y if wide else y.T).reshape(x.shape)
