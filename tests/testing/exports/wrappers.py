"""Wrappers: accumulation, skipping, lookahead, sharpness, plateaus and layouts."""

from typing import Any

import jax.numpy as jnp
import optax

import gradtx

from .export import Export, bowl


def climb() -> Any:
    return gradtx.chain(gradtx.normalize_by_update_norm(), gradtx.sgd(0.05))


def of_fast_weights(tx: Any) -> Any:
    """Lookahead as seen from the fast weights, whose structure the gradients have."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        pair = gradtx.LookaheadParams.init_synced(params)
        new, state = tx.update(updates, state, pair, **extra)
        return new.fast, state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def with_mean_loss(params: Any) -> dict[str, Any]:
    return {"value": bowl(params)}


EQUAL = {
    "layers": [jnp.linspace(-1, 1, 16).reshape(8, 2) + i for i in range(3)],
    "biases": {"in": jnp.arange(3.0) + 1, "out": jnp.ones(3)},
    "table": jnp.ones((4, 2), jnp.bfloat16),
}
STACKED = {"missing_gradients": "what the state has for the leaves of a group is one array"}

EXPORTS = {
    "apply_if_finite": Export(lambda: gradtx.apply_if_finite(gradtx.adam(0.1), 2)),
    "flatten": Export(
        lambda: gradtx.flatten(gradtx.adamw(0.1)),
        skip={"mismatches": "the state is one vector, which knows no paths"},
    ),
    "grouped": Export(
        lambda: gradtx.grouped(gradtx.chain(gradtx.clip(1.0), gradtx.adamw(0.1))), skip=STACKED
    ),
    "grouped-momentum": Export(
        lambda: gradtx.grouped(gradtx.sgd(0.1, momentum=0.9), group_size=2),
        params=EQUAL,
        skip=STACKED,
    ),
    "grouped-adafactor": Export(
        lambda: gradtx.grouped(gradtx.adafactor(0.1)), params=EQUAL, skip=STACKED
    ),
    "grouped-muon": Export(
        lambda: gradtx.grouped(gradtx.muon(0.1, ns_steps=2)), params=EQUAL, skip=STACKED
    ),
    "grouped-noise": Export(
        lambda: gradtx.grouped(gradtx.noisy_sgd(0.1, key=0)),
        params=EQUAL,
        skip=STACKED | {"mismatches": "the state knows how many leaves there are, but no paths"},
    ),
    "grouped-optax": Export(
        lambda: gradtx.grouped(optax.sgd(0.1, momentum=0.9), elementwise=True),
        params=EQUAL,
        skip=STACKED
        | {"non_parameters": "optax multiplies whatever it is given"}
        | {"mismatches": "optax's messages"}
        | {"layouts": "optax's state is on one device where init is compiled"},
    ),
    "lookahead": Export(lambda: of_fast_weights(gradtx.lookahead(gradtx.adam(0.1), 2, 0.5))),
    "reduce_on_plateau": Export(
        lambda: gradtx.reduce_on_plateau(patience=1), extra_args=with_mean_loss
    ),
    "sam": Export(lambda: gradtx.sam(gradtx.adam(0.1), climb())),
    "split_real_and_imaginary": Export(lambda: gradtx.split_real_and_imaginary(gradtx.adam(0.1))),
}
