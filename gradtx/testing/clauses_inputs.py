"""Clauses about other inputs: numpy arrays, doubles, complex numbers, NaN in parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.testing.clause import Case, clause
from gradtx.testing.clauses_structure import parts_like
from gradtx.testing.comparison import Violation, expect_same, expect_same_types, flatten
from gradtx.testing.narrow_slots import expect_same_step
from gradtx.testing.programs import depends_on_chance
from gradtx.testing.trees import gradients_like, is_parameter


@clause(
    "numpy",
    level="must",
    asks="a step with numpy arrays",
    given="numpy arrays for gradients and parameters",
    hint="`jnp.asarray` before `.at`, and no `*=`, `+=` or `out=`, which change an array of numpy "
    "in place",
)
def check_numpy(case: Case) -> None:
    """Gradients and parameters may be arrays of numpy: the same result, and they are not changed.

    Arrays of 32 bits or more are replaced; numpy itself does not know narrower ones.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_numpy
        >>> check_numpy(gradtx.sgd(0.1), jnp.ones(2))
    """

    def plain(leaf: Any) -> Any:
        return np.array(leaf) if is_parameter(leaf) and leaf.dtype.itemsize >= 4 else leaf

    params = jax.tree.map(plain, case.params)
    state = case.tx.init(params)
    for step, expected in enumerate(case.steps, 1):
        gradients = jax.tree.map(plain, case.gradients(step))
        result = case.update(gradients, state, params)
        _expect_unchanged("gradients", case.gradients(step), gradients)
        _expect_unchanged("parameters", case.params, params)
        what = f"the result of step {step}"
        expect_same_step(what, expected, result, case)
        state = result[1]


def _expect_unchanged(what: str, before: Any, given: Any) -> None:
    for (path, leaf), (_, old) in zip(flatten(given)[0], flatten(before)[0], strict=True):
        if isinstance(leaf, np.ndarray) and not np.array_equal(leaf, old, equal_nan=True):
            got = "an array that was changed in place"
            raise Violation(path, f"the {what} to be left alone", got)


@clause(
    "double_precision",
    level="promises",
    asks="steps in float64",
    given="float64 where there was float32, under jax.enable_x64",
    hint="make slots and results in the dtype of their leaf, as `jnp.zeros_like(p)` does, and give "
    "new arrays a dtype that does not depend on the setting",
)
def check_double_precision(case: Case) -> None:
    """In float64 updates and slots are float64, to all their digits, and types do not change.

    Of parameters of several dtypes the last float32 leaf stays float32. A transformation that
    keeps some of its slots narrow, as an option for their dtype does, may do so.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_double_precision
        >>> check_double_precision(gradtx.sgd(0.1), jnp.ones(2))
    """
    is_mixed = len({x.dtype for x in jax.tree.leaves(case.params) if is_parameter(x)}) > 1
    with jax.enable_x64(True):
        params, first, second = (
            _in_double(_few(case, tree), is_mixed)
            for tree in (case.params, case.gradients(1), case.gradients(2))
        )
        start = case.tx.init(params)
        updates, state = case.update(first, start, params)
        expect_same_types("the updates", first, updates, weak=False)
        expect_same_types("the state", start, state, weak=False)
        _expect_wide(case, start, params)
        _expect_digits(case, second, state, params)


@clause(
    "complex",
    level="promises",
    asks="steps with complex gradients",
    given="gradients and parameters that are multiplied by i",
    hint="for a loss of |z|² the gradient that comes in is 2 z, so an update against it is -z: "
    "conjugate nothing, and take `jnp.abs` of what is squared",
)
def check_complex(case: Case) -> None:
    """Where complex parameters work, imaginary numbers are updated as real ones are.

    The updates of i g, of parameters i p, are i times those of g. That holds whether real and
    imaginary part are adapted together or each by itself. A transformation may refuse complex
    numbers with an exception; random numbers, and a loss of the caller's own, promise nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_complex
        >>> check_complex(gradtx.adam(0.1), jnp.ones(2))
    """
    if case.extra_args or depends_on_chance(case):
        return

    def steps(factor: complex) -> list[Any] | None:
        def turned(leaf: Any) -> Any:
            is_single = is_parameter(leaf) and leaf.dtype in (jnp.float32, jnp.complex64)
            return jnp.asarray(np.asarray(leaf) * np.complex64(factor)) if is_single else leaf

        try:
            params, found = jax.tree.map(turned, _few(case, case.params)), []
            state = case.tx.init(params)
            for step in (1, 2):
                gradients = jax.tree.map(turned, _few(case, case.gradients(step)))
                updates, state = case.update(gradients, state, params)
                found.append(updates)
        except Exception:
            return None
        return found

    real, imaginary = steps(1), steps(1j)
    if real is None or imaginary is None:
        return
    for one, other in zip(real, imaginary, strict=True):
        expected = jax.tree.map(
            lambda u: (
                jnp.asarray(np.asarray(u) * np.complex64(1j)) if u.dtype == jnp.complex64 else u
            ),
            one,
        )
        expect_same("the updates", expected, other, case.ulps, case.magnitude)


@clause(
    "init_values",
    level="must",
    asks="init at parameters that are not finite",
    given="parameters that are NaN and infinite",
    hint="`jnp.zeros_like(p)` in place of `0 * p` or `p - p`, which are NaN there",
)
def check_init_values(case: Case) -> None:
    """What init fills with zeros, or another constant, does not depend on the parameters' values.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_init_values
        >>> check_init_values(gradtx.sgd(0.1, momentum=0.9), jnp.ones(2))
    """
    # Not the parameters of the case, which may be zeros.
    drawn = jax.tree.map(lambda p, g: p if g is None else g, case.params, case.gradients(1))
    usual = flatten(case.tx.init(drawn))[0]
    for value in (np.nan, np.inf):
        params = jax.tree.map(
            lambda p, value=value: jnp.full_like(p, value) if is_parameter(p) else p, case.params
        )
        found = dict(flatten(case.tx.init(params))[0])
        for path, leaf in usual:
            if not is_parameter(leaf) or not leaf.size or path not in found:
                continue
            numbers, new = (np.asarray(x).astype(np.complex128) for x in (leaf, found[path]))
            is_filled = np.all(numbers == numbers.ravel()[0]) and (leaf.size > 1 or numbers == 0)
            if is_filled and np.any(np.isnan(new)):
                expected = f"init to fill the slot with {leaf.ravel()[0]}"
                raise Violation(path, expected, "NaN", given=f"parameters that are {value}")


def _few(case: Case, tree: Any) -> Any:
    """Three float32 leaves of different shapes from a tree like the parameters, to save time."""
    if case.capabilities & {"whole_tree", "shapes", "names"}:
        return tree
    kept: dict[Any, int] = {}
    named = flatten(case.params)[0]
    for i, (_, leaf) in enumerate(named):
        if is_parameter(leaf) and leaf.dtype == jnp.float32 and leaf.size:
            kept.setdefault(leaf.shape, i)
    leaves = [leaf for _, leaf in flatten(tree)[0]]
    return {named[i][0]: leaves[i] for i in list(kept.values())[:3]} or tree


def _in_double(tree: Any, is_mixed: bool) -> Any:
    """The tree with float32 leaves in float64; if `is_mixed`, but for the last of several."""
    named, treedef = flatten(tree)
    single = [i for i, (_, x) in enumerate(named) if is_parameter(x) and x.dtype == jnp.float32]
    wide = set(single[:-1] if is_mixed and len(single) > 1 else single)
    return treedef.unflatten(
        jnp.asarray(np.asarray(leaf, np.float64)) if i in wide else leaf
        for i, (_, leaf) in enumerate(named)
    )


def _expect_wide(case: Case, state: Any, params: Any) -> None:
    """Demand that not all slots of float64 parameters are float32."""
    kept: dict[str, list[Any]] = {}
    for part in parts_like(state, params):
        for (path, leaf), (_, parameter) in zip(flatten(part)[0], flatten(params)[0], strict=True):
            is_slot = is_parameter(leaf) and leaf.shape == parameter.shape
            if is_slot and parameter.dtype == jnp.float64:
                kept.setdefault(path, []).append(leaf.dtype)
    for path, dtypes in kept.items():
        if all(dtype == jnp.float32 for dtype in dtypes):
            raise Violation(path, "a slot in float64", "only slots in float32")


# A change that float32 cannot hold, and one that it can.
_TINY, _LARGE = 2.0**-30, 2.0**-10
# How many roundings have to be smaller than what a tiny change should do.
_ULPS = 64.0


def _expect_digits(case: Case, gradients: Any, state: Any, params: Any) -> None:
    """Demand that updates follow a change too small for float32, if they follow a large one."""
    usual, tiny, large = (
        dict(flatten(case.update(_varied(gradients, by), state, params)[0])[0])
        for by in (0.0, _TINY, _LARGE)
    )
    for path, leaf in usual.items():
        if is_parameter(leaf) and leaf.dtype == jnp.float64 and leaf.ndim == 1 and leaf.size:
            u = np.asarray(leaf)
            expected = np.abs(np.asarray(large[path]) - u) * (_TINY / _LARGE)
            follows = np.all(expected > _ULPS * np.finfo(np.float64).eps * np.abs(u))
            if follows and np.array_equal(tiny[path], leaf):
                got = "the digits of float32: a small change of the gradient changes nothing"
                raise Violation(path, "an update with the digits of float64", got)


def _varied(gradients: Any, by: float) -> Any:
    """The gradients in float64, each element changed by another share."""
    noise = gradients_like(gradients, seed=99)

    def vary(leaf: Any, change: Any) -> Any:
        is_wide = is_parameter(leaf) and leaf.dtype == jnp.float64
        return jnp.asarray(np.asarray(leaf) * (1 + by * np.asarray(change))) if is_wide else leaf

    return jax.tree.map(vary, gradients, noise)
