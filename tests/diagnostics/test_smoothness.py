"""Sharpness against dense eigenvalues, and the measures along the gradient against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.diagnostics.smoothness import (
    along_gradient,
    curvature_along_gradient,
    lipschitz_along_gradient,
    sharpness,
)

MEASURES = {
    "sharpness": sharpness,
    "along_gradient": functools.partial(along_gradient, step_sizes=[0.1]),
    "lipschitz_along_gradient": functools.partial(lipschitz_along_gradient, step_sizes=[0.1]),
    "curvature_along_gradient": functools.partial(curvature_along_gradient, step_sizes=[0.1]),
}

SPECTRA = {
    "positive": lambda rng, n: rng.uniform(0, 5, n),
    "negative": lambda rng, n: -rng.uniform(1, 5, n),
    "indefinite": lambda rng, n: rng.standard_normal(n),
    "large_negative": lambda rng, n: np.where(np.arange(n) == 0, -100.0, rng.uniform(1, 2, n)),
    "two_values": lambda rng, n: np.where(np.arange(n) % 2, -1.0, 2.0),
    "one_value": lambda rng, n: np.full(n, -3.0),
    "zero": lambda rng, n: np.zeros(n),
    "tiny": lambda rng, n: 1e-30 * rng.standard_normal(n),
    "huge": lambda rng, n: 1e30 * rng.standard_normal(n),
}


def matrix_with(eigenvalues, rng):
    q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))
    return (q * eigenvalues) @ q.T


def quadratic(x, matrix):
    return 0.5 * jnp.dot(x, jnp.dot(matrix, x, precision="highest"), precision="highest")


compiled_sharpness = jax.jit(functools.partial(sharpness, quadratic), static_argnames="iterations")


def network_loss(params, x):
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"][None])
    return jnp.mean((hidden @ params["head"]) ** 2) * params["scale"]


def network_parameters(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "head": (4,), "scale": ()}
    return {name: jnp.asarray(rng.standard_normal(s), dtype) for name, s in shapes.items()}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n", [1, 2, 5, 24])
def test_sharpness_of_a_quadratic(n, spectrum):
    rng = np.random.default_rng(n)
    matrix = matrix_with(SPECTRA[spectrum](rng, n), rng)
    eigenvalues = np.linalg.eigvalsh(matrix)
    found = compiled_sharpness(jnp.zeros(n), jnp.asarray(matrix, jnp.float32))
    assert found.dtype == jnp.float32
    assert abs(float(found) - eigenvalues[-1]) <= 1e-6 * np.max(np.abs(eigenvalues))


@pytest.mark.parametrize("spectrum", ["indefinite", "two_values", "one_value", "zero"])
def test_sharpness_in_double_precision(spectrum):
    rng = np.random.default_rng(1)
    matrix = matrix_with(SPECTRA[spectrum](rng, 12), rng)
    with jax.enable_x64(True):
        found = float(compiled_sharpness(jnp.zeros(12), jnp.asarray(matrix)))
    assert abs(found - np.linalg.eigvalsh(matrix)[-1]) <= 1e-13


def test_sharpness_of_a_network_is_that_of_its_dense_hessian():
    with jax.enable_x64(True):
        params = network_parameters(jnp.float64)
        x = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        hessian = jax.jit(jax.hessian(lambda v: network_loss(unravel(v), x)))(flat)
        eigenvalues = np.linalg.eigvalsh(np.asarray(hessian))
        found = float(jax.jit(functools.partial(sharpness, network_loss))(params, x))
    assert eigenvalues[0] < -0.1
    np.testing.assert_allclose(found, eigenvalues[-1], rtol=1e-12)


def test_few_iterations_approach_the_largest_eigenvalue_from_below():
    rng = np.random.default_rng(2)
    eigenvalues = np.linspace(-1, 1, 80)
    matrix = jnp.asarray(matrix_with(eigenvalues, rng), jnp.float32)
    found = [
        float(compiled_sharpness(jnp.zeros(80), matrix, iterations=iterations))
        for iterations in (1, 4, 8, 80)
    ]
    assert found == sorted(found)
    assert found[2] < 0.99
    np.testing.assert_allclose(found[-1], 1.0, rtol=1e-6)


def test_an_eigenvalue_that_stands_apart_takes_few_iterations():
    rng = np.random.default_rng(3)
    eigenvalues = np.append(rng.uniform(-1, 1, 199), 3.0)
    matrix = jnp.asarray(matrix_with(eigenvalues, rng), jnp.float32)
    np.testing.assert_allclose(
        compiled_sharpness(jnp.zeros(200), matrix, iterations=20), 3.0, rtol=1e-5
    )


def test_the_key_decides_the_first_vector():
    matrix = jnp.diag(jnp.arange(50.0))

    def after_two(key):
        return float(compiled_sharpness(jnp.zeros(50), matrix, key=key, iterations=2))

    assert after_two(jax.random.key(1)) == after_two(jax.random.key(1))
    assert after_two(jax.random.key(1)) != after_two(jax.random.key(2))
    assert after_two(None) == after_two(None)


def test_sharpness_is_mapped():
    matrices = jnp.stack([jnp.diag(jnp.array(d)) for d in ([1.0, -2.0, 0.5], [-4.0, -4.0, -4.0])])
    found = jax.vmap(compiled_sharpness, in_axes=(None, 0))(jnp.zeros(3), matrices)
    np.testing.assert_allclose(found, [1.0, -4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("measure", "dtype"), [*zip(MEASURES, 2 * [jnp.float16, jnp.bfloat16], strict=True)]
)
def test_half_precision_parameters_are_widened(measure, dtype):
    params = network_parameters(dtype)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    x = jnp.ones((2, 3))
    found, expected = (MEASURES[measure](network_loss, p, x) for p in (params, widened))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


def test_complex_parameters_count_as_two_real_ones():
    rng = np.random.default_rng(4)
    a = rng.standard_normal((4, 3)) + 1j * rng.standard_normal((4, 3))
    z = rng.standard_normal(3) + 1j * rng.standard_normal(3)

    def loss_fn(z):
        return jnp.sum(jnp.abs(jnp.asarray(a, jnp.complex64) @ z) ** 2)

    params = jnp.asarray(z, jnp.complex64)
    # The Hessian of |A z|^2 in the real and imaginary parts is 2 A^H A, taken as a real matrix.
    np.testing.assert_allclose(
        jax.jit(functools.partial(sharpness, loss_fn))(params),
        2 * np.linalg.eigvalsh(a.conj().T @ a)[-1],
        rtol=1e-6,
    )
    g = 2 * a.conj().T @ a @ z
    np.testing.assert_allclose(
        jax.jit(functools.partial(curvature_along_gradient, loss_fn, step_sizes=[0.01]))(params),
        2 * np.linalg.norm(a.conj().T @ a @ g) / np.linalg.norm(g),
        rtol=1e-4,
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_other_leaves_are_left_alone(measure):
    params = {"w": jnp.array([1.0, 2.0]), "factor": jnp.int32(2), "f": jnp.cos, "none": None}

    def loss_fn(p, scale):
        assert p["none"] is None
        return jnp.sum(scale * p["factor"].astype(jnp.float32) * p["f"](p["w"]))

    found = MEASURES[measure](loss_fn, params, 3.0)
    plain = MEASURES[measure](lambda w: jnp.sum(3.0 * jnp.float32(2) * jnp.cos(w)), params["w"])
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_leaves_of_different_precision():
    with jax.enable_x64(True):
        params = {"a": jnp.float64(1.0), "b": jnp.float32(1.0), "c": jnp.bfloat16(1.0)}

        def loss_fn(p):
            assert [p[k].dtype for k in "abc"] == [jnp.float64, jnp.float32, jnp.float32]
            a, b, c = (p[k].astype(jnp.float64) for k in "abc")
            return a * b + 2 * c**2

        found = jax.jit(functools.partial(sharpness, loss_fn))(params)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(float(found), 4.0, rtol=1e-7)


@pytest.mark.parametrize("measure", MEASURES)
def test_wrong_arguments_of_every_measure(measure):
    for loss_fn, params, message in [
        (None, jnp.ones(2), "loss_fn must be a function, got None"),
        (
            jnp.sum,
            {"step": jnp.int32(1)},
            "params must have inexact arrays with at least one number",
        ),
        (jnp.sum, jnp.zeros((0, 2)), "params must have inexact arrays with at least one number"),
        (jnp.cos, jnp.ones(2), r"the loss must be a real scalar, got float32 of shape \(2,\)"),
        (lambda x: jnp.sum(x).astype(jnp.complex64), jnp.ones(2), "real scalar, got complex64"),
    ]:
        with pytest.raises(ValueError, match=f"{measure}: .*{message}"):
            MEASURES[measure](loss_fn, params)


@pytest.mark.parametrize("iterations", [0, -1, 2.5, float("nan")])
def test_wrong_numbers_of_iterations(iterations):
    with pytest.raises(ValueError, match=f"iterations must be a whole .*, got {iterations}"):
        sharpness(jnp.sum, jnp.ones(2), iterations=iterations)


@pytest.mark.parametrize("measure", ["along", "lipschitz_along", "curvature_along"])
@pytest.mark.parametrize(
    "step_sizes", [0.1, [], [[0.1]], [0.1, 0.0], [-1.0], [float("nan")]], ids=repr
)
def test_wrong_step_sizes(measure, step_sizes):
    measure = MEASURES[f"{measure}_gradient"].func
    with pytest.raises(ValueError, match=f"{measure.__name__}: step_sizes must be a vector"):
        measure(jnp.sum, jnp.ones(2), step_sizes=step_sizes)


STEP_SIZES = np.array([0.3, 0.02, 0.7])


@pytest.mark.parametrize("spectrum", ["positive", "indefinite", "one_value"])
def test_measures_along_the_gradient_of_a_quadratic(spectrum):
    rng = np.random.default_rng(5)
    a = matrix_with(SPECTRA[spectrum](rng, 6), rng)
    x = rng.standard_normal(6)
    g = a @ x
    points = [x - step_size * g for step_size in STEP_SIZES]
    losses = np.array([0.5 * p @ a @ p for p in points])
    distances = STEP_SIZES * np.linalg.norm(g)
    with jax.enable_x64(True):
        # Two leaves: the result does not depend on how the vector is split.
        params = {"b": jnp.asarray(x[2:]).reshape(2, 2), "a": jnp.asarray(x[:2])}

        def loss_fn(p, matrix):
            return quadratic(jnp.concatenate([p["a"], p["b"].ravel()]), matrix)

        arguments = (loss_fn, params, jnp.asarray(a))
        found = along_gradient(*arguments, step_sizes=STEP_SIZES)
        lipschitz = lipschitz_along_gradient(*arguments, step_sizes=STEP_SIZES)
        curvature = curvature_along_gradient(*arguments, step_sizes=STEP_SIZES)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-11)
    close(found.loss, 0.5 * x @ a @ x)
    close(found.losses, losses)
    close(found.distances, distances)
    close(found.gradient_changes, STEP_SIZES * np.linalg.norm(a @ g))
    close(lipschitz, np.max(np.abs(losses - 0.5 * x @ a @ x) / distances))
    close(curvature, np.linalg.norm(a @ g) / np.linalg.norm(g))


def test_measures_along_the_gradient_of_a_quartic():
    x = np.random.default_rng(6).standard_normal(5)
    g = 4 * x**3
    step_sizes = np.array([0.01, 0.05, 0.03])
    changes = [np.linalg.norm(4 * (x - s * g) ** 3 - g) for s in step_sizes]
    distances = step_sizes * np.linalg.norm(g)
    slopes = [abs(np.sum((x - s * g) ** 4) - np.sum(x**4)) for s in step_sizes] / distances
    # The measures are maxima over step sizes at which they differ.
    assert np.ptp(changes / distances) > 0.1
    assert np.ptp(slopes) > 0.1
    with jax.enable_x64(True):
        arguments = (lambda x: jnp.sum(x**4), jnp.asarray(x))
        curvature = jax.jit(lambda s: curvature_along_gradient(*arguments, step_sizes=s))
        lipschitz = jax.jit(lambda s: lipschitz_along_gradient(*arguments, step_sizes=s))
        found = curvature(jnp.asarray(step_sizes)), lipschitz(jnp.asarray(step_sizes))
    np.testing.assert_allclose(found, [np.max(changes / distances), np.max(slopes)], rtol=1e-12)


def test_measures_are_zero_where_the_gradient_is():
    arguments = (lambda x: jnp.sum(x**2) + 7, jnp.zeros(3))
    assert lipschitz_along_gradient(*arguments, step_sizes=[0.1, 1.0]) == 0
    assert curvature_along_gradient(*arguments, step_sizes=[0.1, 1.0]) == 0
