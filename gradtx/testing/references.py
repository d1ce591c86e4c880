"""Float64 references: a transformation against its equation, transcribed in plain NumPy."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx.testing.clause import ULPS, Case, ConformanceError, ExtraArgs
from gradtx.testing.comparison import Violation, expect_same, flatten
from gradtx.testing.trees import hostile_parameters

Reference = Callable[[Sequence[np.ndarray], np.ndarray], Sequence[Any]]


def check_reference(
    tx: optax.GradientTransformation,
    reference: Reference,
    params: Any = None,
    *,
    steps: int = 5,
    extra_args: ExtraArgs = None,
    ulps: float = ULPS,
) -> None:
    """Compare a transformation's numbers with those of its equation in double precision.

    Args:
        tx: the transformation.
        reference: a function of the gradients of one leaf, an array for each step, and of its
            parameter, which stays the same; it returns the update of each step. All are NumPy
            arrays in float64, or complex128.
        params: a tree of arrays; None: `hostile_parameters()`.
        steps: how many steps to compare.
        extra_args: the extra arguments that the update needs, or a function of the parameters
            that returns them as a dictionary.
        ulps: how far the numbers may differ, in units of the last place of the largest number of
            a leaf.

    Raises:
        ConformanceError: if an update differs; the message names the step and the leaf.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_reference
        >>> def momentum(gradients, parameter):
        ...     velocity, updates = 0.0, []
        ...     for g in gradients:
        ...         velocity = 0.9 * velocity + g
        ...         updates.append(-0.1 * velocity)
        ...     return updates
        >>> check_reference(gradtx.sgd(0.1, momentum=0.9), momentum)
    """
    params = hostile_parameters() if params is None else params
    case = Case(tx, params, extra_args, ulps)
    gradients = [case.gradients(step) for step in range(1, steps + 1)]
    right = [_expected(reference, leaf, parts) for leaf, *parts in _columns(params, *gradients)]
    treedef = flatten(params)[1]
    state, update = tx.init(params), jax.jit(case.update)
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, params)
        try:
            what = f"the update of step {step + 1}"
            expect_same(what, treedef.unflatten(leaf[step] for leaf in right), updates, ulps)
        except Violation as violation:
            raise ConformanceError({"reference": str(violation)}) from violation


def _columns(*trees: Any) -> Iterable[tuple[Any, ...]]:
    """For each leaf, including None, its value in every tree."""
    return zip(*([leaf for _, leaf in flatten(tree)[0]] for tree in trees), strict=True)


def _expected(reference: Reference, parameter: Any, gradients: Sequence[Any]) -> list[Any]:
    if gradients[0] is None:
        return list(gradients)
    updates = reference([_double(gradient) for gradient in gradients], _double(parameter))
    return [jnp.asarray(u, g.dtype) for u, g in zip(updates, gradients, strict=True)]


def _double(x: Any) -> np.ndarray:
    is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
    return np.asarray(x).astype(np.complex128 if is_complex else np.float64)
