"""The equations of the papers in NumPy and double precision, for the tests to compare with.

Each function is one step on one leaf. It takes the number of the step `t` (1 at the first), the
gradient `g`, the parameter `p`, the slots `old` that the last step left, each 0 at the start, and
the hyperparameters; it returns the update and the new slots.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

Slots = Mapping[str, Any]
Paper = Callable[..., tuple[Any, Slots]]


def divide(numerator, denominator):
    """The quotient with 0 / 0 = 0: without a gradient there is no step."""
    is_zero = denominator == 0
    return np.where(is_zero, 0, numerator / np.where(is_zero, 1, denominator))


def descend(direction: Paper) -> Paper:
    """Step against a direction, with Loshchilov & Hutter's decoupled decay of the weights."""

    def step(t, g, p, old, *, learning_rate, weight_decay=0.0, **hyperparameters):
        u, new = direction(t, g, p, old, **hyperparameters)
        return -learning_rate * (u + weight_decay * p), new

    return step


# Kingma & Ba 2015, Dozat 2016, Reddi et al. 2018.


def _first_moment(t, g, m, b1, nesterov=False, corrected=True):
    if nesterov:
        now, ahead = (1 - b1**t, 1 - b1 ** (t + 1)) if corrected else (1, 1)
        return b1 * m / ahead + (1 - b1) * g / now
    return m / (1 - b1**t) if corrected else m


