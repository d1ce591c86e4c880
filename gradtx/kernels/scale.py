"""Scaling and shifting: learning rates, weight decay, centering."""

from __future__ import annotations

import math
from dataclasses import replace

import optax
from optax import ScalarOrSchedule

from gradtx.arguments import check_flag
from gradtx.compose.groups import masked_for
from gradtx.compose.sequence import identity
from gradtx.kernel import ANY_NUMBER, NON_NEGATIVE, Kernel, state_class
from gradtx.kernels.unitwise import as_axes
from gradtx.lift import lift
from gradtx.messages import shown
from gradtx.norms import mean
from gradtx.select import Decay, Mask, decayed_leaves


def _scale(g, *, step_size):
    return step_size * g


SCALE = Kernel(
    "scale",
    _scale,
    hyperparameters={"step_size": ANY_NUMBER},
    degree=1,
    sense="factor",
    factor="step_size",
    rate="step_size",
)
SCALE_BY_SCHEDULE = replace(SCALE, name="scale_by_schedule")


def scale(step_size: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Multiply the updates by a number.

        u = step_size * g

    Args:
        step_size: the factor; a number, a scalar array or a schedule.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if `step_size` is NaN or not a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale(-0.5)
        >>> updates, _ = tx.update({"w": jnp.array([2.0, 4.0])}, tx.init(()))
        >>> print(updates["w"])
        [-1. -2.]
    """
    return lift(SCALE, step_size=step_size)


def scale_by_schedule(step_size_fn: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiply the updates by a schedule's value.

        u_t = step_size_fn(t - 1) * g_t,    t = 1, 2, ...

    Args:
        step_size_fn: a function of the number of steps already taken, which starts at 0.

    Returns:
        The transformation, with the state `ScaleByScheduleState(count)`.

    Raises:
        ValueError: if `step_size_fn` is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_schedule(lambda count: 1.0 / (1 + count))
        >>> state = tx.init(None)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array([6.0]), state)
        ...     print(updates)
        [6.]
        [3.]
    """
    if not callable(step_size_fn):
        raise ValueError(
            "scale_by_schedule: step_size_fn must be a function of the step, got "
            f"{shown(step_size_fn)}"
        )
    return lift(SCALE_BY_SCHEDULE, step_size=step_size_fn)


def _descend(g, *, learning_rate, flip_sign):
    return -learning_rate * g if flip_sign else learning_rate * g


LEARNING_RATE = Kernel(
    "scale_by_learning_rate",
    _descend,
    hyperparameters={"learning_rate": ANY_NUMBER},
    options=("flip_sign",),
    degree=1,
    sense=-1,
    factor="learning_rate",
)
ASCENDING_RATE = replace(LEARNING_RATE, sense=1)


def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Multiply the updates by minus the learning rate.

        u = -learning_rate * g

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule. A negative one
            ascends; None leaves the updates as they are.
        flip_sign: whether to multiply by -1 too, which turns ascent into descent.

    Returns:
        The transformation; its state is empty, or counts steps for a schedule.

    Raises:
        ValueError: if `learning_rate` is NaN or not a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.scale_by_learning_rate(0.5)
        >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(()))
        >>> print(updates)
        [-1.]
    """
    flip_sign = check_flag("scale_by_learning_rate", "flip_sign", flip_sign)
    if learning_rate is None:
        return identity()
    kernel = LEARNING_RATE if flip_sign else ASCENDING_RATE
    return lift(kernel, learning_rate=learning_rate, flip_sign=flip_sign)


WeightDecaySchedule = state_class(optax.add_decayed_weights(lambda count: 0.0 * count))


def _add_decayed_weights(g, *, p, weight_decay):
    return g + weight_decay * p


ADD_DECAYED_WEIGHTS = Kernel(
    "add_decayed_weights",
    _add_decayed_weights,
    hyperparameters={"weight_decay": ANY_NUMBER},
    scheduled_state=WeightDecaySchedule,
    degree=1,
    source="Loshchilov & Hutter 2019, Algorithm 2",
)
# Inside an optimizer, where a negative decay would let weights grow.
WEIGHT_DECAY = replace(ADD_DECAYED_WEIGHTS, hyperparameters={"weight_decay": NON_NEGATIVE})


def add_decayed_weights(
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> optax.GradientTransformationExtraArgs:
    """Add a multiple of the parameters to the updates: decoupled weight decay, or an L2 penalty.

        u = g + weight_decay * p

    After a preconditioner and before the learning rate it is AdamW's decay; before the
    preconditioner it is the gradient of weight_decay / 2 * ||p||^2.

    Args:
        weight_decay: the multiple of the parameters that is added to the updates; a number, a
            scalar array or a schedule. After a negative scale it must be negative to decay.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`. Those are kernels and embeddings, but neither biases nor scales.

    Returns:
        The transformation; its update needs `params`. The state is empty, or counts steps for a
        schedule, in a `MaskedState` if there is a mask.

    Raises:
        ValueError: if `weight_decay` is NaN or not a scalar, `decay` is neither of its values, or a
            mask is given with "matrices"; in `init` and `update`, if the mask does not fit.

    Source:
        Loshchilov & Hutter 2019, "Decoupled weight decay regularization", Algorithm 2, line 12.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
        >>> tx = gradtx.add_decayed_weights(0.1, mask=gradtx.select("kernel"))
        >>> zeros = {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}
        >>> updates, _ = tx.update(zeros, tx.init(params), params)
        >>> print(updates["kernel"], updates["bias"])
        [0.2] [0.]
    """
    tx = lift(ADD_DECAYED_WEIGHTS, weight_decay=weight_decay)
    return _decaying("add_decayed_weights", tx, "mask", mask, decay)


def weight_decay_of(
    owner: str,
    weight_decay: ScalarOrSchedule,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
    argument: str = "mask",
) -> optax.GradientTransformationExtraArgs:
    """`add_decayed_weights` inside an optimizer, where a negative decay would let weights grow.

    Args:
        owner: the optimizer, which opens the messages.
        weight_decay: a number >= 0, a scalar array or a schedule.
        mask: see `add_decayed_weights`.
        decay: see `add_decayed_weights`.
        argument: what the optimizer calls the mask.

    Returns:
        The transformation.

    Raises:
        ValueError: as `add_decayed_weights` does, and if `weight_decay` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.kernels.scale import weight_decay_of
        >>> tx = weight_decay_of("adamw", 0.5)
        >>> print(tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))[0])
        [0.5]
    """
    tx = lift(WEIGHT_DECAY, owner=owner, weight_decay=weight_decay)
    return _decaying(owner, tx, argument, mask, decay)


def _decaying(
    owner: str,
    tx: optax.GradientTransformationExtraArgs,
    argument: str,
    mask: Mask | None,
    decay: Decay,
) -> optax.GradientTransformationExtraArgs:
    """The weight decay of the leaves that these arguments choose."""
    mask = decayed_leaves(owner, decay, mask)
    return tx if mask is None else masked_for(owner, argument, tx, mask)


_LAYOUTS = ("jax", "torch")


def _centralize(g, *, axis, layout):
    if g.ndim < 2:
        return g
    if axis is None:
        axis = tuple(range(g.ndim - 1)) if layout == "jax" else tuple(range(1, g.ndim))
    if not all(-g.ndim <= a < g.ndim for a in axis):
        raise ValueError(f"centralize: axis {axis} does not fit an array of shape {g.shape}")
    number = max(math.prod(g.shape[a] for a in axis), 1)
    return g - mean(g, axis, number)


CENTRALIZE = Kernel(
    "centralize",
    _centralize,
    options=("axis", "layout"),
    elementwise=False,
    degree=1,
    source="Yong et al. 2020, equation (1)",
)


def centralize(
    *, axis: int | tuple[int, ...] | None = None, layout: str = "jax"
) -> optax.GradientTransformationExtraArgs:
    """Subtract the mean from the gradient of each unit's weights.

        u_i = g_i - mean(g_i)

    where g_i belongs to all weights of the output i: a column of a matrix of shape (in, out), or
    g[..., i] of a kernel of shape (height, width, in, out). So each unit's weights keep their sum.
    Vectors and scalars pass unchanged. The only weight of a unit, as in an array of shape (1, out),
    does not move, because its gradient is its own mean; exclude such arrays with `masked`.

    Args:
        axis: the axes that a unit's mean is taken over, in arrays of two or more axes; None: those
            of `layout`.
        layout: where the outputs are: "jax", on the last axis, as flax and haiku have them; or
            "torch", on the first, as in the authors' code, equinox, and optax, whose `centralize()`
            therefore averages a JAX kernel over its outputs.

    Returns:
        The transformation; its state is empty.

    Raises:
        ValueError: if `axis` is not made of integers or `layout` is unknown; in `update`, if an
            array of two or more axes does not have that `axis`.

    Source:
        Yong et al. 2020, "Gradient centralization", equation (1).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.centralize()
        >>> updates, _ = tx.update(jnp.array([[1.0, 5.0], [3.0, 5.0]]), tx.init(()))
        >>> print(updates)
        [[-1.  0.]
         [ 1.  0.]]
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"centralize: layout must be one of {_LAYOUTS}, got {shown(layout)}")
    return lift(CENTRALIZE, axis=as_axes("centralize", axis), layout=layout)
