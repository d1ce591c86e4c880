"""States in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx import pieces
from gradtx.leaf import composed_step
from gradtx.precision import cast

PARAMS = {"kernel": jnp.ones((4, 512)), "bias": jnp.ones(4)}


def is_cast(node):
    return isinstance(node, gradtx.Cast)


def after(tx, steps, g):
    update = jax.jit(tx.update)
    state = tx.init(g)
    for _ in range(steps):
        _, state = update(g, state, g)
    assert update._cache_size() == 1
    return state


@pytest.mark.parametrize("in_pieces", [False, True])
def test_slow_average_follows_the_closed_form(in_pieces, monkeypatch):
    monkeypatch.setattr(pieces, "are_worth_it", lambda: in_pieces)
    monkeypatch.setattr(cast, "_LARGE", 0)
    composed_step.cache_clear()
    steps, decay = 1500, 0.999
    average = gradtx.ema(decay, debias=False)
    expected = 1 - decay**steps
    found = after(gradtx.cast_state(average), steps, PARAMS).inner_state.ema["kernel"].values
    assert found.dtype == jnp.bfloat16
    found = np.asarray(found, np.float64)
    # A random walk of 2,048 elements, each with steps of up to 2^-8.
    assert abs(found.mean() - expected) < 0.003
    assert 0 < found.std() < 0.1
    nearest = after(gradtx.cast_state(average, stochastic=False), steps, PARAMS)
    assert nearest.rng_key is None
    # It stands still where a step is half the distance of two numbers.
    assert nearest.inner_state.ema["kernel"].values.max() < 0.5 * expected
    composed_step.cache_clear()


@pytest.mark.parametrize("make", [gradtx.adam, optax.adam], ids=["gradtx", "optax"])
def test_parameters_follow_those_of_a_full_state(make):
    def trained(tx):
        params, state = PARAMS, tx.init(PARAMS)
        step = jax.jit(lambda params, state, g: gradtx.update_and_apply(tx, g, state, params))
        for i in range(40):
            generator = np.random.default_rng(i)
            g = {
                k: jnp.array(generator.normal(0.3, 1, p.shape), p.dtype) for k, p in PARAMS.items()
            }
            with jax.numpy_dtype_promotion("standard"):
                params, state = step(params, state, g)
        return params, state

    plain, _ = trained(make(0.01))
    found, state = trained(gradtx.cast_state(make(0.01)))
    values = state.inner_state[0].nu["bias"].values
    assert values.dtype == jnp.bfloat16
    for name, p in plain.items():
        error = np.asarray(found[name] - p)
        assert 0 < np.abs(error).max() < 0.1 * np.abs(np.asarray(p - 1)).max()


def test_keys():
    runs = [
        after(gradtx.cast_state(gradtx.adam(0.1), key=key), 3, PARAMS)
        for key in (1, jax.random.key(1), 2)
    ]
    numbers = [np.asarray(run.inner_state[0].mu["kernel"].values, np.float32) for run in runs]
    np.testing.assert_array_equal(numbers[0], numbers[1])
    assert np.any(numbers[0] != numbers[2])
    # Elements are rounded each in their own way.
    assert len(np.unique(numbers[0])) > 1


def test_which_arrays():
    odd = {"f": jnp.ones(3), "c": jnp.ones(3, jnp.complex64), "i": jnp.ones(3, jnp.int32)}
    state = gradtx.cast_state(gradtx.adam(0.1)).init(odd).inner_state[0]
    assert is_cast(state.mu["f"])
    assert not is_cast(state.mu["c"])
    assert is_cast(state.nu["c"])
    assert state.mu["i"] is None
    state = gradtx.cast_state(gradtx.adam(0.1), jnp.float16, select="nu/").init(odd).inner_state[0]
    assert not is_cast(state.mu["f"])
    assert state.nu["f"].values.dtype == jnp.float16


def test_migrate_in_both_directions():
    plain, tx = gradtx.adam(0.1), gradtx.cast_state(gradtx.adam(0.1))
    full = after(plain, 3, PARAMS)
    state, report = gradtx.migrate(full, tx, PARAMS)
    assert set(report.fresh) == {"calls", "rng_key"}
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full[0].mu)
    jax.tree.map(
        np.testing.assert_array_equal,
        {k: v.values for k, v in state.inner_state[0].mu.items()},
        expected,
    )
    back, report = gradtx.migrate(state, plain, PARAMS)
    assert report.fresh == {}
    jax.tree.map(
        np.testing.assert_array_equal,
        back[0].mu,
        jax.tree.map(lambda x: x.astype(jnp.float32), expected),
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64, jnp.int8], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(ValueError, match=r"^cast_state: dtype must be"):
        gradtx.cast_state(gradtx.adam(0.1), dtype)


AROUND = {
    "with_metrics": gradtx.with_metrics,
    "with_stochastic_rounding": lambda tx: gradtx.with_stochastic_rounding(tx, 0),
    "apply_if_finite": lambda tx: gradtx.apply_if_finite(tx, 3),
    "optax.chain": optax.chain,
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("kept", [gradtx.cast_state, gradtx.quantize_state])
def test_wrappers_around_leave_the_rounding_alone(name, kept):
    params = {"kernel": jnp.linspace(0.5, 1, 4096)}
    inner = kept(gradtx.ema(0.99, debias=False))

    def after(tx, *, applied):
        @jax.jit
        def step(state):
            if applied:
                return gradtx.update_and_apply(tx, params, state, params)[1]
            return tx.update(params, state, params)[1]

        state = tx.init(params)
        for _ in range(5):
            state = step(state)
        return optax.tree.get(state, "ema")

    expected = after(inner, applied=False)
    for applied in (False, True):
        found = after(AROUND[name](inner), applied=applied)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda tx: gradtx.quantize_state(gradtx.cast_state(tx, select="mu/"), min_size=1),
        lambda tx: gradtx.cast_state(gradtx.quantize_state(tx, min_size=1, select="nu/")),
    ],
    ids=["cast-inside", "quantized-inside"],
)
def test_moments_of_both_kinds(make):
    params = {"kernel": jnp.linspace(0.5, 1, 1024).reshape(4, 256), "empty": jnp.ones((0, 3))}
    exact, tx = gradtx.adam(0.01), make(gradtx.adam(0.01))
    state, right = tx.init(params), exact.init(params)
    for _ in range(3):
        updates, new = tx.update(params, state, params)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        expected, right = exact.update(params, right, params)
        np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=0.2)
        state = new
    assert optax.tree.get(state, "mu")["kernel"].values.dtype == jnp.bfloat16
    assert optax.tree.get(state, "nu")["kernel"].codes.dtype == jnp.uint8
    plain, report = gradtx.migrate(state, exact, params)
    assert report.fresh == {}
    np.testing.assert_allclose(plain[0].nu["kernel"], right[0].nu["kernel"], rtol=0.2)


def test_second_moments_stay_where_float16_would_lose_them():
    params = {"kernel": jnp.ones((16, 256))}
    tx = gradtx.cast_state(gradtx.adam(1e-3), jnp.float16)
    state = tx.init(params)
    assert state.inner_state[0].mu["kernel"].values.dtype == jnp.float16
    assert state.inner_state[0].nu["kernel"].dtype == jnp.float32
    updates, _ = tx.update(jax.tree.map(lambda p: 1e-5 * p, params), state, params)
    np.testing.assert_allclose(updates["kernel"], -1e-3, rtol=1e-2)
    chosen = gradtx.cast_state(gradtx.adam(1e-3), jnp.float16, select="nu/").init(params)
    assert chosen.inner_state[0].nu["kernel"].values.dtype == jnp.float16


def test_migration_of_a_state_that_was_restored_without_its_classes():
    params = {"kernel": jnp.ones((16, 256))}
    tx = gradtx.cast_state(gradtx.adam(1e-3))
    _, state = tx.update(params, tx.init(params), params)

    def as_plain(node):
        if hasattr(node, "_asdict"):
            return {name: as_plain(part) for name, part in node._asdict().items()}
        if isinstance(node, tuple):
            return [as_plain(part) for part in node]
        return {k: as_plain(v) for k, v in node.items()} if isinstance(node, dict) else node

    new, report = gradtx.migrate(as_plain(state), gradtx.adam(1e-3), params)
    assert report.fresh == {}
    expected = state.inner_state[0].mu["kernel"].values.astype(jnp.float32)
    np.testing.assert_array_equal(new[0].mu["kernel"], expected)
