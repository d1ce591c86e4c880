"""Step sizes from the distance travelled, over the gradients seen so far: DoG and DoWG."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from optax import ScalarOrSchedule
from optax.contrib import DoGState, DoWGState

from gradtx import norms
from gradtx.arguments import check
from gradtx.kernel import ANY_NUMBER, NON_NEGATIVE, POSITIVE, Kernel, Scalar, Slot, state_class
from gradtx.kernels.arithmetic import finite_sum, quotient
from gradtx.lengths import Length, clip_factor
from gradtx.lift import ScheduledState, lift
from gradtx.messages import shown

ScaleByDistanceOverGradientsState = state_class(optax.scale_by_distance_over_gradients())

_FIRST_STEPS = ("distance", "learning_rate", "heuristic")


def _norm(g):
    return norms.length_of_leaves(g)


def _limited(length: Length) -> tuple[jax.Array, jax.Array]:
    """The squared norm of a gradient, and what to multiply it by so that it has that norm.

    It is 1, but for a gradient whose squared norm its dtype cannot hold: that counts as one whose
    squared norm leaves room for a sum.
    """
    largest = 2.0 ** (jnp.finfo(length.size.dtype).maxexp // 2 - 2)
    shrink = clip_factor(length, largest)
    is_within = length.is_at_most(largest)
    squared = jnp.square(jnp.minimum(length.norm, largest))
    return squared, jnp.where(is_within, shrink, shrink * length.unit)


def _sum_of_squares(x):
    return jnp.sum(norms.abs_squared(x))


def _squared_distance(g, p, init_params):
    return norms.sum_of(_sum_of_squared_differences, p, init_params)


def _sum_of_squared_differences(x, y):
    return _sum_of_squares(x - y)


def _stretch(g, *, init_params, length, shrink):
    # One after the other, because their product may underflow.
    return length * (shrink * g), init_params


def _dog_scalars(
    *, is_init_step, max_dist, sum_sq_norm_grads, squared_distance, norm, kind, first, eps
):
    squared_norm, shrink = _limited(norm)
    max_dist = jnp.maximum(max_dist, lax.sqrt(squared_distance))
    total = finite_sum(sum_sq_norm_grads, squared_norm)
    length = quotient(max_dist, lax.sqrt(total + eps))
    if kind == "learning_rate":
        # While the gradient is zero nothing moves, and there is no distance to scale by.
        length = jnp.where(is_init_step | (max_dist == 0), first, length)
    return {
        "is_init_step": jnp.zeros_like(is_init_step),
        "max_dist": max_dist,
        "sum_sq_norm_grads": total,
        "length": length,
        "shrink": shrink,
    }


DOG = Kernel(
    "scale_by_dog",
    _stretch,
    slots=(Slot("init_params", fill="p"),),
    scalars=(
        Scalar("is_init_step", fill=True, dtype=bool),
        Scalar("max_dist", fill="first_distance"),
        Scalar("sum_sq_norm_grads"),
    ),
    scalar_step=_dog_scalars,
    factors=("length", "shrink"),
    measures={"squared_distance": _squared_distance, "norm": _norm},
    hyperparameters={"first": POSITIVE, "first_distance": NON_NEGATIVE, "eps": NON_NEGATIVE},
    options=("kind",),
    state=DoGState,
    degree=0,
    hidden="finds its own step size",
    source="Ivgi et al. 2023, section 2",
)


def scale_by_dog(
    init_step: tuple[str, ArrayLike] = ("heuristic", 1e-6), eps: ScalarOrSchedule = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """DoG: scale by the largest distance from the start so far, over the norm of all gradients.

        r_t = max(r_{t-1}, ||p_t - p_0||)
        G_t = G_{t-1} + ||g_t||^2
        u_t = r_t / sqrt(G_t + eps) * g_t

    Norms are taken over the whole tree.

    Args:
        init_step: how the first step is found, and its number > 0: ("distance", r_0); ("heuristic",
            alpha), for r_0 = alpha * (1 + ||p_0||); ("learning_rate", eta), for u = eta * g until p
            has moved, and r_0 = 0. optax uses eta in the first step only, and never moves again if
            its gradient is zero.
        eps: added to the denominator inside the root, >= 0; a number, a scalar array or a schedule.

    Returns:
        The transformation, with the state
        `DoGState(is_init_step, init_params, max_dist, sum_sq_norm_grads)`; its update needs
        `params`.

    Raises:
        ValueError: if `init_step` is not such a pair, or a number lies outside its range.

    Source:
        Ivgi, Hinder & Carmon 2023, "DoG is SGD's best friend", equation (DoG) and section 4.1.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.kernels.distance import scale_by_dog
        >>> params = jnp.array([4.0])
        >>> tx = scale_by_dog(("distance", 0.5), eps=0.0)
        >>> print(tx.update(jnp.array([-2.0]), tx.init(params), params)[0])
        [-0.5]
    """
    owner = "scale_by_dog"
    is_pair = isinstance(init_step, tuple | list) and len(init_step) == 2
    if not is_pair or init_step[0] not in _FIRST_STEPS:
        raise ValueError(
            f"{owner}: init_step must be a pair of one of {_FIRST_STEPS} and a number, got "
            f"{shown(init_step)}"
        )
    kind, first = init_step
    check(owner, "init_step", first, POSITIVE)
    distance = 0.0 if kind == "learning_rate" else first
    tx = lift(DOG, kind=kind, first=first, first_distance=distance, eps=eps)
    return _started_in_proportion(tx) if kind == "heuristic" else tx


def _dowg_scalars(*, estim_sq_dist, weighted_sq_norm_grads, squared_distance, norm, eps):
    squared_norm, shrink = _limited(norm)
    squared = jnp.maximum(estim_sq_dist, squared_distance)
    weighted = finite_sum(weighted_sq_norm_grads, squared * squared_norm)
    return {
        "estim_sq_dist": squared,
        "weighted_sq_norm_grads": weighted,
        "length": quotient(squared, lax.sqrt(weighted) + eps),
        "shrink": shrink,
    }


DOWG = Kernel(
    "scale_by_dowg",
    _stretch,
    slots=(Slot("init_params", fill="p"),),
    scalars=(Scalar("weighted_sq_norm_grads"), Scalar("estim_sq_dist", fill="first")),
    scalar_step=_dowg_scalars,
    factors=("length", "shrink"),
    measures={"squared_distance": _squared_distance, "norm": _norm},
    hyperparameters={"first": POSITIVE, "eps": NON_NEGATIVE},
    state=DoWGState,
    degree=0,
    hidden="finds its own step size",
    source="Khaled et al. 2023, Algorithm 1",
)


def scale_by_dowg(
    init_estim_sq_dist: ArrayLike | None = None, eps: ScalarOrSchedule = 1e-4
) -> optax.GradientTransformationExtraArgs:
    """DoWG: DoG with gradients weighted by the distance at which they were taken.

        r_t = max(r_{t-1}, ||p_t - p_0||)
        v_t = v_{t-1} + r_t^2 * ||g_t||^2
        u_t = r_t^2 / (sqrt(v_t) + eps) * g_t

    Norms are taken over the whole tree.

    Args:
        init_estim_sq_dist: r_0^2, > 0; None: the value of `eps`.
        eps: added to the denominator outside the root, >= 0; a number, a scalar array or, with
            init_estim_sq_dist, a schedule. The paper has none; as r_0^2 it must be > 0.

    Returns:
        The transformation, with the state
        `DoWGState(init_params, weighted_sq_norm_grads, estim_sq_dist)`, r^2 in `estim_sq_dist`; its
        update needs `params`.

    Raises:
        ValueError: if a number lies outside its range.

    Source:
        Khaled, Mishchenko & Jin 2023, "DoWG unleashed", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.kernels.distance import scale_by_dowg
        >>> params = jnp.array([4.0])
        >>> tx = scale_by_dowg(0.25, eps=0.0)
        >>> print(tx.update(jnp.array([-2.0]), tx.init(params), params)[0])
        [-0.5]
    """
    owner = "scale_by_dowg"
    first = eps if init_estim_sq_dist is None else init_estim_sq_dist
    check(owner, "eps" if init_estim_sq_dist is None else "init_estim_sq_dist", first, POSITIVE)
    return lift(DOWG, first=first, eps=eps)


def _layer_distance(g, *, p, max_dist, grad_sum_of_squares, init_params, eps, global_scale):
    max_dist = jnp.maximum(max_dist, lax.sqrt(_sum_of_squared_differences(p, init_params)))
    total = grad_sum_of_squares + _sum_of_squares(g)
    length = global_scale * quotient(max_dist, lax.sqrt(total[0] + eps))
    return length * g, max_dist, total, init_params


LAYERWISE_DOG = Kernel(
    "scale_by_distance_over_gradients",
    _layer_distance,
    slots=(
        Slot("max_dist", fill="reps_rel", real=True, non_negative=True, shape=lambda shape: ()),
        Slot("grad_sum_of_squares", real=True, non_negative=True, shape=lambda shape: (1,)),
        Slot("init_params", fill="p", dtype_argument="param_dtype"),
    ),
    hyperparameters={"reps_rel": POSITIVE, "eps": NON_NEGATIVE, "global_scale": ANY_NUMBER},
    state=ScaleByDistanceOverGradientsState,
    elementwise=False,
    degree=0,
    hidden="finds its own step size",
    source="Ivgi et al. 2023, section 4",
    bounded="norm",
)


def scale_by_distance_over_gradients(
    reps_rel: ArrayLike = 1e-6,
    eps: ScalarOrSchedule = 1e-8,
    param_dtype: DTypeLike | None = jnp.float32,
    global_scale: ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Layer-wise DoG: DoG with a distance and a sum of gradients for each leaf.

        r_t = max(r_{t-1}, ||p_t - p_0||),    r_0 = reps_rel * (1 + ||p_0||)
        G_t = G_{t-1} + ||g_t||^2
        u_t = global_scale * r_t / sqrt(G_t + eps) * g_t

    Norms are taken over one leaf.

    Args:
        reps_rel: the initial distance relative to the size of the leaf, > 0. 1e-4 is recommended
            for networks with batch normalization, 1e-6 for others.
        eps: added to the denominator inside the root, >= 0; a number, a scalar array or a schedule.
        param_dtype: the storage dtype of p_0; None: the parameter's, at least float32, which
            complex parameters need.
        global_scale: any number but NaN; -1 turns the direction of ascent into one of descent.

    Returns:
        The transformation, with the state
        `ScaleByDistanceOverGradientsState(max_dist, grad_sum_of_squares, init_params)`; its update
        needs `params`.

    Raises:
        ValueError: if a number lies outside its range, or `param_dtype` cannot hold a parameter.

    Source:
        Ivgi, Hinder & Carmon 2023, "DoG is SGD's best friend", section 4 (L-DoG).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([1.0])
        >>> tx = gradtx.scale_by_distance_over_gradients(reps_rel=0.25, eps=0.0)
        >>> print(tx.update(jnp.array([-2.0]), tx.init(params), params)[0])
        [-0.5]
    """
    reps_rel = check("scale_by_distance_over_gradients", "reps_rel", reps_rel, POSITIVE)
    tx = lift(
        LAYERWISE_DOG,
        dtypes={"init_params": param_dtype},
        reps_rel=reps_rel,
        eps=eps,
        global_scale=global_scale,
    )
    return _started_in_proportion(tx)


def _started_in_proportion(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The transformation with initial distances relative to 1 plus the norm of the parameters."""

    def init(params: Any) -> Any:
        return _in_proportion(tx.init(params))

    return optax.GradientTransformationExtraArgs(init, tx.update)


def _in_proportion(state: Any) -> Any:
    if isinstance(state, ScheduledState):
        return state._replace(inner_state=_in_proportion(state.inner_state))

    def distance_of(share: jax.Array, start: Any) -> jax.Array:
        return share * (1 + norms.norm_of_leaves(jax.tree.leaves(start)).astype(share.dtype))

    return state._replace(max_dist=jax.tree.map(distance_of, state.max_dist, state.init_params))
