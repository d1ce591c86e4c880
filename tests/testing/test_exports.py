"""Everything that gradtx exports and that makes or wraps a transformation keeps the contract."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.testing import ConformanceError, check_transformation, clauses


class Export(NamedTuple):
    """How to make a transformation, and what its update needs.

    Attributes:
        make: makes the transformation.
        extra_args: the extra arguments of its update as a function of the parameters.
        params: the parameters, None for those of the kit.
        skip: the clauses that it does not keep, each with the reason.
    """

    make: Callable[[], Any]
    extra_args: Callable[[Any], Mapping[str, Any]] | None = None
    params: Any = None
    skip: Mapping[str, str] = {}


def bowl(params) -> jax.Array:
    """A strictly convex loss of any tree."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if is_number(leaf)]
    return sum((jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves), jnp.float32(0)) / 2


def is_number(leaf) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.inexact)


def with_loss(params) -> dict[str, Any]:
    return {"value_fn": bowl}


def with_value(params) -> dict[str, Any]:
    return {"value_fn": bowl, "value": bowl(params), "grad": jax.tree.map(jnp.copy, params)}


def halved(count) -> jax.Array:
    return 0.1 / (1 + count)


matrices = gradtx.select(lambda path, leaf: np.ndim(leaf) > 1)
groups = gradtx.select.groups({"matrices": matrices}, rest="others")

# A Hessian of few elements, because it takes long to compile.
SMALL = {"weight": jnp.linspace(1, 2, 8, dtype=jnp.float32), "scale": jnp.bfloat16(1.5)}
FLOAT32 = {**SMALL, "scale": jnp.float32(1.5)}

ZEROES_INTEGERS = {"non_parameters": "the update of an integer is zero, which leaves it alone"}
OWNED_BY_OPTAX = dict.fromkeys(
    set(clauses()) - {"purity", "updates", "masked_leaves", "eval_shape"},
    "optax's own code, exported as it is",
)

