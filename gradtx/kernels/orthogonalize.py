"""Newton-Schulz iterations towards the nearest orthogonal matrix."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from gradtx import norms
from gradtx.arguments import check_dtype, check_static
from gradtx.explicit import gathered, laid_out_as
from gradtx.kernels.products import adjoint
from gradtx.lengths import direction
from gradtx.messages import for_static, shown

NS_COEFFS = (3.4445, -4.7750, 2.0315)
_PRESETS = {
    "standard": NS_COEFFS,
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
Preconditioning: TypeAlias = Literal["frobenius", "spectral", "aol", "schatten"]

# The options of a kernel whose equation contains the iteration.
ITERATION_OPTIONS = ("coefficients", "iteration")


class Iteration(NamedTuple):
    """The keyword arguments of `newton_schulz`."""

    ns_steps: int
    preconditioning: str
    ns_dtype: np.dtype | None


def newton_schulz_options(
    owner: str, ns_coeffs: Any, ns_steps: int, preconditioning: str, ns_dtype: DTypeLike | None
) -> dict[str, Any]:
    """The values of `ITERATION_OPTIONS`, the coefficients as tuples.

    Raises:
        ValueError: if one of them is wrong, naming it and its value.
    """
    if isinstance(ns_coeffs, str) and ns_coeffs not in _PRESETS:
        raise ValueError(
            f"{owner}: ns_coeffs must be numbers or one of {list(_PRESETS)}, got {shown(ns_coeffs)}"
        )
    try:
        coefficients = np.asarray(
            _PRESETS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs, float
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{owner}: ns_coeffs must be numbers or one of {list(_PRESETS)}, got {shown(ns_coeffs)}"
            f"{for_static('ns_coeffs', ns_coeffs)}"
        ) from error
    if coefficients.ndim not in (1, 2) or coefficients.shape[-1] != 3 or not coefficients.size:
        raise ValueError(
            f"{owner}: ns_coeffs must have shape (3,) or (n, 3), got {coefficients.shape}"
        )
    if not np.all(np.isfinite(coefficients)):
        raise ValueError(f"{owner}: ns_coeffs must be finite, got {shown(ns_coeffs)}")
    ns_steps = check_static(owner, "ns_steps", ns_steps)
    if preconditioning not in get_args(Preconditioning):
        raise ValueError(
            f"{owner}: preconditioning must be one of {list(get_args(Preconditioning))}, "
            f"got {shown(preconditioning)}"
        )
    rows = coefficients.tolist()
    return {
        "coefficients": tuple(map(tuple, rows)) if coefficients.ndim == 2 else tuple(rows),
        "iteration": Iteration(ns_steps, preconditioning, check_dtype(owner, "ns_dtype", ns_dtype)),
    }


def newton_schulz(
    x: jax.Array,
    coefficients: jax.Array,
    eps: Any,
    *,
    ns_steps: int,
    preconditioning: str,
    ns_dtype: DTypeLike | None,
) -> jax.Array:
    """Bring the singular values of matrices close to 1, and keep their singular vectors.

        X_0 = X / (||X||_F + eps)
        X_{k+1} = a_k X_k + (b_k A + c_k A^2) X_k,    A = X_k X_k^H

    so that U S V^H becomes U f(S) V^H with f(s) the iterates of a_k s + b_k s^3 + c_k s^5.

    Args:
        x: shape (..., m, n); matrices in the last two axes.
        coefficients: shape (3,) for the same a, b, c in each of `ns_steps` iterations, or (k, 3).
        eps: added to the norm, >= 0.
        ns_steps: number of iterations where `coefficients` has shape (3,).
        preconditioning: how X_0 is scaled further, so that its largest singular value is closer to
            1: "frobenius" not at all; "spectral" by that value; "schatten" by sqrt(||A||_F) >= that
            value; "aol" row i by sqrt(sum_j |A_ij|).
        ns_dtype: dtype of the factors of the products, whose sums stay in that of `x`; None, or
            a complex `x`: that of `x`, in the precision of `jax.default_matmul_precision`.

    Returns:
        Shape (..., m, n).

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Grishina,
        Smirnov & Rakhuba 2025, "Accelerating Newton-Schulz iteration for orthogonalization via
        Chebyshev-type polynomials" (schatten); Boissin et al. 2025, "Turbo-Muon" (aol).
    """
    if not x.size:
        return x
    whole = gathered(x, (-2, -1))
    if whole is not x:
        options = {"ns_steps": ns_steps, "preconditioning": preconditioning, "ns_dtype": ns_dtype}
        return laid_out_as(newton_schulz(whole, coefficients, eps, **options), x)
    if x.shape[-2] > x.shape[-1]:
        # f(X^H) = f(X)^H: the smaller of X X^H and X^H X is enough.
        options = {"ns_steps": ns_steps, "preconditioning": preconditioning, "ns_dtype": ns_dtype}
        return adjoint(newton_schulz(adjoint(x), coefficients, eps, **options))
    x = direction(x, norms.length(x, axis=(-2, -1)).plus(eps))
    if coefficients.ndim == 1:
        coefficients = jnp.broadcast_to(coefficients, (ns_steps, 3))
    for k in range(coefficients.shape[0]):
        gram = _product(x, adjoint(x), ns_dtype)
        if k == 0 and preconditioning != "frobenius":
            unit = _unit(gram, preconditioning)
            unit = jnp.where(unit > 0, unit, 1.0)
            x, gram = x / unit, gram / (unit * jnp.swapaxes(unit, -1, -2))
        a, b, c = coefficients[k]
        x = a * x + _product(b * gram + c * _product(gram, gram, ns_dtype), x, ns_dtype)
    return x


def _product(a: jax.Array, b: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    """A product of matrices, in JAX's own precision: the iteration corrects what it rounds."""
    if dtype is None or jnp.iscomplexobj(a):
        return jnp.matmul(a, b)
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=a.dtype)


def _unit(gram: jax.Array, preconditioning: str) -> jax.Array:
    """What to divide the rows of X by, from A = X X^H: shape (..., m, 1) or (..., 1, 1)."""
    if preconditioning == "spectral":
        return lax.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[..., -1:, None], 0.0))
    if preconditioning == "schatten":
        return lax.sqrt(norms.norm(gram, axis=(-2, -1)))
    return lax.sqrt(jnp.sum(jnp.abs(gram), axis=-1, keepdims=True))
