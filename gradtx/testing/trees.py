"""Trees of parameters that find mistakes: odd shapes, odd dtypes, odd containers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from gradtx.arguments import COUNT_OR_ZERO, check

Tree = Any


class Dense(NamedTuple):
    """The parameters of a dense layer, as a container that is neither a dict nor a list.

    Attributes:
        kernel: a matrix.
        bias: a vector.
    """

    kernel: Any
    bias: Any


def is_parameter(leaf: Any) -> bool:
    """Whether a leaf is an inexact array; only those can be trained."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jnp.inexact)


def usual_parameters() -> Tree:
    """The tree on which `check_transformation` runs by default.

    It is the hostile one in float32, without the array that has no elements: half precision and
    such arrays have clauses of their own, so that what fails there alone is reported there.
    """
    return _numbers_in(_vector(jnp.float32))


def hostile_parameters() -> Tree:
    """A tree that finds mistakes: odd shapes, dtypes and containers.

    It nests a dictionary, a named tuple and a list, and has a matrix (with 8 rows, so that it can
    be sharded over devices), a vector, a scalar, an array without elements and a bfloat16 vector.
    It is small: most of the time of a check is compilation.

    Returns:
        A tree of five arrays, the same at each call.

    Example:
        >>> import jax
        >>> from gradtx.testing import hostile_parameters
        >>> print(jax.tree.map(lambda leaf: leaf.shape, hostile_parameters()["layers"]))
        [(3,), (0, 2)]
    """
    return _numbers_in(_vector(jnp.bfloat16), jax.ShapeDtypeStruct((0, 2), jnp.float32))


def _numbers_in(*layers: jax.ShapeDtypeStruct) -> Tree:
    matrix = jax.ShapeDtypeStruct((8, 3), jnp.float32)
    shapes = {
        "dense": Dense(kernel=matrix, bias=_vector(jnp.float32)),
        "layers": list(layers),
        "temperature": jax.ShapeDtypeStruct((), jnp.float32),
    }
    return gradients_like(shapes, seed=0)


def hostile_trees() -> dict[str, Tree]:
    """Unusual trees that a transformation may be given, by name.

    Returns:
        No leaves at all; one array without a container; only None; only arrays without elements;
        leaves that no optimizer may change; masked leaves; many dimensions; complex numbers.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_updates, hostile_trees
        >>> for tree in hostile_trees().values():
        ...     check_updates(gradtx.sgd(0.1), tree)
    """
    vector = _vector(jnp.float32)
    shapes = {
        "no_leaves": {},
        "one_array": vector,
        "missing_leaves": {"frozen": None, "trained": vector},
        "only_missing_leaves": [None, None],
        "no_elements": (jax.ShapeDtypeStruct((0,), jnp.float32),),
        "masked_leaves": {"hidden": optax.MaskedNode(), "trained": vector},
        "many_dimensions": {"kernel": jax.ShapeDtypeStruct((1, 2, 1, 3, 2), jnp.float32)},
        "complex": {"phase": jax.ShapeDtypeStruct((3,), jnp.complex64)},
    }
    trees = {name: gradients_like(tree, seed=0) for name, tree in shapes.items()}
    trees["not_parameters"] = {
        "steps": jnp.int32(3),
        "is_training": jnp.array([True, False]),
        "trained": trees["one_array"],
    }
    return trees


def gradients_like(params: Tree, seed: int = 0) -> Tree:
    """Standard normal numbers in the shapes and dtypes of the parameters.

    Args:
        params: a tree of arrays or `jax.ShapeDtypeStruct`.
        seed: the same seed gives the same numbers.

    Returns:
        A tree of the structure of `params`; where that has no inexact array, None, which means
        "no gradient".

    Raises:
        ValueError: if `seed` is not a whole number >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.testing import gradients_like
        >>> gradients_like({"w": jnp.zeros(2), "steps": jnp.int32(3)}, seed=1)["steps"] is None
        True
    """
    check("gradients_like", "seed", seed, COUNT_OR_ZERO)
    generator = np.random.default_rng(int(seed))

    def numbers(leaf: Any) -> jax.Array | None:
        if not is_parameter(leaf):
            return None
        values = generator.standard_normal(leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            values = values + 1j * generator.standard_normal(leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(numbers, params, is_leaf=lambda leaf: leaf is None)


def cast_parameters(params: Tree, dtype: DTypeLike) -> Tree:
    """The tree with its real parameters in another dtype.

    Args:
        params: a tree of arrays.
        dtype: the real dtype to cast to; complex and other leaves stay as they are.

    Returns:
        A tree of the same structure.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.testing import cast_parameters
        >>> print(cast_parameters({"w": jnp.ones(2)}, jnp.bfloat16)["w"].dtype)
        bfloat16
    """

    def cast(leaf: Any) -> Any:
        is_real = is_parameter(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if is_real else leaf

    return jax.tree.map(cast, params)


def _vector(dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((3,), dtype)
