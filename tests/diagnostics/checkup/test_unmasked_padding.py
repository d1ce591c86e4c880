"""`check_examples`: padding that no mask speaks of, and what is made of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx import diagnostics

from .batches import LABELS, C, D, N, entropy, kinds, normal


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


L = 8
LENGTHS = 2 + np.arange(N) % 6
IS_THERE = np.arange(L) < LENGTHS[:, None]
SERIES = jnp.where(IS_THERE[..., None], normal(N, L, D), 0.0)
TOKENS = jnp.where(IS_THERE, 1 + jnp.arange(N * L).reshape(N, L) % 9, 0)
PARAMS = {
    "table": normal(10, D, seed=3),
    "hidden": normal(D, 8),
    "bias": jnp.ones(8),
    "head": normal(8, C, seed=1),
}
WARNING, REMARK = [("padding", "warning")], [("padding", "remark")]


def hidden(params, x):
    x = params["table"][x] if x.ndim == 2 else x
    return jnp.tanh(x @ params["hidden"] + params["bias"])


def attended(z):
    return jax.nn.softmax(z @ z.swapaxes(1, 2) / 8**0.5) @ z


# What is made of the features of the entries, and what is found.
POOLINGS = {
    "mean": (lambda z, there: z.mean(1), WARNING),
    "sum": (lambda z, there: z.sum(1) / 4, WARNING),
    "attention": (lambda z, there: attended(z)[:, 0], WARNING),
    "masked mean": (lambda z, there: jnp.sum(z, 1, where=there) / there.sum(1).astype(z.dtype), []),
    "masked maximum": (lambda z, there: jnp.where(there, z, -1e9).max(1), []),
    "maximum": (lambda z, there: z.max(1), REMARK),
    "first": (lambda z, there: z[:, 0], []),
}


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("x", [SERIES, TOKENS], ids=["series", "tokens"])
def test_what_is_made_of_padding(name, x):
    pool, expected = POOLINGS[name]

    def loss_fn(params, x, y):
        there = jnp.ones((N, L, 1), bool)
        if "masked" in name:
            there = (x != 0)[..., None] if x.ndim == 2 else jnp.any(x != 0, -1, keepdims=True)
        return entropy(pool(hidden(params, x), there) @ params["head"], y)

    findings = diagnostics.check_examples(loss_fn, PARAMS, x, LABELS)
    assert kinds(findings) == expected
    for one in findings:
        assert one.place == "argument args[0]"
        assert one.evidence["padding"] == 0
        # Other numbers in the padding change the loss.
        loss, (other,) = one.evidence["loss"], one.evidence["losses"].values()
        assert loss == pytest.approx(float(loss_fn(PARAMS, x, LABELS)), rel=1e-5)
        assert abs(other - loss) > 1e-5


def test_a_mean_in_flax():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(C)(jnp.mean(nn.Embed(10, D)(tokens), axis=1))

    model = Network()
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)

    def loss_fn(params, x, y):
        return entropy(model.apply(params, x), y)

    assert kinds(diagnostics.check_examples(loss_fn, params, TOKENS, LABELS)) == WARNING


def test_a_sum_to_which_padding_adds_nothing():
    def loss_fn(params, x, y, is_mean=False):
        z = jnp.tanh(x @ params["hidden"])
        return entropy((z.mean(1) if is_mean else z.sum(1)) @ params["head"], y)

    assert kinds(diagnostics.check_examples(loss_fn, PARAMS, SERIES, LABELS)) == REMARK
    # A mean of zeros too is smaller for short series.
    findings = diagnostics.check_examples(
        lambda *a: loss_fn(*a, is_mean=True), PARAMS, SERIES, LABELS
    )
    assert kinds(findings) == WARNING


@pytest.mark.parametrize(
    "x",
    [
        # A margin of zeros on both sides, as around a digit; the same length for all; a last token
        # in the middle of the vocabulary.
        jnp.roll(SERIES, 1, axis=1),
        jnp.where((np.arange(L) < 5)[None, :, None], normal(N, L, D), 0.0),
        jnp.where(IS_THERE, TOKENS % 4, 5).at[:, 0].set(9),
    ],
    ids=["margin", "equal", "absorbing"],
)
def test_what_may_be_no_padding(x):
    def loss_fn(params, x, y):
        return entropy(hidden(params, x).mean(1) @ params["head"], y)

    assert ("padding", "warning") not in kinds(
        diagnostics.check_examples(loss_fn, PARAMS, x, LABELS)
    )
