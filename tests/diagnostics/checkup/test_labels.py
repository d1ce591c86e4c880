"""`check_labels`: indices and labels that are out of range, and batches of one class."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from gradtx import diagnostics

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((40, 6)), jnp.float32)
W = {"w": jnp.asarray(0.3 * RNG.standard_normal((6, 5)), jnp.float32)}
FROM_ZERO = jnp.arange(40) % 5
TABLE = {"table": jnp.asarray(RNG.standard_normal((10, 3)), jnp.float32), "head": jnp.ones((3, 1))}


def of_integers(params, x, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ params["w"], y))


def of_codes(params, x, y):
    return jnp.mean(optax.softmax_cross_entropy(x @ params["w"], jax.nn.one_hot(y, 5)))


def of_picks(params, x, y):
    return -jnp.mean(jax.nn.log_softmax(x @ params["w"])[jnp.arange(40), y])


def of_eye(params, x, y):
    return jnp.mean(optax.softmax_cross_entropy(x @ params["w"], jnp.eye(5)[y]))


def of_examples(params, x, y):
    def one(x, y):
        return -jax.nn.log_softmax(x @ params["w"])[y]

    return jnp.mean(jax.vmap(one)(x, y))


LOSSES = [of_integers, of_codes, of_picks, of_eye, of_examples]


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_labels_counted_from_one(loss_fn):
    (finding,) = diagnostics.check_labels(loss_fn, W, X, FROM_ZERO + 1)
    assert (finding.kind, finding.severity) == ("label_out_of_range", "error")
    assert finding.place == "argument args[1]"
    assert finding.source.startswith("test_labels.py:")
    assert "subtract 1" in finding.cure
    evidence = {"low": 1, "high": 5, "size": 5, "outside": 8, "number": 40}
    assert dict(finding.evidence) == evidence
    assert not diagnostics.check_labels(loss_fn, W, X, FROM_ZERO)


def test_labels_beyond_the_classes():
    (finding,) = diagnostics.check_labels(of_codes, W, X, FROM_ZERO.at[3].set(7))
    assert finding.evidence["outside"] == 1
    assert "8 outputs" in finding.cure
    # A head that is too narrow for what the labels may be.
    (finding,) = diagnostics.check_labels(of_codes, W, X, FROM_ZERO, classes=6)
    assert finding.kind == "label_out_of_range"


def test_labels_that_are_ignored_are_healthy():
    labels = FROM_ZERO.at[:4].set(-100)

    def masked(params, x, y):
        losses = optax.softmax_cross_entropy(x @ params["w"], jax.nn.one_hot(y, 5))
        return jnp.sum(jnp.where(y >= 0, losses, 0)) / 36

    def replaced(params, x, y):
        losses = of_losses(params, x, jnp.where(y == -100, 0, y))
        return jnp.sum(losses * (y != -100).astype(jnp.float32)) / 36

    def of_losses(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["w"], y)

    for loss_fn in (masked, replaced):
        assert not diagnostics.check_labels(loss_fn, W, X, labels)

    # A label that is clipped is another class.
    def clipped(params, x, y):
        log_probabilities = jax.nn.log_softmax(x @ params["w"])
        return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], -1, mode="clip"))

    (finding,) = diagnostics.check_labels(clipped, W, X, labels)
    assert finding.kind == "label_out_of_range"

    # To compare the labels is not enough where the loss is NaN.
    def counted(params, x, y):
        return jnp.mean(of_losses(params, x, y)) + jnp.mean((y == -100).astype(jnp.float32))

    (finding,) = diagnostics.check_labels(counted, W, X, labels)
    assert finding.kind == "label_out_of_range"
    assert "NaN" in finding.sentence


def embedded(params, x, tokens):
    return jnp.mean((jnp.sum(x[..., :1]) + params["table"][tokens] @ params["head"]) ** 2)


def taken(params, x, tokens):
    return jnp.mean((jnp.sum(x) + jnp.take(params["table"], tokens, axis=0) @ params["head"]) ** 2)


def sliced(params, x, tokens):
    return jnp.mean(lax.dynamic_slice(params["table"], (tokens[0, 0], 0), (1, 3)) @ params["head"])


def coded(params, x, tokens):
    return jnp.mean((jax.nn.one_hot(tokens, 10) @ params["table"] @ params["head"]) ** 2)


@pytest.mark.parametrize("loss_fn", [embedded, taken, sliced, coded])
def test_index_beyond_the_table(loss_fn):
    tokens = jnp.arange(20).reshape(4, 5)[::-1]
    (finding,) = diagnostics.check_labels(loss_fn, TABLE, X, tokens)
    assert (finding.kind, finding.severity) == ("index_out_of_range", "error")
    assert "argument args[1]" in finding.place
    assert ("table" in finding.place) == (loss_fn is not coded)
    assert finding.evidence["size"] == 10
    assert finding.evidence["high"] in (15, 19)
    assert not diagnostics.check_labels(loss_fn, TABLE, X, tokens % 10)
    assert not diagnostics.check_labels(loss_fn, TABLE, X, -1 - tokens % 10) or loss_fn is coded


def test_what_is_out_of_range_on_purpose():
    def loss_fn(params, x, tokens, mode):
        fill = {"fill_value": 0} if mode == "fill" else {}
        rows = params["table"].at[tokens].get(mode=mode, **fill)
        return jnp.mean((rows @ params["head"]) ** 2) + jnp.sum(x)

    tokens = jnp.arange(20).reshape(4, 5)
    assert not diagnostics.check_labels(loss_fn, TABLE, X, tokens, "fill")
    # One index beyond the table may stand for padding; of several, all become the last row.
    assert not diagnostics.check_labels(loss_fn, TABLE, X, tokens % 11, "clip")
    (finding,) = diagnostics.check_labels(loss_fn, TABLE, X, tokens, "clip")
    assert (finding.kind, finding.severity) == ("index_out_of_range", "warning")
    assert (finding.evidence["outside"], finding.evidence["high"]) == (10, 19)


def test_positions_beyond_their_table():
    def loss_fn(params, x):
        return jnp.mean((x + params["table"][jnp.arange(12), :1]) ** 2)

    (finding,) = diagnostics.check_labels(loss_fn, TABLE, X[:12])
    assert (finding.kind, finding.place) == ("index_out_of_range", "table")
    assert finding.evidence["outside"] == 2


def test_segments_beyond_their_number():
    def loss_fn(params, x, segments):
        sums = jax.ops.segment_sum(x[:, :3] @ params["table"][:3], segments, num_segments=4)
        return jnp.mean(sums**2)

    segments = jnp.arange(40) % 5
    (finding,) = diagnostics.check_labels(loss_fn, TABLE, X, segments)
    assert (finding.kind, finding.severity) == ("index_out_of_range", "warning")
    assert not diagnostics.check_labels(loss_fn, TABLE, X, segments - 1)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_one_class_only(loss_fn):
    (finding,) = diagnostics.check_labels(loss_fn, W, X, jnp.full(40, 2))
    assert (finding.kind, finding.severity) == ("single_class", "warning")
    assert finding.place == "argument args[1]"
    assert finding.evidence["class"] == 2


def binary(params, x, y):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(x @ params["w"][:, 0] + params["b"], y))


def test_imbalance_that_the_head_does_not_know():
    y = (jnp.arange(40) == 7).astype(jnp.float32)
    params = W | {"b": jnp.zeros(())}
    (finding,) = diagnostics.check_labels(binary, params, X, y)
    assert (finding.kind, finding.place) == ("class_imbalance", "argument args[1]")
    share = 39 / 40
    assert finding.evidence["share"] == share
    mean = float(jnp.mean(jax.nn.sigmoid(X @ W["w"][:, 0])))
    means = np.array([1 - mean, mean])
    distances = [
        share * np.log(share / p) + (1 - share) * np.log((1 - share) / (1 - p)) for p in means
    ]
    assert finding.evidence["divergence"] == pytest.approx(min(distances), rel=1e-5)
    # The cure of focal loss: a bias that knows the shares.
    assert not diagnostics.check_labels(binary, params | {"b": jnp.log(1 / 39)}, X, y)


def test_imbalance_of_several_classes():
    labels = jnp.where(jnp.arange(40) < 36, 0, jnp.arange(40) % 5)
    (finding,) = diagnostics.check_labels(of_integers, W, X, labels)
    assert finding.kind == "class_imbalance"

    def weighted(params, x, y):
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ params["w"], y)
        return jnp.mean(losses * jnp.where(y == 0, 0.1, 1.0))

    assert not diagnostics.check_labels(weighted, W, X, labels)


def test_contrast_of_examples_has_no_classes():
    def loss_fn(params, x, targets):
        z = x @ params["w"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z @ z[::-1].T, targets))

    assert not diagnostics.check_labels(loss_fn, W, X, jnp.zeros(40, jnp.int32))
    assert not diagnostics.check_labels(loss_fn, W, X, jnp.arange(40))


class Classifier(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        return linen.Dense(4)(jnp.mean(linen.Embed(10, 8)(tokens), 1))


def test_networks_of_frameworks():
    tokens, labels = jnp.arange(40).reshape(8, 5) % 10, jnp.arange(8) % 4
    params = jax.jit(Classifier().init)(jax.random.key(0), tokens)
    graph, state = nnx.split(nnx.Embed(10, 4, rngs=nnx.Rngs(0)))
    embedding = eqx.nn.Embedding(10, 4, key=jax.random.key(0))

    def of_linen(params, tokens, labels):
        logits = Classifier().apply(params, tokens)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def of_nnx(state, tokens, labels):
        logits = jnp.mean(nnx.merge(graph, state)(tokens), 1)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def of_equinox(module, tokens, labels):
        logits = jnp.mean(jax.vmap(jax.vmap(module))(tokens), 1)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    for loss_fn, model in ((of_linen, params), (of_nnx, state), (of_equinox, embedding)):
        assert not diagnostics.check_labels(loss_fn, model, tokens, labels)
        found = diagnostics.check_labels(loss_fn, model, tokens.at[0, 0].set(12), labels + 1)
        assert {(one.kind, one.place.split(",")[0]) for one in found} == {
            ("index_out_of_range", "argument args[0]"),
            ("label_out_of_range", "argument args[1]"),
        }
