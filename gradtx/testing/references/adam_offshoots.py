"""MADGRAD, MARS and Adam-mini."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.adams import scale_by_adam
from gradtx.testing.references.equation import descent, divide, equation, square


@equation
def scale_by_madgrad(t, g, p, old, *, learning_rate, momentum=0.9, eps=1e-6):
    """MADGRAD: p <- momentum p + (1 - momentum) z with z = x0 - s / (cbrt(v) + eps).

    Args:
        learning_rate: the weight of a gradient is learning_rate sqrt(t).
        momentum: the share of the old parameter.
        eps: added to the cube root.

    Slots:
        `s`: the weighted sum of the gradients; `grad_sum_sq`: v, that of |g|^2; `x0`: the start.

    Source:
        Defazio & Jelassi 2021, Algorithm 1.
    """
    x0 = p if t == 1 else old["x0"]
    weight = learning_rate * np.sqrt(t)
    s = old["s"] + weight * g
    v = old["grad_sum_sq"] + weight * square(g)
    z = x0 - divide(s, np.cbrt(v) + eps)
    c = 1 - momentum
    return (1 - c) * p + c * z - p, {"s": s, "grad_sum_sq": v, "x0": x0}


@equation(like=scale_by_madgrad)
def madgrad(t, g, p, old, *, learning_rate, weight_decay=0.0, **hyperparameters):
    """MADGRAD on the gradient of the loss with the penalty weight_decay ||p||^2 / 2.

    Args:
        learning_rate: see `scale_by_madgrad`.
        weight_decay: the factor of the penalty.
        **hyperparameters: see `scale_by_madgrad`.

    Slots:
        Those of `scale_by_madgrad`.

    Source:
        Defazio & Jelassi 2021, Algorithm 1.
    """
    g = g + weight_decay * p
    return scale_by_madgrad.step(t, g, p, old, learning_rate=learning_rate, **hyperparameters)


@equation
def scale_by_mars(t, g, p, old, *, b1=0.95, gamma=0.025, max_norm=1.0):
    """MARS's corrected gradient c = g + gamma b1 / (1 - b1) (g - g_old), no longer than max_norm.

    Args:
        b1: the decay rate of the average that follows.
        gamma: how much of the correction is used.
        max_norm: the greatest norm of a leaf.

    Slots:
        `previous_gradient`: g.

    Source:
        Yuan et al. 2024, Algorithm 1, in its approximate form.
    """
    change = g - old["previous_gradient"] if t > 1 else 0 * g
    c = g + gamma * b1 / (1 - b1) * change
    norm = np.sqrt(np.sum(square(c)))
    return c * max_norm / norm if norm > max_norm else c, {"previous_gradient": g}


@equation
def mars(
    t,
    g,
    p,
    old,
    *,
    learning_rate=3e-3,
    b1=0.95,
    b2=0.99,
    eps=1e-8,
    gamma=0.025,
    weight_decay=0.0,
):
    """MARS-AdamW: Adam's direction of the corrected gradient, with decoupled weight decay.

    Args:
        learning_rate: the factor of the step.
        b1: the decay rate of the first moment, also in the correction.
        b2: the decay rate of the second moment.
        eps: added to the root.
        gamma: see `scale_by_mars`.
        weight_decay: the decay of the weights.

    Slots:
        Those of `scale_by_mars` and of `scale_by_adam`.

    Source:
        Yuan et al. 2024, Algorithm 2.
    """
    c, new = scale_by_mars.step(t, g, p, old, b1=b1, gamma=gamma)
    r, moments = scale_by_adam.step(t, c, p, old, b1=b1, b2=b2, eps=eps)
    return descent((r, {**new, **moments}), learning_rate, p, weight_decay)


@equation
def scale_by_adamini(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, blocks=-1):
    """Adam-mini's direction: Adam's with one second moment per block.

    Args:
        b1: the decay rate of the first moment m.
        b2: the decay rate of v, the average over steps and over a block of |g|^2.
        eps: added to the root.
        eps_root: added under the root.
        blocks: -1: a column of a matrix is a block, and any other leaf; (): every leaf.

    Slots:
        `mu`: m; `nu`: v.

    Source:
        Zhang et al. 2024, Algorithm 1.
    """
    axis = 0 if np.ndim(g) == 2 and blocks == -1 else None
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * np.mean(square(g), axis, keepdims=True)
    return divide(m / (1 - b1**t), np.sqrt(v / (1 - b2**t) + eps_root) + eps), {"mu": m, "nu": v}


@equation(like=scale_by_adamini)
def adamini(t, g, p, old, *, learning_rate, weight_decay=1e-4, **moments):
    """Adam-mini with decoupled weight decay: -learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: the factor of the step.
        weight_decay: the decay of the weights.
        **moments: see `scale_by_adamini`.

    Slots:
        Those of `scale_by_adamini`.

    Source:
        Zhang et al. 2024, Algorithm 1.
    """
    return descent(scale_by_adamini.step(t, g, p, old, **moments), learning_rate, p, weight_decay)
