"""What an optimizer will do to each parameter, before training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding

from gradtx import boxes, trees
from gradtx.arguments import COUNT_OR_ZERO, check, check_flag
from gradtx.inspection.arguments import checked_params, checked_transformation
from gradtx.inspection.layouts import each_by_itself
from gradtx.inspection.ownership import entries_of
from gradtx.inspection.rates import (
    WeightDecay,
    is_frozen,
    is_known,
    learning_rate,
    weight_decay,
)
from gradtx.inspection.routes import Rule, routes_of
from gradtx.inspection.shardings import state_shardings
from gradtx.inspection.values import Value
from gradtx.tables import collapsed, html_table, text_table


@dataclass(frozen=True)
class LeafPlan:
    """What happens to one leaf of the parameters.

    Attributes:
        path: its key path, such as "dense/kernel".
        shape: its shape.
        dtype: the name of its dtype, or of its Python type.
        rules: the rules that turn its gradient into its update, in their order.
        kind: "trained"; "frozen"; or "no parameter" for a leaf that no optimizer may change.
        learning_rate: minus the product of all factors of the update, so that it is negative where
            the loss would grow; None if it is not known. Factors before a rule such as Adam's,
            whose updates do not grow with the gradient, count only by their sign.
        reason: why the learning rate is not known; "" if it is.
        weight_decay: each weight decay, with where it acts; empty if there is none, or none that
            is known.
        state_bytes: the memory of its part of the optimizer state.
        is_known: whether it is known what each of its rules does, so that no decay is missing.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    rules: tuple[str, ...]
    kind: str
    learning_rate: Value | None
    reason: str
    weight_decay: tuple[WeightDecay, ...]
    state_bytes: int
    is_known: bool

    @property
    def route(self) -> str:
        """The rules in one line."""
        if self.kind == "no parameter":
            return "left alone: not a parameter"
        return " -> ".join(self.rules) or "nothing: the gradient is the update"

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def _rate(leaf: LeafPlan) -> str:
    if leaf.kind == "trained":
        return f"? ({leaf.reason})" if leaf.learning_rate is None else str(leaf.learning_rate)
    return "frozen" if leaf.kind == "frozen" else "–"


def _decay(leaf: LeafPlan) -> str:
    missing = "–" if leaf.is_known or leaf.kind == "frozen" else "?"
    return " + ".join(map(str, leaf.weight_decay)) or missing


# The columns of the table: heading -> the text for a leaf.
_COLUMNS: dict[str, Callable[[LeafPlan], str]] = {
    "path": lambda leaf: leaf.path or "(the whole)",
    "shape": lambda leaf: "×".join(map(str, leaf.shape)) or "scalar",
    "dtype": lambda leaf: leaf.dtype,
    "learning rate": _rate,
    "weight decay": _decay,
    "state bytes": lambda leaf: f"{leaf.state_bytes:,}",
}


