"""The equations of layer-wise and optimistic methods in NumPy; see `papers`."""

import numpy as np

from . import papers


def norm(x):
    return np.sqrt(np.sum(abs(x) ** 2))


def ratio(numerator, denominator):
    """A trust ratio, which is 1 if a norm is zero."""
    return 1.0 if numerator == 0 or denominator == 0 else numerator / denominator


# You et al. 2017 and 2020, Bernstein et al. 2020, Ginsburg et al. 2019, Shazeer & Stern 2018.


def trust_ratio(t, g, p, old, *, min_norm=0.0, trust_coefficient=1.0, eps=0.0):
    w = ratio(max(norm(p), min_norm), max(norm(g), min_norm) + eps)
    return trust_coefficient * w * g, {}


def lars(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=0.0,
    momentum=0.9,
    nesterov=False,
):
    local = trust_coefficient * ratio(norm(p), norm(g) + weight_decay * norm(p) + eps)
    u = -learning_rate * local * (g + weight_decay * p)
    return papers.trace(t, u, p, old, decay=momentum, nesterov=nesterov)


def lamb(t, g, p, old, *, learning_rate, weight_decay=0.0, eps=1e-6, **moments):
    r, new = papers.adam(t, g, p, old, eps=eps, **moments)
    r = r + weight_decay * p
    return -learning_rate * ratio(norm(p), norm(r)) * r, new


def fromage(t, g, p, old, *, learning_rate, min_norm=1e-6):
    u, _ = trust_ratio(t, g, p, old, min_norm=min_norm)
    return (p - learning_rate * u) / np.sqrt(1 + learning_rate**2) - p, {}


def novograd(t, g, p, old, *, b1=0.9, b2=0.25, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    v = norm(g) ** 2 if t == 1 else b2 * old["nu"] + (1 - b2) * norm(g) ** 2
    m = b1 * old["mu"] + (g / (np.sqrt(v + eps_root) + eps) + weight_decay * p)
    return m, {"mu": m, "nu": v}


def block_norm(t, g, p, old, *, min_scale=1e-3):
    return max(norm(p), min_scale) * g, {}


def block_rms(t, g, p, old, *, min_scale=1e-3):
    return max(np.sqrt(np.mean(p**2)), min_scale) * g, {}


# Mokhtari et al. 2020, Daskalakis et al. 2018.


def optimistic(t, g, p, old, *, alpha=1.0, beta=1.0):
    previous = g if t == 1 else old["previous_gradient"]
    return (alpha + beta) * g - beta * previous, {"previous_gradient": g}


def optimistic_descent(t, g, p, old, *, learning_rate, **weights):
    u, new = optimistic(t, g, p, old, **weights)
    return -learning_rate * u, new


def optimistic_adam_v2(
    t, g, p, old, *, learning_rate, alpha=1.0, beta=1.0, nesterov=True, **moments
):
    r, adam = papers.adam(t, g, p, old, nesterov=nesterov, **moments)
    u, new = optimistic(t, r, p, old, alpha=alpha, beta=beta)
    return -learning_rate * u, adam | new


def optimistic_adam(t, g, p, old, *, learning_rate, optimism=None, **moments):
    beta = learning_rate if optimism is None else optimism
    return optimistic_adam_v2(
        t, g, p, old, learning_rate=1.0, alpha=learning_rate, beta=beta, **moments
    )
