"""The clause about arguments that do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from gradtx.testing.clause import Case, clause
from gradtx.testing.comparison import Violation, path_name
from gradtx.testing.trees import is_parameter


@clause(
    "mismatches",
    level="promises",
    asks="init and update",
    given="",
    hint="compare structure and shapes of gradients, state and parameters before the first "
    "operation, because NumPy's rules broadcast what does not fit",
    unless=("names", "whole_tree", "shapes"),
)
def check_mismatches(case: Case) -> None:
    """Arguments of different structure or shapes: a ValueError that names the leaf and shapes.

    A gradient of a wrong shape must never be broadcast. A transformation
    need not compare what it does not read: a state that is the same for all parameters, or
    parameters that it does not need.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> from gradtx.testing import check_mismatches
        >>> check_mismatches(gradtx.sgd(0.1, momentum=0.9), {"w": jnp.ones(2)})
    """
    position = _largest(case.params)
    if position is None:
        return
    path, leaf = position
    gradients = case.gradients(1)
    needs_params = _raises(lambda: _update(case, gradients, case.state, None))
    kept = jax.eval_shape(case.tx.init, case.params)
    for what, change in (
        ("a leaf of another shape", _reshaped),
        ("a container for a leaf", lambda part: {"inner": part}),
        ("a leaf less", lambda part: ()),
    ):
        is_reshaped = change is _reshaped
        params, updates = _changed(case.params, path, change), _changed(gradients, path, change)
        right, wrong = {str(leaf.shape)}, {str(_reshaped(leaf).shape)}
        if jax.eval_shape(case.tx.init, params) != kept:
            state = case.tx.init(params)
            _expect_refusal(
                f"updates with {what}",
                path,
                [wrong, right | _shapes_below(case.state, path)] if is_reshaped else [],
                lambda updates=updates, params=params: _update(case, updates, case.state, params),
            )
            _expect_refusal(
                f"a state with {what}",
                path,
                [right, wrong | _shapes_below(state, path)] if is_reshaped else [],
                lambda state=state: _update(case, gradients, state, case.params),
            )
        if needs_params:
            _expect_refusal(
                f"params with {what}",
                path,
                [wrong, right] if is_reshaped else [],
                lambda params=params: _update(case, gradients, case.state, params),
            )


def _update(case: Case, updates: Any, state: Any, params: Any) -> Any:
    # The extra arguments match; the others do not.
    return case.tx.update(updates, state, params, **case.extra(case.params))


def _largest(tree: Any) -> tuple[Any, Any] | None:
    """The path and value of the largest parameter."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    parameters = [(path, leaf) for path, leaf in named if is_parameter(leaf)]
    return max(parameters, key=lambda item: item[1].size, default=None)


def _reshaped(leaf: Any) -> Any:
    """An array of another shape that would broadcast to the first."""
    return leaf[:1] if leaf.ndim and leaf.shape[0] > 1 else leaf[None]


def _changed(tree: Any, place: Any, change: Callable[[Any], Any]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(leaf) if path == place else leaf, tree
    )


def _raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


def _shapes_below(state: Any, path: Any) -> set[str]:
    """The shapes of what the state keeps for one parameter; they may differ from its shape."""

    def lies_below(place: Any) -> bool:
        starts = range(len(place) - len(path) + 1)
        return any(place[start : start + len(path)] == path for start in starts)

    named, _ = jax.tree_util.tree_flatten_with_path(state)
    return {str(leaf.shape) for place, leaf in named if lies_below(place)}


def _expect_refusal(what: str, path: Any, shapes: list[set[str]], call: Callable[[], Any]) -> None:
    """Demand a ValueError that names the path, and one shape of each set."""
    name = path_name(path)
    spellings = {name, name.replace("/", "."), jax.tree_util.keystr(path)}
    wanted = [f"'{name}'", *(" or ".join(sorted(either)) for either in shapes)]
    expected = f"{what} to be refused with a ValueError that names {' and '.join(wanted)}"
    try:
        call()
    except ValueError as error:
        message = str(error)
        has_all = all(any(text in message for text in either) for either in [spellings, *shapes])
        if not has_all:
            raise Violation(name, expected, f"the message {message[:500]!r}") from error
    except Exception as error:
        got = f"{type(error).__name__}: {str(error)[:500]}"
        raise Violation(name, expected, got) from error
    else:
        raise Violation(name, expected, "no error")
