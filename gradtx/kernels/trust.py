"""Steps whose length follows the size of each leaf's weights: trust ratios and block norms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax import ScalarOrSchedule

from gradtx import norms
from gradtx.kernel import ANY_NUMBER, NON_NEGATIVE, Kernel, PerLeaf
from gradtx.kernels.arithmetic import root_mean_square
from gradtx.kernels.scale import WeightDecaySchedule
from gradtx.lengths import Length, direction, multiplied
from gradtx.lift import lift


def _with_length(g: jax.Array, before: Length, after: Length, factor: Any) -> jax.Array:
    """Multiply g by factor * after / before, or by 1 where a norm is 0.

    The quotient of the norms could overflow where the result does not, so it is not computed.
    """
    is_zero = (before.size == 0) | (after.size == 0)
    return jnp.where(is_zero, g, multiplied(direction(g, before), after.times(factor)))


def _trust_ratio(g, *, p, min_norm, trust_coefficient, eps):
    g_length, p_length = (norms.length(x).at_least(min_norm) for x in (g, p))
    return _with_length(g, g_length.plus(eps), p_length, trust_coefficient)


TRUST_RATIO = Kernel(
    "scale_by_trust_ratio",
    _trust_ratio,
    hyperparameters={
        "min_norm": NON_NEGATIVE,
        "trust_coefficient": ANY_NUMBER,
        "eps": NON_NEGATIVE,
    },
    elementwise=False,
    degree=0,
    decay="keeps",
    source="You et al. 2017, equation (4)",
)


def scale_by_trust_ratio(
    min_norm: ScalarOrSchedule = 0.0,
    trust_coefficient: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Give each leaf's update the length of its weights: the trust ratio of LARS and LAMB.

        u = trust_coefficient * ||p|| / (||g|| + eps) * g
        u = g    where ||p|| or ||g|| is 0

    Args:
        min_norm: the lower bound of both norms, >= 0; a number, a scalar array or a schedule. It
            lets weights of zero grow.
        trust_coefficient: the length of an update relative to the weights.
        eps: added to the denominator, >= 0.

    Returns:
        The transformation; its update needs `params`. Its state is empty, or counts steps for a
        schedule.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks", equation
        (4); You et al. 2020, "Large batch optimization for deep learning: training BERT in 76
        minutes", Algorithm 2, without the function phi.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([0.0, 10.0])
        >>> tx = gradtx.scale_by_trust_ratio()
        >>> print(tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)[0])
        [6. 8.]
    """
    return lift(TRUST_RATIO, min_norm=min_norm, trust_coefficient=trust_coefficient, eps=eps)


def _local_rate(g, *, p, weight_decay, trust_coefficient, eps, decays, trusts):
    if not decays:
        weight_decay = 0.0
    decayed = g + weight_decay * p
    if not trusts:
        return decayed
    p_length = norms.length(p)
    bound = norms.length(g).and_also(p_length.times(weight_decay))
    return _with_length(decayed, bound.plus(eps), p_length, trust_coefficient)


LARS = Kernel(
    "lars",
    _local_rate,
    hyperparameters={
        "weight_decay": NON_NEGATIVE,
        "trust_coefficient": ANY_NUMBER,
        "eps": NON_NEGATIVE,
    },
    options=("decays", "trusts"),
    scheduled_state=WeightDecaySchedule,
    elementwise=False,
    degree=0,
    applies="trusts",
    decay="keeps",
    decay_applies="decays",
    source="You et al. 2017, equation (6)",
)


def scale_by_local_rate(
    weight_decay: ScalarOrSchedule,
    trust_coefficient: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    decays: PerLeaf,
    trusts: PerLeaf,
) -> optax.GradientTransformationExtraArgs:
    """Decay the weights and give each leaf its own learning rate, as LARS does.

        rate = trust_coefficient * ||p|| / (||g|| + weight_decay * ||p|| + eps)
        u = rate * (g + weight_decay * p)

    Args:
        weight_decay: the multiple of the parameters that is added to the gradient, >= 0; a number,
            a scalar array or a schedule.
        trust_coefficient: the length of an update relative to the weights.
        eps: added to the denominator, >= 0.
        decays: whether a leaf decays; elsewhere weight_decay is 0.
        trusts: whether a leaf has its own rate; elsewhere it is 1.

    Returns:
        The transformation; its update needs `params`. Its state is that of `add_decayed_weights`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks", equation
        (6) and Algorithm 1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx.kernel import PerLeaf
        >>> from gradtx.kernels.trust import scale_by_local_rate
        >>> everywhere = PerLeaf(lambda tree: jax.tree.map(lambda leaf: True, tree))
        >>> tx = scale_by_local_rate(1.0, 0.5, 0.0, everywhere, everywhere)
        >>> params = jnp.array([0.0, 2.0])
        >>> print(tx.update(jnp.array([2.0, 0.0]), tx.init(params), params)[0])
        [0.5 0.5]
    """
    return lift(
        LARS,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
        eps=eps,
        decays=decays,
        trusts=trusts,
    )


