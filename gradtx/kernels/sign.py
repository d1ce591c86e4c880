"""Steps by the sign of a direction: sign descent, Lion and Rprop."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx.arguments import check
from gradtx.kernel import DECAY, NON_NEGATIVE, PROPER_SHARE, Kernel, Range, Slot
from gradtx.lift import lift
from gradtx.messages import shown


def _sign(g):
    return jnp.sign(g)


SIGN = Kernel("scale_by_sign", _sign, degree=0, source="Bernstein et al. 2018, Algorithm 1")


def scale_by_sign() -> optax.GradientTransformationExtraArgs:
    """Replace each element by its sign.

        u = sign(g)

    Returns:
        The transformation; its state is empty.

    Source:
        Bernstein et al. 2018, "signSGD: compressed optimisation for non-convex problems",
        Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_sign()
        >>> print(tx.update(jnp.array([-3.0, 0.0, 0.2]), tx.init(None))[0])
        [-1.  0.  1.]
    """
    return lift(SIGN)


def _lion(g, *, mu, b1, b2, smooth_beta, mode):
    direction = b1 * mu + (1 - b1) * g
    mu = b2 * mu + (1 - b2) * g
    if mode == "smooth":
        return jnp.tanh(smooth_beta * direction), mu
    if mode == "refined":
        return jnp.where(jnp.abs(direction) < 1, direction, jnp.sign(direction)), mu
    return jnp.sign(direction), mu


LION = Kernel(
    "scale_by_lion",
    _lion,
    slots=(Slot("mu"),),
    hyperparameters={"b1": DECAY, "b2": DECAY, "smooth_beta": NON_NEGATIVE},
    options=("mode",),
    state=optax.ScaleByLionState,
    degree=0,
    source="Chen et al. 2023, Algorithm 2",
)
# A smooth or refined step is shorter where the momentum is small.
GRADED_LION = replace(LION, degree="between")


def scale_by_lion(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: DTypeLike | None = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Step by the sign of an interpolated momentum: Lion's direction.

        c = b1 * m + (1 - b1) * g
        m <- b2 * m + (1 - b2) * g
        u = sign(c)

    Args:
        b1: the weight of the momentum in the direction, in [0, 1); a number, a scalar array or a
            schedule.
        b2: the decay rate of the momentum, in [0, 1).
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        mode: "hard" takes sign(c), "smooth" tanh(smooth_beta * c), "refined" c itself where
            |c| < 1 and sign(c) elsewhere.
        smooth_beta: the steepness of "smooth", >= 0.

    Returns:
        The transformation, with the state `ScaleByLionState(count, mu)`.

    Raises:
        ValueError: if a number lies outside its range, or `mode` is unknown.

    Source:
        Chen et al. 2023, "Symbolic discovery of optimization algorithms", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_lion()
        >>> print(tx.update(jnp.array([-3.0, 0.2]), tx.init(jnp.zeros(2)))[0])
        [-1.  1.]
    """
    if mode not in ("hard", "smooth", "refined"):
        raise ValueError(
            f"scale_by_lion: mode must be 'hard', 'smooth' or 'refined', got {shown(mode)}"
        )
    return lift(
        LION if mode == "hard" else GRADED_LION,
        dtypes={"mu": mu_dtype},
        b1=b1,
        b2=b2,
        smooth_beta=smooth_beta,
        mode=mode,
    )


def _rprop(
    g, *, step_sizes, prev_updates, eta_minus, eta_plus, min_step_size, max_step_size
) -> tuple[jax.Array, jax.Array, jax.Array]:
    # Of complex numbers the part along the other one, so that a turn by 90 degrees is neither.
    agreement = jnp.real(jnp.sign(g) * jnp.conj(jnp.sign(prev_updates)))
    factor = jnp.where(agreement > 0, eta_plus, eta_minus)
    bounded = jnp.clip(factor * step_sizes, min_step_size, max_step_size)
    step_sizes = jnp.where(agreement == 0, step_sizes, bounded)
    direction = jnp.where(agreement < 0, 0.0, jnp.sign(g))
    # The next step needs the sign, which a step of size zero must not lose.
    kept = jnp.maximum(step_sizes, jnp.finfo(step_sizes.dtype).tiny) * direction
    return step_sizes * direction, step_sizes, kept


_GROWING = Range("> 1", lambda value: value > 1)


RPROP = Kernel(
    "scale_by_rprop",
    _rprop,
    slots=(
        Slot("step_sizes", fill="learning_rate", real=True, non_negative=True),
        Slot("prev_updates"),
    ),
    hyperparameters={
        "learning_rate": NON_NEGATIVE,
        "eta_minus": PROPER_SHARE,
        "eta_plus": _GROWING,
        "min_step_size": NON_NEGATIVE,
        "max_step_size": NON_NEGATIVE,
    },
    state=optax.ScaleByRpropState,
    degree=0,
    factor="learning_rate",
    hidden="changes its step sizes",
    hidden_later=True,
    source="Riedmiller & Braun 1993",
)


def scale_by_rprop(
    learning_rate: ScalarOrSchedule,
    eta_minus: ScalarOrSchedule = 0.5,
    eta_plus: ScalarOrSchedule = 1.2,
    min_step_size: ScalarOrSchedule = 1e-6,
    max_step_size: ScalarOrSchedule = 50.0,
) -> optax.GradientTransformationExtraArgs:
    """Step by the gradient's sign, with a size that grows while the sign stays the same: Rprop.

        where g_t * g_{t-1} > 0:   s <- eta_plus * s,     u = s * sign(g_t)
        where g_t * g_{t-1} < 0:   s <- eta_minus * s,    u = 0, g_t <- 0
        where g_t * g_{t-1} = 0:   u = s * sign(g_t)

    and each new s is clipped to [min_step_size, max_step_size].

    Args:
        learning_rate: the initial step size s, >= 0; a number, a scalar array or a schedule. A
            schedule is evaluated at step 0.
        eta_minus: the factor after a change of sign, in (0, 1).
        eta_plus: the factor while the sign stays the same, > 1.
        min_step_size: the smallest step, >= 0.
        max_step_size: the largest step, >= min_step_size.

    Returns:
        The transformation, with the state `ScaleByRpropState(step_sizes, prev_updates)`.

    Raises:
        ValueError: if an argument lies outside its range, or `min_step_size` exceeds
            `max_step_size`.

    Source:
        Riedmiller & Braun 1993, "A direct adaptive method for faster backpropagation learning: the
        RPROP algorithm", in the form without backtracking that sets the gradient to zero after a
        change of sign (iRprop-, Igel & Hüsken 2000), as in PyTorch. optax applies each update one
        step late; here the update belongs to its own gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_rprop(1.0)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (0.1, 7.0, -3.0, -2.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        ...     print(updates)
        [1.]
        [1.2]
        [0.]
        [-0.6]
    """
    smallest, largest = min_step_size, max_step_size
    if isinstance(smallest, int | float) and isinstance(largest, int | float):
        check(
            "scale_by_rprop",
            "max_step_size",
            largest,
            Range(f">= min_step_size = {smallest}", lambda value: value >= smallest),
        )
    return lift(
        RPROP,
        learning_rate=learning_rate,
        eta_minus=eta_minus,
        eta_plus=eta_plus,
        min_step_size=min_step_size,
        max_step_size=max_step_size,
    )
