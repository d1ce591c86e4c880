"""The scale that falls on a plateau, against its rule in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import COUNT, NON_NEGATIVE, check_refused, wrong_arguments
from .changing_hands import check_changes_hands

LOSSES = np.round(np.random.default_rng(1).gamma(2.0, size=60), 3)


def scales(losses, tx):
    """The scale of the update at each loss."""
    state, update, path = tx.init(jnp.zeros(())), jax.jit(tx.update), []
    for loss in losses:
        updates, state = update(jnp.float32(1.0), state, value=jnp.float32(loss))
        path.append(float(updates))
    return path


def rule(
    losses,
    factor=0.1,
    patience=10,
    rtol=1e-4,
    atol=0.0,
    cooldown=0,
    accumulation_size=1,
    min_scale=0.0,
):
    """The rule as a plain Python program."""
    scale, best, bad, rest, group = 1.0, np.inf, 0, 0, []
    for loss in losses:
        group.append(loss)
        if len(group) == accumulation_size:
            average, group = np.mean(group), []
            margin = 0.0 if best == np.inf else rtol * abs(best) + atol
            improved = average < best - margin
            best = average if improved else best
            if rest:
                rest, bad = rest - 1, 0
            else:
                bad = 0 if improved else bad + 1
                if bad == patience:
                    scale, bad, rest = max(scale * factor, min_scale), 0, cooldown
        yield scale


@pytest.mark.parametrize(
    "arguments",
    [
        {"patience": 3},
        {"factor": 0.5, "patience": 2, "cooldown": 3},
        {"factor": 0.7, "patience": 1, "accumulation_size": 4, "rtol": 0.1},
        {"factor": 0.5, "patience": 1, "min_scale": 0.2, "rtol": 0.0, "atol": 0.3},
        {"factor": 0.5, "patience": 2, "rtol": 1.0},
    ],
    ids=["defaults", "cooldown", "averages", "floor", "all-is-a-plateau"],
)
def test_rule(arguments):
    found = scales(LOSSES, gradtx.reduce_on_plateau(**arguments))
    np.testing.assert_allclose(found, list(rule(LOSSES, **arguments)), rtol=1e-5)
    assert len(set(found)) > 2


def test_a_constant_loss_lowers_the_scale_once_in_a_while():
    # The first value is the best one; then every third in a row lowers the scale.
    found = scales(np.ones(13), gradtx.reduce_on_plateau(0.5, patience=3))
    np.testing.assert_allclose(found, 0.5 ** (np.arange(13) // 3))


def test_a_falling_loss_does_not():
    assert scales(0.9 ** np.arange(40), gradtx.reduce_on_plateau(patience=1)) == [1.0] * 40


@pytest.mark.parametrize("shift", [-1.0, -4.0, -250.0])
def test_the_rule_holds_for_losses_of_either_sign(shift):
    arguments = {"factor": 0.5, "patience": 2, "rtol": 0.05, "cooldown": 1}
    found = scales(LOSSES + shift, gradtx.reduce_on_plateau(**arguments))
    np.testing.assert_allclose(found, list(rule(LOSSES + shift, **arguments)), rtol=1e-5)
    assert len(set(found)) > 2


@pytest.mark.parametrize("loss", [-1e-3, -1.0, -250.0])
def test_a_negative_loss_that_stands_still_is_a_plateau(loss):
    found = scales(np.full(13, loss), gradtx.reduce_on_plateau(0.5, patience=3))
    np.testing.assert_allclose(found, 0.5 ** (np.arange(13) // 3))


def test_a_negative_loss_is_a_plateau_until_it_falls_by_its_margin():
    tx = gradtx.reduce_on_plateau(0.5, patience=1, rtol=0.1)
    # The best is -10, so that the margin is 1: worse, not better by enough, better by enough.
    assert scales([-10.0, -9.5, -10.5, -11.5], tx) == [1.0, 0.5, 0.25, 0.25]
    assert scales(-(1.2 ** np.arange(40)), tx) == [1.0] * 40


def test_a_loss_of_minus_infinity_is_not_improved_upon():
    found = scales([1.0, -np.inf, -np.inf, 0.0], gradtx.reduce_on_plateau(0.5, patience=1))
    assert found == [1.0, 1.0, 0.5, 0.25]


def test_it_removes_the_oscillation_of_too_large_steps():
    # Steps of constant length oscillate around the minimum; a falling length reaches it.
    tx = gradtx.chain(gradtx.sign_sgd(0.3), gradtx.reduce_on_plateau(0.5, patience=3))
    x = jnp.float32(1.0)

    def one(carry, _):
        x, state = carry
        updates, state = tx.update(x, state, x, value=x**2)
        return (x + updates, state), None

    (x, state), _ = jax.lax.scan(one, (x, tx.init(x)), length=100)
    assert state[1].scale < 1e-5
    # Within the last length of the steps but one.
    assert abs(x) <= 0.3 * state[1].scale / 0.5


def test_nan_is_not_an_improvement():
    found = scales([1.0, np.nan, np.nan, 0.5, np.nan], gradtx.reduce_on_plateau(0.5, 2))
    assert found == [1.0, 1.0, 0.5, 0.5, 0.5]


def test_half_precision_keeps_the_scale_in_float32():
    tx = gradtx.reduce_on_plateau(0.9, patience=1)
    params = jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(params, state, value=1.0)
    assert updates.dtype == jnp.bfloat16
    assert state.scale.dtype == jnp.float32
    np.testing.assert_allclose(state.scale, 0.9**4, rtol=1e-6)
    np.testing.assert_array_equal(updates, jnp.full(2, 0.9**4, jnp.bfloat16))


def test_double_precision():
    with jax.enable_x64(True):
        tx = gradtx.reduce_on_plateau()
        state = tx.init({"a": jnp.ones(1), "b": jnp.ones(1, jnp.float32)})
        _, new = jax.jit(tx.update)({"a": jnp.ones(1), "b": None}, state, value=0.1)
        assert state.scale.dtype == new.scale.dtype == jnp.float64
        assert new.best_value == 0.1


@pytest.mark.parametrize("convert", [int, float, np.float64, jnp.bfloat16])
def test_any_real_number_is_a_value(convert):
    tx = gradtx.reduce_on_plateau()
    _, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=convert(2))
    assert state.best_value == 2.0
    assert state.best_value.dtype == jnp.float32


def test_limits_may_be_arrays():
    tx = gradtx.reduce_on_plateau(0.5, jnp.int32(2), 0.1, 0.0, jnp.int32(1), jnp.int32(2))
    expected = rule(LOSSES, 0.5, 2, 0.1, 0.0, 1, 2)
    np.testing.assert_allclose(scales(LOSSES, tx), list(expected), rtol=1e-5)


@pytest.mark.parametrize("accumulation_size", [1, 3])
def test_a_run_changes_hands(accumulation_size):
    def make(library, contrib):
        plateau = contrib.reduce_on_plateau(
            0.5, 2, 0.05, cooldown=1, accumulation_size=accumulation_size
        )
        return library.chain(library.sgd(0.1), plateau)

    check_changes_hands(
        make(gradtx, gradtx),
        make(optax, optax.contrib),
        at=8,
        steps=16,
        extra=lambda params: {"value": jnp.sum(jnp.sin(5 * params["vector"])) + 2},
    )


def test_a_missing_value_is_refused():
    tx = gradtx.reduce_on_plateau()
    with pytest.raises(ValueError, match="value=loss"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))


@pytest.mark.parametrize("value", [jnp.ones(2), 1j], ids=["vector", "complex"])
def test_a_value_that_is_not_a_real_scalar_is_refused(value):
    tx = gradtx.reduce_on_plateau()
    with pytest.raises(ValueError, match=r"value must be (a scalar|real)"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=value)


def test_without_any_tolerance_it_is_refused():
    with pytest.raises(ValueError, match=r"rtol or atol.*0\.0"):
        gradtx.reduce_on_plateau(rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.reduce_on_plateau,
        {},
        factor=(0.0, 1.0, 1.5, *NON_NEGATIVE),
        patience=COUNT,
        rtol=(1.5, *NON_NEGATIVE),
        atol=NON_NEGATIVE,
        cooldown=(1.5, *NON_NEGATIVE),
        accumulation_size=COUNT,
        min_scale=NON_NEGATIVE,
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
