"""Trust ratios, block norms and NovoGrad against their papers, to the ends of the dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    cases,
    check_refused,
    complex_gradients,
    equation_tests,
    wrong_arguments,
)

CASES = [
    *cases(
        gradtx.scale_by_trust_ratio,
        {},
        {"min_norm": 2.5, "trust_coefficient": 0.3, "eps": 0.7},
    ),
    *cases(gradtx.scale_by_param_block_norm, {"min_scale": 2.5}),
    *cases(gradtx.scale_by_param_block_rms, {"min_scale": 0.9}),
    *cases(
        gradtx.scale_by_novograd,
        {"b1": 0.5, "b2": 0.9, "eps": 0.1, "eps_root": 0.5, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize(("check", "case"), equation_tests(CASES))
def test_equation(check, case):
    check(case)


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=str)
def test_complex_gradients_count_by_their_modulus(case):
    complex_gradients(case)


DIRECTION = np.array([0.6, 0.8])


@pytest.mark.parametrize("of_weights", [1e-35, 1.0, 1e35])
@pytest.mark.parametrize("of_gradient", [1e-35, 1.0, 1e35, 3e38])
def test_trust_ratio_of_norms_whose_squares_and_quotients_leave_the_range(of_weights, of_gradient):
    g = jnp.asarray(DIRECTION * of_gradient, jnp.float32)
    p = jnp.array([0.0, of_weights], jnp.float32)
    tx = gradtx.scale_by_trust_ratio()
    updates, _ = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose(updates, DIRECTION * of_weights, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-35, 1e35])
def test_block_norms_of_weights_whose_squares_leave_the_range(size):
    p, g = jnp.array([3.0, 4.0]) * jnp.float32(size), jnp.array([1.0, 0.5])
    for tx, factor in (
        (gradtx.scale_by_param_block_norm(0.0), 5 * size),
        (gradtx.scale_by_param_block_rms(0.0), 5 / np.sqrt(2) * size),
    ):
        updates, _ = tx.update(g, tx.init(p), p)
        np.testing.assert_allclose(updates, factor * np.array([1, 0.5]), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_ratio_is_one_where_there_is_nothing_to_compare(dtype):
    zero, one = jnp.zeros(3, dtype), jnp.array([3.0, 0.0, -1.0], dtype)
    tx = gradtx.scale_by_trust_ratio(trust_coefficient=0.5)
    state = tx.init(zero)
    np.testing.assert_array_equal(tx.update(one, state, zero)[0], one)
    np.testing.assert_array_equal(tx.update(zero, state, one)[0], zero)
    np.testing.assert_array_equal(tx.update(zero, state, zero)[0], zero)


def test_the_ratio_is_taken_in_float32_where_the_norm_of_half_precision_overflows():
    # ||g|| = 120000 and ||p|| = 4, of which float16 ends at 65504.
    g, p = jnp.full(4, 6e4, jnp.float16), jnp.full(4, 2.0, jnp.float16)
    tx = gradtx.scale_by_trust_ratio()
    np.testing.assert_array_equal(tx.update(g, tx.init(p), p)[0], p)


def test_the_ratio_has_a_derivative_at_zero():
    tx = gradtx.scale_by_trust_ratio()

    def length(g, p):
        return jnp.sum(tx.update(g, tx.init(p), p)[0])

    for g, p in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        derivatives = jax.grad(length, argnums=(0, 1))(jnp.full(2, g), jnp.full(2, p))
        assert np.all(np.isfinite(derivatives))


def test_novograd_of_a_constant_gradient_is_a_geometric_sum_of_unit_vectors():
    # v_t = ||g||^2 from the first step on, and m_t = (1 + b1 + ... + b1^(t-1)) g / ||g||.
    g = {"small": jnp.array([3e-3, 4e-3]), "large": jnp.array([[-30.0], [40.0]])}
    tx = gradtx.scale_by_novograd(b1=0.8, eps=0.0)
    state, update = tx.init(g), jax.jit(tx.update)
    for t in range(1, 13):
        updates, state = update(g, state, g)
        length = (1 - 0.8**t) / (1 - 0.8)
        np.testing.assert_allclose(updates["small"], [0.6 * length, 0.8 * length], rtol=2e-6)
        np.testing.assert_allclose(updates["large"], [[-0.6 * length], [0.8 * length]], rtol=2e-6)
        np.testing.assert_allclose(state.nu["small"], 25e-6, rtol=1e-6)
        np.testing.assert_allclose(state.nu["large"], 2500, rtol=1e-6)


def test_first_moment_of_novograd_is_stored_as_asked():
    tx = gradtx.scale_by_novograd(mu_dtype=jnp.bfloat16)
    state = tx.init({"w": jnp.ones(3)})
    _, state = tx.update({"w": jnp.ones(3)}, state, {"w": jnp.ones(3)})
    assert state.mu["w"].dtype == jnp.bfloat16
    assert state.nu["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.scale_by_trust_ratio,
            {},
            min_norm=NON_NEGATIVE,
            trust_coefficient=ANY_NUMBER,
            eps=NON_NEGATIVE,
        ),
        *wrong_arguments(gradtx.scale_by_param_block_norm, {}, min_scale=NON_NEGATIVE),
        *wrong_arguments(gradtx.scale_by_param_block_rms, {}, min_scale=NON_NEGATIVE),
        *wrong_arguments(
            gradtx.scale_by_novograd,
            {},
            b1=DECAY,
            b2=DECAY,
            eps=NON_NEGATIVE,
            eps_root=NON_NEGATIVE,
            weight_decay=NON_NEGATIVE,
            mu_dtype=("float99", "int32"),
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