def adam(
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
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * abs(g) ** 2
    v_hat = v / (1 - b2**t) if bias_correction else v
    m_hat = _first_moment(t, g, m, b1, nesterov, bias_correction)
    return divide(m_hat, np.sqrt(v_hat + eps_root) + eps), {"mu": m, "nu": v}


def nadam(t, g, p, old, **hyperparameters):
    return adam(t, g, p, old, nesterov=True, **hyperparameters)


def amsgrad(
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
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * abs(g) ** 2
    largest = np.maximum(old["nu_max"], v / (1 - b2**t) if bias_correction_nu else v)
    m_hat = m / (1 - b1**t) if bias_correction_mu else m
    u = divide(m_hat, np.sqrt(largest + eps_root) + eps)
    return u, {"mu": m, "nu": v, "nu_max": largest}


def adamax(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-8):
    m = b1 * old["mu"] + (1 - b1) * g
    w = np.maximum(b2 * old["nu"], abs(g) + eps)
    return divide(m, (1 - b1**t) * w), {"mu": m, "nu": w}


# Zhuang et al. 2020, Zaheer et al. 2018, Liu et al. 2020.


def adabelief(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False):
    m = b1 * old["mu"] + (1 - b1) * g
    s = b2 * old["nu"] + (1 - b2) * abs(g - m) ** 2 + eps_root
    m_hat = _first_moment(t, g, m, b1, nesterov)
    return divide(m_hat, np.sqrt(s / (1 - b2**t)) + eps), {"mu": m, "nu": s}


def yogi(
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
    v = old["nu"] if t > 1 else initial_accumulator_value
    m = b1 * old["mu"] + (1 - b1) * g
    v = v - (1 - b2) * np.sign(v - abs(g) ** 2) * abs(g) ** 2
    u = divide(m / (1 - b1**t), np.sqrt(v / (1 - b2**t) + eps_root) + eps)
    return u, {"mu": m, "nu": v}


def radam(
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
    m = b1 * old["mu"] + (1 - b1) * g
    v = b2 * old["nu"] + (1 - b2) * abs(g) ** 2
    m_hat = _first_moment(t, g, m, b1, nesterov)
    # In rational numbers, because rho is a small difference of large ones.
    beta = Fraction(b2)
    rho_inf = 2 / (1 - beta) - 1
    rho = rho_inf - 2 * t * beta**t / (1 - beta**t)
    if rho < threshold:
        return m_hat, {"mu": m, "nu": v}
    r = np.sqrt(float((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)))
    return r * divide(m_hat, np.sqrt(v / (1 - b2**t) + eps_root) + eps), {"mu": m, "nu": v}


# Tieleman & Hinton 2012, Graves 2013, Duchi et al. 2011, Zeiler 2012, Riedmiller & Braun 1993.


def rms(
    t,
    g,
    p,
    old,
    *,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    bias_correction=False,
    centered=False,
):
    v = old["nu"] if t > 1 else initial_scale
    v = decay * v + (1 - decay) * abs(g) ** 2
    m = decay * old["mu"] + (1 - decay) * g
    correction = 1 - decay**t if bias_correction else 1
    size = v / correction - (abs(m / correction) ** 2 if centered else 0)
    root = np.sqrt(size + eps) if eps_in_sqrt else np.sqrt(size) + eps
    return divide(g, root), {"mu": m, "nu": v} if centered else {"nu": v}


def stddev(t, g, p, old, **hyperparameters):
    return rms(t, g, p, old, centered=True, **hyperparameters)


def rmsprop(t, g, p, old, *, learning_rate, momentum=None, nesterov=False, **hyperparameters):
    u, new = rms(t, g, p, old, **hyperparameters)
    u = -learning_rate * u
    if momentum is None:
        return u, new
    velocity = momentum * old["trace"] + u
    return momentum * velocity + u if nesterov else velocity, {**new, "trace": velocity}


def rss(t, g, p, old, *, initial_accumulator_value=0.1, eps=1e-7):
    s = old["sum_of_squares"] if t > 1 else initial_accumulator_value
    s = s + abs(g) ** 2
    return divide(g, np.sqrt(s + eps)), {"sum_of_squares": s}


def adadelta(t, g, p, old, *, rho=0.9, eps=1e-6):
    e_g = rho * old["e_g"] + (1 - rho) * abs(g) ** 2
    u = np.sqrt(old["e_x"] + eps) / np.sqrt(e_g + eps) * g
    return u, {"e_g": e_g, "e_x": rho * old["e_x"] + (1 - rho) * abs(u) ** 2}


def rprop(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    eta_minus=0.5,
    eta_plus=1.2,
    min_step_size=1e-6,
    max_step_size=50.0,
):
    step, before = (old["step_sizes"], old["prev_updates"]) if t > 1 else (learning_rate, 0.0)
    factor = np.where(g * before > 0, eta_plus, eta_minus)
    step = np.where(g * before == 0, step, np.clip(factor * step, min_step_size, max_step_size))
    # A change of sign stores a zero, so that the next step has nothing to compare with.
    u = np.where(g * before < 0, 0, step * np.sign(g))
    return u, {"step_sizes": step, "prev_updates": u}


# Polyak 1964 and Sutskever et al. 2013, averages, Bernstein et al. 2018, Chen et al. 2023.


def plain(t, g, p, old):
    return g, {}


def trace(t, g, p, old, *, decay, nesterov=False, dampening=0.0):
    v = decay * old["trace"] + (1 - dampening) * g
    return decay * v + (1 - dampening) * g if nesterov else v, {"trace": v}


def ema(t, g, p, old, *, decay, debias=True):
    m = decay * old["ema"] + (1 - decay) * g
    return m / (1 - decay**t) if debias else m, {"ema": m}


def sign(t, g, p, old):
    return np.sign(g), {}


def signum(t, g, p, old, *, beta=0.9):
    m, new = ema(t, g, p, old, decay=beta, debias=False)
    return np.sign(m), new


def lion(t, g, p, old, *, b1=0.9, b2=0.99, mode="hard", smooth_beta=1.0):
    c = b1 * old["mu"] + (1 - b1) * g
    new = {"mu": b2 * old["mu"] + (1 - b2) * g}
    if mode == "smooth":
        return np.tanh(smooth_beta * c), new
    return np.clip(c, -1, 1) if mode == "refined" else np.sign(c), new
