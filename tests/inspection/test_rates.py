"""The learning rates that explain prints are those that act."""

from typing import NamedTuple

import numpy as np
import optax
import pytest

import gradtx

from .measure import (
    PARAMS,
    gradient,
    halved,
    last_update,
    measured,
    of_the_weights_length,
    on_w,
    rates_of,
    sign,
    unit,
    weights_added,
)

chain, scale, sgd, adam = gradtx.chain, gradtx.scale, gradtx.sgd, gradtx.adam
clip_norm = gradtx.clip_by_global_norm


class Acts(NamedTuple):
    """What explain reports: a rate for all leaves, or one for each."""

    tx: object
    rate: object
    direction: object = gradient
    step: int = 0
    calls: int = 1


def tripled(count):
    return 3.0 + 0 * count


ACTS = {
    # No rule normalizes the length: all factors have an effect.
    "sgd": Acts(sgd(0.1), 0.1),
    "ascent": Acts(chain(sgd(0.1), scale(-1.0)), -0.1),
    "negative": Acts(sgd(-0.1), -0.1),
    "factor_before": Acts(chain(scale(0.5), sgd(0.1)), 0.05),
    "factors_around": Acts(chain(scale(0.5), sgd(0.1), scale(-4.0)), -0.2),
    "momentum": Acts(sgd(0.1, momentum=0.9), 0.1),
    "factor_before_momentum": Acts(chain(scale(0.5), sgd(0.1, momentum=0.9)), 0.05),
    "ema": Acts(chain(scale(0.5), gradtx.ema(0.9), sgd(0.1)), 0.05),
    "moving_average": Acts(chain(scale(0.5), gradtx.simple_moving_average(3), sgd(0.1)), 0.05),
    "no_nans": Acts(chain(sgd(0.1), gradtx.zero_nans(), scale(2.0)), 0.2),
    "l2": Acts(chain(gradtx.add_decayed_weights(0.1), sgd(0.5)), 0.5, weights_added),
    "zero": Acts(chain(scale(0.0), adam(0.1)), 0.0),
    "optimistic": Acts(gradtx.optimistic_gradient_descent(0.1), 0.1),
    "optimistic_adam": Acts(
        gradtx.optimistic_adam_v2(0.1, alpha=2.0, beta=0.3, nesterov=False), 0.2, sign
    ),
    "two_weights": Acts(chain(gradtx.scale_by_optimistic_gradient(0.5), sgd(0.1)), 0.05),
    # Limits on the gradient come before all factors.
    "clipped": Acts(chain(clip_norm(1.0), sgd(0.1)), 0.1, unit),
    "signed_and_clipped": Acts(chain(scale(-1.0), clip_norm(1.0), sgd(0.1)), -0.1, unit),
    "clipped_adam": Acts(chain(clip_norm(1.0), adam(0.1)), 0.1, sign),
    "factor_clipped_adam": Acts(chain(scale(0.5), clip_norm(1.0), adam(0.1)), 0.1, sign),
    "clipped_direction": Acts(
        chain(gradtx.scale_by_sign(), gradtx.clip(0.5), scale(-0.1)),
        0.05 / 0.5,
        lambda g, p: {name: 0.5 * np.sign(x) for name, x in g.items()},
    ),
    "clipped_by_optax": Acts(chain(optax.clip_by_global_norm(1.0), sgd(0.1)), 0.1, unit),
    "clipped_in_a_chain_of_optax": Acts(
        optax.chain(optax.clip_by_global_norm(1.0), optax.zero_nans(), adam(0.1)), 0.1, sign
    ),
    "named_chain_of_optax": Acts(
        optax.named_chain(("clip", optax.clip_by_global_norm(1.0)), ("step", sgd(0.1))), 0.1, unit
    ),
    # From here on a rule normalizes the length, and factors before it have no effect.
    "adam": Acts(adam(0.1), 0.1, sign),
    "negative_adam": Acts(adam(-0.1), -0.1, sign),
    "factor_before_adam": Acts(chain(scale(0.25), adam(0.1)), 0.1, sign),
    "negative_before_adam": Acts(chain(scale(-0.25), adam(0.1)), -0.1, sign),
    "factor_after_adam": Acts(chain(adam(0.1), scale(0.25)), 0.025, sign),
    "adam_after_sgd": Acts(chain(sgd(0.1), gradtx.scale_by_adam()), 1.0, sign),
    "lion": Acts(chain(scale(3.0), gradtx.lion(0.1, weight_decay=0.0)), 0.1, sign),
    "sign": Acts(chain(scale(3.0), gradtx.sign_sgd(0.1)), 0.1, sign),
    "adagrad": Acts(gradtx.adagrad(0.1, initial_accumulator_value=0.0), 0.1, sign),
    "factor_before_adagrad": Acts(
        chain(scale(3.0), gradtx.adagrad(0.1, initial_accumulator_value=0.0)), 0.1, sign
    ),
    "normalize": Acts(chain(scale(3.0), gradtx.normalize(), sgd(0.1)), 0.1, unit),
    "normalized_steps": Acts(chain(sgd(0.1), gradtx.normalize(), scale(0.5)), 0.5, unit),
    "normalized_to": Acts(
        chain(gradtx.normalize_by_update_norm(3.0, eps=0.0), sgd(0.1)), 0.3, unit
    ),
    "trust_ratio": Acts(
        chain(scale(3.0), gradtx.scale_by_trust_ratio(), sgd(0.1)), 0.1, of_the_weights_length
    ),
    "adafactor": Acts(
        gradtx.adafactor(0.1, multiply_by_parameter_scale=False, momentum=None), 0.1, sign
    ),
    "rprop": Acts(gradtx.rprop(0.1), 0.1, sign),
    "fromage": Acts(
        gradtx.chain(gradtx.fromage(0.5), gradtx.add_decayed_weights(1 - 1 / np.sqrt(1.25))),
        0.5 / np.sqrt(1.25),
        of_the_weights_length,
    ),
    "adan": Acts(
        gradtx.chain(gradtx.adan(0.5, weight_decay=0.4), gradtx.add_decayed_weights(0.2 / 1.2)),
        0.5 / 1.2,
        sign,
    ),
    # Some leaves only.
    "multiplied": Acts(
        chain(sgd(0.1), gradtx.multiply_learning_rate({"w": 0.5})), {"w": 0.05, "b": 0.1}
    ),
    "masked": Acts(chain(gradtx.masked(scale(0.5), on_w), sgd(0.1)), {"w": 0.05, "b": 0.1}),
    "partition": Acts(
        gradtx.partition({"x": sgd(0.1), "y": chain(scale(2.0), sgd(0.3))}, {"w": "x", "b": "y"}),
        {"w": 0.1, "b": 0.6},
    ),
    "partition_of_optax": Acts(
        optax.partition({"x": sgd(0.1), "y": chain(scale(2.0), sgd(0.3))}, {"w": "x", "b": "y"}),
        {"w": 0.1, "b": 0.6},
    ),
    "masked_by_optax": Acts(chain(optax.masked(scale(0.5), on_w), sgd(0.1)), {"w": 0.05, "b": 0.1}),
    # Schedules and hyperparameters in the state.
    "schedule": Acts(sgd(halved), 0.125, step=3, calls=4),
    "two_schedules": Acts(
        chain(sgd(halved), gradtx.scale_by_schedule(tripled)), 0.375, step=3, calls=4
    ),
    "injected": Acts(gradtx.inject_hyperparams(adam)(halved), 0.125, sign, step=3, calls=4),
    "kept": Acts(gradtx.with_hyperparams(sgd, 0.1), 0.1),
    # Wrappers.
    "accumulated": Acts(gradtx.MultiSteps(sgd(halved), 2), 0.25, step=1, calls=4),
    "accumulated_in_a_chain": Acts(
        chain(scale(0.5), gradtx.MultiSteps(sgd(halved), 2)), 0.125, step=1, calls=4
    ),
    "if_finite": Acts(chain(scale(0.5), gradtx.apply_if_finite(sgd(0.1), 3)), 0.05),
    "averaged": Acts(chain(scale(0.5), gradtx.average_params(sgd(0.1), 0.9)), 0.05),
    "with_metrics": Acts(chain(scale(0.5), gradtx.with_metrics(sgd(0.1))), 0.05),
    "flat": Acts(gradtx.flatten(chain(clip_norm(1.0), sgd(0.1))), 0.1, unit),
    "every_step": Acts(chain(sgd(0.1), gradtx.apply_every(1)), 0.1),
    "schedule_free": Acts(gradtx.schedule_free(sgd(0.1), 0.1), 0.1),
    "sam": Acts(gradtx.sam(sgd(0.1), sgd(7.0), opaque_mode=True), 0.1),
    "plateau_at_first": Acts(chain(sgd(0.1), gradtx.reduce_on_plateau()), 0.1),
    "grafted": Acts(gradtx.graft(magnitude=scale(0.5), direction=sgd(7.0)), 0.5),
    "grafted_uphill": Acts(gradtx.graft(magnitude=sgd(0.5), direction=scale(7.0)), -0.5),
}


