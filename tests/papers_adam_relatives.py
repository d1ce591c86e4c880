"""The equations of further relatives of Adam in NumPy; see `papers`."""

import numpy as np

from . import papers
from .papers import divide


def _square(g):
    return abs(g) ** 2


# Xie et al. 2022; the paper's betas are 1 - b.


def adan(t, g, p, old, *, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0):
    beta_1, beta_2, beta_3 = 1 - b1, 1 - b2, 1 - b3
    change = g - old["g"] if t > 1 else 0 * g
    m = (1 - beta_1) * old["m"] + beta_1 * g
    v = (1 - beta_2) * old["v"] + beta_2 * change
    n = (1 - beta_3) * old["n"] + beta_3 * _square(g + (1 - beta_2) * change)
    m_hat, v_hat, n_hat = m / (1 - b1**t), v / (1 - b2**t), n / (1 - b3**t)
    u = divide(m_hat + (1 - beta_2) * v_hat, np.sqrt(n_hat + eps_root) + eps)
    return u, {"m": m, "v": v, "n": n, "g": g}


def adan_proximal(t, g, p, old, *, learning_rate, weight_decay=0.0, eps_root=1e-8, **betas):
    r, new = adan(t, g, p, old, eps_root=eps_root, **betas)
    return (p - learning_rate * r) / (1 + learning_rate * weight_decay) - p, new


# Zhuang et al. 2021, Taniguchi et al. 2024.


def acprop(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    s_hat = old["nu"] / (1 - b2 ** (t - 1)) if t > 1 else 1.0
    m = b1 * old["mu"] + (1 - b1) * g
    s = b2 * old["nu"] + (1 - b2) * _square(g - m) + eps_root
    return divide(g, np.sqrt(s_hat) + eps), {"mu": m, "nu": s}


def adopt(
    t,
    g,
    p,
    old,
    *,
    b1=0.9,
    b2=0.9999,
    eps=1e-6,
    nesterov=False,
    use_clipping=True,
    clip_value_fn=None,
):
    if t == 1:
        return 0 * g, {"mu": 0 * g, "nu": _square(g)}
    r = divide(g, np.maximum(np.sqrt(old["nu"]), eps))
    if use_clipping:
        c = (t - 1) ** 0.25 if clip_value_fn is None else clip_value_fn
        r = r * np.minimum(1, divide(c + 0 * abs(r), abs(r)) + (r == 0))
    m = b1 * old["mu"] + (1 - b1) * r
    u = b1 * m + (1 - b1) * r if nesterov else m
    return u, {"mu": m, "nu": b2 * old["nu"] + (1 - b2) * _square(g)}


# Pagliardini et al. 2024, Morwani et al. 2025.


def ademamix(t, g, p, old, *, b1=0.9, b2=0.999, b3=0.9999, alpha=6.0, eps=1e-8, eps_root=0.0):
    m1 = b1 * old["m1"] + (1 - b1) * g
    m2 = b3 * old["m2"] + (1 - b3) * g
    v = b2 * old["nu"] + (1 - b2) * _square(g)
    u = divide(m1 / (1 - b1**t) + alpha * m2, np.sqrt(v / (1 - b2**t) + eps_root) + eps)
    return u, {"m1": m1, "m2": m2, "nu": v}


def simplified_ademamix(t, g, p, old, *, b1=0.99, b2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0):
    m = b1 * old["m"] + g
    n = b2 * old["n"] + (1 - b2) * _square(g)
    return divide(m + alpha * g, np.sqrt(n / (1 - b2**t) + eps_root) + eps), {"m": m, "n": n}


# Defazio & Jelassi 2021.


def madgrad(t, g, p, old, *, learning_rate, momentum=0.9, eps=1e-6):
    x0 = p if t == 1 else old["x0"]
    weight = learning_rate * np.sqrt(t)
    s = old["s"] + weight * g
    v = old["grad_sum_sq"] + weight * _square(g)
    z = x0 - divide(s, np.cbrt(v) + eps)
    c = 1 - momentum
    return (1 - c) * p + c * z - p, {"s": s, "grad_sum_sq": v, "x0": x0}


def madgrad_with_penalty(t, g, p, old, *, weight_decay=0.0, **hyperparameters):
    return madgrad(t, g + weight_decay * p, p, old, **hyperparameters)


# Yuan et al. 2024, Zhang et al. 2024.


def mars(t, g, p, old, *, b1=0.95, gamma=0.025, max_norm=1.0):
    change = g - old["previous_gradient"] if t > 1 else 0 * g
    c = g + gamma * b1 / (1 - b1) * change
    norm = np.sqrt(np.sum(_square(c)))
    return c * max_norm / norm if norm > max_norm else c, {"previous_gradient": g}


def mars_adam(t, g, p, old, *, b1=0.95, b2=0.99, eps=1e-8, gamma=0.025):
    c, new = mars(t, g, p, old, b1=b1, gamma=gamma)
    r, moments = papers.adam(t, c, p, old, b1=b1, b2=b2, eps=eps)
    return r, {**new, **moments}


def adamini(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, blocks=-1):
    """With `blocks` -1 a column of a matrix is a block, with () every leaf."""
    axis = 0 if g.ndim == 2 and blocks == -1 else None
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * np.mean(_square(g), axis, keepdims=True)
    return divide(m / (1 - b1**t), np.sqrt(v / (1 - b2**t) + eps_root) + eps), {"mu": m, "nu": v}
