"""Steps scaled by the sizes of earlier gradients: RMSProp, AdaGrad, Adadelta, Rprop."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import descent, divide, equation, square


@equation
def scale_by_rms(
    t, g, p, old, *, decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False
):
    """RMSProp's direction g / sqrt(v + eps).

    Args:
        decay: the decay rate of v <- decay v + (1 - decay) |g|^2.
        eps: added under the root.
        initial_scale: v before the first step.
        eps_in_sqrt: False: eps is added to the root.
        bias_correction: whether to divide v by 1 - decay^t.

    Slots:
        `nu`: v.

    Source:
        Tieleman & Hinton 2012.
    """
    v = old["nu"] if t > 1 else initial_scale
    v = decay * v + (1 - decay) * square(g)
    size = v / (1 - decay**t) if bias_correction else v
    return divide(g, _root(size, eps, eps_in_sqrt)), {"nu": v}


@equation
def scale_by_stddev(
    t, g, p, old, *, decay=0.9, eps=1e-8, initial_scale=0.0, eps_in_sqrt=True, bias_correction=False
):
    """Centered RMSProp's direction g / sqrt(v - |m|^2 + eps).

    Args:
        decay: the decay rate of m, the average of g, and of v, that of |g|^2.
        eps: added under the root.
        initial_scale: v before the first step.
        eps_in_sqrt: False: eps is added to the root.
        bias_correction: whether to divide m and v by 1 - decay^t.

    Slots:
        `mu`: m; `nu`: v.

    Source:
        Graves 2013, equations (38) to (40).
    """
    v = old["nu"] if t > 1 else initial_scale
    v = decay * v + (1 - decay) * square(g)
    m = decay * old["mu"] + (1 - decay) * g
    correction = 1 - decay**t if bias_correction else 1
    size = v / correction - square(m / correction)
    return divide(g, _root(size, eps, eps_in_sqrt)), {"mu": m, "nu": v}


def _root(size, eps, eps_in_sqrt):
    return np.sqrt(size + eps) if eps_in_sqrt else np.sqrt(size) + eps


@equation
def rmsprop(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
):
    """RMSProp: a step against `scale_by_rms`, with momentum after the learning rate.

    Args:
        learning_rate: the factor of the step.
        decay: see `scale_by_rms`, as for the next three.
        eps: added under the root.
        initial_scale: v before the first step.
        eps_in_sqrt: False: eps is added to the root.
        centered: whether to take `scale_by_stddev`.
        momentum: the decay rate of the velocity; None: no momentum.
        nesterov: whether the velocity looks ahead.
        bias_correction: whether the averages are corrected.

    Slots:
        Those of the scaling; `trace`: the velocity.

    Source:
        Tieleman & Hinton 2012; Graves 2013.
    """
    scaling = scale_by_stddev if centered else scale_by_rms
    settings = {"decay": decay, "eps": eps, "initial_scale": initial_scale}
    settings |= {"eps_in_sqrt": eps_in_sqrt, "bias_correction": bias_correction}
    u, new = descent(scaling.step(t, g, p, old, **settings), learning_rate)
    if momentum is None:
        return u, new
    velocity = momentum * old["trace"] + u
    return momentum * velocity + u if nesterov else velocity, {**new, "trace": velocity}


@equation
def scale_by_rss(t, g, p, old, *, initial_accumulator_value=0.1, eps=1e-7):
    """AdaGrad's direction g / sqrt(s + eps).

    Args:
        initial_accumulator_value: s before the first step.
        eps: added under the root.

    Slots:
        `sum_of_squares`: s, the sum of |g|^2.

    Source:
        Duchi et al. 2011, Figure 1 with the diagonal.
    """
    s = old["sum_of_squares"] if t > 1 else initial_accumulator_value
    s = s + square(g)
    return divide(g, np.sqrt(s + eps)), {"sum_of_squares": s}


@equation(like=scale_by_rss)
def adagrad(t, g, p, old, *, learning_rate, **accumulator):
    """AdaGrad: a step against `scale_by_rss`.

    Args:
        learning_rate: the factor of the step.
        **accumulator: see `scale_by_rss`.

    Slots:
        Those of `scale_by_rss`.

    Source:
        Duchi et al. 2011, Figure 1 with the diagonal.
    """
    return descent(scale_by_rss.step(t, g, p, old, **accumulator), learning_rate)


@equation
def scale_by_adadelta(t, g, p, old, *, rho=0.9, eps=1e-6):
    """Adadelta's direction sqrt(x + eps) / sqrt(v + eps) g.

    Args:
        rho: the decay rate of v, the average of |g|^2, and of x, that of the squared updates.
        eps: added under both roots.

    Slots:
        `e_g`: v; `e_x`: x.

    Source:
        Zeiler 2012, Algorithm 1.
    """
    e_g = rho * old["e_g"] + (1 - rho) * square(g)
    u = np.sqrt(old["e_x"] + eps) / np.sqrt(e_g + eps) * g
    return u, {"e_g": e_g, "e_x": rho * old["e_x"] + (1 - rho) * square(u)}


@equation(like=scale_by_adadelta)
def adadelta(t, g, p, old, *, learning_rate=None, weight_decay=0.0, **averages):
    """Adadelta of the gradient of the loss with the penalty weight_decay ||p||^2 / 2.

    Args:
        learning_rate: the factor of the step; None: the direction itself, as in optax.
        weight_decay: the factor of the penalty.
        **averages: see `scale_by_adadelta`.

    Slots:
        Those of `scale_by_adadelta`.

    Source:
        Zeiler 2012, Algorithm 1.
    """
    u, new = scale_by_adadelta.step(t, g + weight_decay * p, p, old, **averages)
    return u if learning_rate is None else -learning_rate * u, new


@equation
def scale_by_rprop(
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
    """Rprop's direction: the sign of g times a step that grows while the sign stays.

    Args:
        learning_rate: the first step size.
        eta_minus: its factor where the sign changes; such an element rests for one step.
        eta_plus: its factor where the sign stays.
        min_step_size: the least step.
        max_step_size: the greatest step.

    Slots:
        `step_sizes`; `prev_updates`: the last update, 0 where the sign changed.

    Source:
        Riedmiller & Braun 1993, in the form Rprop- of Igel & Hüsken 2000 that rests after a change.
    """
    step, before = (old["step_sizes"], old["prev_updates"]) if t > 1 else (learning_rate, 0.0)
    factor = np.where(g * before > 0, eta_plus, eta_minus)
    step = np.where(g * before == 0, step, np.clip(factor * step, min_step_size, max_step_size))
    # A change of sign stores a zero, so that the next step has nothing to compare with.
    u = np.where(g * before < 0, 0, step * np.sign(g))
    return u, {"step_sizes": step, "prev_updates": u}


@equation(like=scale_by_rprop)
def rprop(t, g, p, old, **steps):
    """Rprop: the step against `scale_by_rprop`.

    Args:
        **steps: see `scale_by_rprop`.

    Slots:
        Those of `scale_by_rprop`.

    Source:
        Riedmiller & Braun 1993.
    """
    return descent(scale_by_rprop.step(t, g, p, old, **steps), 1.0)
