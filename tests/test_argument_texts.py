"""Arguments that mean the same have the same text in every docstring.

The table holds the first sentence of an argument's entry. What follows is the function's own: what
a value does here, where the paper differs. That a hyperparameter may be a number, a scalar array or
a schedule is said in one form, at the end of that sentence or not at all.
"""

import importlib
import inspect
import re
from collections import Counter

import pytest

ROOMS = ("gradtx", "gradtx.initializers", "gradtx.normalization", "gradtx.diagnostics")
KINDS_OF_NUMBERS = "; a number, a scalar array or a schedule"
# From this many functions of a room on, an argument has an entry in the table.
SEVERAL = 3

STORED = "None: the parameter's, at least float32"
CHOICE = (
    "a tree of booleans, a function of the parameters that returns one, or a `gradtx.select(...)`"
)
STRENGTH = "the strength of the weight decay, >= 0, multiplied by the"
ADDED = "the multiple of the parameters that is added to the"

TEXTS = {
    "gradtx": {
        "accumulator_dtype": (
            f"the storage dtype of the average; {STORED}",
            "the storage dtype of the average; None: the measure's, at least float32",
            f"the storage dtype of the momentum; {STORED}",
            f"the storage dtype of the accumulated gradients; {STORED}",
        ),
        "alpha": (
            "the weight of the current gradient",
            "the weight of the current direction r",
            "the weight of the slow average",
            "roughly the number of steps for which the bets stay small, >= 0",
        ),
        "axis_name": (
            "a mapped axis over which the gradient is spread, see `gradtx.global_norm`",
            "a mapped axis (of `vmap` or `shard_map`), or several, over which the tree is spread",
        ),
        "axis_reduction": (
            '"sum" for the norm of the pieces together, "mean" for their mean norm',
            '"sum" adds the squares over that axis: the norm of the whole whose pieces lie on the '
            "devices",
        ),
        "b1": (
            "the decay rate of the first moment, in [0, 1)",
            "the decay rate of the averages, in [0, 1)",
            "the decay rate of the fast average, in [0, 1)",
            "the decay rate of the sum of past gradients, in [0, 1)",
            "the weight of the momentum in the direction, in [0, 1)",
            "the weight of x in y, in (0, 1]",
        ),
        "b2": (
            "the decay rate of the second moment, in [0, 1)",
            "the decay rate of the squared deviation, in [0, 1)",
            "the decay rate of the maximum, in [0, 1)",
            "the decay rate of the momentum, in [0, 1)",
            "the decay rate of the average change of the gradient, in [0, 1)",
            "the decay rate of h, in [0, 1)",
            "the decay rate of L and R, in [0, 1]",
            "the decay rate of the bounds, in [0, 1]",
            "1 minus the rate at which v changes, in [0, 1)",
        ),
        "b3": (
            "the decay rate of the second moment, in [0, 1)",
            "the decay rate of the slow average, in [0, 1)",
        ),
        "beta": (
            "the decay rate of the momentum, in [0, 1)",
            "the decay rate of the averages, in [0, 1)",
            "the weight of the change since the last step",
        ),
        "bias_correction": (
            "whether to correct the bias of averages that start at zero",
            "whether to multiply the rate by sqrt(1 - b2^t) / (1 - b1^t) too",
        ),
        "consistent_rms": (
            "the root mean square of the elements of an update, >= 0, before the learning rate",
        ),
        "debias": ("whether to correct the bias of an average that starts at zero",),
        "decay": (
            'the leaves to decay if there is no mask: "all", or "matrices" for those of '
            "`select.matrices`",
            "the decay rate of the average, in [0, 1)",
            "the decay rate of the averages, in [0, 1)",
            "the decay rate of the momentum, in [-1, 1]",
        ),
        "eps": (
            "added to the denominator, >= 0",
            "added to the denominator, > 0",
            "added to the denominator outside the root, >= 0",
            "added to the denominator inside the root, >= 0",
            "the lower bound of the denominator, >= 0",
            "the lower bound of the weights' norm, >= 0",
            "added inside both roots, >= 0",
            "added to |g| in the maximum, >= 0",
            "added to the squared gradients, >= 0",
            "added to the squared norm, >= 0",
            "added to the norm of the momentum in the iteration, >= 0",
            "added to the eigenvalues relative to the largest one, >= 0",
            "the initial value of L, the largest gradient so far, >= 0",
        ),
        "eps_in_sqrt": ("whether eps is added inside the root",),
        "eps_root": (
            "added to the denominator inside the root, >= 0",
            "added to s in every step, >= 0",
        ),
        "gamma": (
            "how fast the variance decays, >= 0",
            "the strength of the correction",
            "the factor of h in the denominator, >= 0",
        ),
        "initial_accumulator_value": (
            "the initial value of s, >= 0",
            "the initial value of v, >= 0",
        ),
        "initial_scale": ("the initial value of v, >= 0",),
        "key": (
            "a PRNG key, or an integer seed",
            "a PRNG key, or an integer seed; None: 0, with a warning",
        ),
        "l2_norm_clip": (
            "the largest norm of one example's gradient, finite and >= 0",
            "the largest norm of one example's gradient, >= 0",
        ),
        "learning_rate": (
            "the step size",
            "the step size, >= 0",
            "the initial step size s, >= 0",
            "the largest step size, >= 0",
            "the step size of the base optimizer, >= 0",
            "the length of a step relative to the weights",
            "a factor of the step size",
            "a factor of the gradients",
        ),
        "mask": (
            f"the leaves to decay: {CHOICE}; None: all leaves",
            f"the leaves to freeze: {CHOICE}",
            CHOICE.replace("booleans", "booleans (or a prefix of one)"),
        ),
        "min_scale": ("the lower bound of the factor, >= 0", "the lower bound of the scale, >= 0"),
        "momentum": (
            "the decay rate of the momentum, in [0, 1)",
            "the decay rate of the momentum, in [0, 1); None: no momentum",
            "the decay rate of the momentum, in [-1, 1]",
            "the decay rate of the momentum, in [-1, 1]; None: no momentum",
            "the share of the way to z that is left for later steps, in [0, 1)",
        ),
        "mu_dtype": (
            f"the storage dtype of the first moment; {STORED}",
            f"the storage dtype of both averages of the gradient; {STORED}",
        ),
        "nesterov": ("whether to use Nesterov momentum",),
        "ns_coeffs": (
            "the coefficients of the iteration, see `scale_by_muon`",
            "the coefficients of the iteration: a, b, c of a * X + b * (X X^H) X + c * (X X^H)^2 "
            'X, or n such triples for n iterations, or "standard" (the default) or "dion"',
        ),
        "ns_dtype": (
            "a narrower dtype for the factors of the products in the iteration, such as bfloat16; "
            "None: that of the gradient, at least float32, and products are as precise as "
            "`jax_default_matmul_precision` says",
        ),
        "ns_steps": ("the number of iterations, >= 1",),
        "preconditioning": (
            "the scaling before the first iteration, see `scale_by_muon`",
            "the scaling before the first iteration, beyond that by the Frobenius norm: none "
            '("frobenius"), or, to save iterations, by the norm ("spectral"), the Schatten-4 norm '
            '("schatten") or row by row ("aol")',
        ),
        "r": ("the power of the step's number t in the weight of z",),
        "seed": ("a PRNG key, or an integer seed", "the former name of `key`, deprecated"),
        "state_dtype": (f"the storage dtype of z; {STORED}",),
        "threshold": (
            "the largest root mean square of a leaf, >= 0",
            "the smallest rho_t at which to divide by the second moment, at least 4",
        ),
        "update_interval": (
            "the number of steps from one calculation of the roots to the next, >= 1",
            "the number of steps k from one estimate of h to the next, >= 1",
        ),
        "weight_decay": (
            f"{STRENGTH} learning rate",
            f"{STRENGTH} learning rate; None: no decay",
            f"{STRENGTH} step size",
            f"{ADDED} gradient, >= 0",
            f"{ADDED} gradient, >= 0; None: no decay",
            f"{ADDED} direction, >= 0",
            f"{ADDED} momentum in each step, >= 0",
            f"{ADDED} updates",
            "the strength of the penalty weight_decay / 2 * ||p||^2, >= 0",
            "the strength of the penalty weight_decay / 2 * <p, D p>, >= 0",
            "lambda in the paper, >= 0",
        ),
        "weight_decay_mask": (
            f"the leaves to decay: {CHOICE}; None: all leaves",
            f"the leaves to decay: {CHOICE}; None: all leaves, which True stands for too",
        ),
        "weight_lr_power": (
            "the power of the largest learning rate so far in the weight of z, >= 0",
        ),
    },
    "gradtx.initializers": {
        "batch_axis": ("axis or axes that index independent layers",),
        "count_bias": ("whether the bias counts as one more input",),
        "dtype": (
            "default dtype of the result; None is jax's default float",
            "default dtype of the result, real; None is jax's default float",
            "default dtype of the result, real or complex; None is jax's default float",
            "any dtype; None is jax's default, float32 unless `jax_enable_x64` is set",
        ),
        "in_axis": ("axis or axes that index inputs",),
        "out_axis": ("axis or axes that index outputs",),
    },
    "gradtx.normalization": {
        "bias": (
            "summand beta, of the same shape; None: 0",
            "summand beta, of shape (num_features,); None: 0",
            "summand b, of the same shape; None: 0",
        ),
        "epsilon": (
            "added to the variance",
            "added to the mean square",
            "added to the eigenvalues of the (biased) covariance",
        ),
        "scale": (
            "factor gamma, of the same shape; None: 1",
            "factor gamma, of shape (num_features,); None: 1",
            "gain g, of shape [x.shape[a] for a in axis]; None: 1",
        ),
    },
    "gradtx.diagnostics": {
        "*args": ("further arguments of the loss function, such as a batch",),
        "*batch": ("further arguments of the loss function",),
        "has_aux": ("whether the loss returns a pair of the loss and something else",),
        "params": ("the point x, a tree of arrays", "the parameters, a tree of arrays"),
        "step_sizes": (
            "the values of eta, shape (n,), n >= 1, each > 0: a range around the learning rate",
        ),
    },
}
# Names that mean something else in almost every function.
DIFFERENT = {
    "gradtx": {
        *("*args", "axis", "base_optimizer", "inner", "max_norm", "min_norm", "params"),
        *("select", "state", "x"),
        *("tx", "updates", "weight_dimension_numbers"),
    },
    "gradtx.initializers": {"scale", "shape", "stddev"},
    "gradtx.normalization": {"axis", "x"},
    "gradtx.diagnostics": {"key", "loss_fn", "mask", "tx"},
}


