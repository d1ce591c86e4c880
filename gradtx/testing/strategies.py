"""Hypothesis strategies: trees of parameters and gradients to test a transformation with.

    @given(strategies.inputs())
    def test_steps_are_finite(inputs):
        params, gradients = inputs
        ...

This is the only module of the kit that needs hypothesis: `pip install "gradtx[test]"`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from gradtx.testing.trees import is_parameter

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        'gradtx.testing.strategies needs hypothesis: pip install "gradtx[test]"'
    ) from error

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
_ORDINARY = st.floats(-10, 10, width=16)


def arrays(
    dtypes: Sequence[DTypeLike] = DTYPES, max_dims: int = 3, max_side: int = 3
) -> st.SearchStrategy[jax.Array]:
    """Real arrays of ordinary size, numbers between -10 and 10.

    Args:
        dtypes: the dtypes to choose from.
        max_dims: the largest number of dimensions; 0 gives scalars.
        max_side: the largest length of a dimension; the smallest is 0.

    Returns:
        A strategy for arrays; it shrinks to a scalar zero of the first dtype.

    Example:
        >>> from gradtx.testing import strategies
        >>> from hypothesis import find
        >>> print(find(strategies.arrays(max_dims=0), lambda x: x > 2.5))
        3.0
    """
    shapes = st.lists(st.integers(0, max_side), max_size=max_dims).map(tuple)
    kinds = st.tuples(shapes, st.sampled_from(tuple(dtypes)))
    return kinds.flatmap(lambda kind: _array(_ORDINARY, *kind))


def trees(
    leaves: st.SearchStrategy[Any] | None = None, max_leaves: int = 4
) -> st.SearchStrategy[Any]:
    """Nested dictionaries, lists and tuples.

    Args:
        leaves: a strategy for the leaves; None: `arrays()`.
        max_leaves: the largest number of leaves of a tree.

    Returns:
        A strategy for trees; one leaf alone is a tree too, and so is an empty container.

    Example:
        >>> import jax
        >>> from gradtx.testing import strategies
        >>> from hypothesis import find
        >>> scalars = strategies.arrays(max_dims=0)
        >>> tree = find(strategies.trees(scalars), lambda tree: isinstance(tree, dict) and tree)
        >>> print(jax.tree.map(float, tree))
        {'kernel': 0.0}
    """
    leaves = arrays() if leaves is None else leaves

    def containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(children, max_size=3)
        named = st.dictionaries(st.sampled_from(["kernel", "bias", "scale"]), children)
        return several | several.map(tuple) | named

    return st.recursive(leaves, containers, max_leaves=max_leaves)


def parameters(
    dtypes: Sequence[DTypeLike] = DTYPES, *, max_leaves: int = 4, with_strangers: bool = False
) -> st.SearchStrategy[Any]:
    """Trees of parameters.

    Args:
        dtypes: the dtypes to choose from.
        max_leaves: the largest number of leaves of a tree.
        with_strangers: whether to include None, `optax.MaskedNode()` and integer arrays.

    Returns:
        A strategy for trees.

    Example:
        >>> from gradtx.testing import strategies
        >>> from hypothesis import find
        >>> params = strategies.parameters(with_strangers=True)
        >>> print(find(params, lambda tree: isinstance(tree, tuple) and None in tree))
        (None,)
    """
    leaves = arrays(dtypes)
    if with_strangers:
        integers = st.integers(0, 9).map(jnp.int32)
        leaves = leaves | st.none() | st.builds(optax.MaskedNode) | integers
    return trees(leaves, max_leaves)


def gradients(params: Any, *, extreme: bool = False) -> st.SearchStrategy[Any]:
    """Gradients of given parameters.

    Args:
        params: a tree of arrays.
        extreme: whether to draw any finite number of each leaf's dtype, including subnormal and
            largest ones, instead of numbers between -10 and 10.

    Returns:
        A strategy for trees of the structure of `params`, with None where that has no inexact
        array.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.testing import strategies
        >>> from hypothesis import find
        >>> params = {"w": jnp.zeros(2, jnp.float16), "steps": jnp.int32(3)}
        >>> drawn = find(strategies.gradients(params, extreme=True), lambda g: max(g["w"]) > 6e4)
        >>> drawn["steps"] is None
        True
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda leaf: leaf is None)
    return st.tuples(*(_gradient(leaf, extreme) for leaf in leaves)).map(treedef.unflatten)


def inputs(
    dtypes: Sequence[DTypeLike] = DTYPES,
    *,
    max_leaves: int = 4,
    with_strangers: bool = False,
    extreme: bool = False,
) -> st.SearchStrategy[tuple[Any, Any]]:
    """Parameters and gradients that fit together.

    Args:
        dtypes: the dtypes to choose from.
        max_leaves: see `parameters`.
        with_strangers: see `parameters`.
        extreme: see `gradients`.

    Returns:
        A strategy for pairs of trees.

    Example:
        >>> import gradtx
        >>> import jax
        >>> from gradtx.testing import strategies
        >>> from hypothesis import given, settings
        >>> @settings(max_examples=3, deadline=None, derandomize=True)
        ... @given(strategies.inputs(max_leaves=1))
        ... def test_keeps_types(inputs):
        ...     params, gradients = inputs
        ...     updates, _ = gradtx.sgd(0.1).update(gradients, gradtx.sgd(0.1).init(params))
        ...     assert jax.tree.structure(updates) == jax.tree.structure(params)
        >>> test_keeps_types()
    """
    trees_of_parameters = parameters(dtypes, max_leaves=max_leaves, with_strangers=with_strangers)
    return trees_of_parameters.flatmap(
        lambda params: st.tuples(st.just(params), gradients(params, extreme=extreme))
    )


def _gradient(parameter: Any, extreme: bool) -> st.SearchStrategy[jax.Array | None]:
    if not is_parameter(parameter):
        return st.none()
    dtype = parameter.dtype
    return _array(_finite(dtype) if extreme else _ORDINARY, parameter.shape, dtype)


def _finite(dtype: Any) -> st.SearchStrategy[float]:
    limits = jnp.finfo(dtype)
    largest, tiniest = float(limits.max), float(limits.smallest_subnormal)
    special = st.sampled_from([0.0, tiniest, -tiniest, float(limits.tiny), largest, -largest])
    return special | st.floats(-largest, largest, width=64 if limits.bits == 64 else 32)


def _array(
    numbers: st.SearchStrategy[float], shape: tuple[int, ...], dtype: Any
) -> st.SearchStrategy[jax.Array]:
    size = math.prod(shape)
    return st.lists(numbers, min_size=size, max_size=size).map(
        lambda drawn: jnp.asarray(np.array(drawn, np.float64).reshape(shape), dtype)
    )
