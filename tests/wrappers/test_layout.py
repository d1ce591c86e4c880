"""Other layouts give the same numbers as the plain one, or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import assert_close, check_refused, inputs, run, wrong_arguments
from .changing_hands import PARAMS, TIMES_VALUE, check_changes_hands

STEPS = 14
COMPLEX = {"phase": jnp.array([1 - 2j, 0.5j, -3.0]), "length": jnp.array([1.0, -2.0])}

PRESERVED = {
    "adamw": lambda: gradtx.adamw(0.1, weight_decay=0.1),
    "clip_by_global_norm": lambda: gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.sgd(0.1, momentum=0.9)
    ),
    "accumulation": lambda: gradtx.MultiSteps(gradtx.lion(0.1), 2).gradient_transformation(),
    "of optax": lambda: optax.rmsprop(0.1),
}


@pytest.mark.parametrize("name", PRESERVED)
def test_a_vector_gives_the_numbers_of_the_arrays(name):
    gradients, params = inputs(STEPS)
    found = run(gradtx.flatten(PRESERVED[name]()), gradients, params)
    expected = run(PRESERVED[name](), gradients, params)
    for (updates, _), (right, _) in zip(found, expected, strict=True):
        assert_close(updates, right, 2e-6, name)


def test_state_is_that_of_a_vector():
    state = gradtx.flatten(gradtx.trace(0.9)).init(PARAMS)
    assert state.trace.shape == (7,)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (gradtx.centralize, "centralize"),
        (lambda: gradtx.adaptive_grad_clip(0.1), "adaptive_grad_clip"),
        (lambda: gradtx.chain(gradtx.sgd(0.1), gradtx.clip_by_block_rms(1.0)), "clip_by_block_rms"),
        (lambda: gradtx.apply_if_finite(gradtx.centralize(), 3), "centralize"),
        (lambda: gradtx.masked(gradtx.sgd(0.1), {"w": True}), "masked"),
        (lambda: gradtx.adamw(0.1, mask=lambda p: {"w": True}), "masked"),
    ],
    ids=["centralize", "agc", "in-a-chain", "in-a-wrapper", "mask", "mask-in-a-recipe"],
)
def test_what_a_vector_cannot_preserve_is_refused(make, named):
    with pytest.raises(ValueError, match=rf"^flatten: {named} "):
        gradtx.flatten(make())


def test_mixed_dtypes_are_calculated_in_the_widest():
    params = {"wide": jnp.ones(2), "narrow": jnp.ones(3, jnp.bfloat16)}
    tx = gradtx.flatten(gradtx.sgd(1 / 3, momentum=0.9))
    updates, state = tx.update(params, tx.init(params), params)
    assert state[0].trace.dtype == jnp.float32
    np.testing.assert_allclose(updates["wide"], -1 / 3, rtol=1e-7)
    np.testing.assert_array_equal(updates["narrow"], jnp.full(3, -1 / 3, jnp.bfloat16))


def test_half_precision_stays_narrow():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((), jnp.bfloat16)}
    seen = []
    tx = gradtx.flatten(gradtx.stateless(lambda u, p: seen.extend((u.dtype, p.dtype)) or u))
    tx.update(params, tx.init(params), params)
    assert seen == [jnp.bfloat16, jnp.bfloat16]


def test_real_and_complex_arrays_do_not_mix():
    tx = gradtx.flatten(gradtx.sgd(0.1))
    with pytest.raises(ValueError, match=r"complex64.*float32"):
        tx.init(COMPLEX)
    phase = {"phase": COMPLEX["phase"]}
    updates, _ = tx.update(phase, tx.init(phase), phase)
    np.testing.assert_allclose(updates["phase"], -0.1 * phase["phase"], rtol=1e-6)


def test_a_missing_gradient_leaves_its_part_of_the_state_alone():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = gradtx.flatten(gradtx.adam(0.1))
    _, state = tx.update(params, tx.init(params), params)
    updates, new = tx.update({"a": None, "b": jnp.ones(3)}, state, params)
    assert updates["a"] is None
    np.testing.assert_array_equal(new[0].mu[:2], state[0].mu[:2])
    np.testing.assert_allclose(new[0].mu[2:], 0.19, rtol=1e-6)
    assert new[0].count == 2


def test_what_is_not_a_parameter_has_no_place_in_the_vector():
    params = {"w": jnp.ones(2), "steps": jnp.int32(3), "name": jnp.tanh, "none": None}
    gradients = {"w": jnp.ones(2), "steps": jnp.int32(7), "name": None, "none": None}
    tx = gradtx.flatten(gradtx.sgd(0.5, momentum=0.9))
    state = tx.init(params)
    assert state[0].trace.shape == (2,)
    # Without parameters an integer may be the gradient of any of them.
    for arguments in ((gradients, state, params), ({**gradients, "steps": None}, state)):
        updates, _ = tx.update(*arguments)
        np.testing.assert_array_equal(updates["w"], [-0.5, -0.5])
        assert updates["steps"] in (0, None)
        assert updates["name"] is None


def test_a_flat_run_changes_hands():
    check_changes_hands(
        gradtx.flatten(gradtx.adam(0.1)), optax.flatten(optax.adam(0.1)), at=3, steps=6
    )


def test_trees_that_do_not_fit_are_refused():
    tx = gradtx.flatten(gradtx.sgd(0.1))
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"'w'.*\(3, 2\).*\(2, 3\)"):
        tx.update({**params, "w": jnp.ones((3, 2))}, tx.init(params), params)
    with pytest.raises(ValueError, match="'b'"):
        tx.update({"w": params["w"]}, tx.init(params), params)
    with pytest.raises(ValueError, match="'b' has no parameter"):
        tx.update(params, tx.init(params), {**params, "b": None})


@pytest.mark.parametrize("wrapper", [gradtx.flatten, gradtx.split_real_and_imaginary])
def test_extra_arguments_reach_the_inner_transformation(wrapper):
    tx = wrapper(TIMES_VALUE)
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=3.0)
    assert updates == 3.0


def test_complex_numbers_move_as_two_real_ones():
    gradients, params = inputs(STEPS, is_complex=True)
    tx = gradtx.split_real_and_imaginary(gradtx.adamw(0.1, weight_decay=0.1))
    parts = {
        name: run(
            gradtx.adamw(0.1, weight_decay=0.1), *(_parts(t, name) for t in (gradients, params))
        )
        for name in ("real", "imag")
    }
    found = run(tx, gradients, params)
    for (updates, _), (real, _), (imag, _) in zip(found, *parts.values(), strict=True):
        expected = {name: real[name] + 1j * imag[name] for name in real}
        assert_close(updates, expected, 1e-6, "updates")


def _parts(path, name):
    return [{leaf: getattr(x, name).copy() for leaf, x in tree.items()} for tree in path]


def test_real_arrays_pass_as_they_are():
    tx = gradtx.split_real_and_imaginary(gradtx.sgd(0.5))
    gradients = {**COMPLEX, "none": None, "steps": jnp.int32(3)}
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    np.testing.assert_allclose(updates["length"], -0.5 * COMPLEX["length"], rtol=1e-6)
    np.testing.assert_allclose(updates["phase"], -0.5 * COMPLEX["phase"], rtol=1e-6)
    assert (updates["none"], updates["steps"]) == (None, 0)


def test_an_infinite_part_leaves_the_other_alone():
    tx = gradtx.split_real_and_imaginary(gradtx.clip(1.0))
    gradient = jnp.array(complex(0.5, np.inf))
    updates, _ = tx.update(gradient, tx.init(gradient))
    assert updates == 0.5 + 1j
    tx = gradtx.split_real_and_imaginary(gradtx.identity())
    assert tx.update(gradient, tx.init(gradient))[0].real == 0.5


def test_double_precision():
    with jax.enable_x64(True):
        gradient = jnp.array(0.1 + 0.3j)
        tx = gradtx.split_real_and_imaginary(gradtx.scale(0.1))
        updates, _ = tx.update(gradient, tx.init(gradient))
        assert updates.dtype == jnp.complex128
        np.testing.assert_allclose(updates, 0.01 + 0.03j, rtol=1e-15)


def test_a_split_run_changes_hands():
    check_changes_hands(
        gradtx.split_real_and_imaginary(gradtx.adam(0.1, b2=0.9)),
        optax.contrib.split_real_and_imaginary(optax.adam(0.1, b2=0.9)),
        at=3,
        steps=6,
        params=COMPLEX,
    )


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.flatten, {}, inner=(None, "sgd", gradtx.sgd)),
        *wrong_arguments(gradtx.split_real_and_imaginary, {}, inner=(None, "sgd", gradtx.sgd)),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