def public(room):
    """The functions and classes that a package exports, each once."""
    module = importlib.import_module(room)
    exported = [(name, getattr(module, name)) for name in module.__all__]
    own = {
        id(value): (name, value)
        for name, value in reversed(exported)
        if callable(value) and getattr(value, "__module__", "").startswith("gradtx")
    }
    return sorted(own.values(), key=lambda item: item[0])


def entries(function):
    """The texts of a docstring's arguments, by name."""
    _, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest)[0]
    found = re.findall(r"^    (\*{0,2}\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def first_sentence(text):
    return text.split(". ")[0].removesuffix(".").removesuffix(KINDS_OF_NUMBERS)


def complaints(name, function, table):
    """What a docstring says about its arguments that the table does not allow."""
    return [
        f"{name}: {argument} is described as {first_sentence(text)!r}, and must be one of "
        f"{list(table[argument])}"
        for argument, text in entries(function).items()
        if argument in table and first_sentence(text) not in table[argument]
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_the_same_argument_has_the_same_text(room):
    wrong = [line for name, value in public(room) for line in complaints(name, value, TEXTS[room])]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_has_all_common_arguments(room):
    count = Counter(argument for _, value in public(room) for argument in entries(value))
    common = {argument for argument, number in count.items() if number >= SEVERAL}
    missing = common - TEXTS[room].keys() - DIFFERENT[room]
    assert not missing, f"{room}: say in TEXTS what {sorted(missing)} mean"


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_has_nothing_else(room):
    texts = {
        (argument, first_sentence(text))
        for _, value in public(room)
        for argument, text in entries(value).items()
    }
    listed = {(argument, text) for argument, allowed in TEXTS[room].items() for text in allowed}
    assert listed <= texts
    assert DIFFERENT[room] <= {argument for argument, _ in texts}


def test_a_complaint_says_what_is_wrong():
    def scale_by_something(eps):
        """Scale.

        Args:
            eps: added outside the root,
                >= 0; a number, a scalar array or a schedule. The paper has 0.
        """

    assert complaints("scale_by_something", scale_by_something, {"eps": ("a", "b")}) == [
        "scale_by_something: eps is described as 'added outside the root, >= 0', and must be one "
        "of ['a', 'b']"
    ]
