"""The equations of factored second moments in NumPy; see `papers`."""

import numpy as np

from .papers import divide

# Shazeer & Stern 2018, with its sums over rows and columns; the state has means.


def factored_rms(
    t,
    g,
    p,
    old,
    *,
    decay_rate=0.8,
    step_offset=0,
    min_dim_size_to_factor=128,
    epsilon=1e-30,
    factored=True,
):
    kept = 1 - max(t - step_offset, 1) ** -decay_rate
    square = abs(g) ** 2 + epsilon
    nothing = np.zeros(1)
    if not factored or g.ndim < 2 or min(g.shape) < min_dim_size_to_factor:
        v = kept * old["v"] + (1 - kept) * square
        return g / np.sqrt(v), {"v_row": nothing, "v_col": nothing, "v": v}
    n, m = g.shape
    r = kept * m * old["v_row"] + (1 - kept) * square @ np.ones(m)
    c = kept * n * old["v_col"] + (1 - kept) * np.ones(n) @ square
    v = np.outer(r, c) / r.sum()
    return g / np.sqrt(v), {"v_row": r / m, "v_col": c / n, "v": nothing}


def rms(x):
    return np.sqrt(np.mean(abs(x) ** 2))


def adafactor(
    t,
    g,
    p,
    old,
    *,
    learning_rate=1.0,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    dtype_momentum=None,
    weight_decay_rate=0.0,
    eps=1e-30,
    min_scale=1e-3,
    **moment,
):
    u, new = factored_rms(t, g, p, old, step_offset=decay_offset, epsilon=eps, **moment)
    if clipping_threshold is not None:
        u = u / max(1, rms(u) / clipping_threshold)
    u = learning_rate * (max(min_scale, rms(p)) if multiply_by_parameter_scale else 1) * u
    if momentum is not None:
        u = momentum * old["ema"] + (1 - momentum) * u
        new = {**new, "ema": u}
    return -(u + weight_decay_rate * p), new


# Anil et al. 2019, SM3-II, with the sets of the cover one by one.


def sm3(t, g, p, old, *, b1=0.9, b2=1.0, eps=1e-8):
    bounds = old["mu"] if t > 1 else [np.zeros(n) for n in g.shape]
    s = np.zeros(g.shape)
    for i in np.ndindex(g.shape):
        bound = min(mu[k] for mu, k in zip(bounds, i, strict=True))
        s[i] = b2 * bound + (1 if b2 == 1 else 1 - b2) * abs(g[i]) ** 2
    mu = [
        np.array([np.max(np.take(s, k, axis)) for k in range(n)]) for axis, n in enumerate(g.shape)
    ]
    m = b1 * old["nu"] + (1 - b1) * divide(g, np.where(s > 0, np.sqrt(s + eps), 0))
    return m, {"mu": mu, "nu": m}


def descend_sm3(t, g, p, old, *, learning_rate, momentum=0.9):
    u, new = sm3(t, g, p, old, b1=momentum)
    return -learning_rate * u, new
