"""Other layouts for the arrays that a transformation gets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from optax.contrib import SplitRealAndImaginaryState

from gradtx import trees
from gradtx.compose.parts import Part, composed, locality_of, owner_of, parts_of
from gradtx.compose.sequence import as_transformation
from gradtx.effect import LINEAR, LINEAR_WITHOUT_STATE
from gradtx.explicit import gathered, laid_out_as
from gradtx.leaves import Aligned, parameters_of
from gradtx.lift import kernel_of
from gradtx.messages import shown
from gradtx.stored import to_store


def flatten(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let a transformation see all parameters as one vector.

    An elementwise transformation, and one that measures the norm of the whole gradient, give the
    same results on a vector of all elements, with one operation instead of one per array. What
    depends on the shapes of arrays or chooses among them would not, and is refused if it is made
    by this library; optax's own transformations are all accepted.

    The vector has the widest dtype of the tree. Where a gradient is None, the vector has zeros,
    and the corresponding elements of the state do not change.

    Args:
        inner: the transformation to apply to the vector.

    Returns:
        A transformation whose state is that of `inner` for a vector. The updates have the dtypes
        of the gradients.

    Raises:
        ValueError: if `inner` has a part that depends on the shapes of arrays, or chooses among
            them, or is not a transformation; in `init` and `update`, if the tree mixes real and
            complex arrays.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.flatten(gradtx.trace(0.9))
        >>> params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
        >>> print(tx.init(params).trace.shape)
        (6,)
    """
    inner = as_transformation("flatten", "inner", inner)
    _check_preserved(inner)

    def init(params: Any) -> Any:
        parameters = parameters_of(params)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in parameters):
            return inner.init(jax.eval_shape(_vector, parameters))
        return inner.init(_vector(parameters))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        aligned = _aligned(updates, params)
        gradients, flat_params = aligned.parts(), None
        pieces = gradients
        if params is not None:
            parameters = aligned.parts("params")
            flat_params = _vector(parameters)
            pieces = [
                g if trees.is_parameter(g) else jnp.zeros_like(p)
                for g, p in zip(gradients, parameters, strict=True)
            ]
        vector, new_state = inner.update(_vector(pieces), state, flat_params, **extra)
        sizes = [np.size(piece) for piece in pieces]
        new = aligned.tree_of(
            _piece(jnp.asarray(vector), g, end) if trees.is_parameter(g) else g
            for g, end in zip(gradients, np.cumsum(sizes), strict=True)
        )
        present = [trees.is_parameter(g) for g in gradients]
        if not all(present):
            new_state = _where(np.repeat(present, sizes), new_state, state)
        return new, new_state

    return composed("flatten", (Part("", inner),), init, update, effect=LINEAR_WITHOUT_STATE)


def _check_preserved(tx: optax.GradientTransformation) -> None:
    kernel = kernel_of(tx)
    if (kernel is not None and not kernel.elementwise) or locality_of(tx) == "leaf":
        name = owner_of(tx) if kernel is None else kernel.name
        raise ValueError(
            f"flatten: {name} depends on the shape of each array, which a vector of all "
            "elements does not have; chain it outside of flatten"
        )
    for part in parts_of(tx):
        if part.choose is not None:
            raise ValueError(
                f"flatten: {owner_of(tx)} chooses among the arrays, which are one vector here; "
                f"put flatten inside of {owner_of(tx)}"
            )
        _check_preserved(part.transformation)


def _vector(leaves: list[Any]) -> jax.Array:
    """All elements of the leaves, in the widest dtype."""
    if not leaves:
        return jnp.zeros([0], jnp.float32)
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    if len({jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes}) > 1:
        raise ValueError(
            "flatten: real and complex arrays do not fit into one vector, got the dtypes "
            f"{sorted({str(dtype) for dtype in dtypes})}"
        )
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*dtypes)
    return jnp.concatenate([jnp.ravel(gathered(jnp.asarray(leaf, dtype))) for leaf in leaves])


