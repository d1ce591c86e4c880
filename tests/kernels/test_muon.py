"""Muon against its equation, written with singular values instead of products of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.kernels.muon import scale_by_shape
from gradtx.kernels.orthogonalize import newton_schulz
from gradtx.testing import check_degree, references
from gradtx.testing.references.matrices import STANDARD, orthogonalized

from ..trajectory import DECAY, NON_NEGATIVE, updates_of, wrong_arguments

SHAPES = {"tall": (5, 3), "stack": (2, 3, 4)}
THREE = ((3.0, -3.0, 1.0), (2.0, -1.5, 0.5), (1.875, -1.25, 0.375))


def gradients(steps, shapes=SHAPES):
    rng = np.random.default_rng(5)
    drift = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return [
        {name: drift[name] + rng.normal(size=shape) for name, shape in shapes.items()}
        for _ in range(steps)
    ]


SCALE_BY_MUON = (gradtx.scale_by_muon, references.scale_by_muon)
CASES = {
    "defaults": {},
    "one-step-spectral": {"ns_steps": 1, "preconditioning": "spectral", "nesterov": False},
    "schatten-adaptive": {"preconditioning": "schatten", "adaptive": True, "beta": 0.5},
    "aol-without-correction": {"preconditioning": "aol", "bias_correction": False, "ns_steps": 3},
    "own-coefficients": {"ns_coeffs": THREE, "nesterov": False},
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_equation(arguments):
    gs = gradients(3)
    with jax.enable_x64(True):
        tx, reference = (of(eps=0.0, **arguments) for of in SCALE_BY_MUON)
        update, state = jax.jit(tx.update), tx.init(jax.tree.map(jnp.asarray, gs[0]))
        for g, expected in zip(gs, updates_of(reference, gs), strict=True):
            updates, state = update(jax.tree.map(jnp.asarray, g), state)
            for name, value in expected.items():
                np.testing.assert_allclose(updates[name], value, rtol=0, atol=1e-11)


def test_single_precision_loses_no_more_than_the_slope_at_zero():
    gs = gradients(3)
    tx = gradtx.scale_by_muon()
    state = tx.init(jax.tree.map(jnp.float32, gs[0]))
    for g, expected in zip(gs, updates_of(references.scale_by_muon(), gs), strict=True):
        updates, state = tx.update(jax.tree.map(jnp.float32, g), state)
        for name, value in expected.items():
            np.testing.assert_allclose(updates[name], value, rtol=0, atol=3.4445**5 * 6e-8)


def test_complex_matrices():
    x = np.array([[1 + 1j, 2.0, 0.5j], [0.5, 1j, -1.0]], np.complex64)
    tx = gradtx.scale_by_muon(preconditioning="schatten", ns_dtype=jnp.bfloat16)
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    s = np.diag(orthogonalized(np.diag(s), preconditioning="schatten"))
    updates, _ = tx.update(jnp.asarray(x), tx.init(jnp.asarray(x)))
    np.testing.assert_allclose(updates, (u * s) @ vh, atol=1e-5)


def test_singular_values_land_in_their_band():
    # From 0.002 of the norm up, the least and the largest value that five iterations reach.
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    v, _ = np.linalg.qr(rng.normal(size=(24, 16)))
    s = np.geomspace(0.003, 1, 16)
    tx = gradtx.scale_by_muon()
    g = jnp.float32((u * s) @ v.T)
    found = jnp.linalg.svd(tx.update(g, tx.init(g))[0], compute_uv=False)
    assert jnp.min(found) > 0.68
    assert jnp.max(found) < 1.21
    assert jnp.min(jnp.linalg.svd(g / jnp.linalg.norm(g), compute_uv=False)) > 0.0015


def count(jaxpr, primitive, dtype=None):
    """How often an operation occurs in a program, including the functions that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        called = [x for x in jax.tree.leaves(list(equation.params.values())) if hasattr(x, "eqns")]
        total += sum(count(getattr(x, "jaxpr", x), primitive, dtype) for x in called)
        is_typed = dtype is None or equation.invars[0].aval.dtype == dtype
        total += equation.primitive.name == primitive and is_typed
    return total