@dataclass(frozen=True, repr=False)
class Explanation:
    """What an optimizer will do to each parameter, as `explain` returns it.

    Attributes:
        rows: one for each leaf, in the order of `jax.tree.leaves(params)`.
        shared_bytes: the memory of what does not belong to a single leaf, such as counts and the
            padding of stacks; "shared" in the last line of the text.
        all_leaves: whether the text and the table have a line for each leaf, or one line for all
            layers that are treated alike.
        bytes_per_device: the memory of the state on each device of the mesh that the parameters are
            on; None if they are on none.
    """

    rows: tuple[LeafPlan, ...]
    shared_bytes: int
    all_leaves: bool = False
    bytes_per_device: int | None = None

    @property
    def parameters(self) -> int:
        """The number of elements of all parameters, including frozen ones."""
        return sum(row.size for row in self.rows if row.kind != "no parameter")

    @property
    def state_bytes(self) -> int:
        """The memory of the whole optimizer state."""
        return self.shared_bytes + sum(row.state_bytes for row in self.rows)

    @property
    def bytes_per_parameter(self) -> float:
        """The memory of the state, divided by the number of parameters; 0 without parameters."""
        return self.state_bytes / self.parameters if self.parameters else 0.0

    @property
    def total(self) -> str:
        """The totals in one line."""
        frozen = [row for row in self.rows if row.kind == "frozen"]
        number = sum(row.size for row in frozen)
        wasted = sum(row.state_bytes for row in frozen)
        own = self.bytes_per_device
        return (
            f"{self.parameters:,} parameters{f' ({number:,} frozen)' if frozen else ''}, "
            f"{self.state_bytes:,} bytes of state ({self.shared_bytes:,} shared), "
            f"{self.bytes_per_parameter:.2f} bytes per parameter"
            + ("" if own is None else f", {own:,} bytes on each device")
            + (f"; {wasted:,} for frozen ones, see selective_transform" if wasted else "")
        )

    def __str__(self) -> str:
        sections = self._sections()
        texts = [cells for lines in sections.values() for cells in lines]
        heading, *rest = text_table(list(_COLUMNS), texts, numeric={len(_COLUMNS) - 1})
        aligned = iter(rest)
        parts = [
            "\n    ".join([title, heading, *itertools.islice(aligned, len(lines))])
            for title, lines in sections.items()
        ]
        return "\n\n".join([*parts, self.total])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows: list[list[str]] = []
        titles = {}
        for title, lines in self._sections().items():
            titles[len(rows)] = title
            rows.extend(lines)
        return html_table(list(_COLUMNS), rows, caption=self.total, titles=titles)

    def _sections(self) -> dict[str, list[list[str]]]:
        """The cells of each line, by the title of their section.

        There is a section for each route, so that a leaf in the wrong group is easy to see.
        """
        sections: dict[str, list[list[str]]] = {}
        numbers: dict[str, int] = {}
        for route, number, cells in self._lines():
            sections.setdefault(route, []).append(cells)
            numbers[route] = numbers.get(route, 0) + number
        return {f"{route}  [{numbers[route]}]": lines for route, lines in sections.items()}

    def _lines(self) -> list[tuple[str, int, list[str]]]:
        """For each line its route, the number of its leaves, and its cells."""
        texts = [[column(row) for column in _COLUMNS.values()] for row in self.rows]
        if self.all_leaves:
            return [(row.route, 1, cells) for row, cells in zip(self.rows, texts, strict=True)]
        named = [
            (path, (*cells, row.route))
            for row, (path, *cells) in zip(self.rows, texts, strict=True)
        ]
        lines = []
        for path, indices in collapsed(named):
            _, *cells, memory = texts[indices[0]]
            repeated = f"{len(indices)} × {memory}" if len(indices) > 1 else memory
            lines.append((self.rows[indices[0]].route, len(indices), [path, *cells, repeated]))
        return lines


def explain(
    tx: optax.GradientTransformation, params: Any, *, step: int = 0, all_leaves: bool = False
) -> Explanation:
    """Tell what an optimizer will do to each parameter, before training.

    It shows for each leaf the rules that update it, its learning rate and weight decay in one step,
    and the memory of its optimizer state, and the totals of these. So it reveals a mask that misses
    its leaves, swapped labels, a bias that decays, or a frozen layer that has moments. Nothing is
    calculated and no memory is allocated: the parameters may be `jax.ShapeDtypeStruct`.

    The column "learning rate":

        0.1                     the update is -0.1 times the gradient or a direction such as Adam's
        0.1 (decay at step 9)   the same, by the schedule `decay`
        ? (clip after ...)      not known, and why: for example a factor comes before clipping, the
                                method finds its own step size, or a function is your own

    The column "weight decay":

        0.1                     decoupled, as in AdamW: 0.1 * learning rate of the weights per step
        0.1 (L2)                an L2 penalty in the gradient, before what adapts or averages
        0.1 per step            a tenth of the weights, whatever the learning rate
        -0.1 per step (grows)   the same with the wrong sign: the weights grow by a tenth
        0.1 (?)                 its effect is not known

    Transformations of other libraries are shown by the name of the function that made them. What
    optax's chains, masks, groups, clippings and `set_to_zero` do is known, and what is inside them
    is shown; of others, such as a whole `optax.adamw`, neither the learning rate nor the decay is
    known. The memory is always exact; what the last line calls shared belongs to no single leaf,
    such as counts. Of parameters on a mesh, that line also says how much each device holds, if the
    state lies as `gradtx.sharding.state_shardings` says.

    Args:
        tx: the transformation.
        params: the parameters, a tree of arrays or of their shapes and dtypes.
        step: the step, counted from 0, at which schedules are evaluated. The learning rate of a
            warmup may be 0 at the first. Inside `MultiSteps` it counts steps, not mini-steps, as
            schedules there do.
        all_leaves: whether to print a line for each leaf. Otherwise leaves that are treated alike,
            and whose paths differ only in their numbers, share a line: "layers/[0-11]/kernel", with
            "12 × 4,096" bytes of state.

    Returns:
        An `Explanation`: `print` shows it as text, a notebook shows it as a table, and `rows` has
        the data.

    Raises:
        ValueError: if `tx` is not a transformation, its masks or labels do not fit `params`, or
            `step` is not a whole number >= 0, or `all_leaves` is neither True nor False.

    Example:
        >>> import jax.numpy as jnp
        >>> import gradtx
        >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
        >>> tx = gradtx.selective_transform(
        ...     gradtx.adamw(1e-3, weight_decay=0.1), freeze_mask=gradtx.select("bias")
        ... )
        >>> print(gradtx.explain(tx, params))
        set_to_zero  [1]
            path    shape  dtype    learning rate  weight decay  state bytes
            bias    2      float32  frozen         –                       0
        <BLANKLINE>
        scale_by_adam -> add_decayed_weights -> scale_by_learning_rate  [1]
            path    shape  dtype    learning rate  weight decay  state bytes
            kernel  3×2    float32  0.001          0.1                    48
        <BLANKLINE>
        8 parameters (2 frozen), 52 bytes of state (4 shared), 6.50 bytes per parameter

        A schedule is evaluated at the given step:

        >>> schedule = gradtx.schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000)
        >>> print(gradtx.explain(gradtx.adam(schedule), params, step=50).rows[0].learning_rate)
        0.0005 (warmup_cosine_decay_schedule at step 50)
    """
    tx = checked_transformation("explain", "tx", tx)
    checked_params("explain", params)
    step = check("explain", "step", step, COUNT_OR_ZERO)
    all_leaves = check_flag("explain", "all_leaves", all_leaves)
    own_bytes: dict[Any, int] = {}
    state, apart = _abstract_states(tx, params)
    for entry in entries_of(tx, apart, params):
        own_bytes[entry.parameter] = own_bytes.get(entry.parameter, 0) + _bytes(entry.leaf)
    # The padding of groups belongs to no parameter.
    padding = sum(map(_bytes, jax.tree.leaves(state))) - sum(own_bytes.values())
    named, _ = jax.tree_util.tree_flatten_with_path(params)
    rows = tuple(
        _plan(name, leaf, route, own_bytes.get(path, 0), int(step))
        for name, (path, leaf), route in zip(
            boxes.names(params), named, routes_of(tx, params), strict=True
        )
    )
    shared = own_bytes.get(None, 0) + padding
    return Explanation(rows, shared, all_leaves, _bytes_per_device(tx, params, state))


