"""Methods on matrices: Muon, NorMuon, Shampoo and SOAP."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import equation

STANDARD = (3.4445, -4.7750, 2.0315)


def orthogonalized(x, ns_coeffs=STANDARD, ns_steps=5, preconditioning="frobenius", eps=0.0):
    """U f(S) V^T of matrices U S V^T, with singular values where Muon multiplies matrices.

    Args:
        x: an array whose last two axes are those of a matrix.
        ns_coeffs: (a, b, c) of s <- a s + b s^3 + c s^5, or a row for each iteration.
        ns_steps: the number of iterations of one row.
        preconditioning: by which norm the matrix is divided: "frobenius", "spectral", "schatten"
            (the 4-norm); "aol": by the roots of the absolute row sums of its Gram matrix.
        eps: added to the norm.

    Returns:
        The array.
    """
    if np.ndim(x) > 2:
        return np.stack([orthogonalized(m, ns_coeffs, ns_steps, preconditioning, eps) for m in x])
    if preconditioning == "aol":
        gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        scale = 1 / np.sqrt(np.abs(gram).sum(axis=1))
        x = scale[:, None] * x if x.shape[0] <= x.shape[1] else x * scale
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    if preconditioning != "aol":
        order = {"frobenius": 2, "spectral": np.inf, "schatten": 4}[preconditioning]
        s = s / (np.linalg.norm(s, order) + eps)
    rows = [ns_coeffs] * ns_steps if np.ndim(ns_coeffs) == 1 else ns_coeffs
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@equation
def scale_by_muon(
    t,
    g,
    p,
    old,
    *,
    ns_coeffs=STANDARD,
    ns_steps=5,
    beta=0.95,
    eps=1e-8,
    nesterov=True,
    adaptive=False,
    preconditioning="frobenius",
    bias_correction=True,
):
    """Muon's direction: the average of the gradients with singular values near 1.

    Args:
        ns_coeffs: see `orthogonalized`.
        ns_steps: see `orthogonalized`.
        beta: the decay rate of m <- beta m + (1 - beta) g.
        eps: see `orthogonalized`.
        nesterov: whether m_hat looks ahead, see `scale_by_adam`.
        adaptive: whether the direction o is multiplied by the inner product of m_hat and o.
        preconditioning: see `orthogonalized`.
        bias_correction: whether m is divided by 1 - beta^t.

    Slots:
        `mu`: m.

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    m = beta * old["mu"] + (1 - beta) * g
    now, ahead = (1 - beta**t, 1 - beta ** (t + 1)) if bias_correction else (1, 1)
    m_hat = beta * m / ahead + (1 - beta) * g / now if nesterov else m / now
    o = orthogonalized(m_hat, ns_coeffs, ns_steps, preconditioning, eps)
    if adaptive:
        o = np.sum(m_hat * o, axis=(-2, -1), keepdims=True) * o
    return o, {"mu": m}


@equation
def scale_by_normuon(
    t,
    g,
    p,
    old,
    *,
    ns_coeffs=STANDARD,
    ns_steps=5,
    beta=0.95,
    b2=0.95,
    eps=1e-8,
    nesterov=False,
    preconditioning="frobenius",
    consistent_rms=0.2,
):
    """NorMuon's direction: Muon's, each neuron divided by the root of its mean square.

    Args:
        ns_coeffs: see `orthogonalized`.
        ns_steps: see `orthogonalized`.
        beta: the decay rate of the average m.
        b2: the decay rate of v, the average over steps of each column's mean square.
        eps: added to the root, and see `orthogonalized`.
        nesterov: whether the average looks ahead: beta m + (1 - beta) g.
        preconditioning: see `orthogonalized`.
        consistent_rms: the root mean square of the update.

    Slots:
        `mu`: m; `nu`: v.

    Source:
        Li et al. 2025, Algorithm 1, with columns for rows.
    """
    m = beta * old["mu"] + (1 - beta) * g
    ahead = beta * m + (1 - beta) * g if nesterov else m
    o = orthogonalized(ahead, ns_coeffs, ns_steps, preconditioning, eps)
    v = b2 * old["nu"] + (1 - b2) * np.mean(o**2, axis=-2)
    n = o / (np.sqrt(v)[..., None, :] + eps)
    size = np.sqrt(np.sum(n**2, axis=(-2, -1), keepdims=True))
    u = consistent_rms * np.sqrt(n.shape[-2] * n.shape[-1]) * n / size
    return u, {"mu": m, "nu": v}


def unfolded(x, axis):
    """An array as a matrix whose rows belong to an axis."""
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def along(matrix, x, axis):
    """The product of a matrix with an array along an axis."""
    return np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)


