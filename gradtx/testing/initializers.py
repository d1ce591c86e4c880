"""What an initializer must be: numbers that depend on key, shape and dtype, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradtx.messages import shown
from gradtx.testing.comparison import Violation
from gradtx.testing.judging import (
    Check,
    expect_all_finite,
    expect_close,
    expect_type,
    judge,
)
from gradtx.testing.programs import is_random

Initializer = Callable[..., Any]

_ULPS = 64.0
_NARROW = (jnp.bfloat16, jnp.float16)
_SIGNATURE = (
    "the signature is `init(key, shape, dtype=jnp.float32)`; bind every other argument, as in "
    "`functools.partial(init, scale=2.0)`"
)
# Standard errors that a mean or standard deviation may be off; a right one is in 1 of 10^9 cases.
_ERRORS = 6.0
# Slices that are the same by chance with a larger probability than this are not reported.
_CHANCE = 1e-3


def check_initializer(
    init: Initializer,
    shape: Sequence[int] = (16, 24),
    *,
    mean: float | None = None,
    stddev: float | None = None,
    clauses: Collection[str] | None = None,
    skip: Collection[str] = (),
    ulps: float = _ULPS,
) -> None:
    """Check an initializer: a function of key, shape and dtype, as in `jax.nn.initializers`.

    - The result has the shape and dtype that were asked for: float32 by default, bfloat16, float16,
      float64 under x64; a complex dtype may be refused.
    - Numbers are finite, the same for the same key, typed or not, and whether compiled, mapped over
      keys or laid out over devices; others for another key, and no two rows, columns or other
      slices along an axis alike, nor the halves of an axis.
    - A shape without elements gives an array without elements, or a ValueError.
    - Mean and standard deviation over all elements of a result are those that are given.

    Args:
        init: the initializer, called as `init(key, shape)` and `init(key, shape, dtype)`.
        shape: a shape that it takes; some thousand elements if moments are checked.
        mean: the mean of its distribution; None: not checked.
        stddev: its standard deviation; None: not checked.
        clauses: the names of the clauses to check, which stand before the colon of each message:
            "calls", "dtypes", "keys", "jit", "sizes", "sharding" and "moments"; None: all of them.
        skip: the names of clauses to leave out.
        ulps: how far eager and compiled numbers may differ, in units of the last place of the
            largest number.

    Raises:
        ConformanceError: if the initializer breaks any of that.
        ValueError: if `init` is not a function, or an argument names what does not exist.

    Example:
        >>> import jax
        >>> import gradtx
        >>> from gradtx.testing import check_initializer
        >>> check_initializer(gradtx.initializers.normal(0.1), (64, 64), mean=0.0, stddev=0.1)
        >>> try:
        ...     check_initializer(lambda key, shape, dtype=None: jax.random.normal(key, shape))
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[0])
        dtypes: expected the result for bfloat16 of type bfloat16[16, 24], got float32[16, 24]
    """
    if not callable(init):
        raise ValueError(f"check_initializer: init must be a function, got {shown(init)}")
    shape = tuple(shape)
    checks = [
        (
            "calls",
            "init(key, shape)",
            "return a jax array of the shape and dtype asked for, float32 where none is",
            _calls,
        ),
        ("dtypes", "init with other dtypes", "pass the dtype on to the draw", _dtypes),
        (
            "keys",
            "init with other keys",
            "draw the whole array with the key that is given, and let no earlier call matter",
            _keys,
        ),
        (
            "jit",
            "a compiled init",
            "decide nothing in Python by the key or by numbers, and let no earlier call matter",
            _compiled,
        ),
        ("sizes", "init of no elements", "divide by `max(size, 1)`", _sizes),
        ("sharding", "init on several devices", "draw with a partitionable generator", _sharding),
    ]
    moments = {"mean": mean, "stddev": stddev}
    judge(
        "check_initializer",
        [
            *(
                Check(n, a, h, lambda run=run: run(init, shape, ulps), _SIGNATURE)
                for n, a, h, run in checks
            ),
            Check("moments", "init", "its scale", lambda: _moments(init, shape, moments)),
        ],
        clauses,
        skip,
    )


def _calls(init: Initializer, shape: tuple[int, ...], ulps: float) -> None:
    expect_type("the result", shape, jnp.float32, init(jax.random.key(0), shape))
    expect_type("the result", shape, jnp.float32, init(jax.random.key(0), shape, jnp.float32))


def _dtypes(init: Initializer, shape: tuple[int, ...], ulps: float) -> None:
    for dtype in _NARROW:
        name = np.dtype(dtype).name
        result = init(jax.random.key(0), shape, dtype)
        expect_type(f"the result for {name}", shape, dtype, result)
        _expect_finite(f"numbers in {name}", result)
    with jax.enable_x64(True):
        result = init(jax.random.key(0), shape, jnp.float64)
        expect_type("the result for float64", shape, jnp.float64, result)
        single = np.asarray(result).astype(np.float32).astype(np.float64)
        if is_random(_program(init, shape)) and np.array_equal(single, np.asarray(result)):
            raise Violation("", "numbers with the digits of float64", "those of float32")
    try:
        result = init(jax.random.key(0), shape, jnp.complex64)
    except (ValueError, TypeError, NotImplementedError):
        return
    expect_type("the result for complex64", shape, jnp.complex64, result)


def _expect_finite(what: str, result: Any) -> None:
    """Demand finite numbers; draws of few digits are 0 more often."""
    try:
        expect_all_finite(what, result)
    except Violation as error:
        error.hint = "draw in float32 and cast the result, where log(0) or a division may occur"
        raise


def _program(init: Initializer, shape: tuple[int, ...]) -> Any:
    return jax.make_jaxpr(lambda key: init(key, shape))(jax.random.key(0))


def _keys(init: Initializer, shape: tuple[int, ...], ulps: float) -> None:
    first, second = (init(jax.random.key(seed), shape) for seed in (0, 1))
    expect_all_finite("numbers", first)
    expect_close("the result for the same key", first, init(jax.random.key(0), shape), 0.0)
    raw = init(jax.random.key_data(jax.random.key(0)), shape)
    expect_close("the result for the key's raw data", first, raw, 0.0)
    if not is_random(_program(init, shape)):
        return
    if np.array_equal(first, second):
        raise Violation("", "other numbers for another key", "the same")
    _expect_different_slices(np.asarray(first))


def _expect_different_slices(numbers: np.ndarray) -> None:
    """Demand that along no axis two slices are the same, or the two halves."""
    counts = np.unique(numbers, return_counts=True)[1]
    # How likely two of the numbers are the same: often in small arrays, or where few values occur.
    same = float(np.sum((counts / max(numbers.size, 1)) ** 2))
    last = numbers.ndim - 1
    for axis, size in enumerate(numbers.shape):
        name = {0: "rows", last: "columns"}.get(axis, f"slices along axis {axis}")
        slices = np.moveaxis(numbers, axis, 0).reshape(size, -1)
        own = [one.tobytes() for one in slices if np.any(one != one[0])]
        pairs = len(own) * (len(own) - 1) / 2
        if pairs * same ** slices.shape[1] < _CHANCE and len(set(own)) < len(own):
            raise Violation("", f"{name} that differ", "two that are the same")
        half = slices[: size // 2]
        is_drawn = half.size > 0 and np.any(half != half[0, 0]) and same**half.size < _CHANCE
        if is_drawn and np.array_equal(half, slices[-(size // 2) :]):
            raise Violation("", f"halves along axis {axis} that differ", "the same numbers")


def _compiled(init: Initializer, shape: tuple[int, ...], ulps: float) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    eager = [init(key, shape) for key in keys]
    batch = jax.jit(jax.vmap(lambda key: init(key, shape)))(keys)
    for i, result in enumerate(eager):
        expect_close(f"the result for key {i} of a batch", result, batch[i], ulps)
    compiled = jax.jit(lambda key: init(key, shape))(keys[0])
    expect_close("the compiled result", eager[0], compiled, ulps)


def _sizes(init: Initializer, shape: tuple[int, ...], ulps: float) -> None:
    for axis in range(len(shape)):
        empty = (*shape[:axis], 0, *shape[axis + 1 :])
        try:
            result = init(jax.random.key(0), empty)
        except ValueError:
            continue  # it may say that it has no such numbers
        expect_type("the result", empty, jnp.float32, result)


def _sharding(init: Initializer, shape: tuple[int, ...], ulps: float) -> None:
    number = jax.device_count()
    axis = next((i for i, size in enumerate(shape) if size and size % number == 0), None)
    if number < 2 or axis is None:
        return
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    layout = NamedSharding(mesh, PartitionSpec(*[None] * axis, "devices"))
    spread = jax.jit(lambda key: init(key, shape), out_shardings=layout)(jax.random.key(0))
    expect_close("the result over devices", init(jax.random.key(0), shape), spread, ulps)


def _moments(init: Initializer, shape: tuple[int, ...], right: dict[str, float | None]) -> None:
    numbers = np.asarray(init(jax.random.key(0), shape)).astype(np.complex128)
    spread = float(np.std(numbers))
    # The standard error of a standard deviation depends on the fourth moment.
    fourth = np.mean(np.abs(numbers - numbers.mean()) ** 4) / max(spread**4, 1e-300)
    of_mean = spread / np.sqrt(numbers.size)
    of_spread = spread * np.sqrt(max(fourth - 1, 1e-3) / (4 * numbers.size))
    for name, found, error in (
        ("mean", complex(numbers.mean()), of_mean),
        ("stddev", complex(spread), of_spread),
    ):
        wanted = right[name]
        if wanted is not None and abs(found - wanted) > _ERRORS * error + 1e-6 * abs(wanted):
            got = f"{found.real:.4g}, give or take {error:.1g}"
            raise Violation("", f"a {name} of {wanted:.4g}", got)
