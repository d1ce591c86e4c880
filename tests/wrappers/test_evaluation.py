"""The parameters to evaluate, wherever they are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import gradtx

PARAMS = {"body": jnp.array([4.0, 2.0]), "head": jnp.array([1.0])}
GRADIENTS = jax.tree.map(jnp.ones_like, PARAMS)
BODY = gradtx.select("body")


def after(tx, steps=2):
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADIENTS, state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def check(actual, body, head):
    np.testing.assert_allclose(actual["body"], body, rtol=1e-6)
    np.testing.assert_allclose(actual["head"], head, rtol=1e-6)


def test_without_an_average_they_are_the_parameters():
    params, state = after(gradtx.adam(0.1))
    assert gradtx.eval_params(state, params)["body"] is params["body"]


def test_average_params():
    params, state = after(gradtx.chain(gradtx.average_params(gradtx.sgd(1.0), decay=0.5)))
    # (0.25 * (p - 1) + 0.5 * (p - 2)) / 0.75
    check(gradtx.eval_params(state, params), [4 - 5 / 3, 2 - 5 / 3], [1 - 5 / 3])
    averaged = gradtx.averaged_params(state, params)
    check(gradtx.eval_params(state, params), averaged["body"], averaged["head"])


def test_schedule_free_of_either_library():
    for library in (gradtx, optax.contrib):
        params, state = after(library.schedule_free(optax.sgd(1.0), 1.0, b1=0.5))
        # The mean of z = p - 1 and z = p - 2.
        check(jax.jit(gradtx.eval_params)(state, params), [2.5, 0.5], [-0.5])


def test_lookahead_gives_the_slow_parameters():
    params = optax.LookaheadParams.init_synced(PARAMS)
    params = params._replace(fast=jax.tree.map(lambda p: p + 1, PARAMS))
    tx = optax.lookahead(optax.sgd(0.1), 5, 0.5)
    check(gradtx.eval_params(tx.init(params), params), PARAMS["body"], PARAMS["head"])


@pytest.mark.parametrize("base", ["sgd", "schedule_free"])
def test_sam_gives_where_its_climb_began(base):
    inner = gradtx.sgd(1.0)
    if base == "schedule_free":
        inner = gradtx.schedule_free(inner, 1.0, b1=0.5)
    tx = gradtx.sam(inner, gradtx.sgd(0.125))
    evaluated = []
    for steps in (1, 2, 3):
        params, state = after(tx, steps)
        evaluated.append(gradtx.eval_params(state, params))
    check(evaluated[0], PARAMS["body"], PARAMS["head"])
    # One step of the base in the first two calls, and the third climbs again.
    check(evaluated[1], PARAMS["body"] - 1, PARAMS["head"] - 1)
    check(evaluated[2], PARAMS["body"] - 1, PARAMS["head"] - 1)


def test_each_group_speaks_for_its_leaves():
    tx = gradtx.partition(
        {
            "body": gradtx.schedule_free(gradtx.sgd(1.0), 1.0, b1=0.5),
            "rest": gradtx.average_params(gradtx.sgd(1.0), decay=0.5),
        },
        gradtx.select.groups({"body": BODY}, rest="rest"),
    )
    params, state = after(tx)
    check(gradtx.eval_params(state, params), [2.5, 0.5], [1 - 5 / 3])
    params, state = after(gradtx.masked(gradtx.schedule_free_sgd(1.0, b1=0.5), BODY))
    check(gradtx.eval_params(state, params), [2.5, 0.5], params["head"])


def test_dtypes_and_other_leaves_stay():
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.int32(3), "f": jnp.tanh}
    tx = gradtx.schedule_free_sgd(0.5)
    state = tx.init(params)
    evaluated = gradtx.eval_params(state, params)
    assert evaluated["w"].dtype == jnp.bfloat16
    assert (evaluated["n"], evaluated["f"]) == (3, jnp.tanh)


SWAPPED = {
    "eval_params": gradtx.eval_params,
    "averaged_params": gradtx.averaged_params,
    "schedule_free_eval_params": gradtx.schedule_free_eval_params,
    "migrate": lambda state, params: gradtx.migrate(state, gradtx.sgd(0.1), params),
}
# Of an optimizer without any number in its state, with some, and of another library.
STATES = {
    "sgd": gradtx.sgd(0.1).init(PARAMS),
    "average_params": gradtx.average_params(gradtx.sgd(0.1), 0.9).init(PARAMS),
    "optax.schedule_free": optax.contrib.schedule_free_sgd(0.1).init(PARAMS),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", SWAPPED)
def test_swapped_arguments_are_refused(name, state):
    message = (
        f"{name}: params holds an optimizer state, and state holds none; the state comes first"
    )
    for params in (PARAMS, optax.LookaheadParams.init_synced(PARAMS), optax.MaskedNode()):
        with pytest.raises(ValueError, match=message):
            SWAPPED[name](params, STATES[state])


@pytest.mark.parametrize("name", [*SWAPPED, "metrics"])
def test_a_transformation_in_place_of_its_state_is_refused(name):
    read = SWAPPED.get(name, lambda state, params: gradtx.metrics(state))
    with pytest.raises(ValueError, match=f"{name}: state must be .*, got a transformation"):
        read(gradtx.adam(0.1), PARAMS)


def test_parameters_may_hold_a_state_of_their_own():
    # As where the start of an inner optimizer is learned.
    params = {"w": jnp.ones(2), "start": gradtx.trace(0.9).init(jnp.ones(2))}
    tx = gradtx.average_params(gradtx.sgd(1.0), 0.5)
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(gradtx.eval_params(state, params)["start"].trace, -1.0)


def test_what_is_ambiguous_or_missing_is_an_error():
    tx = gradtx.average_params(gradtx.average_params(gradtx.sgd(0.1), 0.9), 0.9)
    with pytest.raises(ValueError, match="two wrappers keep an average of the parameter 'body'"):
        gradtx.eval_params(tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="no ScheduleFreeState"):
        gradtx.schedule_free_eval_params(gradtx.sgd(0.1).init(PARAMS), PARAMS)
    state = gradtx.schedule_free_sgd().init(PARAMS)
    with pytest.raises(ValueError, match=r"'head'.*\(3,\)"):
        gradtx.eval_params(state, PARAMS | {"head": jnp.ones(3)})
