"""What a normalization must be: right statistics, right gradients, in every dtype."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx.messages import shown
from gradtx.testing.comparison import Violation
from gradtx.testing.judging import (
    Check,
    expect_all_finite,
    expect_close,
    expect_near,
    expect_type,
    is_required,
    judge,
)

_ULPS = 64.0
# The eps of a normalization is at most this, so what it does to a variance of 1 is less.
_EPS = 1e-3
_STEPS = (1e-6, 3e-6)
_DIGITS = "compute in float64 where x is float64, with no cast to float32 on the way"
_SIGNATURE = (
    "it is called with x, and with the mask by the keyword `mask` of the check; bind every other "
    "argument, as in `lambda x: normalize(x, scale=...)`"
)


class _Case(NamedTuple):
    """The arguments of `check_normalization`, and the numbers that are normalized.

    Attributes:
        normalize: the function of x alone, with a mask of everything if it demands one.
        with_mask: the function as it is given.
    """

    normalize: Callable[..., Any]
    with_mask: Callable[..., Any]
    x: np.ndarray
    axes: tuple[int, ...]
    centers: bool
    mask: str
    in_parts: Callable[[Sequence[jax.Array]], Sequence[jax.Array]] | None
    ulps: float


def check_normalization(
    normalize: Callable[..., Any],
    shape: Sequence[int] = (4, 6),
    *,
    axes: int | Sequence[int] = -1,
    centers: bool = True,
    mask: str = "",
    in_parts: Callable[[Sequence[jax.Array]], Sequence[jax.Array]] | None = None,
    clauses: Collection[str] | None = None,
    skip: Collection[str] = (),
    ulps: float = _ULPS,
) -> None:
    """Check a normalization: a function that divides an array by what it measures of it.

        y = (x - mean(x)) / sqrt(var(x) + eps),    or x / sqrt(mean(x²) + eps)

    - The result has the shape and dtype of x: float32, bfloat16, float16, float64 under x64.
    - It is that of one of the two, with the mean and variance over `axes` of x and an eps of at
      most 0.001, in each element: of groups, reshape x so that `axes` are those of one group.
    - Over `axes` its mean is 0, unless it does not center, and its mean square 1, but for eps; also
      far from zero, where a variance as a difference of large squares has no digits left.
    - In half precision it is the float32 result, rounded; the largest numbers do not overflow, and
      constants and zeros give finite results and gradients.
    - In float64 it has the digits of float64, and its gradient is that of finite differences.
    - Compiled it gives the same.
    - Elements that are masked do not influence the others; where all that statistics are taken of
      are masked, as in a row of padding, results and gradients are finite.
    - In parts of the first axis it gives what it does for the whole.

    A normalization with another equation, such as one that whitens, may keep the rest: leave out
    the clause "equation".

    Args:
        normalize: the function of an array x, and of the mask by keyword if there is one, with or
            without a default. Scales, biases and running statistics have to be left out or bound.
        shape: the shape of x; along `axes` at least 4 elements.
        axes: the axes over which it takes statistics.
        centers: whether it subtracts the mean.
        mask: the name of the argument that takes a Boolean array of the shape of x, True where an
            element counts; empty: there is none.
        in_parts: the same for a list of parts of x along its first axis, which returns the list of
            results; None: nothing is promised about parts.
        clauses: the names of the clauses to check, which stand before the colon of each message:
            "calls", "statistics", "equation", "half_precision", "gradients", "zeros", "jit",
            "mask", "padding" and "parts"; None: all of them.
        skip: the names of clauses to leave out.
        ulps: how far eager and compiled numbers may differ, in units of the last place of the
            largest number.

    Raises:
        ConformanceError: if the function breaks any of that.
        ValueError: if `normalize` is not a function, or an argument names what does not exist.

    Example:
        >>> import gradtx
        >>> import jax.numpy as jnp
        >>> from gradtx.testing import check_normalization
        >>> check_normalization(gradtx.normalization.layer_norm)
        >>> check_normalization(gradtx.normalization.rms_norm, centers=False)
        >>> def by_squares(x):
        ...     mean, square = jnp.mean(x, -1, keepdims=True), jnp.mean(x * x, -1, keepdims=True)
        ...     return (x - mean) / jnp.sqrt(square - mean * mean + jnp.asarray(1e-5, x.dtype))
        >>> try:
        ...     check_normalization(by_squares)
        ... except AssertionError as error:
        ...     print(str(error).split(" to be")[0])
        statistics: expected the result for numbers around 1000
    """
    if not callable(normalize):
        raise ValueError(
            f"check_normalization: normalize must be a function, got {shown(normalize)}"
        )
    shape = tuple(shape)
    axes = tuple(axis % len(shape) for axis in ((axes,) if isinstance(axes, int) else axes))
    x = np.random.default_rng(0).standard_normal(shape)
    plain = _with_a_whole_mask(normalize, mask) if is_required(normalize, mask) else normalize
    case = _Case(plain, normalize, x, axes, centers, mask, in_parts, ulps)
    judge(
        "check_normalization",
        [
            Check(name, asks, hint, lambda run=run: run(case), _SIGNATURE)
            for name, asks, hint, run in _CHECKS
        ],
        clauses,
        skip,
    )


def _with_a_whole_mask(normalize: Callable[..., Any], mask: str) -> Callable[[Any], Any]:
    return lambda x: normalize(x, **{mask: jnp.ones(jnp.shape(x), bool)})


def _calls(case: _Case) -> None:
    normalize, x = case.normalize, case.x
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        given = jnp.asarray(x, dtype)
        expect_type("the result", x.shape, dtype, normalize(given))
        expect_close("a second result", normalize(given), normalize(given), 0.0)
    with jax.enable_x64(True):
        expect_type("the result", x.shape, jnp.float64, normalize(jnp.asarray(x)))


def _statistics(case: _Case) -> None:
    normalize, x, axes, centers = case.normalize, case.x, case.axes, case.centers
    y = np.asarray(normalize(jnp.asarray(x, jnp.float32)), np.float64)
    if centers:
        expect_near("the mean of the result", np.zeros_like(y.mean(axes)), y.mean(axes), 1e-5)
    square = np.mean(y**2, axes)
    expect_near("the mean square of the result", np.ones_like(square), square, 20 * _EPS)
    # Powers of two, so that the numbers are the same in both dtypes.
    far = np.round(x * 2**10) / 2**10 + 1024 * centers
    with jax.enable_x64(True):
        right = np.asarray(normalize(jnp.asarray(far)))
    found = normalize(jnp.asarray(far, jnp.float32))
    expect_near("the result for numbers around 1000", right, found, 2e-3)


def _equation(case: _Case) -> None:
    given = jnp.asarray(case.x, jnp.float32)
    wide = np.asarray(given, np.float64)
    deviations = wide - np.mean(wide, case.axes, keepdims=True) * case.centers
    variance = np.mean(deviations**2, case.axes, keepdims=True)
    found = np.asarray(case.normalize(given), np.float64)
    # Where eps is not known, the result is between those of the smallest and the largest one.
    ends = [deviations / np.sqrt(variance + eps) for eps in (0.0, _EPS)]
    right = np.clip(found, np.minimum(*ends), np.maximum(*ends))
    law = "(x - mean(x)) / sqrt(var(x) + eps)" if case.centers else "x / sqrt(mean(x²) + eps)"
    over = f"axes={case.axes[0] if len(case.axes) == 1 else case.axes}"
    expect_near(f"{law} over {over}", right, found, 1e-5)


def _narrow(case: _Case) -> None:
    normalize, x = case.normalize, case.x
    for dtype in (jnp.bfloat16, jnp.float16):
        given, name = jnp.asarray(x, dtype), np.dtype(dtype).name
        shifted = jnp.asarray(x + 10, dtype)
        # Scaled like this, the largest numbers are in the range of float16.
        large = jnp.asarray(x / np.max(np.abs(x)), dtype) * jnp.asarray(6e4, dtype)
        numbers = {"": given, " for numbers around 10": shifted, " for large numbers": large}
        for what, narrow in numbers.items():
            right = np.asarray(normalize(narrow.astype(jnp.float32)), np.float64)
            # One rounding is half a unit of the last place; the rest is that of float32.
            within = 0.6 * float(jnp.finfo(dtype).eps) * np.abs(right) + 1e-5
            expect_near(f"the result{what} in {name}", right, normalize(narrow), within)


def _gradients(case: _Case) -> None:
    normalize, x = case.normalize, case.x
    weights = np.random.default_rng(1).standard_normal(x.shape)
    directions = np.random.default_rng(2).standard_normal((3, *x.shape))

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(normalize(x) * jnp.asarray(weights, x.dtype))

    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(loss)(jnp.asarray(x)))
        for direction in directions:
            right, other = (_difference(loss, x, step * direction) / step for step in _STEPS)
            # Rounding to float32 is divided by the step, and so is another with each step.
            if abs(right - other) > 1e-5 * (1 + abs(right)):
                got = "numbers that jump between close arguments, as those of float32 do"
                raise Violation("", "results with the digits of float64", got, hint=_DIGITS)
            found = np.sum(gradient * direction)
            what = "the slope of the result, from differences in float64,"
            expect_near(what, right, found, 1e-5 * (1 + abs(right)))


def _difference(loss: Callable[[jax.Array], jax.Array], x: np.ndarray, step: np.ndarray) -> float:
    """Half the change of the loss from one step before x to one after it."""
    return float(loss(jnp.asarray(x + step)) - loss(jnp.asarray(x - step))) / 2


def _constants(case: _Case) -> None:
    normalize, x = case.normalize, case.x
    for value in (0.0, 3.0):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            given = jnp.full(x.shape, value, dtype)
            name = f"for {value:g} everywhere, in {np.dtype(dtype).name},"
            expect_all_finite(f"results {name}", normalize(given))
            slope = jax.grad(lambda x: jnp.sum(normalize(x).astype(jnp.float32)))(given)
            expect_all_finite(f"gradients {name}", slope)


def _compiled(case: _Case) -> None:
    normalize, x, ulps = case.normalize, case.x, case.ulps
    given = jnp.asarray(x, jnp.float32)
    expect_close("the compiled result", normalize(given), jax.jit(normalize)(given), ulps)


def _masked(case: _Case) -> None:
    normalize, with_mask, x, axes, _, mask, _, ulps = case
    if not mask:
        return
    given = jnp.asarray(x, jnp.float32)
    everything = with_mask(given, **{mask: jnp.ones(x.shape, bool)})
    expect_close("the result with a mask of everything", normalize(given), everything, ulps)
    # The last quarter along one axis of the statistics does not count.
    axis = max(axes, key=lambda axis: x.shape[axis])
    kept = x.shape[axis] - max(x.shape[axis] // 4, 1)
    index = np.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    counts = np.broadcast_to(index < kept, x.shape)
    chosen = np.take(x, range(kept), axis)
    right = normalize(jnp.asarray(chosen, jnp.float32))
    for filler in (0.0, 1e4, np.nan):
        filled = jnp.asarray(np.where(counts, x, filler), jnp.float32)
        found = with_mask(filled, **{mask: jnp.asarray(counts)})
        found = np.take(np.asarray(found), range(kept), axis)
        if np.isnan(filler) and np.any(np.isnan(found)):
            raise Violation("", "numbers where a masked element is NaN", "NaN")
        expect_near(f"the result beside masked elements of {filler}", right, found, 1e-4)


def _padding(case: _Case) -> None:
    if not case.mask:
        return
    given = jnp.asarray(case.x, jnp.float32)
    # Of the first index outside the axes of the statistics no element counts.
    corner = tuple(slice(None) if i in case.axes else 0 for i in range(given.ndim))
    counts = jnp.ones(given.shape, bool).at[corner].set(False)

    def results(x: jax.Array) -> jax.Array:
        return case.with_mask(x, **{case.mask: counts})

    expect_all_finite("results where all elements are masked", results(given))
    slope = jax.grad(lambda x: jnp.sum(results(x)))(given)
    expect_all_finite("gradients where all elements are masked", slope)


def _parts(case: _Case) -> None:
    normalize, x, in_parts = case.normalize, case.x, case.in_parts
    if in_parts is None:
        return
    given = jnp.asarray(x, jnp.float32)
    # Of unequal lengths, so that a mean of means is wrong.
    cut = max(x.shape[0] // 4, 1)
    results = in_parts([given[:cut], given[cut:]])
    found = np.concatenate([np.asarray(result) for result in results])
    expect_near("the results of parts", normalize(given), found, 1e-5)


_CHECKS = (
    ("calls", "a call", "return y, in the shape and dtype of x", _calls),
    (
        "statistics",
        "a call",
        "subtract the mean before squaring, and divide by the number of elements",
        _statistics,
    ),
    (
        "equation",
        "a call",
        "take statistics of x over all of `axes` and over nothing else, and leave signs and places "
        "as they are",
        _equation,
    ),
    (
        "half_precision",
        "a call in half precision",
        "take statistics in float32, and round once at the end",
        _narrow,
    ),
    (
        "gradients",
        "a gradient",
        "a custom derivative, or a `stop_gradient` around statistics",
        _gradients,
    ),
    ("zeros", "a call with constants", "add eps under the root", _constants),
    ("jit", "a compiled call", "use `jnp.where` in place of `if`", _compiled),
    (
        "mask",
        "a call with a mask",
        "leave masked elements out of sums, and out of the number that they are divided by",
        _masked,
    ),
    (
        "padding",
        "a call with a mask of nothing",
        "divide by `jnp.maximum(count, 1)` where the number of elements may be 0",
        _padding,
    ),
    (
        "parts",
        "calls with parts",
        "merge means and squared deviations, weighted by the numbers of elements",
        _parts,
    ),
)
