"""What the operands of an operation show about the NaN or infinity that it made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.found import Arrays
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import observe
from gradtx.diagnostics.tracing.traced import TracedLoss

# Operations that are not defined everywhere, with a single argument.
_OF_ONE = frozenset({"log", "log1p", "sqrt", "rsqrt", "acos", "asin", "atanh", "acosh", "cbrt"})
# Operations whose result is infinite because it is too large, and not at a pole.
_GROWING = frozenset({"add", "add_any", "convert_element_type", "cosh", "cumprod", "cumsum", "exp"})
_GROWING |= {"exp2", "expm1", "integer_pow", "mul", "reduce_sum", "scatter-add", "sinh", "square"}
_GROWING |= {"sub", *primitives.PRODUCTS}
# What an epsilon that protects an operation may pass on its way there.
_PASSED = frozenset({"sqrt", "rsqrt", "square", "integer_pow", "mul", "add", "max"})


@dataclass(frozen=True)
class Operand:
    """What an operation took.

    Attributes:
        name: the path of the parameter or argument that it is; empty: it was computed.
        shape: its shape.
        dtype: its dtype.
        smallest: its smallest number, apart from NaN.
        largest: its largest number, apart from NaN.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    smallest: float
    largest: float


@dataclass(frozen=True)
class Evidence:
    """What is known about an operation that made NaN or an infinity.

    Attributes:
        operands: what it took.
        sentence: what that shows; empty: nothing.
        fix: how to mend it; empty: no more is known than from the name of the operation.
    """

    operands: tuple[Operand, ...] = ()
    sentence: str = ""
    fix: str = ""


def evidence_of(
    loss: TracedLoss, node: Node, made: str, iterations: Sequence[int] = ()
) -> Evidence:
    """Evaluate the loss once more, and look at what an operation takes.

    Args:
        loss: the loss.
        node: the operation, in the graph of the loss.
        made: "NaN" or "infinity".
        iterations: the iteration of each loop around it; if it is not known, all of them count.
    """
    measured = observe(loss, {node: [_ranges]}).get(node)
    if measured is None:
        return Evidence()
    if iterations:
        measured = {key: array[tuple(iterations)] for key, array in measured.items()}
    operands = tuple(
        Operand(
            _name(loss, value),
            value.shape,
            str(value.dtype),
            float(np.min(measured[f"smallest {i}"])),
            float(np.max(measured[f"largest {i}"])),
        )
        for i, value in enumerate(node.inputs)
        if f"smallest {i}" in measured
    )
    for sentence, fix in _explanations(node, operands, measured, made):
        return Evidence(operands, sentence, fix)
    return Evidence(operands)


