"""Checks of normalizations: each fault is found by the clause that is made for it, and by no other.

Healthy ones are those of gradtx and of flax.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from gradtx import normalization
from gradtx.testing import ConformanceError, check_normalization


def wide(x):
    return x.astype(jnp.float32 if x.dtype.itemsize < 4 else x.dtype)


def standardized(x, axis=-1, center=True):
    y = wide(x)
    centered = y - jnp.mean(y, axis, keepdims=True) if center else y
    square = jnp.mean(centered**2, axis, keepdims=True)
    return (centered * jax.lax.rsqrt(square + jnp.asarray(1e-5, y.dtype))).astype(x.dtype)


def group_norm(x):
    """With one axis of groups and one of their members."""
    flat = x.reshape(x.shape[0], -1)
    return normalization.group_norm(flat, groups=x.shape[1]).reshape(x.shape)


def of_flax(module, **options):
    options |= {"use_bias": False, "use_scale": False, "use_fast_variance": False}
    return lambda x: module(dtype=x.dtype, **options).apply({}, x)


HEALTHY = {
    "layer_norm": (normalization.layer_norm, {}),
    "layer_norm_of_two_axes": (
        lambda x: normalization.layer_norm(x, axis=(1, 2)),
        {"shape": (2, 3, 4), "axes": (-1, 1)},
    ),
    "rms_norm": (normalization.rms_norm, {"centers": False}),
    "instance_norm": (normalization.instance_norm, {"shape": (2, 5, 3), "axes": 1}),
    "group_norm": (group_norm, {"shape": (2, 3, 5)}),
    "one_group": (
        lambda x: normalization.group_norm(x, groups=1),
        {"shape": (2, 5, 3), "axes": (1, 2)},
    ),
    "whiten": (normalization.whiten, {"shape": (16, 3), "axes": 0, "skip": ["equation"]}),
    "layer_norm_of_flax": (of_flax(nn.LayerNorm), {}),
    "group_norm_of_flax": (
        of_flax(nn.GroupNorm, num_groups=1),
        {"shape": (2, 5, 3), "axes": (1, 2)},
    ),
    "instance_norm_of_flax": (of_flax(nn.InstanceNorm), {"shape": (2, 5, 3), "axes": 1}),
    "rms_norm_of_flax": (
        lambda x: nn.RMSNorm(dtype=x.dtype, use_scale=False).apply({}, x),
        {"centers": False},
    ),
}


@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("name", HEALTHY)
def test_normalizations_of_gradtx_and_flax_pass(name):
    function, arguments = HEALTHY[name]
    check_normalization(function, **arguments)


@pytest.fixture
def usual_promotion():
    """Let dtypes and ranks be promoted, as flax's modules need it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


OTHER_EQUATIONS = {
    "one_axis_of_two": (standardized, {"shape": (3, 4, 6), "axes": (1, 2)}, "axes=(1, 2)"),
    "another_sign": (lambda x: -standardized(x), {}, "axes=1"),
    "another_order": (lambda x: standardized(x)[..., ::-1], {}, "axes=1"),
    "results_of_other_rows": (lambda x: jnp.roll(standardized(x), 1, 0), {}, "axes=1"),
    "groups": (
        lambda x: standardized(x.reshape(4, 2, 6)).reshape(4, 12),
        {"shape": (4, 12)},
        "axes=1",
    ),
    "batch_statistics_as_well": (
        lambda x: standardized(standardized(wide(x), 0)).astype(x.dtype),
        {},
        "axes=1",
    ),
    "absolute_values": (
        lambda x: standardized(jnp.abs(x), center=False),
        {"centers": False},
        "axes=1",
    ),
}


@pytest.mark.parametrize("name", OTHER_EQUATIONS)
def test_another_equation_is_found_by_its_clause_alone(name):
    function, arguments, over = OTHER_EQUATIONS[name]
    with pytest.raises(ConformanceError) as caught:
        check_normalization(function, **arguments)
    assert list(caught.value.failures) == ["equation"]
    law = "(x - mean(x)) / sqrt(var(x) + eps)" if name != "absolute_values" else "x / sqrt(mean(x²)"
    assert str(caught.value).startswith(f"equation: expected {law}")
    assert f"over {over} to be" in str(caught.value)
    assert "over all of `axes` and over nothing else" in str(caught.value)
    check_normalization(function, **arguments, skip=["equation"])


