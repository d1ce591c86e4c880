"""Optimistic steps, which converge in games."""

from __future__ import annotations

from gradtx.testing.references.adams import scale_by_adam
from gradtx.testing.references.equation import descent, equation


@equation
def scale_by_optimistic_gradient(t, g, p, old, *, alpha=1.0, beta=1.0):
    """The direction (alpha + beta) g - beta g_old.

    Args:
        alpha: the weight of the gradient.
        beta: the weight of its change.

    Slots:
        `previous_gradient`: g.

    Source:
        Mokhtari et al. 2020, equation (8).
    """
    previous = g if t == 1 else old["previous_gradient"]
    return (alpha + beta) * g - beta * previous, {"previous_gradient": g}


@equation(like=scale_by_optimistic_gradient)
def optimistic_gradient_descent(t, g, p, old, *, learning_rate, **weights):
    """A step against `scale_by_optimistic_gradient`.

    Args:
        learning_rate: the factor of the step.
        **weights: see `scale_by_optimistic_gradient`.

    Slots:
        Those of `scale_by_optimistic_gradient`.

    Source:
        Mokhtari et al. 2020, equation (8).
    """
    return descent(scale_by_optimistic_gradient.step(t, g, p, old, **weights), learning_rate)


@equation
def optimistic_adam_v2(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    alpha=1.0,
    beta=1.0,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=True,
):
    """The optimistic step of Adam's direction in the gradient's place.

    Args:
        learning_rate: the factor of the step.
        alpha: the weight of the direction.
        beta: the weight of its change.
        b1: see `scale_by_adam`, as for the others.
        b2: the decay rate of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        nesterov: whether the first moment looks ahead.

    Slots:
        Those of `scale_by_adam`; `previous_gradient`: the direction.

    Source:
        Daskalakis et al. 2018, Algorithm 1, with two weights.
    """
    moments = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "nesterov": nesterov}
    r, adam = scale_by_adam.step(t, g, p, old, **moments)
    weights = {"alpha": alpha, "beta": beta}
    u, new = scale_by_optimistic_gradient.step(t, r, p, old, **weights)
    return -learning_rate * u, {**adam, **new}


@equation
def optimistic_adam(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    optimism=None,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=True,
):
    """`optimistic_adam_v2` with the weights `learning_rate` and `optimism`, and a step of 1.

    Args:
        learning_rate: the weight of the direction.
        optimism: the weight of its change; None: the learning rate.
        b1: see `scale_by_adam`, as for the others.
        b2: the decay rate of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        nesterov: whether the first moment looks ahead.

    Slots:
        Those of `optimistic_adam_v2`.

    Source:
        Daskalakis et al. 2018, Algorithm 1.
    """
    beta = learning_rate if optimism is None else optimism
    moments = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "nesterov": nesterov}
    weights = {"learning_rate": 1.0, "alpha": learning_rate, "beta": beta}
    return optimistic_adam_v2.step(t, g, p, old, **weights, **moments)
