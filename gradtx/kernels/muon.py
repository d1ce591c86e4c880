"""Muon: momentum with orthogonalized matrices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule
from optax.contrib import MuonState

from gradtx.arguments import check_flag
from gradtx.explicit import laid_out_as
from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, PerLeaf, Scalar, Slot
from gradtx.kernels import arithmetic
from gradtx.kernels.adam import first_moment
from gradtx.kernels.matrices import WeightDimensionNumbers, check_numbers, matrix_axes
from gradtx.kernels.orthogonalize import (
    ITERATION_OPTIONS,
    NS_COEFFS,
    Preconditioning,
    newton_schulz,
    newton_schulz_options,
)
from gradtx.lift import lift


def _muon(g, *, mu, t, ns_coeffs, beta, eps, axes, nesterov, bias_correction, adaptive, iteration):
    mu = beta * mu + (1 - beta) * g
    correction = arithmetic.bias_correction(beta, t)
    m_hat = first_moment(g, mu, t, beta, correction, nesterov, bias_correction)
    m_hat = axes.to_matrices(m_hat)
    u = newton_schulz(m_hat, ns_coeffs, eps, **iteration._asdict())
    if adaptive:
        u = jnp.sum(jnp.real(jnp.conj(m_hat) * u), axis=(-2, -1), keepdims=True) * u
    return laid_out_as(axes.from_matrices(u, g.shape), g), mu


MUON = Kernel(
    "scale_by_muon",
    _muon,
    slots=(Slot("mu"),),
    scalars=(Scalar("ns_coeffs", fill="coefficients"),),
    hyperparameters={"beta": DECAY, "eps": NON_NEGATIVE},
    options=("axes", "nesterov", "bias_correction", "adaptive", *ITERATION_OPTIONS),
    state=MuonState,
    elementwise=False,
    stacked=True,
    degree=0,
    source="Jordan et al. 2024",
    bounded="sums",
)
# Multiplied by the nuclear norm of its momentum, the update is as long as that.
ADAPTIVE_MUON = replace(MUON, degree=1, gain=True, decay="mixes", bounded="")


def scale_by_muon(
    ns_coeffs: Any = NS_COEFFS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
    bias_correction: bool = True,
    ns_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Bring all singular values of the momentum close to 1: Muon's scaling.

        M <- beta * M + (1 - beta) * G,    M_hat = M / (1 - beta^t)
        U = NewtonSchulz(M_hat)

    With nesterov M_hat = beta * M / (1 - beta^(t+1)) + (1 - beta) * G / (1 - beta^t). NewtonSchulz
    turns U S V^H into U f(S) V^H: with the default coefficients five iterations lift every singular
    value above 0.002 times the norm of the matrix into the band from 0.68 to 1.21.

    Arrays of three or more axes are batches of matrices in the last two, such as layers that are
    stacked for a scan; matrices of the same shape are iterated together.

    Args:
        ns_coeffs: the coefficients of the iteration: a, b, c of a * X + b * (X X^H) X + c * (X
            X^H)^2 X, or n such triples for n iterations, or "standard" (the default) or "dion".
        ns_steps: the number of iterations, >= 1. Several triples of `ns_coeffs` give their own
            number.
        beta: the decay rate of the momentum, in [0, 1); a number, a scalar array or a schedule.
        eps: added to the norm of the momentum in the iteration, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum.
        adaptive: whether to multiply U by the inner product <M_hat, U>, which is about the sum of
            the singular values of M_hat, for steps of steepest descent.
        preconditioning: the scaling before the first iteration, beyond that by the Frobenius norm:
            none ("frobenius"), or, to save iterations, by the norm ("spectral"), the Schatten-4
            norm ("schatten") or row by row ("aol").
        weight_dimension_numbers: the axes of the matrices: `MuonDimensionNumbers`, a tree of them
            or a prefix of one, or a function of the parameters that returns it. All other axes
            count the matrices. None: the last two axes are rows and columns.
        bias_correction: whether to correct the bias of averages that start at zero. Without it, and
            with nesterov, M_hat = beta * M + (1 - beta) * G as in Jordan's own code.
        ns_dtype: a narrower dtype for the factors of the products in the iteration, such as
            bfloat16; None: that of the gradient, at least float32, and products are as precise as
            `jax_default_matmul_precision` says.

    Returns:
        The transformation, with the state `MuonState(count, mu, ns_coeffs)`.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if an array has fewer than
            two axes, or lacks those that its dimension numbers name.

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Bernstein &
        Newhouse 2024, "Old optimizer, new norm: an anthology", Story II (adaptive). optax refuses
        arrays with more axes unless there are dimension numbers, computes <M_hat, U> over all
        matrices of an array, and scales by "aol" and "schatten" only where the gradient is not
        small.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_muon()
        >>> updates, _ = tx.update(jnp.diag(jnp.array([3.0, 300.0])), tx.init(jnp.zeros((2, 2))))
        >>> print(jnp.all((jnp.diag(updates) > 0.68) & (jnp.diag(updates) < 1.21)))
        True
    """
    adaptive = check_flag("scale_by_muon", "adaptive", adaptive)
    owner = "scale_by_muon"
    options = newton_schulz_options(owner, ns_coeffs, ns_steps, preconditioning, ns_dtype)
    return lift(
        ADAPTIVE_MUON if adaptive else MUON,
        dtypes={"mu": mu_dtype},
        beta=beta,
        eps=eps,
        axes=_axes(owner, weight_dimension_numbers),
        nesterov=check_flag("scale_by_muon", "nesterov", nesterov),
        bias_correction=check_flag("scale_by_muon", "bias_correction", bias_correction),
        adaptive=adaptive,
        **options,
    )


