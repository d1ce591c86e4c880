"""Parameters of zero, gradients of zero, and both: every step and every state is finite.

Quotients of norms and moments are 0 / 0 there. Without compilation the operations of one factory
serve all others, so that hundreds of settings take seconds.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx

from .exports.export import OWNED_BY_OPTAX, Export, bowl
from .exports.matrix import MATRICES
from .test_exports import EXPORTS

WEIGHTS = {
    jnp.dtype(dtype).name: jnp.array([[0.5, -1.0], [2.0, 0.0]], dtype)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
}
VECTOR = {"vector": jnp.array([1.0, -2.0], jnp.float16)}
SITUATIONS = {"parameters": (0, 1), "gradients": (1, 0), "both": (0, 0)}

# What keeps a denominator away from zero, taken away.
NO_EPSILONS = dict.fromkeys(("eps", "eps_root", "epsilon", "initial_accumulator_value"), 0.0)
# Whatever brings in parameters, further averages or further divisions.
EVERYTHING = {
    "momentum": 0.5,
    "nesterov": True,
    "centered": True,
    "bias_correction": True,
    "weight_decay": 0.1,
    "weight_decay_rate": 0.1,
    "consistent_rms": 0.2,
    "adapt_lower_bound": True,
    "safeguard_warmup": True,
    "min_dim_size_to_factor": 1,
    "min_norm": 0.0,
    "trust_coefficient": 0.5,
}
WRAPPERS = {
    "MultiSteps": lambda: gradtx.MultiSteps(gradtx.adamw(0.1), 2).gradient_transformation(),
    "mechanize-no_decay": lambda: gradtx.mechanize(gradtx.sgd(0.1), 0.0),
    "mechanize-clipped": lambda: gradtx.mechanize(gradtx.lion(0.1), clip_rewards=True),
    "graft-nothing": lambda: gradtx.graft(gradtx.set_to_zero(), gradtx.scale_by_trust_ratio()),
    "shampoo-identity": lambda: gradtx.shampoo(0.1, b2=0.9, grafting=gradtx.identity()),
    "lars-in_sam": lambda: gradtx.sam(gradtx.lars(0.1), gradtx.fromage(0.1)),
    "reduce_on_plateau-lamb": lambda: gradtx.chain(gradtx.lamb(0.1), gradtx.reduce_on_plateau()),
    "cautious-muon": lambda: gradtx.cautious(gradtx.muon(0.1)),
    "centralize-clip": lambda: gradtx.chain(gradtx.centralize(), gradtx.adaptive_grad_clip(0.1)),
}


def in_other_settings(name, export):
    """The factory of this name without epsilons, and with all that it offers."""
    factory = getattr(gradtx, name)
    arguments = inspect.signature(factory).parameters
    required = {a.name for a in arguments.values() if a.default is a.empty}
    if not required <= {"learning_rate"}:
        return
    for label, values in (("no_epsilons", NO_EPSILONS), ("everything", EVERYTHING)):
        chosen = {key: value for key, value in values.items() if key in arguments}
        if chosen and not (name == "dowg" and "eps" in chosen):
            given = dict.fromkeys(required, 0.1) | chosen
            yield f"{name}-{label}", export._replace(make=functools.partial(factory, **given))


OURS = {name: export for name, export in EXPORTS.items() if export.skip is not OWNED_BY_OPTAX}
# The pieces are in the named optimizers' settings.
NAMED = [name for name in OURS if "-" not in name and not name.startswith("scale_by")]
SETTINGS = {
    **OURS,
    **{key: value for name in NAMED for key, value in in_other_settings(name, OURS[name])},
    **{name: Export(make) for name, make in WRAPPERS.items()},
}


@pytest.mark.filterwarnings("ignore:.optimistic_adam. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_steps_and_states_are_finite(name):
    check_zeros(SETTINGS[name])


def test_the_sweep_finds_a_quotient_of_zeros():
    def quotient(g, p):
        return g / jnp.sum(g)

    with pytest.raises(AssertionError, match=r"gradients of zero, step 0: .*float16.* is \[.*nan"):
        check_zeros(Export(lambda: gradtx.stateless_with_tree_map(quotient)))


def check_zeros(export):
    weights = WEIGHTS if export.params is MATRICES else WEIGHTS | VECTOR
    with jax.disable_jit():
        for what, (size, slope) in SITUATIONS.items():
            params = jax.tree.map(lambda p, size=size: p * p.dtype.type(size), weights)
            gradients = jax.tree.map(lambda p, slope=slope: jnp.full_like(p, slope), weights)
            tx = export.make()
            state = tx.init(params)
            extra = {"value": bowl(params)}
            extra |= export.extra_args(params) if export.extra_args else {}
            for step in range(2):
                updates, state = tx.update(gradients, state, params, **extra)
                for path, leaf in jax.tree_util.tree_leaves_with_path((updates, state)):
                    check_finite(f"{what} of zero, step {step}", path, leaf)


def check_finite(what, path, leaf):
    place = jax.tree_util.keystr(path)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        numbers = np.asarray(leaf, np.float64)
        # `with_metrics` says that a step is infinitely long beside parameters of zero.
        is_right = ~np.isnan(numbers) if "update_ratio" in place else np.isfinite(numbers)
        assert np.all(is_right), f"{what}: {place} is {leaf}"
