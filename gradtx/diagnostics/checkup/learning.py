"""`check_learning`: whether a network learns one batch, and whether its optimizer suits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gradtx.diagnostics.checkup.derivatives import derivative_requests, wrong_derivatives
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.optimizer import (
    always_clipped,
    learning_rate,
    update_ratios,
    weight_decay,
)
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, subject_of
from gradtx.diagnostics.checkup.trials import FALL, Trials
from gradtx.recipes.adam import adam

# The learning rates of adam, as multiples of 1e-3, one of which has to do.
_RATES_OF_ADAM = (1.0, 10.0, 0.1)
# A classifier learns the labels of a batch to this share of its loss, in so many steps.
_LEARNED, _LONG = 0.3, 160


def check_learning(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
    tx: Any = None,
) -> tuple[Finding, ...]:
    """Train on one batch for 40 steps a few times, and see what keeps the loss from falling.

    The kinds of findings: "cannot_overfit" (the loss does not fall by a hundredth, with adam at
    learning rates of 1e-4, 1e-3 and 1e-2; or that of a classifier does not fall by three tenths in
    160 steps), "wrong_gradient" (a function's custom derivative is not what central differences
    along random directions give), "learning_rate" (the loss rises with `tx`, and falls if its steps
    are shorter; or it hardly falls, and does if they are at least 100 times as long),
    "update_ratio" (a step is longer than the weights, or shorter than their rounding),
    "weight_decay" (a step is mostly decay) and "always_clipped" (the gradient is cut down to a
    tenth or less in each step, without being normalized later).

    It takes 1 to 3 seconds of a CPU for a small perceptron, and 24 to 49 for a transformer with 12
    layers and 10M parameters on 256 tokens, without and with `tx`. Where the loss does not fall,
    there are up to ten more trials of 40 to 160 steps.

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. They are not modified. Leaves that are not inexact
            arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.
        tx: the optimizer, a gradient transformation; None: nothing is said about updates.

    Returns:
        The findings.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, or `params` has
            no inexact arrays.

    Source:
        Karpathy 2019, "A recipe for training neural networks", for overfitting one batch and the
        ratio of updates to weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics, sgd
        >>> def loss_fn(params, x):
        ...     return jnp.mean((x @ params - 1) ** 2)
        >>> x = jnp.linspace(0.0, 1.0, 32).reshape(8, 4)
        >>> for finding in diagnostics.check_learning(loss_fn, jnp.ones(4), x, tx=sgd(10.0)):
        ...     print(finding.severity, finding.kind, finding.evidence["factor"])
        error learning_rate 0.01
    """
    subject = subject_of("check_learning", loss_fn, params, batch, has_aux=has_aux, tx=tx)
    return tuple(examine(subject, LEARNING))


def _findings(subject: Subject) -> Iterator[Finding]:
    yield from wrong_derivatives(subject)
    has_gradient = subject.endless_loop is None and any(np.any(g) for g in subject.gradients)
    # Other examinations say why there is nothing to learn from.
    if not subject.is_finite or not has_gradient:
        return
    usual = Trials(subject, adam(1e-3))
    fit = [*_cannot_overfit(subject, usual)] or [*_stays_high(subject, usual)]
    if subject.tx is None:
        yield from fit
        return
    trials = Trials(subject, subject.tx)
    own = trials.run()
    yield from update_ratios(trials, own)
    yield from weight_decay(trials)
    yield from always_clipped(trials, own)
    yield from [*learning_rate(trials, own)] or fit


LEARNING = Examination(_findings, derivative_requests)


# The loss of one batch.


def _cannot_overfit(subject: Subject, trials: Trials) -> Iterator[Finding]:
    falls = {}
    for factor in _RATES_OF_ADAM:
        trial = trials.run(factor, until=FALL)
        if trial.has_fallen:
            return
        falls[1e-3 * factor] = trial.fall
    # A loss with parts that are stopped, as in a game, is not what its gradient descends.
    is_descent = _is_descent(subject)
    yield Finding(
        "cannot_overfit",
        "warning" if is_descent else "remark",
        f"the loss of this one batch, {subject.loss:.4g}, does not fall in 40 steps of adam, "
        "neither with a learning rate of 1e-4, nor of 1e-3 or 1e-2.",
        "look at the findings on the labels, the shapes and the signal; train the last layer alone "
        "on two examples, and add the others one by one.",
        place="params",
        evidence={"loss": subject.loss, "falls": falls},
    )


def _stays_high(subject: Subject, trials: Trials) -> Iterator[Finding]:
    """Whether a classifier learns some of its labels by heart, which any network can."""
    classes = [one.softmax.number for one in subject.cross_entropies if one.labels is not None]
    if not classes or not 0.5 < subject.loss / np.log(max(classes)) < 3:
        return
    falls = {}
    for factor in _RATES_OF_ADAM[:2]:
        falls[1e-3 * factor] = trials.run(factor, steps=_LONG, until=_LEARNED).fall
        if falls[1e-3 * factor] > _LEARNED:
            return
    least = subject.loss * (1 - max(falls.values()))
    yield Finding(
        "cannot_overfit",
        "warning",
        f"the loss of this one batch falls from {subject.loss:.4g} to {least:.4g} only in {_LONG} "
        "steps of adam, with the better of the learning rates 1e-3 and 1e-2: the network does not "
        "even learn these labels by heart.",
        "look whether the same inputs have different labels, and whether a layer is too narrow for "
        "that many classes.",
        place="params",
        evidence={"loss": subject.loss, "falls": falls},
    )


def _is_descent(subject: Subject) -> bool:
    """Whether the loss changes along its gradient as the gradient says."""
    traced = subject.traced
    size = np.sqrt(sum(float(np.sum(np.abs(p) ** 2)) for p in map(np.asarray, traced.params)))
    length = np.sqrt(sum(float(np.sum(np.abs(g) ** 2)) for g in subject.gradients))

    @jax.jit
    def moved(step: jax.Array) -> jax.Array:
        pairs = zip(traced.params, subject.gradients, strict=True)
        return traced.call([p + (step * g).astype(p.dtype) for p, g in pairs], traced.data)

    for share in (1e-2, 1e-3, 1e-4):
        step = share * max(size, 1e-3) / length
        slope = (float(moved(step)) - float(moved(-step))) / (2 * step)
        if 0.5 < slope / length**2 < 1.5:
            return True
    return False
