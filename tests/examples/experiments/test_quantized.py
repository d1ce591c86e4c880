"""The experiment on states in 8 bits: its checks can hold, and can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.experiments import quantized

FULL, PACKED, NARROW = quantized.FULL, quantized.PACKED, quantized.NARROW


def made_up(losses, memory):
    return quantized.Training(np.array([[1.0, loss] for loss in losses]), memory)


@pytest.mark.parametrize(("end", "holds"), [(0.50, True), (0.56, True), (0.8, False), (0.2, False)])
def test_the_check_asks_for_the_loss_of_float32(end, holds):
    task = quantized.digits_task(4, 2)
    results = {
        ("adamw", FULL): made_up([0.4, 0.6], 12.0),
        ("adamw", PACKED): made_up([end, end], 6.0),
    }
    [check] = quantized.checks(task, results)
    assert check.holds == holds
    assert "6.0 bytes instead of 12.0" in check.measured


def test_networks_learn_in_each_form():
    task = quantized.digits_task(40, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    results = {
        ("adamw", form): quantized.train(task, "adamw", form, keys) for form in (FULL, NARROW)
    }
    for training in results.values():
        assert training.loss.shape == (2, 20)
        assert np.all(training.loss[:, -1] < 0.7 * training.loss[:, 0])
    full, narrow = results.values()
    np.testing.assert_allclose(narrow.loss, full.loss, rtol=0.2)
    assert np.any(narrow.loss != full.loss)
    assert (full.memory, narrow.memory) == (
        pytest.approx(12, abs=0.01),
        pytest.approx(4.4, abs=0.1),
    )
    figure = quantized._draw([task], [results])
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes[:1])


def test_the_transformer_sees_no_later_letter():
    task = quantized.letters_task(4, 1)
    params = task.init(jax.random.key(0))
    letters = jnp.arange(2 * quantized.LENGTH).reshape(2, -1) % 50
    changed = letters.at[:, 20].add(1)
    before, after = (quantized.apply_transformer(params, x) for x in (letters, changed))
    np.testing.assert_allclose(before[:, :20], after[:, :20], atol=1e-5)
    assert np.all(np.abs(np.asarray(before - after))[:, 20:].max(-1) > 0)
    # Untrained, each letter is about equally likely.
    loss = task.loss(params, task.draw(jax.random.key(1)))
    assert abs(loss - np.log(before.shape[-1])) < 1.5