def _axes(owner: str, numbers: WeightDimensionNumbers | None) -> PerLeaf:
    check_numbers(owner, numbers)
    return PerLeaf(lambda tree: matrix_axes(owner, numbers, tree))


def _scale_by_shape(g, *, axes, consistent_rms):
    *_, fan_in, fan_out = axes.shape_of_matrices(g.shape)
    return math.sqrt(max(fan_in, fan_out)) * consistent_rms * g


CONSISTENT_RMS = Kernel(
    "scale_by_shape",
    _scale_by_shape,
    hyperparameters={"consistent_rms": NON_NEGATIVE},
    options=("axes",),
    elementwise=False,
    degree=1,
    gain=True,
    source="Liu et al. 2025, section 2.2",
)


def factor_of_width(fan_in: int, fan_out: int) -> float:
    """sqrt(max(1, fan_out / fan_in)): the length of Muon's update over that of its matrix."""
    return math.sqrt(max(1.0, fan_out / max(fan_in, 1)))


def _scale_by_width(g, *, axes):
    *_, fan_in, fan_out = axes.shape_of_matrices(g.shape)
    return factor_of_width(fan_in, fan_out) * g


WIDTH = replace(
    CONSISTENT_RMS, step=_scale_by_width, hyperparameters={}, source="Jordan et al. 2024"
)


def scale_by_shape(
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
    consistent_rms: ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale orthogonal matrices by a factor that depends on their shape: the last factor of Muon.

        u = sqrt(max(1, fan_out / fan_in)) * g,    or
        u = consistent_rms * sqrt(max(fan_in, fan_out)) * g

    The first preserves the size of a layer's outputs, the second the root mean square of the
    elements, which for an orthogonal matrix is 1 / sqrt(max(fan_in, fan_out)).

    Args:
        weight_dimension_numbers: the axes of the matrices, see `scale_by_muon`.
        consistent_rms: the root mean square of the elements of an update, >= 0, before the learning
            rate. None: the first form.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if `consistent_rms` is negative or NaN; in `update` as in `scale_by_muon`.

    Source:
        Jordan et al. 2024, "Muon"; Liu et al. 2025, "Muon is scalable for LLM training",
        section 2.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.kernels.muon import scale_by_shape
        >>> tx = scale_by_shape()
        >>> print(tx.update(jnp.ones((1, 4)), tx.init(None))[0])
        [[2. 2. 2. 2.]]
    """
    axes = _axes("scale_by_shape", weight_dimension_numbers)
    if consistent_rms is None:
        return lift(WIDTH, axes=axes)
    return lift(CONSISTENT_RMS, consistent_rms=consistent_rms, axes=axes)
