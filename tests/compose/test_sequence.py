"""Chains and the simple transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}


def test_chain_applies_in_order():
    tx = gradtx.chain(gradtx.clip(1.0), gradtx.scale(10.0))
    updates, state = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_array_equal(updates["w"], [10.0, -10.0])
    assert state == (optax.EmptyState(), optax.EmptyState())


def test_empty_chain_is_the_identity():
    tx = gradtx.chain()
    updates, state = tx.update(PARAMS, tx.init(PARAMS))
    assert state == ()
    np.testing.assert_array_equal(updates["w"], PARAMS["w"])


def test_chain_takes_whatever_has_init_and_update():
    tx = gradtx.chain(optax.MultiSteps(gradtx.sgd(1.0), 2), gradtx.scale(3.0))
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(PARAMS)
        first, state = tx.update(PARAMS, state, PARAMS)
        second, state = tx.update(PARAMS, state, PARAMS)
    np.testing.assert_array_equal(first["w"], [0.0, 0.0])
    np.testing.assert_array_equal(second["w"], [-3.0, 6.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gradtx.chain(gradtx.adam(0.1), gradtx.adam), "argument 1.*forget to call"),
        (lambda: gradtx.chain(0.1), "argument 0.*0.1"),
        (lambda: gradtx.named_chain(("a", gradtx.sgd)), "a must be.*forget to call"),
        (lambda: gradtx.named_chain(gradtx.sgd(0.1)), "argument 0"),
        (lambda: gradtx.named_chain(("a", gradtx.sgd(1.0)), ("a", gradtx.sgd(1.0))), "unique"),
        (lambda: gradtx.masked(gradtx.sgd, True), "inner.*forget to call"),
        (lambda: gradtx.partition({"a": gradtx.sgd}, {}), r"transforms\['a'\]"),
        (lambda: gradtx.conditionally_mask(gradtx.sgd(1.0), 3), "should_transform_fn.*3"),
        (lambda: gradtx.average_params(gradtx.sgd, 0.9), "tx.*forget to call"),
        (lambda: gradtx.with_extra_args_support(3), "tx.*3"),
        (lambda: gradtx.scale_by_schedule(0.1), "step_size_fn.*0.1"),
    ],
    ids=lambda value: None if callable(value) else value,
)
def test_what_is_not_a_transformation_is_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_state_of_another_chain_is_refused():
    tx = gradtx.chain(gradtx.scale(1.0), gradtx.scale(2.0))
    with pytest.raises(ValueError, match="chain: expected the states of 2"):
        tx.update(PARAMS, (optax.EmptyState(),))
    with pytest.raises(ValueError, match=r"chain: .* has no state, got TraceState"):
        tx.update(PARAMS, (gradtx.trace(0.9).init(PARAMS), optax.EmptyState()))
    named = gradtx.named_chain(("a", gradtx.scale(1.0)))
    with pytest.raises(ValueError, match=r"expected the states of \['a'\], got dict .*\['b'\]"):
        named.update(PARAMS, {"b": optax.EmptyState()})


def test_named_chain_names_its_states():
    tx = gradtx.named_chain(("m", gradtx.trace(0.5)), ("lr", gradtx.scale(-1.0)))
    state = tx.init(PARAMS)
    updates, state = jax.jit(tx.update)(PARAMS, state)
    assert list(state) == ["m", "lr"]
    np.testing.assert_array_equal(updates["w"], -PARAMS["w"])
    np.testing.assert_array_equal(state["m"].trace["w"], PARAMS["w"])


def test_extra_arguments_reach_those_who_want_them():
    seen = {}

    def update(updates, state, params=None, *, value, **extra):
        seen["value"] = value
        return updates, state

    wants = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = gradtx.chain(
        gradtx.clip(1.0),
        optax.GradientTransformation(*optax.scale(1.0)),
        gradtx.masked(wants, True),
    )
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0)
    assert seen == {"value": 3.0}


def test_identity_and_set_to_zero():
    tree = {"f": jnp.array([jnp.nan, 1.0]), "i": jnp.int32(3), "fn": jax.nn.relu, "none": None}
    same, _ = gradtx.identity().update(tree, optax.EmptyState())
    assert same is tree
    zero, _ = gradtx.set_to_zero().update(tree, optax.EmptyState())
    np.testing.assert_array_equal(zero["f"], [0.0, 0.0])
    assert (zero["i"], zero["i"].dtype, zero["fn"]) == (0, jnp.int32, jax.nn.relu)
    assert zero["none"] is None
    for tx in (gradtx.identity(), gradtx.set_to_zero()):
        assert type(tx) is optax.GradientTransformationExtraArgs


def test_stateless_with_tree_map_checks_the_parameters():
    tx = gradtx.stateless_with_tree_map(lambda g, p: g if p is None else g * p)
    updates, _ = tx.update({"w": jnp.ones(2), "b": None}, tx.init(None), PARAMS)
    np.testing.assert_array_equal(updates["w"], PARAMS["w"])
    assert updates["b"] is None
    updates, _ = tx.update(PARAMS, tx.init(None))
    np.testing.assert_array_equal(updates["w"], PARAMS["w"])
    with pytest.raises(ValueError, match=r"stateless_with_tree_map.*'b'"):
        tx.update(PARAMS, tx.init(None), {"w": jnp.ones(2)})
