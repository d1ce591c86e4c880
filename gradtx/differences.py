"""Where gradtx differs from optax and from `jax.nn.initializers`, and why: the table on the site.

Everything else agrees in numbers up to rounding, and in states and dtypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["result", "state", "layout", "extremes", "fails", "refuses"]

# What gradtx promises where the papers say nothing.
PRECISE = "state and arithmetic have the precision of the parameters, at least float32"
REAL = "a number that its equation makes real is stored as a real number"
SIZES = "numbers of every size work, and zero never gives NaN"
SIGNS = "a loss may be negative"
STABLE = "a state keeps its structure and dtypes from `init` on"
ABSTRACT = "`init` needs only shapes and dtypes"
SHAPES = "an update has its gradient's shape and dtype"
TREES = "what works on one array works on every tree"
MASKS = "wherever there is a mask, it may be a function"
STACKED = "layers stacked for a scan take the steps that each would take alone"
SCHEDULES = "every schedule counts from 0"
DEVIATION = "an initializer has the requested deviation"
EARLY = "what would be misread is refused, if possible when the transformation is built"
PROMISES = (
    PRECISE,
    REAL,
    SIZES,
    SIGNS,
    STABLE,
    ABSTRACT,
    SHAPES,
    TREES,
    MASKS,
    STACKED,
    SCHEDULES,
    DEVIATION,
    EARLY,
)


@dataclass(frozen=True)
class Difference:
    """A row of the table.

    Attributes:
        names: the functions concerned; empty for all of them.
        kinds: what differs: the "result" (updates, or what a function returns), numbers in the
            "state", its "layout" (classes, structure, shapes, dtypes), or only the result at
            "extremes", which are gradients of zero and gradients whose squares overflow or
            underflow; "fails" if only the other library fails, "refuses" if only gradtx does.
        ours: what gradtx does.
        theirs: what the other library does.
        reason: a paper, or one of `PROMISES`.
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    ours: str
    theirs: str
    reason: str


def table() -> str:
    """The differences as a table in Markdown."""
    rows = ["| | gradtx | optax | Reason |", "|-|-|-|-|"]
    for row in DIFFERENCES:
        names = ", ".join(f"`{name}`" for name in row.names) or "all functions"
        rows.append(f"| {names} | {row.ours} | {row.theirs} | {row.reason} |")
    return "\n".join(rows)


