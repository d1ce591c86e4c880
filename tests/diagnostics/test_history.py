"""Histories against the values that were recorded, for every place of the recorder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.diagnostics import history_of, record_history, update_ratio
from gradtx.testing import check_transformation, hostile_trees
from gradtx.training import TrainState, make_train_step

from .histories import numbers, run


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 4, 10])
@pytest.mark.parametrize("steps", [0, 1, 4, 23])
def test_latest_values_oldest_first(steps, length, every):
    tx = record_history(length=length, every=every)
    state = tx.init(jnp.zeros(1))
    for g in numbers(steps):
        _, state = tx.update(g, state)
    expected = list(range(0, steps, every))[-length:]
    history = history_of(state)
    assert list(history) == ["step", "gradient_norm"]
    np.testing.assert_array_equal(history["step"], np.array(expected, int))
    np.testing.assert_array_equal(history["gradient_norm"], np.array(expected) + 1.0)


def test_updates_pass_unchanged():
    for name, tree in hostile_trees().items():
        gradients = gradtx.testing.gradients_like(tree, seed=1)
        tx = record_history()
        updates, _ = tx.update(gradients, tx.init(tree), tree)
        assert updates is gradients, name


def test_conforms_to_the_contract():
    # What the measures of the next test are exempt from.
    clauses = ["missing_gradients", "mismatches"]
    check_transformation(record_history(length=3), clauses=clauses)


def update_ratio_of(updates, params):
    return update_ratio(updates, params)


def test_conforms_to_the_contract_with_measures_of_every_kind():
    measures = {
        "norm": gradtx.global_norm,
        "ratio": update_ratio_of,
        "matrix": lambda updates: jnp.ones((2, 3)),
        "loss": lambda updates, value: value,
    }
    tx = record_history(measures, length=3, every=2)
    # The ratios have one number for each parameter, and NaN where there was no gradient.
    check_transformation(
        tx,
        extra_args={"value": jnp.array(2.0)},
        capabilities=["own_clock"],
        skip=["mismatches"],
    )


def test_where_it_stands_decides_what_it_sees():
    tx = gradtx.chain(
        record_history({"raw": gradtx.global_norm}),
        gradtx.clip_by_global_norm(2.0),
        record_history({"clipped": gradtx.global_norm}),
        gradtx.sgd(0.5),
        record_history({"update": gradtx.global_norm}),
    )
    history = history_of(run(tx, numbers(4)))
    np.testing.assert_allclose(history["raw"], [1, 2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(history["clipped"], [1, 2, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(history["update"], [0.5, 1, 1, 1], rtol=1e-6)


def test_measures_get_what_they_name():
    measures = {
        "tree": lambda tree: tree["w"][0],
        "both": lambda updates, params: updates["w"][0] + params["w"][0],
        "keyword": lambda updates, *, params, value: value,
        "extra": lambda u, value, noise: value + noise,
        "default": lambda updates, value=-1.0: value,
        "optax": optax.tree.norm,
        "flag": lambda updates: updates["w"][0] > 0,
        "count": lambda updates: updates["w"].size,
    }
    tx = record_history(measures)
    params = {"w": jnp.array([10.0])}
    _, state = tx.update(
        {"w": jnp.array([3.0])},
        tx.init(params),
        params,
        value=jnp.array(5.0),
        noise=jnp.array(0.25),
    )
    found = {name: values.item() for name, values in history_of(state).items()}
    assert found == {
        "step": 0,
        "tree": 3,
        "both": 13,
        "keyword": 5,
        "extra": 5.25,
        "default": -1,
        "optax": 3,
        "flag": 1,
        "count": 1,
    }


def test_trees_and_arrays_are_recorded_leaf_by_leaf():
    tx = record_history({"size": lambda updates: jax.tree.map(jnp.abs, updates)}, length=2)
    params = {"dense": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(())}}
    state = tx.init(params)
    for factor in (-1.0, -2.0, -3.0):
        g = {"dense": {"kernel": factor * jnp.eye(2), "bias": jnp.array(factor)}}
        _, state = tx.update(g, state)
    history = history_of(state)
    np.testing.assert_array_equal(history["size/dense/bias"], [2, 3])
    np.testing.assert_array_equal(history["size/dense/kernel"], [2 * np.eye(2), 3 * np.eye(2)])


def test_missing_gradient_is_recorded_as_nan():
    tx = record_history({"ratio": update_ratio_of})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    _, state = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)
    history = history_of(state)
    np.testing.assert_array_equal(history["ratio/a"], [1.0])
    np.testing.assert_array_equal(history["ratio/b"], [np.nan])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_recorded(bad):
    history = history_of(run(record_history(), [jnp.array([bad]), jnp.array([2.0])]))
    np.testing.assert_array_equal(history["gradient_norm"], [bad, 2.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_stored_in_single(dtype):
    tx = record_history({"first": lambda updates: updates[0]})
    values = history_of(run(tx, [jnp.array([0.1], dtype)]))["first"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [np.float32(dtype(0.1))])


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        g = np.array([1 / 3])
        values = history_of(run(record_history(), [jnp.asarray(g)]))["gradient_norm"]
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, g)


def test_in_a_scan():
    tx = record_history(length=4)

    def step(state, g):
        return tx.update(g, state)[1], None

    gradients = jnp.arange(1.0, 11.0)[:, jnp.newaxis]
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, gradients))(tx.init(jnp.zeros(1)))
    history = history_of(state)
    np.testing.assert_array_equal(history["step"], [6, 7, 8, 9])
    np.testing.assert_array_equal(history["gradient_norm"], [7, 8, 9, 10])


@pytest.mark.parametrize("every", [1, 2])
def test_of_a_batch_of_runs(every):
    tx = record_history(length=4, every=every)
    states = jax.vmap(tx.init)(jnp.zeros((2, 1)))
    for g in ([[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]):
        _, states = jax.vmap(tx.update)(jnp.array(g), states)
    second = jax.tree.map(lambda leaf: leaf[1], states)
    expected = [2.0, 4.0, 6.0][::every]
    np.testing.assert_array_equal(history_of(second)["gradient_norm"], expected)
    with pytest.raises(ValueError, match=r"history_of: .*batch of runs of shape \(2,\)"):
        history_of(states)


def test_with_the_train_step_the_loss_is_recorded():
    tx = gradtx.chain(
        record_history({"loss": lambda updates, value: value, "norm": gradtx.global_norm}),
        gradtx.sgd(0.25),
    )
    step = make_train_step(lambda p, batch: jnp.mean((p - batch) ** 2), tx)
    state, losses, norms = TrainState.create(jnp.array(3.0), tx), [], []
    for _ in range(4):
        state, metrics = step(state, jnp.zeros(2))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    assert losses == [9.0, 2.25, 0.5625, 0.140625]  # the parameter halves at each step
    history = history_of(state)
    np.testing.assert_array_equal(history["loss"], losses)
    np.testing.assert_array_equal(history["norm"], norms)
    assert step._cache_size() == 1


def test_state_of_another_length_is_continued():
    short = record_history(length=2)
    state = run(short, numbers(3))
    _, state = record_history(length=50).update(jnp.array([9.0]), state)
    np.testing.assert_array_equal(history_of(state)["gradient_norm"], [3.0, 9.0])


def test_measures_are_read_when_built():
    measures = {"norm": gradtx.global_norm}
    tx = record_history(measures)
    measures.clear()
    assert list(history_of(run(tx, numbers(1)))) == ["step", "norm"]


# Wrong arguments.


NORM = gradtx.global_norm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measures": {}}, r"measures must map at least one name to a function, got \{\}"),
        ({"measures": NORM}, "measures must map at least one name to a function, got <function"),
        ({"measures": {"x": 3}}, "measure 'x' must be a function of the updates, got 3"),
        ({"measures": {"x": gradtx.sgd(1)}}, "measure 'x' must be a function of the updates"),
        ({"measures": {"x": lambda: 3}}, r"measure 'x' must take the updates .* takes \(\)"),
        ({"measures": {"x": lambda *, value: value}}, r"'x' must take .* takes \(\*, value\)"),
        ({"measures": {"x": lambda **extra: 3}}, r"'x' must take .* takes \(\*\*extra\)"),
        ({"measures": {"x": lambda params: 3}}, "'x' receives the updates .* 'params'"),
        ({"measures": {"step": NORM}}, "a measure must have a name other than 'step', got 'step'"),
        ({"measures": {3: NORM}}, "a measure must have a name other than 'step', got 3"),
        ({"length": 0}, "length must be a whole number >= 1, got 0"),
        ({"length": 2.5}, "length must be a whole number >= 1, got 2.5"),
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"every": "2"}, "every must be a number, got '2'"),
    ],
    ids=[
        "no-measure",
        "no-mapping",
        "number",
        "transformation",
        "no-arguments",
        "keyword-only",
        "keywords",
        "parameters",
        "taken-name",
        "no-name",
        "no-length",
        "half-a-length",
        "never",
        "text",
    ],
)
def test_refuses_to_be_built(arguments, message):
    with pytest.raises(ValueError, match=f"record_history: .*{message}"):
        record_history(**arguments)


def test_refuses_complex_measures():
    tx = record_history({"x": lambda updates: updates[0]})
    with pytest.raises(ValueError, match="record_history: measure 'x' must be real, got complex64"):
        tx.init(jnp.array([1j]))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("measure", "given", "message"),
    [
        (lambda u, params: 1.0, {}, r"'params', which was not .* update\(updates, state, params\)"),
        (lambda u, value: value, {}, r"'value', which was not passed; .*, params, value=\.\.\.\)"),
        (lambda u, loss: loss, {"value": 1.0}, r"'loss', which was not passed"),
        (lambda u, value: value, {"value": jnp.ones(2)}, r"made for, \(\), got shape \(2,\)"),
        (lambda u, value: {"a": value}, {"value": 1.0}, "its buffer and its value differ at"),
    ],
    ids=["params", "value", "another", "shape", "structure"],
)
def test_refuses_in_update(measure, given, message, every):
    tx = record_history({"x": measure}, every=every)
    with pytest.raises(ValueError, match=f"record_history: measure 'x'.*{message}"):
        tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), **given)


def test_refuses_another_shape_than_in_init():
    tx = record_history({"x": jnp.abs})
    with pytest.raises(ValueError, match=r"'x' must return .* made for, \(3,\), got shape \(1,\)"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(3)))


def test_refuses_the_state_of_other_measures():
    state = record_history({"x": NORM}).init(jnp.ones(1))
    with pytest.raises(ValueError, match=r"state is that of the measures \['x'\], not of \['y'\]"):
        record_history({"y": NORM}).update(jnp.ones(1), state)
