"""What the interpreter knows about JAX's primitives."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core.primitives
import jax.lax.linalg
from jax.extend.core import jaxpr_as_fun


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Elementwise operations whose result is an affine function of their operands; for div, mul and
# select_n, of some operands only.
AFFINE = _names(
    """
    add add_any convert_element_type copy copy_p div mul name neg optimization_barrier
    pcast pvary reduce_precision select_n sharding_constraint stop_gradient sub
    """
)

# A called function that consists of these is entered, because it is not a nonlinearity by itself.
STRAIGHT = AFFINE | _names("broadcast_in_dim")

# Piecewise linear or constant operations.
PIECEWISE = _names(
    """
    abs and ceil clamp eq floor ge gt is_finite le lt max min ne not or round sign xor
    """
)

# Functions that are bounded on both sides.
SQUASHING = _names("atan erf erfc logistic tanh")

# Smooth functions that become flat.
LEVELLING = SQUASHING | _names("exp exp2 expm1 log1p")

SMOOTH = LEVELLING | _names(
    """
    acos acosh asin asinh atan2 atanh cbrt cos cosh digamma erf_inv integer_pow lgamma log
    nextafter pow rem rsqrt sin sinh sqrt square tan
    """
)

# More familiar names, and the names of x times a squashing function of x.
FAMILIAR = {"logistic": "sigmoid", "select_n": "where"}
GATES = {"tanh": "gelu", "erf": "gelu", "erfc": "gelu", "sigmoid": "silu"}

# Operations whose results variances, softmaxes and norms sum up.
OF_STATISTICS = _names("abs exp integer_pow mul square")

REDUCTIONS = _names("reduce_max reduce_min reduce_prod reduce_sum")

ELEMENTWISE = AFFINE | PIECEWISE | SMOOTH

# Operations that rearrange elements.
REARRANGING = _names("broadcast_in_dim expand_dims reshape rev squeeze transpose")

# Operations that select a part of the elements.
CUTTING = _names("dynamic_slice slice")

# Operations that make a layer if an operand is a parameter; the plain ones have two operands.
PLAIN_PRODUCTS = ("dot_general", "conv_general_dilated")
PRODUCTS = frozenset({*PLAIN_PRODUCTS, "ragged_dot_general"})

# Operations that copy what devices hold, or declare that it is the same on each.
GATHERING = _names("all_gather all_gather_invariant")

# Operations that add what devices hold.
SUMS_OF_DEVICES = _names("psum psum_invariant")

# Primitives that call a function, and the parameter that holds it.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}

# Those whose function is evaluated again in the backward pass.
REMATERIALIZED = frozenset({"remat", "remat2", "checkpoint"})

# Operations of JAX that solve a system of equations given as a function.
_HIDING = frozenset({"custom_linear_solve", "linear_solve"})

# Those whose function has a custom derivative.
WITH_OWN_DERIVATIVE = frozenset({"custom_jvp_call", "custom_vjp_call"})


def is_sigmoid(name: str, parts: frozenset[str]) -> bool:
    """Whether a function goes from 0 to 1."""
    return name in ("logistic", "sigmoid", "hard_sigmoid") or parts - STRAIGHT == {"logistic"}


def transformations(equations: Sequence[Any]) -> str:
    """The transformations that made an equation, such as `transpose(jvp())` for a gradient.

    Args:
        equations: the equation, after the loops and calls around it.
    """
    return "/".join(str(one.source_info.name_stack) for one in equations)


def is_derivative(made_by: str, weights: Any, seen: dict[tuple[str, int], Any]) -> bool:
    """Whether a product computes a derivative inside of the loss, as a gradient penalty does.

    Args:
        made_by: the transformations that made it.
        weights: the operand that is a parameter.
        seen: the products of forward derivatives so far, where the first one with the same weights
            is that of the function itself; extended by this one. It holds the weights, whose place
            in memory another array could get otherwise.
    """
    if "transpose(" in made_by:
        return True
    if "jvp(" not in made_by:
        return False
    is_second = (made_by, id(weights)) in seen
    seen[made_by, id(weights)] = weights
    return is_second


def rank_of(name: str) -> int:
    """How well the name of an operation describes a nonlinearity; that of a function does best."""
    bends = frozenset({"max", "min", "clamp", "abs", "where"})
    steps = PIECEWISE - bends
    kinds = (AFFINE | steps, bends, SMOOTH - SQUASHING, SQUASHING | {"sigmoid"})
    return next((rank for rank, names in enumerate(kinds) if name in names), len(kinds))


def body_of(equation: Any) -> tuple[Any, list[Any]] | None:
    """The function that an equation calls, and its constants; None if it calls none."""
    name = CALLS.get(equation.primitive.name)
    if name is None:
        return None
    closed = equation.params[name]
    return (closed.jaxpr, list(closed.consts)) if hasattr(closed, "consts") else (closed, [])


def primitives_of(jaxpr: Any) -> set[str]:
    """The names of all operations of a function, including the functions that it calls."""
    names = set()
    for equation in jaxpr.eqns:
        body = body_of(equation)
        names |= primitives_of(body[0]) if body else {equation.primitive.name}
    return names


def is_elementwise(jaxpr: Any) -> bool:
    """Whether a function is elementwise and has one result."""
    shapes = {v.aval.shape for v in (*jaxpr.invars, *jaxpr.outvars)} - {()}
    return (
        len(jaxpr.outvars) == 1
        and len(shapes) <= 1
        and primitives_of(jaxpr) <= ELEMENTWISE | STRAIGHT
    )


def numbers_of_scan(equation: Any) -> tuple[int, int]:
    """The number of constant arguments of a scan, and the number of carried ones."""
    parameters = equation.params
    if "num_consts" in parameters:
        return parameters["num_consts"], parameters["num_carry"]
    # Newer versions of jax describe the arguments as three trees.
    constants, carried, _ = parameters["ft_in"].unpack()
    return len(constants), len(carried)


def mesh_of(equation: Any) -> dict[str, int]:
    """The axes of the mesh of devices that run the program of a `shard_map`, and their lengths."""
    manual = equation.params["newly_manual_axes"]
    return {name: size for name, size in equation.params["mesh"].shape.items() if name in manual}


def hides(equation: Any) -> bool:
    """Whether an operation is a program of its own, which cannot be looked into."""
    return equation.primitive.name not in _transparent()


@functools.cache
def _transparent() -> frozenset[str]:
    """The operations that JAX consists of, and those that are entered."""
    modules = (jax.lax, jax.lax.linalg, jax.extend.core.primitives)
    names = {
        primitive.name
        for module in modules
        for attribute, primitive in vars(module).items()
        if attribute.endswith("_p")
    }
    own = ELEMENTWISE | STRAIGHT | REARRANGING | GATHERING | SUMS_OF_DEVICES | PRODUCTS | set(CALLS)
    return frozenset(names | own) - _HIDING


def bind(equation: Any, *arrays: Any) -> list[Any]:
    """The results of one equation of a jaxpr."""
    primitive = equation.primitive
    parameters = primitive.get_bind_params(equation.params)
    # A part of a program may be in double precision, in which its numbers have to stay.
    precision = jax.enable_x64(True) if _is_wide(equation) else contextlib.nullcontext()
    with equation.ctx.manager, precision:
        results = primitive.bind(*arrays, **parameters)
    return list(results) if primitive.multiple_results else [results]


def _is_wide(equation: Any) -> bool:
    """Whether an equation has numbers of 64 bits."""
    variables = (*equation.invars, *equation.outvars)
    return any(str(getattr(v.aval, "dtype", "")) in _WIDE for v in variables)


_WIDE = _names("float64 complex128 int64 uint64")


def evaluate(closed_jaxpr: Any, arrays: Sequence[Any]) -> list[Any]:
    """The results of a traced function."""
    return list(jaxpr_as_fun(closed_jaxpr)(*arrays))
