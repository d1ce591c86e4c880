"""Every public name of optax is here with the same arguments, or omitted for a reason."""

import inspect

import optax
import optax.contrib
import optax.schedules
import optax.transforms
import optax.tree
import pytest

import gradtx

FLAT = (optax, optax.contrib, optax.transforms, optax.schedules)

LOSS = "a loss: optax has them, and they are no gradient transformations"
ALGEBRA = "linear algebra of its own, which no transformation here needs"
LEFT_TO_OPTAX = {
    "convex_kl_divergence": LOSS,
    "cosine_distance": LOSS,
    "cosine_similarity": LOSS,
    "ctc_loss": LOSS,
    "ctc_loss_with_forward_probs": LOSS,
    "generalized_kl_divergence": LOSS,
    "hinge_loss": LOSS,
    "huber_loss": LOSS,
    "kl_divergence": LOSS,
    "l2_loss": LOSS,
    "log_cosh": LOSS,
    "ntxent": LOSS,
    "safe_softmax_cross_entropy": LOSS,
    "sigmoid_binary_cross_entropy": LOSS,
    "sigmoid_focal_loss": LOSS,
    "smooth_labels": LOSS,
    "softmax_cross_entropy": LOSS,
    "softmax_cross_entropy_with_integer_labels": LOSS,
    "squared_error": LOSS,
    "matrix_inverse_pth_root": ALGEBRA,
    "nnls": ALGEBRA,
    "power_iteration": ALGEBRA,
    "multi_normal": "a probability distribution, for optax's stochastic gradient estimators",
    "scale_gradient": "acts inside of a loss function, not on its gradient",
}
MODULES_LEFT_TO_OPTAX = {
    "assignment": "matching, no optimization by gradients",
    "experimental": "optax promises nothing about it",
    "losses": LOSS,
    "perturbations": "differentiable surrogates for functions, not transformations",
    "projections": "act on parameters, beside any optimizer",
    "second_order": "diagonals of Hessians; here in gradtx.diagnostics",
    "tree_utils": "older names of what `tree` has",
}
NAMESPACES = {
    "contrib": "flat in gradtx",
    "microbatching": "flat in gradtx",
    "transforms": "flat in gradtx",
}


def public(module, *, modules=False):
    """The public names of a module, its submodules or all but these."""
    return {
        name
        for name in dir(module)
        if not name.startswith("_") and inspect.ismodule(getattr(module, name)) is modules
    }


def test_every_name_of_optax_is_here_or_left_for_a_reason():
    names = {name for module in FLAT for name in public(module)}
    assert len(names) > 270
    missing = {name for name in names if not hasattr(gradtx, name)}
    assert sorted(missing - LEFT_TO_OPTAX.keys()) == []
    assert sorted(LEFT_TO_OPTAX.keys() - missing) == [], "listed as left, but here or gone"


def test_every_module_of_optax_is_here_or_left_for_a_reason():
    missing = {name for name in public(optax, modules=True) if not hasattr(gradtx, name)}
    assert missing == {*MODULES_LEFT_TO_OPTAX, *NAMESPACES}


def test_tree_utilities_and_schedules_are_all_of_optax():
    for ours, theirs in ((gradtx.tree, optax.tree), (gradtx.schedules, optax.schedules)):
        assert sorted(public(theirs) - public(ours)) == []


def peer_of(name):
    """What optax calls by the same name; None if there is nothing."""
    # `dir`, because `getattr` of a deprecated name warns.
    return next((getattr(module, name) for module in FLAT if name in dir(module)), None)


def twins():
    """The functions that both libraries have, and ours is not optax's own."""
    for name in gradtx.__all__:
        ours, theirs = getattr(gradtx, name), peer_of(name)
        if theirs is not None and ours is not theirs and inspect.isfunction(ours):
            yield name


@pytest.mark.parametrize("name", sorted(twins()))
def test_arguments_are_those_of_optax_with_ours_after_them(name):
    ours = inspect.signature(getattr(gradtx, name)).parameters
    theirs = dict(inspect.signature(peer_of(name)).parameters)
    if name in ("nadam", "nadamw"):
        del theirs["nesterov"]  # a partial application, in which it is always true
    if name == "global_norm":
        assert next(iter(ours)) == next(iter(theirs))
        return
    # Names, order and defaults; our own arguments come after them, as keywords.
    positional = [p for p in ours.values() if p.kind is not p.KEYWORD_ONLY]
    expected = [p for p in theirs.values() if p.kind is not p.KEYWORD_ONLY]
    assert [p.name for p in positional] == [p.name for p in expected]
    for parameter in theirs.values():
        default = ours[parameter.name].default
        if default is None and parameter.default is not None:
            # What optax demands but never reads, or a default that it builds at import.
            assert parameter.default is parameter.empty or hasattr(parameter.default, "update")
        else:
            is_function = inspect.isfunction(parameter.default)
            assert callable(default) if is_function else default == parameter.default, parameter
        assert ours[parameter.name].kind == parameter.kind, parameter.name
