"""Paths against their polynomials in NumPy, and the trained curve against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gradtx
from gradtx.diagnostics.landscape import ConnectingPath, connecting_path, interpolate_loss


def parameters(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (2, 3), "bias": (3,)}
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def double(tree):
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.items()}


def network_loss(params, x):
    return jnp.sum(jnp.tanh(x @ params["kernel"] + params["bias"][None]) ** 3)


def loss_in_numpy(params, x):
    return np.sum(np.tanh(x @ params["kernel"] + params["bias"]) ** 3)


X = np.random.default_rng(9).standard_normal((4, 2)).astype(np.float32)


def test_losses_on_the_line():
    start, end = parameters(0), parameters(1)
    ts, losses = interpolate_loss(network_loss, start, end, X, points=7)
    np.testing.assert_allclose(ts, np.linspace(0, 1, 7), rtol=1e-6)
    a, b = double(start), double(end)
    expected = [loss_in_numpy({k: (1 - t) * a[k] + t * b[k] for k in a}, X) for t in np.asarray(ts)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.1


def test_losses_on_a_curve():
    start, middle, end = parameters(0), parameters(2), parameters(1)
    path = ConnectingPath(start, middle, end, jnp.zeros(1))
    ts, losses = path.losses(network_loss, X, points=9)
    a, m, b = double(start), double(middle), double(end)
    points = [
        {k: (1 - t) ** 2 * a[k] + 2 * t * (1 - t) * m[k] + t**2 * b[k] for k in a}
        for t in np.linspace(0, 1, 9)
    ]
    np.testing.assert_allclose(losses, [loss_in_numpy(p, X) for p in points], rtol=1e-5)
    for t, expected in zip(ts, points, strict=True):
        found = path.point(t)
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-6), found, expected)


def test_the_ends_are_exact():
    start, end = parameters(0), parameters(1)
    path = ConnectingPath(start, parameters(2), end, jnp.zeros(1))
    jax.tree.map(np.testing.assert_array_equal, path.point(0), start)
    jax.tree.map(np.testing.assert_array_equal, path.point(1.0), end)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(path.point)(1.0), end)


def test_a_loss_may_return_several_numbers():
    start, end = parameters(0), parameters(1)
    _, found = interpolate_loss(
        lambda p: {"sum": jnp.sum(p["bias"]), "bias": p["bias"]}, start, end, points=3
    )
    assert found["bias"].shape == (3, 3)
    np.testing.assert_allclose(found["sum"], np.sum(found["bias"], axis=1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_points_are_rounded_once(dtype):
    start, end = parameters(0, dtype), parameters(1, dtype)

    def bias_of(params):
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        return params["bias"]

    _, found = interpolate_loss(bias_of, start, end, points=4)
    a, b = (np.asarray(tree["bias"], np.float32) for tree in (start, end))
    t = np.linspace(0, 1, 4, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(found, jnp.asarray((1 - t) * a + t * b, dtype))


def test_other_leaves_are_those_of_the_start():
    start = {"w": jnp.array(1.0), "seed": jnp.int32(7), "f": jnp.cos, "none": None}
    end = {"w": jnp.array(3.0), "seed": jnp.int32(8), "f": jnp.sin, "none": None}

    def loss_fn(p):
        assert p["none"] is None
        return p["f"](p["w"]) * p["seed"].astype(jnp.float32)

    _, losses = interpolate_loss(loss_fn, start, end, points=3)
    np.testing.assert_allclose(losses, 7 * np.cos([1.0, 2.0, 3.0]), rtol=1e-6)
    path = connecting_path(loss_fn, start, end, steps=3, key=jax.random.key(0))
    assert set(path.midpoint) == set(start)
    assert path.midpoint["seed"] is None
    assert path.point(0.5)["seed"] == 7


def test_double_precision():
    with jax.enable_x64(True):
        start, end = parameters(0, jnp.float64), parameters(1, jnp.float64)
        _, losses = interpolate_loss(network_loss, start, end, X.astype(np.float64), points=3)
        path = connecting_path(
            lambda p: jnp.sum(p["bias"] ** 2), start, end, steps=2, key=jax.random.key(0)
        )
        assert path.midpoint["bias"].dtype == path.history.dtype == jnp.float64
    a, b = double(start), double(end)
    expected = loss_in_numpy({k: (a[k] + b[k]) / 2 for k in a}, X.astype(np.float64))
    np.testing.assert_allclose(losses[1], expected, rtol=1e-13)


STILL = gradtx.sgd(0.0)


def test_training_starts_halfway():
    start, end = parameters(0), parameters(1)
    path = connecting_path(
        network_loss, start, end, X[None], steps=1, key=jax.random.key(0), tx=STILL
    )
    halfway = {k: (double(start)[k] + double(end)[k]) / 2 for k in start}
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6), path.midpoint, halfway)


def test_positions_are_uniform():
    # On the straight line from 0 to 1 the parameter is the position.
    path = connecting_path(
        lambda p: p, jnp.array(0.0), jnp.array(1.0), steps=4000, key=jax.random.key(0), tx=STILL
    )
    assert scipy.stats.kstest(path.history, "uniform").pvalue > 0.01


def test_the_trained_midpoint_of_a_quadratic():
    # With E w0 w1 = E w1 w2 = 1/10, E w1^2 = 2/15 and E w1 = 1/3 for the three weights, the mean of
    # |point(t) - c|^2 is least at the midpoint 5/2 c - 3/4 (start + end).
    start, end, c = np.array([1.0, -2.0]), np.array([3.0, 1.0]), np.array([1.5, 1.0])
    steps = 20_000
    path = connecting_path(
        lambda p: 0.5 * jnp.sum((p - jnp.asarray(c, jnp.float32)) ** 2),
        jnp.asarray(start, jnp.float32),
        jnp.asarray(end, jnp.float32),
        steps=steps,
        key=jax.random.key(0),
        tx=gradtx.sgd(lambda count: 15 / (30 + count)),
    )
    best = 2.5 * c - 0.75 * (start + end)
    assert np.all(np.abs(best - (start + end) / 2) > 1)
    np.testing.assert_allclose(path.midpoint, best, atol=0.05)


def test_the_curve_goes_around_a_hill():
    def ring(p):
        return (jnp.sum(p**2) - 1) ** 2

    start, end = jnp.array([1.0, 0.1]), jnp.array([-1.0, 0.1])
    path = connecting_path(ring, start, end, steps=1000, key=jax.random.key(0))
    _, straight = interpolate_loss(ring, start, end)
    _, curved = path.losses(ring)
    assert np.max(straight) > 0.9
    assert np.max(curved) < 0.1


def test_stacked_batches_take_turns():
    path = connecting_path(
        lambda p, batch: 0.0 * p + batch["value"],
        jnp.array(0.0),
        jnp.array(1.0),
        {"value": jnp.array([3.0, 5.0, 7.0])},
        steps=7,
        key=jax.random.key(0),
    )
    np.testing.assert_array_equal(path.history, [3, 5, 7, 3, 5, 7, 3])


def test_a_function_draws_batches():
    def draw(key):
        return jax.random.normal(key, (2,))

    def history(seed):
        path = connecting_path(
            lambda p, batch: 0.0 * p + batch[0],
            jnp.array(0.0),
            jnp.array(1.0),
            draw,
            steps=1000,
            key=jax.random.key(seed),
        )
        return np.asarray(path.history)

    first = history(0)
    np.testing.assert_array_equal(first, history(0))
    assert not np.any(first == history(1))
    assert len(set(first)) > 990
    assert scipy.stats.kstest(first, "norm").pvalue > 0.01


def test_positions_and_batches_are_independent():
    path = connecting_path(
        lambda p, batch: jnp.where(batch > 0.5, p, -p),
        jnp.array(0.0),
        jnp.array(1.0),
        jax.random.uniform,
        steps=4000,
        key=jax.random.key(0),
        tx=STILL,
    )
    history = np.asarray(path.history)
    for positions in (history[history > 0], -history[history < 0]):
        assert scipy.stats.kstest(positions, "uniform").pvalue > 0.01


def test_half_precision_midpoints_are_trained_in_float32():
    start, end = jnp.array(1.0, jnp.bfloat16), jnp.array(3.0, jnp.bfloat16)
    path = connecting_path(
        lambda p: p.astype(jnp.float32),
        start,
        end,
        steps=100,
        key=jax.random.key(0),
        tx=gradtx.sgd(1e-4),
    )
    assert path.midpoint.dtype == jnp.float32
    # 100 steps of about 1/3 * 1e-4, each far below the 1/64 of bfloat16 at 2.
    np.testing.assert_allclose(path.midpoint, 2 - 100 * 1e-4 / 3, atol=5e-4)
    assert path.midpoint < 2 - 2e-3
    assert path.point(0.5).dtype == jnp.bfloat16


def test_complex_parameters():
    c = 1.0 + 2.0j
    path = connecting_path(
        lambda p: jnp.abs(p - jnp.complex64(c)) ** 2,
        jnp.complex64(c),
        jnp.complex64(c),
        steps=1,
        key=jax.random.key(0),
    )
    assert path.midpoint == c
    path = connecting_path(
        lambda p: jnp.abs(p - jnp.complex64(c)) ** 2,
        jnp.complex64(0),
        jnp.complex64(0),
        steps=2000,
        key=jax.random.key(0),
        tx=gradtx.sgd(lambda count: 7 / (30 + count)),
    )
    np.testing.assert_allclose(path.midpoint, 2.5 * c, atol=0.1)


@pytest.mark.parametrize("points", [1, 0, 2.5, float("nan")])
def test_wrong_numbers_of_points(points):
    with pytest.raises(ValueError, match=f"interpolate_loss: points must be .* >= 2, got {points}"):
        interpolate_loss(jnp.sum, jnp.ones(2), jnp.ones(2), points=points)


@pytest.mark.parametrize("call", [interpolate_loss, connecting_path])
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({"a": jnp.ones(2), "c": jnp.ones(2)}, "start and end differ at 'b'"),
        (
            {"a": jnp.ones(2), "b": jnp.ones(1)},
            r"shapes differ at 'b': start has shape \(2,\), end has shape \(1,\)",
        ),
        ({"a": jnp.ones(2), "b": None}, "'b'"),
    ],
    ids=["structure", "shape", "missing"],
)
def test_ends_that_differ(call, end, message):
    start = {"a": jnp.ones(2), "b": jnp.ones(2)}
    more = {"steps": 1, "key": jax.random.key(0)} if call is connecting_path else {}
    with pytest.raises(ValueError, match=f"{call.__name__}: .*{message}"):
        call(lambda p: jnp.sum(p["a"]), start, end, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"tx": gradtx.adam}, "tx must be a gradient transformation"),
        ({"batches": jnp.array(1.0)}, "batches need the same first axis"),
        ({"batches": jnp.ones((0, 2))}, "batches need the same first axis"),
        ({"batches": {"x": jnp.ones(2), "y": jnp.ones(3)}}, "got the lengths {'x': 2, 'y': 3}"),
    ],
    ids=["steps", "tx", "scalar", "empty", "lengths"],
)
def test_wrong_arguments_of_connecting_path(arguments, message):
    with pytest.raises(ValueError, match=f"connecting_path: .*{message}"):
        connecting_path(
            lambda p, batch: p,
            jnp.ones(()),
            jnp.ones(()),
            **{"steps": 1, "key": jax.random.key(0)} | arguments,
        )
