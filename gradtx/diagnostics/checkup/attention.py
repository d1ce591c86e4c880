"""`check_attention`: where attention looks, and what its masks hide."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.padding import tail_of_mask
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, place_of, subject_of
from gradtx.diagnostics.tracing.attention import Attention, projections
from gradtx.diagnostics.tracing.graph import Node
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import source_of

# Masks put scores below this.
MASKED = -9e3
# With fewer keys, one may have most of the weight by chance.
_FEWEST_KEYS = 4
_ONE_HOT = 0.9
# A softmax of Gaussian scores with this standard deviation has most of its weight on one or two
# keys of a hundred. Scores of 1 / sqrt(d) have 1 at the start.
_WIDE = 3.0
_NARROW_HEAD = 8


def check_attention(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
) -> tuple[Finding, ...]:
    """Look at the weights and the masks of every attention in a loss.

    The kinds of findings: "one_hot_attention" (one key has nearly all the weight), "empty_mask" (a
    query sees no key), "full_mask" (a mask that hides nothing) and "unscaled_attention" (no
    1/sqrt(d) before the softmax, and scores that spread widely). Whether attention sees what is to
    be predicted is a question of `check_examples`.

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
        Vaswani et al. 2017, Attention Is All You Need.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x):
        ...     q, k = x @ params["q"], x @ params["k"]
        ...     return jnp.mean(jax.nn.softmax(q @ k.T) @ x)
        >>> q, k, x = jax.random.normal(jax.random.key(0), (3, 16, 16))
        >>> (finding,) = diagnostics.check_attention(loss_fn, {"q": q, "k": k}, x)
        >>> print(finding.kind, finding.place)
        unscaled_attention q, k
    """
    subject = subject_of("check_attention", loss_fn, params, batch, has_aux=has_aux)
    return tuple(examine(subject, ATTENTION))


def _requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    for one in subject.attentions:
        yield one.softmax.entry, functools.partial(_measure, one.axis)
        for node, i in one.masks:
            if node.name != "select_n":
                yield node, functools.partial(_added, i)


def _findings(subject: Subject) -> Iterator[Finding]:
    found = [
        finding
        for one in subject.attentions
        if "attention/empty" in subject.measured.get(one.softmax.entry, {})
        for finding in _of_one(subject, one)
    ]
    # Layers of the same code have the same fault.
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.kind, finding.severity, finding.source), []).append(finding)
    for same in groups.values():
        names = [name for one in same for name in one.place.split(", ") if name]
        yield Finding(
            same[0].kind,
            same[0].severity,
            same[0].sentence,
            same[0].cure,
            place=place_of(list(dict.fromkeys(names))),
            source=same[0].source,
            evidence=dict(same[0].evidence) | {"layers": len(same)},
        )


ATTENTION = Examination(_findings, _requests)


# The measurements.


def _measure(axis: int, inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
    """Where the queries look, of logits whose axis of keys is known."""
    del results
    logits = jnp.moveaxis(inputs[0].astype(jnp.float32), axis, -1)
    logits = logits if logits.ndim > 1 else logits[None]
    is_seen = logits > MASKED
    number = jnp.sum(is_seen, -1)
    highest = jnp.max(logits, -1, keepdims=True, where=is_seen, initial=MASKED)
    total = jnp.sum(jnp.exp(logits - highest), -1, where=is_seen)
    # Of all weights, the largest belongs to the highest score.
    largest = 1 / jnp.maximum(total, 1.0)
    several = number >= _FEWEST_KEYS
    means = jnp.mean(logits, -1, keepdims=True, where=is_seen)
    spreads = jnp.mean((logits - means) ** 2, -1, where=is_seen)
    is_square = logits.shape[-1] == logits.shape[-2]
    # Padding is a query that sees nothing where it is a key that nobody sees.
    nobody = ~jnp.any(is_seen, -2)
    empty = (number == 0) & ~(nobody if is_square else jnp.all(nobody, -1, keepdims=True))
    measured = {
        "empty": jnp.sum(empty),
        "blind": jnp.sum(jnp.all(nobody, -1)),
        "matrices": jnp.sum(jnp.ones_like(nobody[..., 0], jnp.int32)),
        "rows": jnp.sum(jnp.ones_like(number)),
        "hidden": jnp.mean((~is_seen).astype(jnp.float32)),
        "largest": jnp.mean(largest, where=several),
        "keys": jnp.mean(number.astype(jnp.float32)),
        "spread": jnp.sqrt(jnp.mean(spreads, where=number > 1)),
    }
    return {f"attention/{key}": value for key, value in measured.items()}


def _added(i: int, inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
    """Whether what is added to scores are zeros and ones."""
    del results
    mask = inputs[i].astype(jnp.float32)
    is_binary = jnp.all((mask == 0) | (mask == 1))
    return {"attention/binary": is_binary & jnp.any(mask == 0) & jnp.any(mask == 1)}


# What is wrong.


def _of_one(subject: Subject, one: Attention) -> Iterator[Finding]:
    measured = {
        key.removeprefix("attention/"): np.asarray(array, np.float64)
        for key, array in subject.measured[one.softmax.entry].items()
        if key.startswith("attention/")
    }
    masks = [node.inputs[i] for node, i in one.masks]
    names = [
        subject.name(d)
        for d in subject.data
        if any(mask.depends >> (d.argument or 0) & 1 for mask in masks)
    ]
    yield from _empty(subject, one, measured, names)
    yield from _full(subject, one, measured, names)
    yield from _sharp(subject, one, measured)


def _empty(
    subject: Subject, one: Attention, measured: dict[str, Any], names: list[str]
) -> Iterator[Finding]:
    empty, blind = measured["empty"].sum(), measured["blind"].sum()
    if not empty and not blind:
        return
    rows, matrices = measured["rows"].sum(), measured["matrices"].sum()
    is_finite = math.isfinite(subject.loss)
    what = (
        f"{empty:,.0f} of {rows:,.0f} queries see no key"
        if empty
        else f"in {blind:,.0f} of {matrices:,.0f} maps of attention, no key is seen at all"
    )
    result = "all keys count equally there" if is_finite else "the softmax of a row of -inf is NaN"
    yield Finding(
        "empty_mask",
        "error" if empty or not is_finite else "warning",
        f"{what}, because the mask hides them all: {result}.",
        "let True, or 0 in a mask that is added, stand for keys that are seen; a query must see at "
        "least itself.",
        place=place_of(names),
        source=_source(one),
        evidence={"empty_queries": int(empty), "queries": int(rows), "empty_maps": int(blind)},
    )


def _source(one: Attention) -> str:
    lines = [node.line for node, _ in one.masks]
    return next(filter(None, lines), one.softmax.entry.line)


def _full(
    subject: Subject, one: Attention, measured: dict[str, Any], names: list[str]
) -> Iterator[Finding]:
    added = [
        node
        for node, _ in one.masks
        if np.any(subject.measured.get(node, {}).get("attention/binary", False))
    ]
    if added and not np.any(measured["hidden"]):
        yield Finding(
            "full_mask",
            "warning",
            "a mask of zeros and ones is added to the scores: it hides nothing, because a score "
            "that is 1 larger is still seen.",
            "add 0 where a key is seen and a large negative number where it is not, or use "
            "jnp.where(mask, scores, -1e9).",
            place=place_of(names),
            source=added[0].line,
            evidence={"hidden": 0.0},
        )
        return
    if names and not np.any(measured["hidden"]) and any(n.name == "select_n" for n, _ in one.masks):
        padded = tail_of_mask(subject, names)
        yield Finding(
            "full_mask",
            "warning" if padded else "remark",
            f"the mask from {' and '.join(names)} hides nothing"
            + (f", although {padded} ends with padding." if padded else "."),
            "give it False, or 0, where there is padding."
            if padded
            else "see whether there is anything to hide in this batch.",
            place=place_of(names),
            source=_source(one),
            evidence={"hidden": 0.0},
        )


def _sharp(subject: Subject, one: Attention, measured: dict[str, Any]) -> Iterator[Finding]:
    spread = float(np.nanmax(measured["spread"], initial=0))
    largest = float(np.nanmean(measured["largest"])) if np.any(measured["largest"] > 0) else 0.0
    names = [
        subject.name(parameter)
        for node in projections(subject.graph, one)
        for side in node.inputs
        if not subject.is_given(side)
        for parameter in subject.trained_arguments_of(side)
    ]
    place = place_of(list(dict.fromkeys(names)))
    evidence = {"spread": spread, "largest_weight": largest, "width": one.width}
    evidence |= {"factor": one.factor}
    is_unscaled = not one.is_scaled or one.factor > 1
    if is_unscaled and spread > _WIDE and one.width >= _NARROW_HEAD:
        wanted = 1 / math.sqrt(one.width)
        yield Finding(
            "unscaled_attention",
            "warning",
            f"the scores of queries and keys of width {one.width} are multiplied by "
            f"{one.factor:.3g}, not by 1/sqrt({one.width}) = {wanted:.3g}: they spread by "
            f"{spread:.3g}, and the largest weight is {largest:.2f} on average.",
            f"divide the scores by sqrt({one.width}).",
            place=place,
            source=one.scores.line or one.softmax.entry.line,
            evidence=evidence,
        )
    elif largest > _ONE_HOT:
        yield Finding(
            "one_hot_attention",
            "warning",
            f"the largest of {measured['keys'].mean():.0f} weights is {largest:.2f} on average: "
            f"each query looks at a single key, and the scores, which spread by {spread:.3g}, "
            "hardly learn.",
            f"make the initial weights of queries and keys {spread:.2g} times smaller together, or "
            "normalize queries and keys.",
            place=place,
            source=source_line(one),
            evidence=evidence,
        )


def source_line(one: Attention) -> str:
    """The line of the softmax; if it is in a library, that of the scores."""
    return one.softmax.entry.line or one.scores.line or _line_of_values(one)


def _line_of_values(one: Attention) -> str:
    producer = source_of(one.values.output).producer
    return producer.line if producer is not None else ""