@equation
def scale_by_shampoo(
    t, g, p, old, *, b1=0.9, b2=1.0, eps=1e-6, update_interval=1, max_dimension=1024
):
    """Shampoo's direction: m_hat times the root L^(-1 / (2 k)) along each of the k axes.

    Args:
        b1: the decay rate of the average m of the gradients.
        b2: the decay rate of L, the average of the Gram matrices; 1: a sum.
        eps: the share of the greatest eigenvalue that is added to all.
        update_interval: after how many steps the roots are taken anew.
        max_dimension: of a longer axis only the diagonal of L is used.

    Slots:
        `m`, `sums`, `roots`: of the paper; those of the library have other forms.

    Source:
        Gupta et al. 2018, Algorithm 2. A vector is scaled by AdaGrad's diagonal.
    """
    shape = np.shape(g)
    m = b1 * old["m"] + (1 - b1) * g
    u, (share, weight) = m / (1 - b1**t), (1, 1) if b2 == 1 else (1 - b2, 1 - b2**t)
    if len(shape) < 2:
        v = b2 * old["sums"] + share * g**2
        return u / np.sqrt(v / weight + eps * np.max(v) / weight), {"m": m, "sums": v}
    sums = old["sums"] if t > 1 else [0.0] * len(shape)
    sums = [b2 * s + share * unfolded(g, i) @ unfolded(g, i).T for i, s in enumerate(sums)]
    fresh = [_inverse_root(s / weight, 2 * len(shape), eps, max_dimension) for s in sums]
    # A diagonal costs nothing, so it is never old.
    is_due = (t - 1) % update_interval == 0
    roots = [
        new if is_due or len(new) > max_dimension else last
        for new, last in zip(fresh, old["roots"] if t > 1 else fresh, strict=True)
    ]
    for axis, root in enumerate(roots):
        u = along(root, u, axis)
    return u, {"m": m, "sums": sums, "roots": roots}


def _inverse_root(s, order, eps, max_dimension):
    if len(s) > max_dimension:
        s = np.diag(np.diag(s))
    values, vectors = np.linalg.eigh(s + eps * np.linalg.norm(s, 2) * np.eye(len(s)))
    return (vectors * values ** (-1 / order)) @ vectors.T


@equation
def scale_by_soap(
    t,
    g,
    p,
    old,
    *,
    b1=0.95,
    b2=0.95,
    shampoo_beta=None,
    eps=1e-8,
    precondition_frequency=10,
    max_precond_dim=10000,
):
    """SOAP's direction: Adam's in the eigenbasis of Shampoo's Gram matrices.

    It is determined where the first gradient has as many different singular values along each axis
    as the axis is long; elsewhere rounding chooses the basis.

    Args:
        b1: the decay rate of the first moment.
        b2: the decay rate of the second moment, in the basis.
        shampoo_beta: the decay rate of the Gram matrices; None: b2.
        eps: added to the root.
        precondition_frequency: after how many steps the basis is turned, by a step of QR.
        max_precond_dim: a longer axis keeps its basis.

    Slots:
        `m`, `v`, `sums`, `bases`: of the paper; the first step only starts the bases.

    Source:
        Vyas et al. 2024, Algorithms 3 and 4.
    """
    shape, beta = np.shape(g), b2 if shampoo_beta is None else shampoo_beta
    axes = [i for i, n in enumerate(shape) if len(shape) > 1 and n <= max_precond_dim]
    grams = {i: (1 - beta) * unfolded(g, i) @ unfolded(g, i).T for i in axes}
    if t == 1:
        bases = {i: np.linalg.eigh(s)[1][:, ::-1] for i, s in grams.items()}
        zero = np.zeros(shape)
        return zero, {"m": zero, "v": zero, "sums": grams, "bases": bases}
    bases, s = dict(old["bases"]), t - 1
    m = b1 * old["m"] + (1 - b1) * g
    v = b2 * old["v"] + (1 - b2) * _rotated(bases, g) ** 2
    u = _rotated(bases, m) / (1 - b1**s) / (np.sqrt(v / (1 - b2**s)) + eps)
    for i, q in bases.items():
        u = along(q, u, i)
    sums = {i: beta * last + grams[i] for i, last in old["sums"].items()}
    if s % precondition_frequency == 0:
        for i, q in bases.items():
            order = np.argsort(-np.diag(q.T @ sums[i] @ q))
            v = np.take(v, order, axis=i)
            bases[i] = np.linalg.qr(sums[i] @ q[:, order])[0]
    return u, {"m": m, "v": v, "sums": sums, "bases": bases}


def _rotated(bases, x):
    for i, q in bases.items():
        x = along(q.T, x, i)
    return x
