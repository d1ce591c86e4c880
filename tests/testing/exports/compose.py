"""Composed transformations."""

import optax

import gradtx

from .export import HANDS_ON, Export, groups, is_number, matrices

EXPORTS = {
    "chain": Export(lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1))),
    "conditionally_mask": Export(
        lambda: gradtx.conditionally_mask(gradtx.adam(0.1), lambda step: step > 0)
    ),
    "conditionally_transform": Export(
        lambda: gradtx.conditionally_transform(gradtx.adam(0.1), lambda step: step > 0)
    ),
    "freeze": Export(lambda: gradtx.freeze(matrices), skip=HANDS_ON),
    "identity": Export(gradtx.identity),
    "masked": Export(lambda: gradtx.masked(gradtx.adam(0.1), matrices), skip=HANDS_ON),
    "multi_transform": Export(
        lambda: gradtx.multi_transform(
            {"matrices": gradtx.adam(0.1), "others": gradtx.sgd(0.1, momentum=0.9)}, groups
        )
    ),
    "named_chain": Export(
        lambda: gradtx.named_chain(("clip", gradtx.clip(0.5)), ("adam", gradtx.adam(0.1)))
    ),
    "partition": Export(
        lambda: gradtx.partition(
            {"matrices": gradtx.lion(0.1), "others": gradtx.set_to_zero()}, groups
        )
    ),
    "selective_transform": Export(
        lambda: gradtx.selective_transform(gradtx.adam(0.1), freeze_mask=matrices)
    ),
    "set_to_zero": Export(gradtx.set_to_zero),
    "stateless": Export(lambda: gradtx.stateless(lambda updates, params: updates)),
    "stateless_with_tree_map": Export(
        lambda: gradtx.stateless_with_tree_map(lambda g, p: 2 * g if is_number(g) else g),
        skip=HANDS_ON,
    ),
    "with_extra_args_support": Export(
        lambda: gradtx.with_extra_args_support(optax.GradientTransformation(*gradtx.adam(0.1)))
    ),
}
