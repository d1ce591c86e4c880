"""The same steps with gradtx and with optax, and how they differ."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import optax.schedules
import optax.transforms

import gradtx

from .way import SHAPES, On, Stored

FLAT = (optax, optax.contrib, optax.transforms, optax.schedules)
STEPS = 5
# The losses, which fall and then rise again, also below zero.
VALUES = (3.0, 1.5, 1.6, -0.2, -0.25)
RTOL = 1e-4

WITH_VALUE = (
    "conditionally_mask",
    "conditionally_transform",
    "momo",
    "momo_adam",
    "polyak_sgd",
    "reduce_on_plateau",
    "scale_by_polyak",
)
WITH_LOSS = ("hutchinson_estimator_diag_hessian", "sophia")
WITH_GRADIENT = ("sam",)
PER_EXAMPLE = ("differentially_private_aggregate", "dpsgd")
# Their updates are what parameters change by, and rounded as these are.
CHANGES_OF_PARAMETERS = (
    "cocob",
    "fromage",
    "lookahead",
    "madgrad",
    "mechanize",
    "sam",
    "scale_by_cocob",
    "scale_by_madgrad",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_sgd",
)
WITH_NAN = ("apply_if_finite", "zero_nans")


class _Flat:
    """optax with the names of its submodules in one namespace, as in gradtx."""

    def __getattr__(self, name: str) -> Any:
        # `dir`, because `getattr` of a deprecated name warns.
        for module in FLAT:
            if name in dir(module):
                return getattr(module, name)
        raise AttributeError(name)


OPTAX = _Flat()


def make(lib: Any, name: str, way: Any) -> Any:
    """The transformation of a library."""
    arguments = way(lib) if callable(way) else way
    factory = getattr(lib, name)
    if isinstance(arguments, list):
        return factory(*arguments)
    if isinstance(arguments, tuple):
        positional, keywords = arguments
        return factory(*positional)(**keywords)
    return factory(**arguments)


def loss(params: Any) -> Any:
    """A bowl whose minimum is not at zero."""
    return sum(jnp.sum((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(params))


def draw(name: str, shapes: Any = SHAPES) -> tuple[Any, list[Any]]:
    """Parameters and gradients of very different size, which bfloat16 represents exactly."""
    rng = np.random.default_rng(7)

    def array(shape: tuple[int, ...]) -> jax.Array:
        x = rng.normal(size=shape) * np.exp(rng.normal(size=shape))
        return jnp.asarray(jnp.asarray(x, jnp.bfloat16), jnp.float32)

    def trees(first: tuple[int, ...] = ()) -> Any:
        return jax.tree.map(
            lambda shape: array(first + shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
        )

    params = trees()
    gradients = [trees((2,) if name in PER_EXAMPLE else ()) for _ in range(STEPS)]
    gradients[2]["matrix"] = 0 * gradients[2]["matrix"]
    if name in WITH_NAN:
        gradients[1]["matrix"] = gradients[1]["matrix"].at[0].set(jnp.nan)
    if name == "keep_params_nonnegative":
        params = jax.tree.map(jnp.abs, params)
    return params, gradients


def run(tx: Any, name: str, params: Any, gradients: list[Any]) -> list[tuple[Any, Any]]:
    """The updates and the state after each step, those before the first one in front."""
    params = optax.LookaheadParams.init_synced(params) if name == "lookahead" else params
    state = tx.init(params)
    path = [(None, state)]
    for g, value in zip(gradients, VALUES, strict=False):
        extra: dict[str, Any] = {"value": jnp.float32(value)} if name in WITH_VALUE else {}
        if name in WITH_LOSS:
            extra["obj_fn"] = loss
        if name in WITH_GRADIENT:
            extra["grad_fn"] = lambda p, _: jax.grad(loss)(p)
        updates, state = tx.update(g, state, params, **extra)
        params = optax.apply_updates(params, updates)
        path.append((updates, state))
    return path


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """The settings that users have: some of optax's functions mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def differences(name: str, way: Any) -> set[str]:
    """How a run of gradtx differs from one of optax, see `gradtx.differences.Difference`."""
    if isinstance(way, Stored):
        return differences(name, way.way) & {"layout", "fails", "refuses"}
    return _differences(name, way, *_drawn(name, way))


def extremes(name: str, way: Any, scale: float) -> set[str]:
    """The same of one step with gradients of extreme size."""
    params, gradients = _drawn(name, way)
    return _differences(name, way, params, [jax.tree.map(lambda g: scale * g, gradients[0])])


def _drawn(name: str, way: Any) -> tuple[Any, list[Any]]:
    on = way if isinstance(way, On) else On(SHAPES, way)
    params, gradients = draw(name, on.shapes)
    scaled = [
        jax.tree.map(lambda g, s=scale: s * g, tree)
        for tree, scale in zip(gradients, on.scales, strict=True)
    ]
    unit = jnp.asarray(1 + 0.5j if jnp.issubdtype(on.dtype, jnp.complexfloating) else 1, on.dtype)
    return jax.tree.map(lambda x: x.astype(on.dtype) * unit, (params, scaled))


def _differences(name: str, way: Any, params: Any, gradients: list[Any]) -> set[str]:
    way = way.way if isinstance(way, On) else way
    # Operation by operation: what both libraries call is compiled once for both.
    with lenient(), jax.disable_jit(), warnings.catch_warnings():
        paths, errors = [], []
        for lib in (gradtx, OPTAX):
            if lib is OPTAX:
                warnings.simplefilter("ignore")
            try:
                paths.append(run(make(lib, name, way), name, params, gradients))
            except Exception as error:
                errors.append(error)
                paths.append(None)
    ours, theirs = paths
    if ours is None or theirs is None:
        if ours is theirs:
            raise AssertionError(f"{name}: both fail") from errors[0]
        return {"fails" if theirs is None else "refuses"}
    found = set()
    for (updates, state), (right_updates, right_state) in zip(ours, theirs, strict=True):
        for kind, one, other in (
            ("result", updates, right_updates),
            ("state", state, right_state),
        ):
            if layout(one) != layout(other):
                found.add("layout")
            size = params if kind == "result" and name in CHANGES_OF_PARAMETERS else ()
            if shapes_of(one) != shapes_of(other) or not close(one, other, size):
                found.add(kind)
    return found


def layout(tree: Any) -> Any:
    """Structure, with the classes of the states, and the types of the arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(np.shape(x), jnp.result_type(x)) for x in leaves]


def shapes_of(tree: Any) -> list[tuple[int, ...]]:
    return [np.shape(x) for x in jax.tree.leaves(tree)]


def close(tree: Any, other: Any, params: Any = ()) -> bool:
    """Whether the numbers agree to `RTOL`, or to the rounding of these parameters."""
    size = max((float(jnp.max(jnp.abs(p))) for p in jax.tree.leaves(params)), default=0.0)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(_close(_numbers(x), _numbers(y), size) for x, y in pairs)


def _close(x: np.ndarray, y: np.ndarray, size: float) -> bool:
    # What cancels is rounded as the largest element is.
    largest = np.max(np.abs(y), initial=0, where=np.isfinite(y))
    atol = 1e-6 * largest + 2.0**-22 * size
    return np.allclose(x, y, rtol=RTOL, atol=atol, equal_nan=True)


def _numbers(x: Any) -> np.ndarray:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x, np.complex128 if jnp.iscomplexobj(x) else np.float64)
