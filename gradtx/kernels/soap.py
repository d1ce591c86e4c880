"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners."""

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
from gradtx.arguments import check_static
from gradtx.explicit import each_back, gathered, laid_out_as, switch_on_whole
from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.arithmetic import debias, safe_divide
from gradtx.kernels.products import (
    adjoint,
    gram_along,
    matrix_axes_up_to,
    multiply_along,
    product,
    square_shapes,
)
from gradtx.lift import lift

# What counts as zero, in roundings of the root mean square. Products of matrices are off by a few
# of them, which then move an element by less than a hundredth of a step.
_ROUNDINGS = 1024


class SoapState(NamedTuple):
    """The state of `scale_by_soap`.

    Attributes:
        count: number of steps taken, int32.
        mu: the average of the gradients.
        nu: the average of their squares in the eigenbasis.
        statistics: for each parameter a list with the second moments along each axis.
        basis: for each parameter the list of orthogonal matrices whose columns approximate the
            eigenvectors of these.
    """

    count: jax.Array
    mu: Any
    nu: Any
    statistics: Any
    basis: Any


def _soap(
    g,
    *,
    mu,
    nu,
    statistics,
    basis,
    t,
    b1,
    b2,
    shampoo_beta,
    eps,
    precondition_frequency,
    max_precond_dim,
):
    if not g.size:
        return g, mu, nu, statistics, basis
    axes = matrix_axes_up_to(g.shape, max_precond_dim)
    old_nu, old_statistics, old_basis = nu, statistics, basis
    statistics, basis = list(map(gathered, statistics)), list(map(gathered, basis))

    def into_basis(x: jax.Array) -> jax.Array:
        whole = gathered(x, axes)
        for axis, q in zip(axes, basis, strict=True):
            whole = multiply_along(adjoint(q), whole, axis)
        return laid_out_as(whole, x)

    # The first step only initializes the basis, which must not depend on the gradient it rotates.
    is_first = t == 1
    adam_t = jnp.maximum(t - 1, 1.0)
    mu = jnp.where(is_first, mu, b1 * mu + (1 - b1) * g)
    nu = jnp.where(is_first, nu, b2 * nu + (1 - b2) * norms.abs_squared(into_basis(g)))
    root = lax.sqrt(debias(nu, b2, adam_t))
    # Zeros in the basis are zero only up to rounding, which must not be scaled to a full step.
    rounding = _ROUNDINGS * jnp.finfo(g.dtype).eps * norms.norm(root) / math.sqrt(g.size)
    rounding = rounding if axes else 0.0
    u = safe_divide(into_basis(debias(mu, b1, adam_t)), root + (eps + rounding))
    u = gathered(u, axes)
    for axis, q in zip(axes, basis, strict=True):
        u = multiply_along(q, u, axis)

    whole = gathered(g)
    statistics = [
        shampoo_beta * old + (1 - shampoo_beta) * gram_along(whole, axis)
        for axis, old in zip(axes, statistics, strict=True)
    ]
    if axes:
        is_due = (t - 1) % precondition_frequency == 0
        branches = (
            lambda nu, _, statistics: (nu, [jnp.linalg.eigh(s)[1][:, ::-1] for s in statistics]),
            lambda nu, basis, statistics: _improved(nu, axes, statistics, basis),
            lambda nu, basis, _: (nu, basis),
        )
        index = jnp.where(is_first, 0, jnp.where(is_due, 1, 2))
        nu, basis = switch_on_whole(index, branches, nu, basis, statistics)
    [nu], statistics = each_back([nu], [old_nu]), each_back(statistics, old_statistics)
    return laid_out_as(u, g), mu, nu, statistics, each_back(basis, old_basis)


