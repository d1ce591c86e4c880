"""Named optimizers with the settings that public code gives them."""

import jax
import jax.numpy as jnp

from .both import PARAMS, both, gradients, train


@both
def test_adam_of_agents(lib, more):
    return train(lib.chain(lib.clip_by_global_norm(0.5), lib.adam(2.5e-2, eps=1e-5)))


@both
def test_adamw_of_language_models(lib, more):
    schedule = lib.warmup_cosine_decay_schedule(0.0, 6e-2, 2, 10, 6e-3)
    tx = lib.chain(
        lib.clip_by_global_norm(1.0), lib.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1)
    )
    return train(tx)


@both
def test_adamw_with_nesterov_and_a_moment_in_half_precision(lib, more):
    return train(lib.adamw(0.1, nesterov=True))[0], train(
        lib.adamw(0.1, mu_dtype=jnp.bfloat16), steps=1
    )


@both
def test_eps_within_the_root(lib, more):
    return train(lib.adam(0.1, eps=1e-3, eps_root=1e-2))


@both
def test_momentum(lib, more):
    tx = lib.sgd(learning_rate=0.1, momentum=0.9, nesterov=True, accumulator_dtype=jnp.float32)
    return train(tx)


@both
def test_a_running_sum_by_trace(lib, more):
    return train(lib.chain(lib.trace(decay=1.0), lib.scale(-0.1)))


@both
def test_rmsprop_of_agents(lib, more):
    tx = lib.rmsprop(0.1, decay=0.99, eps=1e-5, centered=True, momentum=0.9, nesterov=False)
    return train(tx), train(lib.rmsprop(0.1, initial_scale=1.0, eps_in_sqrt=False))[0]


@both
def test_rmsprop_with_bias_correction(lib, more):
    return train(lib.rmsprop(0.1, bias_correction=True))


@both
def test_adagrad_and_adadelta(lib, more):
    return train(lib.adagrad(0.1)), train(lib.adadelta(1.0, rho=0.95))


@both
def test_adafactor_of_language_models(lib, more):
    params = {"kernel": jnp.ones((128, 128)) * 0.1, "bias": jnp.zeros(4)}
    tx = lib.adafactor(0.01, multiply_by_parameter_scale=False, clipping_threshold=1.0)
    params, state = train(tx, params, steps=2)
    return jax.tree.map(lambda x: x.ravel()[:8], params), sum(
        x.size for x in jax.tree.leaves(state)
    )


@both
def test_adafactor_with_a_momentum_and_without_a_rate(lib, more):
    return train(lib.adafactor(momentum=0.9, dtype_momentum=jnp.float32, decay_rate=0.9), steps=2)[
        0
    ]


@both
def test_lion_and_its_pieces(lib, more):
    pieces = lib.chain(
        lib.scale_by_lion(b1=0.9, b2=0.99),
        lib.add_decayed_weights(0.1),
        lib.scale_by_learning_rate(0.1),
    )
    return train(lib.lion(0.1, weight_decay=0.1)), train(pieces)


@both
def test_lamb_and_lars_of_large_batches(lib, more):
    params = jax.tree.map(lambda p: p + 0.1, PARAMS)
    return train(lib.lamb(0.1), params), train(lib.lars(0.1, momentum=0.9), params)


@both
def test_further_relatives_of_adam(lib, more):
    txs = [
        lib.adamax(0.1),
        lib.nadam(0.1),
        lib.amsgrad(0.1),
        lib.adabelief(0.1),
        lib.radam(0.1),
        lib.adamaxw(0.1),
        lib.nadamw(0.1),
    ]
    return [train(tx, steps=2)[0] for tx in txs]


@both
def test_signs(lib, more):
    return train(lib.sign_sgd(0.1))[0], train(lib.signum(0.1, beta=0.9))[0]


@both
def test_methods_of_saddle_points(lib, more):
    return (
        train(lib.optimistic_gradient_descent(0.1, alpha=1.0, beta=0.5)),
        train(lib.optimistic_adam_v2(0.1))[0],
    )


@both
def test_muon(lib, more):
    params = {"kernel": jnp.eye(4, 3) + 0.1, "bias": jnp.zeros(3)}
    params, state = train(more.muon(learning_rate=0.1, ns_steps=5, adam_b1=0.9), params, steps=2)
    return params, sorted(state.inner_states)


@both
def test_muon_in_a_chain_of_your_own(lib, more):
    tx = lib.chain(
        more.scale_by_muon(), lib.add_decayed_weights(0.1), lib.scale_by_learning_rate(0.1)
    )
    # optax's piece, alone, does not see which leaves are matrices in more than one array.
    return train(tx, jnp.eye(4, 3) + 0.1, steps=2)


@both
def test_muon_with_dimension_numbers(lib, more):
    params = {"attention": jnp.arange(24.0).reshape(2, 3, 4) / 24, "bias": jnp.zeros(3)}
    numbers = {"attention": more.MuonDimensionNumbers(0, (1, 2)), "bias": None}
    return train(more.muon(0.1, muon_weight_dimension_numbers=numbers), params, steps=1)[0]


@both
def test_distances_over_gradients(lib, more):
    dog, dowg = more.dog(1.0, init_step=("heuristic", 1e-2)), more.dowg(1.0)
    return train(dog, steps=2)[0], train(dowg, steps=2)[0]


@both
def test_cocob_and_ademamix(lib, more):
    return train(more.cocob(), steps=2)[0], train(more.ademamix(0.1), steps=2)[0]


@both
def test_pieces_in_the_order_of_a_paper(lib, more):
    tx = lib.chain(
        lib.adaptive_grad_clip(0.1),
        lib.centralize(),
        lib.scale_by_rms(decay=0.9, eps=1e-6, initial_scale=1.0),
        lib.trace(0.9),
        lib.scale_by_trust_ratio(min_norm=1e-3, trust_coefficient=0.5),
        lib.scale(-0.1),
    )
    params = jax.tree.map(
        lambda p: p + 0.1, {"b": PARAMS["dense"]["bias"], "h": PARAMS["head"]["bias"]}
    )
    return train(tx, params)


@both
def test_clipping_after_the_optimizer(lib, more):
    return train(lib.chain(lib.adam(1.0), lib.clip_by_global_norm(0.1)))


@both
def test_weight_decay_before_and_after_the_direction(lib, more):
    coupled = lib.chain(lib.add_decayed_weights(0.1), lib.sgd(0.1, momentum=0.9))
    decoupled = lib.chain(lib.trace(0.9), lib.scale(-0.1), lib.add_decayed_weights(-0.01))
    return train(coupled), train(decoupled)


@both
def test_averages_of_updates(lib, more):
    return train(lib.chain(lib.sgd(0.1), lib.ema(0.9, debias=False)))


@both
def test_a_ranger_by_hand(lib, more):
    fast = lib.chain(lib.scale_by_radam(b1=0.95), lib.add_decayed_weights(1e-2), lib.scale(-0.1))
    tx = lib.lookahead(fast, 2, 0.5)
    params = lib.LookaheadParams.init_synced(PARAMS)
    updates, _ = tx.update(gradients(PARAMS), tx.init(params), params)
    return tuple(lib.apply_updates(params, updates))


@both
def test_fromage_novograd_and_yogi_run(lib, more):
    params = jax.tree.map(lambda p: p + 0.1, PARAMS)
    return train(lib.fromage(0.1), params)[0], train(lib.novograd(0.1), params)[0]


@both
def test_rates_of_zero(lib, more):
    return train(lib.adamw(0.0)), train(lib.sgd(0))[0]
