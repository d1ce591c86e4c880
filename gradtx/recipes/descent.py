"""Descent along the gradient, its momentum, its sign, or Newton's direction."""

from __future__ import annotations

from typing import Literal

from jax.typing import DTypeLike
from optax import GradientTransformationExtraArgs as ExtraArgs
from optax import ScalarOrSchedule

from gradtx.arguments import DECAY, KEPT, Range, check_flag, check_hyperparameter
from gradtx.compose.sequence import chain, identity
from gradtx.kernels.curvature import scale_by_newton
from gradtx.kernels.momentum import ema, trace
from gradtx.kernels.scale import scale_by_learning_rate, weight_decay_of
from gradtx.kernels.sign import scale_by_lion, scale_by_sign
from gradtx.select import Decay, Mask


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    *,
    dampening: ScalarOrSchedule = 0.0,
) -> ExtraArgs:
    """Stochastic gradient descent, optionally with momentum.

        u = -learning_rate * g
        or with momentum
        v <- momentum * v + (1 - dampening) * g
        u = -learning_rate * v
        or with nesterov
        u = -learning_rate * (momentum * v + (1 - dampening) * g)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        momentum: the decay rate of the momentum, in [-1, 1]; None: no momentum.
        nesterov: whether to use Nesterov momentum.
        accumulator_dtype: the storage dtype of the momentum; None: the parameter's, at least
            float32.
        dampening: the share of the gradient that is left out, in [0, 1). Equal to momentum it makes
            v a low-pass filter. (PyTorch has no dampening in its first step, like the schedule
            `lambda count: jnp.where(count == 0, 0.0, dampening)`.)

    Returns:
        The chain of `trace` (if there is momentum) and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Robbins & Monro 1951; Polyak 1964, equation (9); Sutskever et al. 2013, equations (1) to
        (4).

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.sgd(0.5, momentum=0.9)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.750
    """
    nesterov = check_flag("sgd", "nesterov", nesterov)
    if momentum is None:
        check_hyperparameter(
            "sgd", "dampening", dampening, Range("0 without momentum", lambda value: value == 0)
        )
        direction = identity()
    else:
        kept = check_hyperparameter("sgd", "momentum", momentum, KEPT)
        direction = trace(kept, nesterov, accumulator_dtype, dampening=dampening)
    return chain(direction, scale_by_learning_rate(learning_rate))


def sign_sgd(
    learning_rate: ScalarOrSchedule,
) -> ExtraArgs:
    """Gradient descent by the sign of the gradient.

        u = -learning_rate * sign(g)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.

    Returns:
        The chain of `scale_by_sign` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Bernstein et al. 2018, "signSGD: compressed optimisation for non-convex
        problems", Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.sign_sgd(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def signum(
    learning_rate: ScalarOrSchedule,
    beta: ScalarOrSchedule = 0.9,
    accumulator_dtype: DTypeLike | None = None,
) -> ExtraArgs:
    """Gradient descent by the sign of the momentum.

        m <- beta * m + (1 - beta) * g
        u = -learning_rate * sign(m)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        beta: the decay rate of the momentum, in [0, 1).
        accumulator_dtype: the storage dtype of the average; None: the parameter's, at least
            float32.

    Returns:
        The chain of `ema`, `scale_by_sign` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Bernstein et al. 2018, "signSGD: compressed optimisation for non-convex
        problems", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.signum(0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.500
    """
    beta = check_hyperparameter("signum", "beta", beta, DECAY)
    return chain(
        ema(beta, debias=False, accumulator_dtype=accumulator_dtype),
        scale_by_sign(),
        scale_by_learning_rate(learning_rate),
    )


def lion(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Mask | None = None,
    *,
    decay: Decay = "all",
) -> ExtraArgs:
    """Lion: the sign of an interpolated momentum, with decoupled weight decay.

        c = b1 * m + (1 - b1) * g
        m <- b2 * m + (1 - b2) * g
        u = -learning_rate * (sign(c) + weight_decay * p)

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule.
        b1: the weight of the momentum in the direction, in [0, 1).
        b2: the decay rate of the momentum, in [0, 1).
        mu_dtype: the storage dtype of the first moment; None: the parameter's, at least float32.
        weight_decay: the strength of the weight decay, >= 0, multiplied by the learning rate.
        mask: the leaves to decay: a tree of booleans, a function of the parameters that returns
            one, or a `gradtx.select(...)`; None: all leaves.
        decay: the leaves to decay if there is no mask: "all", or "matrices" for those of
            `select.matrices`.

    Returns:
        The chain of `scale_by_lion`, `add_decayed_weights` and `scale_by_learning_rate`.

    Raises:
        ValueError: if an argument lies outside its range.

    Source:
        Chen et al. 2023, "Symbolic discovery of optimization algorithms", Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = jnp.array(2.0)
        >>> tx = gradtx.lion(0.5, weight_decay=0.5)
        >>> updates, state = tx.update(jnp.array(0.5), tx.init(params), params)
        >>> print(f"{gradtx.apply_updates(params, updates):.3f}")
        1.000
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        weight_decay_of("lion", weight_decay, mask, decay=decay),
        scale_by_learning_rate(learning_rate),
    )


def newton(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    solver: Literal["dense", "cg"] = "dense",
    damping: ScalarOrSchedule = 0.0,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
) -> ExtraArgs:
    """Newton's method, optionally damped.

        u = -learning_rate * (H + damping * I)^-1 g

    Args:
        learning_rate: the step size; a number, a scalar array or a schedule. At 1 a
            quadratic is solved in one step.
        solver: "dense" forms the Hessian H; "cg" runs conjugate gradients on Hessian-vector
            products, never forms H, and needs H + damping * I to be positive definite.
        damping: added to the diagonal, >= 0. With 0 it is Newton's step; larger values approach a
            short gradient step.
        tolerance: "cg" stops once the norm of the residual is below this fraction of that of the
            gradient, >= 0.
        max_iterations: "cg" stops after this many steps, >= 1; None: ten times the number of
            parameters.

    Returns:
        The chain of `scale_by_newton` and `scale_by_learning_rate`. Its update needs the loss:
        `update(grads, state, params, value_fn=loss)`.

    Raises:
        ValueError: if an argument lies outside its range; in `update`, if `params` or `value_fn`
            is missing.

    Source:
        Nocedal & Wright 2006, "Numerical optimization", equation (3.30) and Algorithm 5.2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> loss = lambda x: 3.0 * jnp.sum((x - 1.0) ** 2)
        >>> tx = gradtx.newton(solver="cg")
        >>> x = jnp.array([5.0, -7.0])
        >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
        >>> print(gradtx.apply_updates(x, updates))
        [1. 1.]
    """
    return chain(
        scale_by_newton(
            solver=solver, damping=damping, tolerance=tolerance, max_iterations=max_iterations
        ),
        scale_by_learning_rate(learning_rate),
    )
