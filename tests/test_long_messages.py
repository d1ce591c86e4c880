"""Messages are short whatever is passed as an argument, even a tree of 400 leaves."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx
from gradtx import diagnostics, inspection, testing, training

LAYERS = 200
KERNEL, BIAS = np.ones((2, 2), np.float32), np.ones(2, np.float32)
LARGE = {"layers": [{"kernel": KERNEL, "bias": BIAS} for _ in range(LAYERS)]}
PATHS = [f"layers/{i}/{name}" for i in range(LAYERS) for name in ("bias", "kernel")]
IN_PLACE = {"arrays": LARGE, "numbers": jax.tree.map(lambda x: 1, LARGE), "names": PATHS}

SMALL = {"w": jnp.ones((2, 2))}
SGD = gradtx.sgd(0.1)


def loss(params, *_):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def half(*_):
    return 0.5


# What the arguments without defaults are, if they are neither numbers nor trees.
GIVEN = {
    **dict.fromkeys(("tx", "inner", "opt", "optimizer", "fast_optimizer", "adv_optimizer"), SGD),
    **dict.fromkeys(("base_optimizer", "new_tx", "magnitude", "direction", "reference"), SGD),
    **dict.fromkeys(("params", "updates", "grads", "start", "end", "state"), SMALL),
    **dict.fromkeys(("loss_fn", "value_fn", "fun"), loss),
    **dict.fromkeys(("step_size_fn", "schedule_fn", "should_transform_fn", "f", "fn"), half),
    **dict.fromkeys(("factory", "inner_factory"), gradtx.sgd),
    **dict.fromkeys(("steps", "order", "count", "sync_period", "every_k_schedule", "window"), 2),
    **dict.fromkeys(("max_consecutive_errors", "batch_size", "micro_batches", "argnums"), 2),
    **dict.fromkeys(("microbatch_size", "max_linesearch_steps", "max_backtracking_steps"), 2),
    **{name: {"x": jnp.ones((4, 2))} for name in ("data", "batch")},
    **{name: {"w": True} for name in ("mask", "freeze_mask")},
    "transforms": {"a": SGD},
    "param_labels": {"w": "a"},
    "measures": {"norm": gradtx.global_norm},
    "measure": gradtx.global_norm,
    "measure_name": "norm",
    "specification": "w",
    "factors": {"w": 0.5},
    "key": jax.random.key(0),
    "seed": 0,
}
# Arguments that are trees by themselves; what is wrong about trees is in the tests below.
TREES = {
    *("params", "updates", "grads", "state", "data", "batch", "batches", "start", "end", "tree"),
    *("moment", "moments", "new_tensors", "old_tensors", "x", "grad", "args", "extra_args"),
    *("history", "kwargs", "schedules", "cosine_kwargs", "boundaries_and_scales", "boundaries"),
}
FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (gradtx, diagnostics, inspection, testing, training)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or name in ("MultiSteps", "select")
    if getattr(module, name).__module__.startswith("gradtx")
}


def check_short(error):
    text = str(error)
    is_short = len(text) <= 1_500 and text.count("\n") < 10
    assert is_short, f"{len(text)} characters in {text.count(chr(10)) + 1} lines: {text[:300]}"


def error_of(function, *arguments, **keywords):
    """The error of a call, or of the use of its result; None if there is none."""
    try:
        tx = function(*arguments, **keywords)
        if hasattr(tx, "init"):
            tx.init(SMALL)
    except Exception as error:
        return error


def errors_of(function):
    """The errors for what is too large in place of each argument of a function."""
    arguments = inspect.signature(function).parameters.values()
    required = [a for a in arguments if a.default is a.empty and a.kind is not a.VAR_POSITIONAL]
    given = {a.name: GIVEN.get(a.name, 0.5) for a in required}
    for argument in arguments:
        if argument.name in TREES or argument.kind is argument.VAR_KEYWORD:
            continue
        for wrong in IN_PLACE.values():
            if argument.kind is argument.VAR_POSITIONAL:
                yield error_of(function, wrong)
            else:
                yield error_of(function, **given | {argument.name: wrong})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_of_any_size_are_refused_in_short(name):
    for error in errors_of(FUNCTIONS[name]):
        if error is not None:
            check_short(error)


def test_arguments_are_refused_at_all():
    errors = [
        error for name in ("adam", "muon", "chain") for error in errors_of(vars(gradtx)[name])
    ]
    assert sum(isinstance(error, ValueError) for error in errors) >= 70


FLAGS = jax.tree.map(lambda leaf: leaf.ndim > 1, LARGE)
LABELS = jax.tree.map(lambda flag: "a" if flag else "b", FLAGS)
# The same tree without its last bias, and with tuples in place of dictionaries.
SHORTER = {"layers": [*LARGE["layers"][:-1], {"kernel": KERNEL}]}
TUPLES = {"layers": [tuple(layer.values()) for layer in LARGE["layers"]]}
OTHER_LIST = {"layers": tuple(LARGE["layers"])}
ADAM = gradtx.adam(0.1)
MANY = dict.fromkeys(PATHS, SGD)
select = gradtx.select


def updated(tx, updates=LARGE, state=None, params=LARGE, init=SMALL):
    """An update, to be compared with what init or the arguments do not have."""
    return lambda: tx.update(updates, tx.init(init) if state is None else state, params)


def broken():
    return gradtx.stateless(lambda updates, params: SHORTER)


SITUATIONS = {
    "pattern": lambda: select("layer/kernal")(LARGE),
    "pattern_of_freeze": lambda: gradtx.freeze(select("decoder")).init(LARGE),
    "in_no_group": lambda: select.groups({"a": "kernel"})(LARGE),
    "in_two_groups": lambda: select.groups({"a": "kernel", "b": "layers"})(LARGE),
    "mask_for_select": lambda: select(FLAGS)(SHORTER),
    "selection_of_nothing": lambda: diagnostics.prune_by_magnitude(
        LARGE, 0.5, select=~select(dict.fromkeys(LARGE, True))
    ),
    "two_masks": lambda: gradtx.adamw(0.1, decay="matrices", mask=FLAGS),
    "mask_of_freeze": lambda: gradtx.freeze(FLAGS).init(SHORTER),
    "mask_of_adamw": lambda: gradtx.adamw(0.1, mask=FLAGS).init(SHORTER),
    "mask_of_masked": lambda: gradtx.masked(ADAM, FLAGS).init(TUPLES),
    "mask_of_arrays": lambda: gradtx.masked(ADAM, LARGE).init(LARGE),
    "labels": lambda: gradtx.partition({"a": SGD, "b": SGD}, LABELS).init(SHORTER),
    "labels_without_transformation": lambda: gradtx.partition({"c": SGD}, LABELS).init(LARGE),
    "many_labels": lambda: gradtx.partition(MANY, jax.tree.map(lambda flag: f"{flag}", FLAGS)).init(
        LARGE
    ),
    "many_unknown_labels": lambda: gradtx.partition(
        MANY, {path: f"{path}!" for path in PATHS}
    ).init(dict.fromkeys(PATHS, BIAS)),
    "multipliers": lambda: gradtx.multiply_learning_rate(dict.fromkeys(PATHS, 0.5)).init(SMALL),
    "dimension_numbers": lambda: gradtx.muon(
        0.1, muon_weight_dimension_numbers=jax.tree.map(lambda _: None, FLAGS)
    ).init(SHORTER),
    "other_parameters": updated(ADAM),
    "missing_gradient": updated(ADAM, SHORTER, params=None, init=LARGE),
    "tuples": updated(ADAM, TUPLES, params=None, init=LARGE),
    "other_list": updated(ADAM, OTHER_LIST, params=None, init=LARGE),
    "params_of_other_list": updated(gradtx.adamw(0.1), params=OTHER_LIST, init=LARGE),
    "state_of_another": updated(ADAM, state=LARGE),
    "state_of_another_chain": updated(gradtx.chain(ADAM, SGD, SGD), state=ADAM.init(SMALL)),
    "state_of_chain": updated(gradtx.chain(ADAM, ADAM), state=[LARGE, LARGE]),
    "named_chain": updated(gradtx.named_chain(*MANY.items()), state=dict.fromkeys(PATHS[1:], ())),
    "names_of_named_chain": lambda: gradtx.named_chain(*[*MANY.items(), (PATHS[0], SGD)]),
    "names_of_hyperparameters": updated(
        gradtx.inject_hyperparams(gradtx.sgd)(0.1),
        state=gradtx.inject_hyperparams(gradtx.sgd)(0.1)
        .init(SMALL)
        ._replace(hyperparams=dict.fromkeys(PATHS, 1.0)),
    ),
    "static_args": lambda: gradtx.inject_hyperparams(gradtx.sgd, static_args=PATHS),
    "names_of_measures": updated(
        diagnostics.record_history(dict.fromkeys(PATHS, gradtx.global_norm), 4),
        state=diagnostics.record_history({"norm": gradtx.global_norm}, 4).init(SMALL),
    ),
    "shapes": lambda: diagnostics.gradient_noise_scale(loss, SMALL, LARGE | {"x": 1.0}),
    "lengths": lambda: diagnostics.connecting_path(
        loss, SMALL, SMALL, key=jax.random.key(0), steps=2, batches=LARGE | {"x": KERNEL[:1]}
    ),
    "batches": lambda: training.minibatches(jax.random.key(0), LARGE | {"x": KERNEL[:1]}, 1),
    "examples": lambda: gradtx.per_example_layer_norm_clip(LARGE | {"x": np.ones(3)}, 1.0),
    "apply_updates": lambda: gradtx.apply_updates(LARGE, SHORTER),
    "eval_params": lambda: gradtx.eval_params(LARGE, ADAM.init(SMALL)),
    "averaged_params": lambda: gradtx.averaged_params(LARGE),
    "kit": lambda: testing.check_transformation(broken(), LARGE, clauses=["updates"]),
    "kit_of_names": lambda: testing.check_transformation(SGD, SMALL, clauses=PATHS),
    "migrated_transformation": lambda: gradtx.migrate(ADAM.init(LARGE), LARGE, LARGE),
    "explained": lambda: gradtx.explain(gradtx.freeze(FLAGS), SHORTER),
    "report": lambda: diagnostics.signal_report(loss, jax.tree.map(lambda _: 1, FLAGS)),
    "history": lambda: diagnostics.plot_history({"step": LARGE}),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_does_not_fit_a_large_tree_is_refused_in_short(name):
    error = error_of(SITUATIONS[name])
    assert isinstance(error, ValueError | AssertionError), repr(error)[:300]
    assert re.match(r"[a-z_.]+: ", str(error)), repr(error)[:300]
    check_short(error)


PATHS_NAMED = {
    "mask_of_freeze": "freeze: mask and the tree differ at 'layers/199/bias'",
    "labels": "partition: param_labels and the tree differ at 'layers/199/bias'",
    "missing_gradient": "differ at 'layers/199/bias'",
    "other_list": "in different containers at 'layers': tuple in updates, list in the state's mu",
    "pattern": "and 390 more; did you mean 'kernel'?",
    "shapes": "got the shapes {'layers/0/bias': (2,), 'x': ()}",
    "static_args": "and 390 more; they are ['learning_rate', ",
    "names_of_named_chain": "must be unique, got ['layers/0/bias'] twice",
    "kit": "at 'layers/199/bias': expected the updates to have float32[2], got no leaf there",
}


@pytest.mark.parametrize("name", PATHS_NAMED)
def test_short_messages_say_where_it_is_wrong(name):
    assert PATHS_NAMED[name] in str(error_of(SITUATIONS[name]))


def test_reports_on_large_trees_are_short():
    explanation = gradtx.explain(gradtx.adamw(0.1, decay="matrices"), LARGE)
    assert len(explanation.rows) == 2 * LAYERS
    _, report = gradtx.migrate(SGD.init(LARGE), ADAM, LARGE)
    assert len(report.fresh) == 4 * LAYERS + 1
    for text in (str(explanation), repr(explanation), str(report), repr(report)):
        assert len(text) <= 1_500
        assert text.count("\n") < 10
