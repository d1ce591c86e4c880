"""Whether an optimizer suits a network: what its first step and some trials on one batch show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject, place_of, some
from gradtx.diagnostics.checkup.trials import FALL, Trial, Trials

# What the updates are multiplied by to see whether the learning rate is too large or too small, or
# the sign is wrong.
_SMALLER, _LARGER = (0.1, 0.01, 0.001), (10.0, 100.0, 1e3, 1e4, 1e5)
_OPPOSITE = (-1.0, -0.1, -0.01)
# In 40 steps, gradient descent at a fair rate takes more than the first share off a loss, if the
# second one can be taken off. Adam is used for fine-tuning with rates that take less off.
_SLOW, _MUCH = 0.03, 0.3
# A step that is longer than a matrix, or shorter than the spacing of float32.
_LARGEST_RATIO, _SMALLEST_RATIO = 1.0, 1e-7
# Matrices that begin near zero are moved away from it on purpose.
_SMALL_WEIGHTS = 1e-3
_LARGEST_DECAY = 2.0
_CLIPPED = 10.0


def learning_rate(trials: Trials, own: Trial) -> Iterator[Finding]:
    """A learning rate with which the loss does not fall, or hardly, while it does with another."""
    if own.fall < 0:
        for factor in _SMALLER:
            if trials.run(factor, until=FALL).has_fallen:
                yield _too_large(own, factor)
                return
        for factor in _OPPOSITE:
            if trials.run(factor, until=FALL).has_fallen:
                yield _climbs(own, factor)
                return
    elif own.fall < _SLOW and not _warms_up(own):
        yield from _slow(trials, own)


def _slow(trials: Trials, own: Trial) -> Iterator[Finding]:
    """A learning rate that is far below the one with which the loss falls most."""
    is_descent = _is_proportional(trials)
    if own.has_fallen and not is_descent:
        return
    falls: dict[float, float] = {}
    for factor in _LARGER:
        fall = trials.run(factor).fall
        if fall < max(falls.values(), default=-np.inf):
            break
        falls[factor] = fall
        # For others than gradient descent, ten times less than what does is a matter of taste.
        if falls[_LARGER[0]] > FALL and not is_descent:
            return
    most = max(falls.values(), default=-np.inf)
    if most < (_MUCH if falls.get(_LARGER[0], 0) > FALL else FALL):
        return
    factor = next(factor for factor, fall in falls.items() if fall >= most / 2)
    if factor > _LARGER[0]:
        yield _too_small(own, factor, falls[factor])


def _is_proportional(trials: Trials) -> bool:
    """Whether updates are proportional to gradients, as those of gradient descent are."""
    zeros = [0 * p for p in trials.subject.traced.params]
    gradients = trials.subject.gradients
    whole = trials.first_update(gradients, zeros)
    tenth = trials.first_update([(0.1 * g).astype(g.dtype) for g in gradients], zeros)
    return bool(np.isclose(_norm(tenth), 0.1 * _norm(whole), rtol=0.01, atol=0))


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


def _too_small(own: Trial, factor: float, fall: float) -> Finding:
    return Finding(
        "learning_rate",
        "warning",
        f"the learning rate is too small: in 40 steps on the same batch the loss falls by "
        f"{max(own.fall, 0):.2%}, and by {fall:.0%} if the updates are {factor:,.0f} times as "
        "long.",
        f"multiply the learning rate by about {factor:,.0f}; `learning_rate_range` finds a good "
        "one.",
        place="tx",
        evidence={"factor": factor, "fall": own.fall, "reached": fall},
    )


def _warms_up(own: Trial) -> bool:
    """Whether the updates grow for another reason than the gradient: by a schedule."""
    first, last = own.update_norms[0], own.update_norms[-1]
    return bool(last > 3 * first * max(own.gradient_norms[-1] / own.gradient_norms[0], 1))


def update_ratios(trials: Trials, own: Trial) -> Iterator[Finding]:
    """Weights that the first step changes by more than their size, or by nearly nothing."""
    if not np.any(own.update_norms):
        yield _nothing_changes(own)
        return
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


def _nothing_changes(own: Trial) -> Finding:
    return Finding(
        "update_ratio",
        "error",
        f"the optimizer changes no parameter in {len(own.update_norms)} steps, although there is a "
        "gradient.",
        "look for a learning rate of zero (a schedule that is over, or has not begun), a mask that "
        "freezes everything, and for an accumulation over more steps.",
        place="tx",
        evidence={"steps": len(own.update_norms)},
    )


def weight_decay(trials: Trials) -> Iterator[Finding]:
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


def always_clipped(trials: Trials, own: Trial) -> Iterator[Finding]:
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
