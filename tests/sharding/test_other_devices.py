"""States in stacks go on on another number of devices, where the stacks have other padding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx.sharding import distributed
from gradtx.training import Checkpoints, TrainState

TX = gradtx.muon(0.1)
PARAMS = {"alone": jnp.ones((4, 2)), "v": jnp.ones(8), **{k: jnp.ones((2, 2)) for k in "abcd"}}


def after_a_step():
    """A state of Muon by itself with momenta of random numbers."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + jnp.asarray(random.standard_normal(x.shape) if x.ndim > 1 else 1, x.dtype),
        TX.init(PARAMS),
    )


def momenta(state):
    return state.inner_states["muon"].inner_state[0].mu


def on(number, kind=AxisType.Auto):
    """The transformation on some devices, and parameters that are there."""
    mesh = jax.make_mesh((number,), ("data",), (kind,), devices=jax.devices()[:number])
    return distributed(TX, mesh), jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))


def assert_lies_as(state, other):
    for own, like in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert jax.typeof(own) == jax.typeof(like)
        assert own.sharding.is_equivalent_to(like.sharding, own.ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_migrate_carries_everything(kind):
    state = plain = after_a_step()
    mus = {}
    for number in (8, 3, 4):
        tx, params = on(number, kind)
        state, report = gradtx.migrate(state, tx, params)
        assert ({*report.fresh}, report.dropped) == ({"places"}, ())
        assert_lies_as(state, tx.init(params))
        mus[number] = momenta(state.inner_state)
    own = momenta(plain)
    assert mus[8]["alone"].shape == (8, 4, 2)
    np.testing.assert_array_equal(mus[3]["alone"], [own["alone"], *np.zeros((2, 4, 2))])
    np.testing.assert_array_equal(mus[3]["a"], [*(own[k] for k in "abcd"), *np.zeros((2, 2, 2))])
    np.testing.assert_array_equal(mus[4]["a"], [own[k] for k in "abcd"])
    back, report = gradtx.migrate(state, TX, PARAMS)
    assert not report.fresh
    jax.tree.map(np.testing.assert_array_equal, back, plain)


def test_numbers_of_the_whole_tree_do_not_stay_on_the_old_devices():
    (_, old), (_, params) = on(8), on(4)
    # optax leaves these where new arrays are; a compiled step puts them beside the parameters.
    tx = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.scale_by_adam())
    state = jax.device_put(tx.init(old), NamedSharding(old["v"].sharding.mesh, PartitionSpec()))
    moved, report = gradtx.migrate(state, tx, params)
    assert not report.fresh
    assert_lies_as(moved, tx.init(params))
    assert not any(x.committed for x in jax.tree.leaves(moved) if x.ndim == 0)
    assert moved[0].rng_key == jax.random.key(3)


@pytest.mark.parametrize(
    ("params", "last"),
    [
        (jnp.ones((4, 2)), gradtx.scale_by_muon()),
        ((jnp.ones((4, 2)), jnp.ones(8)), gradtx.scale_by_soap()),
    ],
    ids=["array", "tuple"],
)
def test_what_looks_like_the_parameters_is_not_taken_for_a_stack(params, last):
    # The coefficients of Muon are an array, and the states of a chain a tuple.
    tx = gradtx.chain(gradtx.trace(0.5), last)
    spread = distributed(tx, jax.make_mesh((8,), ("data",)))
    state = jax.tree.map(lambda x: x + 1, tx.init(params))
    moved, _ = gradtx.migrate(state, spread, params)
    assert jax.tree.leaves(moved.inner_state[0].trace)[0].shape == (8, 4, 2)
    back, report = gradtx.migrate(moved, tx, params)
    assert not report.fresh
    jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize(("before", "now"), [(8, 3), (3, 8)])
def test_restore_gives_stacks_the_padding_of_the_target(tmp_path, before, now):
    plain = after_a_step()

    def states(number):
        tx, params = on(number)
        first = TrainState.create(params, tx)
        return first, first._replace(opt_state=gradtx.migrate(plain, tx, params)[0])

    (_, saved), (target, expected) = states(before), states(now)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved)
        found = checkpoints.restore(target).state
        assert_lies_as(found, expected)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), target)
        found = checkpoints.restore(shapes).state
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("shape", [(3, 2, 2), (8, 2, 1), (2, 2)], ids=str)
def test_restore_refuses_what_is_more_than_padding(tmp_path, shape):
    tx, params = on(8)
    state = TrainState.create(params, tx)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        target: Any = jax.tree.map(np.asarray, state).opt_state.inner_state
        momenta(target)["a"] = np.zeros(shape, np.float32)
        momenta(target)["alone"] = np.zeros((1, 4, 2), np.float32)
        target.inner_states["adam"].inner_state[0].mu["v"] = np.zeros(4, np.float32)
        target = state._replace(opt_state=state.opt_state._replace(inner_state=target))
        with pytest.raises(ValueError, match=r"muon\S*/mu/a': float32\[8,2,2\]") as refusal:
            checkpoints.restore(target)
    assert "/mu/v': float32[8]" in str(refusal.value)
    assert "alone" not in str(refusal.value)
