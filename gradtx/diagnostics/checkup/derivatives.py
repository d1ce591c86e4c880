"""Whether the derivatives that a program defines by itself are those of its functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from gradtx.diagnostics.checkup.finding import Finding
from gradtx.diagnostics.checkup.subject import Subject
from gradtx.diagnostics.tracing import primitives
from gradtx.diagnostics.tracing.found import Arrays
from gradtx.diagnostics.tracing.graph import Node, Value
from gradtx.diagnostics.tracing.observe import Measure

_HERE = str(Path(__file__).parents[2])
# A derivative of a function that consists of these is a surrogate, on purpose.
_STEPS = frozenset(["round", "floor", "ceil", "sign", "stop_gradient", "argmax", "argmin"])
_DIRECTIONS = 5
# Central differences, and what a solver with a tolerance leaves, agree far better than this.
_TOLERANCE = 0.1


def wrong_derivatives(subject: Subject) -> Iterator[Finding]:
    """The functions whose custom derivative is not that of what they compute."""
    seen = set()
    for equation, values in _candidates(subject):
        name, source = _definition(equation)
        if source in seen:
            continue
        inputs = [_array(subject, value) for value in values]
        ratio = _ratio(equation, inputs)
        if ratio is None:
            continue
        seen.add(source)
        yield Finding(
            "wrong_gradient",
            "error",
            f"the custom derivative of `{name}` is not that of the function: along random "
            f"directions it is about {ratio:.3g} times what central differences give.",
            "mend the rule (defvjp or defjvp): it has to return the derivative times the incoming "
            "gradient, for each argument in their order; or let jax differentiate the function.",
            source=source,
            evidence={"function": name, "ratio": ratio},
        )


def derivative_requests(subject: Subject) -> Iterator[tuple[Node, Measure]]:
    """What has to be measured for it: the arguments of these functions."""
    for _, values in _candidates(subject):
        for value in values:
            if value.producer is not None:
                yield value.producer, _result(value.producer.outputs.index(value))


def _result(i: int) -> Measure:
    def measure(inputs: Sequence[Any], results: Sequence[Any]) -> Arrays:
        del inputs
        return {f"learning_{i}": results[i]}

    return measure


def _candidates(subject: Subject) -> Iterator[tuple[Any, list[Value]]]:
    """The user's functions with a custom derivative, unless that is a surrogate."""
    for equation, values in subject.graph.with_own_derivative:
        jaxpr, path = _body(equation), _path(equation)
        is_foreign = not path or "site-packages" in path or path.startswith(_HERE)
        if is_foreign or not any(map(subject.is_trained, values)):
            continue
        # The identity has another derivative where a gradient is to be reversed or limited.
        is_identity = all(isinstance(v, Literal) or v in jaxpr.invars for v in jaxpr.outvars)
        if not is_identity and _STEPS.isdisjoint(primitives.primitives_of(jaxpr)):
            yield equation, values


def _body(equation: Any) -> Any:
    body = primitives.body_of(equation)
    assert body is not None
    return body[0]


def _path(equation: Any) -> str:
    """The file and the line of the definition of a function; empty: unknown."""
    return (_body(equation).debug_info.func_src_info or "").rpartition(" at ")[2]


def _definition(equation: Any) -> tuple[str, str]:
    """The name of a function, and where it is defined."""
    name = _body(equation).debug_info.func_name
    return name, f"{Path(_path(equation)).name} ({name})"


def _array(subject: Subject, value: Value) -> jax.Array:
    """The numbers of a value, in the first iteration of a loop; random ones if unknown."""
    if value.producer is None:
        return jnp.asarray(subject.array(value))
    measured = subject.measured.get(value.producer, {})
    array = measured.get(f"learning_{value.producer.outputs.index(value)}")
    if array is None:
        numbers = jax.random.normal(jax.random.key(0), value.shape)
        return numbers.astype(value.dtype)
    return jnp.asarray(array.reshape(-1, *value.shape)[0])


def _ratio(equation: Any, inputs: Sequence[jax.Array]) -> float | None:
    """The custom derivative over the central difference along random directions.

    None: they agree, or it cannot be told, because the function is constant there or not finite.
    """
    real = [i for i, array in enumerate(inputs) if jnp.issubdtype(array.dtype, jnp.floating)]

    def call(varied: Sequence[jax.Array]) -> list[jax.Array]:
        full = list(inputs)
        for i, array in zip(real, varied, strict=True):
            full[i] = array
        results = primitives.bind(equation, *full)
        return [one for one in results if jnp.issubdtype(one.dtype, jnp.floating)]

    @jax.jit
    def slopes(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        point = [inputs[i] for i in real]
        results, pull_back = jax.vjp(call, point)
        keys = jax.random.split(key)
        noise = zip(_noise(keys[0], point), point, strict=True)
        direction = [v * _size(x) for v, x in noise]
        weights = _noise(keys[1], results)
        step = max(float(jnp.finfo(x.dtype).eps) ** (1 / 3) for x in point)
        ahead, behind = (
            call([x + (sign * step) * v for x, v in zip(point, direction, strict=True)])
            for sign in (1, -1)
        )
        difference = [(f - b) / (2 * step) for f, b in zip(ahead, behind, strict=True)]
        return _product(pull_back(weights)[0], direction), _product(weights, difference)

    keys = jax.random.split(jax.random.key(1), _DIRECTIONS)
    custom, central = np.asarray([jax.device_get(slopes(key)) for key in keys], float).T
    # The median leaves out the directions along which a kink lies between the two points.
    error, size = np.median(np.abs(custom - central)), np.median(np.abs(central))
    if not np.isfinite([error, size]).all() or size == 0 or error <= _TOLERANCE * size:
        return None
    return float(np.sum(custom * central) / np.sum(central**2))


def _noise(key: jax.Array, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    keys = jax.random.split(key, len(arrays))
    return [
        jax.random.normal(one, x.shape).astype(x.dtype) for one, x in zip(keys, arrays, strict=True)
    ]


def _size(array: jax.Array) -> jax.Array:
    """The root mean square of an array; 1 where it is zero."""
    size = jnp.sqrt(jnp.mean(jnp.square(array.astype(jnp.float32))))
    return jnp.where(size > 0, size, 1).astype(array.dtype)


def _product(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> jax.Array:
    pairs = zip(one, other, strict=True)
    products = (jnp.vdot(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs)
    return sum(products, jnp.zeros(()))
