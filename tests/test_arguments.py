"""Arguments: what has one meaning works, and anything else is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

ONES = jnp.ones(2)
IMAGINARY = jnp.array([1j, 1j], jnp.complex64)


def first_update(tx, gradient=ONES, **extra):
    return tx.update(gradient, tx.init(ONES), ONES, **extra)[0]


def test_a_schedule_of_booleans_counts_as_zeros_and_ones():
    def rate(count):
        return count < 1

    ours, theirs = (lib.sgd(rate) for lib in (gradtx, optax))
    states = [tx.init(ONES) for tx in (ours, theirs)]
    for expected in (-1.0, 0.0):
        # optax multiplies a boolean by a float.
        with jax.numpy_dtype_promotion("standard"):
            found = [
                tx.update(ONES, state) for tx, state in zip((ours, theirs), states, strict=True)
            ]
        states = [state for _, state in found]
        for updates, _ in found:
            np.testing.assert_array_equal(updates, jnp.full(2, expected))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1j, "must be real, got 1j"),
        (None, "must be a number, got None"),
        ("0.1", "must be a number, got '0.1'"),
        (ONES, r"must be a scalar, got shape \(2,\)"),
    ],
    ids=["complex", "nothing", "text", "several"],
)
def test_a_value_of_a_schedule_that_is_no_number(value, message):
    tx = gradtx.sgd(lambda count: value)
    with pytest.raises(
        ValueError, match=f"^scale_by_learning_rate: learning_rate: a schedule's value {message}$"
    ):
        first_update(tx)


@pytest.mark.parametrize("value", [1j, "0.5"])
def test_a_loss_that_is_no_real_number(value):
    with pytest.raises(ValueError, match=r"^scale_by_polyak: value must be (real|a number), got "):
        first_update(gradtx.polyak_sgd(), value=value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradtx.scale_by_adam(jnp.float32), "scale_by_adam: b1 must be a number, got"),
        (
            lambda: gradtx.adamw(0.1, weight_decay=jnp.bfloat16),
            "adamw: weight_decay must be a number, got",
        ),
        # weight_decay and mu_dtype, swapped.
        (
            lambda: gradtx.adamw(0.1, 0.9, 0.999, 1e-8, 0.0, np.float64(1e-4), jnp.bfloat16),
            "scale_by_adam: mu_dtype must be a dtype, got",
        ),
        (lambda: gradtx.adam(0.1, mu_dtype=np), "scale_by_adam: mu_dtype must be a dtype, got"),
        (lambda: gradtx.adam(np), "scale_by_learning_rate: learning_rate must be a number, got"),
        (lambda: gradtx.adam(0.1, b1=10**400), r"scale_by_adam: b1 must be in \[0, 1\), got 10"),
        (
            lambda: gradtx.sophia(0.1, bias_correction="False"),
            "scale_by_sophia: bias_correction must be True or False, got 'False'",
        ),
        (
            lambda: gradtx.sophia(0.1, verbose="no"),
            "scale_by_sophia: verbose must be True or False, got 'no'",
        ),
        (
            lambda: gradtx.mechanize(gradtx.sgd(0.1), clip_rewards="False"),
            "mechanize: clip_rewards must be True or False, got 'False'",
        ),
        (
            lambda: gradtx.explain(gradtx.sgd(0.1), ONES, all_leaves="False"),
            "explain: all_leaves must be True or False, got 'False'",
        ),
        (
            lambda: gradtx.masked(gradtx.sgd(0.1), True, mask_compatible_extra_args="no"),
            "masked: mask_compatible_extra_args must be True or False, got 'no'",
        ),
        (
            lambda: gradtx.partition(
                {"a": gradtx.sgd(0.1)}, lambda tree: "a", mask_compatible_extra_args="no"
            ),
            "partition: mask_compatible_extra_args must be True or False, got 'no'",
        ),
        (
            lambda: gradtx.selective_transform(3, freeze_mask=True),
            "selective_transform: optimizer must be a gradient transformation",
        ),
        (
            lambda: gradtx.inject_hyperparams(gradtx.sgd, static_args=None),
            "inject_hyperparams: static_args must be names, got None",
        ),
        (
            lambda: gradtx.multiply_learning_rate({"w": 1.0}, rest=np.nan),
            "multiply_learning_rate: rest must be a number, not NaN, got nan",
        ),
        (
            lambda: gradtx.hutchinson_estimator_diag_hessian(random_seed=10**400),
            "hutchinson_estimator_diag_hessian: random_seed must be a seed of at most 64 bits",
        ),
        (
            lambda: gradtx.quantize_state(gradtx.adam(0.1), bits=np.array([8, 8])),
            "quantize_state: bits must be 8, got",
        ),
        *(
            (make, f"{owner}: the specification must be a pattern, a predicate, a type, a mask")
            for owner, make in {
                "quantize_state": lambda: gradtx.quantize_state(gradtx.adam(0.1), select=3.5),
                "cast_state": lambda: gradtx.cast_state(gradtx.adam(0.1), select=3.5),
                "grouped": lambda: gradtx.grouped(gradtx.adam(0.1), select=3.5),
            }.items()
        ),
        (
            lambda: gradtx.quantize_state(gradtx.adam(0.1), select={"signed": "("}),
            r"quantize_state: '\(' is not a regular expression",
        ),
        *(
            (make, f"{owner}weight_dimension_numbers must be dimension numbers, None, or a tree")
            for owner, make in {
                "muon: muon_": lambda: gradtx.muon(0.1, muon_weight_dimension_numbers=3.5),
                "normuon: muon_": lambda: gradtx.normuon(
                    0.1, muon_weight_dimension_numbers={"a": 1}
                ),
                "scale_by_muon: ": lambda: gradtx.scale_by_muon(weight_dimension_numbers=(0, 1)),
                "scale_by_galore: ": lambda: gradtx.galore(0.1, weight_dimension_numbers="last"),
            }.items()
        ),
    ],
)
def test_what_is_refused_when_it_is_built(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_complex_numbers_are_not_clipped_by_their_order():
    with pytest.raises(ValueError, match=r"^clip: complex numbers have no order; updates are com"):
        first_update(gradtx.clip(1.0), jnp.ones(2, jnp.complex64))


@pytest.mark.parametrize(
    "tx",
    [gradtx.adamw(0.1), gradtx.named_chain(("sgd", gradtx.sgd(0.1)))],
    ids=["chain", "named_chain"],
)
def test_swapped_state_and_parameters(tx):
    with pytest.raises(ValueError, match=r"chain: params holds an optimizer state, and state hold"):
        tx.update(ONES, ONES, tx.init(ONES))


@pytest.mark.parametrize("name", ["adam", "lion", "muon", "shampoo", "optimistic_adam_v2"])
def test_a_complex_gradient_of_a_real_parameter_is_not_cut(name):
    tx = gradtx.make(name, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"updates at '' is complex64, but the state's \w+ is flo"):
        first_update(tx, IMAGINARY)


def test_a_complex_gradient_of_a_real_parameter_is_not_accumulated_by_half():
    tx = gradtx.MultiSteps(gradtx.sgd(0.1), 2)
    with pytest.raises(
        ValueError, match=r"^MultiSteps: updates at '' is complex64, .*acc_grads is"
    ):
        first_update(tx, IMAGINARY)


def test_a_complex_gradient_passes_where_nothing_is_kept_of_it():
    np.testing.assert_allclose(first_update(gradtx.sgd(0.1), IMAGINARY), [-0.1j, -0.1j])


@pytest.mark.parametrize("name", ["adam", "rmsprop", "adagrad", "adafactor", "novograd", "shampoo"])
def test_a_gradient_wider_than_the_state_leaves_it_finite(name):
    with jax.enable_x64(True):
        params = jnp.ones((2, 2), jnp.float32)
        tx = gradtx.make(name, learning_rate=0.1)
        state = tx.init(params)
        for size in (1e30, 1.0):
            updates, state = tx.update(jnp.full((2, 2), size, jnp.float64), state, params)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))
            assert np.all(updates < 0)
