"""`check_examples` on sequences: padding that takes part, and a future that is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from gradtx import diagnostics

from .batches import LABELS, C, D, N, T, entropy, kinds, normal


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


# Padding.

LENGTHS = np.random.default_rng(0).integers(2, T, N)
IS_WORD = jnp.asarray(np.arange(T) < LENGTHS[:, None], jnp.float32)
FULL = 1 + jnp.arange(N * T).reshape(N, T) % 6
TOKENS = jnp.where(IS_WORD > 0, FULL, 0)
TABLE = {"table": normal(7, 8), "head": normal(8, C)}


def pooled(params, tokens, mask, is_masked):
    x = jnp.tanh(params["table"][tokens])
    if is_masked:
        return jnp.sum(x * mask[..., None], axis=1) / jnp.sum(mask, axis=1, keepdims=True)
    return jnp.mean(x, axis=1)


def attended(params, tokens, mask, is_masked):
    x = params["table"][tokens]
    scores = x @ jnp.swapaxes(x, 1, 2)
    scores = jnp.where(mask[:, None, :] > 0, scores, -1e9) if is_masked else scores
    return (jax.nn.softmax(scores) @ x)[:, 0]


@pytest.mark.parametrize("encode", [pooled, attended])
@pytest.mark.parametrize("given", [IS_WORD, jnp.asarray(LENGTHS)], ids=["mask", "lengths"])
def test_padding_that_takes_part(encode, given):
    def loss_fn(params, tokens, given, y, is_masked):
        mask = given if given.ndim > 1 else (jnp.arange(T) < given[:, None]).astype(jnp.float32)
        return entropy(encode(params, tokens, mask, is_masked) @ params["head"], y)

    (finding,) = diagnostics.check_examples(loss_fn, TABLE, TOKENS, given, LABELS, False)
    assert (finding.kind, finding.severity) == ("padding", "warning")
    assert finding.place == "argument args[0], argument args[1]"
    assert finding.evidence["share"] == pytest.approx(1 - np.mean(LENGTHS) / T)
    (changed,) = finding.evidence["losses"].values()
    assert finding.evidence["loss"] == pytest.approx(
        float(loss_fn(TABLE, TOKENS, given, LABELS, False)), rel=1e-5
    )
    assert changed != pytest.approx(finding.evidence["loss"], rel=1e-5)
    assert not diagnostics.check_examples(loss_fn, TABLE, TOKENS, given, LABELS, True)


@pytest.mark.parametrize("has_mask", [True, False])
def test_padding_that_no_mask_speaks_of(has_mask):
    def loss_fn(params, tokens, mask, y):
        mask = jnp.ones(tokens.shape) if mask is None else mask
        return entropy(pooled(params, tokens, mask, True) @ params["head"], y)

    mask = jnp.ones_like(IS_WORD) if has_mask else None
    (finding,) = diagnostics.check_examples(loss_fn, TABLE, TOKENS, mask, LABELS)
    assert (finding.kind, finding.severity) == ("padding", "warning")
    assert finding.evidence["padding"] == 0
    assert not diagnostics.check_examples(loss_fn, TABLE, TOKENS, IS_WORD, LABELS)
    assert not diagnostics.check_examples(loss_fn, TABLE, FULL, mask, LABELS)


def test_padded_targets():
    def loss_fn(params, tokens, mask, is_masked):
        logits = params["table"][tokens[:, :-1]] @ params["table"].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        if is_masked:
            return jnp.sum(losses * mask[:, 1:]) / jnp.sum(mask[:, 1:])
        return jnp.mean(losses)

    findings = diagnostics.check_examples(loss_fn, TABLE, TOKENS, IS_WORD, False)
    assert kinds(findings) == [("padding", "warning")]
    assert not diagnostics.check_examples(loss_fn, TABLE, TOKENS, IS_WORD, True)


def test_masks_that_do_not_stand_for_padding():
    is_asked = jnp.asarray(np.random.default_rng(1).random((N, T)) < 0.3, jnp.float32)

    def loss_fn(params, tokens, is_asked):
        logits = params["table"][tokens] @ params["table"].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, ::-1])
        return jnp.sum(losses * is_asked) / jnp.sum(is_asked)

    assert not diagnostics.check_examples(loss_fn, TABLE, FULL, is_asked)
    of_answer = 1 - IS_WORD  # The prompt is not to be predicted, but read.
    assert not diagnostics.check_examples(loss_fn, TABLE, FULL, of_answer)


def test_padding_that_is_recognized_by_its_number():
    def loss_fn(params, tokens, mask):
        logits = params["table"][tokens] @ params["table"].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        is_word = (tokens != 0).astype(losses.dtype)
        return jnp.sum(losses * is_word) / jnp.sum(is_word) + 0 * jnp.sum(mask)

    assert not diagnostics.check_examples(loss_fn, TABLE, TOKENS, IS_WORD)


# Sequences that are to be continued.

LENGTH = 7
SENTENCES = jnp.asarray(np.random.default_rng(2).integers(0, 9, (N, LENGTH)))
MODEL = {"table": normal(9, D), "head": normal(D, 9), "kernel": normal(3, D, D)}


def attending(offset):
    def encode(params, x):
        scores = x @ jnp.swapaxes(x, 1, 2)
        if offset is not None:
            mask = jnp.tril(jnp.ones(scores.shape[1:], bool), offset)
            scores = jnp.where(mask, scores, -1e9)
        return x + jax.nn.softmax(scores) @ x

    return encode


def convolving(*padding):
    def encode(params, x):
        numbers = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, params["kernel"], (1,), [padding], dimension_numbers=numbers
        )

    return encode


def recurrent(is_reversed):
    def encode(params, x):
        def step(h, x):
            h = jnp.tanh(x + h @ params["kernel"][0])
            return h, h

        start = jnp.zeros(x[:, 0].shape)
        _, h = lax.scan(step, start, jnp.swapaxes(x, 0, 1), reverse=is_reversed)
        return jnp.swapaxes(h, 0, 1)

    return encode


def translating(params, x):
    scores = x @ jnp.swapaxes(attending(None)(params, x), 1, 2)
    return attending(0)(params, x) + jax.nn.softmax(scores) @ x


def pooling(params, x):
    return x + jnp.mean(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("encode", "changed"),
    [
        (attending(None), 5),
        (attending(1), 1),
        (convolving(1, 1), 1),
        (recurrent(True), 5),
        (attending(0), 0),
        (convolving(2, 0), 0),
        (recurrent(False), 0),
        (translating, 0),
        (pooling, 0),
    ],
    ids=[
        "no mask",
        "mask that is one off",
        "convolution on both sides",
        "backward recurrence",
        "causal mask",
        "causal convolution",
        "recurrence",
        "translation",
        "autoencoder",
    ],
)
def test_future_that_is_seen(encode, changed):
    def loss_fn(params, tokens):
        logits = encode(params, params["table"][tokens[:, :-1]]) @ params["head"]
        return entropy(logits, tokens[:, 1:])

    findings = diagnostics.check_examples(loss_fn, MODEL, SENTENCES)
    assert kinds(findings) == [("future_leak", "error")] * (changed > 0)
    for one in findings:
        assert (one.place, one.evidence["changed_places"]) == ("argument args[0]", changed)


def test_padded_queries_may_see_anything():
    """They see all keys alike where every key is hidden from them, and do not count in the loss."""
    lengths = 2 + jnp.arange(N) % (LENGTH - 3)
    tokens = jnp.where(jnp.arange(LENGTH)[None] < lengths[:, None], 1 + SENTENCES % 8, 0)

    def loss_fn(params, tokens, offset):
        x, is_there = params["table"][tokens[:, :-1]], tokens[:, :-1] > 0
        scores = x @ jnp.swapaxes(x, 1, 2)
        causal = jnp.tril(jnp.ones(scores.shape[1:], bool)) if offset == "causal" else True
        mask = is_there[:, :, None] & is_there[:, None] & causal
        logits = (x + jax.nn.softmax(jnp.where(mask, scores, -1e9)) @ x) @ params["head"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(losses, where=is_there)

    assert not diagnostics.check_examples(loss_fn, MODEL, tokens, "causal")
    assert kinds(diagnostics.check_examples(loss_fn, MODEL, tokens, "none")) == [
        ("future_leak", "error")
    ]


@pytest.mark.parametrize(
    ("encode", "expected"),
    [(attending(0), [("future_leak", "error")]), (attending(-1), []), (attending(None), [])],
    ids=["copies", "sees the past only", "restores"],
)
def test_labels_that_are_not_shifted(encode, expected):
    def loss_fn(params, tokens):
        x = params["table"][tokens]
        return entropy((encode(params, x) - x) @ params["head"], tokens)

    assert kinds(diagnostics.check_examples(loss_fn, MODEL, SENTENCES)) == expected


@pytest.mark.parametrize(("shift", "expected"), [(-1, [("future_leak", "error")]), (0, [])])
def test_labels_that_are_an_argument(shift, expected):
    def loss_fn(params, tokens, labels):
        logits = attending(None)(params, params["table"][tokens]) @ params["head"]
        return entropy(logits.reshape(-1, 9), labels.reshape(-1))

    labels = jnp.roll(SENTENCES, shift, axis=1)
    assert kinds(diagnostics.check_examples(loss_fn, MODEL, SENTENCES, labels)) == expected
