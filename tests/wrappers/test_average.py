"""Averages of the parameters against their recursion, and read from every kind of state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import DECAY, assert_close, check_refused, inputs, wrong_arguments

STEPS = 24


def train(tx, steps=STEPS):
    """Random gradients through a transformation: the parameters and the state after each step."""
    gradients, [start, *_] = inputs(steps)
    params = jax.tree.map(jnp.asarray, start)
    state, update, path = tx.init(params), jax.jit(tx.update), []
    for g in gradients:
        updates, state = update(jax.tree.map(jnp.asarray, g), state, params)
        params = gradtx.apply_updates(params, updates)
        path.append((params, state))
    return path


def recursion(points, decays, debias):
    """The average after each point: a weighted sum, divided by the sum of its weights if asked."""
    average, weight = jax.tree.map(np.zeros_like, points[0]), 0.0
    for point, decay in zip(points, decays, strict=True):
        average = {k: decay * average[k] + (1 - decay) * point[k] for k in point}
        weight = decay * weight + 1 - decay
        yield {k: a / weight for k, a in average.items()} if debias else average


def check_average(decay, decays, debias, tolerance):
    path = train(gradtx.average_params(gradtx.sgd(0.1, momentum=0.5), decay, debias=debias))
    points = [{k: np.float64(p) for k, p in params.items()} for params, _ in path]
    for t, (expected, (_, state)) in enumerate(
        zip(recursion(points, decays, debias), path, strict=True), start=1
    ):
        average = gradtx.averaged_params(state)
        assert_close(jax.tree.map(np.asarray, average), expected, tolerance, f"average {t}")


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_average(decay, debias):
    check_average(decay, [decay] * STEPS, debias, 4e-6)


@pytest.mark.parametrize("debias", [True, False])
def test_average_in_double_precision(debias):
    with jax.enable_x64(True):
        check_average(0.99, [0.99] * STEPS, debias, 1e-12)


@pytest.mark.parametrize("debias", [True, False])
def test_decay_as_an_array(debias):
    decay = jnp.asarray(0.9)
    check_average(decay, [float(decay)] * STEPS, debias, 4e-6)


@pytest.mark.parametrize("debias", [True, False])
def test_decay_as_a_schedule_divides_by_the_sum_of_the_weights(debias):
    def warmup(count):
        return (1 + count) / (10 + count)

    check_average(warmup, [warmup(count) for count in range(STEPS)], debias, 4e-6)


def test_updates_pass_unchanged():
    plain = train(gradtx.adam(0.1))
    averaged = train(gradtx.average_params(gradtx.adam(0.1), 0.9))
    for (params, state), (same_params, same_state) in zip(plain, averaged, strict=True):
        jax.tree.map(np.testing.assert_array_equal, params, same_params)
        jax.tree.map(np.testing.assert_array_equal, state, same_state.inner_state)


def test_average_of_parameters_that_stand_still_is_where_they_stand():
    tx = gradtx.average_params(gradtx.identity(), 0.999)
    params = jnp.array([3.0, -1e-3])
    state = tx.init(params)
    for _ in range(10):
        _, state = tx.update(jnp.zeros(2), state, params)
        np.testing.assert_allclose(gradtx.averaged_params(state), params, rtol=3e-7)


def test_average_lags_behind_steady_motion():
    # On p_t = t the average without debias tends to t - decay / (1 - decay).
    tx = gradtx.average_params(gradtx.sgd(1.0), 0.75)
    params = jnp.array(0.0)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(80):
        updates, state = update(jnp.array(-1.0), state, params)
        params = gradtx.apply_updates(params, updates)
    np.testing.assert_allclose(gradtx.averaged_params(state), 80 - 3, rtol=1e-6)


def test_average_quiets_noise():
    # Independent noise of variance 1 averages to one of (1 - decay) / (1 + decay).
    noise = np.random.default_rng(0).normal(size=(200, 4000)).astype(np.float32)
    tx = gradtx.average_params(gradtx.identity(), 0.9)
    params = jnp.zeros(4000)
    state, update = tx.init(params), jax.jit(tx.update)
    for sample in noise:
        _, state = update(jnp.asarray(sample), state, params)
    variance = np.var(np.asarray(gradtx.averaged_params(state)))
    np.testing.assert_allclose(variance, 0.1 / 1.9, rtol=5 * np.sqrt(2 / 4000))


AVERAGE = gradtx.average_params(gradtx.scale(-0.1), 0.9)
PLACES = {
    "alone": AVERAGE,
    "chain": gradtx.chain(gradtx.scale_by_adam(), AVERAGE),
    "chain of optax": optax.chain(optax.trace(0.9), AVERAGE),
    "named chain": gradtx.named_chain(("adam", gradtx.scale_by_adam()), ("average", AVERAGE)),
    "chain in a chain": gradtx.chain(gradtx.chain(gradtx.chain(AVERAGE)), gradtx.identity()),
    "masked": gradtx.masked(AVERAGE, {"matrix": True, "vector": True}),
    "inside another wrapper": optax.apply_if_finite(AVERAGE, 3),
}


@pytest.mark.parametrize("place", PLACES)
def test_average_is_found_wherever_it_stands(place):
    path = train(PLACES[place], steps=20)[:3]
    points = [{k: np.float64(p) for k, p in params.items()} for params, _ in path]
    [*_, expected] = recursion(points, [0.9] * 3, debias=True)
    average = gradtx.averaged_params(path[-1][1], path[-1][0])
    assert_close(jax.tree.map(np.asarray, average), expected, 4e-6, place)


def test_average_is_read_inside_a_compiled_function():
    params, state = train(AVERAGE, steps=20)[-1]
    compiled = jax.jit(gradtx.averaged_params)(state, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        compiled,
        gradtx.averaged_params(state, params),
    )


def test_half_precision_is_averaged_in_float32():
    # In bfloat16 the small share 1 - decay of each new point would be lost.
    tx = gradtx.average_params(gradtx.identity(), 0.999)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(5):
        _, state = update({"w": jnp.zeros(3, jnp.bfloat16)}, state, params)
    for _ in range(5):
        _, state = update({"w": jnp.ones(3, jnp.bfloat16)}, state, params)
    kept = gradtx.averaged_params(state)["w"]
    assert kept.dtype == jnp.float32
    weights = 0.999 ** np.arange(9, -1, -1)
    expected = np.average([1.0] * 5 + [2.0] * 5, weights=weights)
    np.testing.assert_allclose(kept, expected, rtol=1e-6)
    assert gradtx.averaged_params(state, params)["w"].dtype == jnp.bfloat16


def test_leaves_that_are_not_parameters_stay_as_they_are():
    tx = gradtx.average_params(gradtx.sgd(1.0), 0.5)
    params = {"w": jnp.array([4.0]), "steps": jnp.int32(7), "absent": None, "frozen": jnp.ones(1)}
    gradients = {"w": jnp.array([1.0]), "steps": None, "absent": None, "frozen": None}
    _, state = tx.update(gradients, tx.init(params), params)
    read = gradtx.averaged_params(state, params)
    assert (read["w"], read["steps"], read["absent"], read["frozen"]) == (3.0, 7, None, 1.0)
    kept = gradtx.averaged_params(state)
    assert (kept["w"], kept["steps"], kept["absent"], kept["frozen"]) == (3.0, None, None, 1.0)


def test_complex_parameters():
    tx = gradtx.average_params(gradtx.sgd(1.0), 0.5)
    params = jnp.array([4 + 2j])
    _, state = tx.update(jnp.array([1 - 1j]), tx.init(params), params)
    np.testing.assert_allclose(gradtx.averaged_params(state), [3 + 3j], rtol=1e-6)


def test_parameters_that_are_python_numbers():
    tx = gradtx.average_params(gradtx.sgd(1.0), 0.5)
    params = {"w": 4.0}
    _, state = tx.update({"w": jnp.array(1.0)}, tx.init(params), params)
    np.testing.assert_allclose(gradtx.averaged_params(state, params)["w"], 3.0, rtol=1e-6)


@pytest.mark.parametrize("debias", [True, False])
def test_before_the_first_update_the_average_is_zero(debias):
    tx = gradtx.average_params(gradtx.sgd(1.0), 0.5, debias=debias)
    np.testing.assert_array_equal(gradtx.averaged_params(tx.init(jnp.ones(2))), np.zeros(2))


def test_extra_arguments_reach_the_wrapped_transformation():
    def loss(x):
        return jnp.sum((x - 2.0) ** 2)

    tx = gradtx.average_params(gradtx.newton(), 0.0)
    x = jnp.array([5.0, -1.0])
    _, state = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
    np.testing.assert_allclose(gradtx.averaged_params(state), 2, rtol=1e-6)


@pytest.mark.parametrize("number", [0, 2])
def test_other_than_one_average_is_refused(number):
    state = gradtx.chain(*[AVERAGE] * number, gradtx.sgd(0.1)).init(jnp.ones(2))
    with pytest.raises(ValueError, match=f"found {number}"):
        gradtx.averaged_params(state)


def test_average_of_another_tree_is_refused():
    state = AVERAGE.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="b"):
        gradtx.averaged_params(state, {"b": jnp.ones(2)})


def test_missing_parameters_are_refused():
    with pytest.raises(ValueError, match="params"):
        AVERAGE.update(jnp.ones(2), AVERAGE.init(jnp.ones(2)))


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.average_params,
        {"tx": gradtx.sgd(0.1), "decay": 0.9},
        decay=DECAY,
        tx=(None, "sgd", gradtx.sgd),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
