"""Applying updates to parameters: sums, mixtures and periods, leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from .trajectory import COUNT, NON_NEGATIVE, check_refused, wrong_arguments

RNG = np.random.default_rng(0)
TREES = [
    {"w": RNG.normal(size=(3, 2)).astype(np.float32), "b": [np.float32(RNG.normal())]}
    for _ in range(2)
]


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


def check_equal(tree, expected, **tolerance):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, expected)


def test_apply_updates_adds():
    params, updates = TREES
    ours = gradtx.apply_updates(as_jax(params), as_jax(updates))
    check_equal(ours, jax.tree.map(np.add, params, updates), rtol=0)
    check_equal(ours, optax.apply_updates(as_jax(params), as_jax(updates)), rtol=0)


@pytest.mark.parametrize(
    ("dtype", "change"), [(jnp.bfloat16, 2**-8 + 2**-17), (jnp.float16, 2**-11 + 2**-23)]
)
def test_apply_updates_rounds_once(dtype, change):
    # The sum lies just above the middle of two neighbours. Had the update been rounded first, it
    # would lie in the middle, and go to the even neighbour, 1.
    new = gradtx.apply_updates(jnp.ones((), dtype), jnp.float32(change))
    assert new.dtype == dtype
    assert new.astype(jnp.float32) == 1 + jnp.finfo(dtype).eps.astype(np.float32)


def test_apply_updates_keeps_the_dtype_of_the_parameter():
    with jax.enable_x64(True):
        params = jnp.array([1.0, 2.0], jnp.float32)
        new = gradtx.apply_updates(params, jnp.array([0.5, 0.25], jnp.float64))
        assert new.dtype == jnp.float32
        np.testing.assert_array_equal(new, [1.5, 2.25])
        wide = gradtx.apply_updates(params.astype(jnp.float64), jnp.array([1e-12, 0.0]))
        assert wide[0] - 1 == pytest.approx(1e-12, rel=1e-3)


def test_apply_updates_of_complex_parameters():
    new = gradtx.apply_updates(jnp.array([1 + 2j]), jnp.array([0.5 - 1j]))
    np.testing.assert_array_equal(new, [1.5 + 1j])


def test_apply_updates_leaves_alone_what_has_no_update():
    params = {"w": jnp.ones(2), "frozen": jnp.ones(1), "steps": jnp.int32(7), "name": "net"}
    no_gradient = np.zeros((), jax.dtypes.float0)
    updates = {"w": jnp.ones(2), "frozen": None, "steps": no_gradient, "name": None}
    new = gradtx.apply_updates(params, updates)
    np.testing.assert_array_equal(new["w"], [2, 2])
    assert new["frozen"] is params["frozen"]
    assert new["steps"] == 7
    assert new["name"] == "net"


def test_an_integer_parameter_takes_an_exact_update_and_no_other():
    params = {"n": jnp.array([7, -2], jnp.int8), "size": 3, "flag": jnp.array([True, False])}
    updates = {"n": jnp.array([1, 2]), "size": 2, "flag": jnp.array([False, True])}
    new = jax.jit(gradtx.apply_updates)(params, updates)
    np.testing.assert_array_equal(new["n"], [8, 0])
    assert new["n"].dtype == jnp.int8
    assert new["size"] == 5
    np.testing.assert_array_equal(new["flag"], [True, True])
    assert gradtx.apply_updates({"size": 3}, {"size": 2})["size"] == 5
    for name, fraction in (
        ("n", jnp.array([0.5, 0.0])),
        ("size", 0.5),
        ("flag", jnp.array([1, 0])),
    ):
        with pytest.raises(ValueError, match=rf"apply_updates: the parameter at '{name}' is of"):
            gradtx.apply_updates(params, {**updates, name: fraction})


@pytest.mark.parametrize("apply", [gradtx.apply_updates, optax.apply_updates])
def test_a_parameter_that_is_none_stays_none(apply):
    new = apply({"w": jnp.ones(2), "frozen": None}, {"w": jnp.ones(2), "frozen": jnp.ones(3)})
    np.testing.assert_array_equal(new["w"], [2, 2])
    assert new["frozen"] is None


def test_apply_updates_asks_for_the_updates_and_not_the_state():
    params = {"w": jnp.ones(2), "steps": jnp.int32(7)}
    tx = gradtx.adam(0.1)
    pair = tx.update(params, tx.init(params), params)
    for given in (pair, pair[1]):
        with pytest.raises(ValueError, match=r"apply_updates: .*the pair \(updates, state\)"):
            gradtx.apply_updates(params, given)


def test_apply_updates_keeps_empty_places_empty():
    assert gradtx.apply_updates({"a": None, "b": {}}, {"a": None, "b": {}}) == {"a": None, "b": {}}


@pytest.mark.parametrize(
    ("updates", "path"),
    [({"a": {"b": jnp.ones(3)}}, "a/b"), ({"a": {"c": jnp.ones(2)}}, "a/b"), ({"a": {}}, "a/b")],
    ids=["shape", "name", "missing"],
)
def test_apply_updates_refuses_another_tree(updates, path):
    with pytest.raises(ValueError, match=f"'{path}'"):
        gradtx.apply_updates({"a": {"b": jnp.ones(2)}}, updates)


@pytest.mark.parametrize("step_size", [0.0, 0.001, 0.25, 1.0])
def test_incremental_update_mixes(step_size):
    new, old = TREES
    expected = jax.tree.map(
        lambda n, o: step_size * np.float64(n) + (1 - step_size) * np.float64(o), new, old
    )
    for given in (step_size, jnp.asarray(step_size)):
        ours = gradtx.incremental_update(as_jax(new), as_jax(old), given)
        check_equal(ours, expected, rtol=1e-6, atol=1e-7)
    check_equal(ours, optax.incremental_update(as_jax(new), as_jax(old), step_size), rtol=1e-6)


def test_incremental_update_at_its_ends_takes_one_tree_exactly():
    new, old = map(as_jax, TREES)
    check_equal(gradtx.incremental_update(new, old, 1.0), new, rtol=0)
    check_equal(gradtx.incremental_update(new, old, 0.0), old, rtol=0)


def test_incremental_update_of_a_constant_is_geometric():
    target, mean = jnp.ones(1), jnp.zeros(1)
    for t in range(1, 31):
        mean = gradtx.incremental_update(target, mean, 0.125)
        np.testing.assert_allclose(mean, 1 - 0.875**t, rtol=2e-6)


def test_incremental_update_takes_the_dtype_of_the_old_tree():
    mixed = gradtx.incremental_update(jnp.ones(1, jnp.bfloat16), jnp.zeros(1), 0.001)
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, 0.001, rtol=1e-6)


def test_incremental_update_of_complex_tensors():
    mixed = gradtx.incremental_update(jnp.array([4 + 2j]), jnp.array([2j]), 0.25)
    np.testing.assert_array_equal(mixed, [1 + 2j])


def test_incremental_update_takes_other_leaves_from_the_new_tree():
    new = {"w": jnp.ones(1), "steps": jnp.int32(9), "absent": None}
    old = {"w": jnp.zeros(1), "steps": jnp.int32(3), "absent": jnp.ones(1)}
    mixed = gradtx.incremental_update(new, old, 0.5)
    assert mixed == {"w": 0.5, "steps": 9, "absent": None}


@pytest.mark.parametrize(
    ("old", "message"),
    [({"w": jnp.ones(3)}, r"'w'.*\(2,\).*\(3,\)"), ({"b": jnp.ones(2)}, "'w'")],
    ids=["shape", "name"],
)
def test_incremental_update_refuses_another_tree(old, message):
    with pytest.raises(ValueError, match=message):
        gradtx.incremental_update({"w": jnp.ones(2)}, old, 0.5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("period", [1, 3, 10])
def test_periodic_update_takes_the_new_tree_every_period(period, compiled):
    new, old = map(as_jax, TREES)
    update = jax.jit(gradtx.periodic_update) if compiled else gradtx.periodic_update
    for steps in range(2 * period + 1):
        expected = new if steps % period == 0 else old
        taken = update(new, old, jnp.int32(steps), jnp.int32(period))
        check_equal(taken, expected, rtol=0)
        check_equal(optax.periodic_update(new, old, steps, period), expected, rtol=0)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.incremental_update,
            {"new_tensors": 1.0, "old_tensors": 0.0},
            step_size=(1.5, *NON_NEGATIVE),
        ),
        *wrong_arguments(
            gradtx.periodic_update,
            {"new_tensors": 1.0, "old_tensors": 0.0, "steps": 3},
            update_period=COUNT,
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
