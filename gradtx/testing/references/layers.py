"""Steps whose length is measured by that of a layer's weights."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.adams import scale_by_adam
from gradtx.testing.references.descents import trace
from gradtx.testing.references.equation import descent, equation, norm


def _ratio(numerator, denominator):
    """A trust ratio, which is 1 if a norm is zero."""
    return 1.0 if numerator == 0 or denominator == 0 else numerator / denominator


@equation
def scale_by_trust_ratio(t, g, p, old, *, min_norm=0.0, trust_coefficient=1.0, eps=0.0):
    """The gradient times a ratio of norms, which is 1 if one of them is 0.

        u = trust_coefficient ||p|| / (||g|| + eps) g

    Args:
        min_norm: the least value of a norm.
        trust_coefficient: the factor of the ratio.
        eps: added to the norm of g.

    Slots:
        None.

    Source:
        You et al. 2020, Algorithm 2.
    """
    w = _ratio(max(norm(p), min_norm), max(norm(g), min_norm) + eps)
    return trust_coefficient * w * g, {}


@equation
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
    """LARS: momentum of learning_rate r (g + weight_decay p).

        r = trust_coefficient ||p|| / (||g|| + weight_decay ||p|| + eps)

    Args:
        learning_rate: the factor of the step, inside the momentum.
        weight_decay: the factor of the penalty.
        trust_coefficient: the factor of the ratio.
        eps: added to its denominator.
        momentum: the decay rate of the velocity.
        nesterov: whether the velocity looks ahead.

    Slots:
        `trace`: the velocity.

    Source:
        You et al. 2017, Algorithm 1.
    """
    local = trust_coefficient * _ratio(norm(p), norm(g) + weight_decay * norm(p) + eps)
    u = -learning_rate * local * (g + weight_decay * p)
    return trace.step(t, u, p, old, decay=momentum, nesterov=nesterov)


@equation
def lamb(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    eps_root=0.0,
    weight_decay=0.0,
):
    """LAMB: -learning_rate ||p|| / ||r|| r with Adam's direction plus the decay, r.

    Args:
        learning_rate: the factor of the step.
        b1: see `scale_by_adam`, as for the next three.
        b2: the decay rate of the second moment.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: the decay of the weights, a part of r.

    Slots:
        Those of `scale_by_adam`.

    Source:
        You et al. 2020, Algorithm 2.
    """
    r, new = scale_by_adam.step(t, g, p, old, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    r = r + weight_decay * p
    return -learning_rate * _ratio(norm(p), norm(r)) * r, new


@equation
def fromage(t, g, p, old, *, learning_rate, min_norm=1e-6):
    """Fromage: p <- (p - learning_rate u) / sqrt(1 + learning_rate^2), u of `scale_by_trust_ratio`.

    Args:
        learning_rate: the relative length of a step.
        min_norm: the least value of a norm.

    Slots:
        None.

    Source:
        Bernstein et al. 2020, Algorithm 1.
    """
    u, _ = scale_by_trust_ratio.step(t, g, p, old, min_norm=min_norm)
    return (p - learning_rate * u) / np.sqrt(1 + learning_rate**2) - p, {}


@equation
def scale_by_novograd(t, g, p, old, *, b1=0.9, b2=0.25, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    """NovoGrad's direction m <- b1 m + g / (sqrt(v + eps_root) + eps) + weight_decay p.

    Args:
        b1: the decay rate of m.
        b2: that of v <- b2 v + (1 - b2) ||g||^2, which starts at the first ||g||^2.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: the decay of the weights, a part of m.

    Slots:
        `mu`: m; `nu`: v.

    Source:
        Ginsburg et al. 2019, Algorithm 1.
    """
    v = norm(g) ** 2 if t == 1 else b2 * old["nu"] + (1 - b2) * norm(g) ** 2
    m = b1 * old["mu"] + (g / (np.sqrt(v + eps_root) + eps) + weight_decay * p)
    return m, {"mu": m, "nu": v}


@equation
def novograd(
    t, g, p, old, *, learning_rate, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0
):
    """NovoGrad: a step against `scale_by_novograd`.

    Args:
        learning_rate: the factor of the step.
        b1: see `scale_by_novograd`, as for the others.
        b2: the decay rate of the squared norm.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: the decay of the weights.

    Slots:
        Those of `scale_by_novograd`.

    Source:
        Ginsburg et al. 2019, Algorithm 1.
    """
    settings = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "weight_decay": weight_decay}
    return descent(scale_by_novograd.step(t, g, p, old, **settings), learning_rate)


@equation
def scale_by_param_block_norm(t, g, p, old, *, min_scale=1e-3):
    """The gradient times max(||p||, min_scale).

    Args:
        min_scale: the least factor.

    Slots:
        None.

    Source:
        Shazeer & Stern 2018, Section 8, with norms.
    """
    return max(norm(p), min_scale) * g, {}


@equation
def scale_by_param_block_rms(t, g, p, old, *, min_scale=1e-3):
    """The gradient times the root mean square of p, at least min_scale.

    Args:
        min_scale: the least factor.

    Slots:
        None.

    Source:
        Shazeer & Stern 2018, Section 8.
    """
    return max(np.sqrt(np.mean(abs(p) ** 2)), min_scale) * g, {}
