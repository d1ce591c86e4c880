"""Sums of squared gradients, kept as one number for each index of each axis."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax import ScalarOrSchedule

from gradtx.kernel import DECAY, NON_NEGATIVE, SHARE, Kernel, Slot
from gradtx.kernels.arithmetic import finite_sum, safe_divide
from gradtx.lift import lift
from gradtx.norms import abs_squared


def _accumulator_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """One vector for each axis; one scalar for a scalar."""
    return [(length,) for length in shape] or [()]


def _sm3(g, *, mu, nu, b1, b2, eps) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    along = [
        bound.reshape([-1 if i == axis else 1 for i in range(g.ndim)])
        for axis, bound in enumerate(mu)
    ]
    gained = jnp.where(b2 == 1, 1.0, 1 - b2) * abs_squared(g)
    total = finite_sum(b2 * functools.reduce(jnp.minimum, along), gained)
    mu = [
        jnp.max(total, axis=[i for i in range(g.ndim) if i != axis], initial=0.0)
        for axis in range(len(mu))
    ]
    direction = safe_divide(g, lax.sqrt(total + eps))
    nu = b1 * nu + (1 - b1) * direction
    return nu, mu, nu


SM3 = Kernel(
    "scale_by_sm3",
    _sm3,
    slots=(Slot("mu", real=True, non_negative=True, shape=_accumulator_shapes), Slot("nu")),
    hyperparameters={"b1": DECAY, "b2": SHARE, "eps": NON_NEGATIVE},
    state=optax.ScaleBySM3State,
    elementwise=False,
    degree=0,
    source="Anil et al. 2019, SM3-II",
    bounded="squares",
)


def scale_by_sm3(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Divide by the root of a bound on the sum of squared gradients: SM3's scaling.

        s_ij = min(mu_1(i), mu_2(j)) + g_ij^2
        mu_1(i) <- max over j of s_ij,    mu_2(j) <- max over i of s_ij
        m <- b1 * m + (1 - b1) * g / sqrt(s + eps),    0 / 0 = 0
        u = m

    and likewise for any number of axes. s is a bound on the sums of AdaGrad that takes only one
    number for each row and each column. On vectors and scalars it is AdaGrad's sum.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the bounds, in [0, 1]. With 1 they are sums, as in the paper;
            otherwise averages, to which g^2 contributes (1 - b2) * g^2.
        eps: added to the denominator inside the root, >= 0. The paper has none.

    Returns:
        The transformation, with the state `ScaleBySM3State(mu, nu)`: mu is for each parameter the
        list of its bounds, one vector for each axis, and nu is m. For a scalar mu has one scalar,
        where optax fails.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Anil et al. 2019, "Memory-efficient adaptive optimization", algorithm SM3-II with the
        cover of rows and columns, and the momentum of its experiments.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> g = jnp.array([[3.0, 0.0], [0.0, -4.0]])
        >>> tx = gradtx.scale_by_sm3(b1=0.0, eps=0.0)
        >>> updates, state = tx.update(g, tx.init(g))
        >>> print(updates)
        [[ 1.  0.]
         [ 0. -1.]]
        >>> print(*state.mu)
        [ 9. 16.] [ 9. 16.]
    """
    return lift(SM3, b1=b1, b2=b2, eps=eps)
