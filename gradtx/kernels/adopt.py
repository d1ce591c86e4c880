"""Gradients divided by the size of earlier ones: ADOPT and ACProp.

A size that does not include the gradient that it divides is independent of it, so that the mean of
the quotient has the direction of the mean gradient, whatever the decay rate of the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from gradtx.arguments import check_flag
from gradtx.kernel import DECAY, NON_NEGATIVE, Kernel, Slot
from gradtx.kernels.adam import ADAM_RANGES
from gradtx.kernels.arithmetic import debias, safe_divide
from gradtx.lift import lift
from gradtx.messages import for_static, shown
from gradtx.norms import abs_squared


def fourth_root(step: jax.Array) -> Any:
    """step^(1/4): ADOPT's bound on the normalized gradient."""
    return step**0.25


def _adopt(g, *, mu, nu, t, b1, b2, eps, clip_value_fn, nesterov):
    is_first = t == 1
    r = safe_divide(g, jnp.maximum(lax.sqrt(nu), eps))
    if jnp.iscomplexobj(r):  # keeps its direction
        r = jnp.sign(r) * jnp.minimum(jnp.abs(r), clip_value_fn)
    else:
        r = jnp.clip(r, -clip_value_fn, clip_value_fn)
    mu = jnp.where(is_first, mu, b1 * mu + (1 - b1) * r)
    ahead = b1 * mu + (1 - b1) * r if nesterov else mu
    square = abs_squared(g)
    nu = jnp.where(is_first, square, b2 * nu + (1 - b2) * square)
    return jnp.where(is_first, jnp.zeros_like(g), ahead), mu, nu


ADOPT = Kernel(
    "scale_by_adopt",
    _adopt,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True)),
    hyperparameters={
        "b1": DECAY,
        "b2": DECAY,
        "eps": NON_NEGATIVE,
        "clip_value_fn": NON_NEGATIVE,
    },
    options=("nesterov",),
    state=optax.ScaleByAdamState,
    degree=0,
    source="Taniguchi et al. 2024, Algorithm 2",
    bounded="squares",
)


def scale_by_adopt(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], Any] = fourth_root,
) -> optax.GradientTransformationExtraArgs:
    """Average gradients, each divided by the root mean square of those before it: ADOPT's scaling.

        r = clip(g / max(sqrt(v), eps), -c_t, c_t)
        m <- b1 * m + (1 - b1) * r
        v <- b2 * v + (1 - b2) * g^2
        u = m,    or with nesterov    u = b1 * m + (1 - b1) * r

    The first gradient only sets v = g^2; its update is zero.

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
        b2: the decay rate of the second moment, in [0, 1).
        eps: the lower bound of the denominator, >= 0.
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        nesterov: whether to use Nesterov momentum.
        use_clipping: whether to bound r. A complex number is bounded in modulus.
        clip_value_fn: function from the number of gradients before this one to the bound c_t.

    Returns:
        The transformation, with the state `ScaleByAdamState(count, mu, nu)`.

    Raises:
        ValueError: if an argument lies outside its range, or `clip_value_fn` is not a function.

    Source:
        Taniguchi et al. 2024, "ADOPT: modified Adam can converge with any beta_2 with the optimal
        rate", Algorithm 2, and its clipped form with the bound t^(1/4).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_adopt(b1=0.0)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (4.0, 2.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> print(updates)
        [0.5]
    """
    use_clipping = check_flag("scale_by_adopt", "use_clipping", use_clipping)
    if not callable(clip_value_fn):
        raise ValueError(
            f"scale_by_adopt: clip_value_fn must be a function, got {shown(clip_value_fn)}"
            f"{for_static('clip_value_fn', clip_value_fn)}"
        )
    return lift(
        ADOPT,
        dtypes={"mu": mu_dtype},
        b1=b1,
        b2=b2,
        eps=eps,
        clip_value_fn=clip_value_fn if use_clipping else math.inf,
        nesterov=check_flag("scale_by_adopt", "nesterov", nesterov),
    )


def _acprop(g, *, mu, nu, t, b1, b2, eps, eps_root):
    is_first = t == 1
    # At the first step there is no size yet, but the correction must not be NaN.
    size = lax.sqrt(jnp.where(is_first, jnp.ones_like(nu), debias(nu, b2, jnp.maximum(t - 1, 1))))
    mu = b1 * mu + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * abs_squared(g - mu) + eps_root
    return safe_divide(g, size + eps), mu, nu


ACPROP = Kernel(
    "scale_by_acprop",
    _acprop,
    slots=(Slot("mu"), Slot("nu", real=True, non_negative=True)),
    hyperparameters=ADAM_RANGES,
    state=optax.ScaleByBeliefState,
    degree="between",
    source="Zhuang et al. 2021, Algorithm 2",
    bounded="differences",
)


def scale_by_acprop(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
) -> optax.GradientTransformationExtraArgs:
    """Divide the gradient by the deviation of earlier ones from their average: ACProp's scaling.

        u = g / (sqrt(s_hat) + eps),    s_hat = s / (1 - b2^(t-1)),    1 in the first step
        m <- b1 * m + (1 - b1) * g
        s <- b2 * s + (1 - b2) * (g - m)^2 + eps_root

    Args:
        b1: the decay rate of the first moment, in [0, 1); a number, a scalar array or a schedule.
            With 0 there is no deviation, and s is eps_root only.
        b2: the decay rate of the squared deviation, in [0, 1).
        eps: added to the denominator outside the root, >= 0.
        eps_root: added to s in every step, >= 0.

    Returns:
        The transformation, with the state `ScaleByBeliefState(count, mu, nu)`, s in `nu`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Zhuang et al. 2021, "Momentum centering and asynchronous update for adaptive gradient
        methods", Algorithm 2. The first step is g / (1 + eps), as in optax. With the paper's
        s_0 = 0 it would be g / eps; in the authors' code it is g. The other steps of that code are
        the same with rectify=False and eps_root = eps; by default it rectifies them, and averages
        the first ones, as RAdam does. optax measures the deviation from the m before this gradient,
        which is larger by the factor 1 / b1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_acprop(b1=0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (4.0, 2.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        ...     print(f"{updates[0]:.3f}")
        4.000
        1.000
    """
    return lift(ACPROP, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
