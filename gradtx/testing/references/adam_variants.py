"""Variants of Adam with another second moment, or another trust in it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gradtx.testing.references.adams import first_moment
from gradtx.testing.references.equation import descent, divide, equation, square


@equation
def scale_by_belief(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False):
    """AdaBelief's direction m_hat / (sqrt(s_hat) + eps).

    Args:
        b1: the decay rate of the first moment m.
        b2: the decay rate of s <- b2 s + (1 - b2) |g - m|^2 + eps_root.
        eps: added to the root.
        eps_root: added to s in every step.
        nesterov: whether m_hat looks ahead, see `scale_by_adam`.

    Slots:
        `mu`: m; `nu`: s.

    Source:
        Zhuang et al. 2020, Algorithm 2.
    """
    m = b1 * old["mu"] + (1 - b1) * g
    s = b2 * old["nu"] + (1 - b2) * square(g - m) + eps_root
    m_hat = first_moment(t, g, m, b1, nesterov)
    return divide(m_hat, np.sqrt(s / (1 - b2**t)) + eps), {"mu": m, "nu": s}


@equation(like=scale_by_belief)
def adabelief(t, g, p, old, *, learning_rate, **moments):
    """AdaBelief: a step against `scale_by_belief`.

    Args:
        learning_rate: the factor of the step.
        **moments: see `scale_by_belief`.

    Slots:
        Those of `scale_by_belief`.

    Source:
        Zhuang et al. 2020, Algorithm 2.
    """
    return descent(scale_by_belief.step(t, g, p, old, **moments), learning_rate)


@equation
def scale_by_yogi(
    t,
    g,
    p,
    old,
    *,
    b1=0.9,
    b2=0.999,
    eps=1e-3,
    eps_root=0.0,
    initial_accumulator_value=1e-6,
):
    """Yogi's direction: Adam's with v <- v - (1 - b2) sign(v - |g|^2) |g|^2.

    Args:
        b1: the decay rate of the first moment m.
        b2: the decay rate of the second moment v.
        eps: added to the root.
        eps_root: added under the root.
        initial_accumulator_value: v before the first step.

    Slots:
        `mu`: m, which starts at 0; `nu`: v.

    Source:
        Zaheer et al. 2018, Algorithm 2, with the corrections of Adam.
    """
    v = old["nu"] if t > 1 else initial_accumulator_value
    m = b1 * old["mu"] + (1 - b1) * g
    v = v - (1 - b2) * np.sign(v - square(g)) * square(g)
    u = divide(m / (1 - b1**t), np.sqrt(v / (1 - b2**t) + eps_root) + eps)
    return u, {"mu": m, "nu": v}


@equation
def yogi(t, g, p, old, *, learning_rate, b1=0.9, b2=0.999, eps=1e-3):
    """Yogi: a step against `scale_by_yogi`.

    Args:
        learning_rate: the factor of the step.
        b1: the decay rate of the first moment.
        b2: the decay rate of the second moment.
        eps: added to the root.

    Slots:
        Those of `scale_by_yogi`.

    Source:
        Zaheer et al. 2018, Algorithm 2.
    """
    return descent(scale_by_yogi.step(t, g, p, old, b1=b1, b2=b2, eps=eps), learning_rate)


@equation
def scale_by_radam(
    t,
    g,
    p,
    old,
    *,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    threshold=5.0,
    nesterov=False,
):
    """RAdam's direction: Adam's times r, or m_hat while the variance of v is not finite.

        rho_inf = 2 / (1 - b2) - 1,    rho = rho_inf - 2 t b2^t / (1 - b2^t)
        r^2 = (rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho)

    Args:
        b1: the decay rate of the first moment m.
        b2: the decay rate of the second moment v.
        eps: added to the root.
        eps_root: added under the root.
        threshold: the least rho for which v is used.
        nesterov: whether m_hat looks ahead, see `scale_by_adam`.

    Slots:
        `mu`: m; `nu`: v.

    Source:
        Liu et al. 2020, Algorithm 2.
    """
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * square(g)
    m_hat = first_moment(t, g, m, b1, nesterov)
    # In rational numbers, because rho is a small difference of large ones.
    beta = Fraction(b2)
    rho_inf = 2 / (1 - beta) - 1
    rho = rho_inf - 2 * t * beta**t / (1 - beta**t)
    if rho < threshold:
        return m_hat, {"mu": m, "nu": v}
    r = np.sqrt(float((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)))
    return r * divide(m_hat, np.sqrt(v / (1 - b2**t) + eps_root) + eps), {"mu": m, "nu": v}


@equation(like=scale_by_radam)
def radam(t, g, p, old, *, learning_rate, **moments):
    """RAdam: a step against `scale_by_radam`.

    Args:
        learning_rate: the factor of the step.
        **moments: see `scale_by_radam`.

    Slots:
        Those of `scale_by_radam`.

    Source:
        Liu et al. 2020, Algorithm 2.
    """
    return descent(scale_by_radam.step(t, g, p, old, **moments), learning_rate)
