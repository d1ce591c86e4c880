"""What the tracing knows about XLA's operations."""

from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that treat each element by itself, and whose result is a straight function of it:
# the last three only in one of their operands.
AFFINE = _names(
    """
    add add_any convert_element_type copy copy_p div mul name neg optimization_barrier
    reduce_precision select_n sharding_constraint stop_gradient sub
    """
)

# What a called function may consist of and still be entered: it is not a nonlinearity by itself.
STRAIGHT = AFFINE | _names("broadcast_in_dim")

# Bends and steps between straight pieces.
PIECEWISE = _names(
    """
    abs and ceil clamp eq floor ge gt is_finite le lt max min ne not or round sign xor
    """
)

# Functions that are bounded on both sides.
SQUASHING = _names("atan erf erfc logistic tanh")

# Functions that become flat without ever being straight.
LEVELLING = SQUASHING | _names("exp exp2 expm1 log1p")

SMOOTH = LEVELLING | _names(
    """
    acos acosh asin asinh atan2 atanh cbrt cos cosh digamma erf_inv integer_pow lgamma log
    nextafter pow rem rsqrt sin sinh sqrt square tan
    """
)

# More familiar names, and those of x times a squashing function of x.
FAMILIAR = {"logistic": "sigmoid", "select_n": "where"}
GATES = {"tanh": "gelu", "erf": "gelu", "erfc": "gelu", "sigmoid": "silu"}

# What variances, softmaxes and norms sum up.
OF_STATISTICS = _names("abs exp integer_pow mul square")

REDUCTIONS = _names("reduce_max reduce_min reduce_prod reduce_sum")

ELEMENTWISE = AFFINE | PIECEWISE | SMOOTH

# The same elements in another arrangement.
REARRANGING = _names("broadcast_in_dim expand_dims reshape rev squeeze transpose")

# A part of the elements.
CUTTING = _names("dynamic_slice slice")

# Calls of a function, and the parameter that holds it.
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

# Those calls that have their own derivative.
WITH_OWN_DERIVATIVE = frozenset({"custom_jvp_call", "custom_vjp_call"})


def rank_of(name: str) -> int:
    """How much the name of an operation says about a nonlinearity; that of a function says most."""
    bends = frozenset({"max", "min", "clamp", "abs", "where"})
    steps = PIECEWISE - bends
    kinds = (AFFINE | steps, bends, SMOOTH - SQUASHING, SQUASHING | {"sigmoid"})
    return next((rank for rank, names in enumerate(kinds) if name in names), len(kinds))


def body_of(equation: Any) -> tuple[Any, list[Any]] | None:
    """The function that an equation calls, and its constants; None: it calls none."""
    name = CALLS.get(equation.primitive.name)
    if name is None:
        return None
    closed = equation.params[name]
    return (closed.jaxpr, list(closed.consts)) if hasattr(closed, "consts") else (closed, [])


def primitives_of(jaxpr: Any) -> set[str]:
    """The names of all operations of a function, those of the functions that it calls too."""
    names = set()
    for equation in jaxpr.eqns:
        body = body_of(equation)
        names |= primitives_of(body[0]) if body else {equation.primitive.name}
    return names


def is_elementwise(jaxpr: Any) -> bool:
    """Whether a function treats each element of its arguments by itself, in one result."""
    shapes = {v.aval.shape for v in (*jaxpr.invars, *jaxpr.outvars)} - {()}
    return (
        len(jaxpr.outvars) == 1
        and len(shapes) <= 1
        and primitives_of(jaxpr) <= ELEMENTWISE | STRAIGHT
    )


def numbers_of_scan(equation: Any) -> tuple[int, int]:
    """How many arguments of a scan remain the same, and how many it carries on."""
    parameters = equation.params
    if "num_consts" in parameters:
        return parameters["num_consts"], parameters["num_carry"]
    # Newer versions of jax describe the arguments as three trees.
    constants, carried, _ = parameters["ft_in"].unpack()
    return len(constants), len(carried)


def evaluate(equation: Any, *arrays: Any) -> list[Any]:
    """The results of one equation of a jaxpr."""
    primitive = equation.primitive
    parameters = primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        results = primitive.bind(*arrays, **parameters)
    return list(results) if primitive.multiple_results else [results]
