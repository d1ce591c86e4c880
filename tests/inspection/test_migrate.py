"""Continuing with an optimizer state in another optimizer."""

from dataclasses import replace
from typing import NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.kernels.scale import LEARNING_RATE
from gradtx.lift import lift

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": jnp.ones(2)}
PATHS = ("dense/bias", "dense/kernel", "head")
ADAM = {f"{slot}/{path}" for slot in ("mu", "nu") for path in PATHS} | {"count"}


def step(tx, state, params, number=0):
    """The parameters and the state after a step along random numbers."""
    key = jax.random.key(number)
    gradients = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        updates, state = tx.update(gradients, state, params)
    return gradtx.apply_updates(params, updates), state


def trained(tx, steps=3, params=PARAMS):
    state = tx.init(params)
    for number in range(steps):
        params, state = step(tx, state, params, number)
    return params, state


def prefixed(prefix, names):
    return {f"{prefix}/{name}" for name in names}


def values(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


SAME = {
    "itself": (lambda: gradtx.adam(0.1), lambda: gradtx.adam(0.1)),
    "from_optax": (lambda: optax.adam(0.1), lambda: gradtx.adam(0.1)),
    "nested_optax": (
        lambda: optax.chain(optax.clip(1e9), optax.chain(optax.adam(0.1))),
        lambda: gradtx.adam(0.1),
    ),
    "clip_in_front": (
        lambda: gradtx.adam(0.1),
        lambda: gradtx.chain(gradtx.clip(1e9), gradtx.adam(0.1)),
    ),
    "to_adamw": (lambda: gradtx.adam(0.1), lambda: gradtx.adamw(0.1, weight_decay=0.0)),
    "masked_decay": (
        lambda: gradtx.adam(0.1),
        lambda: gradtx.adamw(0.1, weight_decay=0.0, decay="matrices"),
    ),
    "to_groups": (lambda: gradtx.adam(0.1), lambda: groups(gradtx.adam(0.1), gradtx.adam(0.1))),
    "from_groups": (lambda: groups(gradtx.adam(0.1), gradtx.adam(0.1)), lambda: gradtx.adam(0.1)),
    "other_groups": (
        lambda: groups(gradtx.adam(0.1), gradtx.adam(0.1)),
        lambda: gradtx.partition(
            {"body": gradtx.adam(0.1), "head": gradtx.adam(0.1)},
            gradtx.select.groups({"head": "head"}, rest="body"),
        ),
    ),
    "in_a_wrapper": (
        lambda: gradtx.adam(0.1),
        lambda: gradtx.apply_if_finite(gradtx.adam(0.1), 3),
    ),
    "schedules_in_groups": (
        lambda: gradtx.adam(halving),
        lambda: groups(gradtx.adam(halving), gradtx.adam(halving)),
    ),
    "momentum": (
        lambda: gradtx.sgd(0.1, momentum=0.9),
        lambda: gradtx.named_chain(("sum", gradtx.trace(0.9)), ("rate", gradtx.scale(-0.1))),
    ),
}


def halving(count):
    return 0.1 * 0.5**count


def groups(matrices, rest):
    return gradtx.partition(
        {"matrices": matrices, "rest": rest},
        gradtx.select.groups({"matrices": gradtx.select.matrices}, rest="rest"),
    )


@pytest.mark.parametrize("name", SAME)
def test_the_run_goes_on_as_if_nothing_had_happened(name):
    with jax.enable_x64(True):
        old, new = (make() for make in SAME[name])
        params, state = trained(old, params=jax.tree.map(lambda p: p.astype(float), PARAMS))
        migrated, report = gradtx.migrate(state, new, params)
        expected, _ = step(old, state, params, 3)
        got, _ = step(new, migrated, params, 3)
        for a, b in zip(values(expected), values(got), strict=True):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_allclose(b, a, rtol=1e-14)
    assert not [path for path in report.fresh if "mu" in path or "nu" in path or "trace" in path]


def test_report_of_an_added_average():
    params, state = trained(gradtx.adam(0.1))
    new = gradtx.chain(gradtx.adamw(0.1), gradtx.ema(0.9))
    migrated, report = gradtx.migrate(state, new, params)
    assert report.carried == {f"0/0/{name}": f"0/{name}" for name in ADAM}
    assert set(report.fresh) == prefixed("1", {"count", *prefixed("ema", PATHS)})
    assert report.dropped == ()
    assert str(report).splitlines()[:3] == [
        "carried: 7",
        "    7 from / to /0",
        "started afresh: 4",
    ]
    assert jax.tree.structure(migrated) == jax.tree.structure(new.init(params))


def test_report_of_many_leaves_is_short():
    layers = {f"layer_{i}": np.zeros(2, np.float32) for i in range(1_000)}
    others = {"".join(chr(97 + int(c)) for c in str(i)): np.zeros(3, np.float32) for i in range(50)}
    old = optax.TraceState(trace=layers)
    _, report = gradtx.migrate(old, gradtx.ema(0.9, debias=False), layers | others)
    text = "not in the old state"
    assert str(report).splitlines() == [
        "carried: 0",
        "started afresh: 1051",
        f"    count: belongs to ema, which starts afresh: {text}",
        *(f"    ema/{name}: {text}" for name in sorted(others)[:9]),
        "    and 1,041 more",
        "dropped: 1000",
        "    trace/layer_[0-999]",
    ]
    assert repr(report) == str(report)
    assert len(report.fresh) == 1_051


def test_renamed_and_resized_layers():
    params, state = trained(gradtx.adam(0.1))
    new_params = {"encoder": params["dense"], "head": jnp.ones(5), "dense": {"bias": jnp.ones(3)}}
    migrated, report = gradtx.migrate(state, gradtx.adam(0.1), new_params)
    assert set(report.carried) == {"0/count", "0/mu/dense/bias", "0/nu/dense/bias"}
    assert report.fresh["0/mu/head"] == "real of shape [5], was real of shape [2]"
    assert report.fresh["0/mu/encoder/kernel"] == "not in the old state"
    assert set(report.dropped) == {
        f"0/{slot}/{path}" for slot in ("mu", "nu") for path in ("dense/kernel", "head")
    }
    assert int(migrated[0].count) == 3


def test_dtypes_are_those_of_the_new_state():
    params, state = trained(gradtx.adam(0.1))
    migrated, report = gradtx.migrate(state, gradtx.adam(0.1, mu_dtype=jnp.bfloat16), params)
    assert migrated[0].mu["head"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(migrated[0].mu["head"], state[0].mu["head"].astype(jnp.bfloat16))
    assert report.fresh == {}


def test_moments_of_one_parameter_go_together():
    params, state = trained(gradtx.lion(0.1))
    migrated, report = gradtx.migrate(state, gradtx.adam(0.1), params)
    # Lion has no second moment; with its first one and its count Adam's steps would be huge.
    assert report.carried == {}
    assert report.fresh["0/mu/head"] == "starts afresh with nu"
    why = "belongs to nu, which starts afresh: not in the old state"
    assert report.fresh["0/count"] == why
    assert int(migrated[0].count) == 0


def two(first, second):
    return gradtx.chain(gradtx.trace(first), gradtx.trace(second))


def test_equally_many_are_paired_in_order():
    params, state = trained(two(0.9, 0.5))
    new = gradtx.chain(gradtx.clip(1.0), gradtx.masked(two(0.9, 0.5), True))
    migrated, report = gradtx.migrate(state, new, params)
    for a, b in zip(values(state), values(migrated), strict=True):
        np.testing.assert_array_equal(a, b)
    assert report.carried["1/inner_state/0/trace/head"] == "0/trace/head"


def test_names_come_before_order():
    def named(*names):
        return gradtx.named_chain(*((name, gradtx.trace(0.9)) for name in names))

    params, state = trained(named("slow", "fast"))
    migrated, report = gradtx.migrate(state, named("fast", "slow"), params)
    assert report.carried["fast/trace/head"] == "fast/trace/head"
    np.testing.assert_array_equal(migrated["fast"].trace["head"], state["fast"].trace["head"])
    _, report = gradtx.migrate(state, named("fast", "new"), params)
    assert report.carried["fast/trace/head"] == "fast/trace/head"
    assert report.carried["new/trace/head"] == "slow/trace/head"


AMBIGUOUS = {
    "fewer": (two(0.9, 0.5), gradtx.trace(0.9)),
    "more": (gradtx.trace(0.9), two(0.9, 0.5)),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_arrays_start_afresh_and_are_reported(name):
    old, new = AMBIGUOUS[name]
    params, state = trained(old)
    migrated, report = gradtx.migrate(state, new, params)
    assert report.carried == {}
    assert all(reason.startswith("ambiguous") for reason in report.fresh.values())
    assert len(report.dropped) == len(jax.tree.leaves(state))
    assert not any(value.any() for value in values(migrated))


def test_groups_with_different_counts_start_afresh():
    old = groups(gradtx.adam(0.1), gradtx.adam(0.1))
    params, state = trained(old)
    young = gradtx.adam(0.1).init(PARAMS)[0]
    inner = state.inner_states["rest"].inner_state
    state.inner_states["rest"] = optax.MaskedState((inner[0]._replace(count=young.count), inner[1]))
    migrated, report = gradtx.migrate(state, gradtx.adam(0.1), params)
    assert report.carried == {}
    assert set(report.fresh) == prefixed("0", ADAM)
    assert "differ" in report.fresh["0/count"]
    assert not any(value.any() for value in values(migrated))


def test_counts_of_other_classes_are_not_taken():
    # The count of Adam is not that of a schedule, although both are called count.
    params, state = trained(gradtx.adam(0.1))
    _, report = gradtx.migrate(state, gradtx.sgd(halving), params)
    assert set(report.fresh) == {"1/count"}
    assert "a schedule's count: the schedule starts again at step 0" in str(report)


PLACES_OF_A_SCHEDULE = {
    "plain": lambda: gradtx.adamw(halving),
    "optax_injected": lambda: optax.inject_hyperparams(optax.adamw)(halving),
    "kept": lambda: gradtx.with_hyperparams(gradtx.adamw, halving),
    "decay_too": lambda: gradtx.adamw(halving, weight_decay=halving),
    "groups": lambda: groups(gradtx.adamw(halving), gradtx.adamw(halving)),
}


@pytest.mark.parametrize("old", PLACES_OF_A_SCHEDULE)
@pytest.mark.parametrize("new", PLACES_OF_A_SCHEDULE)
def test_a_schedule_goes_on_wherever_its_count_is(old, new):
    state = PLACES_OF_A_SCHEDULE[old]().init(PARAMS)
    state = jax.tree.map(lambda x: x + 7 if x.dtype == jnp.int32 else x, state)
    migrated, report = gradtx.migrate(state, PLACES_OF_A_SCHEDULE[new](), PARAMS)
    counts = [leaf for leaf in jax.tree.leaves(migrated) if leaf.dtype == jnp.int32]
    assert [int(count) for count in counts] == [7] * len(counts)
    assert len(counts) >= 2
    assert not [path for path in report.fresh if path.endswith("count")]


def test_a_new_schedule_goes_on_with_the_step_of_the_hyperparameters():
    state = gradtx.inject_hyperparams(gradtx.sgd)(0.1).init(PARAMS)
    state = state._replace(count=jnp.int32(7))
    migrated, _ = gradtx.migrate(state, gradtx.sgd(halving), PARAMS)
    assert int(migrated[1].count) == 7


def test_schedules_whose_counts_differ_start_again():
    state = groups(gradtx.sgd(halving), gradtx.sgd(halving)).init(PARAMS)
    rest = state.inner_states["rest"].inner_state
    changed = rest[1]._replace(count=jnp.int32(7))
    state.inner_states["rest"] = optax.MaskedState((rest[0], changed))
    new = gradtx.with_hyperparams(gradtx.sgd, halving)
    migrated, report = gradtx.migrate(state, new, PARAMS)
    reason = report.fresh["hyperparams_states/learning_rate/count"]
    assert reason.startswith("a schedule's count: the schedule starts again at step 0; ")
    assert reason.endswith("differ")
    assert int(migrated.count) == 0


def test_keys_of_plain_dictionaries_are_field_names():
    params, state = trained(gradtx.adamw(halving))
    restored = flax.serialization.to_state_dict(state)
    migrated, report = gradtx.migrate(restored, gradtx.adamw(halving), params)
    for a, b in zip(values(state), values(migrated), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (report.fresh, report.dropped) == ({}, ())
    _, report = gradtx.migrate({"momentum": state[0].mu}, gradtx.trace(0.9), params)
    why = "not in the old state, which lacks the classes of states"
    assert report.fresh["trace/head"] == why


def test_hyperparameters_are_those_of_the_new_transformation():
    params, state = trained(gradtx.inject_hyperparams(gradtx.adam)(0.1))
    migrated, report = gradtx.migrate(state, gradtx.inject_hyperparams(gradtx.adam)(0.5), params)
    assert float(migrated.hyperparams["learning_rate"]) == 0.5
    assert report.fresh["hyperparams/learning_rate"] == "set by the new optimizer"
    assert "inner_state/0/mu/head" in report.carried
    assert int(migrated.count) == 3


def test_donated_states_do_not_share_memory():
    params, state = trained(gradtx.adam(0.1))
    expected = values(state)
    migrated, _ = gradtx.migrate(state, gradtx.adam(0.1), params)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    for a, b in zip(expected, values(migrated), strict=True):
        np.testing.assert_array_equal(a, b)
    twice, _ = gradtx.migrate(migrated, groups(gradtx.adam(0.1), gradtx.adam(0.1)), params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(twice)]
    assert len(pointers) == len(set(pointers))


def test_sharded_and_restored_arrays():
    mesh = jax.make_mesh((2,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.ones((4, 2)), sharding)}
    state = gradtx.adam(0.1).init(params)
    migrated, _ = gradtx.migrate(state, gradtx.adamw(0.1), params)
    assert migrated[0].mu["w"].sharding.is_equivalent_to(state[0].mu["w"].sharding, 2)
    restored = jax.tree.map(np.asarray, state)
    migrated, report = gradtx.migrate(restored, gradtx.adamw(0.1), params)
    assert len(report.carried) == 3
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(migrated))


def test_one_array_and_records_among_the_parameters():
    for params in (jnp.ones(3), gradtx.LookaheadParams(jnp.ones(3), {"mu": jnp.ones(3)})):
        state = gradtx.adam(0.1).init(params)
        _, report = gradtx.migrate(state, gradtx.chain(gradtx.clip(1.0), gradtx.adam(0.1)), params)
        assert report.fresh == {}
        assert report.dropped == ()


def test_wrong_transformation_is_refused():
    with pytest.raises(ValueError, match="new_tx must be a gradient transformation"):
        gradtx.migrate((), gradtx.adam, PARAMS)


ADAMW = gradtx.adamw(0.1)
MISTAKEN = {
    "transformation_for_state": (
        (ADAMW, ADAMW, PARAMS),
        "state must be an optimizer state, got a transformation",
    ),
    "parameters_for_transformation": (
        (ADAMW.init(PARAMS), PARAMS, ADAMW),
        "new_tx must be a gradient transformation, got a dict",
    ),
    "transformation_for_parameters": (
        (ADAMW.init(PARAMS), ADAMW, ADAMW),
        "params must be the parameters, got a transformation",
    ),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_messages_about_swapped_arguments_are_short(name):
    arguments, message = MISTAKEN[name]
    with pytest.raises(ValueError, match=f"^migrate: {message}$"):
        gradtx.migrate(*arguments)


class OwnCount(NamedTuple):
    """The count of a schedule, under an unknown name."""

    count: jax.Array


class OwnScalar(NamedTuple):
    """A number for the whole tree that has the name of an argument elsewhere."""

    b1: jax.Array


def test_states_of_any_name_are_carried_by_what_they_hold():
    own = lift(
        replace(LEARNING_RATE, scheduled_state=OwnCount), learning_rate=halving, flip_sign=True
    )
    _, state = trained(gradtx.sgd(halving))
    migrated, report = gradtx.migrate(state, own, PARAMS)
    assert report.carried == {"count": "1/count"}
    assert migrated == OwnCount(3)
    tx = optax.GradientTransformation(
        lambda params: OwnScalar(jnp.zeros([])), lambda g, state, params=None: (g, state)
    )
    migrated, _ = gradtx.migrate(OwnScalar(jnp.float32(0.5)), tx, PARAMS)
    assert migrated.b1 == 0.5
