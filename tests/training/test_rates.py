"""The learning rate that a step reports is the effective one, whatever skips steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.training import TrainState, make_train_step

NAN = np.nan
GRADIENTS = [1.0, 3.0, NAN, 2.0, 0.0, 1.0]
ALL_FINITE = [1.0, 3.0, 4.0, 2.0, 0.0, 1.0]
PARAMS = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}


def schedule(count):
    return 0.5 / (1.0 + count)


def product(params, batch):
    """A loss whose gradient is the batch."""
    return jnp.sum((params["kernel"] + params["bias"]) * batch)


def reported(tx, gradients, learning_rate=schedule):
    train_step = make_train_step(product, tx, learning_rate=learning_rate)
    rows = []
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        state = TrainState.create(PARAMS, tx)
        for g in gradients:
            state, metrics = train_step(state, jnp.full(2, g))
            rates = {k: float(v) for k, v in metrics.items() if k.startswith("learning_rate")}
            rows.append((rates, float(metrics["update_norm"])))
    return rows


def every_other(library, inner):
    conditionally_mask = getattr(library, "transforms", library).conditionally_mask
    return conditionally_mask(inner, lambda step: step % 2 == 1)


# What skips steps -> the number of steps before each call.
HOLDS_BACK = {
    "MultiSteps": (lambda lib, tx: lib.MultiSteps(tx, 2), ALL_FINITE, [0, 0, 1, 1, 2, 2]),
    "apply_if_finite": (
        lambda lib, tx: lib.apply_if_finite(tx, 9),
        GRADIENTS,
        [0, 1, 2, 2, 3, 4],
    ),
    "conditionally_mask": (every_other, ALL_FINITE, [0, 0, 1, 1, 2, 2]),
    "a chain": (
        lambda lib, tx: lib.chain(lib.clip(9.0), lib.MultiSteps(tx, 3)),
        ALL_FINITE,
        [0, 0, 0, 1, 1, 1],
    ),
    "nothing": (lambda lib, tx: tx, ALL_FINITE, [0, 1, 2, 3, 4, 5]),
}
INSIDE = {
    "gradtx": (gradtx, lambda: gradtx.sgd(schedule)),
    "optax": (optax, lambda: optax.sgd(schedule)),
    "gradtx in optax": (optax, lambda: gradtx.adam(schedule)),
    "optax in gradtx": (gradtx, lambda: optax.adam(schedule)),
    "injected": (gradtx, lambda: gradtx.inject_hyperparams(gradtx.sgd)(schedule)),
    "injected by optax": (optax, lambda: optax.inject_hyperparams(optax.sgd)(schedule)),
    "a count of its own": (gradtx, lambda: gradtx.prodigy(schedule)),
    "averaged": (gradtx, lambda: gradtx.average_params(gradtx.sgd(schedule), 0.9)),
    "groups": (
        gradtx,
        lambda: gradtx.partition(
            {"a": gradtx.sgd(schedule), "b": gradtx.adam(schedule)}, {"kernel": "a", "bias": "b"}
        ),
    ),
    "beside another schedule": (
        gradtx,
        lambda: gradtx.sgd(schedule, momentum=lambda count: 0.0 * count),
    ),
}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("name", HOLDS_BACK)
def test_a_schedule_is_read_where_the_transformation_stands_in_it(name, inside):
    hold_back, gradients, counts = HOLDS_BACK[name]
    library, make = INSIDE[inside]
    rows = reported(hold_back(library, make()), gradients)
    expected = [{"learning_rate": pytest.approx(schedule(count), rel=1e-6)} for count in counts]
    assert [rates for rates, _ in rows] == expected


@pytest.mark.parametrize("name", HOLDS_BACK)
def test_the_rate_is_that_of_the_update(name):
    hold_back, *_ = HOLDS_BACK[name]
    rows = reported(hold_back(gradtx, gradtx.sgd(schedule)), [1.0] * 6)
    moved = [(rates["learning_rate"], norm / 2) for rates, norm in rows if norm]
    assert len(moved) >= 2
    for rate, acted in moved:  # the norm of the gradient is 2
        np.testing.assert_allclose(rate, acted, rtol=1e-6)


def test_wrapped_around_what_skips():
    tx = gradtx.with_metrics(gradtx.average_params(gradtx.MultiSteps(gradtx.sgd(schedule), 2), 0.9))
    rows = reported(tx, ALL_FINITE)
    assert [rates["learning_rate"] for rates, _ in rows] == pytest.approx(
        [schedule(count) for count in (0, 0, 1, 1, 2, 2)]
    )


def test_injected_around_what_skips():
    def slow(learning_rate):
        return gradtx.MultiSteps(gradtx.sgd(learning_rate), 2).gradient_transformation()

    rows = reported(gradtx.inject_hyperparams(slow)(schedule), ALL_FINITE)
    assert [rates["learning_rate"] for rates, _ in rows] == pytest.approx(
        [schedule(count) for count in (0, 0, 1, 1, 2, 2)]
    )


def test_groups_that_step_apart_have_rates_of_their_own():
    transforms = {"rare": gradtx.MultiSteps(gradtx.sgd(schedule), 2), "often": gradtx.sgd(schedule)}
    tx = gradtx.partition(transforms, {"kernel": "rare", "bias": "often"})
    names = ("learning_rate/rare", "learning_rate/often")
    counts = [(0, 0), (0, 1), (1, 2), (1, 3)]
    expected = [dict(zip(names, map(schedule, pair), strict=True)) for pair in counts]
    assert [rates for rates, _ in reported(tx, ALL_FINITE[:4])] == [
        pytest.approx(rates) for rates in expected
    ]


def test_sam_reports_the_rate_of_its_steps():
    tx = gradtx.sam(gradtx.sgd(schedule), gradtx.sgd(lambda count: 0.1 * (1 + count)))
    rates = [rates["learning_rate"] for rates, _ in reported(tx, ALL_FINITE[:4])]
    assert rates == [0.5, 0.5, 0.25, 0.25]


OWN = optax.GradientTransformation(
    lambda params: jnp.int32(7), lambda updates, state, params=None: (updates, state)
)


def test_a_transformation_without_a_known_count_is_asked_at_the_step():
    assert [rates["learning_rate"] for rates, _ in reported(OWN, ALL_FINITE[:3])] == pytest.approx(
        [schedule(0), schedule(1), schedule(2)]
    )


def test_without_a_known_count_a_step_that_is_skipped_is_refused():
    tx = gradtx.MultiSteps(OWN, 2)
    with pytest.raises(ValueError, match=r"make_train_step: learning_rate.*inject_hyperparams"):
        reported(tx, ALL_FINITE[:1])
    assert reported(tx, ALL_FINITE[:1], learning_rate=0.5)[0][0] == {"learning_rate": 0.5}


def test_a_batch_in_place_of_the_state_is_refused():
    tx = gradtx.sgd(0.1)
    train_step = make_train_step(product, tx)
    state = TrainState.create(PARAMS, tx)
    for batch, kind in ((jnp.ones(2), r"an array of shape \(2,\)"), ({"x": jnp.ones(2)}, "dict")):
        with pytest.raises(ValueError, match=rf"make_train_step: .*\(state, batch\).*got {kind}"):
            train_step(batch, state)
