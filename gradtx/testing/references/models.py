"""Methods that read the loss: Polyak's step size and MoMo, on all leaves as one vector."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import equation


def _squares(x):
    return np.sum(x**2)


@equation(whole=True, given=("value",))
def scale_by_polyak(
    t, g, p, old, *, value, f_min=0.0, max_learning_rate=1.0, eps=0.0, variant="sps"
):
    """Polyak's direction (f - f_min) / (||g||^2 + eps) g.

    Args:
        value: the loss f, an extra argument.
        f_min: the least loss.
        max_learning_rate: the greatest factor.
        eps: added to the squared norm.
        variant: "sps"; "sps+": a negative gap counts as 0.

    Slots:
        None.

    Source:
        Loizou et al. 2021, equation (2).
    """
    gap = value - f_min if variant == "sps" else max(value - f_min, 0)
    rate = 0.0 if _squares(g) + eps == 0 else gap / (_squares(g) + eps)
    return min(rate, max_learning_rate) * g, {}


@equation(given=("value",), whole=True)
def polyak_sgd(
    t, g, p, old, *, value, max_learning_rate=1.0, scaling=1.0, f_min=0.0, eps=0.0, variant="sps"
):
    """Descent by Polyak's step size: -scaling times `scale_by_polyak`.

    Args:
        value: the loss f, an extra argument.
        max_learning_rate: the greatest factor, before the scaling.
        scaling: the factor of the step.
        f_min: the least loss.
        eps: added to the squared norm.
        variant: see `scale_by_polyak`.

    Slots:
        None.

    Source:
        Loizou et al. 2021, equation (2).
    """
    settings = {"f_min": f_min, "eps": eps, "max_learning_rate": max_learning_rate}
    u, new = scale_by_polyak.step(t, g, p, old, value=value, variant=variant, **settings)
    return -scaling * u, new


def _truncated(alpha, growth, rho, average, product, norm, lb, lower_bound, adapt):
    """The step size and the new bound; growth is 1 + alpha * lambda."""
    if adapt:
        cap = growth * average + product
        if cap < growth * rho * lb:
            # The paper halves: a negative cap too, above which the bound then lies.
            lb = max((cap - abs(cap) / 2) / (growth * rho), lower_bound)
    gap = max(growth * (average - rho * lb) + product, 0)
    tau = min(alpha / rho, gap / norm)
    if adapt:
        lb = max((average + product - tau * norm / 2) / rho, lower_bound)
    return tau, lb


@equation(whole=True, given=("value",))
def momo(
    t,
    g,
    p,
    old,
    *,
    value,
    learning_rate=1.0,
    beta=0.9,
    lower_bound=0.0,
    weight_decay=0.0,
    adapt_lower_bound=False,
):
    """MoMo: momentum, with the step to where a model of the loss reaches its lower bound.

    Args:
        value: the loss f, an extra argument.
        learning_rate: the greatest step size.
        beta: the decay rate of the averages of f, g and g @ p.
        lower_bound: the least value of the loss.
        weight_decay: the decay of the weights, a proximal step.
        adapt_lower_bound: whether the bound is estimated, starting from `lower_bound`.

    Slots:
        `exp_avg`, `barf`, `gamma`: the averages; `lb`: the bound; `count`.

    Source:
        Schaipp et al. 2023, Algorithm 1 and Appendix on lower bounds.
    """
    b = 0 if t == 1 else beta
    growth = 1 + learning_rate * weight_decay
    f_avg = b * old.get("barf", 0.0) + (1 - b) * value
    gamma = b * old.get("gamma", 0.0) + (1 - b) * (g @ p)
    d = b * old.get("exp_avg", 0.0) + (1 - b) * g
    bounds = (old.get("lb", lower_bound), lower_bound, adapt_lower_bound)
    tau, lb = _truncated(learning_rate, growth, 1, f_avg - gamma, d @ p, _squares(d), *bounds)
    new = (p - tau * d) / growth
    return new - p, {"exp_avg": d, "barf": f_avg, "gamma": gamma, "lb": lb, "count": t}


@equation(whole=True, given=("value",))
def momo_adam(
    t,
    g,
    p,
    old,
    *,
    value,
    learning_rate=1e-2,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    lower_bound=0.0,
    weight_decay=0.0,
    adapt_lower_bound=False,
):
    """MoMo-Adam: MoMo in the metric eps + sqrt(v_hat) of Adam.

    Args:
        value: the loss f, an extra argument.
        learning_rate: the greatest step size.
        b1: the decay rate of the averages of f, g and g @ p.
        b2: the decay rate of v, the average of g^2.
        eps: added to the root.
        lower_bound: the least value of the loss.
        weight_decay: the decay of the weights, a proximal step.
        adapt_lower_bound: whether the bound is estimated, starting from `lower_bound`.

    Slots:
        `exp_avg`, `exp_avg_sq`, `barf`, `gamma`: the averages; `lb`: the bound; `count`.

    Source:
        Schaipp et al. 2023, Algorithm 2.
    """
    growth, rho = 1 + learning_rate * weight_decay, 1 - b1**t
    f_avg = b1 * old.get("barf", 0.0) + (1 - b1) * value
    gamma = b1 * old.get("gamma", 0.0) + (1 - b1) * (g @ p)
    d = b1 * old.get("exp_avg", 0.0) + (1 - b1) * g
    v = b2 * old.get("exp_avg_sq", 0.0) + (1 - b2) * g**2
    metric = eps + np.sqrt(v / (1 - b2**t))
    bounds = (old.get("lb", lower_bound), lower_bound, adapt_lower_bound)
    lengths = (f_avg - gamma, d @ p, d @ (d / metric))
    tau, lb = _truncated(learning_rate, growth, rho, *lengths, *bounds)
    new = (p - tau * d / metric) / growth
    state = {"exp_avg": d, "exp_avg_sq": v, "barf": f_avg, "gamma": gamma, "lb": lb, "count": t}
    return new - p, state
