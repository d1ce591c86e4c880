"""gradtx: gradient transformations, initializers and normalization for JAX.

Every optimizer, clipping rule and average is a pure `(init, update)` pair of optax's own type,
lifted from an equation on one array. Names and states are optax's, so that either library's
transformations chain with the other's, and either resumes the other's runs.
"""

from optax import (
    AdaptiveGradClipState,
    AddDecayedWeightsState,
    AddNoiseState,
    ApplyEvery,
    ApplyIfFiniteState,
    ClipByGlobalNormState,
    ClipState,
    ConditionallyMaskState,
    ConditionallyTransformState,
    EmaState,
    EmptyState,
    FactoredState,
    GradientTransformation,
    GradientTransformationExtraArgs,
    LookaheadParams,
    LookaheadState,
    MaskedNode,
    MaskedState,
    MaskOrFn,
    MultiStepsState,
    MultiTransformState,
    NonNegativeParamsState,
    OptState,
    Params,
    PartitionState,
    ScalarOrSchedule,
    ScaleByAdaDeltaState,
    ScaleByAdamState,
    ScaleByAdanState,
    ScaleByAmsgradState,
    ScaleByBacktrackingLinesearchState,
    ScaleByBeliefState,
    ScaleByLBFGSState,
    ScaleByLionState,
    ScaleByNovogradState,
    ScaleByRmsState,
    ScaleByRpropState,
    ScaleByRssState,
    ScaleByRStdDevState,
    ScaleByScheduleState,
    ScaleBySM3State,
    ScaleByTrustRatioState,
    ScaleByZoomLinesearchState,
    ScaleState,
    Schedule,
    ShouldSkipUpdateFunction,
    TraceState,
    TransformInitFn,
    TransformUpdateExtraArgsFn,
    TransformUpdateFn,
    Updates,
    ZeroNansState,
    ZoomLinesearchInfo,
    bias_correction,
    init_empty_state,
    lbfgs,
    microbatch,
    safe_increment,
    safe_int32_increment,
    scale_by_backtracking_linesearch,
    scale_by_lbfgs,
    scale_by_zoom_linesearch,
    tree,
    tree_map_params,
    update_infinity_moment,
    update_moment,
    update_moment_per_elem_norm,
    value_and_grad_from_state,
)
from optax.contrib import (
    COCOBState,
    DAdaptAdamWState,
    DifferentiallyPrivateAggregateState,
    DoGState,
    DoWGState,
    GaLoreDimensionNumbers,
    GaLoreState,
    HutchinsonState,
    MadgradState,
    MechanicState,
    MomoAdamState,
    MomoState,
    MuonDimensionNumbers,
    MuonState,
    NormalizeState,
    ProdigyState,
    ReduceLROnPlateauState,
    SAMState,
    ScaleByAdemamixState,
    ScaleBySimplifiedAdEMAMixState,
    ScheduleFreeState,
    SophiaState,
    SplitRealAndImaginaryState,
)
from optax.schedules import (
    InjectHyperparamsState,
    InjectStatefulHyperparamsState,
    StatefulSchedule,
    WrappedSchedule,
)
from optax.transforms import ConditionFn, MonitorState, SnapshotState

