"""The equations of step-size-free methods in NumPy, on all leaves as one vector.

A paper is a function (t, g, p, f, old, **arguments) of the step's number, the gradient, the
parameters, the loss and what it returned last time; it returns the update and the new state, by
the names of optax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .trajectory import at, inputs

STEPS = 20


def check_paper(factory, paper, arguments, tolerance, *, points=False):
    """Compare the updates and the state of each step, relative to their largest element.

    With `points` compare p + u in the place of an update u that is the difference of two points.
    """
    gradients, params = inputs(STEPS)
    losses = np.float32(np.random.default_rng(3).exponential(size=STEPS) * 8).astype(float)
    tx = factory(**arguments)
    update = jax.jit(lambda g, s, p, f: tx.update(g, s, p, value=f))
    state, old = tx.init(as_arrays(params[0])), {}
    for t, (g, p, f) in enumerate(zip(gradients, params, losses, strict=True), start=1):
        updates, state = update(as_arrays(g), state, as_arrays(p), jnp.asarray(f))
        numbers = {name: now(value, t - 1) for name, value in arguments.items()}
        expected, old = paper(t, vector(g), vector(p), f, old, **numbers)
        origin = vector(p) if points else 0.0
        pairs = {"u": (origin + vector(updates), origin + expected)}
        for name, value in old.items():
            found = getattr(state, name) if hasattr(state, name) else optax.tree.get(state, name)
            pairs[name] = vector(found).reshape(np.shape(value)), value
        for name, (found, value) in pairs.items():
            size = np.max(np.abs(value))
            np.testing.assert_allclose(
                found,
                value,
                rtol=tolerance,
                atol=tolerance * size,
                err_msg=f"{name} of step {t}",
            )


def now(value, count):
    """An argument at a step: of a pair each."""
    return tuple(at(v, count) for v in value) if isinstance(value, tuple) else at(value, count)


def as_arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def squares(x):
    return np.sum(x**2)


# Ivgi et al. 2023; Khaled et al. 2023.


def dog(t, g, p, f, old, *, init_step, eps=1e-8):
    kind, number = init_step
    start = old.get("init_params", p)
    first = {"distance": number, "heuristic": number * (1 + np.sqrt(squares(p)))}.get(kind, 0.0)
    r = max(old.get("max_dist", first), np.sqrt(squares(p - start)))
    total = old.get("sum_sq_norm_grads", 0.0) + squares(g)
    rate = number if kind == "learning_rate" and t == 1 else r / np.sqrt(total + eps)
    return rate * g, {
        "init_params": start,
        "max_dist": r,
        "sum_sq_norm_grads": total,
        "is_init_step": False,
    }


def dowg(t, g, p, f, old, *, init_estim_sq_dist, eps=1e-4):
    start = old.get("init_params", p)
    squared = max(old.get("estim_sq_dist", init_estim_sq_dist), squares(p - start))
    weighted = old.get("weighted_sq_norm_grads", 0.0) + squared * squares(g)
    state = {
        "init_params": start,
        "estim_sq_dist": squared,
        "weighted_sq_norm_grads": weighted,
    }
    return squared / (np.sqrt(weighted) + eps) * g, state


# Orabona & Tommasi 2017, with the negative gradient c.


def cocob(t, g, p, f, old, *, alpha=100.0, eps=1e-8):
    c, start, zero = -g, old.get("init_particles", p), np.zeros_like(g)
    largest = np.maximum(old.get("scale", eps + zero), abs(c))
    total = old.get("subgradients", zero) + abs(c)
    reward = np.maximum(old.get("reward", zero) + (p - start) * c, 0)
    theta = old.get("cumulative_gradients", zero) + c
    new = start + theta / (largest * np.maximum(total + largest, alpha * largest)) * (
        largest + reward
    )
    return new - p, {
        "init_particles": start,
        "scale": largest,
        "subgradients": total,
        "reward": reward,
        "cumulative_gradients": theta,
    }


# Defazio & Mishchenko 2023; Mishchenko & Defazio 2023.


def adam_factor(t, b1, b2, bias_correction):
    return np.sqrt(1 - b2**t) / (1 - b1**t) if bias_correction else 1.0


def dadapt_adamw(
    t,
    g,
    p,
    f,
    old,
    *,
    learning_rate=1.0,
    betas=(0.9, 0.999),
    eps=1e-8,
    estim_lr0=1e-6,
    weight_decay=0.0,
    bias_correction=False,
):
    b1, b2 = betas
    zero, c = np.zeros_like(g), np.sqrt(b2)
    d = old.get("estim_lr", estim_lr0)
    rate = d * learning_rate * adam_factor(t, b1, b2, bias_correction)
    s, v = old.get("grad_sum", zero), old.get("exp_avg_sq", zero)
    product = np.sum(g * s / (np.sqrt(v) + eps))
    r = c * old.get("numerator_weighted", 0.0) + (1 - c) * rate * product
    m = b1 * old.get("exp_avg", zero) + (1 - b1) * rate * g
    v = b2 * v + (1 - b2) * g**2
    s = c * s + (1 - c) * rate * g
    u = -m / (np.sqrt(v) + eps) - weight_decay * rate * p
    return u, {
        "exp_avg": m,
        "exp_avg_sq": v,
        "grad_sum": s,
        "numerator_weighted": r,
        "estim_lr": max(d, r / ((1 - c) * np.sum(abs(s)))),
        "count": t,
    }


def prodigy(
    t,
    g,
    p,
    f,
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
    b1, b2 = betas
    zero, c = np.zeros_like(g), np.sqrt(b2) if beta3 is None else beta3
    start = old.get("params0", p)
    d = old.get("estim_lr", estim_lr0)
    rate = d * learning_rate * adam_factor(t, b1, b2, bias_correction)
    m = b1 * old.get("exp_avg", zero) + (1 - b1) * d * g
    v = b2 * old.get("exp_avg_sq", zero) + (1 - b2) * d**2 * g**2
    # optax counts in units of d_0.
    r = c * old.get("numerator_weighted", 0.0) + d * rate * (g @ (start - p)) / estim_lr0
    s = c * old.get("grad_sum", zero) + d * (d if safeguard_warmup else rate) * g / estim_lr0
    u = -rate * (m / (np.sqrt(v) + d * eps) + weight_decay * p)
    return u, {
        "exp_avg": m,
        "exp_avg_sq": v,
        "grad_sum": s,
        "params0": start,
        "numerator_weighted": r,
        "estim_lr": max(d, estim_lr_coef * r / np.sum(abs(s))),
        "count": t,
    }


# Loizou et al. 2021; Schaipp et al. 2023.


def polyak(t, g, p, f, old, *, f_min=0.0, max_learning_rate=1.0, eps=0.0, variant="sps"):
    gap = f - f_min if variant == "sps" else max(f - f_min, 0)
    rate = 0.0 if squares(g) + eps == 0 else gap / (squares(g) + eps)
    return min(rate, max_learning_rate) * g, {}


def polyak_sgd(t, g, p, f, old, *, scaling=1.0, **arguments):
    u, _ = polyak(t, g, p, f, old, **arguments)
    return -scaling * u, {}


def truncated(alpha, growth, rho, average, product, norm, lb, lower_bound, adapt):
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


def momo(
    t,
    g,
    p,
    f,
    old,
    *,
    learning_rate=1.0,
    beta=0.9,
    lower_bound=0.0,
    weight_decay=0.0,
    adapt_lower_bound=False,
):
    b = 0 if t == 1 else beta
    growth = 1 + learning_rate * weight_decay
    f_avg = b * old.get("barf", 0.0) + (1 - b) * f
    gamma = b * old.get("gamma", 0.0) + (1 - b) * (g @ p)
    d = b * old.get("exp_avg", 0.0) + (1 - b) * g
    tau, lb = truncated(
        learning_rate,
        growth,
        1,
        f_avg - gamma,
        d @ p,
        squares(d),
        old.get("lb", lower_bound),
        lower_bound,
        adapt_lower_bound,
    )
    new = (p - tau * d) / growth
    return new - p, {"exp_avg": d, "barf": f_avg, "gamma": gamma, "lb": lb, "count": t}


def momo_adam(
    t,
    g,
    p,
    f,
    old,
    *,
    learning_rate=1e-2,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    lower_bound=0.0,
    weight_decay=0.0,
    adapt_lower_bound=False,
):
    growth, rho = 1 + learning_rate * weight_decay, 1 - b1**t
    f_avg = b1 * old.get("barf", 0.0) + (1 - b1) * f
    gamma = b1 * old.get("gamma", 0.0) + (1 - b1) * (g @ p)
    d = b1 * old.get("exp_avg", 0.0) + (1 - b1) * g
    v = b2 * old.get("exp_avg_sq", 0.0) + (1 - b2) * g**2
    metric = eps + np.sqrt(v / (1 - b2**t))
    tau, lb = truncated(
        learning_rate,
        growth,
        rho,
        f_avg - gamma,
        d @ p,
        d @ (d / metric),
        old.get("lb", lower_bound),
        lower_bound,
        adapt_lower_bound,
    )
    new = (p - tau * d / metric) / growth
    state = {"exp_avg": d, "exp_avg_sq": v, "barf": f_avg, "gamma": gamma, "lb": lb, "count": t}
    return new - p, state


# Cutkosky et al. 2023, around gradient descent; |h| + eps in m as in the authors' program.


def mechanic(
    t,
    g,
    p,
    f,
    old,
    *,
    rate,
    weight_decay=1e-2,
    eps=1e-8,
    s_init=1e-6,
    num_betas=6,
    clip_rewards=False,
):
    beta = 1 - 0.1 ** np.arange(1, num_betas + 1)
    start, zero = old.get("x0", p), np.zeros(num_betas)
    r, m, v = (old.get(name, zero) for name in "rmv")
    s = old.get("s", zero + s_init)
    scale = np.sum(s)
    delta = (p - start) / scale
    unit = p / np.sqrt(squares(p)) if np.any(p) else p
    pull = weight_decay * scale * np.sqrt(squares(g)) * unit
    h = delta @ (g + pull)
    counted = np.clip(h, -m, m) if clip_rewards else h
    m = np.maximum(beta * m, abs(h) + eps)
    v = beta**2 * v + h**2
    r = beta * r - s * counted
    r = r if clip_rewards else np.maximum(r, 0)
    s = (s_init / num_betas * m + np.maximum(r, 0)) / (np.sqrt(v) + eps)
    u = start - p + np.sum(s) * (delta - rate * g)
    return u, {"x0": start, "r": r, "m": m, "v": v, "s": s, "count": t}
