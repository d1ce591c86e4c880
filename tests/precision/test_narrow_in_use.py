"""The wrappers for parameters in half precision among other wrappers, readers and devices."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx

PARAMS = {
    "w": jnp.linspace(-1, 1, 32, dtype=jnp.bfloat16).reshape(8, 4),
    "b": jnp.linspace(0.5, 1, 3, dtype=jnp.float16),
    "wide": jnp.ones(2),
}
WRAPPERS = {
    "master": gradtx.with_master_weights,
    "kahan": gradtx.with_kahan_sum,
    "stochastic": lambda tx: gradtx.with_stochastic_rounding(tx, jax.random.key(0)),
}
EACH = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def gradients(step, params=PARAMS):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(0.1 + rng.normal(size=p.shape), p.dtype), params)


def train(tx, params=PARAMS, state=None, steps=range(4)):
    state = tx.init(params) if state is None else state
    update = jax.jit(tx.update)
    for step in steps:
        updates, state = update(gradients(step, params), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def widened(tree):
    return jax.tree.map(lambda p: p.astype(jnp.float32), tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)

    def same(x, y):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)

    jax.tree.map(same, found, expected)


def own(state):
    """What the wrapper itself keeps."""
    return state._replace(inner_state=None)


# A step that something inside holds back


HOLDING = {
    "collects": lambda tx: gradtx.MultiSteps(tx, 2).gradient_transformation(),
    "not_finite": lambda tx: gradtx.apply_if_finite(tx, 9),
}


@EACH
@pytest.mark.parametrize("hold", HOLDING)
def test_a_step_that_is_held_back_changes_nothing(wrap, hold):
    tx = wrap(HOLDING[hold](gradtx.adamw(0.1)))
    state = tx.init(PARAMS)
    # Rounding the sums again would move these parameters, which are not round(master), or lie just
    # between two numbers together with what was left over.
    if isinstance(state, gradtx.MasterWeightsState):
        state = state._replace(master=jax.tree.map(lambda m: m * 1.5, state.master))
    params = PARAMS | {"w": jnp.full((8, 4), 1 + 2**-7, jnp.bfloat16)}
    if isinstance(state, gradtx.KahanSumState):
        left = state.compensation | {"w": jnp.full((8, 4), 2**-8, jnp.bfloat16)}
        state = state._replace(compensation=left)
    gradient = gradients(0)
    if hold == "not_finite":
        gradient["b"] = jnp.full_like(gradient["b"], jnp.nan)
    updates, after = jax.jit(tx.update)(gradient, state, params)
    assert_same(own(after), own(state))
    assert_same(gradtx.apply_updates(params, updates), params)
    updates, after = jax.jit(tx.update)(gradients(1), after, params)
    moved = gradtx.apply_updates(params, updates)
    assert not np.array_equal(moved["w"], params["w"])
    if isinstance(state, gradtx.StochasticRoundingState):
        assert after.count == 1


def test_many_gradients_are_one_step_of_the_master():
    several = gradtx.MultiSteps(gradtx.adamw(0.1), 2).gradient_transformation()
    params, state = train(gradtx.with_master_weights(several))
    assert isinstance(state, gradtx.MasterWeightsState)
    expected = widened(PARAMS)
    inner = gradtx.adamw(0.1)
    inner_state = inner.init(expected)
    for first in (0, 2):
        pair = widened(gradients(first)), widened(gradients(first + 1))
        mean = jax.tree.map(lambda x, y: x + (y - x) / 2, *pair)
        updates, inner_state = inner.update(mean, inner_state, expected)
        expected = gradtx.apply_updates(expected, updates)
    np.testing.assert_allclose(state.master["w"], expected["w"], rtol=1e-5, atol=1e-6)
    assert_same(params["w"], state.master["w"].astype(jnp.bfloat16))


def test_sam_climbs_and_comes_back_as_in_float32():
    tx = gradtx.sam(gradtx.adam(0.1), gradtx.sgd(0.05), sync_period=3)
    for steps in (1, 2, 3, 6):
        _, state = train(gradtx.with_master_weights(tx), steps=range(steps))
        rounded = jax.tree.map(lambda p: p.astype(jnp.float32), PARAMS)
        expected, inner_state = rounded, tx.init(rounded)
        for step in range(steps):
            gradient = widened(gradients(step))
            updates, inner_state = jax.jit(tx.update)(gradient, inner_state, expected)
            expected = gradtx.apply_updates(expected, updates)
        np.testing.assert_allclose(state.master["b"], expected["b"], rtol=1e-6)


def test_evaluation_between_climbs_in_the_dtypes_of_the_parameters():
    tx = gradtx.with_kahan_sum(gradtx.sam(gradtx.adam(0.1), gradtx.sgd(0.05)))
    params, state = train(tx, steps=range(1))
    assert not np.array_equal(params["w"], PARAMS["w"])
    assert_same(gradtx.eval_params(state, params), PARAMS)


# Wrappers around them hand on float32


AROUND = {
    "MultiSteps": lambda tx: gradtx.MultiSteps(tx, 1).gradient_transformation(),
    "apply_if_finite": lambda tx: gradtx.apply_if_finite(tx, 9),
    "average_params": lambda tx: gradtx.average_params(tx, 0.9),
    "conditionally_mask": lambda tx: gradtx.conditionally_mask(tx, lambda step: step >= 0),
    "conditionally_transform": lambda tx: gradtx.conditionally_transform(tx, lambda t: t >= 0),
    "inject_hyperparams": lambda tx: gradtx.inject_hyperparams(
        lambda factor: gradtx.chain(gradtx.scale(factor), tx)
    )(factor=1.0),
    "masked": lambda tx: gradtx.masked(tx, gradtx.select("b|w|wide")),
    "named_chain": lambda tx: gradtx.named_chain(("tx", tx)),
    "optax.chain": optax.chain,
    "partition": lambda tx: gradtx.partition({"all": tx}, jax.tree.map(lambda _: "all", PARAMS)),
    "sam": lambda tx: gradtx.sam(tx, gradtx.sgd(0.05), sync_period=1),
    "with_metrics": gradtx.with_metrics,
}


@pytest.mark.parametrize("around", AROUND)
def test_wrappers_around_hand_on_what_leads_to_the_rounded_master(around):
    tx = gradtx.with_master_weights(gradtx.sgd(0.3))
    found, _ = train(AROUND[around](tx), steps=range(2))
    expected, _ = train(tx, steps=range(2))
    assert_same(found, expected)


# What is inside, and which leaves are left alone


@EACH
def test_other_leaves_are_left_to_what_is_inside(wrap):
    params = {
        "wide": jnp.ones(3),
        "complex": jnp.array([1 + 2j]),
        "missing": None,
        "masked": optax.MaskedNode(),
        "count": jnp.int32(3),
    }
    gradient = params | {
        "wide": jnp.full(3, 0.5, jnp.bfloat16),
        "count": np.zeros((), jax.dtypes.float0),
    }
    inner = gradtx.adam(0.1)
    found, state = wrap(inner).update(gradient, wrap(inner).init(params), params)
    expected, inner_state = inner.update(gradient, inner.init(params), params)
    assert found["count"] is gradient["count"]
    assert_same(found | {"count": None}, expected | {"count": None})
    assert_same(state.inner_state, inner_state)


@EACH
def test_what_is_inside_keeps_the_state_of_float32(wrap):
    tx = wrap(gradtx.adam(0.1))
    for state in (tx.init(PARAMS), train(tx)[1]):
        adam = optax.tree.get(state.inner_state, "mu"), optax.tree.get(state.inner_state, "nu")
        assert {leaf.dtype for leaf in jax.tree.leaves(adam)} == {jnp.dtype("float32")}


def test_a_gradient_that_is_missing_leaves_its_parameter():
    for wrap in (gradtx.with_master_weights, gradtx.with_kahan_sum):
        tx = wrap(gradtx.adam(0.1))
        _, state = train(tx)
        updates, after = tx.update(gradients(0) | {"w": None}, state, PARAMS)
        assert updates["w"] is None
        assert_same(own(after)[0]["w"], own(state)[0]["w"])


@EACH
def test_the_pair_of_lookahead(wrap):
    tx = wrap(gradtx.lookahead(gradtx.sgd(0.1), 2, 0.5))
    params = gradtx.LookaheadParams.init_synced(PARAMS)
    state = tx.init(params)
    for step in range(2):
        updates, state = tx.update(gradients(step), state, params)
        params = gradtx.apply_updates(params, updates)
    # Both weights have met, and are rounded alike unless at random.
    fast, slow = (np.asarray(tree["b"]).astype(np.float64) for tree in params)
    np.testing.assert_allclose(fast, slow, atol=2e-3 if "rng_key" in state._fields else 0)


@EACH
def test_one_call_and_the_train_step_do_the_same(wrap):
    tx = wrap(gradtx.adamw(0.1))
    expected, expected_state = train(tx, steps=range(2))
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(lambda g, s, p: gradtx.update_and_apply(tx, g, s, p))
    for number in range(2):
        params, state = step(gradients(number), state, params)
    assert_same(params, expected)
    assert_same(own(state), own(expected_state))


@EACH
def test_populations(wrap):
    tx = wrap(gradtx.adamw(0.1))
    several = jax.tree.map(lambda p: jnp.stack([p, p / 2]), PARAMS)
    gradient = jax.tree.map(lambda g: jnp.stack([g, g]), gradients(0))
    state = jax.vmap(tx.init)(several)
    updates, _ = jax.vmap(tx.update)(gradient, state, several)
    for number in range(2):
        one = jax.tree.map(lambda p, i=number: p[i], several)
        expected, _ = tx.update(gradients(0), tx.init(one), one)
        np.testing.assert_allclose(updates["w"][number], expected["w"], atol=1e-6)


# Readers


def test_bytes_that_explain_counts():
    params = {"w": jax.ShapeDtypeStruct((1000,), jnp.bfloat16)}
    tx = gradtx.adam(0.1)
    per_parameter = {
        name: round(gradtx.explain(wrap(tx), params).bytes_per_parameter, 1)
        for name, wrap in {"none": lambda tx: tx, **WRAPPERS}.items()
        if name != "master"
    }
    assert per_parameter == {"none": 8.0, "kahan": 10.0, "stochastic": 8.0}
    (row,) = gradtx.explain(gradtx.with_master_weights(tx), {"w": jnp.ones(10, jnp.float16)}).rows
    assert row.state_bytes == 120
    assert row.route == "with_master_weights(scale_by_adam -> scale_by_learning_rate)"
    assert str(row.learning_rate) == "0.1"


@EACH
def test_learning_rates_averages_and_metrics_are_found_inside(wrap):
    inside = gradtx.average_params(gradtx.adamw(lambda count: 0.1 / (1 + count)), 0.5)
    tx = gradtx.with_metrics(wrap(inside))
    params, state = train(tx, steps=range(2))
    np.testing.assert_allclose(gradtx.metrics(state)["learning_rate"], 0.05, rtol=1e-6)
    evaluated = gradtx.eval_params(state, params)
    assert_same(evaluated, gradtx.averaged_params(state, params))
    assert evaluated["w"].dtype == jnp.bfloat16
    assert gradtx.averaged_params(state)["w"].dtype == jnp.float32


def test_migration_starts_with_the_parameters_and_keeps_the_moments():
    params, state = train(gradtx.adamw(0.1))
    tx = gradtx.with_master_weights(gradtx.adamw(0.1))
    new, report = gradtx.migrate(state, tx, params)
    assert set(report.fresh) == {"master/b", "master/w"}
    assert report.dropped == ()
    assert_same(new.master["w"], params["w"].astype(jnp.float32))
    assert_same(optax.tree.get(new, "mu"), optax.tree.get(state, "mu"))
    again, report = gradtx.migrate(new, tx, params)
    assert report.fresh == {}
    assert_same(again, new)


@EACH
def test_a_run_that_orbax_saved_goes_on_to_the_same_bits(wrap):
    tx = wrap(gradtx.adamw(0.1))
    params, state = train(tx, steps=range(2))
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        path = Path(folder) / "run"
        checkpointer.save(path, {"params": params, "state": state})
        checkpointer.wait_until_finished()
        fresh = {"params": PARAMS, "state": tx.init(PARAMS)}
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh)
        restored = checkpointer.restore(path, target)
    expected = train(tx, params, state, steps=range(2, 5))
    found = train(tx, restored["params"], restored["state"], steps=range(2, 5))
    assert_same(found, expected)


# Devices


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_stochastic_rounding_is_the_same_on_every_layout(kind):
    tx = WRAPPERS["stochastic"](gradtx.adamw(1e-3))
    expected, _ = train(tx)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    layout = {"w": P("d", None), "b": P(), "wide": P()}
    layout = jax.tree.map(lambda spec: NamedSharding(mesh, spec), layout)
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, layout)
        state = jax.jit(tx.init)(params)
        for step in range(4):
            gradient = jax.device_put(gradients(step), layout)
            updates, state = jax.jit(tx.update)(gradient, state, params)
            assert updates["w"].sharding.is_equivalent_to(layout["w"], 2)
            params = jax.jit(gradtx.apply_updates)(params, updates)
        assert_same(params, expected)


# What is refused


@EACH
def test_parameters_that_are_missing_are_refused(wrap):
    tx = wrap(gradtx.sgd(0.1))
    with pytest.raises(ValueError, match=r"^with_\w+: needs the parameters; call update"):
        tx.update(gradients(0), tx.init(PARAMS))


@EACH
def test_what_is_no_transformation_is_refused(wrap):
    with pytest.raises(ValueError, match=r"^with_\w+: tx must be a gradient transformation"):
        wrap(0.1)


def test_a_key_that_is_none_is_refused():
    for key in (None, 0.5, jnp.ones(3)):
        with pytest.raises(ValueError, match=r"^with_stochastic_rounding: key must be a PRNG key"):
            gradtx.with_stochastic_rounding(gradtx.sgd(0.1), key)


@pytest.mark.parametrize("wrap", [gradtx.with_master_weights, gradtx.with_kahan_sum])
def test_the_state_of_a_run_in_float32_is_refused(wrap):
    tx = wrap(gradtx.sgd(0.1))
    state = tx.init(widened(PARAMS))
    with pytest.raises(ValueError, match=r"^with_\w+: the state's \w+ has none at 'b', .*\(3,\)"):
        tx.update(gradients(0), state, PARAMS)
