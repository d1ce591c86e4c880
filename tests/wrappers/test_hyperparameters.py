"""Hyperparameters in the state: the same run as with constants, compiled once for all values."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import assert_close, check_refused, inputs, wrong_arguments

STEPS = 16
HALVED = gradtx.exponential_decay(0.5, 4, 0.5)


def train(tx, state=None, steps=range(STEPS)):
    """Parameters and state after each of these steps, each with its own gradient."""
    gradients, params = inputs(24)
    params = jax.tree.map(jnp.asarray, params[0])
    state = tx.init(params) if state is None else state
    update = jax.jit(tx.update)
    path = []
    for step in steps:
        updates, state = update(jax.tree.map(jnp.asarray, gradients[step]), state, params)
        params = gradtx.apply_updates(params, updates)
        path.append((params, state))
    assert update._cache_size() == 1
    return path


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def falling(count):
    return 0.1 / (1 + count)


# Injected values and arrays are arguments of the same compiled step, and so is what is not given
# to `with_hyperparams` a constant of it.
SAME = {
    "injected numbers": (
        gradtx.inject_hyperparams(gradtx.adamw)(0.1, weight_decay=0.01),
        gradtx.adamw(
            *map(jnp.float32, (0.1, 0.9, 0.999, 1e-8, 0.0)), weight_decay=jnp.float32(0.01)
        ),
    ),
    "given number": (gradtx.with_hyperparams(gradtx.adamw, 0.1), gradtx.adamw(0.1)),
    "schedules": (
        gradtx.with_hyperparams(gradtx.sgd, falling, momentum=HALVED),
        gradtx.sgd(falling, momentum=HALVED),
    ),
    "mask": (
        gradtx.with_hyperparams(gradtx.adamw, 0.1, mask=gradtx.select("matrix")),
        gradtx.adamw(0.1, mask=gradtx.select("matrix")),
    ),
    "option": (
        gradtx.inject_hyperparams(gradtx.sgd)(0.1, momentum=0.9, nesterov=True),
        gradtx.sgd(jnp.float32(0.1), jnp.float32(0.9), nesterov=True),
    ),
    "optax": (
        gradtx.with_hyperparams(optax.sgd, 0.1, momentum=0.9),
        optax.sgd(jnp.float32(0.1), jnp.float32(0.9)),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_run_is_that_with_constants_bit_by_bit(name):
    injected, plain = SAME[name]
    for (params, _), (expected, _) in zip(train(injected), train(plain), strict=True):
        assert_equal(params, expected)


def test_arrays_differ_from_folded_constants_by_their_rounding():
    # The compiler sees 1 - 0.999 as a constant of double precision, and rounds it once.
    tx = gradtx.inject_hyperparams(gradtx.adamw)(0.1)
    for (params, _), (expected, _) in zip(train(tx), train(gradtx.adamw(0.1)), strict=True):
        assert_close(*jax.tree.map(np.float64, (params, expected)), 2e-6, "params")


def test_double_precision():
    with jax.enable_x64(True):
        gradients, [params, *_] = inputs(24)
        injected = gradtx.inject_hyperparams(gradtx.adamw)(0.1, b1=lambda count: np.float64(0.9))
        plain = gradtx.adamw(0.1)
        states = injected.init(params), plain.init(params)
        for name in ("learning_rate", "b1"):
            assert states[0].hyperparams[name].dtype == jnp.float64
        for g in gradients[:4]:
            one, new = injected.update(g, states[0], params)
            two, other = plain.update(g, states[1], params)
            states = new, other
            assert_close(*jax.tree.map(np.asarray, (one, two)), 1e-12, "updates")
        single = gradtx.inject_hyperparams(gradtx.sgd)(np.float32(0.1)).init(params)
        assert single.hyperparams["learning_rate"].dtype == jnp.float32


@pytest.mark.parametrize("factory", [gradtx.scale, optax.scale], ids=["gradtx", "optax"])
def test_schedules_count_from_0(factory):
    tx = gradtx.inject_hyperparams(factory)(lambda count: 10.0 + count)
    state = tx.init(jnp.ones(1))
    assert state.hyperparams["step_size"] == 10
    for step in range(3):
        updates, state = tx.update(jnp.ones(1), state)
        assert updates == 10 + step
        # The state shows what was used in the latest step.
        assert state.hyperparams["step_size"] == 10 + step
    assert state.count == 3


def test_a_value_changed_by_hand_takes_effect_and_nothing_is_compiled_again():
    tx = gradtx.inject_hyperparams(gradtx.sgd)(0.5)
    update = jax.jit(tx.update)
    state = tx.init(jnp.zeros(2))
    for rate in (0.5, 0.25, 0.125):
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        updates, state = update(jnp.ones(2), state)
        np.testing.assert_array_equal(updates, -rate)
        assert state.hyperparams["learning_rate"] == rate
    assert update._cache_size() == 1
    state.hyperparams["learning_rate"] = 1  # a Python number; stored as all others
    updates, state = update(jnp.ones(2), state)
    np.testing.assert_array_equal(updates, -1)
    assert state.hyperparams["learning_rate"].dtype == jnp.float32


@pytest.mark.parametrize("factory", [gradtx.scale_by_adam, optax.scale_by_adam])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_parameters_do_not_round_the_hyperparameters(factory, dtype):
    # In bfloat16 b2 = 0.999 is 1: the second moment would stay 0, and the update infinite.
    tx = gradtx.inject_hyperparams(factory)(b1=lambda count: 0.9, b2=0.999)
    params = jnp.ones(3, dtype)
    state = tx.init(params)
    first = jax.tree.map(jnp.result_type, state)
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(jnp.ones(3, dtype), state, params)
        np.testing.assert_allclose(updates.astype(jnp.float32), 1, rtol=0.01)
    assert update._cache_size() == 1
    assert jax.tree.map(jnp.result_type, state) == first
    assert updates.dtype == dtype
    assert state.hyperparams["b2"].dtype == jnp.float32
    assert state.hyperparams["b1"].dtype == jnp.float32
    assert state.hyperparams["b2"] == jnp.float32(0.999)


def test_the_dtype_that_is_asked_for():
    make = gradtx.inject_hyperparams(gradtx.sgd, hyperparam_dtype=jnp.float16)
    state = make(0.1, momentum=HALVED).init(jnp.ones(2))
    assert state.hyperparams["learning_rate"].dtype == jnp.float16
    assert state.hyperparams["momentum"].dtype == jnp.float16


class Model(eqx.Module):
    """A callable tree, as a network or its mask is."""

    weight: Any
    apply: Callable[..., Any] = eqx.field(static=True, default=jnp.tanh)

    def __call__(self, x):
        raise AssertionError("the model was called")


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


MASKS = {
    "function": matrices,
    "lambda": lambda params: matrices(params),
    "callable module": Model([True, False]),
    "select": gradtx.select("0"),
    "tree": [True, False],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("factory", [gradtx.adamw, optax.adamw], ids=["gradtx", "optax"])
def test_what_is_callable_but_not_a_schedule_is_not_called(factory, mask):
    # optax issue 1373.
    params = [jnp.ones((2, 2)), jnp.ones(2)]
    params = Model(params) if mask == "callable module" else params
    tx = gradtx.inject_hyperparams(factory)(HALVED, weight_decay=0.1, mask=MASKS[mask])
    state = tx.init(params)
    assert {"learning_rate", "weight_decay"} <= state.hyperparams.keys()
    assert not {"mask", "mu_dtype"} & state.hyperparams.keys()
    assert state.hyperparams_states.keys() == {"learning_rate"}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    decayed, kept = jax.tree.leaves(updates)
    np.testing.assert_allclose(decayed, -0.05, rtol=1e-6)
    np.testing.assert_array_equal(kept, 0)


def test_what_a_foreign_factory_is_given():
    seen = {}

    def factory(rate, depth: int, dtype, choose: Callable[[Any], bool], *more, flag=True, **others):
        seen.update(
            rate=rate, depth=depth, dtype=dtype, choose=choose, more=more, flag=flag, others=others
        )
        return gradtx.scale(rate)

    make = gradtx.inject_hyperparams(factory, static_args="depth")
    tx = make(2, 3, jnp.float32, matrices, "a", "b", decay=0.5, count=7, name="x", at=HALVED)
    state = tx.init(jnp.ones(1))
    assert state.hyperparams.keys() == {"rate", "decay", "count", "at"}
    updates, _ = tx.update(jnp.ones(1), state)
    assert updates == 2
    assert seen["depth"] == 3
    assert (seen["dtype"], seen["choose"], seen["more"]) == (jnp.float32, matrices, ("a", "b"))
    assert seen["flag"] is True
    assert seen["others"].keys() == {"decay", "count", "name", "at"}
    assert (seen["others"]["at"], seen["others"]["decay"], seen["others"]["name"]) == (
        0.5,
        0.5,
        "x",
    )
    # As in optax, an integer stays one.
    assert seen["others"]["count"].dtype == jnp.int32


def test_annotations_may_be_texts():
    def factory(rate, choose: "Callable[[Any], bool]"):
        return gradtx.scale(rate)

    state = gradtx.inject_hyperparams(factory)(2.0, matrices).init(jnp.ones(1))
    assert state.hyperparams.keys() == {"rate"}


def test_arguments_fixed_before_are_constants():
    fixed = functools.partial(gradtx.adamw, b1=0.5)
    state = gradtx.with_hyperparams(fixed, 0.1, b2=0.9).init(jnp.ones(1))
    assert state.hyperparams.keys() == {"learning_rate", "b2"}
    changed = gradtx.with_hyperparams(fixed, 0.1, b1=0.9)
    constant = gradtx.adamw(0.1, b1=jnp.float32(0.9))
    assert_equal(train(changed)[-1][0], train(constant)[-1][0])


def test_static_arguments_are_constants():
    make = gradtx.inject_hyperparams(gradtx.adamw, static_args=["b1", "eps", "mask"])
    state = make(0.1).init(jnp.ones(1))
    expected = {"learning_rate", "b2", "eps_root", "weight_decay"}
    assert state.hyperparams.keys() == expected


class Climbing(NamedTuple):
    """A stateful schedule: the sum of the losses so far, times a factor."""

    factor: float

    def init(self):
        return jnp.zeros(())

    def update(self, state, *, value, **extra):
        return state + value

    def __call__(self, state, *, value=0.0, **extra):
        return self.factor * (state + value)


@pytest.mark.parametrize("factory", [gradtx.sgd, optax.sgd], ids=["gradtx", "optax"])
def test_a_stateful_schedule_sees_the_extra_arguments(factory):
    tx = gradtx.inject_stateful_hyperparams(factory)(Climbing(0.5))
    state = tx.init(jnp.ones(1))
    total = 0.0
    for loss in (2.0, 4.0, 8.0):
        total += loss
        updates, state = tx.update(jnp.ones(1), state, value=jnp.float32(loss))
        assert updates == -0.5 * total
        assert state.hyperparams_states["learning_rate"] == total


def test_a_population_under_vmap_is_each_run_alone():
    tx = gradtx.with_hyperparams(gradtx.adam, 0.1, b1=0.9)
    rates = np.float32([0.01, 0.1, 1.0])
    momenta = np.float32([0.5, 0.9, 0.99])
    gradients, [params, *_] = inputs(24)
    params, gradients = jax.tree.map(jnp.asarray, (params, gradients[:4]))

    def run(learning_rate, b1):
        state = tx.init(params)
        state.hyperparams.update(learning_rate=learning_rate, b1=b1)
        for g in gradients:
            updates, state = tx.update(g, state, params)
        return updates

    together = jax.jit(jax.vmap(run))(jnp.asarray(rates), jnp.asarray(momenta))
    for i in range(3):
        alone = jax.jit(run)(rates[i], momenta[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), together, alone
        )


OF_A_LEARNING_RATE = """
    adabelief adagrad adam adamax adamaxw adamw amsgrad fromage lamb lars lion novograd
    optimistic_adam_v2 radam rmsprop rprop sgd sign_sgd signum yogi
