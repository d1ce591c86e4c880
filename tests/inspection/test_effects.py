"""The effect of a factor before a rule, and that it is known for each rule."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx.inspection.effects import growth_of, unwrapped
from gradtx.inspection.routes import routes_of
from gradtx.testing import hostile_parameters

from ..testing.test_exports import EXPORTS
from .measure import PARAMS, halved, last_update

# Everything that can be part of a chain, in alphabetical order.
PIECES = {
    "acprop": gradtx.scale_by_acprop(),
    "adadelta": gradtx.scale_by_adadelta(eps=1e-12),
    "adam": gradtx.scale_by_adam(),
    "adamax": gradtx.scale_by_adamax(),
    "adamini": gradtx.scale_by_adamini(),
    "adan": gradtx.scale_by_adan(),
    "adaptive_grad_clip": gradtx.adaptive_grad_clip(0.5),
    "ademamix": gradtx.scale_by_ademamix(),
    "adopt": gradtx.scale_by_adopt(),
    "amsgrad": gradtx.scale_by_amsgrad(),
    "apply_every": gradtx.apply_every(2),
    "belief": gradtx.scale_by_belief(eps=0.0),
    "cautious": gradtx.cautious(gradtx.trace(0.9)),
    "centralize": gradtx.centralize(),
    "clip": gradtx.clip(0.7),
    "clip_by_block_rms": gradtx.clip_by_block_rms(0.7),
    "clip_by_global_norm": gradtx.clip_by_global_norm(3.0),
    "ema": gradtx.ema(0.9),
    "factored_rms": gradtx.scale_by_factored_rms(min_dim_size_to_factor=2),
    "galore": gradtx.scale_by_galore(1, base_optimizer=gradtx.identity()),
    "keep_params_nonnegative": gradtx.keep_params_nonnegative(),
    "lion": gradtx.scale_by_lion(),
    "lion_smooth": gradtx.scale_by_lion(mode="smooth"),
    "mars": gradtx.scale_by_mars(),
    "normalize": gradtx.normalize(),
    "normalize_by_update_norm": gradtx.normalize_by_update_norm(),
    "novograd": gradtx.scale_by_novograd(),
    "optimistic": gradtx.scale_by_optimistic_gradient(),
    "param_block_norm": gradtx.scale_by_param_block_norm(),
    "param_block_rms": gradtx.scale_by_param_block_rms(),
    "radam": gradtx.scale_by_radam(),
    "rms": gradtx.scale_by_rms(),
    "rms_that_starts": gradtx.scale_by_rms(initial_scale=1.0),
    "rprop": gradtx.scale_by_rprop(0.1),
    "rss": gradtx.scale_by_rss(initial_accumulator_value=0.0),
    "rss_that_starts": gradtx.scale_by_rss(),
    "scale": gradtx.scale(3.0),
    "schedule": gradtx.scale_by_schedule(halved),
    "shampoo": gradtx.scale_by_shampoo(),
    "sign": gradtx.scale_by_sign(),
    "simplified_ademamix": gradtx.scale_by_simplified_ademamix(),
    "sm3": gradtx.scale_by_sm3(),
    "soap": gradtx.scale_by_soap(),
    "stddev": gradtx.scale_by_stddev(),
    "stddev_that_starts": gradtx.scale_by_stddev(initial_scale=1.0),
    "trace": gradtx.trace(0.9),
    "trust_ratio": gradtx.scale_by_trust_ratio(),
    "window": gradtx.simple_moving_average(3),
    "yogi": gradtx.scale_by_yogi(),
    "yogi_that_starts_at_zero": gradtx.scale_by_yogi(initial_accumulator_value=0.0, eps=1e-9),
    "zero_nans": gradtx.zero_nans(),
}


@pytest.mark.parametrize("name", PIECES)
def test_what_a_factor_before_a_piece_does_is_what_it_is_taken_to_do(name):
    piece = PIECES[name]
    *_, rule = unwrapped(routes_of(piece, PARAMS)[0])
    effect = growth_of(rule, 0)
    found = set()
    for calls in (1, 3, 6):
        plain, small = last_update(piece, calls), last_update(piece, calls, 0.25)
        for path, update in plain.items():
            if not update.any():
                continue  # some methods take no first step
            stays = np.allclose(small[path], update, rtol=1e-4, atol=1e-9)
            grows = np.allclose(small[path], 0.25 * update, rtol=1e-4, atol=1e-9)
            found.add("own" if stays else "grows" if grows else "bends")
    if effect == "bends":
        assert found not in ({"own"}, {"grows"})
    else:
        assert found == {"grows" if effect in ("gain", "linear") else effect}


def test_what_a_subspace_leaves_of_a_gradient_depends_on_it():
    tx = gradtx.scale_by_galore(1, base_optimizer=gradtx.identity())
    lengths = []
    for second in (0.0, 1.0):
        g = jnp.diag(jnp.array([1.0, second]))
        updates, _ = tx.update(g, tx.init(g), g)
        lengths.append(float(jnp.linalg.norm(updates) / jnp.linalg.norm(g)))
    np.testing.assert_allclose(lengths, [1, 0.5**0.5], rtol=1e-6)
    *_, rule = unwrapped(routes_of(tx, g)[0])
    assert growth_of(rule, 0) == "gain"


@pytest.mark.parametrize("name", EXPORTS)
def test_it_is_known_of_each_rule_of_ours_what_it_does(name):
    export = EXPORTS[name]
    params = hostile_parameters() if export.params is None else export.params
    unknown = {
        rule.name
        for route in routes_of(export.make(), params)
        for rule in unwrapped(route)
        if growth_of(rule, 0) == "unknown"
    }
    # Rules of optax or of the tests are prefixed with that name.
    assert not [name for name in unknown if "." not in name]
