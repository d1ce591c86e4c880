"""The authors' own programs in NumPy, where they differ from the paper.

Each function is one step. It takes the number of the step `t` (1 at the first), the gradient `g`,
the parameters `p`, the memory `old` that the last step left, empty at the start, and the program's
arguments; it returns the new parameters and the new memory.
"""

import numpy as np


def run(program, start, gradient, steps, **arguments):
    """The parameters after each step."""
    p, old, path = start, {}, []
    for t in range(1, steps + 1):
        p, old = program(t, gradient(t, p), p, old, **arguments)
        path.append(p)
    return path


# konstmish/prodigy and facebookresearch/dadaptation: the estimate grows before the step is taken.


def prodigy(
    t,
    g,
    p,
    old,
    *,
    lr=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    weight_decay=0.0,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=np.inf,
):
    if lr == 0:
        return p, old
    beta3 = np.sqrt(betas[1]) if beta3 is None else beta3
    d, d_max, start = old.get("d", d0), old.get("d_max", d0), old.get("start", p)
    dlr = d * lr
    m = betas[0] * old.get("m", 0.0) + d * (1 - betas[0]) * g
    v = betas[1] * old.get("v", 0.0) + d * d * (1 - betas[1]) * g * g
    numerator = beta3 * old.get("numerator", 0.0) + d / d0 * dlr * np.sum(g * (start - p))
    s = beta3 * old.get("s", 0.0) + d / d0 * (d if safeguard_warmup else dlr) * g
    d_hat = d_coef * numerator / np.sum(abs(s))
    if d == d0:
        d = max(d, d_hat)
    d_max = max(d_max, d_hat)
    d = min(d_max, d * growth_rate)
    new = p - weight_decay * dlr * p - dlr * m / (np.sqrt(v) + d * eps)
    return new, {
        "d": d,
        "d_max": d_max,
        "start": start,
        "m": m,
        "v": v,
        "numerator": numerator,
        "s": s,
    }


def dadapt_adam(
    t, g, p, old, *, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, growth_rate=np.inf
):
    """With decoupled decay."""
    d, root, zero = old.get("d", 1e-6), np.sqrt(betas[1]), np.zeros_like(g)
    s, v = old.get("s", zero), old.get("v", zero)
    gain = d * lr * np.sum(g * s / (np.sqrt(v) + eps))
    m = betas[0] * old.get("m", zero) + d * lr * (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    s = root * s + d * lr * (1 - root) * g
    numerator = root * old.get("numerator", 0.0) + (1 - root) * gain
    new = p - weight_decay * d * lr * p - m / (np.sqrt(v) + eps)
    d = max(d, min(numerator / ((1 - root) * np.sum(abs(s))), d * growth_rate))
    return new, {"d": d, "s": s, "v": v, "m": m, "numerator": numerator}


# facebookresearch/schedule_free, AdamWScheduleFree and SGDScheduleFree, at the point y.


def schedule_free(
    t,
    g,
    y,
    old,
    *,
    lr,
    beta=0.9,
    beta2=None,
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
):
    """AdamW, or gradient descent without beta2."""
    rate = lr * (t / warmup_steps if t < warmup_steps else 1.0)
    largest = max(rate, old.get("largest", 0.0))
    weight = t**r * largest**weight_lr_power
    total = old.get("total", 0.0) + weight
    c = weight / total
    z, x, v = old.get("z", y), old.get("x", y), old.get("v", 0.0)
    if beta2 is not None:
        v = beta2 * v + (1 - beta2) * g * g
        g = g / (np.sqrt(v / (1 - beta2**t)) + eps)
    z = z - rate * weight_decay * y - rate * g
    x = (1 - c) * x + c * z
    memory = {"largest": largest, "total": total, "z": z, "x": x, "v": v}
    return beta * x + (1 - beta) * z, memory


# zichongli5/NorMuon, in the layout (outputs, inputs) of PyTorch.


def normuon(t, g, p, old, *, lr, weight_decay=0.0, beta=0.95, beta2=0.95, eps=1e-7):
    """With one eps in the three places where the program has 1e-7 and 1e-10."""
    m = beta * old.get("m", 0.0) + (1 - beta) * g
    o = _newton_schulz((1 - beta) * g + beta * m, eps)
    v = beta2 * old.get("v", 0.0) + (1 - beta2) * np.mean(o * o, axis=1, keepdims=True)
    n = o / (np.sqrt(v) + eps)
    u = n * np.linalg.norm(o) / np.linalg.norm(n) * max(1, g.shape[0] / g.shape[1]) ** 0.5
    return p * (1 - lr * weight_decay) - lr * u, {"m": m, "v": v}


def _newton_schulz(x, eps):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt(np.sum(s**2)) + eps)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


