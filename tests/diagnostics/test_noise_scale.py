"""The noise scale against the covariance of single gradients, in closed form and on average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.diagnostics import gradient_noise_scale

SAMPLES, FEATURES = 24, 5


def regression_loss(params, batch):
    residuals = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(residuals**2)


def regression(seed=0, samples=SAMPLES, dtype=np.float64):
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=FEATURES).astype(dtype), "b": dtype(rng.normal())}
    x = rng.normal(size=(samples, FEATURES))
    y = x @ rng.normal(size=FEATURES) + rng.normal(size=samples)
    return params, {"x": x.astype(dtype), "y": y.astype(dtype)}


def single_gradients(params, batch):
    """The gradient of each sample's loss as a row, by hand: 2 (x w + b - y) (x, 1)."""
    x = np.column_stack([batch["x"], np.ones(len(batch["y"]))]).astype(np.float64)
    residuals = x @ np.append(params["w"], params["b"]).astype(np.float64) - batch["y"]
    return 2 * residuals[:, np.newaxis] * x


def in_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


@pytest.mark.parametrize("small", [1, 2, 3, 12])
def test_trace_is_the_unbiased_sample_covariance(small):
    with jax.enable_x64(True):
        params, batch = regression()
        found = gradient_noise_scale(
            regression_loss, in_jax(params), in_jax(batch), small_batch_size=small
        )
        pieces = single_gradients(params, batch).reshape(-1, small, FEATURES + 1).mean(axis=1)
        trace = small * np.trace(np.cov(pieces, rowvar=False, ddof=1))
        whole = pieces.mean(axis=0)
        np.testing.assert_allclose(found.noise_trace, trace, rtol=1e-12)
        squared = whole @ whole - trace / SAMPLES
        np.testing.assert_allclose(found.gradient_squared_norm, squared, rtol=1e-11)
        np.testing.assert_allclose(found.noise_scale, trace / squared, rtol=1e-11)


@pytest.mark.parametrize("small", [1, 4])
def test_agrees_with_the_two_norms_of_the_paper(small):
    with jax.enable_x64(True):
        params, batch = regression(seed=1)
        found = gradient_noise_scale(
            regression_loss, in_jax(params), in_jax(batch), small_batch_size=small
        )
        g = single_gradients(params, batch)
        big, b = SAMPLES, small
        g_big = (g.mean(axis=0) ** 2).sum()
        g_small = (g.reshape(-1, b, FEATURES + 1).mean(axis=1) ** 2).sum(axis=1).mean()
        squared = (big * g_big - b * g_small) / (big - b)  # (A.2)
        trace = (g_small - g_big) / (1 / b - 1 / big)  # (A.3)
        np.testing.assert_allclose(found.gradient_squared_norm, squared, rtol=1e-10)
        np.testing.assert_allclose(found.noise_trace, trace, rtol=1e-11)


def test_estimates_are_unbiased():
    # Gradients of (m - s)^2 / 2 are m - s: here with mean (2, 1) and covariance diag(1, 4).
    true_squared, true_trace, runs = 5.0, 5.0, 4000
    rng = np.random.default_rng(0)
    samples = jnp.asarray(rng.normal(size=(runs, 8, 2)) * [1.0, 2.0], jnp.float32)

    def loss(mean, batch):
        return jnp.mean(jnp.sum((mean[jnp.newaxis] - batch) ** 2, axis=1)) / 2

    scales = jax.jit(
        jax.vmap(
            lambda batch: gradient_noise_scale(
                loss, jnp.array([2.0, 1.0]), batch, small_batch_size=2
            )
        )
    )(samples)
    for found, expected in (
        (scales.gradient_squared_norm, true_squared),
        (scales.noise_trace, true_trace),
    ):
        found = np.asarray(found, np.float64)
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(runs)


def test_small_noise_beside_a_large_gradient_is_not_cancelled():
    # In float32 the squared norms, 2^26 and 2^26 + 1, differ by less than their rounding.
    samples = jnp.array([8193.0, 8191.0])
    found = gradient_noise_scale(lambda p, batch: jnp.mean(p * batch), jnp.array(1.0), samples)
    np.testing.assert_allclose(found.noise_trace, 2.0, rtol=1e-6)
    np.testing.assert_allclose(found.noise_scale, 2.0 / 2**26, rtol=1e-6)


def test_same_samples_have_no_noise():
    found = gradient_noise_scale(
        lambda p, batch: jnp.mean(p * batch), jnp.array(1.0), jnp.full(4, 3.0)
    )
    assert [float(x) for x in found] == [0.0, 9.0, 0.0]


def test_gradient_below_the_noise_is_infinitely_noisy():
    found = gradient_noise_scale(
        lambda p, batch: jnp.mean(p * batch), jnp.array(1.0), jnp.array([1.0, -1.0])
    )
    assert found.noise_scale == np.inf
    assert float(found.gradient_squared_norm) == -1.0  # 0 - (2 / 1) / 2
    assert float(found.noise_trace) == 2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradient_that_is_not_finite_gives_nan(bad):
    found = gradient_noise_scale(
        lambda p, batch: jnp.mean(p * batch), jnp.array(1.0), jnp.array([1.0, bad, 2.0])
    )
    assert np.isnan(found.noise_scale)


