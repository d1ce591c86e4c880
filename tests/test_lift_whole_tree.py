"""The lift beyond one array per leaf: scalars of the tree, lists, stacks, options by leaf."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import norms
from gradtx.kernel import NON_NEGATIVE, Kernel, PerLeaf, Scalar, Slot
from gradtx.lift import hyperparameters_of, lift
from gradtx.testing import check_transformation


class DistanceState(NamedTuple):
    """The state of a step as long as the way travelled: a small relative of DoG."""

    start: Any
    longest: Any
    total: Any
    k: Any


def distance(g, p, start):
    return jnp.sqrt(norms.sum_of(_squared_distance, p, start))


def _squared_distance(p, start):
    return jnp.sum(jnp.square(p - start))


def distance_scalars(*, longest, total, distance, norm, value, t, rate):
    longest = jnp.maximum(longest, distance)
    total = total + norm**2 + value
    return {"longest": longest, "total": total, "length": rate * longest / jnp.sqrt(total * t)}


def distance_step(g, *, start, length):
    return -length * g, start


def distance_kernel(**changes):
    fields = {
        "name": "distance",
        "step": distance_step,
        "slots": (Slot("start", fill="p"),),
        "scalars": (Scalar("longest", fill="first"), Scalar("total")),
        "scalar_step": distance_scalars,
        "factors": ("length",),
        "measures": {"distance": distance, "norm": norms.norm_of_leaves},
        "hyperparameters": {"rate": NON_NEGATIVE, "first": NON_NEGATIVE},
        "extras": ("value",),
        "state": DistanceState,
        "counters": ("k",),
        "elementwise": False,
    }
    return Kernel(**(fields | changes))


PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}


@pytest.mark.parametrize("rate", ["number", "array", "schedule"])
def test_scalars_of_the_tree_follow_their_equation(rate):
    value = {"number": 0.5, "array": jnp.float32(0.5), "schedule": lambda count: 0.5 + 0 * count}
    tx = lift(distance_kernel(), rate=value[rate], first=0.25)
    params, state = PARAMS, tx.init(PARAMS)
    x = start = np.array([1.0, -2.0, 3.0])
    longest, total = 0.25, 0.0
    for t in range(1, 5):
        gradients = jax.tree.map(lambda p: 2 * p, params)
        updates, state = jax.jit(tx.update)(gradients, state, params, value=0.125)
        params = gradtx.apply_updates(params, updates)
        longest = max(longest, np.linalg.norm(x - start))
        total += np.sum((2 * x) ** 2) + 0.125
        x = x - 0.5 * longest / np.sqrt(total * t) * 2 * x
    np.testing.assert_allclose(np.concatenate([params["a"], params["b"][0]]), x, rtol=1e-6)
    np.testing.assert_allclose([state.longest, state.total], [longest, total], rtol=1e-6)
    assert state.k == 4
    assert hyperparameters_of(tx)["first"] == 0.25


def test_scalars_are_at_least_float32_and_keep_their_dtype():
    tx = lift(distance_kernel(), rate=0.5, first=0.25)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = tx.init(half)
    assert state.longest.dtype == jnp.float32
    _, new = tx.update(half, state, half, value=0.0)
    assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, state)
    assert jax.tree.map(lambda x: x.weak_type, new) == jax.tree.map(lambda x: x.weak_type, state)


def test_tree_wide_kernels_keep_the_contract():
    tx = lift(distance_kernel(), rate=0.5, first=0.25)
    check_transformation(tx, extra_args=lambda params: {"value": jnp.float32(1)})


def test_missing_extra_argument_is_named():
    tx = lift(distance_kernel(), rate=0.5, first=0.25)
    with pytest.raises(ValueError, match=r"distance: needs value; .*value="):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_extra_argument_that_would_broadcast_is_refused():
    tx = lift(distance_kernel(), rate=0.5, first=0.25)
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="distance: value must be a scalar, got shape"):
        tx.update(params, tx.init(params), params, value=jnp.ones(2))
    expected = tx.update(params, tx.init(params), params, value=3.0)
    found = tx.update(params, tx.init(params), params, value=jnp.array([3.0]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_parameters_that_only_a_measure_needs_are_asked_for():
    tx = lift(distance_kernel(), rate=0.5, first=0.25)
    with pytest.raises(ValueError, match="distance: needs the parameters"):
        tx.update(PARAMS, tx.init(PARAMS), value=1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"factors": ()},
        {"scalars": (Scalar("longest"),)},
        {"counters": ("count",)},
        {"extras": ()},
        {"hyperparameters": {"rate": NON_NEGATIVE}},
    ],
    ids=["factors", "scalars", "counters", "extras", "hyperparameters"],
)
def test_declarations_must_agree_with_the_equations(changes):
    with pytest.raises(ValueError, match="distance:"):
        distance_kernel(**changes)


class AxesState(NamedTuple):
    """The state of a sum of squares along each axis."""

    sums: Any


def along_axes(g, *, sums):
    new = [s + jnp.sum(jnp.abs(g) ** 2, axis=i, keepdims=True) for i, s in enumerate(sums)]
    return g / (1 + sum(jnp.broadcast_to(s, g.shape) for s in new)), new


def axis_shapes(shape):
    return [tuple(1 if i == j else n for j, n in enumerate(shape)) for i in range(len(shape))]


def ones(shape, dtype):
    return jnp.ones(shape, dtype)


def test_a_slot_may_be_a_list_of_arrays():
    slot = Slot("sums", fill=ones, shape=axis_shapes)
    kernel = Kernel("axes", along_axes, slots=(slot,), state=AxesState, elementwise=False)
    tx = lift(kernel)
    g = {"m": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "s": jnp.array(2.0)}
    updates, state = tx.update(g, tx.init(g))
    rows, columns = np.array([[6.0], [26.0]]), np.array([[11.0, 21.0]])
    np.testing.assert_allclose(state.sums["m"][0], columns)
    np.testing.assert_allclose(state.sums["m"][1], rows)
    np.testing.assert_allclose(updates["m"], g["m"] / (1 + rows + columns))
    assert state.sums["s"] == []
    with pytest.raises(ValueError, match=r"axes: shapes differ at 'm'.*\(2, 3\)"):
        tx.update({"m": jnp.ones((2, 3)), "s": jnp.array(2.0)}, state)
    check_transformation(tx)


class TripledState(NamedTuple):
    """The state of a momentum with an option for each leaf."""

    mu: Any


traced_shapes = []


def tripled(g, *, mu, times):
    traced_shapes.append(g.shape)
    return times * (g + mu), g + mu


def test_leaves_of_one_type_step_together_and_options_differ_by_leaf():
    kernel = Kernel(
        "tripled",
        tripled,
        slots=(Slot("mu"),),
        options=("times",),
        state=TripledState,
        stacked=True,
    )
    factor = PerLeaf(lambda tree: {name: 3.0 if name == "c" else 2.0 for name in tree})
    tx = lift(kernel, times=factor)
    g = {name: jnp.full((2, 3), float(i)) for i, name in enumerate("abc")} | {"d": jnp.ones(2)}
    traced_shapes.clear()
    program = jax.make_jaxpr(tx.update)(g, tx.init(g))
    assert sorted(traced_shapes) == [(2,), (2, 3), (2, 3)]
    assert str(program).count("f32[2,2,3]") > 0
    updates, state = tx.update(g, tx.init(g))
    for name, times in {"a": 2, "b": 2, "c": 3, "d": 2}.items():
        np.testing.assert_array_equal(updates[name], times * g[name])
        np.testing.assert_array_equal(state.mu[name], g[name])
    check_transformation(lift(kernel, times=2.0))