def _undo_growth(g, *, p, learning_rate):
    growth = lax.sqrt(1 + learning_rate**2)
    # growth - 1 without cancellation.
    return (g - learning_rate**2 / (1 + growth) * p) / growth


FROMAGE = Kernel(
    "fromage",
    _undo_growth,
    hyperparameters={"learning_rate": ANY_NUMBER},
    scheduled_state=WeightDecaySchedule,
    degree=1,
    factor=lambda learning_rate: 1 / math.hypot(1.0, learning_rate),
    moves=True,
    source="Bernstein et al. 2020, Algorithm 1",
)


def undo_growth(learning_rate: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Undo the growth of the weights by a perpendicular step: the last part of Fromage.

        u = (p + g) / sqrt(1 + learning_rate^2) - p

    Args:
        learning_rate: the length of a step relative to the weights; a number, a scalar array or a
            schedule.

    Returns:
        The transformation; its update needs `params`. Its state is that of `add_decayed_weights`.

    Raises:
        ValueError: if `learning_rate` is NaN or not a scalar.

    Source:
        Bernstein et al. 2020, "On the distance between two neural networks and the stability of
        learning", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.kernels.trust import undo_growth
        >>> params, step = jnp.array([4.0, 0.0]), jnp.array([0.0, 3.0])
        >>> tx = undo_growth(0.75)
        >>> updates, _ = tx.update(step, tx.init(params), params)
        >>> print(jnp.linalg.norm(params + updates))
        4.0
    """
    return lift(FROMAGE, learning_rate=learning_rate)


def _param_block_norm(g, *, p, min_scale):
    return multiplied(g, norms.length(p).at_least(min_scale))


PARAM_BLOCK_NORM = Kernel(
    "scale_by_param_block_norm",
    _param_block_norm,
    hyperparameters={"min_scale": NON_NEGATIVE},
    elementwise=False,
    degree=1,
    gain=True,
    source="Shazeer & Stern 2018, section 8",
)


def scale_by_param_block_norm(
    min_scale: ScalarOrSchedule = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    """Multiply each leaf's update by the norm of its weights.

        u = max(||p||, min_scale) * g

    Args:
        min_scale: the lower bound of the factor, >= 0; a number, a scalar array or a schedule. It
            lets weights of zero grow.

    Returns:
        The transformation; its update needs `params`. Its state is empty, or counts steps for a
        schedule.

    Raises:
        ValueError: if `min_scale` is negative, NaN or not a scalar.

    Source:
        Shazeer & Stern 2018, "Adafactor", section 8, "relative step size", with the norm in place
        of the root mean square.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([3.0, 4.0])
        >>> tx = gradtx.scale_by_param_block_norm()
        >>> print(tx.update(jnp.array([1.0, -2.0]), tx.init(params), params)[0])
        [  5. -10.]
    """
    return lift(PARAM_BLOCK_NORM, min_scale=min_scale)


def _param_block_rms(g, *, p, min_scale):
    return multiplied(g, root_mean_square(p).at_least(min_scale))


PARAM_BLOCK_RMS = replace(PARAM_BLOCK_NORM, name="scale_by_param_block_rms", step=_param_block_rms)


def scale_by_param_block_rms(
    min_scale: ScalarOrSchedule = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    """Multiply each leaf's update by the root mean square of its weights.

        u = max(RMS(p), min_scale) * g,    RMS(p) = sqrt(mean(p^2))

    Args:
        min_scale: the lower bound of the factor, >= 0; a number, a scalar array or a schedule. It
            lets weights of zero grow.

    Returns:
        The transformation; its update needs `params`. Its state is empty, or counts steps for a
        schedule.

    Raises:
        ValueError: if `min_scale` is negative, NaN or not a scalar.

    Source:
        Shazeer & Stern 2018, "Adafactor", section 8, "relative step size".

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.full(4, -2.0)
        >>> tx = gradtx.scale_by_param_block_rms()
        >>> print(tx.update(jnp.ones(4), tx.init(params), params)[0])
        [2. 2. 2. 2.]
    """
    return lift(PARAM_BLOCK_RMS, min_scale=min_scale)
