"""`check_data`: whether the numbers of a batch are fit to learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup import layouts, leaks
from gradtx.diagnostics.checkup.constants import constant_features, listed
from gradtx.diagnostics.checkup.entries import (
    Read,
    inputs_of,
    meetings_of,
    reads_of,
    sources_of,
    statistics_requested,
    tables_of,
)
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import (
    Examination,
    Subject,
    examine,
    place_of,
    subject_of,
)
from gradtx.diagnostics.signal.verdict import LARGEST_INPUT
from gradtx.diagnostics.tracing.found import Arrays
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure

# A feature is huge if it is so many times the (lower) median one, and larger than this itself.
_HUGE = 30.0
# The gradient of the weights hardly tells examples apart that differ by less than a tenth of what
# they have in common.
_LARGEST_OFFSET = 10.0
# Inputs whose largest number and whose length are below these hardly move a layer.
_SMALLEST, _SHORTEST = 0.02, 0.1
# Below so many examples, equal ones may be chance.
_FEW = 8
_SAMPLE = 4096


def check_data(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
) -> tuple[Finding, ...]:
    """Find what is wrong with the numbers of a batch, as they enter the first layers.

    The kinds of findings: "nan_data" (NaN or infinity in the batch or the parameters),
    "identical_examples" (all examples are the same, or most), "constant_feature" (a feature is the
    same in all examples), "huge_feature" (one is far larger than the others, or a large number that
    stands for a missing value), "unstandardized" (all are too large, too small, or vary little
    around a large mean), "target_leak" (a feature tells the target) and "wrong_layout" (a
    convolution takes the rows of images for their channels). Numbers that the loss function scales
    before the first layer are judged after that.

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.

    Returns:
        The findings.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, or `params` has
            no inexact arrays.

    Source:
        LeCun et al. 1998, "Efficient backprop", section 4.3, for inputs of mean 0 and variance 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x):
        ...     return jnp.mean((x @ params - 1) ** 2)
        >>> years = jnp.linspace(1950.0, 2020.0, 16)
        >>> x = jnp.stack([jnp.sin(years), jnp.cos(years), years], axis=1)
        >>> (finding,) = diagnostics.check_data(loss_fn, jnp.ones(3), x)
        >>> print(finding.kind, finding.place, finding.evidence["usual_rms"] < 1)
        huge_feature argument args[0] [2] True
    """
    subject = subject_of("check_data", loss_fn, params, batch, has_aux=has_aux)
    return tuple(examine(subject, DATA))


def _findings(subject: Subject) -> Iterator[Finding]:
    bad = list(_not_finite(subject))
    yield from bad
    yield from _lost_digits(subject)
    if not bad:
        yield from _identical_examples(subject)
        for read in reads_of(subject):
            yield from _judged(subject, read)
        yield from _no_spread(subject)
        yield from leaks.findings(subject)
    yield from layouts.findings(subject)


# What is not a number.


def _not_finite(subject: Subject) -> Iterator[Finding]:
    breaks = not subject.is_finite
    for value in [*subject.parameters, *subject.data]:
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            continue
        array = subject.array(value)
        bad = ~np.isfinite(array.astype(np.promote_types(array.dtype, np.float32)))
        number = int(bad.sum())
        nans = int(np.isnan(array[bad]).sum())
        # An infinite mask is on purpose, and a NaN may mark a missing value that is replaced.
        if not number or not (nans or (breaks and not _is_mask(subject, value))):
            continue
        first = [int(i) for i in np.argwhere(bad)[0]]
        what = "NaN" if nans == number else "infinity" if not nans else "NaN or infinity"
        yield Finding(
            "nan_data",
            "error" if breaks else "remark",
            f"{number:,} of the {array.size:,} numbers of {subject.name(value) or 'params'} are "
            f"{what}, the first at {first}.",
            "find out where they come from: missing values, a division by zero in the "
            "preprocessing, an earlier step that diverged. Leave such examples out, or fill the "
            "gaps in.",
            place=subject.name(value),
            evidence={"number": number, "share": number / array.size, "first": first},
        )


def _is_mask(subject: Subject, value: Value) -> bool:
    """Whether an array of the batch is only added to predictions, which its infinities hide."""
    return value in subject.data and all(
        name in ("add", "select_n", "max", "min") for name in meetings_of(subject, value)
    )


def _no_spread(subject: Subject) -> Iterator[Finding]:
    """What is divided by the spread of features that have none."""
    for node, position in _divisions(subject):
        zeros = subject.measured.get(node, {}).get("data_zeros")
        if zeros is None or not np.any(zeros):
            continue
        sources = [subject.name(one) for one in sources_of(subject, node.inputs[position])]
        features = [int(i) for i in np.flatnonzero(zeros.reshape(-1, zeros.shape[-1]).any(0))]
        which = f" of features {listed(features)}" if zeros.shape[-1] > 1 else ""
        yield Finding(
            "constant_feature",
            "error",
            f"the batch is divided by a spread{which} that is zero.",
            "leave constant features out, or add a small number to the spread.",
            place=place_of(sources),
            source=node.line,
            evidence={"features": features},
        )


def _divisions(subject: Subject) -> Iterator[tuple[Node, int]]:
    """Divisions by something that is made of the batch alone, where the loss is not finite."""
    if math.isfinite(subject.loss):
        return
    for node in subject.graph.named("div", "rsqrt"):
        position = len(node.inputs) - 1
        value = node.inputs[position]
        is_real = jnp.issubdtype(value.dtype, jnp.floating)
        if is_real and subject.is_given(value) and not subject.is_trained(value):
            yield node, position


def _zeros_in(position: int) -> Measure:
    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
        del results
        is_zero = jnp.atleast_1d(inputs[position]) == 0
        return {"data_zeros": jnp.any(is_zero, axis=tuple(range(is_zero.ndim - 1)))}

    return measure


def _lost_digits(subject: Subject) -> Iterator[Finding]:
    """Numbers that become equal, or other numbers, when they become an array of jax."""
    for value, given in zip(subject.data, subject.given_data, strict=True):
        if not isinstance(given, np.ndarray) or given.dtype == value.dtype or not given.size:
            continue
        array = subject.array(value)
        # Of very many numbers some become equal anyway.
        before, after = (len(np.unique(one.ravel()[:_SAMPLE])) for one in (given, array))
        wraps = given.dtype.kind in "iu" and array.dtype.kind in "iu" and np.any(given != array)
        if not wraps and 2 * after > before:
            continue
        largest = float(np.max(np.abs(given.astype(np.float64))))
        sentence = (
            f"numbers of up to {largest:.4g} do not fit into {value.dtype}, and become others"
            if wraps
            else f"{before:,} different numbers become {after:,}, because {value.dtype} cannot "
            f"tell them apart around {largest:.4g}"
        )
        yield Finding(
            "huge_feature",
            "error" if wraps else "warning",
            f"{sentence}.",
            "subtract an offset and scale the numbers in NumPy, before they become arrays of jax: "
            "of a time, take what has passed since a reference.",
            place=subject.name(value),
            evidence={"distinct": before, "left": after, "largest": largest},
        )


# Examples that are the same.


def _identical_examples(subject: Subject) -> Iterator[Finding]:
    inputs = [value for value in inputs_of(subject) if _has_examples(subject, value)]
    number = subject.examples or 0
    others = [value for value in subject.data if _has_examples(subject, value)]
    # A single example of a few channels has a first axis, too.
    if not inputs or number < 2 or (len(others) < 2 and (number < 4 or inputs[0].size == number)):
        return
    distinct = _distinct(subject, inputs)
    names = place_of([subject.name(value) for value in inputs])
    if distinct == 1:
        sentence = f"all {number:,} examples in {names} are the same."
        severity = "warning"
    else:
        values = sum(len(np.unique(subject.array(value))) for value in inputs)
        if number < 2 * _FEW or 2 * distinct > number or values <= _FEW:
            return
        sentence = f"only {distinct:,} of {number:,} examples in {names} are different."
        is_repeated = number >= 8 * _distinct(subject, others)
        severity = "warning" if is_repeated else "remark"
    yield Finding(
        "identical_examples",
        severity,
        sentence,
        "look at how the batch is made: an index that stays the same, a random key that is used "
        "again, a broadcast in place of a stack, a preprocessing that returns a constant.",
        place=names,
        evidence={"examples": number, "distinct": distinct},
    )


def _has_examples(subject: Subject, value: Any) -> bool:
    is_number = not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return is_number and bool(value.shape) and value.shape[0] == subject.examples


def _distinct(subject: Subject, values: Sequence[Any]) -> int:
    """The number of different examples, over several arrays together."""
    # Adding zero makes a positive zero of a negative one.
    arrays = [np.ascontiguousarray(subject.array(value) + 0) for value in values]
    return len({tuple(array[i].tobytes() for array in arrays) for i in range(len(arrays[0]))})


# What the first layers receive.


def _requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    yield from statistics_requested(subject)
    for node, position in _divisions(subject):
        yield node, _zeros_in(position)


DATA = Examination(_findings, _requests)


def _judged(subject: Subject, read: Read) -> Iterator[Finding]:
    """What is wrong with the features that a layer receives."""
    lively = np.sort(read.rms[read.rms > 0])
    if not lively.size or not np.isfinite(lively).all():
        return
    typical = lively[(len(lively) - 1) // 2]
    huge = read.rms > max(_HUGE * typical, _HUGE)
    if huge.any():
        yield _huge_features(subject, read, np.flatnonzero(huge), float(typical))
    constant = (read.std <= 1e-6 * read.rms) & ~huge
    if constant.any() and read.is_measured and not constant.all():
        yield from constant_features(subject, read, np.flatnonzero(constant))
    rest = ~huge & ~constant if not constant.all() else ~huge
    if rest.any():
        yield from _unstandardized(subject, read, rest)


def _huge_features(subject: Subject, read: Read, huge: np.ndarray, typical: float) -> Finding:
    worst = int(huge[np.argmax(read.rms[huge])])
    features = [int(i) for i in huge]
    named = [value for value in subject.data if subject.name(value) in read.named(huge)]
    is_table = any(tables_of(subject.array(value), len(read.rms)) for value in named)
    return Finding(
        "huge_feature",
        "warning",
        f"feature {worst} has a root mean square of {read.rms[worst]:.3g}, while that of a usual "
        f"one is {typical:.3g}: it drowns the others. Its largest number is "
        f"{read.largest[worst]:.4g}.",
        "standardize each feature: subtract its mean over the training set and divide by its "
        "standard deviation; take the logarithm of what spans orders of magnitude. Replace codes "
        "for missing values, such as -999.",
        place=read.place(huge) + (f" {listed(features)}" if is_table else ""),
        source=read.source,
        evidence={"features": features, "rms": float(read.rms[worst]), "usual_rms": typical},
    )


def _unstandardized(subject: Subject, read: Read, rest: np.ndarray) -> Iterator[Finding]:
    rms = float(np.sqrt(np.mean(read.rms[rest] ** 2)))
    mean, std = read.mean[rest], read.std[rest]
    varies = std > 1e-6 * read.rms[rest]
    ratio = float(np.min(np.abs(mean) / np.where(varies, std, np.inf)))
    length = float(np.sqrt(np.sum(read.rms**2)))
    sentence = ""
    if rms > LARGEST_INPUT:
        sentence = f"the inputs of the first layer are large: their root mean square is {rms:.3g}"
    elif ratio > _LARGEST_OFFSET and (subject.examples or 0) >= _FEW:
        sentence = (
            "the inputs of the first layer hardly vary: their means are at least "
            f"{ratio:.3g} times their standard deviations"
        )
    elif read.largest.max() < _SMALLEST and length < _SHORTEST:
        sentence = (
            f"the inputs of the first layer are tiny: none is larger than {read.largest.max():.2g}"
        )
    if sentence:
        yield Finding(
            "unstandardized",
            "warning",
            f"{sentence}.",
            "standardize them: subtract the mean of the training set and divide by its standard "
            "deviation; divide pixels of 0 to 255 by 255, once.",
            place=read.place(np.flatnonzero(rest)),
            source=read.source,
            evidence={"rms": rms, "mean": float(np.mean(mean)), "std": float(np.mean(std))},
        )
