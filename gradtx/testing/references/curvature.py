"""Sophia, which is given the diagonal of the Hessian."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import equation


@equation(given=("diagonal",))
def scale_by_sophia(
    t,
    g,
    p,
    old,
    *,
    diagonal,
    b1=0.965,
    b2=0.99,
    eps=1e-8,
    gamma=0.01,
    clip_threshold=1.0,
    update_interval=10,
    bias_correction=False,
):
    """Sophia's direction clip(m / max(gamma h, eps)).

    Args:
        diagonal: the estimate of the Hessian's diagonal at this leaf.
        b1: the decay rate of the average m of the gradients.
        b2: that of h, the average of the estimates.
        eps: the least divisor.
        gamma: the factor of h.
        clip_threshold: the greatest size of an element; None: any.
        update_interval: after how many steps h is renewed.
        bias_correction: whether m is divided by 1 - b1^t.

    Slots:
        `mu`: m; `nu`: h.

    Source:
        Liu et al. 2023, Algorithm 3, lines 6 to 13, without the learning rate.
    """
    m = b1 * old["mu"] + (1 - b1) * g
    h = old["nu"]
    if t % update_interval == 1 % update_interval:
        h = b2 * h + (1 - b2) * diagonal
    m_hat = m / (1 - b1**t) if bias_correction else m
    u = m_hat / np.maximum(gamma * h, eps)
    limit = np.inf if clip_threshold is None else clip_threshold
    return np.clip(u, -limit, limit), {"mu": m, "nu": h}
