"""Steps by the sign of a direction."""

from dataclasses import replace
from typing import Literal

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Slot
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