# zyushun/Adam-mini 1.1.1: one number for each row in the layout (outputs, inputs) of PyTorch.


def adam_mini(t, g, p, old, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, kind="rows"):
    square = {
        "bias": g * g,
        "rows": np.mean(g * g, axis=-1, keepdims=True),
        "norm": np.mean(g * g),
    }[kind]
    v = betas[1] * old.get("v", 0.0) + (1 - betas[1]) * square
    m = betas[0] * old.get("m", 0.0) + (1 - betas[0]) * g
    h = np.sqrt(v) / np.sqrt(1 - betas[1] ** t) + eps
    p = p * (1 - lr * weight_decay) if kind == "rows" else p
    return p - lr / (1 - betas[0] ** t) / h * m, {"m": m, "v": v}


# nikhilvyas/SOAP, of one matrix; its M is kept in the eigenbasis, which makes no difference.


def soap(t, g, p, old, *, lr, beta=0.95, eps=1e-8, weight_decay=0.01, frequency=10):
    sums = [(1 - beta) * x for x in (g @ g.T, g.T @ g)]
    if t == 1:
        return p, {
            "m": 0 * g,
            "v": 0 * g,
            "sums": sums,
            "q": [np.linalg.eigh(x)[1][:, ::-1] for x in sums],
        }
    left, right = old["q"]
    m = beta * old["m"] + (1 - beta) * g
    v = beta * old["v"] + (1 - beta) * (left.T @ g @ right) ** 2
    s = t - 1
    rate = lr * np.sqrt(1 - beta**s) / (1 - beta**s)
    p = p - rate * left @ (left.T @ m @ right / (np.sqrt(v) + eps)) @ right.T
    p = p - lr * weight_decay * p
    sums = [beta * x + new for x, new in zip(old["sums"], sums, strict=True)]
    q = old["q"]
    if s % frequency == 0:
        orders = [np.argsort(-np.diag(b.T @ x @ b)) for b, x in zip(q, sums, strict=True)]
        v = v[orders[0]][:, orders[1]]
        q = [np.linalg.qr(x @ b[:, order])[0] for b, x, order in zip(q, sums, orders, strict=True)]
    return p, {"m": m, "v": v, "sums": sums, "q": q}


# juntang-zhuang/ACProp-Optimizer, without its rectification.


def acprop(t, g, p, old, *, lr, betas=(0.9, 0.999), eps=1e-16):
    s = old.get("s", 0.0) + (eps if t > 1 else 0.0)
    m = betas[0] * old.get("m", 0.0) + (1 - betas[0]) * g
    size = np.sqrt(s) / np.sqrt(1 - betas[1] ** (t - 1)) + eps if t > 1 else 1.0
    return p - lr * g / size, {"m": m, "s": betas[1] * s + (1 - betas[1]) * (g - m) ** 2}


# timm's NAdamW and that of AlgoPerf's baselines.


def nadamw(t, g, p, old, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
    p = p * (1 - lr * weight_decay)
    m = betas[0] * old.get("m", 0.0) + (1 - betas[0]) * g
    v = betas[1] * old.get("v", 0.0) + (1 - betas[1]) * g * g
    ahead = betas[0] * m + (1 - betas[0]) * g
    denominator = np.sqrt(v) / np.sqrt(1 - betas[1] ** t) + eps
    return p - lr / (1 - betas[0] ** t) * ahead / denominator, {"m": m, "v": v}
