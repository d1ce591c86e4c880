"""Methods that estimate the distance to go, on all leaves as one vector."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import equation, norm, square


def _squares(x):
    return np.sum(x**2)


@equation(whole=True)
def scale_by_dog(t, g, p, old, *, init_step=("heuristic", 1e-6), eps=1e-8):
    """DoG's direction r / sqrt(sum of ||g||^2 + eps) g, r the greatest distance from the start.

    Args:
        init_step: ("distance", r): the first r; ("heuristic", a): a (1 + ||p||);
            ("learning_rate", rate): the first step in the place of r.
        eps: added to the sum.

    Slots:
        `init_params`, `max_dist`, `sum_sq_norm_grads`, `is_init_step`.

    Source:
        Ivgi et al. 2023, equation (DoG).
    """
    kind, number = init_step
    start = old.get("init_params", p)
    first = {"distance": number, "heuristic": number * (1 + norm(p))}.get(kind, 0.0)
    r = max(old.get("max_dist", first), norm(p - start))
    total = old.get("sum_sq_norm_grads", 0.0) + _squares(g)
    rate = number if kind == "learning_rate" and t == 1 else r / np.sqrt(total + eps)
    return rate * g, {
        "init_params": start,
        "max_dist": r,
        "sum_sq_norm_grads": total,
        "is_init_step": False,
    }


@equation(whole=True)
def scale_by_dowg(t, g, p, old, *, init_estim_sq_dist=None, eps=1e-4):
    """DoWG's direction r^2 / (sqrt(sum of r^2 ||g||^2) + eps) g.

    Args:
        init_estim_sq_dist: the first r^2; None: eps.
        eps: added to the root.

    Slots:
        `init_params`; `estim_sq_dist`: r^2; `weighted_sq_norm_grads`: the sum.

    Source:
        Khaled et al. 2023, Algorithm 1.
    """
    start = old.get("init_params", p)
    first = eps if init_estim_sq_dist is None else init_estim_sq_dist
    squared = max(old.get("estim_sq_dist", first), _squares(p - start))
    weighted = old.get("weighted_sq_norm_grads", 0.0) + squared * _squares(g)
    return squared / (np.sqrt(weighted) + eps) * g, {
        "init_params": start,
        "estim_sq_dist": squared,
        "weighted_sq_norm_grads": weighted,
    }


@equation
def scale_by_cocob(t, g, p, old, *, alpha=100.0, eps=1e-8):
    """COCOB's step: the bets of a gambler on each coordinate.

    Args:
        alpha: the sum of |g| counts at least as alpha times the largest |g|.
        eps: the first value of the largest |g|.

    Slots:
        `init_particles`: the start; `scale`: the largest |g|; `subgradients`: the sum of |g|;
        `reward`; `cumulative_gradients`: the sum of -g.

    Source:
        Orabona & Tommasi 2017, Algorithm 2.
    """
    c, zero = -g, np.zeros_like(g)
    start = old.get("init_particles", p)
    largest = np.maximum(old.get("scale", eps + zero), abs(c))
    total = old.get("subgradients", zero) + abs(c)
    reward = np.maximum(old.get("reward", zero) + (p - start) * c, 0)
    theta = old.get("cumulative_gradients", zero) + c
    fraction = theta / (largest * np.maximum(total + largest, alpha * largest))
    return start + fraction * (largest + reward) - p, {
        "init_particles": start,
        "scale": largest,
        "subgradients": total,
        "reward": reward,
        "cumulative_gradients": theta,
    }


def _adam_factor(t, b1, b2, bias_correction):
    return np.sqrt(1 - b2**t) / (1 - b1**t) if bias_correction else 1.0


@equation(whole=True)
def dadapt_adamw(
    t,
    g,
    p,
    old,
    *,
    learning_rate=1.0,
    betas=(0.9, 0.999),
    eps=1e-8,
    estim_lr0=1e-6,
    weight_decay=0.0,
    bias_correction=False,
):
    """D-Adaptation for AdamW: a lower bound d of the distance to the solution is the step size.

    Args:
        learning_rate: the factor of d.
        betas: the decay rates of the moments.
        eps: added to the roots.
        estim_lr0: the first d.
        weight_decay: the decay of the weights.
        bias_correction: whether the step has Adam's factor sqrt(1 - b2^t) / (1 - b1^t).

    Slots:
        `exp_avg`, `exp_avg_sq`: the moments; `grad_sum`: s; `numerator_weighted`: r;
        `estim_lr`: d; `count`.

    Source:
        Defazio & Mishchenko 2023, Algorithm 5.
    """
    b1, b2 = betas
    zero, c = np.zeros_like(g), np.sqrt(b2)
    d = old.get("estim_lr", estim_lr0)
    rate = d * learning_rate * _adam_factor(t, b1, b2, bias_correction)
    s, v = old.get("grad_sum", zero), old.get("exp_avg_sq", zero)
    product = np.sum(g * s / (np.sqrt(v) + eps))
    r = c * old.get("numerator_weighted", 0.0) + (1 - c) * rate * product
    m = b1 * old.get("exp_avg", zero) + (1 - b1) * rate * g
    v = b2 * v + (1 - b2) * g**2
    s = c * s + (1 - c) * rate * g
    return -m / (np.sqrt(v) + eps) - weight_decay * rate * p, {
        "exp_avg": m,
        "exp_avg_sq": v,
        "grad_sum": s,
        "numerator_weighted": r,
        "estim_lr": max(d, r / ((1 - c) * np.sum(abs(s)))),
        "count": t,
    }


@equation(whole=True)
def prodigy(
    t,
    g,
    p,
    old,
    *,
    learning_rate=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    estim_lr0=1e-6,
    estim_lr_coef=1.0,
    weight_decay=0.0,
    safeguard_warmup=False,
    bias_correction=False,
):
    """Prodigy: D-Adaptation with an estimate that is weighted by d^2.

    Args:
        learning_rate: the factor of d.
        betas: the decay rates of the moments.
        beta3: the decay rate of r and s; None: the root of betas[1].
        eps: added to the root, times d.
        estim_lr0: the first d.
        estim_lr_coef: the factor of the estimate.
        weight_decay: the decay of the weights.
        safeguard_warmup: whether s leaves the learning rate out.
        bias_correction: whether the step has Adam's factor sqrt(1 - b2^t) / (1 - b1^t).

    Slots:
        `exp_avg`, `exp_avg_sq`: the moments; `grad_sum`: s, and `numerator_weighted`: r, both in
        units of the first d; `params0`: the start; `estim_lr`: d; `count`.

    Source:
        Mishchenko & Defazio 2023, Algorithm 4.
    """
    b1, b2 = betas
    zero, c = np.zeros_like(g), np.sqrt(b2) if beta3 is None else beta3
    start = old.get("params0", p)
    d = old.get("estim_lr", estim_lr0)
    rate = d * learning_rate * _adam_factor(t, b1, b2, bias_correction)
    m = b1 * old.get("exp_avg", zero) + (1 - b1) * d * g
    v = b2 * old.get("exp_avg_sq", zero) + (1 - b2) * d**2 * square(g)
    r = c * old.get("numerator_weighted", 0.0) + d * rate * (g @ (start - p)) / estim_lr0
    s = c * old.get("grad_sum", zero) + d * (d if safeguard_warmup else rate) * g / estim_lr0
    return -rate * (m / (np.sqrt(v) + d * eps) + weight_decay * p), {
        "exp_avg": m,
        "exp_avg_sq": v,
        "grad_sum": s,
        "params0": start,
        "numerator_weighted": r,
        "estim_lr": max(d, estim_lr_coef * r / np.sum(abs(s))),
        "count": t,
    }


@equation(whole=True)
def mechanized_sgd(
    t,
    g,
    p,
    old,
    *,
    learning_rate,
    weight_decay=1e-2,
    eps=1e-8,
    s_init=1e-6,
    num_betas=6,
    clip_rewards=False,
):
    """Mechanic around gradient descent: p = start + (sum of s) delta, delta the base's sum.

    Args:
        learning_rate: that of gradient descent.
        weight_decay: the strength of the pull towards the origin.
        eps: added to |h| in m, as in the authors' program, and to the root.
        s_init: the first sum of the scales s.
        num_betas: the number of scales, with decay rates 1 - 10^-i.
        clip_rewards: whether h is clipped to [-m, m], in the place of r >= 0.

    Slots:
        `x0`: the start; `r`, `m`, `v`, `s`: a number for each decay rate; `count`.

    Source:
        Cutkosky et al. 2023, Algorithm 1.
    """
    beta = 1 - 0.1 ** np.arange(1, num_betas + 1)
    start, zero = old.get("x0", p), np.zeros(num_betas)
    r, m, v = (old.get(name, zero) for name in "rmv")
    s = old.get("s", zero + s_init)
    scale = np.sum(s)
    delta = (p - start) / scale
    unit = p / norm(p) if np.any(p) else p
    h = delta @ (g + weight_decay * scale * norm(g) * unit)
    counted = np.clip(h, -m, m) if clip_rewards else h
    m = np.maximum(beta * m, abs(h) + eps)
    v = beta**2 * v + h**2
    r = beta * r - s * counted
    r = r if clip_rewards else np.maximum(r, 0)
    s = (s_init / num_betas * m + np.maximum(r, 0)) / (np.sqrt(v) + eps)
    u = start - p + np.sum(s) * (delta - learning_rate * g)
    return u, {"x0": start, "r": r, "m": m, "v": v, "s": s, "count": t}
