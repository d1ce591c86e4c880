"""Shampoo: a preconditioner for each axis of an array, from second moments of the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx.arguments import check_static
from gradtx.explicit import each_back, gathered, laid_out_as, switch_on_whole
from gradtx.kernel import DECAY, NON_NEGATIVE, SHARE, Kernel, Slot
from gradtx.kernels.arithmetic import debias, sum_of_weights
from gradtx.kernels.products import (
    adjoint,
    gram_along,
    matrix_axes_up_to,
    multiply_along,
    product,
    square_shapes,
    squares_along,
)
from gradtx.lift import lift


class ShampooState(NamedTuple):
    """The state of `scale_by_shampoo`.

    Attributes:
        count: number of steps taken, int32.
        mu: the average of the gradients; for each parameter an empty list if there is none.
        statistics: for each parameter a list with the second moments along each axis: a matrix or
            its diagonal; for a vector or a scalar, those of its elements.
        roots: for each parameter the list of the inverse roots of those that are matrices.
    """

    count: jax.Array
    mu: Any
    statistics: Any
    roots: Any


def _shampoo(g, *, mu, statistics, roots, t, b1, b2, eps, averages, update_interval, max_dimension):
    u = g
    if averages:
        mu = b1 * mu + (1 - b1) * g
        u = debias(mu, b1, t)
    if not g.size:
        return g, statistics, roots, mu
    matrices = matrix_axes_up_to(g.shape, max_dimension)
    whole, u, old_statistics, old_roots = gathered(g), gathered(u), statistics, roots
    statistics, roots = list(map(gathered, statistics)), list(map(gathered, roots))
    share = jnp.where(b2 == 1, 1.0, 1 - b2)
    statistics = [
        b2 * old + share * (gram_along if axis in matrices else squares_along)(whole, axis)
        for axis, old in enumerate(statistics)
    ]
    exponent = -1 / (2 * len(statistics))
    weight = jnp.where(b2 == 1, 1.0, sum_of_weights(b2, t))

    def new_roots(_: Any, factors: list[jax.Array]) -> list[jax.Array]:
        pairs = list(map(jnp.linalg.eigh, factors))
        return [
            product(vectors * _power(values, exponent, eps)[None, :], adjoint(vectors))
            for values, vectors in pairs
        ]

    if matrices:
        is_due = ((t - 1) % update_interval == 0).astype(jnp.int32)
        factors = [statistics[axis] / weight for axis in matrices]
        roots = switch_on_whole(is_due, (lambda old, _: old, new_roots), roots, factors)
    for axis, root in zip(matrices, roots, strict=True):
        u = multiply_along(root, u, axis)
    for axis, squares in enumerate(statistics):
        if axis not in matrices:
            own = _power(jnp.real(squares) / weight, exponent, eps)
            u = u * jnp.expand_dims(own, [other for other in range(g.ndim) if other != axis])
    statistics, roots = each_back(statistics, old_statistics), each_back(roots, old_roots)
    return laid_out_as(u, g), statistics, roots, mu


def _power(values: jax.Array, exponent: float, eps: Any) -> jax.Array:
    """(values + eps * max(values)) ** exponent, and 0 for what is 0."""
    values = jnp.maximum(values, 0.0)
    values = values + eps * jnp.max(values)
    return jnp.where(values > 0, jnp.where(values > 0, values, 1.0) ** exponent, 0.0)


def _statistics_shapes(shape: tuple[int, ...], max_dimension: int) -> list[tuple[int, ...]]:
    if len(shape) < 2:
        return [shape]
    matrices = matrix_axes_up_to(shape, max_dimension)
    return [(n, n) if axis in matrices else (n,) for axis, n in enumerate(shape)]


SHAMPOO = Kernel(
    "scale_by_shampoo",
    _shampoo,
    slots=(
        Slot("statistics", shape=_statistics_shapes),
        Slot("roots", shape=lambda shape, max_dimension: square_shapes(shape, max_dimension)),
        # Last, because a tree of empty lists cannot tell where it does not fit.
        Slot("mu", shape=lambda shape, averages: shape if averages else []),
    ),
    hyperparameters={"b1": DECAY, "b2": SHARE, "eps": NON_NEGATIVE},
    options=("averages", "update_interval", "max_dimension"),
    state=ShampooState,
    elementwise=False,
    stacked=True,
    degree=0,
    source="Gupta et al. 2018, Algorithm 2",
    bounded="norm",
)


def scale_by_shampoo(
    b1: ScalarOrSchedule | None = 0.9,
    b2: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    update_interval: int = 1,
    max_dimension: int = 1024,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo's scaling: the gradient times an inverse root of its second moments along each axis.

        M <- b1 * M + (1 - b1) * G,    M_hat = M / (1 - b1^t)
        L <- b2 * L + (1 - b2) * G G^T,    R <- b2 * R + (1 - b2) * G^T G
        U = L_hat^(-1/4) M_hat R_hat^(-1/4)

    with L_hat = L / (1 - b2^t); for b2 = 1, as in the paper, L and R are sums: L <- L + G G^T. An
    array of k axes has k such factors, each to the power -1 / (2k). The inverse roots are those of
    L_hat + eps * lambda_max(L_hat) * I.

    The factor of an axis longer than `max_dimension`, and that of a vector or a scalar, is reduced
    to its diagonal, so that vectors take the steps of AdaGrad, or of RMSProp for b2 < 1.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
            None uses G itself for M_hat, and stores nothing for it.
        b2: the decay rate of L and R, in [0, 1]. With 1 they are sums over all gradients.
        eps: added to the eigenvalues relative to the largest one, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        update_interval: the number of steps from one calculation of the roots to the next, >= 1. In
            between, elements that were zero in all gradients up to then are scaled by 0, or by eps
            alone.
        max_dimension: the longest axis that gets a matrix, >= 1. It takes max_dimension^2 numbers
            twice, and max_dimension^3 operations for the root.

    Returns:
        The transformation, with the state `ShampooState(count, mu, statistics, roots)`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Gupta, Koren & Singer 2018, "Shampoo: preconditioned stochastic tensor optimization",
        Algorithms 1 and 2, which start from L = R = eps * I and have no momentum; averages and
        momentum of the gradients as in Shi et al. 2023, "A distributed data-parallel PyTorch
        implementation of the distributed Shampoo optimizer".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_shampoo(eps=0.0)
        >>> updates, _ = tx.update(jnp.diag(jnp.array([3.0, -300.0])), tx.init(jnp.zeros((2, 2))))
        >>> print(updates.round(3) + 0.0)
        [[ 1.  0.]
         [ 0. -1.]]
    """
    owner = "scale_by_shampoo"
    return lift(
        SHAMPOO,
        dtypes={"mu": mu_dtype},
        b1=0.0 if b1 is None else b1,
        b2=b2,
        eps=eps,
        averages=b1 is not None,
        update_interval=check_static(owner, "update_interval", update_interval),
        max_dimension=check_static(owner, "max_dimension", max_dimension),
    )