def test_another_mean_is_reported_once():
    with pytest.raises(ConformanceError) as caught:
        check_normalization(lambda x: standardized(x, 0))
    assert caught.value.causes == {"statistics": ("equation",)}


def early(x, *, mean, scale):
    """With the mean or the scale rounded to the dtype of x before it is used."""
    y = wide(x)
    middle = jnp.mean(y, -1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.var(y, -1, keepdims=True) + jnp.asarray(1e-5, y.dtype))
    middle = wide(middle.astype(x.dtype)) if mean else middle
    return ((y - middle) * (wide(factor.astype(x.dtype)) if scale else factor)).astype(x.dtype)


@pytest.mark.parametrize(("mean", "scale"), [(True, True), (True, False), (False, True)])
def test_statistics_that_are_rounded_before_they_are_used_are_found(mean, scale):
    with pytest.raises(ConformanceError) as caught:
        check_normalization(lambda x: early(x, mean=mean, scale=scale))
    assert list(caught.value.failures) == ["half_precision"]
    says = "half_precision: expected the result in bfloat16 to be"
    assert str(caught.value).startswith(says)
    assert "round once at the end" in str(caught.value)
    check_normalization(lambda x: early(x, mean=False, scale=False), clauses=["half_precision"])


def test_float64_that_is_computed_in_float32_is_found():
    with pytest.raises(ConformanceError) as caught:
        check_normalization(lambda x: standardized(x.astype(jnp.float32)).astype(x.dtype))
    assert list(caught.value.failures) == ["gradients"]
    says = "gradients: expected results with the digits of float64, got numbers that jump"
    assert str(caught.value).startswith(says)
    assert "no cast to float32" in str(caught.value)


def masked(x, mask, least=1):
    y = wide(x)
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True), least).astype(y.dtype)
    mean = jnp.sum(jnp.where(mask, y, 0), -1, keepdims=True) / count
    centered = jnp.where(mask, y - mean, 0)
    variance = jnp.sum(centered**2, -1, keepdims=True) / count
    return (centered * jax.lax.rsqrt(variance + jnp.asarray(1e-5, y.dtype))).astype(x.dtype)


def test_a_mask_may_be_demanded():
    check_normalization(masked, mask="mask")
    with pytest.raises(ConformanceError, match=r"^mask: expected the result beside masked"):
        check_normalization(lambda x, mask: standardized(x), mask="mask", clauses=["calls", "mask"])


def test_another_argument_has_to_be_bound():
    with pytest.raises(ConformanceError) as caught:
        check_normalization(lambda x, scale: scale * standardized(x))
    assert "a demand for the argument 'scale'" in str(caught.value)
    assert "bind every other argument" in str(caught.value)
    assert "extra_args" not in str(caught.value)


def replaced(x, mask):
    """With zeros in place of what is NaN, though not in its gradient."""
    y = wide(x)
    count = jnp.sum(mask, -1, keepdims=True).astype(y.dtype)
    centered = y - jnp.sum(jnp.where(mask, y, 0), -1, keepdims=True) / count
    variance = jnp.sum(jnp.where(mask, centered**2, 0), -1, keepdims=True) / count
    scale = jax.lax.rsqrt(variance + jnp.asarray(1e-5, y.dtype))
    return jnp.where(count > 0, centered * scale, 0).astype(x.dtype)


PADDED = {"results": lambda x, mask: masked(x, mask, least=0), "gradients": replaced}


@pytest.mark.parametrize("what", PADDED)
def test_a_row_without_elements_that_count_is_found_by_its_clause_alone(what):
    with pytest.raises(ConformanceError) as caught:
        check_normalization(PADDED[what], mask="mask")
    assert list(caught.value.failures) == ["padding"]
    says = f"padding: expected {what} where all elements are masked that are finite, got nan"
    assert str(caught.value).startswith(says)
    assert "jnp.maximum(count, 1)" in str(caught.value)
