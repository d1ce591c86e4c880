"""gradtx: gradient transformations, initializers and normalization for JAX.

Every optimizer, clipping rule and average is a pure `(init, update)` pair of optax's own type,
lifted from an equation on one array. Names and states are optax's, so that either library's
transformations chain with the other's, and either resumes the other's runs.
"""

from optax import (
    EmptyState,
    GradientTransformation,
    GradientTransformationExtraArgs,
    MaskedNode,
    MaskedState,
    OptState,
    Params,
    ScalarOrSchedule,
    Schedule,
    TransformInitFn,
    TransformUpdateExtraArgsFn,
    TransformUpdateFn,
    Updates,
    lbfgs,
    scale_by_backtracking_linesearch,
    scale_by_lbfgs,
    scale_by_zoom_linesearch,
    value_and_grad_from_state,
)

from gradtx import initializers, normalization, schedules, testing, training
from gradtx.compose import (
    chain,
    conditionally_mask,
    conditionally_transform,
    freeze,
    identity,
    masked,
    named_chain,
    partition,
    selective_transform,
    set_to_zero,
    stateless,
    stateless_with_tree_map,
    with_extra_args_support,
)
from gradtx.compose import partition as multi_transform
from gradtx.kernels.adam import scale_by_adam, scale_by_adamax, scale_by_amsgrad
from gradtx.kernels.adam_variants import scale_by_belief, scale_by_radam, scale_by_yogi
from gradtx.kernels.adaptive import (
    scale_by_adadelta,
    scale_by_rms,
    scale_by_rprop,
    scale_by_rss,
    scale_by_stddev,
)
from gradtx.kernels.clip import (
    adaptive_grad_clip,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    normalize_by_update_norm,
    zero_nans,
)
from gradtx.kernels.curvature import scale_by_newton
from gradtx.kernels.momentum import ema, simple_moving_average, trace
from gradtx.kernels.scale import (
    add_decayed_weights,
    add_noise,
    centralize,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from gradtx.kernels.sign import scale_by_lion, scale_by_sign
from gradtx.recipes.adam import adam, adamax, adamaxw, adamw, amsgrad, nadam, nadamw
from gradtx.recipes.adam_variants import adabelief, radam, yogi
from gradtx.recipes.adaptive import adadelta, adagrad, rmsprop, rprop
from gradtx.recipes.descent import lion, newton, sgd, sign_sgd, signum
from gradtx.select import select
from gradtx.trees import global_norm
from gradtx.updates import apply_updates, incremental_update, periodic_update
from gradtx.wrappers.average import average_params, averaged_params

__version__ = "0.1.0"

__all__ = [
    "EmptyState",
    "GradientTransformation",
    "GradientTransformationExtraArgs",
    "MaskedNode",
    "MaskedState",
    "OptState",
    "Params",
    "ScalarOrSchedule",
    "Schedule",
    "TransformInitFn",
    "TransformUpdateExtraArgsFn",
    "TransformUpdateFn",
    "Updates",
    "adabelief",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "amsgrad",
    "apply_updates",
    "average_params",
    "averaged_params",
    "centralize",
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "conditionally_mask",
    "conditionally_transform",
    "ema",
    "freeze",
    "global_norm",
    "identity",
    "incremental_update",
    "initializers",
    "lbfgs",
    "lion",
    "masked",
    "multi_transform",
    "nadam",
    "nadamw",
    "named_chain",
    "newton",
    "normalization",
    "normalize_by_update_norm",
    "partition",
    "periodic_update",
    "radam",
    "rmsprop",
    "rprop",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_amsgrad",
    "scale_by_backtracking_linesearch",
    "scale_by_belief",
    "scale_by_lbfgs",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_newton",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_sign",
    "scale_by_stddev",
    "scale_by_yogi",
    "scale_by_zoom_linesearch",
    "schedules",
    "select",
    "selective_transform",
    "set_to_zero",
    "sgd",
    "sign_sgd",
    "signum",
    "simple_moving_average",
    "stateless",
    "stateless_with_tree_map",
    "testing",
    "trace",
    "training",
    "value_and_grad_from_state",
    "with_extra_args_support",
    "yogi",
    "zero_nans",
]
