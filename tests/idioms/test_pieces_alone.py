"""Clipping and other pieces outside a chain, with anything in place of a state."""

import jax
import jax.numpy as jnp
import optax

from .both import PARAMS, both, gradients

GRADS = jax.tree.map(lambda g: 3.0 * g, gradients(PARAMS))


@both
def test_clip_by_global_norm_takes_none(lib, more):
    return lib.clip_by_global_norm(1.0).update(GRADS, None)[0]


@both
def test_clip_by_global_norm_takes_an_empty_tuple(lib, more):
    return lib.clip_by_global_norm(1.0).update(GRADS, ())


@both
def test_clip_by_global_norm_takes_an_empty_state_and_params(lib, more):
    clipped, state = lib.clip_by_global_norm(0.5).update(GRADS, optax.EmptyState(), PARAMS)
    return clipped, state, lib.global_norm(clipped)


@both
def test_clip_by_global_norm_takes_an_explicit_none_for_params(lib, more):
    clipper = lib.clip_by_global_norm(1.0)
    return clipper.update(GRADS, lib.EmptyState(), None)[0]


@both
def test_clip_by_global_norm_takes_the_whole_state_of_an_optimizer(lib, more):
    tx = lib.adam(0.1)
    state = tx.init(PARAMS)
    clipped, same = lib.clip_by_global_norm(1.0).update(GRADS, state, PARAMS)
    return tx.update(clipped, same, PARAMS)


@both
def test_clip_by_global_norm_with_keywords(lib, more):
    tx = lib.clip_by_global_norm(max_norm=2.0)
    return tx.update(updates=GRADS, state=None, params=None)[0]


@both
def test_clip_takes_none(lib, more):
    return lib.clip(max_delta=0.7).update(GRADS, None)[0]


@both
def test_clip_by_block_rms_takes_none(lib, more):
    return lib.clip_by_block_rms(0.3).update(GRADS, None)[0]


@both
def test_adaptive_grad_clip_takes_an_empty_state(lib, more):
    return lib.adaptive_grad_clip(0.1, 1e-3).update(GRADS, lib.EmptyState(), PARAMS)[0]


@both
def test_clipping_inside_of_a_loss_step(lib, more):
    tx = lib.sgd(0.1)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: 50.0 * lib.global_norm(p) ** 2)(params)
        grads, _ = lib.clip_by_global_norm(1.0).update(grads, None)
        updates, state = tx.update(grads, state)
        return lib.apply_updates(params, updates), state

    return step(PARAMS, tx.init(PARAMS))


@both
def test_a_clipper_made_once_and_initialized_with_gradients(lib, more):
    clipper = lib.clip_by_global_norm(1.0)
    clipped, _ = clipper.update(GRADS, clipper.init(GRADS))
    return clipped


@both
def test_a_clipper_initialized_with_nothing(lib, more):
    clipper = lib.clip(0.1)
    return clipper.update(GRADS, clipper.init(None))[0]


@both
def test_gradients_of_two_models_clipped_together(lib, more):
    pair = (GRADS, {"encoder": jnp.arange(4.0)})
    (first, second), _ = lib.clip_by_global_norm(1.0).update(pair, lib.EmptyState())
    return first, second


@both
def test_one_array_is_clipped(lib, more):
    return lib.clip_by_global_norm(1.0).update(jnp.array([3.0, 4.0]), None)[0]


@both
def test_a_threshold_that_is_traced(lib, more):
    def clip(threshold):
        return lib.clip_by_global_norm(threshold).update(GRADS, None)[0]

    return jax.jit(clip)(jnp.float32(0.8))


@both
def test_clipping_examples_one_by_one(lib, more):
    batch = jax.tree.map(lambda g: jnp.stack([g, 0.01 * g, -2.0 * g]), GRADS)
    clip = lib.clip_by_global_norm(1.0)
    clipped = jax.vmap(lambda g: clip.update(g, clip.init(g))[0])(batch)
    return jax.tree.map(lambda g: g.mean(0), clipped)