def _improved(
    nu: jax.Array, axes: list[int], statistics: list[jax.Array], basis: list[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """One power iteration of the basis, sorted by decreasing eigenvalues first."""
    improved = []
    for axis, statistic, q in zip(axes, statistics, basis, strict=True):
        powers = product(statistic, q)
        eigenvalues = jnp.sum(jnp.real(jnp.conj(q) * powers), axis=0)
        order = jnp.argsort(eigenvalues, descending=True)
        nu = jnp.take(nu, order, axis=axis)
        improved.append(jnp.linalg.qr(jnp.take(powers, order, axis=1))[0])
    return nu, improved


def _squares(shape: tuple[int, ...], max_precond_dim: int) -> list[tuple[int, ...]]:
    return square_shapes(shape, max_precond_dim)


SOAP = Kernel(
    "scale_by_soap",
    _soap,
    slots=(
        Slot("mu"),
        Slot("nu", real=True, non_negative=True),
        Slot("statistics", shape=_squares),
        Slot("basis", fill=lambda shape, dtype: jnp.eye(*shape, dtype=dtype), shape=_squares),
    ),
    hyperparameters={"b1": DECAY, "b2": DECAY, "shampoo_beta": DECAY, "eps": NON_NEGATIVE},
    options=("precondition_frequency", "max_precond_dim"),
    state=SoapState,
    elementwise=False,
    stacked=True,
    degree=0,
    source="Vyas et al. 2024, Algorithm 3",
    bounded="norm",
)


def scale_by_soap(
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
) -> optax.GradientTransformationExtraArgs:
    """SOAP's scaling: Adam's in the eigenbasis of the gradients' second moments.

        M <- b1 * M + (1 - b1) * G,    M_hat = M / (1 - b1^s)
        V <- b2 * V + (1 - b2) * (Q_L^T G Q_R)^2,    V_hat = V / (1 - b2^s)
        U = Q_L ((Q_L^T M_hat Q_R) / (sqrt(V_hat) + eps)) Q_R^T
        L <- shampoo_beta * L + (1 - shampoo_beta) * G G^T,    R likewise with G^T G

    for s = t - 1. The first step, t = 1, only initializes L and R, and Q_L and Q_R as their
    eigenvectors; its update is zero. Whenever s is a multiple of `precondition_frequency` one power
    iteration brings them up to date:

        Q_L <- orthogonal factor of the QR decomposition of L Q_L

    with its columns, and V with them, in the order of decreasing eigenvalues. An array of k axes
    has k bases. A vector or a scalar gets Adam's steps, as does an array along axes that are longer
    than `max_precond_dim`.

    Of a matrix that is not square, the first gradient leaves L or R a null space, of which any
    orthonormal basis consists of eigenvectors. Rounding decides which one the first step finds, and
    the next updates depend on it, because Adam's scaling is another one in another basis: runs on
    other devices, or with other layouts, part there by as much as a step. The updates agree to
    rounding where the first L and R have full rank.

    In a basis, eps is increased by 1024 machine epsilons of the root mean square of sqrt(V_hat): a
    gradient of low rank has elements there that are zero except for rounding.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        shampoo_beta: the decay rate of L and R, in [0, 1); None: b2.
        eps: added to the denominator outside the root, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        precondition_frequency: the number of steps from one update of the bases to the next, >= 1.
        max_precond_dim: the longest axis that gets a basis, >= 1.

    Returns:
        The transformation, with the state `SoapState(count, mu, nu, statistics, basis)`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam", Algorithms 3 and 4,
        with Adam's bias correction, and the order of the columns and the first step as in the
        authors' code, which adds eps to the root of V and corrects their sum, so that its eps is
        eps / sqrt(1 - b2^s) here: 4.5 times as large in its first step.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_soap()
        >>> g = jnp.array([[3.0, 4.0], [0.0, 0.0]])
        >>> updates, state = tx.update(g, tx.init(g))
        >>> updates, state = tx.update(g, state)
        >>> print(f"{updates[0, 0]:.2f} {updates[0, 1]:.2f}")
        0.60 0.80
    """
    owner = "scale_by_soap"
    frequency = check_static(owner, "precondition_frequency", precondition_frequency)
    return lift(
        SOAP,
        dtypes={"mu": mu_dtype},
        b1=b1,
        b2=b2,
        shampoo_beta=b2 if shampoo_beta is None else shampoo_beta,
        eps=eps,
        precondition_frequency=frequency,
        max_precond_dim=check_static(owner, "max_precond_dim", max_precond_dim),
    )
