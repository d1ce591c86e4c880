"""Clauses about jax's transformations: however a step is run, it is the same step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation, expect_same, expect_same_types, flatten
from gradtx.testing.narrow_slots import expect_same_step
from gradtx.testing.runs import at, long_run
from gradtx.testing.trees import is_parameter


@clause(
    "jit",
    level="must",
    asks="a compiled init and two compiled updates",
    hint="calculate with `jnp` and `jax.lax`, and do not test in Python for tracers or for values",
)
def check_jit(case: Case) -> None:
    """Compiled, init and two updates give the same numbers as eager calls.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_jit
        >>> check_jit(gradtx.sgd(0.1), jnp.ones(2))
    """
    run = case.compiled_run
    expect_same("the compiled init", case.state, run.state, case.ulps, case.magnitude)
    for i, (eager, compiled) in enumerate(zip(case.steps, run.steps, strict=True)):
        expect_same_step(f"the result of compiled step {i + 1}", eager, compiled, case)


@clause(
    "vmap",
    level="must",
    asks="init and update under `jax.vmap`",
    hint="operate on arrays without reading values, and give custom operations a batching rule",
)
def check_vmap(case: Case) -> None:
    """Mapped over a batch of two trees, it gives the same as for each of them.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_vmap
        >>> check_vmap(gradtx.sgd(0.1), jnp.ones(2))
    """
    other_params = jax.tree.map(lambda p: p / 2 if is_parameter(p) else p, case.params)
    other_state = case.tx.init(other_params)
    states = case.state, other_state
    steps = case.steps[0], case.update(case.gradients(2), other_state, other_params)
    params = _stack(case.params, other_params)
    gradients = _stack(case.gradients(1), case.gradients(2))
    state = jax.vmap(case.tx.init, axis_size=2)(params)
    batch = state, jax.jit(jax.vmap(case.update, axis_size=2))(gradients, state, params)
    for i, (one, single) in enumerate(zip(states, steps, strict=True)):
        start, found = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        expect_same(f"the init of element {i}", one, start, case.ulps, case.magnitude)
        expect_same_step(f"element {i} of a batch", single, found, case)


@clause(
    "scan",
    level="must",
    asks="a `jax.lax.scan` of updates",
    hint="return each field of the state with the structure, shape and dtype that it came with",
)
def check_scan(case: Case) -> None:
    """In a `lax.scan` over gradients, it gives the same as in a loop.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_scan
        >>> check_scan(gradtx.sgd(0.1), jnp.ones(2))
    """
    run = long_run(case)
    if isinstance(run, Exception):
        raise run
    for step, eager in enumerate(case.steps, 1):
        found = at(run.updates, step), at(run.states, step)
        expect_same_step(f"the result of step {step} of a scan", eager, found, case)


@clause(
    "eval_shape",
    level="must",
    asks="`jax.eval_shape` of init and update",
    hint="build the state from shapes and dtypes in the same way for arrays and for tracers",
)
def check_eval_shape(case: Case) -> None:
    """`jax.eval_shape` predicts the types of init and update, from types alone.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_eval_shape
        >>> check_eval_shape(gradtx.sgd(0.1), jnp.ones(2))
    """
    params, gradients = jax.eval_shape(lambda *trees: trees, case.params, case.gradients(1))
    state = jax.eval_shape(case.tx.init, params)
    expect_same_types("the abstract init", case.state, state, weak=False)
    result = jax.eval_shape(case.update, gradients, state, params)
    expect_same_types("the abstract update", case.steps[0], result, weak=False)


@clause(
    "donation",
    level="promises",
    asks="compiled updates whose gradients and state are donated",
    hint="let init make new buffers with `jnp.zeros_like` or `jnp.copy`: not the parameters, and "
    "no constant",
)
def check_donation(case: Case) -> None:
    """Gradients and state may be donated to the compiled update, again and again.

    So init must return new buffers: not the parameters, not one buffer in two places, and not one
    that it will return again. And what an eager step took and did not return is never looked at
    again: neither buffers of the caller nor of its own may be kept in a closure.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_donation
        >>> check_donation(gradtx.sgd(0.1), jnp.ones(2))
    """
    owners = {_buffer(leaf): f"the parameter '{path}'" for path, leaf in _arrays(case.params)}
    states = [case.tx.init(case.params) for _ in range(2)]
    for state in states:
        for path, leaf in _arrays(state):
            if _buffer(leaf) in owners:
                got = f"that of {owners[_buffer(leaf)]}"
                raise Violation(path, "init to return a new buffer", got)
            owners[_buffer(leaf)] = f"'{path}' of this or an earlier state"
    for state in states:
        result = case.compiled(case.gradients(1), state, case.params)
        expect_same_step("the result with donated arguments", case.steps[0], result, case)
    for _ in range(2):
        state = case.tx.init(case.params)
        for step, expected in enumerate(case.steps, 1):
            gradients = case.gradients(step)
            result = case.update(gradients, state, case.params)
            expect_same("the result after deleting earlier arguments", expected, result)
            _delete((gradients, state), unless=(result, case.params))
            state = result[1]
        _delete(state, unless=case.params)


def _delete(tree: Any, unless: Any) -> None:
    """Delete the buffers of a tree, as donating it does, but for those of another tree."""
    kept = {_buffer(leaf) for _, leaf in _arrays(unless)}
    for _, leaf in _arrays(tree):
        if _buffer(leaf) not in kept and not leaf.is_deleted():
            leaf.delete()


def _stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _arrays(tree: Any) -> list[tuple[str, jax.Array]]:
    return [(path, leaf) for path, leaf in flatten(tree)[0] if isinstance(leaf, jax.Array)]


def _buffer(array: jax.Array) -> int:
    """What two arrays have in common if and only if they share memory."""
    is_plain = not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if is_plain and array.size and len(array.devices()) == 1:
        return array.unsafe_buffer_pointer()
    return -id(array)
