"""Arrays seen as batches of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.kernels.matrices import as_matrices, named_axes
from gradtx.testing import check_transformation

HEADS = gradtx.MuonDimensionNumbers(0, 2)


def sums_of_columns(g, p):
    return g + jnp.sum(g * p, axis=-2, keepdims=True)


@pytest.mark.parametrize(
    ("numbers", "shape", "einsum"),
    [
        ((0, 1), (2, 3), "ab->ab"),
        ((-1, 0), (2, 3), "ab->ba"),
        ((0, 2), (2, 3, 4), "abc->bac"),
        (((3, 0), 2), (2, 3, 4, 5), "abcd->bdac"),
    ],
    ids=["matrix", "transposed", "heads", "two-batches"],
)
def test_layout(numbers, shape, einsum):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.einsum(einsum, x)
    axes = named_axes("test", gradtx.MuonDimensionNumbers(*numbers), (), x)
    matrices = axes.to_matrices(jnp.asarray(x))
    np.testing.assert_array_equal(matrices, expected.reshape(matrices.shape))
    np.testing.assert_array_equal(axes.from_matrices(matrices, shape), x)
    assert matrices.ndim == len(shape) - np.size(numbers[0]) - 1 + 2
    assert matrices.shape[-1] == shape[numbers[1]]


def test_updates_and_parameters_are_seen_alike():
    g = jnp.arange(24.0).reshape(4, 2, 3)
    tx = as_matrices(gradtx.stateless_with_tree_map(sums_of_columns), HEADS)
    updates, _ = tx.update({"w": g}, tx.init({"w": g}), {"w": 2 * g})
    np.testing.assert_allclose(updates["w"], g + jnp.sum(2 * g * g, axis=0, keepdims=True))


def test_contract():
    params = {"heads": jnp.ones((4, 2, 3)), "more": {"heads": jnp.ones((8, 1, 2), jnp.bfloat16)}}
    # Only arrays with three axes have the axes that are named here.
    tx = as_matrices(gradtx.trace(0.9), HEADS)
    check_transformation(tx, params, capabilities=["shapes"], skip=["empty_trees"])


def test_structures_must_agree():
    tx = as_matrices(gradtx.trace(0.9))
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"as_matrices: .* differ at 'w'"):
        tx.update(params, tx.init(params), {"v": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match=r"as_matrices: .* at 'w': .*\(2, 2\).*\(3, 2\)"):
        tx.update(params, tx.init(params), {"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"as_matrices: 'w' of shape \(2,\) is not a matrix"):
        tx.init({"w": jnp.ones(2)})
    jax.eval_shape(tx.init, params)
