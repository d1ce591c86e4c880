"""Where gradtx departs from optax and from `jax.nn.initializers`, and why: the README's table.

In everything else numbers, states and dtypes are the same, to rounding.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["result", "state", "layout", "extremes", "fails", "refuses"]

# What gradtx promises, and keeps where no paper says anything.
PRECISE = "state and arithmetic have the precision of the parameters, at least float32"
REAL = "what is a real number by its equation is stored as one"
SIZES = "numbers of every size count alike, and zero gives no NaN"
SIGNS = "a loss may be negative"
STABLE = "a state keeps its structure and its dtypes from `init` on"
ABSTRACT = "`init` needs shapes and dtypes alone"
SHAPES = "an update has its gradient's shape and dtype"
TREES = "what works on one array works on every tree"
MASKS = "a mask may be a function, wherever there is one"
STACKED = "layers that are stacked for a scan take the steps that each would take alone"
SCHEDULES = "every schedule counts from 0"
DEVIATION = "an initializer has the deviation that is asked for"
EARLY = "what would be read wrongly is refused, when the transformation is built if possible"
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
        names: the functions concerned; none if it is all of them.
        kinds: what differs: the "result" (updates, or what a function returns), numbers in the
            "state", its "layout" (classes, structure, shapes, dtypes), or the result at "extremes"
            alone, gradients of zero or such whose squares overflow or underflow; or only the other
            library "fails", or only gradtx "refuses".
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
        "weighs the change of the gradient by b2 = 1 - beta_2, and decays proximally",
        "by 1 - b2, and subtracts the decay",
        "Xie et al. 2022, Algorithm 1",
    ),
    Difference(
        ("centralize",),
        ("result",),
        'subtracts the mean of the weights into each output, `layout="torch"` that of optax',
        "takes the mean over all axes but the first, the outputs of a JAX kernel among them",
        "Yong et al. 2020, equation (1)",
    ),
    Difference(
        ("dadapt_adamw", "prodigy"),
        ("result", "state"),
        "corrects no bias, `bias_correction=True` does",
        "corrects it",
        "Defazio & Mishchenko 2023, Algorithm 5; Mishchenko & Defazio 2023, Algorithm 4",
    ),
    Difference(
        ("galore", "scale_by_galore"),
        ("result", "state", "layout"),
        'projects the shorter side of a matrix, `projected_side="longer"` the other',
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
        "leaves rewards unclipped, `clip_rewards=True` clips them; recalculates the distance",
        "clips them, and adds eps to the scale by which it divides",
        "Cutkosky, Defazio & Mehta 2023, Algorithm 1",
    ),
    Difference(
        ("momo", "momo_adam"),
        ("result", "state"),
        "decays implicitly: the whole step is divided by 1 + learning_rate * weight_decay; "
        "estimates a bound that lies below a negative loss too",
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
        "divides by the renewed diagonal of the Hessian, and corrects no bias, "
        "`bias_correction=True` does",
        "divides by the diagonal before its renewal, and corrects the bias",
        "Liu et al. 2023, Algorithm 3",
    ),
    Difference(
        ("yogi", "scale_by_yogi"),
        ("result", "state"),
        "starts the first moment at 0",
        "at the second moment's start",
        "Zaheer et al. 2018, Algorithm 2",
    ),
    Difference(
        (),
        ("result", "layout"),
        "bfloat16 and float16 parameters have a float32 state, also of hyperparameters; "
        "initializers draw in float32 and round",
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
        "refuses hyperparameters, dtypes and trees that do not fit, with a `ValueError` that "
        "names them",
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
        "stores in `mu_dtype` the first moments alone",
        "the second moment too, before the first step",
        STABLE,
    ),
    Difference(
        ("adafactor", "scale_by_factored_rms"),
        ("result", "state"),
        "takes the first step's decay before `decay_offset`",
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
        "norms and roots are right wherever they can be represented themselves; zero is left zero",
        "their squares overflow or underflow, and updates become 0, infinite or NaN",
        SIZES,
    ),
    Difference(
        ("global_norm",),
        ("result",),
        "is right wherever it can be represented itself",
        "is infinite or zero where its square is",
        SIZES,
    ),
    Difference(
        ("momo", "scale_by_polyak"),
        ("result",),
        "takes steps along gradients however short",
        "takes none where the squared norm is below 2.2e-16",
        SIZES,
    ),
    Difference(
        ("dog",),
        ("result", "state"),
        "with a learning rate for `init_step`, takes that until the parameters have moved",
        "in the first step alone, and stands still forever if its gradient is zero",
        SIZES,
    ),
    Difference(
        ("reduce_on_plateau",),
        ("result", "state"),
        "measures the relative margin by the size of the best loss",
        "by its signed value, so that a negative loss always counts as better",
        SIGNS,
    ),
    Difference(
        ("monitor",),
        ("state", "layout"),
        "measurements are 0 before the first step",
        "there are none",
        STABLE,
    ),
    Difference(
        ("snapshot",),
        ("state",),
        "the measurement is 0 before the first step",
        "it is of the parameters",
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
        "mixes them too, which makes them floats",
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
        "a function for a mask is that mask",
        "it is called as a schedule, unless `static_args` names it",
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
        "complex truncated numbers have the variance that is asked for",
        "they have 1.019 times that variance",
        DEVIATION,
    ),
    Difference(
        ("muon",),
        ("result", "state", "layout"),
        "arrays of three and more axes are batches of matrices, stacked biases and scales are "
        "AdamW's; to resume a run of optax's with such leaves, name their axes",
        "they are AdamW's, and stacked biases Muon's",
        STACKED,
    ),
    Difference(
        ("sam",),
        ("result", "state"),
        "with `sync_period=1` steps from the parameters that it is given",
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
