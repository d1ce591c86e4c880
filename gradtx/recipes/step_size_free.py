"""Optimizers that find their own step size, as chains; the others are kernels."""

from __future__ import annotations

from typing import Any

from jax.typing import ArrayLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import ANY_NUMBER, check_hyperparameter
from gradtx.compose.parts import Part, composed
from gradtx.compose.sequence import chain, identity
from gradtx.effect import Effect
from gradtx.inputs import describe_state
from gradtx.kernels.coin_betting import scale_by_cocob
from gradtx.kernels.distance import scale_by_dog, scale_by_dowg
from gradtx.kernels.polyak import scale_by_polyak
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.recipes.descent import sgd
from gradtx.select import Decay, Mask

# Its state has the parts in the order of optax.
_POLYAK_SGD = Effect(inside="all", states=(1, 0))


def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    init_step: tuple[str, ArrayLike] = ("heuristic", 1e-6),
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """DoG: descent by the largest distance from the start so far, over the norm of all gradients.

        r_t = max(r_{t-1}, ||p_t - p_0||)
        G_t = G_{t-1} + ||g_t||^2
        u_t = -learning_rate * r_t / sqrt(G_t + eps) * g_t

    The average of the parameters, as kept by `average_params`, converges best. The first steps must
    not be rounded away, or r never grows: parameters in bfloat16 need a larger `init_step` than the
    default, such as ("heuristic", 1e-2).

    Args:
        learning_rate: a factor of the step size; a number, a scalar array or a schedule.
        init_step: how the first step is found, and its number > 0: ("distance", r_0); ("heuristic",
            alpha), for r_0 = alpha * (1 + ||p_0||), where 1e-4 is recommended for networks with
            batch normalization; ("learning_rate", eta), for u = -eta * g until p has moved.
        eps: added to the denominator inside the root, >= 0.
        weight_decay: the multiple of the parameters that is added to the gradient, >= 0; None: no
            decay.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `add_decayed_weights` (if there is decay), `scale_by_dog` and
        `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Ivgi, Hinder & Carmon 2023, "DoG is SGD's best friend", equation (DoG).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([4.0])
        >>> tx = gradtx.dog(init_step=("distance", 0.5))
        >>> print(tx.update(jnp.array([-2.0]), tx.init(params), params)[0])
        [0.5]
    """
    return chain(
        _decay("dog", weight_decay, mask, decay),
        scale_by_dog(init_step, eps),
        scale_by_learning_rate(learning_rate),
    )


def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    init_estim_sq_dist: ArrayLike | None = None,
    eps: ScalarOrSchedule = 1e-4,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """DoWG: DoG with gradients weighted by the distance at which they were taken.

        r_t = max(r_{t-1}, ||p_t - p_0||)
        v_t = v_{t-1} + r_t^2 * ||g_t||^2
        u_t = -learning_rate * r_t^2 / (sqrt(v_t) + eps) * g_t

    Args:
        learning_rate: a factor of the step size; a number, a scalar array or a schedule.
        init_estim_sq_dist: r_0^2, > 0; None: the value of `eps`.
        eps: added to the denominator outside the root, >= 0. The paper has none; as r_0^2 it must
            be > 0.
        weight_decay: the multiple of the parameters that is added to the gradient, >= 0; None: no
            decay.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `add_decayed_weights` (if there is decay), `scale_by_dowg` and
        `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Khaled, Mishchenko & Jin 2023, "DoWG unleashed", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([4.0])
        >>> tx = gradtx.dowg(init_estim_sq_dist=0.25, eps=0.0)
        >>> print(tx.update(jnp.array([-2.0]), tx.init(params), params)[0])
        [0.5]
    """
    return chain(
        _decay("dowg", weight_decay, mask, decay),
        scale_by_dowg(init_estim_sq_dist, eps),
        scale_by_learning_rate(learning_rate),
    )


def _decay(
    owner: str, weight_decay: ScalarOrSchedule | None, mask: Mask | None, decay: Decay
) -> ExtraArgs:
    decaying = weight_decay_of(
        owner, 0.0 if weight_decay is None else weight_decay, mask, decay=decay
    )
    return identity() if weight_decay is None else decaying


def cocob(
    learning_rate: ScalarOrSchedule = 1.0,
    alpha: ScalarOrSchedule = 100.0,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """COCOB: bets of a share of all rewards so far on the sign of the next gradient.

        g <- learning_rate * (g + weight_decay * p)
        u = p_0 + theta / (L * max(G + L, alpha * L)) * (L + reward) - p

    with theta, L, G and reward as in `scale_by_cocob`.

    Args:
        learning_rate: a factor of the gradients; a number, a scalar array or a schedule. A constant
            factor only changes the weight of `eps`.
        alpha: roughly the number of steps for which the bets stay small, >= 0.
        eps: the initial value of L, the largest gradient so far, >= 0.
        weight_decay: the multiple of the parameters that is added to the gradient, >= 0.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `add_decayed_weights`, `scale_by_learning_rate` and `scale_by_cocob`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Orabona & Tommasi 2017, "Training deep networks without learning rates through coin
        betting", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([4.0])
        >>> tx = gradtx.cocob(alpha=1.0)
        >>> print(tx.update(jnp.array([-2.0]), tx.init(params), params)[0])
        [0.5]
    """
    return chain(
        weight_decay_of("cocob", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )


def polyak_sgd(
    max_learning_rate: ScalarOrSchedule = 1.0,
    scaling: ScalarOrSchedule = 1.0,
    f_min: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 0.0,
    variant: str = "sps",
) -> ExtraArgs:
    """Gradient descent with Polyak's step size.

        u = -scaling * min((f - f_min) / (||g||^2 + eps), max_learning_rate) * g

    With variant "sps+" a negative f - f_min counts as 0. (optax uses scaling * g in place of g in
    Polyak's formula, which divides by scaling where it should multiply.)

    Args:
        max_learning_rate: the largest step size before `scaling`, >= 0; a number, a scalar array
            or a schedule.
        scaling: a factor of the step size.
        f_min: the minimum of the loss, any number but NaN.
        eps: added to the squared norm, >= 0.
        variant: "sps" or "sps+".

    Returns:
        `scale_by_polyak` followed by `sgd`, with their states in the other order, as in optax. Its
        update needs `value`, the loss f at which g was computed.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `value` is missing.

    Source:
        Loizou et al. 2021, "Stochastic Polyak step-size for SGD", equation (3) with c = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array([3.0, 4.0])
        >>> tx = gradtx.polyak_sgd()
        >>> value, gradient = jnp.sum(params**2), 2 * params
        >>> print(tx.update(gradient, tx.init(params), params, value=value)[0])
        [-1.5 -2. ]
    """
    scaling = check_hyperparameter("polyak_sgd", "scaling", scaling, ANY_NUMBER)
    polyak = scale_by_polyak(f_min, max_learning_rate, eps, variant)
    descent = sgd(scaling)

    def init(params: Any) -> Any:
        return descent.init(params), polyak.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if not isinstance(state, tuple | list) or len(state) != 2:
            raise ValueError(
                f"polyak_sgd: expected the states of sgd and scale_by_polyak, got "
                f"{describe_state(state)}; gradtx.migrate carries over other states"
            )
        descent_state, polyak_state = state
        updates, polyak_state = polyak.update(updates, polyak_state, params, **extra)
        updates, descent_state = descent.update(updates, descent_state, params, **extra)
        return updates, (descent_state, polyak_state)

    parts = (Part("", polyak), Part("", descent))
    return composed("polyak_sgd", parts, init, update, effect=_POLYAK_SGD)
