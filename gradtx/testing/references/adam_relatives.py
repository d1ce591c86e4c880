"""Further relatives of Adam: differences of gradients, clipped ratios, slow averages."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import descent, divide, equation, square


@equation
def scale_by_adan(t, g, p, old, *, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=0.0):
    """Adan's direction (m_hat + b2 v_hat) / (sqrt(n_hat + eps_root) + eps).

    Args:
        b1: the decay rate of the average m of the gradients g; the paper's 1 - beta_1.
        b2: that of the average v of their differences d, and the weight of d in g + b2 d.
        b3: that of the average n of |g + b2 d|^2.
        eps: added to the root.
        eps_root: added under the root.

    Slots:
        `m`, `v`, `n`: the averages; `g`: the last gradient.

    Source:
        Xie et al. 2022, Algorithm 1.
    """
    beta_1, beta_2, beta_3 = 1 - b1, 1 - b2, 1 - b3
    change = g - old["g"] if t > 1 else 0 * g
    m = (1 - beta_1) * old["m"] + beta_1 * g
    v = (1 - beta_2) * old["v"] + beta_2 * change
    n = (1 - beta_3) * old["n"] + beta_3 * square(g + (1 - beta_2) * change)
    m_hat, v_hat, n_hat = m / (1 - b1**t), v / (1 - b2**t), n / (1 - b3**t)
    u = divide(m_hat + (1 - beta_2) * v_hat, np.sqrt(n_hat + eps_root) + eps)
    return u, {"m": m, "v": v, "n": n, "g": g}


@equation
def adan(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    b1=0.98,
    b2=0.92,
    b3=0.99,
    eps=1e-8,
    eps_root=1e-8,
    weight_decay=0.0,
):
    """Adan with its proximal decay: p <- (p - learning_rate u) / (1 + learning_rate weight_decay).

    Args:
        learning_rate: the factor of the step.
        b1: see `scale_by_adan`, as for the others.
        b2: the decay rate of the differences.
        b3: the decay rate of the squares.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: the decay of the weights.

    Slots:
        Those of `scale_by_adan`.

    Source:
        Xie et al. 2022, Algorithm 1.
    """
    settings = {"b1": b1, "b2": b2, "b3": b3, "eps": eps, "eps_root": eps_root}
    u, new = scale_by_adan.step(t, g, p, old, **settings)
    return (p - learning_rate * u) / (1 + learning_rate * weight_decay) - p, new


@equation
def scale_by_acprop(t, g, p, old, *, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    """ACProp's direction g / (sqrt(s_hat) + eps) with s_hat of the step before, at first 1.

    Args:
        b1: the decay rate of the average m of the gradients.
        b2: that of s <- b2 s + (1 - b2) |g - m|^2 + eps_root.
        eps: added to the root.
        eps_root: added to s in every step.

    Slots:
        `mu`: m; `nu`: s.

    Source:
        Zhuang et al. 2021, Algorithm 1.
    """
    s_hat = old["nu"] / (1 - b2 ** (t - 1)) if t > 1 else 1.0
    m = b1 * old["mu"] + (1 - b1) * g
    s = b2 * old["nu"] + (1 - b2) * square(g - m) + eps_root
    return divide(g, np.sqrt(s_hat) + eps), {"mu": m, "nu": s}


@equation(like=scale_by_acprop)
def acprop(t, g, p, old, *, learning_rate, weight_decay=0.0, **moments):
    """ACProp with decoupled weight decay: -learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: the factor of the step.
        weight_decay: the decay of the weights.
        **moments: see `scale_by_acprop`.

    Slots:
        Those of `scale_by_acprop`.

    Source:
        Zhuang et al. 2021, Algorithm 1.
    """
    return descent(scale_by_acprop.step(t, g, p, old, **moments), learning_rate, p, weight_decay)


@equation
def scale_by_adopt(
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
    clip_value_fn=lambda count: np.maximum(count, 1) ** 0.25,
):
    """ADOPT's direction: the average of g / max(sqrt(v), eps) with v of the step before.

    Args:
        b1: the decay rate of the average m.
        b2: the decay rate of v <- b2 v + (1 - b2) |g|^2, which starts at |g|^2 of the first step.
        eps: the least divisor.
        nesterov: whether the update is b1 m + (1 - b1) of the newest ratio.
        use_clipping: whether the ratio is clipped.
        clip_value_fn: how large it may be, a function of the number of the steps before.

    Slots:
        `mu`: m; `nu`: v.

    Source:
        Taniguchi et al. 2024, Algorithm 2.
    """
    if t == 1:
        return 0 * g, {"mu": 0 * g, "nu": square(g)}
    r = divide(g, np.maximum(np.sqrt(old["nu"]), eps))
    if use_clipping:
        r = r * np.minimum(1, divide(clip_value_fn + 0 * abs(r), abs(r)) + (r == 0))
    m = b1 * old["mu"] + (1 - b1) * r
    u = b1 * m + (1 - b1) * r if nesterov else m
    return u, {"mu": m, "nu": b2 * old["nu"] + (1 - b2) * square(g)}


@equation(like=scale_by_adopt)
def adopt(t, g, p, old, *, learning_rate, **moments):
    """ADOPT: a step against `scale_by_adopt`.

    Args:
        learning_rate: the factor of the step.
        **moments: see `scale_by_adopt`.

    Slots:
        Those of `scale_by_adopt`.

    Source:
        Taniguchi et al. 2024, Algorithm 2.
    """
    return descent(scale_by_adopt.step(t, g, p, old, **moments), learning_rate)


@equation
def scale_by_ademamix(
    t, g, p, old, *, b1=0.9, b2=0.999, b3=0.9999, alpha=6.0, eps=1e-8, eps_root=0.0
):
    """AdEMAMix's direction (m1_hat + alpha m2) / (sqrt(v_hat + eps_root) + eps).

    Args:
        b1: the decay rate of the fast average m1.
        b2: the decay rate of the second moment v.
        b3: the decay rate of the slow average m2.
        alpha: the weight of the slow average.
        eps: added to the root.
        eps_root: added under the root.

    Slots:
        `m1`, `m2`: the averages; `nu`: v.

    Source:
        Pagliardini et al. 2024, Algorithm 1.
    """
    m1 = b1 * old["m1"] + (1 - b1) * g
    m2 = b3 * old["m2"] + (1 - b3) * g
    v = b2 * old["nu"] + (1 - b2) * square(g)
    u = divide(m1 / (1 - b1**t) + alpha * m2, np.sqrt(v / (1 - b2**t) + eps_root) + eps)
    return u, {"m1": m1, "m2": m2, "nu": v}


@equation
def ademamix(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    alpha=5.0,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
):
    """AdEMAMix with decoupled weight decay: -learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: the factor of the step.
        b1: see `scale_by_ademamix`, as for the others.
        b2: the decay rate of the second moment.
        b3: the decay rate of the slow average.
        alpha: the weight of the slow average.
        eps: added to the root.
        eps_root: added under the root.
        weight_decay: the decay of the weights.

    Slots:
        Those of `scale_by_ademamix`.

    Source:
        Pagliardini et al. 2024, Algorithm 1.
    """
    settings = {"b1": b1, "b2": b2, "b3": b3, "alpha": alpha, "eps": eps, "eps_root": eps_root}
    direction = scale_by_ademamix.step(t, g, p, old, **settings)
    return descent(direction, learning_rate, p, weight_decay)


@equation
def scale_by_simplified_ademamix(
    t, g, p, old, *, b1=0.99, b2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0
):
    """The direction of simplified AdEMAMix: (m + alpha g) / (sqrt(n_hat + eps_root) + eps).

    Args:
        b1: the decay rate of the sum m <- b1 m + g.
        b2: the decay rate of the average n of |g|^2.
        alpha: the weight of the gradient.
        eps: added to the root.
        eps_root: added under the root.

    Slots:
        `m`, `n`: as above.

    Source:
        Morwani et al. 2025, Algorithm 1.
    """
    m = b1 * old["m"] + g
    n = b2 * old["n"] + (1 - b2) * square(g)
    return divide(m + alpha * g, np.sqrt(n / (1 - b2**t) + eps_root) + eps), {"m": m, "n": n}


@equation(like=scale_by_simplified_ademamix)
def simplified_ademamix(t, g, p, old, *, learning_rate, weight_decay=0.0, **moments):
    """Simplified AdEMAMix with decoupled decay: -learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: the factor of the step.
        weight_decay: the decay of the weights.
        **moments: see `scale_by_simplified_ademamix`.

    Slots:
        Those of `scale_by_simplified_ademamix`.

    Source:
        Morwani et al. 2025, Algorithm 1.
    """
    direction = scale_by_simplified_ademamix.step(t, g, p, old, **moments)
    return descent(direction, learning_rate, p, weight_decay)
