"""`check_dropout`: whether what is drawn at random is drawn anew, and leaves enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.norms import nearest
from gradtx.diagnostics.checkup.subject import Examination, Subject, examine, place_of, subject_of
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.dropouts import Dropout, is_shared_along
from gradtx.diagnostics.tracing.found import Arrays
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of

# Published rates of dropout are at most 0.8; what keeps less was meant the other way round.
_SMALLEST_SHARE = 0.12
# Of fewer numbers, as many may be dropped by chance.
_FEWEST_NUMBERS = 100


def check_dropout(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
) -> tuple[Finding, ...]:
    """Find dropout that draws the same mask again, drops nearly everything, or hides the outputs.

    The kinds of findings: "same_mask" (two layers, or all examples, lose the same units, because
    they get the same PRNG key; a remark if the key is a constant of the loss), "dropout_rate"
    (nearly everything is dropped, as if the rate were that of what is kept) and "dropped_outputs"
    (the logits of a classifier are dropped).

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

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x, y, key):
        ...     for w in params[:-1]:
        ...         x = jnp.tanh(x @ w)
        ...         x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0.0)
        ...     return jnp.mean((x @ params[-1] - y) ** 2)
        >>> batch = jnp.ones((8, 4)), jnp.ones((8, 4)), jax.random.key(0)
        >>> (finding,) = diagnostics.check_dropout(loss_fn, [jnp.eye(4)] * 3, *batch)
        >>> print(finding.severity, finding.kind)
        warning same_mask
        >>> print(finding.cure)
        give each layer a key of its own: jax.random.split(key, number).
    """
    subject = subject_of("check_dropout", loss_fn, params, batch, has_aux=has_aux)
    return tuple(examine(subject, DROPOUT))


def _findings(subject: Subject) -> Iterator[Finding]:
    for examination in (_too_much, _of_outputs, _for_all_examples, _repeated, _constant):
        for finding in examination(subject):
            yield finding
            break


def _requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    for one in subject.dropouts:
        yield one.bits, _key
        yield one.node, _share_of(one)


DROPOUT = Examination(_findings, _requests)


def _key(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
    del results
    return {"dropout_key": jax.random.key_data(inputs[0])}


def _share_of(dropout: Dropout) -> Measure:
    """How much of a signal is kept."""

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
        del results
        is_kept = jnp.asarray(inputs[dropout.of_mask]).astype(bool) == dropout.is_kept
        return {f"dropout_share_{dropout.of_mask}": jnp.mean(is_kept.astype(jnp.float32))}

    return measure


def _finding(
    subject: Subject, dropout: Dropout, kind: str, sentence: str, cure: str, **evidence: Any
) -> Finding:
    return Finding(
        kind,
        "warning",
        sentence,
        cure,
        place=place_of(nearest(subject, dropout.signal)),
        source=dropout.node.line,
        evidence=evidence,
    )


def _too_much(subject: Subject) -> Iterator[Finding]:
    for one in subject.dropouts:
        measured = subject.measured.get(one.node, {}).get(f"dropout_share_{one.of_mask}")
        if measured is None or one.mask.size * measured.size < _FEWEST_NUMBERS:
            continue
        share = float(np.mean(measured))
        if 0 < share < _SMALLEST_SHARE:
            yield _finding(
                subject,
                one,
                "dropout_rate",
                f"dropout leaves {share:.0%} of an array of shape {one.signal.shape}, at most "
                f"{1 / share:.0f} times as large: hardly anything of the signal is left.",
                "the rate is the share that is dropped: use 0.1 to 0.5.",
                share=share,
            )


def _of_outputs(subject: Subject) -> Iterator[Finding]:
    """Dropout of what a cross-entropy takes."""
    logits = {one.softmax.logits for one in subject.cross_entropies}
    crossed = VIEWS | {"mul", "div"}
    for one in subject.dropouts:
        after = subject.graph.downstream(one.node.output, lambda node, i: node.name in crossed)
        if not logits.isdisjoint(after):
            yield _finding(
                subject,
                one,
                "dropped_outputs",
                f"dropout makes zeros of the outputs, of shape {one.signal.shape}, that the loss "
                "compares with the labels.",
                "apply it before the last layer, not after it.",
                shape=list(one.signal.shape),
            )


# The same mask.


def _for_all_examples(subject: Subject) -> Iterator[Finding]:
    axes = subject.axes
    if axes.number < 2 or axes.is_sequence(subject.is_given):
        return
    # Attention in flax drops the same weights of all examples, unless it is told not to.
    weights = {one.probabilities for one in subject.softmaxes}
    for one in subject.dropouts:
        if source_of(one.signal) in weights:
            continue
        rows = axes.rows_of(one.signal)
        is_wide = len(one.signal.shape) == len(one.mask.shape) and one.bits.output.size > 1
        if len(rows) == 1 and is_wide and is_shared_along(one.mask, rows[0]):
            yield _finding(
                subject,
                one,
                "same_mask",
                f"dropout draws one mask for all {axes.number:,} examples: they lose the same "
                "units, and the gradient of a batch is as noisy as that of one example.",
                "give each example a key of its own: vmap over jax.random.split(key, number).",
                examples=axes.number,
            )


def _repeated(subject: Subject) -> Iterator[Finding]:
    """A mask that two layers in a row have."""
    seen: dict[tuple[Any, ...], Dropout] = {}
    for one in subject.dropouts:
        key = subject.measured.get(one.bits, {}).get("dropout_key")
        if key is None:
            continue
        if _is_same_in_scan(subject, one, key):
            yield _same(subject, one, one)
        draw = (one.bits.output.shape, key.shape, key.tobytes())
        other = seen.setdefault(draw, one)
        if other is not one and _is_deeper(subject, one, other):
            yield _same(subject, one, other)


def _same(subject: Subject, one: Dropout, other: Dropout) -> Finding:
    line = other.node.line
    as_where = f"as that at {line}" if line and line != one.node.line else "as one before it"
    return _finding(
        subject,
        one,
        "same_mask",
        f"dropout of an array of shape {one.signal.shape} gets the same key {as_where}: these "
        "layers always lose the same units.",
        "give each layer a key of its own: jax.random.split(key, number).",
        shape=list(one.signal.shape),
        other=line,
    )


def _is_deeper(subject: Subject, one: Dropout, other: Dropout) -> bool:
    """Whether a signal comes from another one through a layer of its own."""
    own = one.signal.depends & ~other.node.output.depends
    is_own = own & ((1 << len(subject.traced.params)) - 1) != 0
    return is_own and other.node.output in set(subject.graph.upstream(one.signal))


def _is_same_in_scan(subject: Subject, one: Dropout, key: np.ndarray) -> bool:
    """Whether all layers of a stack that a loop goes through get the same key."""
    number = len(one.bits.inputs[0].shape)
    layers = key.reshape(-1, *key.shape[key.ndim - number - 1 :])
    if len(layers) < 2 or not np.all(layers == layers[:1]):
        return False
    upstream = subject.graph.upstream(one.signal, lambda node, i: node.name != "loop_carry")
    return any(_is_layer_of_stack(subject, value) for value in upstream)


def _is_layer_of_stack(subject: Subject, value: Value) -> bool:
    node = value.producer
    return (
        node is not None
        and node.name == "loop_slice"
        and len(value.shape) > 1
        and subject.is_trained(value)
        and not subject.is_given(value)
        and any(user.name in primitives.PLAIN_PRODUCTS for user, _ in value.users)
    )


def _constant(subject: Subject) -> Iterator[Finding]:
    """A key that is the same in every step, if the loss is compiled as it is."""
    for one in subject.dropouts:
        if not one.bits.inputs[0].depends:
            finding = _finding(
                subject,
                one,
                "same_mask",
                "the key of dropout is a constant of the loss: the same units are dropped in every "
                "step.",
                "pass the key as an argument of the loss, and split off a new one for each step.",
                shape=list(one.signal.shape),
            )
            yield Finding(**{**vars(finding), "severity": "remark"})
