"""The weight decays that explain prints are those that act."""

import numpy as np
import pytest

import gradtx

from .measure import PARAMS, doubled_downhill, last_update, measured, on_w, unit, weights_added

chain, scale, sgd = gradtx.chain, gradtx.scale, gradtx.sgd
clip_norm = gradtx.clip_by_global_norm


# The fractions of the weights that a step removes, for any learning rate.
SHARES = {
    "decay_of_a_frozen_leaf": (
        chain(gradtx.freeze(on_w), gradtx.adamw(0.5, weight_decay=0.1)),
        0.05,
    ),
    "behind_a_rule_of_the_user": (
        chain(gradtx.stateless(doubled_downhill), gradtx.add_decayed_weights(0.1), sgd(0.5)),
        0.05,
    ),
    "behind_a_limit": (
        chain(sgd(0.5), clip_norm(1.0), gradtx.add_decayed_weights(0.1), scale(-1.0)),
        0.1,
    ),
    "behind_mechanize": (
        chain(gradtx.mechanize(sgd(0.5)), gradtx.add_decayed_weights(0.1), scale(-1.0)),
        0.1,
    ),
}


@pytest.mark.parametrize("name", SHARES)
def test_a_decay_beside_an_unknown_rate_is_known(name):
    tx, share = SHARES[name]
    for row in gradtx.explain(tx, PARAMS).rows:
        if row.path == "w":
            (decay,) = row.weight_decay
            assert (decay.kind, decay.grows) == ("per step", False)
            assert decay.number == pytest.approx(share)
    weights = np.asarray(PARAMS["w"], np.float64)
    np.testing.assert_allclose(last_update(tx, 1, 0.0)["w"], -share * weights, rtol=1e-5)


UNKNOWN_DECAYS = {
    "in_a_graft": gradtx.graft(magnitude=gradtx.adamw(0.1), direction=sgd(0.1)),
    "in_the_direction_of_a_graft": gradtx.graft(sgd(0.1), gradtx.adamw(0.1)),
    "clipped_with_a_direction": chain(
        gradtx.scale_by_adam(), gradtx.add_decayed_weights(0.1), clip_norm(1.0), sgd(0.1)
    ),
    "masked": gradtx.cautious(gradtx.adamw(0.1)),
    "lost_in_sam": chain(
        gradtx.add_decayed_weights(0.1), gradtx.sam(sgd(0.1), sgd(7.0), opaque_mode=True)
    ),
}


@pytest.mark.parametrize("name", UNKNOWN_DECAYS)
def test_a_decay_that_is_changed_has_a_question_mark(name):
    for row in gradtx.explain(UNKNOWN_DECAYS[name], PARAMS).rows:
        (decay,) = row.weight_decay
        assert str(decay).endswith("(?)")


def test_a_decay_before_a_limit_is_one_of_the_gradient():
    tx = chain(gradtx.add_decayed_weights(0.1), clip_norm(1.0), sgd(0.5))
    for row in gradtx.explain(tx, PARAMS).rows:
        assert list(map(str, row.weight_decay)) == ["0.1 (L2)"]
    # The gradient of 0.05 * ||p||^2 is clipped together with the other.
    rates = measured(tx, lambda g, p: unit(weights_added(g, p), p))
    assert rates == pytest.approx(dict.fromkeys(PARAMS, 0.5))