EXPORTS: dict[str, Export] = {
    "adabelief": Export(lambda: gradtx.adabelief(0.1)),
    "adadelta": Export(lambda: gradtx.adadelta(1.0, weight_decay=0.1)),
    "adagrad": Export(lambda: gradtx.adagrad(0.1)),
    "adam": Export(lambda: gradtx.adam(0.1)),
    "adam-nesterov": Export(lambda: gradtx.adam(0.1, nesterov=True)),
    "adam-schedules": Export(lambda: gradtx.adam(halved, b2=lambda count: 1 - 0.1 / (1 + count))),
    "adam-arrays": Export(lambda: gradtx.adam(jnp.float32(0.1), b1=jnp.float32(0.9))),
    "adam-bfloat16": Export(lambda: gradtx.adam(0.1, mu_dtype=jnp.bfloat16)),
    "adamax": Export(lambda: gradtx.adamax(0.1)),
    "adamaxw": Export(lambda: gradtx.adamaxw(0.1)),
    "adamw": Export(lambda: gradtx.adamw(0.1)),
    "adamw-mask": Export(lambda: gradtx.adamw(0.1, mask=matrices)),
    "adaptive_grad_clip": Export(lambda: gradtx.adaptive_grad_clip(0.1)),
    "add_decayed_weights": Export(lambda: gradtx.add_decayed_weights(0.1)),
    "add_decayed_weights-schedule": Export(lambda: gradtx.add_decayed_weights(halved)),
    "add_noise": Export(lambda: gradtx.add_noise(0.1, 0.55, jax.random.key(0))),
    "amsgrad": Export(lambda: gradtx.amsgrad(0.1)),
    "average_params": Export(
        lambda: gradtx.average_params(gradtx.sgd(0.1), 0.9),
        skip={"none_leaves": "the average of a parameter that stays moves towards it"},
    ),
    "centralize": Export(gradtx.centralize),
    "chain": Export(lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(0.1))),
    "clip": Export(lambda: gradtx.clip(0.5)),
    "clip_by_block_rms": Export(lambda: gradtx.clip_by_block_rms(0.5)),
    "clip_by_global_norm": Export(lambda: gradtx.clip_by_global_norm(1.0)),
    "conditionally_mask": Export(
        lambda: gradtx.conditionally_mask(gradtx.adam(0.1), lambda step: step > 0),
        skip=ZEROES_INTEGERS,
    ),
    "conditionally_transform": Export(
        lambda: gradtx.conditionally_transform(gradtx.adam(0.1), lambda step: step > 0)
    ),
    "ema": Export(lambda: gradtx.ema(0.9)),
    "freeze": Export(lambda: gradtx.freeze(matrices)),
    "identity": Export(gradtx.identity),
    "lion": Export(lambda: gradtx.lion(0.1)),
    "masked": Export(lambda: gradtx.masked(gradtx.adam(0.1), matrices)),
    "multi_transform": Export(
        lambda: gradtx.multi_transform(
            {"matrices": gradtx.adam(0.1), "others": gradtx.sgd(0.1, momentum=0.9)}, groups
        )
    ),
    "nadam": Export(lambda: gradtx.nadam(0.1)),
    "nadamw": Export(lambda: gradtx.nadamw(0.1)),
    "named_chain": Export(
        lambda: gradtx.named_chain(("clip", gradtx.clip(0.5)), ("adam", gradtx.adam(0.1)))
    ),
    "newton": Export(gradtx.newton, with_loss, SMALL),
    "normalize_by_update_norm": Export(gradtx.normalize_by_update_norm),
    "partition": Export(
        lambda: gradtx.partition(
            {"matrices": gradtx.lion(0.1), "others": gradtx.set_to_zero()}, groups
        ),
        skip=ZEROES_INTEGERS,
    ),
    "radam": Export(lambda: gradtx.radam(0.1)),
    "rmsprop": Export(lambda: gradtx.rmsprop(0.1)),
    "rmsprop-centered": Export(lambda: gradtx.rmsprop(0.1, centered=True, momentum=0.9)),
    "rprop": Export(lambda: gradtx.rprop(0.1)),
    "scale": Export(lambda: gradtx.scale(-0.5)),
    "scale_by_adadelta": Export(gradtx.scale_by_adadelta),
    "scale_by_adam": Export(gradtx.scale_by_adam),
    "scale_by_adamax": Export(gradtx.scale_by_adamax),
    "scale_by_amsgrad": Export(gradtx.scale_by_amsgrad),
    "scale_by_belief": Export(gradtx.scale_by_belief),
    "scale_by_learning_rate": Export(lambda: gradtx.scale_by_learning_rate(0.1)),
    "scale_by_lion": Export(gradtx.scale_by_lion),
    "scale_by_newton": Export(
        lambda: gradtx.scale_by_newton(solver="cg", damping=0.1), with_loss, SMALL
    ),
    "scale_by_radam": Export(gradtx.scale_by_radam),
    "scale_by_rms": Export(lambda: gradtx.scale_by_rms(bias_correction=True)),
    "scale_by_rprop": Export(lambda: gradtx.scale_by_rprop(0.1)),
    "scale_by_rss": Export(gradtx.scale_by_rss),
    "scale_by_schedule": Export(lambda: gradtx.scale_by_schedule(halved)),
    "scale_by_sign": Export(gradtx.scale_by_sign),
    "scale_by_stddev": Export(gradtx.scale_by_stddev),
    # The corrected variance of the first step is zero but for rounding, which eps must cover.
    "scale_by_stddev-debiased": Export(
        lambda: gradtx.scale_by_stddev(eps=0.1, bias_correction=True)
    ),
    "scale_by_yogi": Export(gradtx.scale_by_yogi),
    "selective_transform": Export(
        lambda: gradtx.selective_transform(gradtx.adam(0.1), freeze_mask=matrices)
    ),
    "set_to_zero": Export(gradtx.set_to_zero, skip=ZEROES_INTEGERS),
    "sgd": Export(lambda: gradtx.sgd(0.1)),
    "sgd-momentum": Export(lambda: gradtx.sgd(0.1, momentum=0.9, nesterov=True)),
    "sign_sgd": Export(lambda: gradtx.sign_sgd(0.1)),
    "signum": Export(lambda: gradtx.signum(0.1)),
    "simple_moving_average": Export(lambda: gradtx.simple_moving_average(3)),
    "stateless": Export(lambda: gradtx.stateless(lambda updates, params: updates)),
    "stateless_with_tree_map": Export(
        lambda: gradtx.stateless_with_tree_map(lambda g, p: 2 * g if is_number(g) else g)
    ),
    "trace": Export(lambda: gradtx.trace(0.9)),
    "with_extra_args_support": Export(
        lambda: gradtx.with_extra_args_support(optax.GradientTransformation(*gradtx.adam(0.1)))
    ),
    "yogi": Export(lambda: gradtx.yogi(0.1)),
    "zero_nans": Export(gradtx.zero_nans),
    "lbfgs": Export(gradtx.lbfgs, with_value, FLOAT32, OWNED_BY_OPTAX),
    "scale_by_backtracking_linesearch": Export(
        lambda: gradtx.scale_by_backtracking_linesearch(5), with_value, FLOAT32, OWNED_BY_OPTAX
    ),
    "scale_by_lbfgs": Export(gradtx.scale_by_lbfgs, None, FLOAT32, OWNED_BY_OPTAX),
    "scale_by_zoom_linesearch": Export(
        lambda: gradtx.scale_by_zoom_linesearch(5), with_value, FLOAT32, OWNED_BY_OPTAX
    ),
}

