"""Loops of learners: adversaries, agents, inference, evolution, meta-learning."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .both import PARAMS, both, gradients

THETA = jnp.array([0.5, -1.0, 2.0])


@both
def test_a_generator_and_a_discriminator(lib, more):
    txs = {"g": lib.adam(0.1, b1=0.5), "d": lib.adam(0.1, b1=0.0, b2=0.9)}
    params = {"g": jnp.array(1.0), "d": jnp.array(-0.5)}
    states = {name: tx.init(params[name]) for name, tx in txs.items()}
    for _ in range(2):
        for name, other, sign in (("d", "g", -1.0), ("g", "d", 1.0)):
            grads = jax.grad(lambda p, q, s: s * p * q)(params[name], params[other], sign)
            updates, states[name] = txs[name].update(grads, states[name], params[name])
            params[name] = lib.apply_updates(params[name], updates)
    return params, states


@both
def test_evolution_with_an_estimate_for_a_gradient(lib, more):
    noise = jnp.array([[1.0, -1.0, 0.5], [-0.5, 0.25, 2.0]])
    tx = lib.adam(0.1)
    mean, state = THETA, tx.init(THETA)
    for _ in range(2):
        fitness = jnp.sum((mean + 0.1 * noise) ** 2, axis=1)
        estimate = noise.T @ (fitness - fitness.mean()) / (2 * 0.1)
        updates, state = tx.update(estimate, state)
        mean = lib.apply_updates(mean, updates)
    return mean, state


@both
def test_evolution_within_vmap_and_scan(lib, more):
    tx = lib.chain(lib.clip(1.0), lib.sgd(lib.exponential_decay(0.1, 1, 0.9), momentum=0.9))

    def run(mean):
        def generation(carry, key):
            mean, state = carry
            grads = mean + 0.01 * jax.random.normal(key, mean.shape)
            updates, state = tx.update(grads, state, mean)
            return (lib.apply_updates(mean, updates), state), mean

        return jax.lax.scan(
            generation, (mean, tx.init(mean)), jax.random.split(jax.random.key(0), 2)
        )

    return jax.vmap(run)(jnp.stack([THETA, -THETA]))


@both
def test_triples_of_functions_around_an_optimizer(lib, more):
    """As in numpyro: a counter next to the pair of parameters and state."""
    tx = lib.chain(lib.clip(10.0), lib.adam(0.1))

    def init(params):
        return jnp.array(0), (params, tx.init(params))

    def update(grads, state):
        number, (params, inner) = state
        updates, inner = tx.update(grads, inner, params)
        return number + 1, (lib.apply_updates(params, updates), inner)

    state = init(PARAMS)
    for _ in range(2):
        state = update(gradients(state[1][0]), state)
    return state


@both
def test_stochastic_variational_inference(lib, more):
    tx = lib.adam(0.05)
    params = {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}

    def negative_elbo(params, key):
        z = params["loc"] + jnp.exp(params["log_scale"]) * jax.random.normal(key, (2,))
        return 0.5 * jnp.sum((z - 1.0) ** 2) - jnp.sum(params["log_scale"])

    @jax.jit
    def run(params, keys):
        def step(carry, key):
            loss, grads = jax.value_and_grad(negative_elbo)(carry[0], key)
            updates, state = tx.update(grads, carry[1], carry[0])
            return (lib.apply_updates(carry[0], updates), state), loss

        return jax.lax.scan(step, (params, tx.init(params)), keys)

    return run(params, jax.random.split(jax.random.key(0), 3))


@both
def test_an_inference_that_keeps_an_optimizer_state_in_a_named_tuple(lib, more):
    class VIState(NamedTuple):
        mu: dict
        rho: dict
        opt_state: optax.OptState

    tx = lib.sgd(0.1)
    rho = jax.tree.map(lambda p: jnp.full_like(p, -2.0), PARAMS)
    state = VIState(PARAMS, rho, tx.init((PARAMS, rho)))
    params = (state.mu, state.rho)
    updates, opt_state = tx.update(gradients(params), state.opt_state, params)
    return tuple(VIState(*lib.apply_updates(params, updates), opt_state))


@both
def test_the_best_parameters_are_kept(lib, more):
    tx = lib.adam(0.5, b2=0.9)

    def body(carry, _):
        params, state, best, lowest = carry
        loss = jnp.sum(params**2)
        best = jax.tree.map(lambda b, p: jnp.where(loss < lowest, p, b), best, params)
        updates, state = tx.update(2 * params, state, params)
        return (lib.apply_updates(params, updates), state, best, jnp.minimum(loss, lowest)), loss

    return jax.lax.scan(body, (THETA, tx.init(THETA), THETA, jnp.inf), length=4)


@both
def test_an_agent_whose_steps_must_be_finite(lib, more):
    tx = lib.apply_if_finite(lib.chain(lib.clip_by_global_norm(0.5), lib.adam(3e-2, eps=1e-5)), 10)
    step = jax.jit(tx.update)
    state = tx.init(THETA)
    first, state = step(THETA, state)
    second, state = step(jnp.full(3, jnp.nan), state)
    return first, second, state


@both
def test_a_policy_and_a_value_with_two_optimizers(lib, more):
    txs = (lib.adam(0.1, eps=1e-5), lib.rmsprop(0.1, decay=0.99, eps=1e-5))
    params = (THETA, 2 * THETA)
    states = tuple(tx.init(p) for tx, p in zip(txs, params, strict=True))
    results = []
    for tx, p, state in zip(txs, params, states, strict=True):
        updates, state = tx.update(jnp.cos(p), state, p)
        results.append((lib.apply_updates(p, updates), state))
    return results


@both
def test_a_temperature_beside_a_policy(lib, more):
    tx = lib.adam(0.1)
    log_alpha = jnp.asarray(0.0, dtype=jnp.float32)
    grads = jax.grad(lambda a: -jnp.exp(a) * 0.3)(log_alpha)
    updates, state = tx.update(grads, tx.init(log_alpha))
    return jnp.exp(lib.apply_updates(log_alpha, updates)), state


@both
def test_epochs_of_minibatches_in_nested_scans(lib, more):
    tx = lib.chain(
        lib.clip_by_global_norm(0.5),
        lib.adam(learning_rate=lambda count: 0.1 * (1.0 - (count // 2) / 4), eps=1e-5),
    )

    def minibatch(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(lambda p: jnp.mean((p - batch) ** 2))(params), state)
        return (lib.apply_updates(params, updates), state), None

    def epoch(carry, _):
        return jax.lax.scan(minibatch, carry, jnp.arange(6.0).reshape(2, 3))

    return jax.jit(lambda c: jax.lax.scan(epoch, c, None, 2))((THETA, tx.init(THETA)))


@both
def test_a_meta_learner_adapts_in_an_inner_loop(lib, more):
    inner, outer = lib.sgd(0.1), lib.adam(0.01)

    def adapted_loss(meta, task):
        params, state = meta, inner.init(meta)
        for _ in range(2):
            updates, state = inner.update(params - task, state, params)
            params = lib.apply_updates(params, updates)
        return jnp.sum((params - task) ** 2)

    tasks = jnp.stack([THETA, -THETA + 1])
    grads = jax.grad(lambda m: jax.vmap(adapted_loss, (None, 0))(m, tasks).mean())(jnp.zeros(3))
    return outer.update(grads, outer.init(jnp.zeros(3)))


@both
def test_losses_of_optax_with_any_optimizer(lib, more):
    tx = lib.adamw(0.1)
    logits = jnp.zeros((2, 3))
    labels = jnp.array([0, 2])

    def loss(x):
        return optax.losses.softmax_cross_entropy_with_integer_labels(x, labels).mean()

    value, grads = jax.value_and_grad(loss)(logits)
    updates, _ = tx.update(grads, tx.init(logits), logits)
    return value, lib.apply_updates(logits, updates)


@both
def test_private_gradients(lib, more):
    tx = more.dpsgd(learning_rate=0.1, l2_norm_clip=1.0, noise_multiplier=0.0, seed=1337)
    params = {"w": jnp.ones(3)}
    per_example = {"w": jnp.array([[3.0, 0.0, 4.0], [0.1, 0.2, 0.0]])}
    updates, _ = tx.update(per_example, tx.init(params), params)
    return lib.apply_updates(params, updates)


@both
def test_private_gradients_by_aggregation(lib, more):
    tx = lib.chain(more.differentially_private_aggregate(1.0, 0.0, jax.random.key(0)), lib.sgd(0.1))
    per_example = jnp.array([[3.0, 0.0, 4.0], [0.1, 0.2, 0.0]])
    return tx.update(per_example, tx.init(jnp.zeros(3)))[0]


@both
def test_a_numpy_loop_with_device_get(lib, more):
    tx = lib.adam(0.1)
    params, state = jax.device_get((PARAMS, tx.init(PARAMS)))
    grads = jax.tree.map(np.ones_like, params)
    updates, state = tx.update(grads, state, params)
    return lib.apply_updates(params, updates), state
