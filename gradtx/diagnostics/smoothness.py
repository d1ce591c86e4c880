"""How curved and how steep a loss is around its parameters: sharpness and smoothness.

All measures treat the parameters as one real vector x of n numbers (two per complex parameter) in
at least float32: the loss function is called with half-precision parameters widened to float32.
Wrap a measure that is taken repeatedly, as during training, in `jax.jit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from gradtx import norms, trees
from gradtx.arguments import COUNT, check
from gradtx.inputs import real_scalar
from gradtx.messages import shown

LossOfVector = Callable[[jax.Array], jax.Array]

# Half to four times a learning rate of 0.1, the range in the batch normalization study.
STEP_SIZES = (0.05, 0.1, 0.2, 0.4)


def sharpness(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    key: jax.Array | None = None,
    iterations: int = 32,
) -> jax.Array:
    """The largest eigenvalue of the Hessian of the loss.

        max over v of v^T H v / v^T v,    H = d^2 loss / dx^2

    It is the algebraically largest eigenvalue, not the one of largest modulus: it is negative where
    the loss curves down in every direction. Where it exceeds 2 / eta, gradient descent with the
    step size eta oscillates along its eigenvector and diverges.

    The Lanczos method finds it without forming H: each iteration takes one product of H with a
    vector, the derivative of the gradient along it, and keeps that vector. The result is exact (up
    to rounding) after n iterations, and a lower bound before. A few dozen iterations give several
    digits if the largest eigenvalue is well separated from the others, as in trained networks.

    Args:
        loss_fn: a function of the parameters and `args` that returns a real scalar.
        params: the point x, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *args: further arguments of the loss function, such as a batch.
        key: the PRNG key of the random first vector; None: the same vector every time.
        iterations: the number of Lanczos iterations, >= 1. They need the memory of that many
            copies of the parameters.

    Returns:
        A scalar of the dtype of the widest parameter, at least float32.

    Raises:
        ValueError: if `params` has no parameters, `iterations` is not a whole number >= 1, or the
            loss is not a real scalar.

    Source:
        Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of
        stability", section 2; Lanczos 1950, "An iteration method for the solution of the
        eigenvalue problem of linear differential and integral operators".

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import sharpness
        >>> def valley(p):
        ...     return 3 * p["x"] ** 2 - 5 * p["y"] ** 2
        >>> print(f"{sharpness(valley, {'x': jnp.array(1.0), 'y': jnp.array(1.0)}):.3f}")
        6.000
    """
    iterations = check("sharpness", "iterations", iterations, COUNT)
    loss, x = _as_function_of_vector("sharpness", loss_fn, params, args)
    _, hessian_product = jax.linearize(jax.grad(loss), x)
    start = jax.random.normal(jax.random.key(0) if key is None else key, x.shape, x.dtype)
    tridiagonal = _lanczos(hessian_product, start, min(int(iterations), x.size))
    return jnp.linalg.eigvalsh(tridiagonal)[-1]


def _lanczos(
    product: Callable[[jax.Array], jax.Array], start: jax.Array, iterations: int
) -> jax.Array:
    """The tridiagonal matrix V^T H V, for an orthonormal basis V of the Krylov space of `start`."""
    tolerance = 4 * jnp.finfo(start.dtype).eps * np.sqrt(start.size)

    def iterate(k: jax.Array, carry: Any) -> Any:
        basis, diagonal, off_diagonal, vector, scale, is_complete = carry
        basis = basis.at[k].set(vector)
        image = product(vector)
        # The Krylov space may be complete early, if eigenvalues are equal. The rest of the diagonal
        # is then v_1^T H v_1, which is never above the largest eigenvalue.
        alpha = jnp.where(is_complete, diagonal[0], _dot(vector, image))
        scale = jnp.maximum(scale, _norm(image))
        # Orthogonalized twice, because of the rounding errors of the first time.
        rest = image - _dot(basis.T, _dot(basis, image))
        rest = rest - _dot(basis.T, _dot(basis, rest))
        beta = _norm(rest)
        is_complete |= beta <= tolerance.astype(scale.dtype) * scale
        vector = jnp.where(is_complete, 0.0, rest / jnp.where(is_complete, 1.0, beta))
        beta = jnp.where(is_complete, 0.0, beta)
        return (
            basis,
            diagonal.at[k].set(alpha),
            off_diagonal.at[k].set(beta),
            vector,
            scale,
            is_complete,
        )

    zeros = jnp.zeros(iterations, start.dtype)
    carry = (
        jnp.zeros((iterations, start.size), start.dtype),
        zeros,
        zeros,
        start / _norm(start),
        jnp.zeros((), start.dtype),
        jnp.array(False),
    )
    _, diagonal, off_diagonal, *_ = lax.fori_loop(0, iterations, iterate, carry)
    return jnp.diag(diagonal) + jnp.diag(off_diagonal[:-1], 1) + jnp.diag(off_diagonal[:-1], -1)


class AlongGradient(NamedTuple):
    """What `along_gradient` finds at the points x - eta g, for each of n step sizes eta.

    Attributes:
        loss: the loss at x, a scalar.
        losses: the losses at the points, shape (n,).
        gradient_changes: the Euclidean distances of the gradients there from g, shape (n,).
        distances: the distances of the points from x, eta ||g||, shape (n,).
    """

    loss: jax.Array
    losses: jax.Array
    gradient_changes: jax.Array
    distances: jax.Array


def along_gradient(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    step_sizes: ArrayLike | Sequence[float] = STEP_SIZES,
) -> AlongGradient:
    """The loss and the change of its gradient along the direction of a gradient step.

        loss(x - eta g)  and  ||grad loss(x - eta g) - g||,    g = grad loss(x)

    The range of the losses is the "variation in loss" of the batch normalization study, and the
    range of the gradient's changes its "gradient predictiveness".

    Args:
        loss_fn: a function of the parameters and `args` that returns a real scalar.
        params: the point x, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *args: further arguments of the loss function, such as a batch.
        step_sizes: the values of eta, shape (n,), n >= 1, each > 0: a range around the learning
            rate. The default suits a learning rate of 0.1.

    Returns:
        The `AlongGradient`, of the dtype of the widest parameter, at least float32.

    Raises:
        ValueError: if `params` has no parameters, `step_sizes` is not a vector of numbers > 0, or
            the loss is not a real scalar.

    Source:
        Santurkar et al. 2018, "How does batch normalization help optimization?", section 3.1 and
        Figures 4 (a) and (b).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import along_gradient
        >>> found = along_gradient(lambda x: x**2, jnp.array(1.0), step_sizes=[0.25, 0.5, 1.0])
        >>> print(found.losses, found.distances, found.gradient_changes)
        [0.25 0.   1.  ] [0.5 1.  2. ] [1. 2. 4.]
    """
    return _along_gradient("along_gradient", loss_fn, params, args, step_sizes)


def lipschitz_along_gradient(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    step_sizes: ArrayLike | Sequence[float] = STEP_SIZES,
) -> jax.Array:
    """The largest rate of change of the loss along the gradient: a local Lipschitz constant.

        max over eta of |loss(x - eta g) - loss(x)| / ||eta g||,    g = grad loss(x)

    Args:
        loss_fn: a function of the parameters and `args` that returns a real scalar.
        params: the point x, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *args: further arguments of the loss function, such as a batch.
        step_sizes: the values of eta, shape (n,), n >= 1, each > 0: a range around the learning
            rate. The default suits a learning rate of 0.1.

    Returns:
        A scalar of the dtype of the widest parameter, at least float32; zero where the gradient
        is zero. For small step sizes it is the norm of the gradient.

    Raises:
        ValueError: if `params` has no parameters, `step_sizes` is not a vector of numbers > 0, or
            the loss is not a real scalar.

    Source:
        Santurkar et al. 2018, "How does batch normalization help optimization?", section 3, the
        definition of L-Lipschitz, restricted to the points of Figure 4 (a).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import lipschitz_along_gradient
        >>> print(lipschitz_along_gradient(lambda x: x**2, jnp.array(1.0), step_sizes=[0.25, 1.0]))
        1.5
    """
    owner = "lipschitz_along_gradient"
    found = _along_gradient(owner, loss_fn, params, args, step_sizes)
    return _largest_ratio(jnp.abs(found.losses - found.loss), found.distances)


def curvature_along_gradient(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    step_sizes: ArrayLike | Sequence[float] = STEP_SIZES,
) -> jax.Array:
    """The largest rate of change of the gradient along itself: the effective beta-smoothness.

        max over eta of ||grad loss(x - eta g) - g|| / ||eta g||,    g = grad loss(x)

    Args:
        loss_fn: a function of the parameters and `args` that returns a real scalar.
        params: the point x, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *args: further arguments of the loss function, such as a batch.
        step_sizes: the values of eta, shape (n,), n >= 1, each > 0: a range around the learning
            rate. The default suits a learning rate of 0.1.

    Returns:
        A scalar of the dtype of the widest parameter, at least float32; zero where the gradient
        is zero. For a quadratic loss it is ||H g|| / ||g|| for all step sizes.

    Raises:
        ValueError: if `params` has no parameters, `step_sizes` is not a vector of numbers > 0, or
            the loss is not a real scalar.

    Source:
        Santurkar et al. 2018, "How does batch normalization help optimization?", section 3.1 and
        Figure 4 (c).

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import curvature_along_gradient
        >>> print(curvature_along_gradient(lambda x: x**2, jnp.array(1.0), step_sizes=[0.25, 1.0]))
        2.0
    """
    owner = "curvature_along_gradient"
    found = _along_gradient(owner, loss_fn, params, args, step_sizes)
    return _largest_ratio(found.gradient_changes, found.distances)


def _along_gradient(
    owner: str, loss_fn: Callable[..., Any], params: Any, args: tuple[Any, ...], step_sizes: Any
) -> AlongGradient:
    loss, x = _as_function_of_vector(owner, loss_fn, params, args)
    step_sizes = _step_sizes(owner, step_sizes).astype(x.dtype)
    value_and_gradient = jax.value_and_grad(loss)
    here, gradient = value_and_gradient(x)

    def measure(step_size: jax.Array) -> tuple[jax.Array, jax.Array]:
        there, gradient_there = value_and_gradient(x - step_size * gradient)
        return there, _norm(gradient_there - gradient)

    losses, changes = lax.map(measure, step_sizes)
    return AlongGradient(here, losses, changes, step_sizes * _norm(gradient))


def _step_sizes(owner: str, step_sizes: Any) -> jax.Array:
    array = jnp.asarray(step_sizes)
    is_known = not isinstance(array, Tracer)
    if array.ndim != 1 or not array.size or (is_known and not np.all(np.asarray(array) > 0)):
        raise ValueError(
            f"{owner}: step_sizes must be a vector of numbers > 0, got {shown(step_sizes)}"
        )
    return array


def _largest_ratio(changes: jax.Array, distances: jax.Array) -> jax.Array:
    moves = distances > 0
    return jnp.max(jnp.where(moves, changes / jnp.where(moves, distances, 1.0), 0.0))


def _as_function_of_vector(
    owner: str, loss_fn: Callable[..., Any], params: Any, args: tuple[Any, ...]
) -> tuple[LossOfVector, jax.Array]:
    """The loss as a function of one real vector, and the vector of the parameters."""
    if not callable(loss_fn):
        raise ValueError(f"{owner}: loss_fn must be a function, got {shown(loss_fn)}")
    leaves, treedef = trees.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if trees.is_trained(leaf)]
    if not any(np.size(leaves[i]) for i in places):
        raise ValueError(
            f"{owner}: params must have inexact arrays with at least one number, got "
            f"{shown(params)}"
        )
    arrays = [_widen(leaves[i]) for i in places]
    dtype = max((trees.real_dtype(array.dtype) for array in arrays), key=lambda d: d.itemsize)

    def loss_of_vector(x: jax.Array) -> jax.Array:
        parts, filled = iter(_cut(x, arrays)), list(leaves)
        for i, array in zip(places, arrays, strict=True):
            part = next(parts)
            filled[i] = lax.complex(part, next(parts)) if jnp.iscomplexobj(array) else part
            filled[i] = filled[i].astype(array.dtype)
        loss = loss_fn(treedef.unflatten(filled), *args)
        return real_scalar(owner, loss).astype(dtype)

    return loss_of_vector, jnp.concatenate([jnp.ravel(p).astype(dtype) for p in _real(arrays)])


def _widen(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    return array.astype(trees.compute_dtype(array.dtype))


def _real(arrays: list[jax.Array]) -> list[jax.Array]:
    """The arrays, each complex one as its real and its imaginary part."""
    return [
        part
        for array in arrays
        for part in ((array.real, array.imag) if jnp.iscomplexobj(array) else (array,))
    ]


def _cut(x: jax.Array, arrays: list[jax.Array]) -> list[jax.Array]:
    """The vector, split into pieces of the shapes of the real arrays."""
    shapes = [part.shape for part in _real(arrays)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [
        piece.reshape(shape) for piece, shape in zip(jnp.split(x, ends[:-1]), shapes, strict=True)
    ]


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # By default an accelerator may round the factors of a product to fewer digits.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _norm(x: jax.Array) -> jax.Array:
    return norms.norm(x)[0]