def test_zero_gradients_have_no_noise_scale():
    found = gradient_noise_scale(lambda p, batch: jnp.mean(p * batch), jnp.array(1.0), jnp.zeros(3))
    assert np.isnan(found.noise_scale)
    assert float(found.noise_trace) == 0


@pytest.mark.parametrize("exponent", [-90, -70, 70, 110])
def test_gradients_of_any_size_have_the_same_noise_scale(exponent):
    params, batch = regression(seed=3, dtype=np.float32)
    unit = 2.0**exponent

    def scaled_loss(params, batch):
        return unit * regression_loss(params, batch)

    found = jax.jit(functools.partial(gradient_noise_scale, scaled_loss))(
        in_jax(params), in_jax(batch)
    )
    single = single_gradients(params, batch)
    trace = np.trace(np.cov(single, rowvar=False, ddof=1))
    whole = single.mean(axis=0)
    squared = whole @ whole - trace / SAMPLES
    np.testing.assert_allclose(found.noise_scale, trace / squared, rtol=1e-4)
    largest = float(np.finfo(np.float32).max)
    expected = np.inf if trace * unit**2 > largest else trace * unit**2
    np.testing.assert_allclose(found.noise_trace, expected, rtol=1e-4, atol=1e-37)


def test_in_single_precision_under_jit():
    params, batch = regression(seed=2, dtype=np.float32)
    found = jax.jit(functools.partial(gradient_noise_scale, regression_loss))(params, batch)
    g = single_gradients(params, batch)
    trace = np.trace(np.cov(g, rowvar=False))
    assert all(leaf.dtype == jnp.float32 for leaf in found)
    np.testing.assert_allclose(found.noise_trace, trace, rtol=2e-6)
    whole = g.mean(axis=0)
    np.testing.assert_allclose(
        found.gradient_squared_norm, whole @ whole - trace / SAMPLES, rtol=5e-6
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    # The squares, 90000, overflow float16; the gradients are exact.
    samples = jnp.array([300.0, 304.0, 296.0, 300.0], dtype)
    found = gradient_noise_scale(
        lambda p, batch: jnp.mean(p * batch), jnp.array(1.0, dtype), samples
    )
    assert found.noise_trace.dtype == jnp.float32
    np.testing.assert_allclose(found.noise_trace, np.var([300, 304, 296, 300], ddof=1), rtol=1e-6)


def test_complex_parameters_count_with_their_modulus():
    targets = jnp.array([1 + 1j, 1 - 1j, 3 + 0j, 3 - 4j])

    def loss(p, batch):
        return jnp.mean(jnp.abs(p - batch) ** 2) / 2

    found = gradient_noise_scale(loss, jnp.array(0j), targets)
    expected = np.var(np.asarray(targets.real), ddof=1) + np.var(np.asarray(targets.imag), ddof=1)
    np.testing.assert_allclose(found.noise_trace, expected, rtol=1e-6)


def test_parameters_that_are_not_inexact_do_not_count():
    samples = jnp.array([1.0, 2.0, 4.0])
    params = {"p": jnp.array(1.0), "steps": jnp.array(3), "none": None}
    found = gradient_noise_scale(
        lambda params, batch: jnp.mean(params["p"] * batch * params["steps"].astype(jnp.float32)),
        params,
        samples,
    )
    np.testing.assert_allclose(found.noise_trace, 9 * np.var([1, 2, 4], ddof=1), rtol=1e-6)


def mean_product(p, batch):
    return jnp.mean(p * batch)


@pytest.mark.parametrize(
    ("loss", "batch", "small", "message"),
    [
        ("mse", np.ones(4), 1, "loss_fn must be a function, got 'mse'"),
        (lambda p, x: p * x, np.ones(4), 1, r"the loss must be a real scalar.*shape \(1,\)"),
        (lambda p, x: (jnp.mean(x), p), np.ones(4), 1, "the loss must be a real scalar, got tuple"),
        (lambda p, x: jnp.array(1), np.ones(4), 1, "the loss must be a real scalar, got int32"),
        (mean_product, {}, 1, "batch must have arrays with a first axis"),
        (mean_product, {"x": np.float32(1)}, 1, r"batch must have arrays.*\{'x': \(\)\}"),
        (mean_product, (np.ones(4), np.ones(6)), 1, r"same length.*\(4,\).*\(6,\)"),
        (mean_product, np.ones(4), 0, "small_batch_size must be a whole number >= 1, got 0"),
        (mean_product, np.ones(4), 1.5, "small_batch_size must be a whole number >= 1, got 1.5"),
        (mean_product, np.ones(4), 3, "small_batch_size must divide.*4.*got 3"),
        (mean_product, np.ones(4), 4, "small_batch_size must divide.*4.*two pieces, got 4"),
        (mean_product, np.ones(0), 1, "small_batch_size must divide.*0.*got 1"),
    ],
    ids=[
        "no-function",
        "vector",
        "tuple",
        "integer",
        "empty-tree",
        "scalar-batch",
        "lengths",
        "zero",
        "fraction",
        "remainder",
        "one-piece",
        "no-samples",
    ],
)
def test_refuses(loss, batch, small, message):
    with pytest.raises(ValueError, match=f"gradient_noise_scale: .*{message}"):
        gradient_noise_scale(loss, jnp.array(1.0), batch, small_batch_size=small)
