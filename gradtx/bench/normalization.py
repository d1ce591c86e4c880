"""Normalization compared with flax, forward and backward."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from gradtx.bench import programs
from gradtx.bench.measure import Figure, Settings, Subject, compared, in_turn, memory
from gradtx.normalization import batch_norm, group_norm, init_batch_stats, layer_norm, rms_norm

# Maps x, scale and bias to y and new running statistics, if there are any.
_Normalization: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

_GROUPS = 8
_EPSILON = 1e-5
_MOMENTUM = 0.9


def missing() -> str | None:
    """Why there is nothing to compare with; None if there is."""
    if importlib.util.find_spec("flax") is None:
        return "normalization: skipped, because flax is not installed"
    return None


def normalization(settings: Settings) -> Iterator[Figure]:
    """The time and the temporary memory of each normalization and of its derivative."""
    dtypes = (jnp.float32,) if settings.quick else (jnp.float32, jnp.bfloat16)
    kinds = ("layer_norm", "rms_norm", "group_norm", "batch_norm")
    for kind in kinds[1::2] if settings.quick else kinds:
        for shape in _shapes(kind, settings.quick):
            for dtype in dtypes:
                yield from _case(settings, kind, jax.ShapeDtypeStruct(shape, dtype))


def _shapes(kind: str, quick: bool) -> tuple[tuple[int, ...], ...]:
    """The shapes of x: one for each kind, and on accelerators three of rows."""
    if kind in ("group_norm", "batch_norm"):
        return ((2, 4, 4, 16),) if quick else ((32, 32, 32, 64),)
    if jax.default_backend() == "cpu":
        return ((4, 16),) if quick else ((2048, 1024),)
    return ((4, 16),) if quick else ((4096, 512), (16384, 1024), (8192, 4096))


def _case(settings: Settings, kind: str, struct: jax.ShapeDtypeStruct) -> Iterator[Figure]:
    """One normalization of one type of array."""
    case = f"{kind}, {' x '.join(map(str, struct.shape))}, {struct.dtype.name}"
    x, direction = (programs.drawn(struct, seed) for seed in (0, 1))
    features = struct.shape[-1]
    scale, bias = jnp.ones(features), jnp.zeros(features)
    functions = {"flax": _flax(kind, struct.dtype), "gradtx": _ours(kind, features)}
    for measure, program, arguments in (
        ("forward", _forward, (x, scale, bias)),
        ("forward + backward", _backward, (x, scale, bias, direction)),
    ):
        subjects = {
            name: Subject(settings, program(function), arguments)
            for name, function in functions.items()
        }
        yield from _measured(settings, case, measure, subjects)


def _measured(
    settings: Settings, case: str, measure: str, subjects: dict[str, Subject]
) -> Iterator[Figure]:
    for subject in subjects.values():
        subject.warm_up()
    tasks = {name: subject.step for name, subject in subjects.items()}
    medians = in_turn(tasks, settings.repeats)
    medians = {name: {measure: values["step"]} for name, values in medians.items()}
    yield from compared("normalization", case, medians, peer="flax")
    yield from memory("normalization", case, subjects, f"temporary, {measure}", peer="flax")


def _forward(function: _Normalization) -> Callable[..., Any]:
    return function


def _backward(function: _Normalization) -> Callable[..., Any]:
    def derivative(x: Any, scale: Any, bias: Any, direction: Any) -> Any:
        y, pull_back, aux = jax.vjp(function, x, scale, bias, has_aux=True)
        return y, pull_back(direction), aux

    return derivative


def _ours(kind: str, features: int) -> _Normalization:
    def function(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
        match kind:
            case "layer_norm":
                return layer_norm(x, scale, bias, epsilon=_EPSILON), None
            case "rms_norm":
                return rms_norm(x, scale, epsilon=_EPSILON), None
            case "group_norm":
                return group_norm(x, scale, bias, groups=_GROUPS, epsilon=_EPSILON), None
            case _:
                stats = init_batch_stats(features)
                return batch_norm(
                    x, stats, scale, bias, training=True, momentum=_MOMENTUM, epsilon=_EPSILON
                )

    return function


def _flax(kind: str, dtype: Any) -> _Normalization:
    from flax import linen

    # Without `dtype`, float32 parameters would promote bfloat16 to float32.
    module = {
        "layer_norm": linen.LayerNorm(epsilon=_EPSILON, dtype=dtype),
        "rms_norm": linen.RMSNorm(epsilon=_EPSILON, dtype=dtype),
        "group_norm": linen.GroupNorm(_GROUPS, epsilon=_EPSILON, dtype=dtype),
        "batch_norm": linen.BatchNorm(
            use_running_average=False, momentum=_MOMENTUM, epsilon=_EPSILON, dtype=dtype
        ),
    }[kind]

    def function(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
        params = {"scale": scale} if kind == "rms_norm" else {"scale": scale, "bias": bias}
        if kind != "batch_norm":
            return module.apply({"params": params}, x), None
        stats = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
        return module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])

    return function
