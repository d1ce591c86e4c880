"""Where explain cannot know the learning rate that acts, it says why."""

import functools
import re
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.kernel import NON_NEGATIVE, Kernel
from gradtx.lift import lift

from .measure import GRADIENTS, PARAMS, doubled_downhill, gradient, halved, measured, sign, unit

chain, scale, sgd, adam = gradtx.chain, gradtx.scale, gradtx.sgd, gradtx.adam
clip_norm = gradtx.clip_by_global_norm


class Unknown(NamedTuple):
    """What explain cannot know: why, and the product of all factors, which does not act."""

    tx: object
    reason: str
    product: float
    direction: object = gradient
    step: int = 0
    calls: int = 1
    factor: float = 1.0


def own_normalization(updates, params):
    norm = optax.tree.norm(updates)
    return jax.tree.map(lambda u: u / norm, updates)


def user_made():
    def update(updates, state, params=None):
        return own_normalization(updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def with_a_name_of_ours():
    ours = gradtx.snapshot("norm", gradtx.global_norm)

    @functools.wraps(ours.update)
    def update(updates, state, params=None, **extra):
        return own_normalization(updates, params), state

    return optax.GradientTransformationExtraArgs(ours.init, update)


def lifted(name, step):
    return lift(Kernel(name, step))


clip_rms, clip_unit = gradtx.clip_by_block_rms(0.01), gradtx.adaptive_grad_clip(0.01)
normalized = "tests.own_normalization is not gradtx's own"

UNKNOWN = {
    # A limit after a factor acts on some gradients only.
    "norm": Unknown(
        chain(scale(0.5), clip_norm(1.0), sgd(0.1)),
        "clip_by_global_norm after a factor of 0.5",
        0.05,
    ),
    "norm_of_the_step": Unknown(
        chain(sgd(0.1), clip_norm(0.1)), "clip_by_global_norm after a factor of 0.1", 0.1
    ),
    "norm_of_a_schedule": Unknown(
        chain(sgd(halved), clip_norm(0.1)), "clip_by_global_norm after halved", 0.5
    ),
    "norm_of_adams_step": Unknown(
        chain(adam(0.1), clip_norm(0.1)), "clip_by_global_norm after a factor of 0.1", 0.1, sign
    ),
    "norm_in_the_middle": Unknown(
        chain(clip_norm(10.0), scale(0.5), clip_norm(1.0), sgd(0.1)),
        "clip_by_global_norm after a factor of 0.5",
        0.05,
    ),
    "norm_by_optax": Unknown(
        chain(scale(0.5), optax.clip_by_global_norm(1.0), sgd(0.1)),
        "optax.clip_by_global_norm after a factor of 0.5",
        0.05,
    ),
    "rms": Unknown(chain(scale(0.5), clip_rms, sgd(0.1)), "clip_by_block_rms after", 0.05),
    "rms_by_optax": Unknown(
        chain(scale(0.5), optax.clip_by_block_rms(0.01), sgd(0.1)),
        "optax.clip_by_block_rms after",
        0.05,
    ),
    "unit": Unknown(chain(scale(0.5), clip_unit, sgd(0.1)), "adaptive_grad_clip after", 0.05),
    "unit_by_optax": Unknown(
        chain(scale(0.5), optax.adaptive_grad_clip(0.01), sgd(0.1)),
        "optax.adaptive_grad_clip after",
        0.05,
    ),
    "element": Unknown(chain(sgd(0.1), gradtx.clip(0.01)), "clip after a factor of 0.1", 0.1),
    "projection": Unknown(
        chain(sgd(0.5), gradtx.keep_params_nonnegative()), "keep_params_nonnegative after", 0.5
    ),
    "hidden_in_a_wrapper": Unknown(
        chain(scale(0.5), gradtx.apply_if_finite(chain(clip_norm(1.0), sgd(0.1)), 3)),
        "clip_by_global_norm after a factor of 0.5",
        0.05,
    ),
    # Rules whose first steps, or all, depend on how long the gradient is.
    "start_of_adagrad": Unknown(
        chain(scale(0.5), gradtx.adagrad(0.1, initial_accumulator_value=1.0, eps=0.0)),
        "scale_by_rss after",
        0.1,
        lambda g, p: {name: x / np.sqrt(1 + x**2) for name, x in g.items()},
    ),
    "start_of_rmsprop": Unknown(
        chain(scale(0.01), gradtx.rmsprop(0.1, initial_scale=1.0, decay=0.5, eps=0.0)),
        "scale_by_rms after",
        0.1,
        lambda g, p: {name: x / np.sqrt(0.5 + 0.5 * x**2) for name, x in g.items()},
    ),
    "start_of_radam": Unknown(chain(scale(0.5), gradtx.radam(0.1)), "scale_by_radam after", 0.1),
    "start_of_acprop": Unknown(
        chain(scale(0.5), gradtx.acprop(0.1, weight_decay=0.0)), "scale_by_acprop after", 0.1
    ),
    "root": Unknown(gradtx.madgrad(0.1, momentum=0.0), "scale_by_madgrad takes a root", 0.1),
    # Foreign transformations, whatever they are called.
    "stateless": Unknown(
        chain(scale(0.5), gradtx.stateless(own_normalization), sgd(0.1)), normalized, 0.05
    ),
    "stateless_at_first": Unknown(
        chain(gradtx.stateless(doubled_downhill), sgd(0.1)),
        "doubled_downhill is not gradtx's own",
        0.1,
    ),
    "stateless_of_optax": Unknown(
        chain(scale(0.5), optax.stateless(own_normalization), sgd(0.1)), normalized, 0.05
    ),
    "by_leaf": Unknown(
        chain(scale(0.5), gradtx.stateless_with_tree_map(lambda g, p: jnp.sign(g)), sgd(0.1)),
        "is not gradtx's own",
        0.05,
    ),
    "by_leaf_of_optax": Unknown(
        chain(scale(0.5), optax.stateless_with_tree_map(lambda g, p: jnp.sign(g)), sgd(0.1)),
        "is not gradtx's own",
        0.05,
    ),
    "hand_written": Unknown(chain(scale(0.5), user_made(), sgd(0.1)), "is not gradtx's own", 0.05),
    "hand_written_at_last": Unknown(chain(sgd(0.1), user_made()), "is not gradtx's own", 0.1),
    "wrapping_ours": Unknown(
        chain(sgd(0.1), with_a_name_of_ours()), "snapshot is not gradtx's own", 0.1
    ),
    "compiled": Unknown(
        chain(
            sgd(0.1), optax.GradientTransformation(user_made().init, jax.jit(user_made().update))
        ),
        "user_made is not gradtx's own",
        0.1,
    ),
    "in_a_wrapper": Unknown(
        gradtx.with_metrics(chain(sgd(0.1), user_made())), "user_made is not gradtx's own", 0.1
    ),
    "lifted": Unknown(
        chain(scale(0.5), lifted("my_sign", lambda g: jnp.sign(g)), sgd(0.1)),
        "my_sign is not gradtx's own",
        0.05,
    ),
    "lifted_with_a_name_of_ours": Unknown(
        chain(sgd(0.1), lifted("zero_nans", lambda g: jnp.sign(g))),
        "zero_nans is not gradtx's own",
        0.1,
    ),
    "adam_of_optax": Unknown(chain(optax.adam(0.1), scale(0.5)), "is not gradtx's own", 0.1, sign),
    "direction_of_optax": Unknown(
        chain(sgd(0.1), optax.scale_by_adam()), "is not gradtx's own", 0.1
    ),
    "multi_steps_of_optax": Unknown(
        chain(sgd(0.1), optax.MultiSteps(optax.adam(0.5), 1).gradient_transformation()),
        "is not gradtx's own",
        0.1,
    ),
    # Rules with a factor that is known only in the run.
    "mechanize": Unknown(gradtx.mechanize(sgd(0.1)), "mechanize learns a factor", 0.1),
    "prodigy": Unknown(gradtx.prodigy(1.0), "prodigy finds its own step size", 1.0, sign),
    "dadapt": Unknown(gradtx.dadapt_adamw(1.0), "dadapt_adamw finds its own", 1.0, sign),
    "dog": Unknown(gradtx.dog(1.0), "scale_by_dog finds its own", 1.0, unit),
    "dowg": Unknown(gradtx.dowg(1.0), "scale_by_dowg finds its own", 1.0, unit),
    "cocob": Unknown(gradtx.cocob(1.0), "scale_by_cocob finds its own", 1.0, sign),
    "momo": Unknown(gradtx.momo(1.0), "momo finds its own", 1.0),
    "momo_adam": Unknown(gradtx.momo_adam(1.0), "momo_adam finds its own", 1.0, sign),
    "polyak": Unknown(gradtx.polyak_sgd(1.0), "scale_by_polyak finds its own", 1.0),
    "rprop_later": Unknown(gradtx.rprop(0.1), "scale_by_rprop changes", 0.1, sign, 3, 4),
    "plateau_later": Unknown(
        chain(sgd(0.1), gradtx.reduce_on_plateau(patience=1)),
        "reduce_on_plateau has a factor",
        0.1,
        gradient,
        3,
        4,
    ),
    "in_some_steps": Unknown(
        gradtx.conditionally_transform(sgd(0.1), lambda step: step > 0),
        "acts in some steps only",
        0.1,
    ),
    "masked_in_some_steps": Unknown(
        gradtx.conditionally_mask(sgd(0.1), lambda step: step > 0), "acts in some steps only", 0.1
    ),
    "times_the_weights": Unknown(
        chain(gradtx.scale_by_param_block_norm(), sgd(0.1)),
        "scale_by_param_block_norm has a factor",
        0.1,
    ),
    "cautious": Unknown(gradtx.cautious(sgd(0.1)), "cautious has a factor", 0.1),
    "another_gradient": Unknown(
        chain(scale(0.5), gradtx.sam(sgd(0.1), sgd(7.0), opaque_mode=True)),
        "sam after a factor of 0.5",
        0.05,
    ),
    "another_gradients_sign": Unknown(
        chain(scale(-1.0), gradtx.sam(adam(0.1), sgd(7.0), opaque_mode=True)),
        "sam after a factor of 1",
        -0.1,
        sign,
    ),
    # Four calls are two steps of the one schedule and four of the other.
    "two_clocks": Unknown(
        chain(gradtx.MultiSteps(sgd(halved), 2), gradtx.scale_by_schedule(halved)),
        "schedules inside and outside of MultiSteps",
        0.0625,
        gradient,
        1,
        4,
    ),
}


def acts(rate, *arguments):
    try:
        return measured(*arguments) == pytest.approx(dict.fromkeys(PARAMS, rate), rel=1e-3)
    except AssertionError:
        return False


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_number_that_does_not_act_is_not_shown_but_a_reason(name):
    tx, reason, product, direction, step, calls, factor = UNKNOWN[name]
    assert not acts(product, tx, direction, calls, factor)
    explanation = gradtx.explain(tx, PARAMS, step=step)
    for row in explanation.rows:
        assert row.learning_rate is None
        assert re.search(reason, row.reason)
        assert f"? ({row.reason})" in str(explanation)


def test_a_direction_alone_has_no_learning_rate():
    for tx in (gradtx.scale_by_adam(), gradtx.identity(), clip_norm(1.0), gradtx.trace(0.9)):
        assert {row.reason for row in gradtx.explain(tx, PARAMS).rows} == {"no learning rate"}


def test_slow_weights_of_lookahead_have_no_learning_rate():
    tx, params = gradtx.lookahead(sgd(0.1), 2, 0.5), optax.LookaheadParams.init_synced(PARAMS)
    rows = {row.path: row for row in gradtx.explain(tx, params).rows}
    updates, _ = tx.update(GRADIENTS, tx.init(params), params)
    for name, g in GRADIENTS.items():
        rate = rows[f"fast/{name}"].learning_rate.number
        np.testing.assert_allclose(updates.fast[name], -rate * g, rtol=1e-6)
        assert rows[f"slow/{name}"].reason == "slow weights of lookahead follow the fast ones"
        assert not updates.slow[name].any()


def shrunk(g, *, threshold):
    return jnp.sign(g) * jnp.maximum(jnp.abs(g) - threshold, 0)


def test_of_a_kernel_of_your_own_it_is_known_what_it_declares():
    silent = Kernel("shrink", shrunk, hyperparameters={"threshold": NON_NEGATIVE})
    speaking = replace(silent, degree="between", decay="limits")
    for kernel, factor, reason in (
        (silent, 1.0, "tests.shrink is not gradtx's own"),
        (speaking, 1.0, ""),
        (speaking, 2.0, "tests.shrink after a factor of 2"),
    ):
        shrink = lift(kernel, threshold=0.1)
        tx = gradtx.chain(gradtx.scale(factor), shrink, gradtx.scale_by_learning_rate(0.1))
        assert {row.reason for row in gradtx.explain(tx, PARAMS).rows} == {reason}


def decayed_step(g, *, p, speed, shrinkage):
    return -speed * (g + shrinkage * p)


def test_a_kernel_of_your_own_may_call_its_numbers_what_it_likes():
    kernel = Kernel(
        "step",
        decayed_step,
        hyperparameters={"speed": NON_NEGATIVE, "shrinkage": NON_NEGATIVE},
        degree=1,
        sense=-1,
        factor="speed",
        rate="speed",
        decays="shrinkage",
    )
    for row in gradtx.explain(lift(kernel, speed=0.5, shrinkage=0.1), PARAMS).rows:
        assert row.learning_rate.number == 0.5
        assert list(map(str, row.weight_decay)) == ["0.1"]
    # A number of that name need not be a decay that it adds.
    step = replace(kernel, decays="")
    for row in gradtx.explain(lift(step, speed=0.5, shrinkage=0.1), PARAMS).rows:
        assert row.weight_decay == ()


def test_a_muon_as_long_as_its_momentum_has_a_factor_of_its_own():
    params = {"w": jnp.ones((2, 2))}
    (row,) = gradtx.explain(gradtx.muon(0.1, adaptive=True), params).rows
    assert row.reason == "scale_by_muon has a factor of its own"
