"""The three wrappers for parameters in half precision: what they share, and each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.precision.narrow import nearest

NARROW = [jnp.bfloat16, jnp.float16]
DTYPES = pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.__name__)
WRAPPERS = {
    "master": gradtx.with_master_weights,
    "kahan": gradtx.with_kahan_sum,
    "stochastic": lambda tx: gradtx.with_stochastic_rounding(tx, jax.random.key(0)),
}
EACH = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def run(tx, params, gradients):
    """The parameters and the state after steps with these gradients, stacked."""

    def step(carried, gradient):
        params, state = carried
        updates, state = tx.update(gradient, state, params)
        return (gradtx.apply_updates(params, updates), state), None

    start = params, tx.init(params)
    return jax.jit(lambda start: jax.lax.scan(step, start, gradients)[0])(start)


def constant(params, steps, value=1.0):
    return jax.tree.map(lambda p: jnp.full((steps, *p.shape), value, p.dtype), params)


def mean(x):
    return float(np.asarray(x).astype(np.float64).mean())


# The disease and its remedies


@DTYPES
def test_plain_half_precision_does_not_move(dtype):
    start = jnp.ones(64, dtype)
    rate = 1e-3 if dtype == jnp.bfloat16 else 2e-4
    params, _ = run(gradtx.adamw(rate), start, constant(start, 1000))
    np.testing.assert_array_equal(params, start)


@DTYPES
@EACH
def test_each_wrapper_follows_the_closed_form_of_adamw(wrap, dtype):
    # The update of a constant gradient is -rate, and of the decay -rate * decay * p.
    rate, decay, steps = 2e-4, 0.1, 1000
    start = jnp.ones(4096, dtype)
    params, _ = run(wrap(gradtx.adamw(rate, weight_decay=decay)), start, constant(start, steps))
    limit = -1 / decay
    expected = limit + (1 - limit) * (1 - rate * decay) ** steps
    assert expected < 0.8
    # Half a unit in the last place below 1, and the deviation of the mean of random roundings.
    tolerance = {jnp.bfloat16: 2.0**-9, jnp.float16: 2.0**-12}[dtype]
    assert abs(mean(params) - expected) < 1.5 * tolerance


@EACH
def test_eight_bits(wrap):
    for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2):
        start = jnp.ones(4096, dtype)
        gradient = jnp.ones((50, 4096), jnp.bfloat16)
        assert mean(run(gradtx.adam(0.01), start, gradient)[0]) == 1
        params, _ = run(wrap(gradtx.adam(0.01)), start, gradient)
        assert params.dtype == dtype
        assert abs(mean(params) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("dtype", "start", "master", "gradient"),
    [(jnp.bfloat16, -8.0, -7.9999995, -8.000003), (jnp.float16, 1.0, 0.99998254, 1.000032)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_shrinks_to_almost_nothing_arrives_a_step_later(dtype, start, master, gradient):
    tx = gradtx.with_master_weights(gradtx.sgd(1.0))
    params = jnp.array([start], dtype)
    state = tx.init(params)._replace(master=jnp.array([master]))
    updates, state = tx.update(jnp.array([gradient]), state, params)
    params = gradtx.apply_updates(params, updates)
    rounded = state.master.astype(dtype)
    assert params != rounded
    assert abs(mean(params) - mean(rounded)) <= 2.0**-24 * abs(start)
    updates, state = tx.update(jnp.zeros(1), state, params)
    assert gradtx.apply_updates(params, updates) == rounded


@DTYPES
def test_the_master_is_the_run_in_float32(dtype):
    rng = np.random.default_rng(0)
    start = {"w": jnp.asarray(rng.normal(size=(8, 5)), dtype), "b": jnp.ones(3)}
    gradients = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=(50, *p.shape)), jnp.float32), start
    )
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.01))
    params, state = run(gradtx.with_master_weights(tx), start, gradients)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), start)
    expected, inner_state = run(tx, wide, gradients)
    np.testing.assert_array_equal(state.master["w"], expected["w"])
    assert state.master["b"] is None
    np.testing.assert_array_equal(params["b"], expected["b"])
    np.testing.assert_array_equal(params["w"], expected["w"].astype(dtype))
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, inner_state)


@DTYPES
@EACH
@pytest.mark.parametrize("library", [gradtx, optax], ids=lambda library: library.__name__)
def test_updates_lead_exactly_to_numbers_of_the_dtype(wrap, dtype, library):
    # Steps from much smaller to as large as the parameter, to both sides of zero.
    rng = np.random.default_rng(1)
    sizes = 2.0 ** rng.uniform(-14, 0, (2, 4000))
    params, gradient = (jnp.asarray(x * rng.choice([-1, 1], x.shape), dtype) for x in sizes)
    tx = wrap(gradtx.sgd(1.0))
    made, state = tx.update(gradient, tx.init(params), params)
    updates = jnp.asarray(made)
    assert updates.dtype == jnp.float32
    reached = params.astype(jnp.float32) + updates
    with jax.numpy_dtype_promotion("standard"):
        new = jnp.asarray(library.apply_updates(params, updates))
    # Sums that cancel but for 2^-12 of the parameter are left out.
    kept = jnp.abs(reached) > 2.0**-11 * jnp.abs(params.astype(jnp.float32))
    np.testing.assert_array_equal(new.astype(jnp.float32)[kept], reached[kept])
    if isinstance(state, gradtx.MasterWeightsState):
        np.testing.assert_array_equal(new[kept], state.master.astype(dtype)[kept])


def kahan(params, gradients, rate):
    """The compensated sum in NumPy, whose products and sums are in float64."""
    dtype = params.dtype
    p, c = params, np.zeros_like(params)
    for gradient in gradients:
        whole = p.astype(np.float64) + (c.astype(np.float64) - rate * gradient.astype(np.float64))
        p = whole.astype(dtype)
        c = (whole - p.astype(np.float64)).astype(dtype)
    return p, c


@DTYPES
def test_kahan_sum_against_numpy(dtype):
    rng = np.random.default_rng(2)
    start = rng.normal(size=300).astype(dtype)
    gradients = rng.normal(0.3, 1, size=(40, 300)).astype(dtype)
    rate = 2.0**-6
    params, state = run(
        gradtx.with_kahan_sum(gradtx.sgd(rate)), jnp.array(start), jnp.array(gradients)
    )
    p, c = kahan(start, gradients, rate)
    np.testing.assert_array_equal(params, p)
    assert state.compensation.dtype == dtype
    # With float16 the sums of 11 and 11 bits are rounded in float32.
    left = np.asarray(state.compensation).astype(np.float64) - c.astype(np.float64)
    assert np.abs(left).max() <= (0 if dtype == jnp.bfloat16 else 1e-6)
    # Better than the sum without compensation.
    exact = start.astype(np.float64) - rate * gradients.astype(np.float64).sum(0)
    plain, _ = run(gradtx.sgd(rate), jnp.array(start), jnp.array(gradients))
    error = np.abs(p.astype(np.float64) + c.astype(np.float64) - exact).max()
    assert error < np.abs(np.asarray(plain).astype(np.float64) - exact).max() / 20


def test_kahan_sum_loses_what_its_docstring_says():
    start = jnp.ones(1, jnp.bfloat16)
    for size, moves in ((2.0**-17, True), (2.0**-20, False)):
        tx = gradtx.with_kahan_sum(gradtx.sgd(size))
        params, _ = run(tx, start, constant(start, 2**10))
        assert (params[0] < 1) == moves


@DTYPES
def test_stochastic_rounding_is_right_on_average_over_keys(dtype):
    start = jnp.array([1.0, -0.3, 5.0], dtype)

    def end(seed):
        tx = gradtx.with_stochastic_rounding(gradtx.sgd(1e-5), seed)
        state = tx.init(start)
        params = start
        for _ in range(4):
            updates, state = tx.update(jnp.ones_like(start), state, params)
            params = gradtx.apply_updates(params, updates)
        return params

    ends = np.asarray(jax.jit(jax.vmap(end))(jnp.arange(20_000))).astype(np.float64)
    expected = np.asarray(start).astype(np.float64) - 4e-5
    deviation = ends.std(0) / np.sqrt(ends.shape[0])
    assert np.all(deviation > 0)
    np.testing.assert_array_less(np.abs(ends.mean(0) - expected), 4.5 * deviation)


def test_stochastic_rounding_draws_anew_for_each_step_leaf_and_key():
    start = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones(1000, jnp.bfloat16)}

    def ends(key):
        tx = gradtx.with_stochastic_rounding(gradtx.sgd(0.002), key)
        state = tx.init(start)
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(jnp.ones_like, start), state, start)
            yield from (updates["a"], updates["b"])

    draws = [*ends(0), *ends(1)]
    for i, one in enumerate(draws):
        assert all(0.3 < jnp.mean(one == other) < 0.7 for other in draws[:i])
    jax.tree.map(np.testing.assert_array_equal, draws[:4], list(ends(jax.random.PRNGKey(0))))


def test_nearest_is_a_cast_and_back_within_the_range():
    rng = np.random.default_rng(3)
    for dtype in (*NARROW, jnp.float8_e4m3fn, jnp.float8_e5m2):
        dtype = np.dtype(dtype)
        low = -126 if dtype == jnp.bfloat16 else -30
        x = rng.choice([-1, 1], 20_000) * 2.0 ** rng.uniform(low, 20, 20_000)
        word = np.dtype(f"uint{8 * dtype.itemsize}")
        numbers = np.arange(2 ** (8 * dtype.itemsize - 1)).astype(word).view(dtype)
        numbers = numbers[np.isfinite(numbers.astype(np.float32))].astype(np.float64)
        ties = (numbers[1:] + numbers[:-1]) / 2
        x = np.concatenate([x, numbers, ties, -ties, [np.inf, -np.inf, np.nan]]).astype(np.float32)
        x = x[~(np.abs(x) < np.finfo(np.float32).tiny)]
        with np.errstate(over="ignore"):
            expected = x.astype(dtype).astype(np.float32)
        largest = float(jnp.finfo(dtype).max)
        expected = np.where(np.abs(expected) <= largest, expected, np.sign(x) * largest)
        expected = np.where(np.isfinite(x), expected, x)
        np.testing.assert_array_equal(jax.jit(nearest, static_argnums=1)(x, dtype), expected)


@pytest.mark.parametrize(
    "wrap",
    [
        gradtx.with_kahan_sum,
        gradtx.with_master_weights,
        lambda tx: gradtx.with_stochastic_rounding(tx, 0),
    ],
    ids=["kahan", "master", "stochastic"],
)
def test_parameters_beyond_the_largest_number_come_back(wrap):
    tx = wrap(gradtx.sgd(1.0))
    params = jnp.full(2, 65_504.0, jnp.float16)
    state = tx.init(params)
    for gradient in (-100.0, -100.0, 700.0, 0.0):
        g = jnp.full(2, gradient, jnp.float16)
        params, state = gradtx.update_and_apply(tx, g, state, params)
        assert np.all(np.isfinite(params))
    # What went beyond may be forgotten, and float16 numbers lie 32 apart there.
    np.testing.assert_allclose(params.astype(jnp.float32), 65_504 - 600, atol=150)
