"""What `update` and the factories are given: refused only if it would be read wrongly."""

import copy
import dataclasses
import inspect
from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 0.3]]), "b": jnp.array([0.5, -0.25])}
GRADS = {"w": jnp.array([[3.0, -4.0], [12.0, 0.5]]), "b": jnp.array([-1.0, 2.0])}


def assert_trees_equal(found, expected, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, expected)


# Pieces that do not read their state.
STATELESS = {
    "clip": lambda lib: lib.clip(1.0),
    "clip_by_global_norm": lambda lib: lib.clip_by_global_norm(1.0),
    "clip_by_block_rms": lambda lib: lib.clip_by_block_rms(1.0),
    "adaptive_grad_clip": lambda lib: lib.adaptive_grad_clip(0.1),
    "zero_nans": lambda lib: lib.zero_nans(),
    "identity": lambda lib: lib.identity(),
    "set_to_zero": lambda lib: lib.set_to_zero(),
    "scale": lambda lib: lib.scale(-0.5),
    "scale_by_learning_rate": lambda lib: lib.scale_by_learning_rate(0.5),
    "scale_by_sign": lambda lib: lib.scale_by_sign(),
    "add_decayed_weights": lambda lib: lib.add_decayed_weights(0.5),
    "stateless": lambda lib: lib.stateless(lambda u, p: jax.tree.map(jnp.sign, u)),
}
STATES = {
    "none": lambda: None,
    "tuple": lambda: (),
    "empty": lambda: optax.EmptyState(),
    "another": lambda: gradtx.adam(0.1).init(PARAMS),
    "dict": lambda: {"mu": jnp.ones(2)},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", STATELESS)
def test_a_piece_that_reads_nothing_of_its_state_accepts_any(name, state):
    given = STATES[state]()
    expected, _ = STATELESS[name](optax).update(GRADS, optax.EmptyState(), PARAMS)
    updates, new = STATELESS[name](gradtx).update(GRADS, given, PARAMS)
    assert_trees_equal(updates, expected)
    if name == "zero_nans":
        assert isinstance(new, optax.ZeroNansState)
    else:
        assert new is given


def test_zero_nans_reports_whatever_state_it_is_given():
    _, state = gradtx.zero_nans().update({"a": jnp.array([jnp.nan]), "b": jnp.ones(1)}, None)
    assert state.found_nan == {"a": True, "b": False}
    updates, state = gradtx.zero_nans().update({"a": 3}, None)
    assert (updates, state.found_nan) == ({"a": 3.0}, {"a": False})
    updates, _ = gradtx.zero_nans().update({"n": 3}, None, {"n": jnp.int32(7)})
    assert updates == {"n": 0}


def test_an_empty_place_of_a_chain_may_hold_anything_that_is_empty():
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.trace(0.5), gradtx.scale(-1.0))
    expected, _ = tx.update(GRADS, tx.init(PARAMS))
    trace = gradtx.trace(0.5).init(PARAMS)
    for empty in (None, (), [], {}, optax.EmptyState()):
        updates, state = tx.update(GRADS, (empty, trace, empty))
        assert_trees_equal(updates, expected)
        assert jax.tree.structure(state) == jax.tree.structure((empty, trace, empty))


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda: gradtx.chain(gradtx.clip(1.0), gradtx.trace(0.9)), "swapped"),
        (lambda: gradtx.chain(gradtx.identity(), gradtx.trace(0.9)), "swapped"),
        (lambda: gradtx.chain(gradtx.zero_nans(), gradtx.trace(0.9)), "swapped"),
        (lambda: gradtx.chain(gradtx.trace(0.9)), "longer"),
        (lambda: gradtx.chain(gradtx.trace(0.9), gradtx.clip(1.0), gradtx.clip(1.0)), "shorter"),
        (lambda: gradtx.named_chain(("a", gradtx.clip(1.0)), ("b", gradtx.trace(0.9))), "named"),
    ],
    ids=["clip", "identity", "zero_nans", "longer", "shorter", "named"],
)
def test_a_chain_does_not_lose_a_state_unseen(make, state):
    trace = gradtx.trace(0.9).init(PARAMS)
    given: Any = (trace, optax.EmptyState())
    if state == "named":
        given = {"a": trace, "b": trace}
    with pytest.raises(ValueError, match=r"chain: (expected|place 0|'a')"):
        make().update(GRADS, given)