DIFFERENCES = (
    Difference(
        ("acprop", "scale_by_acprop"),
        ("result", "state"),
        "measures the deviation of the gradient from the new average",
        "from the average before it",
        "Zhuang et al. 2021, Algorithm 2",
    ),
    Difference(
        ("adan", "scale_by_adan"),
        ("result", "state"),
        "weights the change of the gradient by b2 = 1 - beta_2, and decays proximally",
        "by 1 - b2, and subtracts the decay",
        "Xie et al. 2022, Algorithm 1",
    ),
    Difference(
        ("centralize",),
        ("result",),
        'takes the mean over the weights of each output; `layout="torch"` takes that of optax',
        "takes the mean over all axes but the first, the outputs of a JAX kernel among them",
        "Yong et al. 2020, equation (1)",
    ),
    Difference(
        ("dadapt_adamw", "prodigy"),
        ("result", "state"),
        "does not correct the bias, unless `bias_correction=True`",
        "corrects it",
        "Defazio & Mishchenko 2023, Algorithm 5; Mishchenko & Defazio 2023, Algorithm 4",
    ),
    Difference(
        ("galore", "scale_by_galore"),
        ("result", "state", "layout"),
        'projects the shorter side of a matrix, or the longer with `projected_side="longer"`',
        "projects the longer side",
        "Zhao et al. 2024, Algorithm 2",
    ),
    Difference(
        ("lars",),
        ("result", "state"),
        "divides by the norm of the gradient plus that of the decayed weights",
        "by the norm of their sum",
        "You, Gitman & Ginsburg 2017, equation (6)",
    ),
    Difference(
        ("madgrad", "scale_by_madgrad"),
        ("result", "state"),
        "multiplies by the learning rate",
        "by the learning rate plus eps",
        "Defazio & Jelassi 2021, Algorithm 1",
    ),
    Difference(
        ("mechanize",),
        ("result", "state"),
        "does not clip rewards, unless `clip_rewards=True`; recomputes the distance",
        "clips them, and adds eps to the scale that it divides by",
        "Cutkosky, Defazio & Mehta 2023, Algorithm 1",
    ),
    Difference(
        ("momo", "momo_adam"),
        ("result", "state"),
        "decays implicitly: the whole step is divided by 1 + learning_rate * weight_decay; "
        "its estimate of a bound lies below a negative loss too",
        "divides only the parameters; its estimate lies above a negative loss",
        "Schaipp et al. 2023, equation (15)",
    ),
    Difference(
        ("polyak_sgd",),
        ("result",),
        "multiplies the step by `scaling`",
        "divides it by `scaling`",
        "Loizou et al. 2021, equation (3)",
    ),
    Difference(
        ("rprop", "scale_by_rprop"),
        ("result",),
        "moves by each gradient's own step, from the first one on",
        "moves one step late",
        "Riedmiller & Braun 1993; Igel & Hüsken 2000, Rprop-",
    ),
    Difference(
        ("sophia",),
        ("result",),
        "divides by the updated diagonal of the Hessian, and does not correct the bias, unless "
        "`bias_correction=True`",
        "divides by the diagonal before its update, and corrects the bias",
        "Liu et al. 2023, Algorithm 3",
    ),
    Difference(
        ("yogi", "scale_by_yogi"),
        ("result", "state"),
        "starts the first moment at 0",
        "at the initial second moment",
        "Zaheer et al. 2018, Algorithm 2",
    ),
    Difference(
        (),
        ("result", "layout"),
        "bfloat16 and float16 parameters have a float32 state, and so do hyperparameters; a chain "
        "rounds once, at its end; initializers draw in float32 and round",
        "state and arithmetic are in the parameters' dtype, in which b2 = 0.999 is 1",
        PRECISE,
    ),
    Difference(
        (),
        ("layout", "fails"),
        "complex parameters have real second moments",
        "these are complex; `adopt`, `madgrad`, `mechanize`, `rprop` and `sm3` fail",
        REAL,
    ),
    Difference(
        (),
        ("refuses",),
        "refuses invalid hyperparameters, dtypes and trees, with a `ValueError` that names them; "
        "also traced numbers on which the program depends, such as `ns_steps`, which "
        "`gradtx.inject_hyperparams` leaves alone",
        "computes something, or fails later",
        EARLY,
    ),
    Difference(
        ("MultiSteps",),
        ("result", "state", "layout"),
        "accumulates complex and float64 gradients as they are",
        "accumulates them in float32, and drops imaginary parts",
        PRECISE,
    ),
    Difference(
        ("ademamix", "scale_by_ademamix"),
        ("layout",),
        "stores only the first moments in `mu_dtype`",
        "the second moment too, before the first step",
        STABLE,
    ),
    Difference(
        ("adafactor", "scale_by_factored_rms"),
        ("result", "state"),
        "uses the decay rate of the first step before `decay_offset`",
        "gives NaN there",
        SIZES,
    ),
    Difference(
        (
            "adaptive_grad_clip",
            "clip_by_block_rms",
            "clip_by_global_norm",
            "cocob",
            "differentially_private_aggregate",
            "dpsgd",
            "fromage",
            "lamb",
            "normalize",
            "normalize_by_update_norm",
            "scale_by_cocob",
            "scale_by_simplified_ademamix",
            "scale_by_trust_ratio",
            "simplified_ademamix",
        ),
        ("extremes",),
        "norms and roots are right wherever they can be represented; zero stays zero",
        "their squares overflow or underflow, and updates become 0, infinite or NaN",
        SIZES,
    ),
    Difference(
        (
            "adabelief",
            "adadelta",
            "adagrad",
            "adam",
            "adamw",
            "ademamix",
            "amsgrad",
            "dowg",
            "nadam",
            "nadamw",
            "novograd",
            "optimistic_adam",
            "optimistic_adam_v2",
            "radam",
            "rmsprop",
            "scale_by_adadelta",
            "scale_by_adam",
            "scale_by_ademamix",
            "scale_by_amsgrad",
            "scale_by_belief",
            "scale_by_novograd",
            "scale_by_radam",
            "scale_by_rms",
            "scale_by_rss",
            "scale_by_stddev",
        ),
        ("extremes",),
        "a gradient whose squares are too large for their dtype counts as the largest whose "
        "squares are not",
        "the average is infinite from then on, and updates are 0 or NaN",
        SIZES,
    ),
    Difference(
        ("global_norm", "safe_norm", "safe_root_mean_squares"),
        ("result",),
        "is right wherever it can be represented",
        "is infinite or zero where its square is",
        SIZES,
    ),
    Difference(
        ("momo", "scale_by_polyak"),
        ("result",),
        "takes steps along gradients of any length",
        "takes none where the squared norm is below 2.2e-16",
        SIZES,
    ),
    Difference(
        ("dog",),
        ("result", "state"),
        "with a learning rate for `init_step`, uses that until the parameters have moved",
        "only in the first step, and never moves if its gradient is zero",
        SIZES,
    ),
    Difference(
        ("reduce_on_plateau",),
        ("result", "state"),
        "takes the relative margin from the absolute value of the best loss",
        "from its signed value, so that a negative loss always counts as better",
        SIGNS,
    ),
    Difference(
        ("monitor",),
        ("state", "layout"),
        "the measurements are 0 before the first step",
        "there are none",
        STABLE,
    ),
    Difference(
        ("snapshot",),
        ("state",),
        "the measurement is 0 before the first step",
        "it is that of the parameters",
        ABSTRACT,
    ),
    Difference(
        ("scale_by_distance_over_gradients",),
        ("result", "layout"),
        "the update of a scalar is a scalar",
        "it has the shape (1,)",
        SHAPES,
    ),
    Difference(
        ("scale_by_novograd",),
        ("layout",),
        "updates have the gradient's dtype",
        "they have `mu_dtype`",
        SHAPES,
    ),
    Difference(
        ("incremental_update",),
        ("result", "layout"),
        "takes integers, such as a counter, from the new tree",
        "averages them too, which makes them floats",
        STABLE,
    ),
    Difference(
        ("apply_updates",),
        ("fails",),
        "an update that is None leaves its parameter as it is",
        "raises `TypeError`",
        TREES,
    ),
    Difference(
        ("sm3", "scale_by_sm3"),
        ("fails",),
        "takes scalars too",
        "raises `IndexError`",
        TREES,
    ),
    Difference(
        ("scale_by_muon",),
        ("fails",),
        "takes trees of matrices",
        "needs `weight_dimension_numbers` for them",
        TREES,
    ),
    Difference(
        ("inject_hyperparams", "inject_stateful_hyperparams"),
        ("result", "state", "layout"),
        "a function given as a mask is the mask",
        "it is called as a schedule, unless it is in `static_args`",
        MASKS,
    ),
    Difference(
        ("selective_transform",),
        ("result", "state", "layout"),
        "`freeze_mask` may be a function",
        "a function freezes everything",
        MASKS,
    ),
    Difference(
        (
            "initializers.glorot_normal",
            "initializers.he_normal",
            "initializers.kaiming_normal",
            "initializers.lecun_normal",
            "initializers.variance_scaling",
            "initializers.xavier_normal",
        ),
        ("result",),
        "truncated complex numbers have the requested variance",
        "they have 1.019 times that variance",
        DEVIATION,
    ),
    Difference(
        ("muon",),
        ("result", "state", "layout"),
        "arrays of three or more axes are batches of matrices, and stacked biases and scales go "
        "to AdamW; to resume a run of optax with such leaves, name their axes",
        "the former go to AdamW, and stacked biases to Muon",
        STACKED,
    ),
    Difference(
        ("sam",),
        ("result", "state"),
        "with `sync_period=1` steps from the given parameters",
        "from those of the call before",
        "Foret et al. 2021, Algorithm 1",
    ),
    Difference(
        ("schedule_free", "schedule_free_adamw", "schedule_free_sgd"),
        ("result", "state"),
        "a schedule counts from 0, as the base optimizer's does",
        "it is one step ahead of the base optimizer's",
        SCHEDULES,
    ),
)