def _piece(vector: jax.Array, gradient: Any, end: int) -> jax.Array:
    """The elements up to `end`, as many as the gradient has, in its shape and dtype."""
    like = jnp.asarray(gradient)
    part = lax.slice_in_dim(vector, end - like.size, end)
    return laid_out_as(to_store(part.reshape(like.shape), like.dtype), like)


def _aligned(updates: Any, params: Any) -> Aligned:
    """The leaves that are part of the vector: those with a gradient or a parameter."""

    def has_place(*leaf: Any) -> bool:
        return any(map(trees.is_parameter, leaf))

    if params is None:
        return Aligned("flatten", {"updates": updates}, takes_part=has_place)
    named = {"updates": updates, "params": params}
    aligned = Aligned("flatten", named, takes_part=has_place, same_shapes=False)
    for i, gradient, parameter in zip(aligned.active, *map(aligned.parts, named), strict=True):
        if not trees.is_parameter(parameter):
            raise ValueError(
                f"flatten: the gradient at '{aligned.path(i)}' has no parameter, got "
                f"{shown(parameter)}"
            )
        if trees.is_parameter(gradient) and np.shape(gradient) != np.shape(parameter):
            aligned.refuse(i, "params")
    return aligned


def _where(has_gradient: np.ndarray, new_state: Any, state: Any) -> Any:
    """The new state where there is a gradient, the old one elsewhere."""

    def choose(new: Any, old: Any) -> Any:
        if np.shape(new) != has_gradient.shape:
            return new
        return jnp.where(has_gradient, new, old.astype(new.dtype))

    return jax.tree.map(choose, new_state, state)


# The pair is of optax's own class, so that either library resumes the other's runs. It is private
# there.
_to_itself = optax.GradientTransformation(
    lambda params: params, lambda updates, state, params=None: (updates, state)
)
_split_state: Any = jax.eval_shape(
    optax.contrib.split_real_and_imaginary(_to_itself).init, np.complex64()
)
_Pair: Any = type(_split_state.inner_state)


def split_real_and_imaginary(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let a transformation see each complex array as a pair of real arrays.

        u = Re u + i Im u,    (Re u, Im u) = inner(Re g, Im g)

    So a complex parameter moves as two real ones would; Adam, for example, has a second moment for
    each part. The gradients must point uphill: take the conjugate of what `jax.grad` returns.

    Args:
        inner: the transformation of the real arrays.

    Returns:
        A transformation with the state `SplitRealAndImaginaryState(inner_state)`, in which each
        complex array is a pair with the fields `real` and `imaginary`. Real arrays are unchanged.

    Raises:
        ValueError: if `inner` is not a transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> tx = gradtx.split_real_and_imaginary(gradtx.sign_sgd(0.5))
        >>> print(tx.update(jnp.array([3 - 4j]), tx.init(jnp.array([1j])))[0])
        [-0.5+0.5j]
    """
    inner = as_transformation("split_real_and_imaginary", "inner", inner)

    def init(params: Any) -> SplitRealAndImaginaryState:
        return SplitRealAndImaginaryState(inner.init(jax.tree.map(_split, params)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        real_updates, real_params = jax.tree.map(_split, (updates, params))
        new, inner_state = inner.update(real_updates, state.inner_state, real_params, **extra)
        merged = jax.tree.map(_merge, new, is_leaf=lambda node: isinstance(node, _Pair))
        return merged, SplitRealAndImaginaryState(inner_state)

    return composed(
        "split_real_and_imaginary",
        (Part("", inner),),
        init,
        update,
        state=SplitRealAndImaginaryState,
        effect=LINEAR,
    )


def _split(leaf: Any) -> Any:
    is_complex = trees.is_parameter(leaf) and jnp.iscomplexobj(leaf)
    return _Pair(jnp.real(leaf), jnp.imag(leaf)) if is_complex else leaf


def _merge(node: Any) -> Any:
    # Not real + 1j * imaginary, which makes NaN of infinity.
    return lax.complex(node.real, node.imaginary) if isinstance(node, _Pair) else node
