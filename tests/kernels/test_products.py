"""Products of matrices, and of matrices with arrays along one of their axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import gradtx
from gradtx.kernels.products import (
    adjoint,
    gram_along,
    matrix_axes_up_to,
    multiply_along,
    squares_along,
)

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(2, 3, 4)) + 1j * RNG.normal(size=(2, 3, 4))).astype(np.complex64)


@pytest.mark.parametrize(
    ("axis", "gram", "product"),
    [
        (0, "abc,dbc->ad", "da,abc->dbc"),
        (1, "abc,adc->bd", "db,abc->adc"),
        (2, "abc,abd->cd", "dc,abc->abd"),
    ],
    ids=["first", "second", "third"],
)
def test_along_each_axis(axis, gram, product):
    expected = np.einsum(gram, X, X.conj())
    np.testing.assert_allclose(gram_along(jnp.asarray(X), axis), expected, rtol=1e-5, atol=1e-5)
    squares = squares_along(jnp.asarray(X), axis)
    np.testing.assert_allclose(squares, np.diag(expected).real, rtol=1e-5)
    matrix = RNG.normal(size=(5, X.shape[axis])).astype(np.complex64)
    found = multiply_along(jnp.asarray(matrix), jnp.asarray(X), axis)
    np.testing.assert_allclose(found, np.einsum(product, matrix, X), rtol=1e-5, atol=1e-5)


def test_a_stack_has_the_adjoint_of_each_of_its_matrices():
    np.testing.assert_array_equal(adjoint(jnp.asarray(X)), np.stack([x.conj().T for x in X]))


def products(jaxpr):
    """The products of matrices in a program, and in what it calls."""
    found = [equation for equation in jaxpr.eqns if equation.primitive.name == "dot_general"]
    for equation in jaxpr.eqns:
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part, "eqns"):
                found += products(getattr(part, "jaxpr", part))
    return found


def products_of(name):
    tx, x = getattr(gradtx, f"scale_by_{name}")(), jnp.ones((40, 3))
    found = products(jax.make_jaxpr(tx.update)(x, tx.init(x)).jaxpr)
    assert found
    return found


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_statistics_are_as_precise_as_their_dtype(name):
    # By default accelerators round the factors of float32 products to fewer bits.
    for equation in products_of(name):
        assert equation.params["precision"] == (lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_the_iteration_is_as_precise_as_jax_is_told_to_be(name):
    assert {equation.params["precision"] for equation in products_of(name)} == {None}
    with jax.default_matmul_precision("highest"):
        found = products_of(name)
    assert {equation.params["precision"] for equation in found} == {(lax.Precision.HIGHEST,) * 2}
    # Of the two Gram matrices the smaller one is enough.
    assert {(40, 3), (3, 40), (3, 3)} >= {equation.outvars[0].aval.shape for equation in found}


def test_matrices_are_kept_for_short_axes_and_not_for_vectors():
    assert matrix_axes_up_to((3, 7, 5), 5) == [0, 2]
    assert matrix_axes_up_to((3,), 5) == matrix_axes_up_to((), 5) == []