# Where -learning_rate on g is learning_rate on -g: a step of ascent.
ASCENDING = [
    "acprop adabelief adadelta adafactor adagrad adam adamax adamaxw adamini adamw adan ademamix",
    "adopt amsgrad cocob dadapt_adamw dog dowg fromage galore lamb lars lion mars muon nadam",
    "nadamw normuon novograd optimistic_adam_v2 optimistic_gradient_descent prodigy radam",
    "rmsprop sgd shampoo sign_sgd signum simplified_ademamix sm3 soap yogi",
]


@pytest.mark.parametrize("name", " ".join(ASCENDING).split())
def test_a_negative_learning_rate_ascends(name):
    factory = getattr(gradtx, name)
    decays = "weight_decay" in inspect.signature(factory).parameters
    options = {"weight_decay": 0.0} if decays else {}

    def run(rate, sign):
        tx, params = factory(rate, **options), PARAMS
        state = tx.init(params)
        for _ in range(2):
            gradients = jax.tree.map(lambda g: sign * g, GRADS)
            updates, state = jax.jit(tx.update)(gradients, state, params)
            params = gradtx.apply_updates(params, updates)
        return params

    assert_trees_equal(run(-0.1, 1.0), run(0.1, -1.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["rprop", "madgrad", "momo", "schedule_free_sgd"])
def test_a_learning_rate_that_is_not_a_factor_of_the_update_stays_positive(name):
    with pytest.raises(ValueError, match="learning_rate must be"):
        getattr(gradtx, name)(-0.1)


def test_multipliers_may_be_negative_and_a_trace_may_be_a_running_sum():
    for make in (
        lambda lib: lib.scale(-2.0),
        lambda lib: lib.add_decayed_weights(-0.5),
        lambda lib: lib.trace(1.0),
        lambda lib: lib.trace(-0.5, nesterov=True),
        lambda lib: lib.sgd(-0.1, momentum=1.0),
    ):
        ours, theirs = make(gradtx), make(optax)
        state, their_state = ours.init(PARAMS), theirs.init(PARAMS)
        for _ in range(3):
            updates, state = ours.update(GRADS, state, PARAMS)
            expected, their_state = theirs.update(GRADS, their_state, PARAMS)
        assert_trees_equal(updates, expected)
    updates, _ = gradtx.multiply_learning_rate({"w": -2.0}).update(
        GRADS, gradtx.multiply_learning_rate({"w": -2.0}).init(PARAMS)
    )
    assert_trees_equal(updates, {"w": -2 * GRADS["w"], "b": GRADS["b"]})


@pytest.mark.parametrize(
    "name", ["adamw", "lion", "lamb", "adadelta", "adan", "muon", "soap", "dog"]
)
def test_the_decay_of_a_named_optimizer_stays_positive_and_the_message_names_it(name):
    arguments = {} if name == "dog" else {"learning_rate": 0.1}
    with pytest.raises(ValueError, match=rf"^{name}: weight_decay must be >= 0.*got -0.5"):
        getattr(gradtx, name)(**arguments, weight_decay=-0.5)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@pytest.mark.parametrize("make", [jnp.full, np.full], ids=["jax", "numpy"])
def test_an_array_of_one_element_is_the_number_in_it(make, shape):
    def one(value):
        return make(shape, value)

    for given, plain in (
        (gradtx.adam(one(0.1), b1=one(0.8)), gradtx.adam(0.1, b1=0.8)),
        (gradtx.sgd(lambda count: one(0.1)), gradtx.sgd(0.1)),
        (gradtx.clip_by_global_norm(one(1.0)), gradtx.clip_by_global_norm(1.0)),
        (gradtx.ema(one(0.5)), gradtx.ema(0.5)),
        (gradtx.lookahead(gradtx.sgd(0.1), one(1), one(0.5)), None),
        (gradtx.average_params(gradtx.sgd(0.1), one(0.5)), None),
        (gradtx.MultiSteps(gradtx.sgd(0.1), one(1)).gradient_transformation(), gradtx.sgd(0.1)),
        (gradtx.inject_hyperparams(gradtx.sgd)(one(0.1)), gradtx.sgd(0.1)),
        (gradtx.apply_if_finite(gradtx.sgd(0.1), one(2)), gradtx.sgd(0.1)),
        (gradtx.simple_moving_average(one(2)), gradtx.simple_moving_average(2)),
        (gradtx.apply_every(one(1)), gradtx.apply_every(1)),
        (gradtx.polyak_sgd(one(0.5)), None),
        (gradtx.mechanize(gradtx.sgd(0.1), s_init=one(1e-6)), None),
        (gradtx.schedule_free(gradtx.sgd(0.1), one(0.1), b1=one(0.8)), None),
        (gradtx.reduce_on_plateau(one(0.5), patience=one(2)), gradtx.identity()),
        (gradtx.soap(0.1, precondition_frequency=one(1)), None),
    ):
        params: Any = PARAMS
        if isinstance(given.init(PARAMS), optax.LookaheadState):
            params = gradtx.LookaheadParams.init_synced(PARAMS)
        state = given.init(params)
        updates, new = given.update(GRADS, state, params, value=1.0)
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
        if plain is not None:
            assert_trees_equal(updates, plain.update(GRADS, plain.init(PARAMS), PARAMS)[0])


def test_a_longer_array_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"learning_rate must be a scalar, got shape \(2,\)"):
        gradtx.sgd(jnp.ones(2))
    tx = gradtx.sgd(lambda count: jnp.ones(2))
    with pytest.raises(ValueError, match=r"schedule's value must be a scalar, got shape \(2,\)"):
        tx.update(GRADS, tx.init(PARAMS))


