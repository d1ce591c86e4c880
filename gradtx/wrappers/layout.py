"""Other layouts for the arrays that a transformation sees."""

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
from gradtx.lift import kernel_of
from gradtx.messages import shown


def flatten(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let a transformation see all parameters as one vector.

    A transformation that works element by element, and measures such as the norm of the whole
    gradient, do the same on a vector of all elements, with one operation instead of one for each
    array. What depends on the shape of an array or chooses among arrays does not, and is refused
    where it is known: where this library made it. optax's own transformations are all accepted.

    The vector has the widest dtype of the tree. Where a gradient is None, the vector has zeros,
    and the elements of the state that belong to it stay as they are.

    Args:
        inner: the transformation of the vector.

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
        leaves, _ = trees.flatten(params)
        parameters = [leaf for leaf in leaves if trees.is_parameter(leaf)]
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in parameters):
            return inner.init(jax.eval_shape(_vector, parameters))
        return inner.init(_vector(parameters))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        gradients, treedef = trees.flatten(updates)
        parameters: list[Any] = [None] * len(gradients)
        if params is not None:
            parameters = _parameters_for(updates, params)
        # What has neither a gradient nor a parameter had no place in the vector of init.
        places = [
            i
            for i, pair in enumerate(zip(gradients, parameters, strict=True))
            if any(map(trees.is_parameter, pair))
        ]
        present = [trees.is_parameter(gradients[i]) for i in places]
        pieces = [
            gradients[i] if here else jnp.zeros_like(parameters[i])
            for i, here in zip(places, present, strict=True)
        ]
        flat_params = None if params is None else _vector([parameters[i] for i in places])
        new: Any
        new, new_state = inner.update(_vector(pieces), state, flat_params, **extra)
        ends = np.cumsum([np.size(piece) for piece in pieces])
        for i, end, here in zip(places, ends, present, strict=True):
            if here:
                gradient = jnp.asarray(gradients[i])
                part = lax.slice_in_dim(new, end - gradient.size, end)
                gradients[i] = part.reshape(gradient.shape).astype(gradient.dtype)
        if not all(present):
            has_gradient = np.repeat(present, [np.size(piece) for piece in pieces])
            new_state = _where(has_gradient, new_state, state)
        return treedef.unflatten(gradients), new_state

    return composed("flatten", (Part("", inner),), init, update)


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
    return jnp.concatenate([jnp.ravel(jnp.asarray(leaf, dtype)) for leaf in leaves])


def _parameters_for(updates: Any, params: Any) -> list[Any]:
    gradients, _ = trees.flatten(updates)
    parameters = trees.flatten_like("flatten", "params", params, "updates", updates)
    for i, (gradient, parameter) in enumerate(zip(gradients, parameters, strict=True)):
        if not trees.is_parameter(gradient):
            continue
        if not trees.is_parameter(parameter):
            raise ValueError(
                f"flatten: the gradient at '{trees.paths(updates)[i]}' has no parameter, but "
                f"{shown(parameter)}"
            )
        if np.shape(gradient) != np.shape(parameter):
            trees.refuse_shape("flatten", "updates", updates, i, "params", parameter)
    return parameters


def _where(has_gradient: np.ndarray, new_state: Any, state: Any) -> Any:
    """The new state where there is a gradient, the old one elsewhere."""

    def choose(new: Any, old: Any) -> Any:
        if np.shape(new) != has_gradient.shape:
            return new
        return jnp.where(has_gradient, new, old.astype(new.dtype))

    return jax.tree.map(choose, new_state, state)


# The pair is optax's own class, so that states change hands; it has no public name there.
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
    """Let a transformation see each complex array as two real ones.

        u = Re u + i Im u,    (Re u, Im u) = inner(Re g, Im g)

    Then a complex parameter moves as two real ones would: Adam, for one, has a second moment for
    either part. Give it gradients that point uphill: JAX's `grad` returns their conjugate.

    Args:
        inner: the transformation of the real arrays.

    Returns:
        A transformation with the state `SplitRealAndImaginaryState(inner_state)`, where each
        complex array is a pair with the fields `real` and `imaginary`. Real arrays pass as they
        are.

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
    )


def _split(leaf: Any) -> Any:
    is_complex = trees.is_parameter(leaf) and jnp.iscomplexobj(leaf)
    return _Pair(jnp.real(leaf), jnp.imag(leaf)) if is_complex else leaf


def _merge(node: Any) -> Any:
    # Not real + 1j * imaginary, which makes NaN of infinity.
    return lax.complex(node.real, node.imaginary) if isinstance(node, _Pair) else node