def products_for(number, dtype=None, **arguments):
    params = {f"layer{i}": jnp.ones((3, 4)) for i in range(number)}
    tx = gradtx.scale_by_muon(**arguments)
    return count(jax.make_jaxpr(tx.update)(params, tx.init(params)).jaxpr, "dot_general", dtype)


def test_layers_of_one_shape_share_their_products():
    assert products_for(1) == products_for(6) == 3 * 5


def test_products_in_bfloat16():
    assert products_for(2, jnp.bfloat16, ns_dtype=jnp.bfloat16) == 3 * 5
    assert products_for(2, jnp.bfloat16) == 0
    g = jnp.float32(gradients(1)[0]["tall"])
    narrow, wide = (gradtx.scale_by_muon(ns_dtype=dtype) for dtype in (jnp.bfloat16, None))
    updates, _ = narrow.update(g, narrow.init(g))
    expected, _ = wide.update(g, wide.init(g))
    assert updates.dtype == jnp.float32
    # Each of the fifteen products rounds its factors to eight bits.
    np.testing.assert_allclose(updates, expected, atol=15 * 2**-8)
    assert jnp.max(jnp.abs(updates - expected)) > 1e-4


def test_the_state_says_what_the_coefficients_are():
    # With a = 1 and b = c = 0 an iteration changes nothing.
    g = jnp.float32(gradients(1)[0]["tall"])
    tx = gradtx.scale_by_muon()
    state = tx.init(g)._replace(ns_coeffs=jnp.array([1.0, 0.0, 0.0]))
    updates, state = tx.update(g, state)
    np.testing.assert_allclose(updates, g / jnp.linalg.norm(g), rtol=1e-6)
    np.testing.assert_array_equal(state.ns_coeffs, [1, 0, 0])


def test_a_stack_of_layers_steps_as_its_layers_do():
    stack = jnp.float32(gradients(1, {"stack": (4, 3, 5)})[0]["stack"])
    layers = dict(enumerate(stack))
    for arguments in ({}, {"adaptive": True, "preconditioning": "aol"}):
        tx = gradtx.scale_by_muon(ns_steps=2, **arguments)
        together, _ = tx.update(stack, tx.init(stack))
        apart, _ = tx.update(layers, tx.init(layers))
        np.testing.assert_allclose(together, jnp.stack(list(apart.values())), atol=1e-5)


def test_dimension_numbers_say_what_the_matrices_are():
    x = jnp.float32(gradients(1, {"attention": (6, 2, 4)})[0]["attention"])
    numbers = gradtx.MuonDimensionNumbers
    plain = gradtx.scale_by_muon(ns_steps=1)

    def update(x, own):
        tx = gradtx.scale_by_muon(ns_steps=1, weight_dimension_numbers=own)
        return tx.update(x, tx.init(x))[0]

    for own, as_matrix in {
        numbers(0, 2): lambda x: x.transpose(1, 0, 2),
        numbers((-2, -1), 0): lambda x: x.transpose(1, 2, 0).reshape(8, 6),
    }.items():
        expected, _ = plain.update(as_matrix(x), plain.init(as_matrix(x)))
        np.testing.assert_allclose(as_matrix(update(x, own)), expected, atol=1e-5)
    tree = {"heads": x, "rest": {"kernel": x[:, 0]}}
    own = {"heads": numbers(0, 2), "rest": None}
    for given in (own, lambda tree: own):
        updates = update(tree, given)
        np.testing.assert_allclose(updates["heads"], update(x, numbers(0, 2)), atol=1e-5)
        np.testing.assert_allclose(updates["rest"]["kernel"], update(x[:, 0], None), atol=1e-5)


@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_the_size_of_the_gradient_does_not_matter(preconditioning):
    g = jnp.float32(gradients(1)[0]["stack"][0])
    tx = gradtx.scale_by_muon(eps=0.0, preconditioning=preconditioning)
    expected, _ = tx.update(g, tx.init(g))
    for factor in (2.0**-100, 2.0**90):
        updates, _ = tx.update(factor * g, tx.init(g))
        np.testing.assert_array_equal(updates, expected)
    updates, _ = tx.update(0 * g, tx.init(g))
    np.testing.assert_array_equal(updates, 0 * g)