def _ranges(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
    """The range of each operand, and how many of its rows are nothing but minus infinity."""
    del results
    measured = {}
    for i, array in enumerate(map(jnp.asarray, inputs)):
        if not array.size or not jnp.issubdtype(array.dtype, jnp.number):
            continue
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            array = jnp.abs(array)
        is_exact = jnp.issubdtype(array.dtype, jnp.integer)
        dtype = np.float32 if is_exact else np.promote_types(array.dtype, np.float32)
        wide = jnp.atleast_1d(array.astype(dtype))
        measured[f"smallest {i}"] = jnp.min(jnp.where(jnp.isnan(wide), jnp.inf, wide))
        measured[f"largest {i}"] = jnp.max(jnp.where(jnp.isnan(wide), -jnp.inf, wide))
        measured[f"hidden {i}"] = jnp.sum(jnp.all(wide == -jnp.inf, axis=-1))
    return measured


def _explanations(
    node: Node,
    operands: Sequence[Operand],
    measured: dict[str, np.ndarray],
    made: str,
) -> Iterator[tuple[str, str]]:
    """What the operands show, and what to do about it; what says most comes first."""
    if node.name == "gather":
        yield from _out_of_range(node, operands)
    if node.name == "sub" and all(one.smallest == -np.inf for one in operands):
        yield from _hidden_rows(node, measured)
    if node.name == "mul" and made == "NaN":
        yield (
            "It multiplies zero by an infinity.",
            "select the elements that count with jnp.where before they become infinite, or index "
            "the log-probabilities by the labels instead of multiplying them by one-hot codes",
        )
    yield from _lost_epsilons(node)
    dtype = node.output.dtype
    if made == "infinity" and node.name in _GROWING and jnp.issubdtype(dtype, jnp.floating):
        yield from _overflow(node, operands, dtype)
    if node.name == "sqrt" and operands and operands[0].smallest == 0 <= operands[0].largest:
        yield (
            f"Its argument ranges from {_range(operands[0])}. At zero, the derivative of a root is "
            "infinite.",
            "add a small epsilon under the root, or replace the zeros before it, and not only its "
            "result: jnp.sqrt(jnp.where(square > 0, square, 1.0)), as optax.safe_norm does",
        )
    if len(operands) == 1 and node.name in _OF_ONE:
        yield f"Its argument ranges from {_range(operands[0])}.", ""
    if node.name in ("div", "pow") and len(operands) == 2:
        what = ("numerator", "denominator") if node.name == "div" else ("base", "exponent")
        ranges = [
            f"its {name} from {_range(one)}" for name, one in zip(what, operands, strict=True)
        ]
        yield f"{' and '.join(ranges).capitalize()}.".replace(" from", " ranges from", 1), ""


def _range(operand: Operand) -> str:
    return f"{operand.smallest:.3g} to {operand.largest:.3g}"


def _out_of_range(node: Node, operands: Sequence[Operand]) -> Iterator[tuple[str, str]]:
    """Indices beyond the end of a table, where `jnp.take` fills in NaN."""
    axes = node.equation.params["dimension_numbers"].start_index_map
    if len(operands) != 2 or len(axes) != 1:
        return
    table, indices = operands
    size = table.shape[axes[0]]
    if indices.smallest >= 0 and indices.largest < size:
        return
    name = f"the {table.name}" if table.name else "the table"
    yield (
        f"The indices range from {indices.smallest:.0f} to {indices.largest:.0f}, but {name} of "
        f"shape {table.shape} has {size:,} entries, 0 to {size - 1:,}.",
        f"make the table large enough, or keep the indices below {size:,}: look whether they are "
        "counted from 1, or have a code of their own for padding",
    )


def _hidden_rows(node: Node, measured: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """Rows in which a mask hides everything, so that a softmax has nothing to choose from."""
    value, hidden = node.inputs[0], int(np.max(measured["hidden 0"]))
    if hidden:
        rows = value.size // (value.shape[-1] if value.shape else 1)
        yield (
            f"In {hidden:,} of {rows:,} rows everything is -inf, as if a mask hid all of it.",
            "let the mask leave something in each row, or fill in jnp.finfo(dtype).min instead of "
            "-inf, and select the rows that count afterwards",
        )


def _overflow(node: Node, operands: Sequence[Operand], dtype: Any) -> Iterator[tuple[str, str]]:
    """A result that is too large for its dtype."""
    ranges = " and ".join(_range(one) for one in operands[:2])
    fix = ""
    if dtype == jnp.float16:
        fix = (
            "compute it in a wider dtype (float32, or bfloat16 for its range), or keep the numbers "
            "smaller: normalize them, or subtract the largest before an exp"
        )
    yield (
        f"The result exceeds the largest {dtype}, {float(jnp.finfo(dtype).max):.5g}, for operands "
        f"from {ranges}.",
        fix,
    )


def _lost_epsilons(node: Node) -> Iterator[tuple[str, str]]:
    """An epsilon that is zero in the dtype of what it is added to."""
    protected = {"div": 1}.get(node.name, 0)
    if node.name not in _OF_ONE | {"div", "pow"}:
        return
    value: Value | None = node.inputs[protected]
    while value is not None and value.producer is not None:
        made = value.producer
        rest = [one for one in made.inputs if one.constant is None]
        constants = [np.asarray(one.constant) for one in made.inputs if one.constant is not None]
        is_half = jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32
        if made.name in ("add", "max") and is_half and any(not np.any(c) for c in constants):
            tiny = float(jnp.finfo(value.dtype).smallest_subnormal)
            at = f" at {made.line}" if made.line else ""
            yield (
                f"The epsilon{at} is zero in {value.dtype}, whose smallest number is {tiny:.2g}.",
                "use a larger epsilon, such as 1e-4, or compute this in float32",
            )
            return
        views = primitives.STRAIGHT | primitives.REARRANGING | _PASSED
        value = rest[0] if made.name in views and len(rest) == 1 else None


def _name(loss: TracedLoss, value: Value) -> str:
    """The parameter or argument that a value is a view of."""
    while value.producer is not None:
        node = value.producer
        if node.name not in primitives.STRAIGHT | primitives.REARRANGING or len(node.inputs) != 1:
            return ""
        (value,) = node.inputs
    return "" if value.argument is None else loss.all_names[value.argument]
