"""`check_learning`: whether a network learns one batch, and whether its optimizer suits it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gradtx.diagnostics.checkup.derivatives import derivative_requests, wrong_derivatives
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import (
    Examination,
    Subject,
    examine,
    place_of,
    some,
    subject_of,
)
from gradtx.diagnostics.checkup.trials import FALL, Trial, Trials
from gradtx.recipes.adam import adam

# The learning rates of adam, as multiples of 1e-3, one of which has to do.
_RATES_OF_ADAM = (1.0, 10.0, 0.1)
_SMALLER, _LARGER = (0.1, 0.01, 0.001), (10.0, 100.0, 1000.0)
_OPPOSITE = (-1.0, -0.1, -0.01)
# A classifier learns the labels of a batch to this share of its loss, in so many steps.
_LEARNED, _LONG = 0.3, 160
# A step that is longer than a matrix, or shorter than the spacing of float32.
_LARGEST_RATIO, _SMALLEST_RATIO = 1.0, 1e-7
# Matrices that begin near zero are moved away from it on purpose.
_SMALL_WEIGHTS = 1e-3
_LARGEST_DECAY = 2.0
_CLIPPED = 10.0


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
    160 steps), "wrong_gradient" (a function's custom derivative is not
    what central differences along random directions give), "learning_rate" (the loss rises with
    `tx`, and falls if its steps are shorter; or it falls only if they are 100 times as long),
    "update_ratio" (a step is longer than the weights, or shorter than their rounding),
    "weight_decay" (a step is mostly decay) and "always_clipped" (the gradient is cut down to a
    tenth or less in each step, without being normalized later).

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
    yield from _update_ratios(trials, own)
    yield from _weight_decay(trials)
    yield from _always_clipped(trials, own)
    rate = [] if own.has_fallen else [*_learning_rate(trials, own)]
    yield from rate or fit


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


# The optimizer.


def _learning_rate(trials: Trials, own: Trial) -> Iterator[Finding]:
    diverges = own.fall < 0
    if diverges:
        for factor in _SMALLER:
            if trials.run(factor, until=FALL).has_fallen:
                yield _too_large(own, factor)
                return
        for factor in _OPPOSITE:
            if trials.run(factor, until=FALL).has_fallen:
                yield _climbs(own, factor)
                return
        return
    if _warms_up(own):
        return
    for factor in _LARGER:
        if trials.run(factor, until=FALL).has_fallen:
            if factor > _LARGER[0]:
                yield _too_small(own, factor)
            return


def _too_large(own: Trial, factor: float) -> Finding:
    first, last = float(own.losses[0]), float(own.losses[-1])
    return Finding(
        "learning_rate",
        "warning" if np.isfinite(last) and last < 10 * abs(first) else "error",
        f"the learning rate is too large: the loss rises from {first:.4g} to {last:.4g} in 40 "
        f"steps on the same batch, and falls with {factor:g} times the updates.",
        f"multiply the learning rate by {factor:g}; `learning_rate_range` finds a good one.",
        place="tx",
        evidence={"factor": factor, "first": first, "last": last},
    )


def _climbs(own: Trial, factor: float) -> Finding:
    first, last = float(own.losses[0]), float(own.losses[-1])
    return Finding(
        "learning_rate",
        "error",
        f"the optimizer climbs: the loss rises from {first:.4g} to {last:.4g} in 40 steps, and "
        "falls if the updates have the opposite sign.",
        "make sure that the gradient is multiplied by minus the learning rate exactly once, and "
        "that the loss is one to be minimized.",
        place="tx",
        evidence={"factor": factor, "first": first, "last": last},
    )


def _too_small(own: Trial, factor: float) -> Finding:
    return Finding(
        "learning_rate",
        "warning",
        f"the learning rate is too small: in 40 steps on the same batch the loss falls by "
        f"{max(own.fall, 0):.2%} only, and by more than 1% not before the updates are {factor:g} "
        "times as long.",
        f"multiply the learning rate by about {factor:g}; `learning_rate_range` finds a good one.",
        place="tx",
        evidence={"factor": factor, "fall": own.fall},
    )


def _warms_up(own: Trial) -> bool:
    """Whether the updates grow for another reason than the gradient: by a schedule."""
    first, last = own.update_norms[0], own.update_norms[-1]
    return bool(last > 3 * first * max(own.gradient_norms[-1] / own.gradient_norms[0], 1))


def _update_ratios(trials: Trials, own: Trial) -> Iterator[Finding]:
    ratios = {
        name: _norm([update]) / _norm([weights])
        for name, weights, (update,) in _matrices(trials.subject, trials.updates)
        if np.any(update)
    }
    large = {name: ratio for name, ratio in ratios.items() if ratio > _LARGEST_RATIO}
    small = {name: ratio for name, ratio in ratios.items() if ratio < _SMALLEST_RATIO}
    if large:
        worst = max(large.values())
        yield Finding(
            "update_ratio",
            "warning",
            f"the first step changes {some(list(large))} by up to {worst:.3g} times its own norm, "
            "and so forgets how it was initialized.",
            "use a smaller learning rate, about a thousandth of the weights per step; check the "
            "scale of the weights.",
            place=place_of(list(large)),
            evidence={"ratios": large},
        )
    if small and not _warms_up(own):
        least = min(small.values())
        yield Finding(
            "update_ratio",
            "warning",
            f"the first step changes {some(list(small))} by {least:.2g} of its norm only, less "
            "than the rounding of float32.",
            "use a larger learning rate, or an optimizer that adapts to the size of the gradient, "
            "such as adam.",
            place=place_of(list(small)),
            evidence={"ratios": small},
        )


def _weight_decay(trials: Trials) -> Iterator[Finding]:
    """Decay that outweighs the gradient: what is left of an update if the weights are zero."""
    params = trials.subject.traced.params
    without = trials.first_update(trials.subject.gradients, [0 * p for p in params])
    matrices = list(_matrices(trials.subject, trials.updates, without))
    alone = [of_gradient for _, _, (_, of_gradient) in matrices]
    decay = [update - of_gradient for _, _, (update, of_gradient) in matrices]
    weights = [-matrix for _, matrix, _ in matrices]
    if not _norm(alone):
        return
    ratio = _norm(decay) / _norm(alone)
    # What only depends on the size of the weights, as in LAMB, does not point to zero.
    if ratio > _LARGEST_DECAY and _cosine(decay, weights) > 0.5:
        yield Finding(
            "weight_decay",
            "warning",
            f"the weight decay changes the weights {ratio:.3g} times as much as the gradient does "
            "in the first step: they shrink whatever the loss says.",
            "use a weaker weight decay, such as 0.01 to 0.1 with adamw, or 1e-4 to 5e-4 with sgd; "
            "look whether it is multiplied by the learning rate.",
            place="tx",
            evidence={"ratio": ratio},
        )


def _always_clipped(trials: Trials, own: Trial) -> Iterator[Finding]:
    """A gradient that is cut down: updates in proportion to it only where it is far smaller."""
    subject = trials.subject
    zeros = [0 * p for p in subject.traced.params]

    def updates(scale: float) -> list[np.ndarray]:
        scaled = [(scale * g).astype(g.dtype) for g in subject.gradients]
        return trials.first_update(scaled, zeros)

    whole, small, smaller = (updates(scale) for scale in (1.0, 1e-6, 1e-7))
    norm = _norm(whole)
    if not norm or not np.isfinite(norm):
        return
    is_linear = abs(10 * _norm(smaller) / max(_norm(small), 1e-38) - 1) < 0.01
    factor = 1e6 * _norm(small) / norm
    # Adam bends the gradient as well, but changes its direction.
    if not is_linear or factor < _CLIPPED or _cosine(whole, small) < 0.999:
        return
    largest = own.gradient_norms[0] / factor
    if np.min(own.gradient_norms) > _CLIPPED * largest:
        yield Finding(
            "always_clipped",
            "warning",
            f"the gradient is clipped in each of 40 steps, to {largest:.3g}: its norm is at least "
            f"{np.min(own.gradient_norms):.3g}, so that all steps are equally long.",
            "clip well above the usual norm, so that only outliers are cut, and adapt the learning "
            "rate; or find out why the gradient is so large.",
            place="tx",
            evidence={
                "max_norm": float(largest),
                "least_norm": float(np.min(own.gradient_norms)),
                "factor": float(factor),
            },
        )


# Norms, in float64 so that they do not overflow.


def _matrices(
    subject: Subject, *of_params: Sequence[Any]
) -> Iterator[tuple[str, np.ndarray, tuple[np.ndarray, ...]]]:
    """The name and the weights of each matrix away from zero, and what belongs to it."""
    for name, weights, *others in zip(
        subject.traced.names, subject.traced.params, *of_params, strict=True
    ):
        if weights.ndim < 2:
            continue
        matrix = np.asarray(weights)
        if _norm([matrix]) > _SMALL_WEIGHTS * np.sqrt(matrix.size):
            yield name, _wide(matrix), tuple(map(_wide, others))


def _norm(arrays: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(_wide(a)) ** 2) for a in arrays)))


def _cosine(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    pairs = zip(one, other, strict=True)
    product = sum(np.real(np.vdot(_wide(a), _wide(b))) for a, b in pairs)
    return float(product) / max(_norm(one) * _norm(other), 1e-300)


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.complex128 if np.iscomplexobj(array) else np.float64)