class WithMore(NamedTuple):
    """A state of another library: Adam's fields, in another order, and one more."""

    nu: Any
    extra: Any
    mu: Any
    count: Any


def test_a_state_is_read_by_field_name():
    tx = gradtx.scale_by_adam()
    state = tx.init(PARAMS)
    expected, after = tx.update(GRADS, state)
    Record = dataclasses.make_dataclass("Record", ["count", "mu", "nu", "note"])
    more = WithMore(state.nu, "kept", state.mu, state.count)
    record = Record(state.count, state.mu, state.nu, "kept")
    plain = SimpleNamespace(count=state.count, mu=state.mu, nu=state.nu)
    for given, note in ((more, "extra"), (record, "note"), (plain, None)):
        updates, new = tx.update(GRADS, given)
        assert_trees_equal(updates, expected)
        assert_trees_equal([new.count, new.mu, new.nu], [after.count, after.mu, after.nu])
        assert note is None or getattr(new, note) == "kept"
        assert note is None or type(new) is type(given)


def test_a_named_chain_takes_a_plain_dictionary_in_any_order():
    tx = gradtx.named_chain(("z", gradtx.trace(0.5)), ("a", gradtx.scale(-1.0)))
    state = tx.init(PARAMS)
    expected, _ = tx.update(GRADS, state)
    for container in (dict, OrderedDict):
        given = container([("a", state["a"]), ("z", state["z"])])
        updates, new = jax.jit(tx.update)(GRADS, given)
        assert_trees_equal(updates, expected)
        assert type(new) is container
        assert list(new) == ["a", "z"]


MADE = {
    "lifted": lambda: gradtx.scale_by_adam(),
    "chain": lambda: gradtx.adamw(0.1),
    "partition": lambda: gradtx.muon(0.1),
    "masked": lambda: gradtx.adamw(0.1, mask={"w": True, "b": False}),
    "multi_steps": lambda: gradtx.MultiSteps(gradtx.sgd(0.1), 2).gradient_transformation(),
    "injected": lambda: gradtx.inject_hyperparams(gradtx.sgd)(0.1),
    "apply_if_finite": lambda: gradtx.apply_if_finite(gradtx.sgd(0.1), 2),
    "monitor": lambda: gradtx.monitor({"norm": gradtx.global_norm}),
}


@pytest.mark.parametrize("name", MADE)
def test_a_copy_of_a_transformation_is_as_good_as_itself(name):
    tx = MADE[name]()
    again = copy.deepcopy(tx)
    assert again == tx
    assert hash(again) == hash(tx) == hash(tx)
    assert isinstance(tx.update.__name__, str)
    traces = []

    def counted(tx, gradients, state, params):
        traces.append(1)
        return tx.update(gradients, state, params)

    compiled = jax.jit(counted, static_argnums=0)
    for own in (tx, again, copy.copy(tx)):
        compiled(own, GRADS, tx.init(PARAMS), PARAMS)
    assert len(traces) == 1


