"""The truncated standard normal: its standard deviation, and numbers drawn from it."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import erf, erfinv, ndtri

from gradtx.initializers.arguments import require_number
from gradtx.initializers.initializer import Scalar, Shape

# Beyond 12 standard deviations float32 can no longer hold the probabilities that sampling inverts.
_FARTHEST_BOUND = 12.0
# Beyond this erf is too close to 1 to be inverted well in float32; below, jax's numbers are drawn.
_TAIL = 2.0


def concrete_bounds(lower: Scalar, upper: Scalar) -> tuple[float, float] | None:
    """Both bounds as Python floats, or None if one is an array or traced.

    Args:
        lower: lower bound, or -inf.
        upper: upper bound, or inf.

    Raises:
        ValueError: if they are not numbers, or are concrete, and `lower` is not below `upper` or
            no part of the interval is within 12 of zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.initializers.truncated import concrete_bounds
        >>> concrete_bounds(jnp.float32(-2), 2)
        (-2.0, 2.0)
    """
    for name, bound in (("lower", lower), ("upper", upper)):
        require_number("truncated_normal", name, bound)
    if any(np.ndim(bound) or isinstance(bound, Tracer) for bound in (lower, upper)):
        return None
    low, high = float(lower), float(upper)
    if not low < high:
        raise ValueError(
            f"truncated_normal: lower must be below upper, got lower={low} and upper={high}"
        )
    if low > _FARTHEST_BOUND or high < -_FARTHEST_BOUND:
        raise ValueError(
            f"truncated_normal: the interval must come within {_FARTHEST_BOUND:g} of zero, "
            f"got lower={low} and upper={high}"
        )
    return low, high


@functools.lru_cache(maxsize=1024)
def truncated_deviation(lower: float, upper: float) -> float:
    """The standard deviation s of a standard normal given lower < z < upper, to 13 digits.

        s^2 = E[(z - E[z])^2]

    The closed form in `truncated_normal` subtracts nearly equal numbers when the interval is
    narrow or far from zero; Gauss-Legendre quadrature of the density about its own mean does not.

    Args:
        lower: lower bound, or -inf.
        upper: upper bound, or inf.

    Returns:
        A Python float.

    Source:
        Johnson, Kotz & Balakrishnan 1994, "Continuous univariate distributions", volume 1,
        chapter 13, section 10.1.

    Example:
        >>> from gradtx.initializers.truncated import truncated_deviation
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

        z = Φ⁻¹(u),    u ~ U[Φ(lower), Φ(upper)]

    It increases with u, as in `jax.random.truncated_normal`.

    Args:
        key: a PRNG key.
        lower: lower bound, or -inf.
        upper: upper bound, or inf.
        shape: shape of the result.
        dtype: float32 or float64.

    Returns:
        Array of the given shape and dtype.

    Source:
        Devroye 1986, "Non-uniform random variate generation", section II.2 (inversion).

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx.initializers.truncated import sample_truncated
        >>> z = sample_truncated(jax.random.key(0), 3.0, 4.0, (1000,), jnp.float32)
        >>> bool((z >= 3).all() and (z <= 4).all())
        True
    """
    # An infinite bound must not be drawn: Φ⁻¹(0) = -inf would occur once in 2²³ float32 numbers.
    lower, upper, _ = _effective_bounds(lower, upper, float(jnp.finfo(dtype).eps))
    # The probabilities are computed here and not in the compiled program: a compiler that folds
    # constants may round differently from the device.
    if upper < -_TAIL:
        # In the lower tail Φ keeps full relative precision.
        z = ndtri(jax.random.uniform(key, shape, dtype, _exceedance(-lower), _exceedance(-upper)))
    elif lower <= _TAIL:
        # 2Φ(z) - 1 = erf(z/√2) is exact around zero.
        with jax.ensure_compile_time_eval():
            bounds = erf(jnp.asarray([lower, upper], dtype) / math.sqrt(2))
        centered = jax.random.uniform(key, shape, dtype, bounds[0], bounds[1])
        z = math.sqrt(2) * erfinv(centered)
    else:
        # In the upper tail Φ rounds to 1; its complement 1 - Φ keeps full relative precision.
        nearest, farthest = _exceedance(lower), _exceedance(upper)
        rest = 1 - jax.random.uniform(key, shape, dtype)
        z = -ndtri(farthest + (nearest - farthest) * rest)
    return jnp.clip(z, lower, upper)


def _effective_bounds(lower: float, upper: float, density: float) -> tuple[float, float, float]:
    """The part of the interval where the density is above `density` of its peak; the peak."""
    peak = min(max(0.0, lower), upper)
    reach = math.sqrt(peak**2 - 2 * math.log(density))
    return max(lower, -reach), min(upper, reach), peak


def _exceedance(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2
