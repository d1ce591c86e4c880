"""The pieces that optimizers are chained of: scaling, decay, limits, projections."""

from __future__ import annotations

import numpy as np

from gradtx.testing.references.equation import equation, norm, square


@equation
def scale(t, g, p, old, *, step_size):
    """The gradient times a number.

    Args:
        step_size: the number.
    """
    return step_size * g, {}


@equation
def scale_by_schedule(t, g, p, old, *, step_size_fn):
    """The gradient times a number that depends on the step.

    Args:
        step_size_fn: a function of the number of the steps before.
    """
    return step_size_fn * g, {}


@equation
def scale_by_learning_rate(t, g, p, old, *, learning_rate=None, flip_sign=True):
    """The gradient times minus the learning rate.

    Args:
        learning_rate: the factor; None: the gradient stays as it is.
        flip_sign: whether there is a minus.
    """
    if learning_rate is None:
        return g, {}
    return learning_rate * g * (-1 if flip_sign else 1), {}


@equation
def add_decayed_weights(t, g, p, old, *, weight_decay=0.0):
    """The gradient with the weights' decay: g + weight_decay p.

    Args:
        weight_decay: the factor of the parameters.
    """
    return g + weight_decay * p, {}


@equation
def centralize(t, g, p, old, *, layout="jax"):
    """A matrix without the mean of what feeds each output.

    Args:
        layout: "jax": an output is a column; "torch": a row.

    Source:
        Yong et al. 2020, equation (1).
    """
    axis = 0 if layout == "jax" else 1
    return (g - np.mean(g, axis=axis, keepdims=True) if np.ndim(g) == 2 else g), {}


@equation
def clip(t, g, p, old, *, max_delta):
    """Every element between -max_delta and max_delta.

    Args:
        max_delta: the limit.
    """
    return np.minimum(np.maximum(g, -max_delta), max_delta), {}


@equation(whole=True)
def clip_by_global_norm(t, g, p, old, *, max_norm):
    """All leaves, shortened together to a norm of at most max_norm.

    Args:
        max_norm: the limit.

    Source:
        Pascanu et al. 2012, Algorithm 1.
    """
    return (g * max_norm / norm(g) if norm(g) > max_norm else g), {}


@equation
def clip_by_block_rms(t, g, p, old, *, threshold):
    """A leaf, shortened to a root mean square of at most `threshold`.

    Args:
        threshold: the limit.

    Source:
        Shazeer & Stern 2018, Section 6.
    """
    return g / max(1, np.sqrt(np.mean(square(g))) / threshold), {}


@equation(whole=True)
def normalize_by_update_norm(t, g, p, old, *, scale_factor=1.0, eps=1e-6):
    """The direction scale_factor g / (||g|| + eps) of all leaves together.

    Args:
        scale_factor: the norm of the update.
        eps: added to the norm.
    """
    return scale_factor * g / (norm(g) + eps), {}


@equation(whole=True)
def normalize(t, g, p, old):
    """The direction g / ||g|| of all leaves together, 0 if it is 0."""
    return (g / norm(g) if np.any(g) else g), {}


@equation
def adaptive_grad_clip(t, g, p, old, *, clipping, eps=1e-3, axis=None):
    """What feeds a unit, shortened to clipping max(||p||, eps).

    Args:
        clipping: the greatest relative length.
        eps: the least norm of the weights.
        axis: the axes that feed a unit; None: all of a vector, the first of two or three,
            otherwise all but the last.

    Source:
        Brock et al. 2021, equation (3).
    """
    if axis is None and sum(n != 1 for n in np.shape(g)) > 1:
        axis = 0 if np.ndim(g) <= 3 else tuple(range(np.ndim(g) - 1))
    allowed = clipping * np.maximum(_lengths(p, axis), eps)
    length = _lengths(g, axis)
    return np.where(length > allowed, allowed / np.where(length > 0, length, 1), 1) * g, {}


def _lengths(x, axis):
    return np.sqrt(np.sum(square(x), axis=axis, keepdims=True))


@equation
def apply_every(t, g, p, old, *, k=1):
    """The sum of k gradients in every k-th step, and 0 in the others.

    Args:
        k: the number of steps.

    Slots:
        `grad_acc`: the sum.
    """
    total = g if t % k == 1 % k else old["grad_acc"] + g
    return (total if t % k == 0 else 0 * g), {"grad_acc": total}


@equation
def keep_params_nonnegative(t, g, p, old):
    """The update, and no further down than to p + u = 0."""
    return np.where(p + g < 0, -p, g), {}