@pytest.mark.parametrize("name", ACTS)
def test_a_number_is_that_which_acts(name):
    tx, expected, direction, step, calls = ACTS[name]
    if not isinstance(expected, dict):
        expected = dict.fromkeys(PARAMS, expected)
    assert rates_of(tx, step) == pytest.approx(expected, rel=1e-6)
    assert measured(tx, direction, calls) == pytest.approx(expected, rel=2e-5, abs=1e-9)


@pytest.mark.parametrize("name", ACTS)
def test_a_factor_shows_exactly_if_it_acts(name):
    tx, _, _, step, calls = ACTS[name]
    old, old_rates = answer(tx, calls), rates_of(tx, step)
    for changed in (chain(tx, scale(4.0)), chain(scale(0.25), tx)):
        new, new_rates = answer(changed, calls), rates_of(changed, step)
        for path, rate in new_rates.items():
            # A limit that came first has a factor before it now.
            if rate is not None:
                np.testing.assert_allclose(
                    new[path] * old_rates[path], old[path] * rate, rtol=2e-5, atol=1e-9
                )


def answer(tx, calls):
    """The part of the update that is due to the gradient, without weight decay."""
    pairs = zip(last_update(tx, calls).items(), last_update(tx, calls, 0.0).values(), strict=True)
    return {name: update - decay for (name, update), decay in pairs}
