"""The argument `decay` of everything that has a masked weight decay."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

PARAMS = {"dense": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}}
MASK = {"dense": {"kernel": True, "bias": False}}


def arguments_of(name):
    function = getattr(gradtx, name)
    is_ours = inspect.isfunction(function) and function.__module__.startswith("gradtx")
    return inspect.signature(function).parameters if is_ours else {}


def masks_of(name):
    return {"mask", "weight_decay_mask"} & set(arguments_of(name))


MASKED = [n for n in gradtx.__all__ if "weight_decay" in arguments_of(n) and masks_of(n)]
DECAYING = [name for name in MASKED if "decay" in arguments_of(name)]


def first_update(name, **arguments):
    """The update for a zero gradient, which is the decay alone."""
    rate = {"learning_rate": 0.5} if "learning_rate" in arguments_of(name) else {}
    tx = getattr(gradtx, name)(**rate, weight_decay=0.1, **arguments)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    loss = {"obj_fn": lambda params: jnp.sum(params["dense"]["bias"])}
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS, **loss)
    return jax.tree.map(np.asarray, updates["dense"])


def test_whatever_has_a_mask_has_the_preset():
    assert {"adamw", "lion", "lamb", "lars", "add_decayed_weights"} <= set(MASKED)
    assert [name for name in MASKED if name not in DECAYING] == []


@pytest.mark.parametrize("name", DECAYING)
def test_matrices_decay_and_vectors_do_not(name):
    updates = first_update(name, decay="matrices")
    assert np.all(updates["kernel"] != 0)
    assert np.all(updates["bias"] == 0)
    (mask,) = masks_of(name)
    np.testing.assert_array_equal(updates["kernel"], first_update(name, **{mask: MASK})["kernel"])


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_no_vector_decays_in_the_adamw_of_muon(name):
    updates = first_update(name, adam_weight_decay=0.2, decay="matrices")
    assert np.all(updates["bias"] == 0)
    everywhere = first_update(name, adam_weight_decay=0.2)
    np.testing.assert_allclose(everywhere["bias"], -0.5 * 0.2 * 2.0, rtol=1e-6)


def test_all_leaves_decay():
    updates = first_update("adamw", decay="all")
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.5 * 0.1 * 2.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lars", "sophia"])
def test_mask_and_decay_together_are_refused(name):
    (mask,) = masks_of(name)
    with pytest.raises(ValueError, match="give decay or a mask, got decay='matrices'"):
        first_update(name, decay="matrices", **{mask: MASK})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("adamw", {"weight_decay": 0.1}), ("adan", {}), ("dog", {})],
    ids=["adamw", "adan", "dog-without-decay"],
)
def test_unknown_preset_is_refused(name, arguments):
    with pytest.raises(ValueError, match="decay must be 'all' or 'matrices', got 'kernels'"):
        getattr(gradtx, name)(0.5, decay="kernels", **arguments)
