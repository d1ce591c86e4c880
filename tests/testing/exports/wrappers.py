"""Wrappers: accumulation, skipping, lookahead, sharpness, plateaus and layouts."""

from typing import Any

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


EXPORTS = {
    "apply_if_finite": Export(lambda: gradtx.apply_if_finite(gradtx.adam(0.1), 2)),
    "flatten": Export(
        lambda: gradtx.flatten(gradtx.adamw(0.1)),
        skip={"mismatches": "the state is one vector, which knows no paths"},
    ),
    "lookahead": Export(lambda: of_fast_weights(gradtx.lookahead(gradtx.adam(0.1), 2, 0.5))),
    "reduce_on_plateau": Export(
        lambda: gradtx.reduce_on_plateau(patience=1), extra_args=with_mean_loss
    ),
    "sam": Export(lambda: gradtx.sam(gradtx.adam(0.1), climb())),
    "split_real_and_imaginary": Export(lambda: gradtx.split_real_and_imaginary(gradtx.adam(0.1))),
}
