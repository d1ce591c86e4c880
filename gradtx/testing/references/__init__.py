"""The equations of the papers in NumPy and double precision, to compare transformations with.

`references.NAME(...)` takes the arguments of `gradtx.NAME(...)` that are about numbers, under the
same names and with the same defaults, and returns a `Reference`. A port is checked in three lines:

    from gradtx.testing import check_reference, references

    check_reference(my_adam(1e-3, b1=0.8), references.adam(1e-3, b1=0.8))

Each is a transcription of its source, one step on one leaf (or on all leaves as one vector), which
owes nothing to the library's own kernels. Hyperparameters may be schedules. `equation` makes a
reference of your own step.
"""

from __future__ import annotations

from gradtx.testing.references.adam_offshoots import (
    adamini,
    madgrad,
    mars,
    scale_by_adamini,
    scale_by_madgrad,
    scale_by_mars,
)
from gradtx.testing.references.adam_relatives import (
    acprop,
    adan,
    ademamix,
    adopt,
    scale_by_acprop,
    scale_by_adan,
    scale_by_ademamix,
    scale_by_adopt,
    scale_by_simplified_ademamix,
    simplified_ademamix,
)
from gradtx.testing.references.adam_variants import (
    adabelief,
    radam,
    scale_by_belief,
    scale_by_radam,
    scale_by_yogi,
    yogi,
)
from gradtx.testing.references.adams import (
    adam,
    adamax,
    adamaxw,
    adamw,
    amsgrad,
    nadam,
    nadamw,
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
)
from gradtx.testing.references.adaptive import (
    adadelta,
    adagrad,
    rmsprop,
    rprop,
    scale_by_adadelta,
    scale_by_rms,
    scale_by_rprop,
    scale_by_rss,
    scale_by_stddev,
)
from gradtx.testing.references.averages import schedule_free_adamw, schedule_free_sgd
from gradtx.testing.references.check import check_reference
from gradtx.testing.references.curvature import (
    scale_by_sophia,
)
from gradtx.testing.references.descents import (
    ema,
    lion,
    scale_by_lion,
    scale_by_sign,
    sgd,
    sign_sgd,
    signum,
    trace,
)
from gradtx.testing.references.equation import Equation, Reference, equation
from gradtx.testing.references.factored import (
    adafactor,
    scale_by_factored_rms,
    scale_by_sm3,
    sm3,
)
from gradtx.testing.references.games import (
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    scale_by_optimistic_gradient,
)
from gradtx.testing.references.layers import (
    fromage,
    lamb,
    lars,
    novograd,
    scale_by_novograd,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_trust_ratio,
)
from gradtx.testing.references.matrices import (
    scale_by_muon,
    scale_by_normuon,
    scale_by_shampoo,
    scale_by_soap,
)
from gradtx.testing.references.models import (
    momo,
    momo_adam,
    polyak_sgd,
    scale_by_polyak,
)
from gradtx.testing.references.pieces import (
    adaptive_grad_clip,
    add_decayed_weights,
    apply_every,
    centralize,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    keep_params_nonnegative,
    normalize,
    normalize_by_update_norm,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from gradtx.testing.references.step_size_free import (
    dadapt_adamw,
    mechanized_sgd,
    prodigy,
    scale_by_cocob,
    scale_by_dog,
    scale_by_dowg,
)

__all__ = [
    "Equation",
    "Reference",
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
    "ademamix",
    "adopt",
    "amsgrad",
    "apply_every",
    "centralize",
    "check_reference",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "dadapt_adamw",
    "ema",
    "equation",
    "fromage",
    "keep_params_nonnegative",
    "lamb",
    "lars",
    "lion",
    "madgrad",
    "mars",
    "mechanized_sgd",
    "momo",
    "momo_adam",
    "nadam",
    "nadamw",
    "normalize",
    "normalize_by_update_norm",
    "novograd",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "prodigy",
    "radam",
    "rmsprop",
    "rprop",
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
    "scale_by_belief",
    "scale_by_cocob",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_factored_rms",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_madgrad",
    "scale_by_mars",
    "scale_by_muon",
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
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "sign_sgd",
    "signum",
    "simplified_ademamix",
    "sm3",
    "trace",
    "yogi",
]
