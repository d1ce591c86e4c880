"""`check_data`: the numbers of a batch are judged as they enter the first layer."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradtx import diagnostics

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 5)).astype(np.float32)
Y = X[:, :1] ** 2
PARAMS = {
    "w0": jnp.asarray(RNG.standard_normal((5, 8)) / np.sqrt(5), jnp.float32),
    "w1": jnp.asarray(RNG.standard_normal((8, 1)) / np.sqrt(8), jnp.float32),
}


def loss_fn(params, x, y):
    return jnp.mean((jax.nn.relu(x @ params["w0"]) @ params["w1"] - y) ** 2)


def standardized(params, x, y):
    return loss_fn(
        params, (x - jnp.mean(x, 0, keepdims=True)) / (jnp.std(x, 0, keepdims=True) + 1e-6), y
    )


def with_column(values):
    x = X.copy()
    x[:, 2] = values
    return x


def found(x, y=Y, loss=loss_fn, params=PARAMS):
    return diagnostics.check_data(loss, params, x, y)


def test_standardized_data_are_healthy():
    assert not found(X)
    assert not found(np.abs(X))
    assert not found((X > 0).astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number(bad):
    x = X.copy()
    x[3, 1] = x[7, 4] = bad
    (finding,) = found(x)
    assert (finding.kind, finding.severity, finding.place) == (
        "nan_data",
        "error",
        "argument args[0]",
    )
    assert finding.evidence == {"number": 2, "share": 2 / 160, "first": [3, 1]}
    checked = diagnostics.check_up(loss_fn, PARAMS, x, Y)
    assert "nan_data" in [one.kind for one in checked.findings]
    assert "nan" not in [one.kind for one in checked.findings]


def test_not_a_number_among_the_parameters():
    params = PARAMS | {"w1": PARAMS["w1"].at[2, 0].set(np.nan)}
    (finding,) = found(X, params=params)
    assert (finding.kind, finding.place, finding.evidence["first"]) == ("nan_data", "w1", [2, 0])


def test_missing_values_that_are_replaced_are_no_more_than_a_remark():
    x = X.copy()
    x[3, 1] = np.nan
    (finding,) = found(x, loss=lambda params, x, y: loss_fn(params, jnp.nan_to_num(x), y))
    assert finding.severity == "remark"


def test_infinite_mask_is_healthy():
    mask = np.where(np.tril(np.ones((32, 32), bool)), 0, -np.inf).astype(np.float32)

    def attention(params, x, mask):
        hidden = x @ params["w0"]
        return jnp.mean(jax.nn.softmax(hidden @ hidden.T + mask) @ hidden @ params["w1"])

    assert not diagnostics.check_data(attention, PARAMS, X, mask)


def test_identical_examples():
    (finding,) = found(np.repeat(X[:1], 32, 0))
    assert (finding.kind, finding.severity) == ("identical_examples", "warning")
    assert finding.evidence == {"examples": 32, "distinct": 1}
    few = np.arange(32) % 3
    (finding,) = found(X[few], Y[few])
    assert (finding.severity, finding.evidence["distinct"]) == ("warning", 3)
    (finding,) = found(X[few], Y)
    assert finding.severity == "remark", "a label for each may be on purpose"


def test_few_possible_examples_are_healthy():
    bits = np.stack(np.meshgrid([0, 1], [0, 1]), -1).reshape(4, 2).astype(np.float32)
    params = PARAMS | {"w0": PARAMS["w0"][:2]}
    assert not found(np.tile(bits, (16, 1)), np.tile(bits[:, :1], (16, 1)), params=params)


def test_channels_of_a_single_image_are_no_examples():
    image = np.repeat(RNG.standard_normal((1, 8, 5)), 3, 0).astype(np.float32)

    def loss(params, image):
        return jnp.mean((image @ params["w0"] @ params["w1"]) ** 2)

    assert not diagnostics.check_data(loss, PARAMS, image)


def test_same_positions_for_all_examples_are_healthy():
    tokens = RNG.integers(0, 5, (8, 6))
    positions = np.tile(np.arange(6), (8, 1))

    def loss(params, tokens, positions):
        hidden = params["w0"][tokens] + params["w0"][positions % 5]
        return jnp.mean((jnp.tanh(hidden) @ params["w1"]) ** 2)

    assert not diagnostics.check_data(loss, PARAMS, tokens, positions)
    (finding,) = diagnostics.check_data(loss, PARAMS, tokens * 0, positions)
    assert finding.kind == "identical_examples"


def test_infinite_target():
    with np.errstate(divide="ignore"):
        y = np.log(np.where(np.arange(32)[:, None] == 5, 0, np.abs(Y) + 1))
    (finding,) = found(X, y.astype(np.float32))
    assert (finding.kind, finding.place) == ("nan_data", "argument args[1]")
    assert finding.evidence["first"] == [5, 0]


def test_column_that_was_not_read():
    (finding,) = found(with_column(3.7))
    assert (finding.kind, finding.severity) == ("constant_feature", "warning")
    assert "3.7" in finding.sentence
    assert [one.severity for one in found(with_column(1))] == ["remark"]


def test_black_images():
    black = -0.0 * X
    (finding,) = found(black)
    assert 0 < np.mean(np.signbit(black)) < 1
    assert finding.kind == "identical_examples"
    checked = diagnostics.check_up(loss_fn, PARAMS, black, Y)
    assert [one.kind for one in checked.findings] == ["identical_examples"]
    checked = diagnostics.check_up(loss_fn, PARAMS, 100 * X, Y)
    assert [one.kind for one in checked.at_least("warning")] == ["unstandardized"]


def test_constant_features_are_a_remark():
    (finding,) = found(with_column(0))
    assert (finding.kind, finding.severity) == ("constant_feature", "remark")
    assert finding.evidence == {"features": [2], "share": 0.2}


def test_division_by_a_spread_of_zero():
    def loss(params, x, y):
        return loss_fn(
            params, (x - jnp.mean(x, 0, keepdims=True)) / jnp.std(x, 0, keepdims=True), y
        )

    (finding,) = found(with_column(0), loss=loss)
    assert (finding.kind, finding.severity) == ("constant_feature", "error")
    assert finding.evidence["features"] == [2]
    assert finding.source.startswith("test_data.py:")
    findings = found(with_column(0), loss=standardized)
    assert [one.severity for one in findings] == ["remark"]


def test_huge_feature():
    years = RNG.uniform(1950, 2020, 32)
    (finding,) = found(with_column(years))
    assert (finding.kind, finding.severity) == ("huge_feature", "warning")
    assert finding.place == "argument args[0] [2]"
    rms = np.sqrt(np.mean(np.float32(years).astype(float) ** 2))
    assert finding.evidence["rms"] == pytest.approx(rms, rel=1e-5)
    assert not found(with_column(years), loss=standardized)


def test_huge_feature_has_the_name_of_its_array():
    columns = {"age": X[:, 0], "income": 1e4 * X[:, 1], "size": X[:, 2]}

    def loss(params, columns, y):
        x = jnp.stack([columns[name] for name in ("size", "income", "age")], axis=1)
        return jnp.mean((jnp.tanh(x @ params["w0"][:3]) @ params["w1"] - y) ** 2)

    (finding,) = found(columns, loss=loss)
    assert finding.place == "argument args[0]['income']"


def test_code_of_missing_values():
    (finding,) = found(with_column(np.where(np.arange(32) % 8, X[:, 2], -999)))
    assert (finding.kind, finding.evidence["features"]) == ("huge_feature", [2])
    assert "999" in finding.sentence


def test_numbers_that_the_dtype_cannot_tell_apart():
    seconds = 1.7e9 + np.arange(32.0)[:, None] * np.ones(5)

    def loss(params, t, y):
        return loss_fn(params, (t - jnp.mean(t)) / (jnp.std(t) + 1), y)

    findings = found(seconds, loss=loss)
    finding = next(one for one in findings if one.kind == "huge_feature")
    assert finding.evidence["distinct"] == 32
    assert finding.evidence["left"] == len(np.unique(seconds.astype(np.float32)))
    kinds = [one.kind for one in found(seconds - 1.7e9, loss=loss)]
    assert "huge_feature" not in kinds


def test_integers_that_wrap():
    milliseconds = 1_700_000_000_000 + np.arange(32)[:, None] * np.ones(5, np.int64)
    findings = found(
        milliseconds, loss=lambda params, t, y: loss_fn(params, t.astype(jnp.float32) / 1e9, y)
    )
    assert ("huge_feature", "error") in [(one.kind, one.severity) for one in findings]


@pytest.mark.parametrize(
    ("x", "cured"),
    [(100 * X, X), (np.abs(X) / 255, np.abs(X)), (3 + X / 100, X)],
    ids=["large", "tiny", "offset"],
)
def test_unstandardized(x, cured):
    (finding,) = found(x)
    assert (finding.kind, finding.severity, finding.place) == (
        "unstandardized",
        "warning",
        "argument args[0]",
    )
    rms = np.sqrt(np.mean(x.astype(float) ** 2))
    assert finding.evidence["rms"] == pytest.approx(rms, rel=1e-4)
    assert finding.source.startswith("test_data.py:")
    assert not found(cured)
    assert not found(x, loss=standardized)


def test_line_through_years():
    def line(params, x, y):
        return jnp.mean((params["slope"] * x + params["height"] - y) ** 2)

    params = {"slope": jnp.ones(()), "height": jnp.zeros(())}
    years = RNG.uniform(1950, 2020, 32).astype(np.float32)
    (finding,) = found(years, Y[:, 0], loss=line, params=params)
    assert (finding.kind, finding.place) == ("unstandardized", "argument args[0]")
    assert not found((years - 1985) / 20, Y[:, 0], loss=line, params=params)


IMAGES = RNG.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)


class Convolutional(nn.Module):
    scale: float

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x.astype(jnp.float32) * self.scale))
        return nn.Dense(2)(x.mean((1, 2)))


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_pixels_in_linen(scale):
    net = Convolutional(scale)
    variables = jax.jit(net.init)(jax.random.key(0), IMAGES)

    def loss(params, x):
        return jnp.mean(net.apply({"params": params}, x) ** 2)

    findings = diagnostics.check_data(loss, variables["params"], IMAGES)
    assert [one.kind for one in findings] == (["unstandardized"] if scale == 1 else [])


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_pixels_in_nnx(scale):
    conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)

    def loss(state, x):
        return jnp.mean(nnx.merge(graph, state)(x.astype(jnp.float32) * scale) ** 2)

    findings = diagnostics.check_data(loss, state, IMAGES)
    assert [one.kind for one in findings] == (["unstandardized"] if scale == 1 else [])


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_pixels_in_equinox(scale):
    net = eqx.nn.MLP(192, 1, 8, 1, key=jax.random.key(0))

    def loss(net, x):
        return jnp.mean(jax.vmap(net)(x.reshape(8, -1).astype(jnp.float32) * scale) ** 2)

    findings = diagnostics.check_data(loss, net, IMAGES)
    assert [one.kind for one in findings] == (["unstandardized"] if scale == 1 else [])


def test_normalization_before_the_first_layer_is_seen():
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(1)(nn.relu(nn.Dense(8)(x)))

    variables = jax.jit(Normalized().init)(jax.random.key(0), X)

    def loss(params, x):
        full = {"params": params, "batch_stats": variables["batch_stats"]}
        return jnp.mean(Normalized().apply(full, x, mutable=["batch_stats"])[0] ** 2)

    assert not diagnostics.check_data(loss, variables["params"], 100 * X + 300)


def test_each_step_of_a_recurrence_is_read():
    def loss(params, x, y):
        def step(state, x):
            return jnp.tanh(x @ params["w0"] + state), None

        state, _ = jax.lax.scan(step, jnp.zeros((8, 8)), x)
        return jnp.mean((state @ params["w1"] - y) ** 2)

    series = RNG.standard_normal((6, 8, 5)).astype(np.float32)
    assert not found(series, Y[:8], loss=loss)
    series[:, :, 4] *= 500
    (finding,) = found(series, Y[:8], loss=loss)
    assert finding.evidence["features"] == [4]
    assert finding.evidence["rms"] == pytest.approx(
        np.sqrt(np.mean(series[:, :, 4].astype(float) ** 2)), rel=1e-4
    )


def test_targets_and_noise_are_not_inputs():
    def loss(params, x, y, key):
        noise = jax.random.normal(key, x.shape)
        return jnp.mean(((x + noise) @ params["w0"] @ params["w1"] / 1e4 - y) ** 2)

    y = np.full((32, 1), 3e5, np.float32)
    assert not diagnostics.check_data(loss, PARAMS, X, y, jax.random.key(0))


def test_experts_read_the_batch():
    """A ragged product is a layer like any other."""

    def loss(params, x, sizes):
        hidden = jax.nn.relu(jax.lax.ragged_dot(x, params["in"], sizes))
        return jnp.mean(jax.lax.ragged_dot(hidden, params["out"], sizes) ** 2)

    x = jnp.asarray(RNG.standard_normal((32, 5)), jnp.float32)
    params = {
        "in": jnp.asarray(RNG.standard_normal((2, 5, 8)), jnp.float32) / 2,
        "out": jnp.asarray(RNG.standard_normal((2, 8, 1)), jnp.float32) / 3,
    }
    sizes = jnp.array([12, 20])
    (finding,) = diagnostics.check_data(loss, params, 100 * x, sizes)
    assert (finding.kind, finding.place) == ("unstandardized", "argument args[0]")
    rms = 100 * np.sqrt(np.mean(np.square(np.asarray(x, float))))
    assert finding.evidence["rms"] == pytest.approx(rms, rel=1e-4)
    assert not diagnostics.check_data(loss, params, x, sizes)
