"""Adam and its nearest relatives."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import descent, divide, equation, square


def first_moment(t, g, m, b1, nesterov=False, corrected=True):
    """The estimate of the mean gradient, with Nesterov's look ahead or without."""
    if nesterov:
        now, ahead = (1 - b1**t, 1 - b1 ** (t + 1)) if corrected else (1, 1)
        return b1 * m / ahead + (1 - b1) * g / now
    return m / (1 - b1**t) if corrected else m


@equation
def scale_by_adam(
    t,
    g,
    p,
    old,
    *,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    nesterov=False,
    bias_correction=True,
):
    """Adam's direction m_hat / (sqrt(v_hat + eps_root) + eps).

    Args:
        b1: the decay rate of m <- b1 m + (1 - b1) g.
        b2: the decay rate of v <- b2 v + (1 - b2) |g|^2.
        eps: added to the root.
        eps_root: added under the root.
        nesterov: whether m_hat looks ahead: b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t).
        bias_correction: whether m_hat = m / (1 - b1^t) and v_hat = v / (1 - b2^t).

    Slots:
        `mu`: m; `nu`: v.

    Source:
        Kingma & Ba 2015, Algorithm 1; Dozat 2016, Algorithm 2 with constant b1.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_reference, references
        >>> check_reference(gradtx.scale_by_adam(b1=0.8), references.scale_by_adam(b1=0.8))
    """
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * square(g)
    v_hat = v / (1 - b2**t) if bias_correction else v
    m_hat = first_moment(t, g, m, b1, nesterov, bias_correction)
    return divide(m_hat, np.sqrt(v_hat + eps_root) + eps), {"mu": m, "nu": v}


@equation(like=scale_by_adam)
def adam(t, g, p, old, *, learning_rate, **moments):
    """Adam: a step of length `learning_rate` against `scale_by_adam`.

    Args:
        learning_rate: the factor of the step.
        **moments: see `scale_by_adam`.

    Slots:
        Those of `scale_by_adam`.

    Source:
        Kingma & Ba 2015, Algorithm 1.
    """
    return descent(scale_by_adam.step(t, g, p, old, **moments), learning_rate)


@equation(like=scale_by_adam)
def adamw(t, g, p, old, *, learning_rate, weight_decay=1e-4, **moments):
    """AdamW: -learning_rate * (u + weight_decay * p) with Adam's direction u.

    Args:
        learning_rate: the factor of the step.
        weight_decay: the decay of the weights.
        **moments: see `scale_by_adam`.

    Slots:
        Those of `scale_by_adam`.

    Source:
        Loshchilov & Hutter 2019, Algorithm 2 with a schedule of 1.
    """
    return descent(scale_by_adam.step(t, g, p, old, **moments), learning_rate, p, weight_decay)


@equation
def nadam(
    t, g, p, old, *, learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, bias_correction=True
):
    """NAdam: Adam with Nesterov's momentum.

    Args:
        learning_rate: the factor of the step.
        b1: see `scale_by_adam`, as for the others.
        b2: the decay rate of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        bias_correction: whether moments are corrected.

    Slots:
        Those of `scale_by_adam`.

    Source:
        Dozat 2016, Algorithm 2 with constant b1.
    """
    settings = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    settings |= {"bias_correction": bias_correction, "nesterov": True}
    return descent(scale_by_adam.step(t, g, p, old, **settings), learning_rate)


@equation(like=nadam)
def nadamw(t, g, p, old, *, learning_rate, weight_decay=1e-4, **moments):
    """NAdam with decoupled weight decay: -learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: the factor of the step.
        weight_decay: the decay of the weights.
        **moments: see `nadam`.

    Slots:
        Those of `scale_by_adam`.

    Source:
        Dozat 2016, Algorithm 2; Loshchilov & Hutter 2019, Algorithm 2.
    """
    u, new = nadam.step(t, g, p, old, learning_rate=-1.0, **moments)
    return descent((u, new), learning_rate, p, weight_decay)


@equation
def scale_by_amsgrad(
    t,
    g,
    p,
    old,
    *,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    bias_correction_mu=True,
    bias_correction_nu=True,
):
    """AMSGrad's direction: Adam's with the largest v_hat so far.

    Args:
        b1: the decay rate of the first moment m.
        b2: the decay rate of the second moment v.
        eps: added to the root.
        eps_root: added under the root.
        bias_correction_mu: whether m_hat = m / (1 - b1^t).
        bias_correction_nu: whether v_hat = v / (1 - b2^t).

    Slots:
        `mu`: m; `nu`: v; `nu_max`: the largest v_hat.

    Source:
        Reddi et al. 2018, Algorithm 2, with the corrections of Adam.
    """
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * square(g)
    largest = np.maximum(old["nu_max"], v / (1 - b2**t) if bias_correction_nu else v)
    m_hat = m / (1 - b1**t) if bias_correction_mu else m
    u = divide(m_hat, np.sqrt(largest + eps_root) + eps)
    return u, {"mu": m, "nu": v, "nu_max": largest}


@equation(like=scale_by_amsgrad)
def amsgrad(t, g, p, old, *, learning_rate, **moments):
    """AMSGrad: a step against `scale_by_amsgrad`.

    Args:
        learning_rate: the factor of the step.
        **moments: see `scale_by_amsgrad`.

    Slots:
        Those of `scale_by_amsgrad`.

    Source:
        Reddi et al. 2018, Algorithm 2.
    """
    return descent(scale_by_amsgrad.step(t, g, p, old, **moments), learning_rate)


@equation
def scale_by_adamax(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-8):
    """AdaMax's direction m / ((1 - b1^t) w).

    Args:
        b1: the decay rate of the first moment m.
        b2: the decay rate of w <- max(b2 w, |g| + eps).
        eps: added to |g|.

    Slots:
        `mu`: m; `nu`: w.

    Source:
        Kingma & Ba 2015, Algorithm 2.
    """
    m = b1 * old["mu"] + (1 - b1) * g
    w = np.maximum(b2 * old["nu"], abs(g) + eps)
    return divide(m, (1 - b1**t) * w), {"mu": m, "nu": w}


@equation(like=scale_by_adamax)
def adamax(t, g, p, old, *, learning_rate, **moments):
    """AdaMax: a step against `scale_by_adamax`.

    Args:
        learning_rate: the factor of the step.
        **moments: see `scale_by_adamax`.

    Slots:
        Those of `scale_by_adamax`.

    Source:
        Kingma & Ba 2015, Algorithm 2.
    """
    return descent(scale_by_adamax.step(t, g, p, old, **moments), learning_rate)


@equation(like=scale_by_adamax)
def adamaxw(t, g, p, old, *, learning_rate, weight_decay=1e-4, **moments):
    """AdaMax with decoupled weight decay: -learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: the factor of the step.
        weight_decay: the decay of the weights.
        **moments: see `scale_by_adamax`.

    Slots:
        Those of `scale_by_adamax`.

    Source:
        Kingma & Ba 2015, Algorithm 2; Loshchilov & Hutter 2019.
    """
    return descent(scale_by_adamax.step(t, g, p, old, **moments), learning_rate, p, weight_decay)