"""


def test_the_states_have_the_hyperparameters_of_optax():
    params = jnp.ones(2)
    for name in OF_A_LEARNING_RATE.split():
        makers = (
            gradtx.inject_hyperparams(getattr(gradtx, name)),
            optax.inject_hyperparams(getattr(optax, name)),
        )
        ours, theirs = (jax.eval_shape(make(learning_rate=0.5).init, params) for make in makers)
        assert ours.hyperparams == theirs.hyperparams, name


@pytest.mark.parametrize("first", ["gradtx", "optax"])
def test_a_run_goes_on_in_the_other_library(first):
    arguments = {"learning_rate": 0.1, "b1": HALVED, "weight_decay": 0.01}
    runs = {
        "gradtx": gradtx.inject_hyperparams(gradtx.adamw)(**arguments),
        "optax": optax.inject_hyperparams(optax.adamw)(**arguments),
    }
    second = "optax" if first == "gradtx" else "gradtx"
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        state = train(runs[first])[6][1]
        went_on = train(runs[second], state, range(7, 14))[-1][1]
        stayed = train(runs[first], state, range(7, 14))[-1][1]
    types = [jax.tree.map(lambda x: (np.shape(x), x.dtype), state) for state in (went_on, stayed)]
    assert types[0] == types[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), went_on, stayed
    )


def test_states_of_something_else_are_refused():
    tx = gradtx.inject_hyperparams(gradtx.sgd)(0.1)
    with pytest.raises(ValueError, match=r"expected a state with the fields .*hyperparams"):
        tx.update(jnp.ones(1), gradtx.sgd(0.1).init(jnp.ones(1)))
    other = gradtx.inject_hyperparams(gradtx.scale)(0.1).init(jnp.ones(1))
    with pytest.raises(ValueError, match=r"'step_size'\], expected \['learning_rate'\]"):
        tx.update(jnp.ones(1), other)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.inject_hyperparams,
        {"inner_factory": gradtx.sgd},
        static_args=("rate",),
        hyperparam_dtype=("int32", "large"),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


@pytest.mark.parametrize("value", [float("nan"), jnp.float32(float("nan")), "high"], ids=repr)
@pytest.mark.parametrize(
    "make",
    [gradtx.inject_hyperparams(gradtx.sgd), functools.partial(gradtx.with_hyperparams, gradtx.sgd)],
    ids=["inject_hyperparams", "with_hyperparams"],
)
def test_wrong_values_are_refused_at_once(make, value):
    with pytest.raises(ValueError, match="learning_rate must be a number"):
        make(learning_rate=value)


@pytest.mark.parametrize("wrap", [gradtx.inject_hyperparams, gradtx.with_hyperparams])
def test_what_is_not_a_factory_is_refused(wrap):
    with pytest.raises(ValueError, match="must be a function, got GradientTransformation"):
        wrap(gradtx.sgd(0.1))


def test_what_does_not_make_a_transformation_is_refused():
    with pytest.raises(ValueError, match="must be a gradient transformation"):
        gradtx.with_hyperparams(lambda rate: rate, 0.1)


# What the program itself depends on, of a factory and its other arguments.
STATIC = {
    ("adamini", "blocks"): {"learning_rate": 0.1},
    ("centralize", "axis"): {},
    ("grouped", "group_size"): {"tx": gradtx.sgd(0.1)},
    ("grouped", "max_leaf_size"): {"tx": gradtx.sgd(0.1)},
    ("mechanize", "num_betas"): {"base_optimizer": gradtx.sgd(0.1)},
    ("scale_by_factored_rms", "min_dim_size_to_factor"): {},
    ("scale_by_galore", "rank"): {},
    ("scale_by_muon", "ns_coeffs"): {},
    ("scale_by_muon", "ns_dtype"): {},
    ("scale_by_muon", "ns_steps"): {},
    ("scale_by_normuon", "ns_steps"): {},
    ("scale_by_shampoo", "max_dimension"): {},
    ("scale_by_shampoo", "update_interval"): {},
    ("scale_by_soap", "max_precond_dim"): {},
    ("scale_by_soap", "precondition_frequency"): {},
    ("schedule_free_sgd", "warmup_steps"): {"learning_rate": 0.1},
    ("simple_moving_average", "window"): {},
}


@pytest.mark.parametrize(("name", "argument"), STATIC)
def test_what_the_program_depends_on_cannot_be_traced(name, argument):
    factory = functools.partial(getattr(gradtx, name), **STATIC[name, argument])

    def shapes_of(value):
        return factory(**{argument: value}).init(jnp.ones((4, 4)))

    message = (
        rf"^\w+: {argument} must be .*, got JitTracer.*; gradtx.inject_hyperparams leaves it "
        rf"alone, and so does that of optax with static_args=\('{argument}',\)"
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(shapes_of, jnp.int32(3))


@pytest.mark.parametrize("name", ["adopt", "scale_by_factored_rms"])
def test_functions_that_optax_calls_as_schedules(name):
    lent = {} if name.startswith("scale") else {"learning_rate": 0.1}
    injected = optax.inject_hyperparams(getattr(gradtx, name))
    message = r"_fn must be a function, got .*; gradtx\.inject_"
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        injected(**lent).init(jnp.ones(2))
    gradtx.inject_hyperparams(getattr(gradtx, name))(**lent).init(jnp.ones(2))


def test_injected_muon_of_optax_compiles_with_the_argument_that_its_message_names():
    params = {"w": jnp.diag(jnp.array([3.0, 2.0]))}
    tx = optax.inject_hyperparams(gradtx.muon)(learning_rate=0.5)
    with pytest.raises(ValueError, match=r"static_args=\('ns_steps',\)"):
        jax.eval_shape(tx.update, params, tx.init(params), params)
    expected, _ = gradtx.muon(0.5).update(params, gradtx.muon(0.5).init(params), params)
    static = optax.inject_hyperparams(gradtx.muon, static_args=("ns_steps",))
    for make in (static, gradtx.inject_hyperparams(gradtx.muon)):
        tx = make(learning_rate=0.5)
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5, atol=1e-6)


def test_flag_cannot_be_traced():
    message = r"^trace: nesterov must be known when the program is made, got JitTracer"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda flag: gradtx.trace(0.9, flag).init(jnp.ones(2)), jnp.bool_(True))


@pytest.mark.parametrize(
    ("name", "argument"),
    [("scale_by_soap", "precondition_frequency"), ("scale_by_muon", "ns_steps")],
)
def test_schedule_where_only_a_number_is_possible(name, argument):
    message = rf"^{name}: {argument} must be a number, not a schedule, got <function falling"
    with pytest.raises(ValueError, match=message):
        getattr(gradtx, name)(**{argument: falling})
    with pytest.raises(ValueError, match=rf"^{name}: {argument} must be a number, got <class"):
        getattr(gradtx, name)(**{argument: int})
