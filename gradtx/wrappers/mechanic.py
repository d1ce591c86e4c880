"""Mechanic: a scale for the updates of any optimizer, tuned while it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from optax import ScalarOrSchedule
from optax.contrib import MechanicState

from gradtx import norms
from gradtx.arguments import (
    NON_NEGATIVE,
    POSITIVE,
    check,
    check_flag,
    check_hyperparameter,
    check_static,
    evaluate,
)
from gradtx.bounds import bounded_each
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import as_transformation
from gradtx.effect import Effect
from gradtx.inputs import check_given
from gradtx.kernels.arithmetic import safe_divide
from gradtx.leaves import Aligned, equation, map_parameters, parameters_of
from gradtx.wrappers.branches import widened_copy
from gradtx.wrappers.steps import in_step, is_step

_OWNER = "mechanize"
_LEARNING = Effect(
    degree=1, hidden="learns a factor", states=("base_optimizer_state",), alters=True
)


def mechanize(
    base_optimizer: optax.GradientTransformation,
    weight_decay: ScalarOrSchedule = 1e-2,
    eps: ArrayLike = 1e-8,
    s_init: ArrayLike = 1e-6,
    num_betas: int = 6,
    *,
    clip_rewards: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Multiply everything that an optimizer has added up by a scale that is learned: Mechanic.

        D = (p - p_0) / S,   S = sum_i s_i,   D = 0 at the start
        h = -<D, g + weight_decay * S * ||g|| * p / ||p||>
        for each i, with beta = 1 - 0.1^i,  i = 1 ... n:
            m <- max(beta * m, |h| + eps)
            v <- beta^2 * v + h^2
            r <- max(beta * r + s * h, 0)
            s <- (s_init / n * m + r) / (sqrt(v) + eps)
        p <- p_0 + S * (D + u),   with the new S and the optimizer's update u

    Products and norms are those of the whole tree; p / ||p|| is 0 where p is. Wrap the whole
    optimizer, with a learning rate of 1 or a schedule that starts there: nothing else may move the
    parameters. A call in which the optimizer takes no step, because an `apply_if_finite` inside
    skips it, changes nothing. With a `MultiSteps` inside, g is only the last of the gradients that
    it collects; put the `MultiSteps` outside.

    Args:
        base_optimizer: the transformation whose updates are scaled.
        weight_decay: lambda in the paper, >= 0; a number, a scalar array or a schedule.
        eps: added to the denominator, > 0.
        s_init: the initial scale, > 0; it should be far too small.
        num_betas: n, a whole number >= 1.
        clip_rewards: whether to clip h to [-m, m] in r, with the old m, and to take max(r, 0) only
            where s is formed, as later versions of the authors' code do, and optax.

    Returns:
        A transformation with the state `MechanicState(base_optimizer_state, count, r, m, v, s,
        x0)`; its update needs `params`. D is calculated from them at each step, so that steps that
        are lost to rounding are not part of it. (optax adds eps to S there, which lets a small D
        decay.)

    Raises:
        ValueError: if an argument lies outside its range, or `base_optimizer` is not a
            transformation; in `update`, if `params` is missing or has other shapes.

    Source:
        Cutkosky, Defazio & Mehta 2023, "Mechanic: a learning rate tuner", Algorithm 1. m has
        |h| + eps in place of |h|, as in the authors' code: otherwise s would be zero after the
        first step.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([2.0])
        >>> tx = gradtx.mechanize(gradtx.sgd(1.0), s_init=0.25)
        >>> print(tx.update(jnp.array([2.0]), tx.init(params), params)[0])
        [-0.5]
    """
    inner = as_transformation(_OWNER, "base_optimizer", base_optimizer)
    weight_decay = check_hyperparameter(_OWNER, "weight_decay", weight_decay, NON_NEGATIVE)
    eps = check(_OWNER, "eps", eps, POSITIVE)
    s_init = check(_OWNER, "s_init", s_init, POSITIVE)
    num_betas = check_static(_OWNER, "num_betas", num_betas)
    clip_rewards = check_flag(_OWNER, "clip_rewards", clip_rewards)

    def init(params: Any) -> MechanicState:
        zeros = jnp.zeros(num_betas, norms.widest(parameters_of(params)))
        return MechanicState(
            base_optimizer_state=inner.init(params),
            count=jnp.zeros([], jnp.int32),
            r=zeros,
            m=jnp.copy(zeros),
            v=jnp.copy(zeros),
            s=jnp.full_like(zeros, s_init),
            # The first step puts its parameters there.
            x0=map_parameters(widened_copy, params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        check_given(_OWNER, params)
        changes, inner_state = inner.update(updates, state.base_optimizer_state, params, **extra)
        step = is_step(state.base_optimizer_state, inner_state, changes)
        old = {name: getattr(state, name) for name in ("count", *"rmvs", "x0")}
        decay = evaluate(weight_decay, state.count) if callable(weight_decay) else weight_decay
        numbers = {"weight_decay": decay, "eps": eps, "s_init": s_init}
        tune = functools.partial(_tune, **numbers, clip_rewards=clip_rewards)

        def advance() -> Any:
            return _tuned(changes, updates, params, old, tune)

        new, kept = in_step(_OWNER, step, advance, changes, old)
        return new, MechanicState(base_optimizer_state=inner_state, **kept)

    return composed(
        _OWNER,
        (Part("", inner),),
        init,
        update,
        locality="tree",
        state=MechanicState,
        effect=_LEARNING,
    )


def _tuned(
    changes: Any, gradients: Any, params: Any, old: dict[str, Any], tune: Callable[..., Any]
) -> tuple[Any, dict[str, Any]]:
    """The scaled updates, and the new values of the tuner's state."""
    start = "the state's x0"
    named = {"updates": changes, "the gradients": gradients, "params": params, start: old["x0"]}
    aligned = Aligned(_OWNER, named)
    changed, uphill, points, starts = map(aligned.arrays, named)
    # Its products with distances are squared.
    uphill = bounded_each(uphill, "differences")
    # Training may start from other parameters than those that init was given.
    starts = [
        _first(x0, p, is_first=old["count"] == 0) for x0, p in zip(starts, points, strict=True)
    ]
    *tuned, stretch, scale = tune(
        *(old[name] for name in "rmvs"),
        norms.sum_of(_progress, uphill, starts, points),
        norms.sum_of(_pull, points, starts),
        norms.norm_of_leaves(uphill),
        norms.norm_of_leaves(points),
    )
    new = [
        _rescaled(*leaf, stretch=stretch, scale=scale)
        for leaf in zip(changed, points, starts, strict=True)
    ]
    kept = {"count": optax.safe_increment(old["count"]), "x0": aligned.tree_of(starts, start)}
    return aligned.tree_of(new), kept | dict(zip("rmvs", tuned, strict=True))


@equation()
def _first(start: jax.Array, p: jax.Array, *, is_first: jax.Array) -> jax.Array:
    return jnp.where(is_first, p, start)


def _progress(g: jax.Array, start: jax.Array, p: jax.Array) -> jax.Array:
    return norms.inner_product(g, start - p)


def _pull(p: jax.Array, start: jax.Array) -> jax.Array:
    return norms.inner_product(p, start - p)


@equation(0, 1, 2, 3, 3, 3)
def _tune(
    r, m, v, s, progress, pull, gradient_norm, norm, *, weight_decay, eps, s_init, clip_rewards
):
    """The new r, m, v and s, the factor of p - p_0 in the update, and that of the update."""
    # Calculated in float64, where 1 - 0.1^6 is exact enough.
    beta = jnp.asarray(1 - 0.1 ** np.arange(1, s.size + 1), s.dtype)
    scale = jnp.sum(s)
    # The inner product is divided, not p, because it is zero where ||p|| is.
    h = safe_divide(progress, scale) + weight_decay * gradient_norm * safe_divide(pull, norm)
    reward = beta * r + s * jnp.where(clip_rewards, jnp.clip(h, -m, m), h)
    rewards = jnp.maximum(reward, 0)
    m = jnp.maximum(beta * m, jnp.abs(h) + eps)
    v = beta**2 * v + h**2
    s = (s_init / s.size * m + rewards) / (jnp.sqrt(v) + eps)
    new_scale = jnp.sum(s)
    stretch = safe_divide(new_scale - scale, scale)
    return jnp.where(clip_rewards, reward, rewards), m, v, s, stretch, new_scale


@equation()
def _rescaled(
    change: jax.Array, p: jax.Array, start: jax.Array, *, stretch: jax.Array, scale: jax.Array
) -> jax.Array:
    """p_0 + S * (D + u) - p, with D from p and the old S."""
    return stretch * (p - start) + scale * change
