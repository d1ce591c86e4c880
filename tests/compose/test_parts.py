"""Looking inside of composed transformations."""

import jax.numpy as jnp
import optax

import gradtx
from gradtx.compose.parts import owner_of, parts_of
from gradtx.lift import kernel_of

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def test_a_chain_lists_its_parts_in_order():
    parts = parts_of(gradtx.chain(gradtx.clip(1.0), gradtx.trace(0.9)))
    kernels = [kernel_of(part.transformation) for part in parts]
    assert [kernel.name for kernel in kernels if kernel is not None] == ["clip", "trace"]
    assert all(part.choose is None for part in parts)


def test_a_named_chain_lists_its_names():
    tx = gradtx.named_chain(("clip", gradtx.clip(1.0)), ("sgd", gradtx.sgd(0.1)))
    assert [part.label for part in parts_of(tx)] == ["clip", "sgd"]
    assert owner_of(tx) == "named_chain"


def test_a_group_says_which_leaves_are_its_own():
    tx = gradtx.partition(
        {"fast": gradtx.sgd(1.0), "slow": gradtx.sgd(0.1)}, {"kernel": "fast", "bias": "slow"}
    )
    chosen = {part.label: part.choose(PARAMS) for part in parts_of(tx) if part.choose}
    assert chosen == {
        "fast": {"kernel": True, "bias": False},
        "slow": {"kernel": False, "bias": True},
    }


def test_a_mask_says_which_leaves_it_takes():
    (part,) = parts_of(gradtx.masked(gradtx.scale(2.0), gradtx.select("bias")))
    assert part.choose is not None
    assert part.choose(PARAMS) == {"kernel": False, "bias": True}


def test_wrappers_and_conditions_hold_one_part():
    for tx in (
        gradtx.average_params(gradtx.sgd(0.1), 0.9),
        gradtx.conditionally_mask(gradtx.sgd(0.1), lambda step: step > 0),
        gradtx.conditionally_transform(gradtx.sgd(0.1), lambda step: step > 0),
    ):
        (part,) = parts_of(tx)
        assert owner_of(part.transformation) == "chain"


def test_others_have_no_parts():
    for tx in (gradtx.scale(1.0), optax.adam(0.1)):
        assert parts_of(tx) == ()
        assert owner_of(tx) == ""
