"""The hypothesis strategies draw what they promise."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, find, given, settings

import gradtx
from gradtx.testing import check_updates, strategies

QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def exists(strategy, condition):
    return find(strategy, condition, settings=settings(QUICK, max_examples=2000))


@QUICK
@given(strategies.inputs(with_strangers=True))
def test_gradients_fit_their_parameters(inputs):
    params, gradients = inputs
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)
    drawn = jax.tree.leaves(gradients, is_leaf=lambda leaf: leaf is None)
    for p, g in zip(leaves, drawn, strict=True):
        if p is None or not jnp.issubdtype(p.dtype, jnp.inexact):
            assert g is None
        else:
            assert (g.shape, g.dtype) == (p.shape, p.dtype)


@QUICK
@given(strategies.inputs([jnp.float16, jnp.bfloat16], extreme=True))
def test_extreme_gradients_are_finite(inputs):
    for gradient in jax.tree.leaves(inputs[1]):
        assert np.all(np.isfinite(np.asarray(gradient, np.float32)))


@QUICK
@given(strategies.arrays([jnp.float32], max_dims=2, max_side=2))
def test_arrays_keep_their_bounds(array):
    assert array.ndim <= 2
    assert all(side <= 2 for side in array.shape)
    assert np.all(np.abs(array) <= 10)


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
def test_extreme_gradients_reach_the_ends_of_the_dtype(dtype):
    limits, one = jnp.finfo(dtype), {"w": jnp.zeros(1, dtype)}
    drawn = strategies.gradients(one, extreme=True)
    for end in (limits.smallest_subnormal, limits.max):
        exists(drawn, lambda g, end=end: np.asarray(g["w"])[0] == end)


@pytest.mark.parametrize(
    "kind", [type(None), optax.MaskedNode, jax.Array], ids=lambda kind: kind.__name__
)
def test_strangers_stand_among_the_parameters(kind):
    params = strategies.parameters(with_strangers=True)
    exists(params, lambda tree: isinstance(tree, list) and tree and isinstance(tree[0], kind))


@pytest.mark.parametrize("container", [dict, list, tuple])
def test_trees_nest_every_container(container):
    def has_it_inside(tree) -> bool:
        if not isinstance(tree, dict | list | tuple):
            return False
        parts = tree.values() if isinstance(tree, dict) else tree
        return any(isinstance(part, container) and part for part in parts)

    exists(strategies.trees(), has_it_inside)


@settings(QUICK, max_examples=10)
@given(strategies.parameters(with_strangers=True))
def test_the_kit_takes_what_is_drawn(params):
    check_updates(gradtx.sgd(0.1, momentum=0.9), params)


def test_the_rest_of_the_kit_does_without_hypothesis():
    program = (
        "import sys\n"
        "sys.modules['hypothesis'] = None\n"
        "import gradtx.testing\n"
        "try:\n"
        "    from gradtx.testing import strategies\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert 'pip install "gradtx[test]"' in done.stdout