def _abstract_states(tx: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """The shapes and dtypes of the state, and of one in which no leaves are kept together.

    What is not an array is None there.
    """
    leaves, treedef = jax.tree.flatten(params)
    is_array = [hasattr(leaf, "dtype") or trees.is_parameter(leaf) for leaf in leaves]
    arrays = [leaf for leaf, flag in zip(leaves, is_array, strict=True) if flag]

    def init(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        filled = [next(rest) if flag else x for x, flag in zip(leaves, is_array, strict=True)]
        state = tx.init(treedef.unflatten(filled))
        state = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else None, state)
        return state, each_by_itself(state, params)

    return jax.eval_shape(init, arrays)


def _bytes_per_device(tx: optax.GradientTransformation, params: Any, state: Any) -> int | None:
    """The memory of the state on one device of a mesh; None if the parameters are on no mesh."""
    parameters = [leaf for leaf in jax.tree.leaves(params) if trees.is_parameter(leaf)]
    where = [getattr(leaf, "sharding", None) for leaf in parameters]
    if not where or not all(isinstance(own, NamedSharding) for own in where):
        return None
    shardings = jax.tree.leaves(state_shardings(tx, params))
    return sum(
        math.prod(own.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, own in zip(jax.tree.leaves(state), shardings, strict=True)
    )


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _plan(name: str, leaf: Any, route: tuple[Rule, ...], state_bytes: int, step: int) -> LeafPlan:
    plan = partial(
        LeafPlan,
        path=name,
        shape=np.shape(leaf),
        dtype=str(getattr(leaf, "dtype", type(leaf).__name__)),
        state_bytes=state_bytes,
    )
    if not trees.is_parameter(leaf):
        return plan(
            rules=(),
            kind="no parameter",
            learning_rate=None,
            reason="no parameter",
            weight_decay=(),
            is_known=True,
        )
    plan = partial(plan, rules=tuple(map(str, route)), is_known=is_known(route, step))
    if is_frozen(route, step):
        return plan(kind="frozen", learning_rate=Value(0.0), reason="", weight_decay=())
    rate = learning_rate(route, step)
    return plan(
        kind="trained",
        learning_rate=rate.value,
        reason=rate.reason,
        weight_decay=weight_decay(route, step),
    )
