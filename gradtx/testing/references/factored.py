"""Second moments of matrices in the memory of vectors."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import divide, equation, square


@equation
def scale_by_factored_rms(
    t,
    g,
    p,
    old,
    *,
    factored=True,
    decay_rate=0.8,
    step_offset=0,
    min_dim_size_to_factor=128,
    epsilon=1e-30,
):
    """Adafactor's direction g / sqrt(v), where v of a matrix is (row sums x column sums) / sum.

    Args:
        factored: whether matrices are factored.
        decay_rate: the averages of |g|^2 + epsilon keep 1 - t^-decay_rate.
        step_offset: subtracted from t.
        min_dim_size_to_factor: the least size of both axes of a matrix that is factored.
        epsilon: added to the squares.

    Slots:
        `v_row`, `v_col`: the means of rows and columns; `v`: v of other leaves. What is not used
        is an array of one zero.

    Source:
        Shazeer & Stern 2018, Algorithms 1 and 2 with the decay of Section 6.
    """
    kept = 1 - float(max(t - step_offset, 1)) ** -decay_rate
    squares = square(g) + epsilon
    nothing = np.zeros(1)
    if not factored or np.ndim(g) < 2 or min(g.shape) < min_dim_size_to_factor:
        v = kept * old["v"] + (1 - kept) * squares
        return g / np.sqrt(v), {"v_row": nothing, "v_col": nothing, "v": v}
    # The paper has sums over rows and columns, the state their means.
    n, m = g.shape
    r = kept * m * old["v_row"] + (1 - kept) * squares @ np.ones(m)
    c = kept * n * old["v_col"] + (1 - kept) * np.ones(n) @ squares
    v = np.outer(r, c) / r.sum()
    return g / np.sqrt(v), {"v_row": r / m, "v_col": c / n, "v": nothing}


def _rms(x):
    return np.sqrt(np.mean(abs(x) ** 2))


@equation
def adafactor(
    t,
    g,
    p,
    old,
    *,
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    weight_decay_rate=None,
    eps=1e-30,
    factored=True,
    min_scale=1e-3,
):
    """Adafactor: the direction, no longer than a threshold, times the scale of the parameter.

    Args:
        learning_rate: the factor of the step; None: 1.
        min_dim_size_to_factor: see `scale_by_factored_rms`.
        decay_rate: see `scale_by_factored_rms`.
        decay_offset: its `step_offset`.
        multiply_by_parameter_scale: whether to multiply by max(min_scale, RMS(p)).
        clipping_threshold: the greatest root mean square of the direction; None: any.
        momentum: the decay rate of the average of the steps; None: no average.
        weight_decay_rate: the decay of the weights in each step, without the learning rate.
        eps: its `epsilon`.
        factored: see `scale_by_factored_rms`.
        min_scale: the least scale of a parameter.

    Slots:
        Those of `scale_by_factored_rms`; `ema`: the average.

    Source:
        Shazeer & Stern 2018, Algorithm 4.
    """
    moment = {"decay_rate": decay_rate, "min_dim_size_to_factor": min_dim_size_to_factor}
    moment |= {"step_offset": decay_offset, "epsilon": eps, "factored": factored}
    u, new = scale_by_factored_rms.step(t, g, p, old, **moment)
    if clipping_threshold is not None:
        u = u / max(1, _rms(u) / clipping_threshold)
    rate = 1.0 if learning_rate is None else learning_rate
    u = rate * (max(min_scale, _rms(p)) if multiply_by_parameter_scale else 1) * u
    if momentum is not None:
        u = momentum * old["ema"] + (1 - momentum) * u
        new = {**new, "ema": u}
    return -(u + (weight_decay_rate or 0.0) * p), new


@equation
def scale_by_sm3(t, g, p, old, *, b1=0.9, b2=1.0, eps=1e-8):
    """SM3-II's direction: the average of g / sqrt(s + eps), with one bound per row and column.

    Args:
        b1: the decay rate of the average.
        b2: that of s, the least bound over an element plus its |g|^2; 1: a sum.
        eps: added under the root.

    Slots:
        `mu`: the bounds of each axis, a list; `nu`: the average.

    Source:
        Anil et al. 2019, Algorithm SM3-II, with rows and columns as its cover.
    """
    # A number is a vector of one element.
    squares = np.atleast_1d(square(g))
    shape = squares.shape
    bounds = old["mu"] if t > 1 else [np.zeros(n) for n in shape]
    s = np.zeros(shape)
    for i in np.ndindex(shape):
        bound = min(mu[k] for mu, k in zip(bounds, i, strict=True))
        s[i] = b2 * bound + (1 if b2 == 1 else 1 - b2) * squares[i]
    mu = [np.array([np.max(np.take(s, k, axis)) for k in range(n)]) for axis, n in enumerate(shape)]
    s = s.reshape(np.shape(g))
    m = b1 * old["nu"] + (1 - b1) * divide(g, np.where(s > 0, np.sqrt(s + eps), 0))
    return m, {"mu": mu, "nu": m}


@equation
def sm3(t, g, p, old, *, learning_rate, momentum=0.9):
    """SM3: a step against `scale_by_sm3` with b1 = momentum.

    Args:
        learning_rate: the factor of the step.
        momentum: the decay rate of the average.

    Slots:
        Those of `scale_by_sm3`.

    Source:
        Anil et al. 2019, Algorithm SM3-II.
    """
    u, new = scale_by_sm3.step(t, g, p, old, b1=momentum)
    return -learning_rate * u, new
