"""Measurements inside a chain, against NumPy and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import DECAY, check_refused, inputs, wrong_arguments


def norm(tree):
    return np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in tree.values()))


def run(tx, steps=6):
    """The gradients, and the updates and the state of each step."""
    gradients, [params, *_] = inputs(24)
    gradients = [jax.tree.map(jnp.asarray, g) for g in gradients[:steps]]
    params = jax.tree.map(jnp.asarray, params)
    state, update, path = tx.init(params), jax.jit(tx.update), []
    for g in gradients:
        updates, state = update(g, state, params)
        path.append((g, updates, state))
    assert update._cache_size() == 1
    return path


def test_a_snapshot_is_of_the_updates_at_its_place():
    tx = gradtx.chain(
        gradtx.snapshot("before", gradtx.global_norm),
        gradtx.clip_by_global_norm(1.0),
        gradtx.snapshot("after", lambda updates: {"norm": gradtx.global_norm(updates)}),
        gradtx.scale(2.0),
    )
    for g, updates, state in run(tx):
        np.testing.assert_allclose(optax.tree.get(state, "before"), norm(g), rtol=1e-6)
        np.testing.assert_allclose(optax.tree.get(state, "after")["norm"], 1, rtol=1e-6)
        np.testing.assert_allclose(norm(updates), 2, rtol=1e-6)


def test_a_monitor_measures_and_remembers():
    measures = {
        "norm": gradtx.global_norm,
        "mean": gradtx.measure_with_ema(lambda g: jnp.sum(g["vector"]), decay=0.75),
        "raw mean": gradtx.measure_with_ema(lambda g: jnp.sum(g["vector"]), 0.75, debias=False),
        "often long": gradtx.measure_with_ema(lambda g: gradtx.global_norm(g) > 10, 0.5),
    }
    average = long = 0.0
    for t, (g, updates, state) in enumerate(run(gradtx.monitor(measures)), start=1):
        jax.tree.map(np.testing.assert_array_equal, updates, g)
        average = 0.75 * average + 0.25 * np.sum(np.float64(g["vector"]))
        long = 0.5 * long + 0.5 * (norm(g) > 10)
        expected = {
            "norm": norm(g),
            "mean": average / (1 - 0.75**t),
            "raw mean": average,
            "often long": long / (1 - 0.5**t),
        }
        assert state.measurements.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(state.measurements[name], value, rtol=2e-6, err_msg=name)
    assert 0 < long < 1


def test_measurements_agree_with_optax_and_its_states_are_understood():
    def measures(library):
        mean = library.measure_with_ema(lambda g: jnp.mean(g), 0.9)
        return library.monitor({"norm": lambda g: jnp.sum(g**2), "mean": mean})

    ours, theirs = (
        lib.chain(measures(lib), lib.snapshot("max", jnp.max)) for lib in (gradtx, optax)
    )
    g, params = jnp.array([1.0, -4.0, 2.5]), jnp.ones(3)
    state, other = ours.init(params), theirs.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        for _ in range(2):
            # Each library continues from the state of the other.
            (_, state), (_, other) = ours.update(g, other, params), theirs.update(g, state, params)
            assert jax.tree.structure(state) == jax.tree.structure(other)
            assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, other)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, other)


def test_before_the_first_step_everything_is_zero():
    tx = gradtx.chain(
        gradtx.snapshot("max", lambda g: {"of all": jnp.max(g)}), gradtx.monitor({"sum": jnp.sum})
    )
    state = tx.init(jnp.ones(3))
    assert optax.tree.get(state, "max") == {"of all": 0}
    assert optax.tree.get(state, "sum") == 0


def test_measures_see_what_are_parameters_and_only_that():
    seen = []

    def measure(updates):
        seen.append(jax.tree.structure(updates))
        return gradtx.global_norm(updates)

    tx = gradtx.monitor({"norm": measure})
    updates = {"w": jnp.array([3.0, 4.0]), "n": jnp.int32(7), "f": jnp.tanh, "none": None}
    new, state = tx.update(updates, tx.init(updates), updates)
    assert new is updates
    assert state.measurements["norm"] == 5
    assert set(seen) == {jax.tree.structure({"w": 0, "n": None, "f": None, "none": None})}


@pytest.mark.parametrize("make", [gradtx.measure_with_ema, lambda measure, decay: measure])
def test_half_precision_and_booleans_keep_their_types_under_scan(make):
    tx = gradtx.monitor(
        {"mean": make(jnp.mean, 0.9), "positive": make(lambda g: jnp.mean(g) > 0, 0.9)}
    )
    g = jnp.ones(3, jnp.bfloat16)
    state, _ = jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), tx.init(g), g[None])
    is_average = make is gradtx.measure_with_ema
    types = {name: value.dtype for name, value in state.measurements.items()}
    assert types["mean"] == (jnp.float32 if is_average else jnp.bfloat16)
    assert types["positive"] == (jnp.float32 if is_average else bool)
    np.testing.assert_allclose(state.measurements["mean"].astype(jnp.float32), 1, rtol=1e-6)
    np.testing.assert_allclose(np.float32(state.measurements["positive"]), 1, rtol=1e-6)


def test_the_accumulator_has_the_dtype_that_is_asked_for():
    tx = gradtx.measure_with_ema(jnp.mean, 0.9, accumulator_dtype=jnp.bfloat16)
    value, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    assert optax.tree.get(state, "ema").dtype == jnp.bfloat16
    assert value.dtype == jnp.float32


def test_measures_with_a_state_get_the_parameters_and_the_extra_arguments():
    def update(updates, state, params=None, *, value, **extra):
        return value + params["w"], state

    measure = gradtx.GradientTransformationExtraArgs(lambda params: (), update)
    state = gradtx.monitor({}).init({"w": jnp.ones(())})
    assert state.measurements == {}
    tx = gradtx.monitor({"sum": measure})
    old = gradtx.MonitorState({}, ((),))
    _, state = tx.update(
        {"w": jnp.ones(())}, old, {"w": jnp.full((), 2.0)}, value=jnp.full((), 3.0)
    )
    assert state.measurements["sum"] == 5


def test_a_measurement_of_another_shape_is_refused():
    tx = gradtx.snapshot("all", lambda g: g)
    with pytest.raises(ValueError, match=r"snapshot: measure 'all': .* shape \(2,\), .* \(3,\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(2)))
    tx = gradtx.monitor({"all": lambda g: g})
    with pytest.raises(ValueError, match=r"monitor: measure 'all': .* differ at 'a'"):
        tx.update({"b": jnp.ones(2)}, tx.init({"a": jnp.ones(2)}))


def test_the_state_of_other_measures_is_refused():
    state = gradtx.monitor({"a": jnp.sum, "b": jnp.sum}).init(jnp.ones(1))
    with pytest.raises(ValueError, match=r"of 2 measures, not of \['a'\]"):
        gradtx.monitor({"a": jnp.sum}).update(jnp.ones(1), state)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.snapshot,
            {"measure_name": "norm", "measure": jnp.sum},
            measure_name=(3, None),
            measure=("sum", None),
        ),
        *wrong_arguments(gradtx.monitor, {}, measures=(jnp.sum, {"measure": "sum"}, {3: abs})),
        *wrong_arguments(
            gradtx.measure_with_ema,
            {"measure": jnp.sum, "decay": 0.9},
            measure=("sum", None),
            decay=DECAY,
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    if isinstance(value, dict):
        with pytest.raises(ValueError, match="monitor: measure"):
            factory(**arguments)
    else:
        check_refused(factory, arguments, name, value)
