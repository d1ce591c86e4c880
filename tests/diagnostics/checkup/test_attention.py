"""`check_attention`: where attention looks, and what its masks hide."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradtx import diagnostics

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((4, 6, 16)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(1, 9, (4, 6)))
SEEN = jnp.tril(jnp.ones((6, 6), bool))
PARAMS = {
    name: jnp.asarray(RNG.standard_normal((16, 16)) / 4, jnp.float32) for name in ("q", "k", "v")
}


def attend(params, x, scale=0.25, mask=None, bias=None):
    scores = scale * (x @ params["q"]) @ jnp.swapaxes(x @ params["k"], -1, -2)
    scores = scores if mask is None else jnp.where(mask, scores, -1e9)
    scores = scores if bias is None else scores + bias
    return jax.nn.softmax(scores) @ (x @ params["v"])


def squares(*, params=PARAMS, **settings):
    def loss_fn(params, x):
        return jnp.mean((attend(params, x, **settings) - x) ** 2)

    return diagnostics.check_attention(loss_fn, params, X)


def kinds(findings):
    return [(one.kind, one.severity) for one in findings]


@pytest.mark.parametrize("mask", [None, SEEN[None], SEEN[None] | SEEN.T[None]])
def test_attention_is_healthy(mask):
    assert not squares(mask=mask)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_scores_without_a_scale(scale):
    large = {name: 1.4 * array for name, array in PARAMS.items()}
    (finding,) = squares(params=large, scale=scale)
    assert kinds([finding]) == [("unscaled_attention", "warning")]
    assert finding.place == "q, k"
    q, k = (np.asarray(X, np.float64) @ np.asarray(large[name], np.float64) for name in "qk")
    scores = scale * q @ np.swapaxes(k, -1, -2)
    assert finding.evidence["spread"] == pytest.approx(
        np.sqrt(np.mean(np.var(scores, -1))), rel=1e-4
    )
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    largest = np.mean(1 / shares.sum(-1))
    assert finding.evidence["largest_weight"] == pytest.approx(largest, rel=1e-4)
    assert finding.evidence["factor"] == scale
    assert not squares(params=large, scale=0.25)


def test_small_weights_need_no_scale():
    assert not squares(params={name: array / 2 for name, array in PARAMS.items()}, scale=1.0)


def test_normalized_queries_need_no_scale():
    def loss_fn(params, x):
        q, k = (x @ params[name] for name in "qk")
        q, k = (z / jnp.sqrt(jnp.sum(z**2, -1, keepdims=True)) for z in (q, k))
        scores = params["gain"] * q @ jnp.swapaxes(k, -1, -2)
        return jnp.mean((jax.nn.softmax(scores) @ x) ** 2)

    params = PARAMS | {"gain": jnp.asarray(9.0)}
    assert not diagnostics.check_attention(loss_fn, params, X)


def test_one_key_with_all_the_weight():
    (finding,) = squares(params=PARAMS | {"q": 100 * PARAMS["q"]})
    assert kinds([finding]) == [("one_hot_attention", "warning")]
    assert finding.place == "q, k"
    assert finding.evidence["largest_weight"] > 0.9
    factor = finding.evidence["spread"]
    assert not squares(params=PARAMS | {"q": 100 / factor * PARAMS["q"]})


def test_masks_that_leave_nothing():
    # The last query of the causal mask, taken the wrong way round, sees nothing.
    (finding,) = squares(mask=~SEEN[None])
    assert kinds([finding]) == [("empty_mask", "error")]
    assert (finding.evidence["empty_queries"], finding.evidence["queries"]) == (4, 24)
    assert not squares(mask=SEEN[None])


@pytest.mark.parametrize("hidden", [-1e9, -jnp.inf])
def test_padding_is_no_empty_mask(hidden):
    lengths = jnp.array([6, 4, 3, 5])

    def loss_fn(params, x, lengths):
        is_there = jnp.arange(6)[None] < lengths[:, None]
        # A query that is padding sees nothing, or as much as the others do.
        pairs = is_there[:, None] & (is_there[:, :, None] | (hidden == -jnp.inf))
        return jnp.mean(attend(params, x, bias=jnp.where(pairs, 0.0, hidden)) ** 2)

    assert not diagnostics.check_attention(loss_fn, PARAMS, X, lengths)
    found = diagnostics.check_attention(loss_fn, PARAMS, X, lengths.at[2].set(0))
    severity = "warning" if hidden == -1e9 else "error"
    assert kinds(found) == [("empty_mask", severity)]
    assert found[0].place == "argument args[1]"


def test_mask_of_zeros_and_ones_that_is_added():
    (finding,) = squares(bias=SEEN[None].astype(jnp.float32))
    assert kinds([finding]) == [("full_mask", "warning")]
    assert not squares(bias=jnp.where(SEEN, 0.0, -1e9)[None])
    assert not squares(bias=-jnp.abs(jnp.arange(6.0)[None, None] - jnp.arange(6.0)[None, :, None]))


def test_mask_that_hides_nothing():
    def loss_fn(params, x, tokens, mask):
        return jnp.mean(attend(params, x + tokens[..., None] / 9, mask=mask[:, None]) ** 2)

    mask = jnp.ones((4, 6), bool)
    (finding,) = diagnostics.check_attention(loss_fn, PARAMS, X, TOKENS, mask)
    assert kinds([finding]) == [("full_mask", "remark")]
    is_there = jnp.arange(6)[None] < jnp.array([[6], [4], [3], [5]])
    padded = jnp.where(is_there, TOKENS, 0)
    (finding,) = diagnostics.check_attention(loss_fn, PARAMS, X, padded, mask)
    assert kinds([finding]) == [("full_mask", "warning")]
    assert "args[1]" in finding.sentence
    assert not diagnostics.check_attention(loss_fn, PARAMS, X, padded, is_there)


def predicts(mask):
    def loss_fn(params, tokens, labels):
        x = params["table"][tokens]
        logits = (x + attend(params, x, mask=mask)) @ params["table"].T
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return loss_fn


def test_next_token_that_attention_sees():
    params = PARAMS | {"table": jnp.asarray(RNG.standard_normal((9, 16)) / 4, jnp.float32)}
    tokens = jnp.asarray(RNG.integers(0, 9, (4, 7)))
    pair = tokens[:, :-1], tokens[:, 1:]
    (finding,) = diagnostics.check_examples(predicts(None), params, *pair)
    assert kinds([finding]) == [("future_leak", "error")]
    assert not diagnostics.check_examples(predicts(SEEN[None]), params, *pair)
    # A network that fills in or classifies tokens may see all of them.
    assert not diagnostics.check_examples(predicts(None), params, TOKENS, TOKENS)


def test_encoder_sees_all_of_its_tokens():
    params = PARAMS | {"table": jnp.asarray(RNG.standard_normal((9, 16)) / 4, jnp.float32)}

    def loss_fn(params, tokens):
        source = params["table"][tokens]
        source = source + attend(params, source)
        # The answer is the reversed question; the decoder reads it one place late.
        answer = tokens[:, ::-1]
        late = jnp.pad(answer[:, :-1], ((0, 0), (1, 0)))
        x = params["table"][late]
        x = x + attend(params, x, mask=SEEN[None])
        scores = (x @ params["q"]) @ jnp.swapaxes(source, -1, -2) / 4
        logits = (x + jax.nn.softmax(scores) @ source) @ params["table"].T
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, answer))

    assert not diagnostics.check_examples(loss_fn, params, TOKENS)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, mask):
        return linen.MultiHeadDotProductAttention(num_heads=2)(x, mask=mask)


def test_probabilities_of_a_classifier_are_no_attention():
    def loss_fn(params, x, targets):
        probabilities = jax.nn.softmax(20 * x[:, 0] @ params["q"])
        return -jnp.sum(jnp.einsum("bk,bk->b", probabilities, targets))

    targets = jnp.eye(16)[:4]
    assert not diagnostics.check_attention(loss_fn, {"q": PARAMS["q"]}, X, targets)


def test_attention_of_frameworks():
    causal = linen.make_causal_mask(TOKENS, dtype=bool)
    params = jax.jit(Linen().init)(jax.random.key(0), X, causal)
    module = eqx.nn.MultiheadAttention(2, 16, key=jax.random.key(0))
    graph, state = nnx.split(nnx.MultiHeadAttention(2, 16, decode=False, rngs=nnx.Rngs(0)))

    def of_linen(params, x, mask):
        return jnp.mean((Linen().apply(params, x, mask) - x) ** 2)

    def of_equinox(module, x, mask):
        z = jax.vmap(lambda x, mask: module(x, x, x, mask=mask[0]))(x, mask)
        return jnp.mean((z - x) ** 2)

    def of_nnx(state, x, mask):
        return jnp.mean((nnx.merge(graph, state)(x, mask=mask) - x) ** 2)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for loss_fn, model in ((of_linen, params), (of_equinox, module), (of_nnx, state)):
            assert not diagnostics.check_attention(loss_fn, model, X, causal), loss_fn
            (finding,) = diagnostics.check_attention(loss_fn, model, X, ~causal)
            assert kinds([finding]) == [("empty_mask", "error")]
            assert finding.place == "argument args[1]"
            assert "test_attention.py" in finding.source
            large = jax.tree.map(lambda z: 12 * z if eqx.is_inexact_array(z) else z, model)
            found = diagnostics.check_attention(loss_fn, large, X, causal)
            assert kinds(found) == [("one_hot_attention", "warning")]
