"""Clauses about several devices."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradtx.testing.clause import Case, clause
from gradtx.testing.clauses_structure import parts_like
from gradtx.testing.comparison import Violation, flatten
from gradtx.testing.narrow_slots import expect_same_step


class _Run(NamedTuple):
    """An init and two compiled steps on several devices, on a mesh with automatic axes.

    Attributes:
        mesh: the mesh.
        params: the parameters, each sharded along its first axis that the devices divide.
        start: the state before the first step, of an eager init.
        compiled_start: the same of a compiled init.
        states: the state after each step.
        first: the result of the first step.
    """

    mesh: Mesh
    params: Any
    start: Any
    compiled_start: Any
    states: list[Any]
    first: Any


# Two clauses look at the same run.
@functools.lru_cache(maxsize=1)
def _run(case: Case) -> _Run:
    mesh = _mesh(AxisType.Auto)
    params, *gradients = (
        jax.tree.map(jax.device_put, tree, _shardings(mesh, tree))
        for tree in (case.params, case.gradients(1), case.gradients(2))
    )
    start, step = case.tx.init(params), jax.jit(case.update)
    first = step(gradients[0], start, params)
    _, last = step(gradients[1], first[1], params)
    return _Run(mesh, params, start, jax.jit(case.tx.init)(params), [first[1], last], first)


def _mesh(kind: AxisType) -> Mesh:
    return Mesh(np.array(jax.devices()), ("devices",), axis_types=(kind,))


def _shardings(mesh: Mesh, tree: Any) -> Any:
    """For each array the sharding along its first axis that the number of devices divides.

    An array without elements is replicated: compilers do not keep its layout.
    """

    def sharding(leaf: Any) -> NamedSharding:
        sizes = [leaf.size > 0 and size % mesh.size == 0 for size in leaf.shape]
        axis = sizes.index(True) if True in sizes else len(sizes)
        spec = PartitionSpec(*[None] * axis, *["devices"] * (axis < len(sizes)))
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, tree)


@clause(
    "sharding",
    level="must",
    asks="a compiled update of leaves on several devices",
    given="gradients sharded over all devices",
    hint="let the numbers depend on the arrays only, not on the device or the name of an axis",
)
def check_sharding(case: Case) -> None:
    """Sharded over devices, the numbers are the same.

    Each parameter is sharded along its first axis that the number of devices divides, under
    `jax.jit`; then all of them are replicated under `jax.shard_map`. On one device there is
    nothing to check.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_sharding
        >>> check_sharding(gradtx.sgd(0.1), jnp.ones(8))
    """
    if jax.device_count() < 2:
        return
    run = _run(case)
    expect_same_step("the result on sharded inputs", case.steps[0], run.first, case)

    everywhere = PartitionSpec()
    mapped = jax.shard_map(case.update, mesh=run.mesh, in_specs=everywhere, out_specs=everywhere)
    result = jax.jit(mapped)(case.gradients(1), case.state, case.params)
    expect_same_step("the result under shard_map", case.steps[0], result, case)


@clause(
    "layouts",
    level="promises",
    asks="init and two compiled updates on a mesh",
    given="parameters sharded over all devices",
    hint="make slots of their parameters with `jnp.zeros_like(p)`, not of shapes, and constrain "
    "no layout",
)
def check_layouts(case: Case) -> None:
    """Init, compiled or not, puts the state where the parameters lie, and it stays there.

    Nothing in the state changes its layout in two compiled steps, nor its type in a step on a mesh
    with explicit axes, where layouts are parts of types. The parameters are sharded as for
    `check_sharding`. On one device there is nothing to check.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_layouts
        >>> check_layouts(gradtx.adam(0.1), jnp.ones(8))
    """
    if jax.device_count() < 2:
        return
    run = _run(case)
    _expect_beside("the state of init", run.start, run.params)
    _expect_beside("the state of update", run.states[0], run.params)
    _expect_beside("the state of the compiled init", run.compiled_start, run.params)
    for number, state in enumerate(run.states, 1):
        _expect_same_layouts(f"the state after step {number}", run.compiled_start, state)

    mesh = _mesh(AxisType.Explicit)
    params, gradients = (
        jax.tree.map(
            lambda x, own: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own),
            tree,
            _shardings(mesh, tree),
        )
        for tree in (case.params, case.gradients(1))
    )
    with jax.set_mesh(mesh):
        state = jax.eval_shape(case.tx.init, params)
        _, new = jax.eval_shape(case.update, gradients, state, params)
    for (path, old), (_, leaf) in zip(flatten(state)[0], flatten(new)[0], strict=True):
        if _spec(old) != _spec(leaf):
            raise Violation(
                path,
                f"the state after a step on a mesh with explicit axes to be sharded {_spec(old)}",
                f"{_spec(leaf)}",
            )


def _expect_same_layouts(what: str, expected: Any, got: Any) -> None:
    for (path, old), (_, new) in zip(flatten(expected)[0], flatten(got)[0], strict=True):
        is_array = isinstance(old, jax.Array) and old.size
        # What does not depend on the parameters, such as a count, is on one device after a compiled
        # init, and the first step copies it.
        is_array = is_array and len(old.sharding.device_set) > 1
        if is_array and not old.sharding.is_equivalent_to(new.sharding, old.ndim):
            raise Violation(path, f"{what} to lie as {old.sharding}", f"{new.sharding}")


def _spec(leaf: Any) -> tuple[Any, ...]:
    """How an array in the abstract is sharded."""
    spec = [*getattr(getattr(leaf, "sharding", None), "spec", ())]
    while spec and spec[-1] is None:
        spec.pop()
    return tuple(spec)


def _expect_beside(what: str, state: Any, params: Any) -> None:
    for part in parts_like(state, params):
        for (path, leaf), (_, parameter) in zip(flatten(part)[0], flatten(params)[0], strict=True):
            if not isinstance(leaf, jax.Array) or leaf.shape != parameter.shape:
                continue
            if parameter.sharding.is_fully_replicated:
                continue  # an uncommitted array on one device is copied where it is needed
            if not leaf.sharding.is_equivalent_to(parameter.sharding, leaf.ndim):
                raise Violation(path, f"{what} to lie as {parameter.sharding}", f"{leaf.sharding}")
