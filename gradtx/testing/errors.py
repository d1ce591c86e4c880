"""Errors of jax, NumPy and Python in the words of somebody who wrote a transformation."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

import jax

# The packages whose frames in a traceback are of no interest.
_FOREIGN = frozenset({"jax", "jaxlib", "numpy", "equinox", "jaxtyping", "beartype"})
_NOT_THERE = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
_CHARACTERS = 200

# The extra arguments that a check passes on where `capabilities` names them.
_SERVED = "value|grad|value_fn"
_BRANCH = "use `jnp.where` or `jax.lax.cond` in place of `if`, `and`, `or` and `while`"
_NUMBER = "keep numbers in jax arrays, and move what has to be known in advance out of the update"
_STRUCTURE = (
    "give all trees of one `jax.tree.map` one structure, and pass "
    "`is_leaf=lambda leaf: leaf is None` where a leaf may be None"
)

# The first entry whose class and pattern fit: what happened, and what to look at.
_EXPLAINED: tuple[
    tuple[type[BaseException] | tuple[type[BaseException], ...], str, str, str], ...
] = (
    (
        jax.errors.TracerBoolConversionError,
        "",
        "a decision in Python about a number that is only known when the program runs",
        _BRANCH,
    ),
    (
        jax.errors.TracerArrayConversionError,
        "",
        "NumPy called on a traced array",
        "use `jax.numpy` in place of `numpy`",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "",
        "a traced number used as a Python integer",
        _NUMBER,
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "",
        "an index whose number of elements depends on values",
        "use `jnp.where` in place of a Boolean index",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "",
        "a traced number used as a Python number",
        _NUMBER,
    ),
    (
        jax.errors.UnexpectedTracerError,
        "",
        "a traced array of an earlier call, which was kept outside the state",
        "keep everything that changes in the state, nothing in a closure, a global or `self`",
    ),
    (
        TypeError,
        r"scan body function carry|carry input and carry output|body_fun output and input",
        "a state of another type or structure than the one that came in",
        "return each field of the state with the structure, shape and dtype that init gives it",
    ),
    (
        TypeError,
        r"unexpected keyword argument '(?P<name>\w+)'",
        "a refusal of the extra argument '{name}'",
        "let the update end in `**extra_args`",
    ),
    (
        (TypeError, ValueError),
        r"missing 1 required positional argument: 'params'|requires the current value of param",
        "a demand for `params`",
        "let a wrapper hand `params` on, as in `inner.update(updates, state, params)`",
    ),
    (
        TypeError,
        r"missing \d+ required (positional|keyword-only) arguments?: (?P<name>.*)",
        "a demand for the argument {name}",
        "{served}",
    ),
    (
        KeyError,
        rf"^'(?P<name>{_SERVED})'$",
        "a demand for the argument '{name}'",
        "{served}",
    ),
    (
        ValueError,
        r"call update\(.*, (?P<name>\w+)=",
        "a demand for the argument '{name}'",
        "{served}",
    ),
    (
        TypeError,
        r"takes (?P<name>.*) positional arguments? but",
        "a function that takes {name} positional arguments",
        "call signatures are `init(params)` and `update(updates, state, params=None)`",
    ),
    (
        TypeError,
        "NoneType",
        "arithmetic with None",
        "skip leaves that are None, as `jax.tree.map` does by default",
    ),
    (
        TypeError,
        "float0",
        "arithmetic with a float0 array, which is the gradient of an integer",
        "return the gradients of what is no parameter as they are",
    ),
    (
        TypeError,
        "not supported for the input types|requires ndarray or scalar|unsupported operand",
        "arithmetic with a leaf that is no number",
        "return what is no parameter as it is",
    ),
    (
        ValueError,
        r"pytree structure error|Dict key mismatch|structures do not match|[Ee]xpected (dict|tuple"
        r"|list|named tuple|None)|arity mismatch|[Cc]ustom node type mismatch|Named tuple arity",
        "trees of different structures",
        _STRUCTURE,
    ),
    (
        AttributeError,
        "'NoneType' object has no attribute '(?P<name>.*)'",
        "a leaf that is None where an array was expected (`.{name}`)",
        "skip leaves that are None, as `jax.tree.map` does by default",
    ),
    (
        TypeError,
        "is not a valid JAX type|as an abstract array",
        "a leaf in the state or the updates that is no array",
        "keep arrays and numbers in the state, and put the rest into the closure",
    ),
    (
        Exception,
        "no available implicit dtype promotion|strict dtype promotion",
        "an implicit promotion of dtypes, which this process forbids",
        "cast to one dtype before an operation, as in `x.astype(g.dtype)`",
    ),
    (
        Exception,
        "rank_promotion|rank promotion",
        "an implicit promotion of ranks, which this process forbids",
        "give arrays one number of dimensions before an operation",
    ),
    (
        Exception,
        "donate the same buffer twice|has been deleted|was donated",
        "one buffer in two places, or one that had been given away",
        "let init return new buffers: `jnp.zeros_like` or `jnp.copy`, not the parameters; and let "
        "the update donate nothing itself, as its caller may need the arguments again",
    ),
    (
        ValueError,
        "incompatible devices for jitted computation",
        "arrays on different devices in one compiled step",
        "let init put slots where their parameters lie, with `jnp.zeros_like(p)`, and nothing on a "
        "device of its own choice",
    ),
    (
        ValueError,
        "shard_map.*out_specs|out_specs.*replicat|statically inferred",
        "results that may differ from device to device, although the arguments do not",
        "let nothing depend on `jax.lax.axis_index` or on the device",
    ),
    (
        ValueError,
        "assignment destination is read-only",
        "an assignment into an array that belongs to the caller",
        "make new arrays, as in `x.at[i].set(y)`, and change no argument in place",
    ),
    (
        Exception,
        "zero-size array|[Nn]eed at least one array|empty (sequence|iterable)",
        "a maximum of no elements, or a concatenation of no arrays",
        "give maxima a start, `jnp.max(x, initial=0)`, and return early where there are no leaves",
    ),
    (
        Exception,
        "[Ii]ncompatible shapes|could not be broadcast",
        "arrays whose shapes do not fit",
        "keep each leaf in its own shape, whatever the number of dimensions and of elements",
    ),
)


def explained(error: BaseException) -> tuple[str, str]:
    """What an exception means, and what to look at; the latter is empty if nobody knows."""
    text = " ".join(str(error).split())
    at = f" at {place}" if (place := place_of(error)) else ""
    for kind, pattern, meaning, hint in _EXPLAINED:
        found = re.search(pattern, text)
        if isinstance(error, kind) and found:
            names = {**found.groupdict(), "served": _served(found.groupdict().get("name", ""))}
            return f"{meaning.format(**names)} ({type(error).__name__}{at})", hint.format(**names)
    text = text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."
    return f"{type(error).__name__}{at}: {text}", ""


def _served(names: str) -> str:
    """How the checks pass extra arguments on, which a message names."""
    known, others = [], []
    for name in re.findall(r"\b(?!and\b)[a-zA-Z_]\w*", names):
        (known if name in _SERVED.split("|") else others).append(name)
    by_name = ", ".join(f'"{name}"' for name in known) + "," * (len(known) == 1)
    given = ", ".join(f'"{name}": ...' for name in others)
    ways = ([f"pass `capabilities=({by_name})`"] if known else []) + (
        [f"pass `extra_args={{{given}}}`"] if others else []
    )
    return " and ".join(ways)


def place_of(error: BaseException) -> str:
    """The line of the transformation that raised, as `file.py:12 (function)`; empty: unknown."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not _FOREIGN.intersection(Path(frame.filename).parts)
        and Path(frame.filename).parent not in _NOT_THERE
        and not frame.filename.startswith("<")
    ]
    if not frames:
        return ""
    # What is wrapped says what is missing; who wraps it forgot to hand it on.
    own = [frame for frame in frames if "optax" not in Path(frame.filename).parts]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} ({frame.name})"
