"""Targets that a network makes itself, with and without a gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.lax import stop_gradient

from gradtx.diagnostics.checkup import bootstrap
from gradtx.diagnostics.checkup.subject import subject_of

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


PARAMS = {"w0": normal(4, 8), "q": normal(8, 3), "v": normal(8, 1)}
STATE, NEXT, REWARD, ACTION = normal(16, 4), normal(16, 4), normal(16), jnp.arange(16) % 3
IS_LAST = (jnp.arange(16) == 7).astype(jnp.float32)
BATCH = (STATE, ACTION, REWARD, NEXT, IS_LAST)


def head(params, x, name="q"):
    return jnp.tanh(x @ params["w0"]) @ params[name]


def found(loss_fn, params=PARAMS, batch=BATCH):
    subject = subject_of("check_head", loss_fn, params, batch, has_aux=False)
    return [(f.kind, f.severity, f.place) for f in bootstrap.findings(subject)]


def squared(prediction, target):
    return jnp.mean((prediction - target) ** 2)


def huber(prediction, target):
    return jnp.mean(optax.huber_loss(prediction, target))


@pytest.mark.parametrize("distance", [squared, huber])
@pytest.mark.parametrize("stops", [False, True])
def test_q_learning(distance, stops):
    def loss_fn(params, state, action, reward, following, is_last):
        q = jnp.take_along_axis(head(params, state), action[:, None], -1)[:, 0]
        target = reward + 0.99 * (1 - is_last) * jnp.max(head(params, following), -1)
        return distance(q, stop_gradient(target) if stops else target)

    expected = [("moving_target", "warning", "argument args[2]")]
    assert found(loss_fn) == ([] if stops else expected)


def test_the_gradient_of_the_prediction_is_stopped():
    def loss_fn(params, state, action, reward, following, is_last):
        value = head(params, state, "v")[:, 0]
        target = reward + 0.9 * head(params, following, "v")[:, 0] * (1 - is_last)
        return squared(stop_gradient(value), target)

    assert found(loss_fn) == [("moving_target", "error", "argument args[2]")]


def test_values_of_states_with_given_discounts():
    model = eqx.nn.MLP(4, "scalar", 8, 1, key=jax.random.key(0))

    def loss_of(stopped):
        def loss_fn(model, state, reward, following, discount):
            target = reward + discount * jax.vmap(model)(following)
            return jnp.mean(jnp.square(stopped(target) - jax.vmap(model)(state)))

        return loss_fn

    batch = (STATE, REWARD, NEXT, 0.95 * (1 - IS_LAST))
    assert found(loss_of(lambda x: x), model, batch) == [
        ("moving_target", "warning", "argument args[1]")
    ]
    assert not found(loss_of(stop_gradient), model, batch)


def test_a_target_network():
    def loss_fn(params, target, state, action, reward, following, is_last):
        best = jnp.max(head(target, following), -1)
        q = head(params, state)[jnp.arange(16), action]
        return squared(q, reward + 0.99 * (1 - is_last) * best)

    assert not found(loss_fn, PARAMS, (PARAMS, *BATCH))

    def among_the_parameters(params, *batch):
        return loss_fn(params["online"], params["target"], *batch)

    both = {"online": PARAMS, "target": PARAMS}
    assert [kind for kind, *_ in found(among_the_parameters, both)] == ["moving_target"]


@pytest.mark.parametrize("stops", [False, True])
def test_advantages(stops):
    def loss_fn(params, state, action, returns, following, is_last):
        log_p = jax.nn.log_softmax(head(params, state))
        log_p = jnp.take_along_axis(log_p, action[:, None], -1)[:, 0]
        value = head(params, state, "v")[:, 0]
        advantage = returns - value
        weight = stop_gradient(advantage) if stops else advantage
        return -jnp.mean(log_p * weight) + 0.5 * squared(value, returns)

    expected = [("moving_target", "warning", "v, w0")]
    assert [(k, s, ", ".join(sorted(p.split(", ")))) for k, s, p in found(loss_fn)] == (
        [] if stops else expected
    )


def test_differences_of_two_predictions():
    """Siamese networks, consistency, a step of a solver, normalization."""

    def siamese(params, state, action, reward, following, is_last):
        return squared(head(params, state), head(params, following))

    def step(params, state, action, reward, following, is_last):
        return squared(state + 0.1 * jnp.tanh(state @ params["a"]), following)

    def rollout(params, state, action, reward, following, is_last):
        once = state + 0.9 * jnp.tanh(state @ params["a"])
        twice = once + 0.9 * jnp.tanh(once @ params["a"])
        return squared(twice, following)

    def consistency(params, state, action, reward, following, is_last):
        sides = [0.9 * x + 0.6 * jnp.tanh(x @ params["a"]) for x in (state, following)]
        return squared(*sides)

    def spread(params, state, action, reward, following, is_last):
        z = state + 0.9 * jnp.tanh(state @ params["a"])
        return jnp.mean((z - jnp.mean(z, 0, keepdims=True)) ** 2)

    for loss_fn in (siamese, step, rollout, consistency):
        assert not found(loss_fn, {**PARAMS, "a": normal(4, 4)})
    assert not found(spread, {"a": normal(4, 4)})
