"""Whether a model that predicts the next entry of a sequence already sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, Softmax, source_of
from gradtx.diagnostics.tracing.targets import CrossEntropy


def future_leak(subject: Subject) -> Iterator[Finding]:
    """A finding if predictions of the next entry depend on it, or if none is predicted."""
    for entropy, tokens, shift in _predictions(subject):
        node = entropy.softmax.entry
        if subject.observed is None or node not in subject.measured:
            continue
        before = subject.measured[node].get("future_sums")
        example, place = _longest(subject.array(tokens))
        changed = _changed(subject, tokens, example, place)
        after = subject.observed(changed).get(node, {}).get("future_sums")
        if before is None or after is None:
            continue
        changes = np.flatnonzero(before[example] != after[example])
        name = subject.name(tokens)
        if not shift:
            # One that restores its whole input, or each place alone, is no model of what follows.
            sees_the_past = len(changes) > 1 and changes[0] == place > 1
            if sees_the_past:
                yield _not_shifted(name, entropy, place)
                return
            continue
        culprit = _culprit(subject, entropy.softmax.logits, place + 1)
        early = changes[changes < place]
        if len(early) and culprit is not None:
            yield Finding(
                "future_leak",
                "error",
                f"the model is to predict the next entry of {name}, and sees it: entry {place} "
                f"changes the predictions of {len(early)} earlier places.",
                _CURES[culprit.name],
                place=name,
                source=culprit.line,
                evidence={"entry": place, "changed_places": len(early)},
            )
            return


def _not_shifted(name: str, entropy: CrossEntropy, place: int) -> Finding:
    return Finding(
        "future_leak",
        "error",
        f"each place is to predict the entry of {name} that it reads itself: a model that sees the "
        "past only copies it.",
        "shift the labels: predict tokens[:, 1:] from tokens[:, :-1].",
        place=name,
        source=entropy.node.line,
        evidence={"entry": place, "changed_places": 0},
    )


_CURES = {
    "dot_general": "mask the attention with jnp.tril(jnp.ones((length, length), bool)).",
    "conv_general_dilated": "pad the convolution on the left only.",
    "loop_slice": "leave out the recurrence that runs backwards.",
}


def sums_of_logits(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for it."""
    for entropy, tokens, _ in _predictions(subject):
        yield entropy.softmax.entry, _sums(tokens)


def _sums(tokens: Value) -> Measure:
    """The sum of the logits for each place of each sequence."""

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> dict[str, Any]:
        logits = jnp.asarray(inputs[0], jnp.float32)
        logits = logits.reshape(tokens.shape[0], -1, logits.shape[-1])
        return {"future_sums": jnp.sum(logits, -1)}

    return measure


def _predictions(subject: Subject) -> Iterator[tuple[CrossEntropy, Value, int]]:
    """The cross-entropies whose labels are entries of an argument that their logits depend on.

    With the argument, and by how many places the labels are ahead: one, or none.
    """
    for entropy in subject.cross_entropies:
        logits = entropy.softmax.logits
        for tokens in subject.data:
            is_integer = jnp.issubdtype(tokens.dtype, jnp.integer)
            if len(tokens.shape) != 2 or not is_integer or tokens.shape[1] < 4:
                continue
            if not logits.depends >> (tokens.argument or 0) & 1 or entropy.labels is None:
                continue
            batch, length = tokens.shape
            places = logits.size // logits.shape[-1]
            is_whole = places in (batch * length, batch * (length - 1))
            is_whole &= logits.shape[0] in (batch, places) and len(logits.shape) in (2, 3)
            if is_whole and _is_next(subject, entropy.labels, tokens):
                yield entropy, tokens, 1
            elif is_whole and _is_same(subject, entropy.labels, tokens):
                yield entropy, tokens, 0


def _is_next(subject: Subject, labels: Value, tokens: Value) -> bool:
    """Whether labels are the entries of an argument, each one place earlier."""
    for value in subject.graph.upstream(labels):
        node = value.producer
        if node is not None and node.name == "slice" and source_of(node.inputs[0]) is tokens:
            return tuple(node.equation.params["start_indices"]) == (0, 1)
    entries = subject.array(tokens)
    for other in subject.data:
        is_label = labels.depends >> (other.argument or 0) & 1 and other is not tokens
        if is_label and other.shape == tokens.shape and len(np.unique(entries)) > 1:
            return bool(np.array_equal(subject.array(other)[:, :-1], entries[:, 1:]))
    return False


def _longest(tokens: np.ndarray) -> tuple[int, int]:
    """The sequence with the least padding at its end, and its last place but one.

    What padding sees does not matter: its predictions are left out of the loss.
    """
    is_tail = np.cumprod((tokens == tokens[:, -1:])[:, ::-1], 1)[:, ::-1]
    lengths = np.sum(1 - is_tail, 1)
    example = int(np.argmax(lengths))
    return example, min(int(lengths[example]), tokens.shape[1] - 1) - 1


def _is_same(subject: Subject, labels: Value, tokens: Value) -> bool:
    """Whether labels are the entries of an argument, each at its own place."""
    # Negative indices are wrapped before they are looked up.
    crossed = VIEWS | {"add", "select_n"}
    return tokens in subject.graph.upstream(labels, lambda node, i: node.name in crossed)


def _changed(subject: Subject, tokens: Value, example: int, place: int) -> list[Any]:
    """The data with another entry at one place of one sequence."""
    array = np.array(subject.array(tokens))
    low, high = np.min(array), np.max(array)
    array[example, place] = low + (array[example, place] - low + 1) % (high - low + 1)
    return subject.data_with(tokens, array)


def _culprit(subject: Subject, logits: Value, length: int) -> Node | None:
    """What reads later places: attention without a mask, a convolution, or a backward loop.

    Where some attention has a mask and some has none, the latter may read another sequence.
    """
    upstream = {id(one) for one in subject.graph.upstream(logits)}
    scores = [
        made
        for softmax in subject.softmaxes
        if softmax.probabilities is not None and id(softmax.probabilities) in upstream
        for made in _scores(subject, softmax, length)
    ]
    if scores:
        node, is_masked = scores[0]
        return node if all(masked == is_masked for _, masked in scores) else None
    for node in subject.graph.nodes:
        if id(node.output) in upstream and subject.is_given(node.output):
            is_conv = node.name == "conv_general_dilated"
            # A causal convolution is padded on one side, or beforehand.
            looks_ahead = is_conv and all(map(all, node.equation.params["padding"]))
            if looks_ahead or (node.name == "loop_slice" and node.equation.params.get("reverse")):
                return node
    return None


def _scores(subject: Subject, softmax: Softmax, length: int) -> Iterator[tuple[Node, bool]]:
    """The products of queries and keys in an attention among places, and whether it has a mask."""
    shape = softmax.logits.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] not in (length, length + 1):
        return
    crossed = primitives.ELEMENTWISE | VIEWS
    around = list(subject.graph.upstream(softmax.logits, lambda node, i: node.name in crossed))
    is_masked = any(
        not subject.is_trained(one) and len(one.shape) > 1 and 1 not in one.shape[-2:]
        for one in around
    )
    for one in around:
        if one.producer is not None and one.producer.name == "dot_general":
            yield one.producer, is_masked
            return
