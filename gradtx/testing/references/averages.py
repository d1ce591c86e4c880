"""Averages of the iterates in place of a schedule."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import equation, square


def _schedule_free(t, u, p, old, learning_rate, warmup_steps, b1, weight_lr_power):
    """Equations (3) to (5); p is y, and u the direction there, x what y says of it."""
    z = old.get("z", p)
    x = (p - (1 - b1) * z) / b1
    rate = learning_rate * (1.0 if warmup_steps is None else min((t - 1) / warmup_steps, 1))
    z = z - rate * u
    largest = max(old.get("max_lr", 0.0), rate)
    weight = largest**weight_lr_power
    total = old.get("weight_sum", 0.0) + weight
    c = weight / total if total else 0.0
    x = (1 - c) * x + c * z
    y = (1 - b1) * z + b1 * x
    return y - p, {"x": x, "z": z, "max_lr": largest, "weight_sum": total}


@equation
def schedule_free_sgd(
    t,
    g,
    p,
    old,
    *,
    learning_rate=1.0,
    warmup_steps=None,
    b1=0.9,
    weight_decay=None,
    weight_lr_power=2.0,
):
    """Schedule-free gradient descent, of which p is the point y.

        z <- z - rate (g + weight_decay y),  x <- (1 - c) x + c z,  y = (1 - b1) z + b1 x

    Args:
        learning_rate: the rate, before the warmup.
        warmup_steps: after how many steps it is reached, from 0 on; None: at once.
        b1: the share of the average x in y.
        weight_decay: the factor of y; None: 0.
        weight_lr_power: c is (largest rate so far)^weight_lr_power over the sum of these.

    Slots:
        `x`, `z`: the points; `max_lr`: the largest rate; `weight_sum`: the sum.

    Source:
        Defazio et al. 2024, equations (3) to (5).
    """
    u = g + (weight_decay or 0.0) * p
    return _schedule_free(t, u, p, old, learning_rate, warmup_steps, b1, weight_lr_power)


@equation
def schedule_free_adamw(
    t,
    g,
    p,
    old,
    *,
    learning_rate=0.0025,
    warmup_steps=None,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    weight_lr_power=2.0,
):
    """Schedule-free AdamW: that of descent with g / (sqrt(v_hat) + eps) for g.

    Args:
        learning_rate: see `schedule_free_sgd`, as for the others.
        warmup_steps: the steps until it is reached.
        b1: the share of the average x in y.
        b2: the decay rate of v, the average of |g|^2.
        eps: added to the root.
        weight_decay: the factor of y.
        weight_lr_power: the power of the weights.

    Slots:
        Those of `schedule_free_sgd`; `nu`: v.

    Source:
        Defazio et al. 2024, Algorithm 1.
    """
    v = b2 * old["nu"] + (1 - b2) * square(g)
    u = g / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * p
    u, new = _schedule_free(t, u, p, old, learning_rate, warmup_steps, b1, weight_lr_power)
    return u, {**new, "nu": v}
