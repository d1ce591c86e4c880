"""`check_labels`: indices and labels that are out of range, and labels that are used wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradtx.diagnostics.checkup import label_use, marginals
from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.lookups import Lookup, is_masked, lookups, request
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, place_of, subject_of
from gradtx.diagnostics.tracing.graph import Node
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of
from gradtx.diagnostics.tracing.primitives import PRODUCTS

# Fewer labels than this may be of one class by chance.
_FEWEST_LABELS = 4
# A batch of at least 30 examples tells the share of the most frequent class to a tenth. A head that
# divides its probability evenly is log 2 - H(0.9) = 0.37 from shares of 0.9 and 0.1.
_FEWEST_EXAMPLES = 30
_LARGE_SHARE = 0.8
_FAR = 0.35
# Operations that turn a one-hot code into the weights of a loss.
_RESCALING = VIEWS | {"mul", "add", "sub", "div"}


def check_labels(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
    classes: int | None = None,
) -> tuple[Finding, ...]:
    """Find indices and labels that are out of range, and labels that are used wrongly.

    JAX does not raise an error for an index that is out of range: it reads the nearest entry, or
    fills in NaN, and a one-hot code becomes a row of zeros.

    The kinds of findings: "index_out_of_range", "label_out_of_range" (labels that are counted from
    1, for example), "single_class" (all labels are the same), "class_imbalance" (one class has
    nearly all labels, and the head does not know it), "swapped_arguments" (a cross-entropy takes
    the logarithm of the labels instead of the predictions), "several_labels" (targets with several
    ones, where a softmax allows one) and "class_as_number" (a regression on the numbers of
    classes). Labels that the loss compares with something, to ignore them, may be out of range.

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.
        classes: the number of classes of a classifier; None: what the loss shows.

    Returns:
        The findings.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, if `params` has
            no inexact arrays, or if `classes` is not an integer of at least 2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x, labels):
        ...     log_probabilities = jax.nn.log_softmax(x @ params["w"])
        ...     return -jnp.mean(jax.nn.one_hot(labels, 3) * log_probabilities)
        >>> params, labels = {"w": 0.1 * jnp.eye(4, 3)}, jnp.array([1, 2, 3, 1])
        >>> (finding,) = diagnostics.check_labels(loss_fn, params, jnp.eye(4), labels)
        >>> print(finding.kind, finding.place)
        label_out_of_range argument args[1]
        >>> print(finding.cure)
        the labels are counted from 1: subtract 1.
    """
    subject = subject_of("check_labels", loss_fn, params, batch, has_aux=has_aux, classes=classes)
    return tuple(examine(subject, LABELS))


def _requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    for lookup in lookups(subject):
        yield request(lookup)
    yield from marginals.requests(subject)
    yield from label_use.requests(subject)


def _findings(subject: Subject) -> Iterator[Finding]:
    seen = set()
    for lookup in lookups(subject):
        for finding in _out_of_range(subject, lookup):
            # The same array may be looked up several times.
            if (finding.kind, finding.place) not in seen:
                seen.add((finding.kind, finding.place))
                yield finding
    yield from _too_few_classes(subject)
    if not any(kind == "label_out_of_range" for kind, _ in seen):
        yield from _shares(subject)
    yield from label_use.findings(subject)


LABELS = Examination(_findings, _requests)


# Out of range.


def _out_of_range(subject: Subject, lookup: Lookup) -> Iterator[Finding]:
    outside = lookup.outside(subject)
    if outside is None or not outside[2]:
        return
    low, high, number, total, size = outside
    is_finite = math.isfinite(subject.loss)
    if is_finite and is_masked(subject, lookup):
        return
    is_label = _is_label(subject, lookup)
    # A label that is clipped is another class.
    is_meant = lookup.is_meant and not is_label
    if is_meant and not _are_many(subject, lookup, low, high):
        return
    is_sum = lookup.node.name == "scatter-add"
    if is_sum and high < size:
        return
    names = lookup.names(subject)
    what = "labels" if is_label else "indices"
    table = lookup.table_name(subject)
    yield Finding(
        "label_out_of_range" if is_label else "index_out_of_range",
        "warning" if is_meant or is_sum or (low == -1 and high < size and is_finite) else "error",
        f"the {what} {_of(names)}go from {low} to {high}, but {_bounds(is_label, table, size)}: "
        f"{number:,} of {total:,} are outside, {_consequence(lookup)}.",
        _cure(is_label, low, high, size),
        place=place_of([*names, *([table] if table and not is_label else [])]),
        source=lookup.node.line,
        evidence={"low": low, "high": high, "size": size, "outside": number, "number": total},
    )


def _are_many(subject: Subject, lookup: Lookup, low: int, high: int) -> bool:
    """Whether several indices of the data are beyond a trained table, and clipped on purpose.

    A single one may stand for padding; of several, all become the same. What is filled in with a
    number is left out on purpose.
    """
    is_filled = lookup.node.equation.params.get("fill_value") is not None
    if lookup.table is None or len(lookup.sizes) != 1 or is_filled:
        return False
    table, crossed = source_of(lookup.table), VIEWS | {"select_n", "add", "lt", "concatenate"}
    is_trained = table.argument is not None and subject.is_trained(table)
    is_given = source_of(lookup.indices, crossed).argument is not None
    return is_trained and is_given and (low < -1 or high > lookup.sizes[0])


def _of(names: list[str]) -> str:
    return f"in {' and '.join(names)} " if names else ""


def _bounds(is_label: bool, table: str, size: int) -> str:
    if is_label:
        return f"there are {size:,} classes, 0 to {size - 1}"
    return f"{repr(table) if table else 'the table'} has {size:,} entries, 0 to {size - 1}"


def _consequence(lookup: Lookup) -> str:
    if lookup.table is None:
        return "and their one-hot codes are rows of zeros"
    if lookup.node.name == "scatter-add":
        return "and what belongs to them is dropped"
    fill = lookup.node.equation.params.get("fill_value")
    if fill is not None:
        return f"and what is looked up there is {'NaN' if np.isnan(fill) else fill}"
    return "and JAX takes the nearest entry instead"


def _cure(is_label: bool, low: int, high: int, size: int) -> str:
    if is_label and low == 1 and high == size:
        return "the labels are counted from 1: subtract 1."
    if low < 0 and high < size:
        return "find out what negative numbers stand for, and mask what is computed of them."
    if is_label:
        return f"give the head {high + 1:,} outputs, or correct the labels."
    return f"make the table {high + 1:,} entries long, or correct the indices."


def _is_label(subject: Subject, lookup: Lookup) -> bool:
    """Whether it is the right class that is looked up, rather than a part of the input."""
    if any(one.node is lookup.node for one in subject.cross_entropies):
        return True
    if lookup.table is not None and (lookup.node.name != "gather" or lookup.table.depends):
        return False
    coded = subject.graph.downstream(lookup.node.output, lambda node, i: node.name in _RESCALING)
    used = [(node, i) for value in coded for node, i in value.users]
    as_input = any(
        node.name in PRODUCTS
        and subject.is_trained(node.inputs[1 - i])
        and not subject.is_given(node.inputs[1 - i])
        for node, i in used
    )
    return not as_input and any(subject.is_trained(node.output) for node, _ in used)


def _too_few_classes(subject: Subject) -> Iterator[Finding]:
    for entropy in subject.cross_entropies:
        number = entropy.softmax.number
        if subject.classes is not None and number < subject.classes:
            yield Finding(
                "label_out_of_range",
                "error",
                f"the head has {number:,} outputs, but there are {subject.classes:,} classes.",
                "give the head an output for each class.",
                source=entropy.softmax.entry.line,
                evidence={"outputs": number, "classes": subject.classes},
            )


# Shares of the classes.


def _shares(subject: Subject) -> Iterator[Finding]:
    for one in marginals.marginals(subject):
        number = float(one.counts.sum())
        if number < _FEWEST_LABELS:
            continue
        shares = one.counts / number
        largest = int(np.argmax(shares))
        if shares[largest] == 1:
            yield Finding(
                "single_class",
                "warning",
                f"all {number:,.0f} labels {_of(one.names)}are of class {largest}: whatever the "
                "network learns, it is to give this answer.",
                "shuffle the examples before they are put in batches, and check the labels.",
                place=place_of(one.names),
                source=one.source,
                evidence={"class": largest, "labels": int(number)},
            )
        elif one.is_per_example and not one.is_weighted and number >= _FEWEST_EXAMPLES:
            distance = one.distance
            if shares[largest] >= _LARGE_SHARE and distance > _FAR:
                yield _imbalance(one, largest, float(shares[largest]), distance)


def _imbalance(one: marginals.Marginal, largest: int, share: float, distance: float) -> Finding:
    return Finding(
        "class_imbalance",
        "warning",
        f"{100 * share:.0f}% of the labels {_of(one.names)}are of class {largest}, to which the "
        f"network gives {100 * one.mean[largest]:.0f}% on average: the first steps will teach it "
        "to give that answer to everything.",
        "draw or weight the examples so that the classes count equally, or initialize the head's "
        "bias with the logarithms of the shares; judge by the recall of each class.",
        place=place_of(one.names),
        source=one.source,
        evidence={"class": largest, "share": share, "divergence": distance},
    )
