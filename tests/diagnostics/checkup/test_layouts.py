"""What the axes and the columns of a batch hold: channels, constants, and the target itself."""

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


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def found(loss_fn, params, *batch):
    findings = diagnostics.check_data(loss_fn, params, *batch)
    return [(f.kind, f.severity, f.place) for f in findings]


# The layout of images and sequences.

LABELS = jnp.arange(8) % 4


def entropy(logits):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, LABELS))


def of_linen(x, kernel):
    model = linen.Sequential(
        [linen.Conv(4, kernel), linen.relu, lambda x: x.reshape(len(x), -1), linen.Dense(4)]
    )
    return (lambda params, x: entropy(model.apply(params, x))), jax.jit(model.init)(
        jax.random.key(0), x
    )


def of_nnx(x, kernel):
    graph, params = nnx.split(nnx.Conv(x.shape[-1], 4, kernel, rngs=nnx.Rngs(0)))

    def loss_fn(params, x):
        features = nnx.merge(graph, params)(x / 2)
        return entropy(jnp.mean(features, tuple(range(1, features.ndim - 1))))

    return loss_fn, params


def of_equinox(x, kernel):
    layer = eqx.nn.Conv(len(kernel), x.shape[1], 4, kernel, key=jax.random.key(0))

    def loss_fn(layer, x):
        features = jax.vmap(layer)(x)
        return entropy(jnp.mean(features, tuple(range(2, features.ndim))))

    return loss_fn, layer


WRONG = [
    (of_linen, normal(8, 3, 16, 16), (3, 3), 1, -1, "error"),
    (of_nnx, normal(8, 1, 12, 20), (5, 5), 1, -1, "warning"),
    (of_equinox, normal(8, 64, 1), (5,), -1, 1, "error"),
    (of_linen, normal(8, 1, 12, 12, 12), (3, 3, 3), 1, -1, "warning"),
]


@pytest.mark.parametrize(("made", "x", "kernel", "is_at", "to", "severity"), WRONG)
def test_channels_along_another_axis(made, x, kernel, is_at, to, severity):
    (finding,) = diagnostics.check_data(*made(x, kernel), x)
    assert (finding.kind, finding.severity) == ("wrong_layout", severity)
    assert finding.place == "argument args[0]"
    assert finding.evidence["channel_axis"] == is_at % x.ndim
    assert finding.source.startswith("test_layouts.py:")
    # The cure as it is written.
    axes = finding.evidence["channel_axis"], finding.evidence["axis"]
    assert f"jnp.moveaxis(x, {axes[0]}, {axes[1]})" in finding.cure
    cured = jnp.moveaxis(x, *axes)
    assert cured.shape == jnp.moveaxis(x, is_at, to).shape
    assert not found(*made(cured, kernel), cured)


RIGHT = [
    (of_linen, normal(8, 6, 6, 16), (3, 3)),
    # Three by three fields of a board, with a plane for each piece.
    (of_linen, normal(8, 3, 3, 12), (2, 2)),
    # A sequence as an image of one row.
    (of_linen, normal(8, 1, 20, 16), (1, 5)),
    (of_linen, normal(8, 1, 1, 64), (1, 1)),
    (of_equinox, normal(8, 3, 12, 12), (3, 3)),
    (of_linen, normal(8, 20, 8), (3,)),
]


@pytest.mark.parametrize(("made", "x", "kernel"), RIGHT)
def test_channels_where_they_belong(made, x, kernel):
    assert not found(*made(x, kernel), x)


# The target among the features.

X = normal(32, 6)
TARGET = jnp.tanh(X[:, 0]) + X[:, 1] * X[:, 2]
PARAMS = {"w0": 0.4 * normal(6, 8), "w1": 0.3 * normal(8, 4)}


def outputs(params, x):
    return jnp.tanh(x @ params["w0"]) @ params["w1"]


def of_squares(params, x, y):
    return jnp.mean((outputs(params, x)[:, 0] - y) ** 2)


def of_classes(params, x, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs(params, x), y))


def of_two(params, x, y):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs(params, x)[:, 0], y))


CASES = [
    (of_squares, TARGET),
    (of_classes, jnp.asarray(RNG.integers(0, 4, 32))),
    (of_two, jnp.asarray(RNG.integers(0, 2, 32), jnp.float32)),
]


@pytest.mark.parametrize(("loss_fn", "y"), CASES)
@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (-0.5, 1.5)])
def test_a_feature_that_is_the_target(loss_fn, y, factor, offset):
    x = X.at[:, 4].set(factor * y.astype(jnp.float32) + offset)
    assert found(loss_fn, PARAMS, x, y) == [("target_leak", "warning", "argument args[0] [4]")]
    assert not found(loss_fn, PARAMS, X, y)
    noisy = x.at[:, 4].add(0.1 * normal(32))
    assert not found(loss_fn, PARAMS, noisy, y)


def test_a_column_that_is_the_target():
    def loss_fn(params, columns, y):
        return of_squares(params, jnp.stack(list(columns.values()), axis=1), y)

    columns = {name: X[:, i] for i, name in enumerate("abcdef")}
    assert not found(loss_fn, PARAMS, columns, TARGET)
    assert found(loss_fn, PARAMS, {**columns, "e": 2 * TARGET}, TARGET) == [
        ("target_leak", "warning", "argument args[0]['e']")
    ]


def test_inputs_that_are_to_be_predicted():
    def autoencoder(params, x, target):
        return jnp.mean((jnp.tanh(x @ params["w0"]) @ params["w0"].T - target) ** 2)

    assert not found(autoencoder, PARAMS, X, X)
    # A line has one feature.
    line = {"w0": PARAMS["w0"][:1], "w1": PARAMS["w1"]}
    assert not found(of_squares, line, X[:, :1], 3 * X[:, 0] + 1)
    # A rare class may be found in a column of zeros and ones.
    rare = (jnp.arange(32) == 7).astype(jnp.float32)
    assert not found(of_two, PARAMS, X.at[:, 3].set(rare), rare)


# Constant features, where they are.


def test_what_the_loss_makes_constant_is_on_purpose():
    def with_one(params, t, y):
        return of_squares({**params, "w0": params["w0"][:2]}, jnp.stack([t, jnp.ones(32)], 1), y)

    def masked(params, x, y):
        return of_squares(params, x * jnp.array([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0]]), y)

    assert not found(with_one, PARAMS, X[:, 0], TARGET)
    assert not found(masked, PARAMS, X, TARGET)


def test_a_constant_column_of_its_own():
    def loss_fn(params, t, x, y):
        return of_squares(params, jnp.stack([t, *x.T[1:]], axis=1), y)

    assert found(loss_fn, PARAMS, jnp.full(32, 3.0), X, TARGET) == [
        ("constant_feature", "warning", "argument args[0]")
    ]


def test_constant_pixels():
    images = X.reshape(32, 2, 3).at[:, 1, 0].set(0.0)

    def loss_fn(params, images, y):
        return of_squares(params, images.reshape(32, -1), y)

    assert found(loss_fn, PARAMS, images, TARGET) == [
        ("constant_feature", "remark", "argument args[0] [3]")
    ]
