"""NorMuon: Muon with a learning rate for each neuron."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx import norms
from gradtx.arguments import check_flag
from gradtx.explicit import laid_out_as
from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Scalar, Slot
from gradtx.kernels.adam import first_moment
from gradtx.kernels.arithmetic import safe_divide
from gradtx.kernels.matrices import WeightDimensionNumbers, as_matrices
from gradtx.kernels.muon import factor_of_width
from gradtx.kernels.orthogonalize import (
    ITERATION_OPTIONS,
    NS_COEFFS,
    Preconditioning,
    newton_schulz,
    newton_schulz_options,
)
from gradtx.lift import lift


class NorMuonState(NamedTuple):
    """The state of `scale_by_normuon`.

    Attributes:
        count: number of steps taken, int32.
        mu: the momentum M, in the layout of matrices.
        nu: for each column of each matrix the average of its mean square.
        ns_coeffs: the coefficients of the iteration.
    """

    count: jax.Array
    mu: Any
    nu: Any
    ns_coeffs: jax.Array


def _normuon(
    g, *, mu, nu, ns_coeffs, beta, b2, eps, consistent_rms, as_long_as_muon, nesterov, iteration
):
    rows, columns = g.shape[-2:]
    mu = beta * mu + (1 - beta) * g
    ahead = first_moment(g, mu, None, beta, None, nesterov, bias_correction=False)
    o = newton_schulz(ahead, ns_coeffs, eps, **iteration._asdict())
    squares = jnp.sum(norms.abs_squared(o), axis=-2)
    nu = b2 * nu + (1 - b2) * laid_out_as(squares, nu) / max(rows, 1)
    denominator = laid_out_as(lax.sqrt(nu), squares)[..., None, :] + eps
    n = safe_divide(o, jnp.broadcast_to(denominator, o.shape))
    unit = safe_divide(n, jnp.broadcast_to(norms.norm(n, axis=(-2, -1)), n.shape))
    if as_long_as_muon:
        length = factor_of_width(rows, columns) * norms.norm(o, axis=(-2, -1))
    else:
        length = consistent_rms * math.sqrt(rows * columns)
    return length * unit, mu, nu


NORMUON = Kernel(
    "scale_by_normuon",
    _normuon,
    slots=(
        Slot("mu"),
        Slot("nu", real=True, non_negative=True, shape=lambda shape: (*shape[:-2], shape[-1])),
    ),
    scalars=(Scalar("ns_coeffs", fill="coefficients"),),
    hyperparameters={
        "beta": DECAY,
        "b2": DECAY,
        "eps": NON_NEGATIVE,
        "consistent_rms": NON_NEGATIVE,
    },
    options=("as_long_as_muon", "nesterov", *ITERATION_OPTIONS),
    state=NorMuonState,
    elementwise=False,
    stacked=True,
    degree=0,
    source="Li et al. 2025, Algorithm 1",
)


def scale_by_normuon(
    ns_coeffs: Any = NS_COEFFS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    preconditioning: Preconditioning = "frobenius",
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
    consistent_rms: ScalarOrSchedule | None = 0.2,
    ns_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalize the momentum and even out the lengths of its columns: NorMuon's scaling.

        M <- beta * M + (1 - beta) * G
        O = NewtonSchulz(M)
        v_j <- b2 * v_j + (1 - b2) * mean_i(O_ij^2)
        N_ij = O_ij / (sqrt(v_j) + eps)
        U = consistent_rms * sqrt(m * n) / ||N||_F * N

    A column j of a kernel of shape (m, n) = (inputs, outputs) is a neuron, so that each neuron has
    its own learning rate. The root mean square of the elements of U is `consistent_rms`. With
    `consistent_rms=None` U is as long as the update of Muon,

        U = sqrt(max(1, n / m)) * ||O||_F / ||N||_F * N

    With nesterov NewtonSchulz takes beta * M + (1 - beta) * G.

    Args:
        ns_coeffs: the coefficients of the iteration, see `scale_by_muon`.
        ns_steps: the number of iterations, >= 1. Several triples of `ns_coeffs` give their own
            number.
        beta: the decay rate of the momentum, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        eps: added to the norm of the momentum in the iteration, >= 0. It is also added to the root
            of v.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum. The paper does not.
        preconditioning: the scaling before the first iteration, see `scale_by_muon`.
        weight_dimension_numbers: the axes of the matrices, see `scale_by_muon`.
        consistent_rms: the root mean square of the elements of an update, >= 0, before the learning
            rate. None: the length of O.
        ns_dtype: a narrower dtype for the factors of the products in the iteration, such as
            bfloat16; None: that of the gradient, at least float32, and products are as precise as
            `jax_default_matmul_precision` says.

    Returns:
        The transformation, with the state `NorMuonState(count, mu, nu, ns_coeffs)`, whose `mu`
        and `nu` belong to matrices in the last two axes.

    Raises:
        ValueError: if an argument lies outside its range; in `init` and `update`, if an array has
            fewer than two axes, or lacks those that its dimension numbers name.

    Source:
        Li et al. 2025, "NorMuon: making Muon more efficient and scalable", Algorithm 1, whose
        matrices are transposed: rows are neurons there. The authors' code is the case
        `nesterov=True, consistent_rms=None`, with eps = 1e-7 in the iteration, which runs in
        bfloat16, and 1e-10 next to the root of v.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_normuon()
        >>> updates, _ = tx.update(jnp.diag(jnp.array([3.0, 300.0])), tx.init(jnp.zeros((2, 2))))
        >>> print(f"{jnp.sqrt(jnp.mean(updates**2)):.3f}")
        0.200
    """
    options = newton_schulz_options(
        "scale_by_normuon", ns_coeffs, ns_steps, preconditioning, ns_dtype
    )
    tx = lift(
        NORMUON,
        dtypes={"mu": mu_dtype},
        beta=beta,
        b2=b2,
        eps=eps,
        consistent_rms=0.0 if consistent_rms is None else consistent_rms,
        as_long_as_muon=consistent_rms is None,
        nesterov=check_flag("scale_by_normuon", "nesterov", nesterov),
        **options,
    )
    return as_matrices(tx, weight_dimension_numbers)
