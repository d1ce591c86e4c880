"""A transformation against its equation in double precision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx.testing.clause import ULPS, Case, ExtraArgs
from gradtx.testing.comparison import Violation, expect_same, flatten
from gradtx.testing.references.equation import Reference
from gradtx.testing.report import ConformanceError
from gradtx.testing.trees import gradients_like, hostile_parameters, is_parameter

OnOneLeaf = Callable[[Sequence[np.ndarray], np.ndarray], Sequence[Any]]


def check_reference(
    tx: optax.GradientTransformation,
    reference: Reference | OnOneLeaf,
    params: Any = None,
    *,
    steps: int = 5,
    extra_args: ExtraArgs = None,
    ulps: float = ULPS,
    slots: Collection[str] = (),
) -> None:
    """Compare a transformation's numbers with those of its equation in double precision.

    Args:
        tx: the transformation.
        reference: one of `gradtx.testing.references`, or of `references.equation`. Or a function
            of the gradients of one leaf, an array for each step, and of its parameter, which then
            stays the same; it returns the update of each step. All are NumPy arrays in float64, or
            complex128.
        params: a tree of arrays; None: `hostile_parameters()`.
        steps: how many steps to compare.
        extra_args: the extra arguments that the update needs, or a function of the parameters
            that returns them as a dictionary. A reference that is given a loss `value` brings one
            for each step.
        ulps: how far the numbers may differ, in units of the last place of the largest number of
            a leaf. Where they differ more in single precision, all is compared once more in double
            precision, to nine digits; an equation that is right there is right.
        slots: names of slots of the reference that the state has too, and that are compared.

    Raises:
        ConformanceError: if an update or a slot differs; the message names the step and the leaf.

    Example:
        >>> import gradtx
        >>> from gradtx.testing import check_reference, references
        >>> check_reference(gradtx.adamw(0.1), references.adamw(0.1), slots=("mu", "nu"))
        >>> def momentum(gradients, parameter):
        ...     velocity, updates = 0.0, []
        ...     for g in gradients:
        ...         velocity = 0.9 * velocity + g
        ...         updates.append(-0.1 * velocity)
        ...     return updates
        >>> check_reference(gradtx.sgd(0.1, momentum=0.9), momentum)
    """
    params = hostile_parameters() if params is None else params
    try:
        _compare(Case(tx, params, extra_args, ulps), reference, steps, slots)
    except Violation as violation:
        # The equation may be right and lose digits, as 1 - 0.999^t does in single precision.
        with jax.enable_x64(True):
            wide = Case(tx, jax.tree.map(_in_double, params), extra_args, _ULPS_IN_DOUBLE)
            try:
                _compare(wide, reference, steps, slots)
            except Violation:
                raise ConformanceError({"reference": str(violation)}) from violation


# Of a number in double precision; 1 - 0.9999^t loses four digits, and a cubic root a few.
_ULPS_IN_DOUBLE = 2.0**20


def _in_double(leaf: Any) -> Any:
    if not is_parameter(leaf):
        return leaf
    is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
    return jnp.asarray(leaf, jnp.complex128 if is_complex else jnp.float64)


def _compare(
    case: Case, reference: Reference | OnOneLeaf, steps: int, slots: Collection[str]
) -> None:
    """Raise a `Violation` where an update or a slot differs."""
    params = case.params
    gradients = [case.gradients(step) for step in range(1, steps + 1)]
    if isinstance(reference, Reference):
        points, extra = _points(params, steps), _values(reference, steps)
        expected = _run(reference, gradients, points, extra, slots)
    else:
        points, extra = [params] * steps, [{}] * steps
        expected = [(updates, {}) for updates in _by_leaf(reference, gradients, params)]
    update = jax.jit(lambda g, state, p, more: case.tx.update(g, state, p, **case.extra(p), **more))
    state = case.tx.init(params)
    for step, (right, right_slots) in enumerate(expected):
        updates, state = update(gradients[step], state, points[step], extra[step])
        expect_same(f"the update of step {step + 1}", right, updates, case.ulps)
        for name in slots:
            found = optax.tree.get(state, name)
            _expect_slot(f"{name} of step {step + 1}", right_slots[name], found, case.ulps)


def _points(params: Any, steps: int) -> list[Any]:
    """Other parameters for each step, which single precision represents exactly."""

    def moved(p: Any, change: Any) -> Any:
        return p + change / 8 if is_parameter(p) else p

    changes = [gradients_like(params, seed=100 + step) for step in range(steps)]
    return [params, *(jax.tree.map(moved, params, change) for change in changes[1:])]


def _values(reference: Reference, steps: int) -> list[dict[str, Any]]:
    """A loss for each step, if the reference needs one."""
    losses = np.random.default_rng(3).exponential(size=steps)
    is_given = "value" in reference.given
    return [{"value": jnp.float32(loss)} if is_given else {} for loss in losses]


def _run(
    reference: Reference,
    gradients: Sequence[Any],
    points: Sequence[Any],
    extra: Sequence[Any],
    names: Collection[str],
) -> list[tuple[Any, dict[str, list[Any]]]]:
    """The updates of each step as a tree, and each slot as a list of what leaves have."""
    named, treedef = flatten(gradients[0])
    # Equations know nothing of arrays without elements.
    kept = [i for i, (_, leaf) in enumerate(named) if leaf is not None and np.size(leaf)]
    gs, ps = ([_doubles(tree, kept) for tree in several] for several in (gradients, points))
    values = [{name: float(x) for name, x in more.items()} for more in extra]
    steps = []
    for updates, slots in reference.run(gs, ps, values):
        leaves = [leaf for _, leaf in named]
        for i, u in zip(kept, updates, strict=True):
            leaves[i] = jnp.asarray(u, leaves[i].dtype)
        by_name = {name: [leaf[name] for leaf in slots] for name in names}
        steps.append((treedef.unflatten(leaves), by_name))
    return steps


def _doubles(tree: Any, kept: Sequence[int]) -> list[np.ndarray]:
    leaves = flatten(tree)[0]
    return [_double(leaves[i][1]) for i in kept]


def _expect_slot(what: str, right: list[Any], found: Any, ulps: float) -> None:
    """Compare the slot of all leaves that have elements, or of all leaves as one vector."""
    theirs = jax.tree.leaves(right)
    ours = [leaf for leaf in jax.tree.leaves(found) if np.size(leaf)]
    if len(theirs) == 1:
        ours = [jnp.concatenate([jnp.ravel(leaf) for leaf in ours])]
    if [np.size(x) for x in theirs] != [np.size(x) for x in ours]:
        sizes = f"{[np.size(x) for x in ours]} and not {[np.size(x) for x in theirs]} elements"
        raise Violation("", f"{what} to be that of the reference", f"arrays of {sizes}")
    expected = [jnp.asarray(x, y.dtype).reshape(y.shape) for x, y in zip(theirs, ours, strict=True)]
    expect_same(what, expected, ours, ulps)


def _by_leaf(reference: OnOneLeaf, gradients: Sequence[Any], params: Any) -> list[Any]:
    """The updates of each step, each leaf in a call for itself."""
    treedef = flatten(params)[1]
    columns = zip(*([x for _, x in flatten(tree)[0]] for tree in (params, *gradients)), strict=True)
    right = [_expected(reference, leaf, parts) for leaf, *parts in columns]
    return [treedef.unflatten(leaf[step] for leaf in right) for step in range(len(gradients))]


def _expected(reference: OnOneLeaf, parameter: Any, gradients: Sequence[Any]) -> list[Any]:
    if gradients[0] is None:
        return list(gradients)
    updates = reference([_double(gradient) for gradient in gradients], _double(parameter))
    return [jnp.asarray(u, g.dtype) for u, g in zip(updates, gradients, strict=True)]


def _double(x: Any) -> np.ndarray:
    is_complex = jnp.issubdtype(x.dtype, jnp.complexfloating)
    return np.asarray(x).astype(np.complex128 if is_complex else np.float64)
