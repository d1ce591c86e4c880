"""The truncated standard normal: its standard deviation, and numbers drawn from it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.initializers.initializer import Shape

# Beyond 12 standard deviations float32 can no longer hold the probabilities that sampling inverts.
FARTHEST_BOUND = 12.0


@functools.cache
def truncated_deviation(lower: float, upper: float) -> float:
    """The standard deviation s of a standard normal given lower < z < upper, to 13 digits.

    Equation: as in `truncated_normal`. The closed form there subtracts nearly equal numbers
    when the interval is narrow or far from zero; Gauss-Legendre quadrature of the density about
    its own mean subtracts nothing.

    Args:
        lower: Lower bound, or -inf.
        upper: Upper bound, or inf.

    Returns:
        A Python float.

    Source:
        Johnson, Kotz and Balakrishnan (1994), volume 1, chapter 13, section 10.1.

    Example:
        >>> round(truncated_deviation(-2.0, 2.0), 12)
        0.879625661034
    """
    lower, upper, peak = _effective_bounds(lower, upper, 1e-17)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    z = (lower + upper) / 2 + (upper - lower) / 2 * nodes
    probability = weights * np.exp((peak**2 - z**2) / 2)
    probability /= probability.sum()
    mean = probability @ z
    return math.sqrt(probability @ (z - mean) ** 2)


@functools.partial(jax.jit, static_argnames=("lower", "upper", "shape", "dtype"))
def sample_truncated(
    key: jax.Array, lower: float, upper: float, shape: Shape, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Standard normal numbers given lower < z < upper, accurate in the tails as well.

    Equation: z = Φ⁻¹(u) with u ~ U[Φ(lower), Φ(upper)].

    Args:
        key: A PRNG key.
        lower: Lower bound, or -inf.
        upper: Upper bound, or inf.
        shape: Shape of the result.
        dtype: float32 or float64.

    Returns:
        Array of the given shape and dtype.

    Source:
        Devroye (1986), "Non-Uniform Random Variate Generation", section II.2 (inversion).

    Example:
        >>> z = sample_truncated(jax.random.key(0), 3.0, 4.0, (1000,), jnp.float32)
        >>> bool((z >= 3).all() and (z <= 4).all())
        True
    """
    if upper < -1:
        return -sample_truncated(key, -upper, -lower, shape, dtype)
    # An infinite bound must not be drawn: Φ⁻¹(0) = -inf comes up once in 2²³ float32 numbers.
    lower, upper, _ = _effective_bounds(lower, upper, float(jnp.finfo(dtype).eps))
    # The probabilities are computed here, in float64: a compiler that folds constants may round
    # them in another way than the device does, and the numbers would depend on which of the two.
    if lower <= 1:
        # 2Φ(z) - 1 = erf(z/√2) is exact around zero.
        centred = jax.random.uniform(key, shape, dtype, _erf(lower), _erf(upper))
        z = math.sqrt(2) * jax.scipy.special.erfinv(centred)
    else:
        # In the upper tail Φ rounds to 1; its complement 1 - Φ keeps full relative precision.
        exceedance = jax.random.uniform(key, shape, dtype, _exceedance(upper), _exceedance(lower))
        z = -jax.scipy.special.ndtri(exceedance)
    return jnp.clip(z, lower, upper)


def _effective_bounds(lower: float, upper: float, density: float) -> tuple[float, float, float]:
    """The part of the interval where the density is above `density` of its peak; the peak."""
    peak = min(max(0.0, lower), upper)
    reach = math.sqrt(peak**2 - 2 * math.log(density))
    return max(lower, -reach), min(upper, reach), peak


def _erf(z: float) -> float:
    return math.erf(z / math.sqrt(2))


def _exceedance(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2