@pytest.mark.parametrize(
    ("consistent_rms", "shape", "factor"),
    [(None, (2, 8), 2.0), (None, (8, 2), 1.0), (0.2, (2, 9), 0.6), (0.2, (16, 4, 9), 0.6)],
    ids=["wide", "tall", "rms", "rms-stack"],
)
def test_factor_of_the_shape(consistent_rms, shape, factor):
    tx = scale_by_shape(consistent_rms=consistent_rms)
    g = jnp.ones(shape)
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0], factor * g, rtol=1e-6)


def test_every_direction_converges_at_the_same_speed():
    # The loss sum(a_i d_i^2) / 2 in the basis U, V has the gradients a_i d_i there. Whatever a_i,
    # each step shortens d_i by the rate times a number in the band, until d_i is that short.
    u, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    v, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    u, v, curvature = jnp.float32(u), jnp.float32(v), jnp.geomspace(0.02, 1.0, 6)
    rate, steps = 0.01, 70
    tx = gradtx.chain(gradtx.scale_by_muon(beta=0.0), gradtx.scale(-rate))

    def step(carry, _):
        w, state = carry
        g = u @ (curvature[:, None] * (u.T @ w @ v)) @ v.T
        updates, state = tx.update(g, state)
        w = w + updates
        return (w, state), jnp.diag(u.T @ w @ v)

    w = 0.5 * u @ v.T
    _, errors = jax.lax.scan(step, (w, tx.init(w)), length=steps)
    np.testing.assert_array_less(errors[40], 0.5 - 0.68 * rate * 41)
    np.testing.assert_array_less(0.5 - 1.21 * rate * 41, errors[40] + 1e-6)
    np.testing.assert_array_less(jnp.max(jnp.abs(errors[-1])), 1.21 * rate)


NEWTON_SCHULZ = {
    "ns_coeffs": ("fast", (1.0, 2.0), ((1.0, 2.0, float("nan")),)),
    "ns_steps": (0, 1.5, True, "five"),
    "preconditioning": ("nuclear", None),
    "ns_dtype": (jnp.int32,),
}
MUON = {"beta": DECAY, "eps": NON_NEGATIVE, "mu_dtype": (jnp.int8,)} | NEWTON_SCHULZ


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(gradtx.scale_by_muon, {}, **MUON),
        *wrong_arguments(scale_by_shape, {}, consistent_rms=NON_NEGATIVE),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        factory(**arguments)


@pytest.mark.parametrize(
    ("numbers", "shape", "message"),
    [
        (None, (3,), r"scale_by_muon: 'layer/w' of shape \(3,\) is not a matrix"),
        (gradtx.MuonDimensionNumbers(0, 2), (3, 4), "different axes of 'layer/w'"),
        (gradtx.MuonDimensionNumbers(0, -3), (3, 4, 5), "different axes of 'layer/w'"),
        (gradtx.MuonDimensionNumbers((), 0), (3, 4), "different axes of 'layer/w'"),
        ({"other": None}, (3, 4), "prefix of the parameters"),
        (lambda tree: {"layer": (0, 1)}, (3, 4), "prefix of the parameters"),
    ],
    ids=["vector", "missing-axis", "same-axis", "no-axis", "other-tree", "no-numbers"],
)
def test_wrong_dimension_numbers(numbers, shape, message):
    tx = gradtx.scale_by_muon(weight_dimension_numbers=numbers)
    params = {"layer": {"w": jnp.ones(shape)}}
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params))


def test_an_array_without_elements():
    x = jnp.ones((0, 3))
    options = {"ns_steps": 5, "preconditioning": "spectral", "ns_dtype": None}
    assert newton_schulz(x, jnp.array(STANDARD), 0.0, **options).shape == (0, 3)


@pytest.mark.parametrize("adaptive", [True, False])
def test_only_the_adaptive_update_grows_with_the_gradient(adaptive):
    check_degree(gradtx.scale_by_muon(adaptive=adaptive), {"w": jnp.ones((2, 3))})
