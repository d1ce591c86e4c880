"""What an activation does to a signal: where it bends, and how much of it passes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradtx import norms, trees
from gradtx.messages import shown


def relu_elbows(weights: ArrayLike, bias: ArrayLike) -> jax.Array:
    """Where the units of a layer relu(x W + b) have their elbows.

        one input:       e_j = -b_j / w_j                      a point on the axis of the input
        several inputs:  e_j = -b_j / ||w_j||,  w_j = W[:, j]  a signed distance from the origin

    With one input, unit j bends at x = e_j. With several, it bends along the hyperplane
    x . w_j / ||w_j|| = e_j and is active on the side that w_j points to. A unit whose elbow lies
    far outside the data is linear on the data, or dead.

    Args:
        weights: W, of shape (units,) or (1, units) for one input, else (inputs, units).
        bias: b, of shape (units,).

    Returns:
        The elbows, of shape (units,); float64 if an argument is, else float32. NaN for a unit
        whose weights are all zero: its output is constant and has no elbow.

    Raises:
        ValueError: if the shapes do not match, or an argument does not hold real floating-point
            numbers.

    Source:
        Pascanu, Montúfar & Bengio 2014, "On the number of response regions of deep feed forward
        networks with piece-wise linear activations", for the hyperplanes w_j . x + b_j = 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import relu_elbows
        >>> print(relu_elbows(jnp.array([2.0, -1.0]), jnp.array([1.0, 3.0])))
        [-0.5  3. ]
        >>> print(relu_elbows(jnp.array([[3.0], [4.0]]), jnp.array([10.0])))
        [-2.]
    """
    w, b = jnp.asarray(weights), jnp.asarray(bias)
    for name, array in (("weights", w), ("bias", b)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"relu_elbows: {name} must hold real floating-point numbers, got dtype "
                f"{array.dtype}"
            )
    if w.ndim not in (1, 2):
        raise ValueError(
            f"relu_elbows: weights must have shape (units,) or (inputs, units), got shape {w.shape}"
        )
    if b.shape != w.shape[-1:]:
        raise ValueError(
            f"relu_elbows: bias must have shape {w.shape[-1:]}, one number for each unit of "
            f"weights with shape {w.shape}, got shape {b.shape}"
        )
    dtype = np.promote_types(trees.compute_dtype(w.dtype), trees.compute_dtype(b.dtype))
    w, b = jnp.atleast_2d(w.astype(dtype)), b.astype(dtype)
    slope = w[0] if len(w) == 1 else norms.norm(w, axis=0)[0]
    is_flat = slope == 0
    return jnp.where(is_flat, jnp.nan, -b / jnp.where(is_flat, 1, slope))


# Multiples of 1/64 up to 12 standard deviations; the probability beyond them is 4e-33.
_EDGES = np.linspace(-12, 12, 24 * 64 + 1)
_NODES_PER_PANEL = 32


def activation_gain(fn: Callable[[jax.Array], Any]) -> float:
    """The mean square of an activation whose input is standard normal.

        gain = E[fn(z)^2] = integral fn(z)^2 exp(-z^2 / 2) / sqrt(2 pi) dz,    z ~ N(0, 1)

    A layer x W that follows this activation has outputs of mean square 1 again if
    Var w = 1 / (gain * fan_in): `gradtx.initializers.variance_scaling(1 / gain, "fan_in",
    "normal")`. For relu that is He's initializer. The first layer, whose inputs have not passed
    through an activation, takes the scale 1. This is exact for signals of any size only if
    fn(a z) = a fn(z), as for relu; with other activations small deviations may add up in very deep
    networks.

    Gauss-Hermite quadrature is meant for smooth functions: with 100 nodes its error is 0.5% for
    max(-1, min(1, z)). Here each interval between multiples of 1/64 has its own Gauss-Legendre
    rule, so that kinks and steps at these points, where activations usually have them, cause no
    error. Elsewhere, a kink where the slope changes by 1 causes an error of about 1e-7, and a step
    of height 1 at most 2e-4.

    Args:
        fn: an elementwise function of an array, such as `jax.nn.gelu`. It is evaluated in jax's
            default float: seven digits, or sixteen with `jax_enable_x64`; all sums are float64.

    Returns:
        The mean square, a Python number, even under `jax.jit`; 0 for an activation that is zero
        everywhere.

    Raises:
        ValueError: if `fn` is not elementwise, is not finite everywhere within 12 standard
            deviations, or grows so fast that values near that limit contribute.

    Source:
        He, Zhang, Ren & Sun 2015, "Delving deep into rectifiers", equations (7) to (10), where the
        gain of the rectifier is 1/2.

    Example:
        >>> import jax
        >>> from gradtx.diagnostics import activation_gain
        >>> print(f"{activation_gain(jax.nn.relu):.6f} {activation_gain(jax.nn.selu):.6f}")
        0.500000 1.000000
    """
    owner = "activation_gain"
    if not callable(fn):
        raise ValueError(f"{owner}: fn must be a function of an array, got {shown(fn)}")
    name = getattr(fn, "__name__", repr(fn))
    nodes, weights = _normal_quadrature()
    with jax.ensure_compile_time_eval():
        values = fn(jnp.asarray(nodes, dtype=float))
        if np.shape(values) != nodes.shape:
            raise ValueError(
                f"{owner}: fn must return an array of the shape of its argument, {nodes.shape}, "
                f"got shape {np.shape(values)} from {name}"
            )
        magnitudes = np.asarray(jnp.abs(jnp.asarray(values))).astype(np.float64)
        parts = [fn(half) for half in jnp.split(jnp.asarray(nodes, dtype=float), 2)]
    if not np.allclose(np.concatenate(parts), values, rtol=1e-5, equal_nan=True):
        raise ValueError(
            f"{owner}: fn must be elementwise, got {name}, whose results depend on other elements"
        )
    if not np.all(np.isfinite(magnitudes)):
        bad = nodes[~np.isfinite(magnitudes)]
        raise ValueError(f"{owner}: fn must be finite, got {name}({bad[0]:.6g}) = not finite")
    # The squares themselves might overflow in float64 where these products do not.
    terms = (magnitudes * np.sqrt(weights)) ** 2
    gain = float(np.sum(terms))
    if np.sum(terms[np.abs(nodes) > _EDGES[-1] - 1]) > 1e-6 * gain:
        raise ValueError(
            f"{owner}: fn must grow more slowly than exp(z^2 / 4), got {name}, whose mean square "
            f"does not converge within {_EDGES[-1]:g} standard deviations"
        )
    return gain


def _normal_quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes, and weights such that sum_i w_i f(z_i) = E f(z) for standard normal z."""
    points, weights = np.polynomial.legendre.leggauss(_NODES_PER_PANEL)
    centers = (_EDGES[1:] + _EDGES[:-1])[:, np.newaxis] / 2
    half_width = (_EDGES[1] - _EDGES[0]) / 2
    nodes = centers + half_width * points
    density = np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi)
    return nodes.reshape(-1), (half_width * weights * density).reshape(-1)