SCALES_EVERYTHING = {"non_parameters": "optax multiplies whatever it is given"}
OPTAX: dict[str, Export] = {
    "optax_chain-of_ours": Export(
        lambda: optax.chain(gradtx.clip(1.0), gradtx.adam(0.1), optax.identity())
    ),
    "optax_identity": Export(lambda: optax.with_extra_args_support(optax.identity())),
    "optax_sgd": Export(lambda: optax.sgd(0.1), skip=SCALES_EVERYTHING),
    "optax_sign_sgd": Export(lambda: optax.sign_sgd(0.1), skip=SCALES_EVERYTHING),
    "optax_apply_if_finite": Export(
        lambda: optax.apply_if_finite(optax.sgd(0.1), 3), skip=SCALES_EVERYTHING
    ),
    "optax_masked-ours": Export(
        lambda: optax.masked(gradtx.adam(0.1), matrices),
        skip={"none_leaves": "optax's mask does not fit a gradient that is None"},
    ),
}


def makes_a_transformation(exported: Any) -> bool:
    """Whether a function says that it returns a transformation."""
    if not inspect.isroutine(exported):
        return False
    returned = inspect.signature(exported).return_annotation
    name = returned if isinstance(returned, str) else getattr(returned, "__name__", "")
    return "GradientTransformation" in name


def test_every_exported_factory_is_in_the_table():
    factories = {n for n in gradtx.__all__ if makes_a_transformation(getattr(gradtx, n))}
    assert len(factories) > 50
    assert {name.split("-")[0] for name in EXPORTS} == factories


@pytest.mark.parametrize("name", [*EXPORTS, *OPTAX])
def test_contract(name):
    export = {**EXPORTS, **OPTAX}[name]
    check_transformation(
        export.make(), export.params, extra_args=export.extra_args, skip=export.skip
    )


@pytest.mark.parametrize("name", OPTAX)
def test_what_is_skipped_is_a_defect_that_the_kit_finds(name):
    export = OPTAX[name]
    for clause in export.skip:
        with pytest.raises(ConformanceError, match=clause):
            check_transformation(export.make(), clauses=[clause])