from gradtx import diagnostics, initializers, normalization, schedules, testing, training
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
from gradtx.inspection import explain, migrate
from gradtx.kernels.adam import scale_by_adam, scale_by_adamax, scale_by_amsgrad
from gradtx.kernels.adam_mini import scale_by_adamini
from gradtx.kernels.adam_variants import scale_by_belief, scale_by_radam, scale_by_yogi
from gradtx.kernels.adan import scale_by_adan
from gradtx.kernels.adaptive import (
    scale_by_adadelta,
    scale_by_rms,
    scale_by_rprop,
    scale_by_rss,
    scale_by_stddev,
)
from gradtx.kernels.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from gradtx.kernels.adopt import scale_by_acprop, scale_by_adopt
from gradtx.kernels.clip import (
    adaptive_grad_clip,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    normalize_by_update_norm,
    zero_nans,
)
from gradtx.kernels.coin_betting import scale_by_cocob
from gradtx.kernels.constraints import keep_params_nonnegative, normalize
from gradtx.kernels.curvature import scale_by_newton
from gradtx.kernels.dadaptation import dadapt_adamw
from gradtx.kernels.distance import (
    ScaleByDistanceOverGradientsState,
    scale_by_distance_over_gradients,
)
from gradtx.kernels.every import apply_every
from gradtx.kernels.factored import scale_by_factored_rms
from gradtx.kernels.hessian_diagonal import hutchinson_estimator_diag_hessian
from gradtx.kernels.madgrad import scale_by_madgrad
from gradtx.kernels.mars import ScaleByMarsState, scale_by_mars
from gradtx.kernels.momentum import (
    SimpleMovingAverageState,
    ema,
    simple_moving_average,
    trace,
)
from gradtx.kernels.momo import momo
from gradtx.kernels.momo_adam import momo_adam
from gradtx.kernels.muon import scale_by_muon
from gradtx.kernels.normuon import NorMuonState, scale_by_normuon
from gradtx.kernels.novograd import scale_by_novograd
from gradtx.kernels.optimistic import scale_by_optimistic_gradient
from gradtx.kernels.polyak import scale_by_polyak
from gradtx.kernels.privacy import (
    differentially_private_aggregate,
    per_example_global_norm_clip,
    per_example_layer_norm_clip,
)
from gradtx.kernels.prodigy import ProdigyGrowthState, prodigy
from gradtx.kernels.scale import (
    add_decayed_weights,
    add_noise,
    centralize,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from gradtx.kernels.shampoo import ShampooState, scale_by_shampoo
from gradtx.kernels.sign import scale_by_lion, scale_by_sign
from gradtx.kernels.sm3 import scale_by_sm3
from gradtx.kernels.soap import SoapState, scale_by_soap
from gradtx.kernels.sophia import scale_by_sophia
from gradtx.kernels.trust import (
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_trust_ratio,
)
from gradtx.kernels.unitwise import unitwise_clip, unitwise_norm
from gradtx.lift import ScheduledState
from gradtx.recipes.adam import adam, adamax, adamaxw, adamw, amsgrad, nadam, nadamw
from gradtx.recipes.adam_relatives import acprop, adamini, adopt, madgrad, mars
from gradtx.recipes.adam_variants import adabelief, radam, yogi
from gradtx.recipes.adan import adan
from gradtx.recipes.adaptive import adadelta, adagrad, rmsprop, rprop
from gradtx.recipes.ademamix import ademamix, simplified_ademamix
from gradtx.recipes.descent import lion, newton, sgd, sign_sgd, signum
from gradtx.recipes.factored import adafactor, sm3
from gradtx.recipes.galore import galore
from gradtx.recipes.matrix import muon, normuon
from gradtx.recipes.noisy import noisy_sgd
from gradtx.recipes.optimistic import (
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
)
from gradtx.recipes.privacy import dpsgd
from gradtx.recipes.schedule_free import schedule_free_adamw, schedule_free_sgd
from gradtx.recipes.shampoo import shampoo, soap
from gradtx.recipes.sophia import sophia
from gradtx.recipes.step_size_free import cocob, dog, dowg, polyak_sgd
from gradtx.recipes.trust import fromage, lamb, lars, novograd
from gradtx.schedules import (
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    exponential_decay,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
)
from gradtx.select import select
from gradtx.trees import global_norm
from gradtx.updates import (
    apply_updates,
    incremental_update,
    periodic_update,
    update_and_apply,
)
from gradtx.wrappers.accumulate import MultiSteps
from gradtx.wrappers.average import AverageParamsState, average_params, averaged_params
from gradtx.wrappers.cautious import cautious
from gradtx.wrappers.evaluation import eval_params, schedule_free_eval_params
from gradtx.wrappers.grafting import GraftState, graft
from gradtx.wrappers.hyperparameters import inject_hyperparams, with_hyperparams
from gradtx.wrappers.hyperparameters import inject_hyperparams as inject_stateful_hyperparams
from gradtx.wrappers.layout import flatten, split_real_and_imaginary
from gradtx.wrappers.lookahead import lookahead
from gradtx.wrappers.mechanic import mechanize
from gradtx.wrappers.metrics import MetricsState, metrics, with_metrics
from gradtx.wrappers.monitoring import measure_with_ema, monitor, snapshot
from gradtx.wrappers.multipliers import multiply_learning_rate
from gradtx.wrappers.plateau import reduce_on_plateau
from gradtx.wrappers.projected import scale_by_galore
from gradtx.wrappers.schedule_free import schedule_free
from gradtx.wrappers.sharpness_aware import sam
from gradtx.wrappers.skip import apply_if_finite, skip_large_updates, skip_not_finite

__version__ = "0.1.0"


def __dir__() -> list[str]:
    # The public names only; the other modules are the parts that these are made of.
    return sorted([*__all__, "__all__", "__doc__", "__version__"])


__all__ = [
    "AdaptiveGradClipState",
    "AddDecayedWeightsState",
    "AddNoiseState",
    "ApplyEvery",
    "ApplyIfFiniteState",
    "AverageParamsState",
    "COCOBState",
    "ClipByGlobalNormState",
    "ClipState",
    "ConditionFn",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "DAdaptAdamWState",
    "DifferentiallyPrivateAggregateState",
    "DoGState",
    "DoWGState",
    "EmaState",
    "EmptyState",
    "FactoredState",
    "GaLoreDimensionNumbers",
    "GaLoreState",
    "GradientTransformation",
    "GradientTransformationExtraArgs",
    "GraftState",
    "HutchinsonState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "LookaheadParams",
    "LookaheadState",
    "MadgradState",
    "MaskOrFn",
    "MaskedNode",
    "MaskedState",
    "MechanicState",
    "MetricsState",
    "MomoAdamState",
    "MomoState",
    "MonitorState",
    "MultiSteps",
    "MultiStepsState",
    "MultiTransformState",
    "MuonDimensionNumbers",
    "MuonState",
    "NonNegativeParamsState",
    "NorMuonState",
    "NormalizeState",
    "OptState",
    "Params",
    "PartitionState",
    "ProdigyGrowthState",
    "ProdigyState",
    "ReduceLROnPlateauState",
    "SAMState",
    "ScalarOrSchedule",
    "ScaleByAdaDeltaState",
    "ScaleByAdamState",
    "ScaleByAdanState",
    "ScaleByAdemamixState",
    "ScaleByAmsgradState",
    "ScaleByBacktrackingLinesearchState",
    "ScaleByBeliefState",
    "ScaleByDistanceOverGradientsState",
    "ScaleByLBFGSState",
    "ScaleByLionState",
    "ScaleByMarsState",
    "ScaleByNovogradState",
    "ScaleByRStdDevState",
    "ScaleByRmsState",
    "ScaleByRpropState",
    "ScaleByRssState",
    "ScaleBySM3State",
    "ScaleByScheduleState",
    "ScaleBySimplifiedAdEMAMixState",
    "ScaleByTrustRatioState",
    "ScaleByZoomLinesearchState",
    "ScaleState",
    "Schedule",
    "ScheduleFreeState",
    "ScheduledState",
    "ShampooState",
    "ShouldSkipUpdateFunction",
    "SimpleMovingAverageState",
    "SnapshotState",
    "SoapState",
    "SophiaState",
    "SplitRealAndImaginaryState",
    "StatefulSchedule",
    "TraceState",
    "TransformInitFn",
    "TransformUpdateExtraArgsFn",
    "TransformUpdateFn",
    "Updates",
    "WrappedSchedule",
    "ZeroNansState",
    "ZoomLinesearchInfo",
    "acprop",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamini",
    "adamw",
    "adan",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "ademamix",
    "adopt",
    "amsgrad",
    "apply_every",
    "apply_if_finite",
    "apply_updates",
    "average_params",
    "averaged_params",
    "bias_correction",
    "cautious",
    "centralize",
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "cocob",
    "conditionally_mask",
    "conditionally_transform",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "dadapt_adamw",
    "diagnostics",
    "differentially_private_aggregate",
    "dog",
    "dowg",
    "dpsgd",
    "ema",
    "eval_params",
    "explain",
    "exponential_decay",
    "flatten",
    "freeze",
    "fromage",
    "galore",
    "global_norm",
    "graft",
    "hutchinson_estimator_diag_hessian",
    "identity",
    "incremental_update",
    "init_empty_state",
    "initializers",
    "inject_hyperparams",
    "inject_stateful_hyperparams",
    "join_schedules",
    "keep_params_nonnegative",
    "lamb",
    "lars",
    "lbfgs",
    "linear_onecycle_schedule",
    "linear_schedule",
    "lion",
    "lookahead",
    "madgrad",
    "mars",
    "masked",
    "measure_with_ema",
    "mechanize",
    "metrics",
    "microbatch",
    "migrate",
    "momo",
    "momo_adam",
    "monitor",
    "multi_transform",
    "multiply_learning_rate",
    "muon",
    "nadam",
    "nadamw",
    "named_chain",
    "newton",
    "noisy_sgd",
    "normalization",
    "normalize",
    "normalize_by_update_norm",
    "normuon",
    "novograd",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "partition",
    "per_example_global_norm_clip",
    "per_example_layer_norm_clip",
    "periodic_update",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polyak_sgd",
    "polynomial_schedule",
    "prodigy",
    "radam",
    "reduce_on_plateau",
    "rmsprop",
    "rprop",
    "safe_increment",
    "safe_int32_increment",
    "sam",
    "scale",
    "scale_by_acprop",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adamini",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_backtracking_linesearch",
    "scale_by_belief",
    "scale_by_cocob",
    "scale_by_distance_over_gradients",
    "scale_by_factored_rms",
    "scale_by_galore",
    "scale_by_lbfgs",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_madgrad",
    "scale_by_mars",
    "scale_by_muon",
    "scale_by_newton",
    "scale_by_normuon",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_polyak",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_shampoo",
    "scale_by_sign",
    "scale_by_simplified_ademamix",
    "scale_by_sm3",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "scale_by_zoom_linesearch",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_eval_params",
    "schedule_free_sgd",
    "schedules",
    "select",
    "selective_transform",
    "set_to_zero",
    "sgd",
    "sgdr_schedule",
    "shampoo",
    "sign_sgd",
    "signum",
    "simple_moving_average",
    "simplified_ademamix",
    "skip_large_updates",
    "skip_not_finite",
    "sm3",
    "snapshot",
    "soap",
    "sophia",
    "split_real_and_imaginary",
    "stateless",
    "stateless_with_tree_map",
    "testing",
    "trace",
    "training",
    "tree",
    "tree_map_params",
    "unitwise_clip",
    "unitwise_norm",
    "update_and_apply",
    "update_infinity_moment",
    "update_moment",
    "update_moment_per_elem_norm",
    "value_and_grad_from_state",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "with_extra_args_support",
    "with_hyperparams",
    "with_metrics",
    "yogi",
    "zero_nans",
]
