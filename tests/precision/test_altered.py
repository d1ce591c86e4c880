"""Updates that keep rounding errors are added as they are: nothing after them may alter them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.effect import Effect, declared
from gradtx.kernel import Kernel
from gradtx.lift import lift

KEEPING = {
    "with_kahan_sum": gradtx.with_kahan_sum,
    "with_master_weights": gradtx.with_master_weights,
    "with_stochastic_rounding": lambda tx: gradtx.with_stochastic_rounding(tx, jax.random.key(0)),
}
OWN = Kernel("halve", lambda g: g / 2)
# By name what alters the updates of a transformation: wrappers, and pieces after it.
ALTERING = {
    "cautious": gradtx.cautious,
    "mechanize": gradtx.mechanize,
    "graft": lambda tx: gradtx.graft(gradtx.sgd(0.1), tx),
    "lookahead": lambda tx: gradtx.lookahead(tx, 5, 0.5),
    "schedule_free": lambda tx: gradtx.schedule_free(tx, 0.1),
    "scale": lambda tx: gradtx.chain(tx, gradtx.identity(), gradtx.scale(0.5)),
    "clip": lambda tx: gradtx.chain(gradtx.chain(tx), gradtx.chain(gradtx.clip(1.0))),
    "scale_by_learning_rate": lambda tx: gradtx.named_chain(
        ("a", tx), ("b", gradtx.scale_by_learning_rate(0.1))
    ),
    "multiply_learning_rate": lambda tx: gradtx.chain(
        tx, gradtx.multiply_learning_rate({"w": 0.5})
    ),
    "reduce_on_plateau": lambda tx: gradtx.chain(tx, gradtx.reduce_on_plateau()),
    "add_decayed_weights": lambda tx: gradtx.chain(
        gradtx.masked(tx, gradtx.select("w")), gradtx.add_decayed_weights(0.1)
    ),
    "scale_by_newton": lambda tx: gradtx.chain(tx, gradtx.scale_by_newton()),
    "halve": lambda tx: gradtx.chain(gradtx.MultiSteps(tx, 2), lift(OWN)),
    "scale_by_adam": lambda tx: gradtx.chain(tx, gradtx.with_metrics(gradtx.scale_by_adam())),
}
# What hands them out, or leaves out whole steps or leaves.
HARMLESS = {
    "identity": lambda tx: gradtx.chain(tx, gradtx.identity()),
    "set_to_zero": lambda tx: gradtx.chain(tx, gradtx.set_to_zero()),
    "freeze": lambda tx: gradtx.chain(tx, gradtx.freeze(gradtx.select("b"))),
    "snapshot": lambda tx: gradtx.chain(tx, gradtx.snapshot("norm", optax.tree.norm)),
    "before": lambda tx: gradtx.chain(gradtx.clip_by_global_norm(1.0), tx),
    "MultiSteps": lambda tx: gradtx.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: gradtx.apply_if_finite(tx, 3),
    "average_params": lambda tx: gradtx.average_params(tx, decay=0.9),
    "with_metrics": gradtx.with_metrics,
    "partition": lambda tx: gradtx.partition({"a": tx, "b": gradtx.sgd(0.1)}, {"w": "a", "b": "b"}),
}


@pytest.mark.parametrize("keeping", KEEPING)
@pytest.mark.parametrize("altering", ALTERING)
def test_altered_updates_are_refused(altering, keeping):
    message = rf"would alter the updates of {keeping}, .*put {keeping} around the whole"
    with pytest.raises(ValueError, match=message) as caught:
        ALTERING[altering](KEEPING[keeping](gradtx.sgd(0.1)))
    assert str(caught.value).startswith(altering) or f" {altering} would" in str(caught.value)
    # Around the whole it is right.
    KEEPING[keeping](ALTERING[altering](gradtx.sgd(0.1)))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_hands_them_out_is_not_refused(name):
    for keep in KEEPING.values():
        HARMLESS[name](keep(gradtx.sgd(0.1)))


@pytest.mark.parametrize("keeping", KEEPING)
def test_a_factor_inside_halves_the_steps(keeping):
    tx = KEEPING[keeping](gradtx.chain(gradtx.sgd(0.002), gradtx.scale(0.5)))
    params = jnp.ones(64, jnp.bfloat16)
    gradient = jnp.ones_like(params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (gradtx.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=100)
    # Each step of 0.001 is a quarter of what bfloat16 resolves at 1.
    np.testing.assert_allclose(np.float32(params).mean(), 0.9, atol=2**-8)


def test_a_transformation_of_a_user_may_declare_it():
    @declared(Effect(widens=True))
    def update(updates, state, params=None, **extra):
        return updates, state

    own = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(ValueError, match=r"^chain: scale would alter the updates of test_a_trans"):
        gradtx.chain(own, gradtx.scale(0.5))
