"""The loss on paths through parameter space: straight lines, and curves that connect minima.

A path is a weighted sum of a few anchors, parameters of one structure, with weights that depend on
the position t: 1 - t and t on the straight line, three polynomials on a quadratic Bezier curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from gradtx import trees
from gradtx.arguments import COUNT, Range, check
from gradtx.compose.sequence import as_transformation
from gradtx.leaves import map_leaves
from gradtx.messages import one_of_each, shown
from gradtx.recipes.adam import adam
from gradtx.updates import apply_updates

_POINTS = Range("a whole number >= 2", lambda value: value >= 2 and float(value).is_integer())


def interpolate_loss(
    loss_fn: Callable[..., Any], start: Any, end: Any, *args: Any, points: int = 25
) -> tuple[jax.Array, jax.Array]:
    """The loss on the straight line between two sets of parameters.

        loss((1 - t) start + t end)    for t = 0, ..., 1

    Args:
        loss_fn: a function of the parameters and `args` that returns a number, or a tree of
            numbers and arrays.
        start: the parameters at t = 0, a tree of arrays.
        end: the parameters at t = 1, a tree of the same structure and shapes.
        *args: further arguments of the loss function, such as a batch. They are trees of arrays.
        points: the number of evenly spaced points, including the ends, >= 2.

    Returns:
        `(ts, losses)`: the positions t, shape (points,), and what the loss function returned
        there, its arrays with a first axis of length `points`.

        The parameters at a point have the dtypes of `start` and are computed in at least float32.
        Leaves that are not inexact arrays are taken from `start`.

    Raises:
        ValueError: if `points` is not a whole number >= 2, or structures or shapes differ, naming
            the path.

    Source:
        Goodfellow, Vinyals & Saxe 2015, "Qualitatively characterizing neural network optimization
        problems", the linear path experiment.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import interpolate_loss
        >>> ts, losses = interpolate_loss(
        ...     lambda p: (p**2 - 1) ** 2, jnp.array(-1.0), jnp.array(1.0), points=5
        ... )
        >>> print(ts, losses)
        [0.   0.25 0.5  0.75 1.  ] [0.     0.5625 1.     0.5625 0.    ]
    """
    owner = "interpolate_loss"
    anchors = [_parameters(start), _like(owner, "end", end, start)]
    return _along(owner, loss_fn, _line, start, anchors, args, points)


class ConnectingPath(NamedTuple):
    """A quadratic Bezier curve between two sets of parameters.

        point(t) = (1 - t)^2 start + 2 t (1 - t) midpoint + t^2 end

    Attributes:
        start: the parameters at t = 0.
        midpoint: the control point, which the curve bends towards without passing through it. A
            tree of the structure of `start` in at least float32, with None for leaves that are not
            inexact arrays.
        end: the parameters at t = 1.
        history: the loss at each training step of the curve, at the position drawn in that step,
            shape (steps,).
    """

    start: Any
    midpoint: Any
    end: Any
    history: jax.Array

    def point(self, t: ArrayLike) -> Any:
        """The parameters at the position t, in the dtypes of `start`.

        Args:
            t: a scalar; 0 is the start, 1 the end.

        Returns:
            A tree of the structure of `start`; leaves that are not inexact arrays are taken from
            it.
        """
        return _mix(_bezier(jnp.asarray(t)), self.start, self._anchors("ConnectingPath.point"))

    def losses(
        self, loss_fn: Callable[..., Any], *args: Any, points: int = 25
    ) -> tuple[jax.Array, jax.Array]:
        """The loss on the curve, like `interpolate_loss` on the straight line.

        Args:
            loss_fn: a function of the parameters and `args`, see `interpolate_loss`.
            *args: further arguments of the loss function.
            points: the number of points, evenly spaced in t, including the ends, >= 2.

        Returns:
            `(ts, losses)`, see `interpolate_loss`.

        Raises:
            ValueError: if `points` is not a whole number >= 2.
        """
        owner = "ConnectingPath.losses"
        return _along(owner, loss_fn, _bezier, self.start, self._anchors(owner), args, points)

    def _anchors(self, owner: str) -> list[list[Any]]:
        return [
            _parameters(self.start),
            _like(owner, "midpoint", self.midpoint, self.start),
            _like(owner, "end", self.end, self.start),
        ]


def connecting_path(
    loss_fn: Callable[..., Any],
    start: Any,
    end: Any,
    batches: Any = None,
    *,
    steps: int,
    key: jax.Array,
    tx: optax.GradientTransformation | None = None,
) -> ConnectingPath:
    """Train a curve of low loss between two minima.

        minimize  E over t ~ U(0, 1) of loss(point(t))  over the midpoint,
        point(t) = (1 - t)^2 start + 2 t (1 - t) midpoint + t^2 end

    The midpoint starts halfway between the ends, so that the curve is the straight line. Each step
    draws one t and follows the gradient of the loss at that point.

    Args:
        loss_fn: the loss of a batch, `loss_fn(params, batch)`, a real scalar; without batches
            `loss_fn(params)`.
        start: the parameters at t = 0, a tree of arrays.
        end: the parameters at t = 1, a tree of the same structure and shapes.
        batches: a function of a PRNG key that draws the batch of a step; or stacked batches: a
            tree of arrays of shape (batches, ...), of which step i takes number i modulo `batches`.
            None: the loss takes no batch.
        steps: the number of steps, >= 1.
        key: the PRNG key of the positions t and of the batches.
        tx: the gradient transformation that moves the midpoint; None: `adam(1e-2)`.

    Returns:
        The `ConnectingPath`.

    Raises:
        ValueError: if `steps` is not a whole number >= 1, `tx` is not a gradient transformation,
            structures or shapes differ (naming the path), or `batches` has arrays without a first
            axis or with first axes of different lengths.

    Source:
        Garipov et al. 2018, "Loss surfaces, mode connectivity, and fast ensembling of DNNs",
        sections 3.1, equation 2, and 3.2, the Bezier curve.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from gradtx.diagnostics import connecting_path
        >>> def ring(p):
        ...     return (jnp.sum(p**2) - 1) ** 2
        >>> a, b = jnp.array([1.0, 0.1]), jnp.array([-1.0, 0.1])
        >>> path = connecting_path(ring, a, b, steps=500, key=jax.random.key(0))
        >>> ts, losses = path.losses(ring)
        >>> bool(ring((a + b) / 2) > 0.9), bool(losses.max() < 0.1)
        (True, True)
    """
    owner = "connecting_path"
    steps = check(owner, "steps", steps, COUNT)
    transformation = as_transformation(owner, "tx", adam(1e-2) if tx is None else tx)
    ends = [_parameters(start), _like(owner, "end", end, start)]
    draws = callable(batches)
    number = 0 if draws else _number_of_batches(owner, batches)

    def loss_at(midpoint: Any, ends: Any, t: jax.Array, batch: Any) -> jax.Array:
        params = _mix(_bezier(t), start, [ends[0], midpoint, ends[1]])
        return loss_fn(params) if batches is None else loss_fn(params, batch)

    def train(ends: Any, stack: Any, keys: jax.Array) -> tuple[Any, jax.Array]:
        def step(carry: Any, drawn: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            midpoint, state = carry
            i, step_key = drawn
            t_key, batch_key = jax.random.split(step_key)
            batch = batches(batch_key) if draws else _batch(stack, i, number)
            t = jax.random.uniform(t_key)
            loss, gradient = jax.value_and_grad(loss_at)(midpoint, ends, t, batch)
            gradient = jax.tree.map(jnp.conj, gradient)
            updates, state = transformation.update(gradient, state, midpoint)
            return (apply_updates(midpoint, updates), state), loss

        halfway = [_mixture(_line(0.5), parts) for parts in zip(*ends, strict=True)]
        carry = (halfway, transformation.init(halfway))
        (midpoint, _), losses = lax.scan(step, carry, (jnp.arange(len(keys)), keys))
        return midpoint, losses

    stack = None if draws else batches
    midpoint, history = jax.jit(train)(ends, stack, jax.random.split(key, int(steps)))
    return ConnectingPath(start, trees.flatten(start)[1].unflatten(midpoint), end, history)


def _line(t: Any) -> tuple[Any, ...]:
    return 1 - t, t


def _bezier(t: Any) -> tuple[Any, ...]:
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def _along(
    owner: str,
    loss_fn: Callable[..., Any],
    weights_at: Callable[[Any], Sequence[Any]],
    start: Any,
    anchors: list[list[Any]],
    args: tuple[Any, ...],
    points: int,
) -> tuple[jax.Array, Any]:
    points = check(owner, "points", points, _POINTS)

    # The anchors and the batch are arguments, because large constants slow down compilation.
    @jax.jit
    def losses_at(ts: jax.Array, anchors: list[list[Any]], args: tuple[Any, ...]) -> Any:
        return lax.map(lambda t: loss_fn(_mix(weights_at(t), start, anchors), *args), ts)

    ts = jnp.linspace(0.0, 1.0, int(points))
    return ts, losses_at(ts, anchors, args)


def _mix(weights: Sequence[Any], start: Any, anchors: Sequence[Sequence[Any]]) -> Any:
    """The weighted sum of the anchors, as a tree; its other leaves are those of `start`."""
    leaves, treedef = trees.flatten(start)
    return treedef.unflatten(
        _mixture(weights, parts).astype(jnp.result_type(leaf)) if trees.is_trained(leaf) else leaf
        for leaf, *parts in zip(leaves, *anchors, strict=True)
    )


def _mixture(weights: Sequence[Any], parts: Sequence[Any]) -> Any:
    """The weighted sum of arrays, in at least float32; None if they are None."""
    if parts[0] is None:
        return None
    arrays = [jnp.asarray(part) for part in parts]
    dtype = trees.compute_dtype(arrays[0].dtype)
    return sum(
        jnp.asarray(weight).astype(dtype) * array.astype(dtype)
        for weight, array in zip(weights, arrays, strict=True)
    )


def _parameters(tree: Any) -> list[Any]:
    """The leaves of a tree, with None for those that are not parameters."""
    return [leaf if trees.is_trained(leaf) else None for leaf in trees.flatten(tree)[0]]


def _like(owner: str, name: str, tree: Any, start: Any) -> list[Any]:
    """The leaves of `tree` where `start` has parameters, which must have the same shapes."""
    named = {"start": trees.only_trained(start), name: tree}
    return _parameters(map_leaves(lambda _, part: part, owner, named))


def _number_of_batches(owner: str, batches: Any) -> int:
    named, _ = jax.tree_util.tree_flatten_with_path(batches)
    lengths = {trees.path_name(path): (np.shape(leaf) or (0,))[0] for path, leaf in named}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            f"{owner}: the arrays of batches need the same first axis, of length >= 1, got the "
            f"lengths {shown(one_of_each(lengths, lambda length: length))}"
        )
    return next(iter(lengths.values()), 1)


def _batch(stack: Any, i: jax.Array, number: int) -> Any:
    return jax.tree.map(lambda array: array[i % number], stack)