@both
def test_elementwise_clipping_of_stacked_gradients_with_params_given(lib, more):
    batch = jax.tree.map(lambda g: jnp.stack([g, -2.0 * g]), GRADS)
    return lib.clip(1.0).update(batch, None, PARAMS)[0]


@both
def test_scaling_stacked_gradients_with_params_given(lib, more):
    batch = jax.tree.map(lambda g: jnp.stack([g, -2.0 * g]), GRADS)
    return lib.scale(0.5).update(batch, lib.EmptyState(), PARAMS)[0]


@both
def test_weight_decay_alone(lib, more):
    return lib.add_decayed_weights(0.01).update(GRADS, None, PARAMS)[0]


@both
def test_weight_decay_as_gradient_of_the_penalty(lib, more):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    return lib.add_decayed_weights(0.3).update(zeros, (), PARAMS)[0]


@both
def test_sgd_without_a_state(lib, more):
    return lib.sgd(0.1).update(GRADS, lib.sgd(0.1).init(None))[0]


@both
def test_zeroing_alone(lib, more):
    return lib.set_to_zero().update(GRADS, None)[0]


@both
def test_identity_hands_everything_on(lib, more):
    return lib.identity().update(GRADS, "anything")


@both
def test_nans_are_zeroed_with_a_fresh_state(lib, more):
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), GRADS)
    tx = lib.zero_nans()
    return tx.update(bad, tx.init(bad))


@both
def test_nans_are_zeroed_without_a_state(lib, more):
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), GRADS)
    return lib.zero_nans().update(bad, None)


@both
def test_sign_centralize_and_trust_ratio_alone(lib, more):
    sign, _ = lib.scale_by_sign().update(GRADS, None)
    ratio, _ = lib.scale_by_trust_ratio().update(GRADS, lib.ScaleByTrustRatioState(), PARAMS)
    return sign, ratio


@both
def test_parameter_norms_alone(lib, more):
    norm, _ = lib.scale_by_param_block_norm().update(GRADS, None, PARAMS)
    rms, _ = lib.scale_by_param_block_rms().update(GRADS, None, PARAMS)
    return norm, rms


@both
def test_normalizing_by_the_norm_of_the_update(lib, more):
    return lib.normalize_by_update_norm(2.0).update(GRADS, None)[0]


@both
def test_pieces_by_hand_one_after_the_other(lib, more):
    pieces = [lib.clip(2.0), lib.scale_by_adam(), lib.scale(-0.1)]
    states = [piece.init(PARAMS) for piece in pieces]
    updates = GRADS
    for i, piece in enumerate(pieces):
        updates, states[i] = piece.update(updates, states[i], PARAMS)
    return updates, states


@both
def test_a_list_of_gradients_clipped_per_example(lib, more):
    grads = [jnp.arange(12.0).reshape(3, 4), jnp.ones((3, 2, 2))]
    summed, clipped = lib.per_example_global_norm_clip(grads=grads, l2_norm_clip=2.0)
    return summed, clipped


@both
def test_a_bound_of_infinity_and_of_zero_for_examples(lib, more):
    grads = [jnp.array([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0], [4.0, 0.0, 3.0]])]
    return [lib.per_example_global_norm_clip(grads, bound) for bound in (jnp.inf, 0.0, 4.0)]


@both
def test_integer_examples(lib, more):
    grads = [jnp.array([[0, 0, 0], [0, 3, 4], [4, 0, 3], [3, 4, 0]])]
    return lib.per_example_global_norm_clip(grads, jnp.inf)


@both
def test_a_flattened_tree_clipped_per_example_and_put_back(lib, more):
    batch = jax.tree.map(lambda g: jnp.stack([g, 0.01 * g, -2.0 * g]), GRADS)
    flat, structure = jax.tree.flatten(batch)
    summed, count = lib.per_example_global_norm_clip(flat, 1.0)
    mean = jax.tree.map(lambda g: g / 3, jax.tree.unflatten(structure, summed))
    return mean, count


@both
def test_layers_clipped_per_example(lib, more):
    batch = [jnp.arange(12.0).reshape(3, 4), jnp.ones((3, 2))]
    return lib.per_example_layer_norm_clip(batch, 2.0, uniform=False)
