"""Gradient descent, momentum, and descent by signs."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import descent, equation


@equation
def trace(t, g, p, old, *, decay, nesterov=False, dampening=0.0):
    """Momentum v <- decay v + (1 - dampening) g.

    Args:
        decay: the decay rate.
        nesterov: whether the update is decay v + (1 - dampening) g.
        dampening: the share of the gradient that is left out.

    Slots:
        `trace`: v.

    Source:
        Polyak 1964; Sutskever et al. 2013.
    """
    v = decay * old["trace"] + (1 - dampening) * g
    return decay * v + (1 - dampening) * g if nesterov else v, {"trace": v}


@equation
def ema(t, g, p, old, *, decay, debias=True):
    """The average m <- decay m + (1 - decay) g, divided by 1 - decay^t.

    Args:
        decay: the decay rate.
        debias: whether to divide.

    Slots:
        `ema`: m.

    Source:
        Kingma & Ba 2015, Section 3.
    """
    m = decay * old["ema"] + (1 - decay) * g
    return m / (1 - decay**t) if debias else m, {"ema": m}


@equation
def sgd(t, g, p, old, *, learning_rate, momentum=None, nesterov=False, dampening=0.0):
    """Gradient descent, with momentum or without.

    Args:
        learning_rate: the factor of the step.
        momentum: the decay rate of `trace`; None: no momentum.
        nesterov: see `trace`.
        dampening: see `trace`.

    Slots:
        Those of `trace`.

    Source:
        Robbins & Monro 1951; Polyak 1964; Sutskever et al. 2013.
    """
    if momentum is None:
        return -learning_rate * g, {}
    settings = {"decay": momentum, "nesterov": nesterov, "dampening": dampening}
    return descent(trace.step(t, g, p, old, **settings), learning_rate)


@equation
def scale_by_sign(t, g, p, old):
    """The signs of the gradient, of complex numbers g / |g|.

    Slots:
        None.

    Source:
        Bernstein et al. 2018, Algorithm 1.
    """
    return np.sign(g), {}


@equation
def sign_sgd(t, g, p, old, *, learning_rate):
    """Sign descent: -learning_rate sign(g).

    Args:
        learning_rate: the length of each element's step.

    Slots:
        None.

    Source:
        Bernstein et al. 2018, Algorithm 1.
    """
    return -learning_rate * np.sign(g), {}


@equation
def signum(t, g, p, old, *, learning_rate, beta=0.9):
    """Signum: the signs of an average.

    Args:
        learning_rate: the length of each element's step.
        beta: the decay rate of m <- beta m + (1 - beta) g.

    Slots:
        `ema`: m.

    Source:
        Bernstein et al. 2018, Algorithm 2.
    """
    m, new = ema.step(t, g, p, old, decay=beta, debias=False)
    return -learning_rate * np.sign(m), new


@equation
def scale_by_lion(t, g, p, old, *, b1=0.9, b2=0.99, mode="hard", smooth_beta=1.0):
    """Lion's direction: the sign of c = b1 m + (1 - b1) g.

    Args:
        b1: the share of m in c.
        b2: the decay rate of m <- b2 m + (1 - b2) g.
        mode: "hard": sign(c); "refined": c, clipped to [-1, 1]; "smooth": tanh(smooth_beta c).
        smooth_beta: the slope of the smooth mode.

    Slots:
        `mu`: m.

    Source:
        Chen et al. 2023, Algorithm 2.
    """
    c = b1 * old["mu"] + (1 - b1) * g
    new = {"mu": b2 * old["mu"] + (1 - b2) * g}
    if mode == "smooth":
        return np.tanh(smooth_beta * c), new
    return np.clip(c, -1, 1) if mode == "refined" else np.sign(c), new


@equation
def lion(t, g, p, old, *, learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    """Lion with decoupled weight decay: -learning_rate * (sign(c) + weight_decay * p).

    Args:
        learning_rate: the factor of the step.
        b1: see `scale_by_lion`.
        b2: see `scale_by_lion`.
        weight_decay: the decay of the weights.

    Slots:
        Those of `scale_by_lion`.

    Source:
        Chen et al. 2023, Algorithm 2.
    """
    direction = scale_by_lion.step(t, g, p, old, b1=b1, b2=b2)
    return descent(direction, learning_rate, p, weight_decay)
