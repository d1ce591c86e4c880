"""`check_precision`: numbers that a narrow dtype cannot hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import (
    Examination,
    Subject,
    examine,
    place_of,
    some,
    subject_of,
)
from gradtx.diagnostics.tracing.found import Arrays
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure
from gradtx.diagnostics.tracing.patterns import VIEWS, source_of, uses_of

_NARROW = ("float16", "bfloat16")
# A running sum no longer grows by ones from here on: 2^(bits of the significand).
_LONGEST_SUM = {"float16": 2048, "bfloat16": 256}
# Operations whose result may be infinite although they take finite numbers.
_GROWING = (
    *("mul", "add", "sub", "div", "exp", "exp2", "expm1", "pow", "integer_pow", "square", "cosh"),
    *("dot_general", "conv_general_dilated", "reduce_sum", "cumsum", "reduce_prod", "rsqrt"),
    *("convert_element_type",),
)
# A very negative number that becomes minus infinity hides a place of a softmax, on purpose.
_HIDING = ("convert_element_type", "add", "sub")
# Another bound may follow that of a clip.
_BOUNDS = VIEWS | {"min"}
# The gradient of a leaf may lose a few elements; the scales find out how many.
_LOST_SHARE = 0.25
_SCALES = (2.0**14, 2.0**10, 2.0**6)


def check_precision(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = False,
) -> tuple[Finding, ...]:
    """Find the operations whose numbers float16 or bfloat16 cannot hold.

    The kinds of findings: "overflow" (an operation in float16 makes infinity of finite numbers),
    "underflow" (much of the gradient becomes zero in float16, or a logarithm is taken of what
    became zero), "vanishing_epsilon" (a small number that protects a division, a root or a
    logarithm is rounded to zero, or 1 minus it to 1) and "low_precision_sum" (a sum over so many
    terms that its last ones no longer count). What is computed in float32 in between, as by
    `jnp.sum`, `jnp.mean` and the normalizations of flax, is left alone.

    Args:
        loss_fn: the loss, a real scalar: `loss_fn(params, *batch)`.
        params: the parameters, a tree of arrays. Leaves that are not inexact arrays are left alone.
        *batch: further arguments of the loss function. Arrays are treated as data; anything else is
            passed on unchanged.
        has_aux: whether the loss returns a pair of the loss and something else.

    Returns:
        The findings.

    Raises:
        ValueError: if `loss_fn` is not callable or does not return a real scalar, or `params` has
            no inexact arrays.

    Source:
        Micikevicius et al. 2018, "Mixed precision training", section 3, for scaling the loss and
        for sums in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> from gradtx import diagnostics
        >>> def loss_fn(params, x):
        ...     z = x @ params
        ...     return jnp.mean(z / jnp.sqrt(jnp.mean(z**2) + 1e-8)).astype(jnp.float32)
        >>> x = jnp.ones((2, 3), jnp.float16)
        >>> (finding,) = diagnostics.check_precision(loss_fn, x.T, x)
        >>> print(finding.kind, finding.severity)
        vanishing_epsilon warning
    """
    subject = subject_of("check_precision", loss_fn, params, batch, has_aux=has_aux)
    return tuple(examine(subject, PRECISION))


def _findings(subject: Subject) -> Iterator[Finding]:
    yield from _overflow(subject)
    yield from _vanishing_epsilons(subject)
    yield from _logarithms_of_zero(subject)
    yield from _lost_gradients(subject)
    yield from _long_sums(subject)


def _requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    for node in _in_float16(subject):
        yield node, _infinities_of(node)
    for _, _, uses in _epsilons(subject):
        for node, i in uses:
            yield node, _zeros_of(i)
    for node in _logarithms(subject):
        yield node, _zeros_of(0)


PRECISION = Examination(_findings, _requests)


def _is_narrow(value: Value) -> bool:
    return str(value.dtype) in _NARROW


# Overflow.


def _in_float16(subject: Subject) -> Iterator[Node]:
    return (node for node in subject.graph.named(*_GROWING) if node.output.dtype == np.float16)


def _infinities_of(node: Node) -> Measure:
    both = node.name not in _HIDING

    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
        array = results[0]
        is_bad = jnp.isinf(array) if both else array == jnp.inf
        were_finite = jnp.asarray(True)
        for one in inputs:
            # Where a constant of the program is already infinite, it does harm if it makes NaN.
            were_finite &= jnp.all(jnp.isfinite(one))
        if node.name == "mul" and any(_is_infinite(value) for value in node.inputs):
            is_bad, were_finite = jnp.isnan(array), jnp.asarray(True)
        if node.name in ("div", "rsqrt"):
            is_bad &= jnp.broadcast_to(inputs[-1] != 0, array.shape)
        number = jnp.where(were_finite, jnp.sum(is_bad), 0)
        largest = jnp.max(jnp.abs(jnp.asarray(inputs[0], np.float32)), initial=0.0)
        return {"precision_infinities": number, "precision_largest": largest}

    return measure


def _is_infinite(value: Value) -> bool:
    constant = _constant(value)
    return constant is not None and bool(np.any(np.isinf(constant)))


def _overflow(subject: Subject) -> Iterator[Finding]:
    bad = [
        node
        for node in _in_float16(subject)
        if np.any(subject.measured.get(node, {}).get("precision_infinities", 0))
    ]
    if not bad:
        return
    node = bad[0]
    measured = subject.measured[node]
    number, largest = (
        float(np.max(measured[f"precision_{key}"])) for key in ("infinities", "largest")
    )
    yield Finding(
        "overflow",
        "warning" if subject.is_finite else "error",
        f"`{node.name}` overflows in float16, whose largest number is 65,504: {number:,.0f} of "
        f"{node.output.size:,} results are infinite; its operand is up to {largest:.3g}.",
        "use bfloat16, which has the range of float32; or compute this operation in float32, or "
        "scale down what it takes. Write a mask as jnp.where(mask, x, jnp.finfo(x.dtype).min).",
        source=node.line,
        evidence={
            "operation": node.name,
            "number": number,
            "largest": largest,
            "lines": list(dict.fromkeys(one.line for one in bad)),
        },
    )


# An epsilon that is rounded away.


def _constant(value: Value) -> Any:
    """The number that a value always has, in its dtype; None: it has none, or several."""
    origin = source_of(value)
    if origin.constant is None or np.size(origin.constant) != 1:
        return None
    with np.errstate(over="ignore"):
        return np.asarray(origin.constant).reshape(()).astype(value.dtype)


def _epsilons(subject: Subject) -> Iterator[tuple[Node, float, list[tuple[Node, int]]]]:
    """Where a protection is rounded away: the operation, what is left, what it should protect."""
    for node in subject.graph.named("add", "max", "min", "clamp"):
        if not jnp.issubdtype(node.output.dtype, jnp.floating):
            continue
        constants = [_constant(value) for value in node.inputs]
        if (
            node.name in ("add", "max")
            and _is_narrow(node.output)
            and any(constant is not None and constant == 0 for constant in constants)
        ):
            uses = [use for use in uses_of(node.output, _BOUNDS) if _needs_protection(*use)]
            if uses:
                yield node, 0.0, uses
        if node.name in ("min", "clamp") and constants[-1 if node.name == "clamp" else 0] == 1:
            uses = list(_logarithms_of_rest(node.output))
            if uses:
                yield node, 1.0, uses


def _needs_protection(node: Node, i: int) -> bool:
    """Whether an operation is infinite, or has an infinite derivative, where it takes a zero."""
    if node.name == "div":
        return i == 1
    if node.name == "integer_pow":
        return node.equation.params["y"] < 0
    if node.name == "pow":
        power = _constant(node.inputs[1])
        return i == 0 and power is not None and float(power) < 1
    return node.name in ("log", "sqrt", "rsqrt")


def _logarithms_of_rest(value: Value) -> Iterator[tuple[Node, int]]:
    """The logarithms of 1 minus a value."""
    for node, i in uses_of(value):
        if node.name == "sub" and i == 1 and _constant(node.inputs[0]) == 1:
            yield from ((user, j) for user, j in uses_of(node.output) if user.name == "log")
        elif node.name == "neg":
            yield from ((user, j) for user, j in uses_of(node.output) if user.name == "log1p")


def _zeros_of(i: int) -> Measure:
    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
        del results
        return {"precision_zeros": jnp.sum(inputs[i] == 0)}

    return measure


def _number_of_zeros(subject: Subject, node: Node) -> int:
    return int(np.sum(subject.measured.get(node, {}).get("precision_zeros", 0)))


def _vanishing_epsilons(subject: Subject) -> Iterator[Finding]:
    seen = set()
    for node, left, uses in _epsilons(subject):
        zeros = sum(_number_of_zeros(subject, use) for use, _ in uses)
        # The maximum of a number and zero may be no more than a relu.
        is_relu = node.name == "max" and (not zeros or subject.is_finite)
        if is_relu or node.line in seen:
            continue
        seen.add(node.line)
        use = uses[0][0].name
        dtype = str(node.output.dtype)
        what = "is rounded to zero" if left == 0 else "is rounded to 0, as 1 minus it is to 1,"
        yield Finding(
            "vanishing_epsilon",
            "error" if zeros and not subject.is_finite else "warning",
            f"the small number before `{use}` {what} in {dtype}, and protects from nothing"
            + (f": {zeros:,} numbers are zero there." if zeros else "."),
            f"use a larger one, at least {_least(dtype, left)} in {dtype}, or convert to float32 "
            "before; take the logarithm with log_softmax, log_sigmoid or log1p.",
            source=node.line,
            evidence={"operation": use, "dtype": dtype, "zeros": zeros},
        )


def _least(dtype: str, left: float) -> str:
    """A number that a dtype can represent, or add to 1."""
    info = jnp.finfo(dtype)
    return f"{float(info.tiny if left == 0 else info.eps):.1g}"


# Underflow.


def _logarithms(subject: Subject) -> Iterator[Node]:
    """The logarithms in float16, where something is not finite."""
    nodes = [n for n in subject.graph.named("log") if n.inputs[0].dtype == np.float16]
    return iter(nodes if nodes and not subject.is_finite else [])


def _logarithms_of_zero(subject: Subject) -> Iterator[Finding]:
    protected = {use for _, _, uses in _epsilons(subject) for use, _ in uses}
    for node in _logarithms(subject):
        zeros = _number_of_zeros(subject, node)
        if zeros and node not in protected:
            yield Finding(
                "underflow",
                "error",
                f"`log` is taken of {zeros:,} numbers that are zero in float16, whose smallest "
                "one is 6e-8.",
                "use log_softmax, log_sigmoid or logsumexp in place of the logarithm of a "
                "probability, and compute them in float32.",
                source=node.line,
                evidence={"zeros": zeros},
            )
            return


def _lost_gradients(subject: Subject) -> Iterator[Finding]:
    """How much of the gradient is zero only because float16 has no smaller numbers."""
    trained = (subject.is_trained(node.output) for node in _in_float16(subject))
    if not subject.is_finite or subject.endless_loop is not None or not any(trained):
        return
    traced = subject.traced

    @jax.jit
    def gradient(scale: jax.Array) -> list[jax.Array]:
        value, pull_back = jax.vjp(lambda params: traced.call(params, traced.data), traced.params)
        return pull_back(scale.astype(value.dtype))[0]

    for scale in _SCALES:
        scaled = jax.device_get(gradient(jnp.asarray(scale)))
        if all(np.isfinite(g.astype(np.complex64)).all() for g in scaled):
            break
    else:
        return
    shares = {}
    for name, plain, larger in zip(traced.names, subject.gradients, scaled, strict=True):
        there = np.count_nonzero(larger)
        lost = np.count_nonzero((larger != 0) & (plain == 0))
        if there and lost / there > _LOST_SHARE:
            shares[name] = float(lost / there)
    if shares:
        worst = max(shares.values())
        yield Finding(
            "underflow",
            "warning",
            f"up to {worst:.0%} of the gradient of {some(list(shares))} is zero only because it "
            "is computed in float16, whose smallest number is 6e-8.",
            "multiply the loss by a large number before it is differentiated, and divide the "
            "gradient by it in float32; or use bfloat16, which has the range of float32.",
            place=place_of(list(shares)),
            evidence={"shares": shares, "scale": scale},
        )


# Sums.


def _long_sums(subject: Subject) -> Iterator[Finding]:
    seen = set()
    for node, dtype, terms in _sums(subject):
        if dtype not in _NARROW or terms <= _LONGEST_SUM[dtype] or node.line in seen:
            continue
        seen.add(node.line)
        yield Finding(
            "low_precision_sum",
            "warning",
            f"{terms:,} terms are added in {dtype}, where a sum of {_LONGEST_SUM[dtype]} no longer "
            "grows by 1.",
            "add them in float32: convert them before, or keep what a loop adds to in float32; "
            "jnp.sum does so by itself.",
            source=node.line,
            evidence={"terms": terms, "dtype": dtype, "operation": node.name},
        )


def _sums(subject: Subject) -> Iterator[tuple[Node, str, int]]:
    """The sums that are made in one dtype, with their number of terms."""
    for node in subject.graph.nodes:
        value, params = node.inputs[0] if node.inputs else None, node.equation.params
        if value is None:
            continue
        terms = 0
        if node.name == "reduce_sum":
            terms = math.prod(value.shape[axis] for axis in params["axes"])
        elif node.name == "cumsum":
            terms = value.shape[params["axis"]]
        elif node.name == "reduce_window_sum":
            terms = math.prod(params["window_dimensions"])
        elif node.name == "scatter-add" and value.size:
            terms = node.inputs[2].size // value.size
        elif node.name == "loop_carry" and _only_adds(subject, node):
            terms = params.get("length", 0)
        if terms:
            yield node, str(node.output.dtype), terms


def _only_adds(subject: Subject, node: Node) -> bool:
    """Whether each iteration of a loop adds something to a value that it carries."""
    end = source_of(node.inputs[-1], VIEWS - {"convert_element_type"})
    if len(node.inputs) < 2 or end.producer is None or end.producer.name not in ("add", "add_any"):
        return False
    carried = [source_of(value) is node.output for value in end.producer.inputs]
    if carried.count(True) != 1:
        return False
    term = end.producer.inputs[carried.index(False)]
    return node.output not in set(subject.graph.upstream(term))
