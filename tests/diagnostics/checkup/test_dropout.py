"""`check_dropout`: a mask that is drawn twice, or for all examples, and a rate that is too high."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from gradtx import diagnostics

from .batches import HIDDEN, LABELS, WORDS, C, D, N, T, X, entropy, kinds, normal


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


KEY = jax.random.key(3)
WARNING = [("same_mask", "warning")]
DEEP = [normal(D, 16), normal(16, 16, seed=1), normal(16, C, seed=2)]


def drop(key, x, rate=0.5, shape=None):
    kept = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    return jnp.where(kept, x / (1 - rate), 0.0)


def multiplied(key, x, rate=0.5):
    return x * (jax.random.uniform(key, x.shape) > rate).astype(x.dtype) / (1 - rate)


# One key for several layers.


@pytest.mark.parametrize("drop", [drop, multiplied], ids=["select", "multiply"])
@pytest.mark.parametrize("is_split", [False, True])
def test_one_key_for_several_layers(drop, is_split):
    def loss_fn(params, x, y, key):
        masks = []
        for w in params[:-1]:
            mine, key = jax.random.split(key) if is_split else (key, key)
            masks.append(drop(mine, jnp.ones((N, 16))) > 0)
            x = drop(mine, jnp.tanh(x @ w))
        return entropy(x @ params[-1], y), masks

    batch = (DEEP, X, LABELS, KEY)
    findings = diagnostics.check_dropout(loss_fn, *batch, has_aux=True)
    assert kinds(findings) == ([] if is_split else WARNING)
    assert all(one.place.startswith("1") for one in findings)
    masks = loss_fn(*batch)[1]
    assert np.array_equal(masks[0], masks[1]) != is_split


@pytest.mark.parametrize("is_split", [False, True])
def test_one_key_for_a_stack_of_layers(is_split):
    def loss_fn(params, x, y, key):
        def layer(x, w_and_key):
            w, mine = w_and_key
            return x + drop(mine if is_split else key, jnp.tanh(x @ w)), None

        keys = jax.random.split(key, 3)
        x, _ = lax.scan(layer, x, (params["stack"], keys))
        return entropy(x @ params["head"], y)

    params = {"stack": normal(3, D, D), "head": normal(D, C)}
    findings = diagnostics.check_dropout(loss_fn, params, X, LABELS, KEY)
    assert kinds(findings) == ([] if is_split else WARNING)


class Recurrent(nn.Module):
    is_split: bool

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dropout(0.5, deterministic=False)(nn.tanh(nn.Dense(D)(x))), None

        stack = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": self.is_split},
            length=3,
        )
        return nn.Dense(C)(stack()(x, None)[0])


@pytest.mark.parametrize("is_split", [False, True])
def test_scanned_layers_of_flax(is_split):
    model = Recurrent(is_split)
    params = model.init({"params": KEY, "dropout": KEY}, X)

    def loss_fn(params, x, y, key):
        return entropy(model.apply(params, x, rngs={"dropout": key}), y)

    findings = diagnostics.check_dropout(loss_fn, params, X, LABELS, KEY)
    assert kinds(findings) == ([] if is_split else WARNING)


def in_each_step(params, x, y, key):
    def step(h, x):
        h = jnp.tanh(x @ params["w0"] + drop(key, h) @ params["recurrent"])
        return h, None

    h, _ = lax.scan(step, jnp.zeros((N, 8)), x.swapaxes(0, 1))
    return entropy(h @ params["w1"], y)


def in_unrolled_steps(params, x, y, key):
    h = jnp.zeros((N, 8))
    for t in range(T):
        h = jnp.tanh(x[:, t] @ params["w0"] + drop(key, h) @ params["recurrent"])
    return entropy(h @ params["w1"], y)


def in_twins(params, x, y, key):
    one, other = (drop(key, jnp.tanh(x[:, t] @ params["w0"])) for t in (0, 1))
    return entropy((one - other) @ params["w1"], y)


def in_parallel(params, x, y, key):
    one = drop(key, jnp.tanh(x[:, 0] @ params["w0"]))
    other = drop(key, jnp.tanh(x[:, 0] @ params["other"]))
    return entropy((one + other) @ params["w1"], y)


@pytest.mark.parametrize("loss_fn", [in_each_step, in_unrolled_steps, in_twins, in_parallel])
def test_the_same_mask_may_be_meant(loss_fn):
    params = HIDDEN | {"recurrent": normal(8, 8), "other": normal(D, 8)}
    assert not diagnostics.check_dropout(loss_fn, params, WORDS, LABELS, KEY)


# One key for all examples.


class Dropping(eqx.Module):
    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, key):
        for layer in self.mlp.layers[:-1]:
            key, mine = jax.random.split(key)
            x = self.dropout(jnp.tanh(layer(x)), key=mine)
        return self.mlp.layers[-1](x)


@pytest.mark.parametrize("is_split", [False, True])
def test_one_key_for_all_examples(is_split):
    def loss_fn(model, x, y, key):
        keys = jax.random.split(key, N) if is_split else key
        return entropy(jax.vmap(model, (0, 0 if is_split else None))(x, keys), y)

    model = Dropping(eqx.nn.MLP(D, C, 16, 2, key=KEY))
    findings = diagnostics.check_dropout(loss_fn, model, X, LABELS, KEY)
    assert kinds(findings) == ([] if is_split else WARNING)
    assert all("mlp/layers/0/weight" in one.place for one in findings)


@pytest.mark.parametrize("shape", [(1, 1, 1), (N, 1, 8), (N, T, 1)], ids=str)
def test_masks_that_are_smaller_than_the_signal(shape):
    def loss_fn(params, x, y, key):
        z = drop(key, jnp.tanh(x @ params["w0"]), shape=shape)
        return entropy(z.mean(1) @ params["w1"], y)

    assert not diagnostics.check_dropout(loss_fn, HIDDEN, WORDS, LABELS, KEY)


class Attending(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(
            2, D, dropout_rate=0.5, deterministic=False, decode=False, rngs=rngs
        )
        self.head = nnx.Linear(D, C, rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(x, x, x).mean(1))


def test_the_weights_of_attention_may_be_dropped_for_all_examples():
    graph, params, rest = nnx.split(Attending(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, rest, x, y):
        return entropy(nnx.merge(graph, params, rest, copy=True)(x), y)

    assert not diagnostics.check_dropout(loss_fn, params, rest, WORDS, LABELS)


def test_weights_that_are_dropped_are_those_of_all_examples():
    def loss_fn(params, x, y, key):
        w0 = drop(key, params["w0"])
        return entropy(jnp.tanh(x @ w0) @ params["w1"], y)

    assert not diagnostics.check_dropout(loss_fn, HIDDEN, X, LABELS, KEY)


# How much is dropped, and where.


@pytest.mark.parametrize(("rate", "expected"), [(0.95, ["dropout_rate"]), (0.7, [])])
def test_rate(rate, expected):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(rate, deterministic=False)(nn.relu(nn.Dense(64)(x)))
            return nn.Dense(C)(x)

    model = Network()
    params = model.init({"params": KEY, "dropout": KEY}, X)

    def loss_fn(params, x, y, key):
        return entropy(model.apply(params, x, rngs={"dropout": key}), y)

    findings = diagnostics.check_dropout(loss_fn, params, X, LABELS, KEY)
    assert [one.kind for one in findings] == expected
    # Five standard deviations of a share of N * 64 numbers.
    leeway = 5 * (rate * (1 - rate) / (N * 64)) ** 0.5
    assert all(abs(one.evidence["share"] - (1 - rate)) < leeway for one in findings)


def test_most_of_an_image_may_be_replaced():
    def loss_fn(params, x, y, key):
        z = x @ params["w0"]
        is_hidden = jax.random.bernoulli(key, 0.95, (N, T, 1))
        z = jnp.tanh(jnp.where(is_hidden, params["token"], z))
        return entropy(z.mean(1) @ params["w1"], y)

    params = HIDDEN | {"token": normal(8)}
    assert not diagnostics.check_dropout(loss_fn, params, WORDS, LABELS, KEY)


class Outputs(nnx.Module):
    def __init__(self, is_last, rngs):
        self.first, self.last = nnx.Linear(D, 8, rngs=rngs), nnx.Linear(8, C, rngs=rngs)
        self.dropout, self.is_last = nnx.Dropout(0.2, rngs=rngs), is_last

    def __call__(self, x):
        x = jax.nn.relu(self.first(x))
        return self.dropout(self.last(x)) if self.is_last else self.last(self.dropout(x))


@pytest.mark.parametrize(("is_last", "expected"), [(True, ["dropped_outputs"]), (False, [])])
def test_dropout_of_the_outputs(is_last, expected):
    graph, params, rest = nnx.split(Outputs(is_last, nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, rest, x, y):
        return entropy(nnx.merge(graph, params, rest, copy=True)(x), y)

    findings = diagnostics.check_dropout(loss_fn, params, rest, X, LABELS)
    assert [one.kind for one in findings] == expected


def test_a_constant_key_is_only_remarked_on():
    def loss_fn(params, x, y):
        return entropy(drop(KEY, jnp.tanh(x @ params["w0"])) @ params["w1"], y)

    findings = diagnostics.check_dropout(loss_fn, HIDDEN, X, LABELS)
    assert kinds(findings) == [("same_mask", "remark")]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="check_dropout: loss_fn must be a function"):
        diagnostics.check_dropout(3, {}, X)