def plain(state):
    """A state from a checkpoint that was restored without its classes."""
    if hasattr(state, "_fields"):
        return {name: plain(getattr(state, name)) for name in state._fields}
    if isinstance(state, dict):
        return {key: plain(part) for key, part in state.items()}
    return [plain(part) for part in state] if isinstance(state, tuple | list) else state


def numbers_of(state):
    """The leaves of a state, of a PRNG key its data."""
    return [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(state)
    ]


NESTED = {
    "partition": lambda: gradtx.partition(
        {"a": gradtx.adam(0.1), "b": gradtx.sgd(0.1, momentum=0.9)}, {"w": "a", "b": "b"}
    ),
    "masked": lambda: gradtx.masked(gradtx.trace(0.9), {"w": True, "b": False}),
    "muon": lambda: gradtx.muon(0.1),
    "MultiSteps": lambda: gradtx.MultiSteps(gradtx.adam(0.1), 2),
    "apply_if_finite": lambda: gradtx.apply_if_finite(gradtx.adam(0.1), 2),
    "conditionally_mask": lambda: gradtx.conditionally_mask(gradtx.adam(0.1), lambda n: n > 0),
    "schedule_free": lambda: gradtx.schedule_free(gradtx.sgd(0.1), 0.1),
    "mechanize": lambda: gradtx.mechanize(gradtx.sgd(0.1)),
    "sam": lambda: gradtx.sam(gradtx.sgd(0.1), gradtx.sgd(0.1)),
    "average_params": lambda: gradtx.average_params(gradtx.sgd(0.1), 0.9),
    "with_metrics": lambda: gradtx.with_metrics(gradtx.sgd(0.1)),
    "inject_hyperparams": lambda: gradtx.inject_hyperparams(gradtx.adam)(0.1),
    "reduce_on_plateau": lambda: gradtx.reduce_on_plateau(),
    "snapshot": lambda: gradtx.snapshot("norm", gradtx.global_norm),
    "scale_by_galore": lambda: gradtx.scale_by_galore(1),
    "dpsgd": lambda: gradtx.dpsgd(0.1, 1.0, 1.0, 0, momentum=0.9),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_state_without_its_classes_is_refused_and_migrated(name):
    tx = NESTED[name]()
    batched = name == "dpsgd"
    gradients = jax.tree.map(lambda g: g[None], GRADS) if batched else GRADS
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(gradients, state, PARAMS, **({} if batched else {"value": 1.0}))
    with pytest.raises(ValueError, match=r"expected a state with the fields .*gradtx\.migrate"):
        tx.update(gradients, plain(state), PARAMS, value=1.0)
    migrated, _ = gradtx.migrate(plain(state), tx, PARAMS)
    found, _ = tx.update(gradients, migrated, PARAMS, value=1.0)
    expected, _ = tx.update(gradients, state, PARAMS, value=1.0)
    assert_trees_equal(found, expected)
    assert_trees_equal(*(numbers_of(tree) for tree in (migrated, state)))


def test_a_missing_state_is_asked_for():
    for tx in (gradtx.adam(0.1), gradtx.scale_by_adam(), gradtx.muon(0.1)):
        with pytest.raises(ValueError, match="needs a state, got None; make one with init"):
            tx.update(GRADS, None, PARAMS)


def with_more(state):
    """The same state in a class of another library, which has one field more."""
    more = namedtuple("More", (*state._fields, "more"))
    return more(*state, "kept")


@pytest.mark.parametrize(
    "make",
    [
        lambda: gradtx.apply_every(2),
        lambda: gradtx.reduce_on_plateau(patience=1),
        lambda: gradtx.scale_by_newton(damping=lambda count: 1.0),
        lambda: gradtx.MultiSteps(gradtx.sgd(0.1), 2),
        lambda: gradtx.schedule_free(gradtx.sgd(0.1), 0.1),
        lambda: gradtx.scale_by_galore(1),
    ],
    ids=["apply_every", "reduce_on_plateau", "newton", "MultiSteps", "schedule_free", "galore"],
)
def test_a_wrapper_takes_a_state_with_a_field_more(make):
    tx = make()

    def loss(params):
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    extra = {"value": 1.0, "value_fn": loss}
    state = tx.init(PARAMS)
    expected, _ = tx.update(GRADS, state, PARAMS, **extra)
    updates, _ = tx.update(GRADS, with_more(state), PARAMS, **extra)
    assert_trees_equal(updates, expected)
