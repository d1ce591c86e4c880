"""Inputs that nobody gives on purpose: numbers at the ends of their dtype, odd trees, odd leaves.

What is expected is calculated here, in float64 with NumPy or as a closed form.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gradtx

TOLERANCES = {"float32": 1e-6, "complex64": 1e-6, "bfloat16": 8e-3, "float16": 1e-3}
# XLA reads and writes subnormal numbers as zero.
SMALLEST = 1.2e-38


def table(*columns):
    """The ids of all combinations."""
    combinations = [()]
    for column in columns:
        combinations = [(*row, value) for row in combinations for value in column]
    return [pytest.param(*row, id="-".join(map(str, row))) for row in combinations]


def exact(array):
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype == np.complex64 else np.float64)


def updated(tx, gradient, params=None, state=None):
    """The update of an array or a tree, as exact numbers."""
    if state is None:
        state = tx.init(gradient if params is None else params)
    updates, _ = tx.update(gradient, state, params)
    return jax.tree.map(exact, updates)


# Norms: what divides by one, or limits it.


def norm_of(x):
    largest = np.abs(x).max()
    return largest * np.sqrt(np.sum(np.abs(x / largest) ** 2))


def clipped(x, norm, limit):
    return x if norm <= limit else x * (limit / norm)


NORMS = {
    "clip_by_global_norm": (
        lambda: gradtx.clip_by_global_norm(1.0),
        lambda x: clipped(x, norm_of(x), 1.0),
    ),
    "clip_by_a_tiny_norm": (
        lambda: gradtx.clip_by_global_norm(1e-36),
        lambda x: clipped(x, norm_of(x), 1e-36),
    ),
    "clip_by_a_huge_norm": (
        lambda: gradtx.clip_by_global_norm(3e38),
        lambda x: clipped(x, norm_of(x), 3e38),
    ),
    "clip_by_an_array": (
        lambda: gradtx.clip_by_global_norm(jnp.float32(0.5)),
        lambda x: clipped(x, norm_of(x), 0.5),
    ),
    "clip_by_block_rms": (
        lambda: gradtx.clip_by_block_rms(0.25),
        lambda x: clipped(x, norm_of(x) / np.sqrt(x.size), 0.25),
    ),
    "adaptive_grad_clip": (
        lambda: gradtx.adaptive_grad_clip(0.5),
        lambda x: clipped(x, norm_of(x), 0.5 * np.sqrt(x.size)),
    ),
    "normalize": (gradtx.normalize, lambda x: x / norm_of(x)),
    "normalize_by_update_norm": (
        lambda: gradtx.normalize_by_update_norm(3.0, eps=1e-6),
        lambda x: 3 * x / (norm_of(x) + 1e-6),
    ),
    "scale_by_trust_ratio": (
        gradtx.scale_by_trust_ratio,
        lambda x: x * (np.sqrt(x.size) / norm_of(x)),
    ),
    "mars": (
        lambda: gradtx.scale_by_mars(max_norm=1.0),
        lambda x: clipped(x, norm_of(x), 1.0),
    ),
    "per_example": (
        lambda: gradtx.stateless(lambda g, p: gradtx.per_example_global_norm_clip(g[None], 1.0)[0]),
        lambda x: clipped(x, norm_of(x), 1.0),
    ),
    "per_layer": (
        lambda: gradtx.stateless(lambda g, p: gradtx.per_example_layer_norm_clip(g[None], 1.0)[0]),
        lambda x: clipped(x, norm_of(x), 1.0),
    ),
}
DIRECTIONS = {
    few: np.random.default_rng(0).uniform(0.5, 1.0, few) * np.where(np.arange(few) % 3, 1, -1)
    for few in (4, 600)
}


@pytest.mark.parametrize(
    ("name", "dtype", "size", "number"),
    table(NORMS, ["float32", "bfloat16"], [1e-30, 1.0, 1e30], [4])
    + table(NORMS, ["float32", "bfloat16"], [3.3e38], [4, 600])
    + table(NORMS, ["complex64"], [1e-30, 2e38], [4])
    + table(NORMS, ["float16"], [6e4], [600]),
)
def test_norm_of_any_size(name, dtype, size, number):
    make, expected = NORMS[name]
    gradient = jnp.asarray(DIRECTIONS[number] * size).astype(dtype)
    if dtype == "complex64":
        gradient = gradient * jnp.complex64(0.6 + 0.8j)
    params = jnp.ones(number, dtype)
    found = updated(make(), gradient, params)
    wanted = expected(exact(gradient))
    wanted[np.abs(wanted) < SMALLEST] = 0
    if dtype == "float16":
        wanted = wanted.astype(np.float16)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCES[dtype], atol=SMALLEST)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_metrics_of_any_size(size):
    gradient, params = jnp.full(50, size), jnp.full(50, size / 3)
    tx = gradtx.with_metrics(gradtx.scale(0.5))
    _, state = tx.update(gradient, tx.init(params), params)
    found = gradtx.metrics(state)
    with np.errstate(over="ignore"):
        norm = np.float32(np.sqrt(50) * np.float64(np.float32(size)))
    np.testing.assert_allclose(found["gradient_norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(found["update_ratio"], 1.5, rtol=1e-6)
    np.testing.assert_allclose(gradtx.global_norm(gradient), norm, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_norms_of_more_leaves_than_are_summed_at_once(size):
    gradient = {str(i): jnp.full(2, size) for i in range(150)}
    found = updated(gradtx.clip_by_global_norm(1e-31), gradient)
    np.testing.assert_allclose(found["7"], 1e-31 / np.sqrt(300), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_grafting_of_any_size(size):
    gradient = jnp.asarray(DIRECTIONS[4] * size, jnp.float32)
    x = exact(gradient)
    own, sign = gradtx.scale(1.0), gradtx.scale_by_sign()
    found = updated(gradtx.graft(own, sign), gradient, gradient)
    np.testing.assert_allclose(found, np.sign(x) * (norm_of(x) / 2), rtol=1e-6)
    found = updated(gradtx.graft(sign, own), gradient, gradient)
    np.testing.assert_allclose(found, x * (2 / norm_of(x)), rtol=1e-6)


# Derivatives through what limits or divides by norms.


def jacobian_of_clipping(x, limit):
    norm = norm_of(x)
    unit = x / norm
    if norm <= limit:
        return np.eye(x.size)
    return limit / norm * (np.eye(x.size) - np.outer(unit, unit))


DERIVATIVES = {
    "clip_by_global_norm": (lambda: gradtx.clip_by_global_norm(2.0), 2.0),
    "clip_by_an_array": (lambda: gradtx.clip_by_global_norm(jnp.float32(2.0)), 2.0),
    "clip_by_block_rms": (lambda: gradtx.clip_by_block_rms(1.0), np.sqrt(3)),
    "adaptive_grad_clip": (lambda: gradtx.adaptive_grad_clip(1.0), np.sqrt(3)),
    "normalize": (gradtx.normalize, 0.0),
    "trust_ratio": (gradtx.scale_by_trust_ratio, None),
}


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    table(DERIVATIVES, ["forward", "reverse"], [1e-20, 1e-3, 1.0, 1e15, 1e30]),
)
def test_derivative_through_a_norm(name, mode, size):
    make, limit = DERIVATIVES[name]
    tx = make()
    x = jnp.array([3.0, -4.0, 12.0]) * size
    jacobian = jax.jacfwd if mode == "forward" else jax.jacrev
    found = jacobian(lambda g: tx.update(g, tx.init(g), jnp.ones(3))[0])(x)
    if limit:
        wanted = jacobian_of_clipping(exact(x), limit)
    else:
        unit = exact(x) / norm_of(exact(x))
        wanted = (np.eye(3) - np.outer(unit, unit)) / norm_of(exact(x))
        wanted *= np.sqrt(3) if limit is None else 1.0
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def test_derivative_of_clipping_with_respect_to_the_limit():
    x = jnp.array([3.0, -4.0]) * 1e30
    found = jax.jacobian(lambda c: gradtx.clip_by_global_norm(c).update(x, None)[0])(2.0)
    np.testing.assert_allclose(found, [0.6, -0.8], rtol=1e-6)


# What must not be touched.

SUBNORMAL = {
    "float32": [1e-41, -1e-44, 3e-39, 0.25],
    "bfloat16": [1e-39, -9.2e-41, 1.1e-38, 0.25],
    "float16": [6e-8, -3e-6, 6e-5, 0.25],
}
IDENTITIES = {
    "identity": gradtx.identity,
    "clip": lambda: gradtx.clip(1.0),
    "clip_by_global_norm": lambda: gradtx.clip_by_global_norm(1.0),
    "clip_by_an_array": lambda: gradtx.clip_by_global_norm(jnp.float32(1.0)),
    "clip_by_infinity": lambda: gradtx.clip_by_global_norm(np.inf),
    "clip_by_block_rms": lambda: gradtx.clip_by_block_rms(1.0),
    "adaptive_grad_clip": lambda: gradtx.adaptive_grad_clip(1.0),
    "zero_nans": gradtx.zero_nans,
    "several": lambda: gradtx.chain(gradtx.clip(1.0), gradtx.clip_by_global_norm(1.0)),
    "masked": lambda: gradtx.masked(gradtx.clip_by_global_norm(1.0), True),
}


@pytest.mark.parametrize(("name", "dtype"), table(IDENTITIES, SUBNORMAL))
def test_what_is_below_a_limit_keeps_its_bits(name, dtype):
    gradient = jnp.asarray(np.array(SUBNORMAL[dtype]).astype(ml_dtypes.finfo(dtype).dtype))
    tx = IDENTITIES[name]()
    for update in (tx.update, jax.jit(tx.update)):
        found, _ = update(gradient, tx.init(gradient), jnp.ones(4, dtype))
        np.testing.assert_array_equal(
            np.asarray(found).view("uint8"), np.asarray(gradient).view("uint8")
        )


# Squares that do not fit into the dtype. The first step of a method whose steps do not grow with
# the gradient is a multiple of its sign, or of its direction.


def sign(x):
    return x / np.abs(x)


def unit(x):
    return x / norm_of(x)


FIRST_STEPS = {
    "scale_by_adam": (gradtx.scale_by_adam, sign),
    "scale_by_amsgrad": (gradtx.scale_by_amsgrad, sign),
    "scale_by_adamax": (gradtx.scale_by_adamax, sign),
    "scale_by_adamini": (gradtx.scale_by_adamini, sign),
    "scale_by_belief": (gradtx.scale_by_belief, lambda x: sign(x) / 0.9),
    "scale_by_yogi": (gradtx.scale_by_yogi, sign),
    "scale_by_adan": (gradtx.scale_by_adan, sign),
    "scale_by_ademamix": (gradtx.scale_by_ademamix, lambda x: sign(x) * (1 + 6 * 1e-4)),
    "scale_by_simplified_ademamix": (gradtx.scale_by_simplified_ademamix, sign),
    "scale_by_adopt": (gradtx.scale_by_adopt, lambda x: 0 * sign(x)),
    "scale_by_rms": (gradtx.scale_by_rms, lambda x: sign(x) / np.sqrt(0.1)),
    "scale_by_stddev": (gradtx.scale_by_stddev, lambda x: sign(x) / np.sqrt(0.1 - 0.01)),
    "scale_by_rss": (gradtx.scale_by_rss, sign),
    "scale_by_adadelta": (gradtx.scale_by_adadelta, lambda x: sign(x) * np.sqrt(1e-6 / 0.1)),
    "scale_by_factored_rms": (gradtx.scale_by_factored_rms, sign),
    "scale_by_sm3": (gradtx.scale_by_sm3, lambda x: 0.1 * sign(x)),
    "scale_by_lion": (gradtx.scale_by_lion, sign),
    "scale_by_sign": (gradtx.scale_by_sign, sign),
    "scale_by_novograd": (gradtx.scale_by_novograd, unit),
    "scale_by_shampoo": (gradtx.scale_by_shampoo, sign),
    "signum": (lambda: gradtx.signum(-1.0), sign),
    "rmsprop": (lambda: gradtx.rmsprop(-1.0), lambda x: sign(x) / np.sqrt(0.1)),
    "adagrad": (lambda: gradtx.adagrad(-1.0), sign),
    "yogi": (lambda: gradtx.yogi(-1.0), sign),
    "nadam": (lambda: gradtx.nadam(-1.0), lambda x: sign(x) * (0.9 / (1 - 0.9**2) * 0.1 + 1)),
    "lamb": (lambda: gradtx.lamb(-1.0), lambda x: sign(x)),
}
HUGE = {"float32": [1e20, 1e30, 3e38], "bfloat16": [1e30], "float64": [1e160, 1e300]}


@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [row for dtype, sizes in HUGE.items() for row in table(FIRST_STEPS, [dtype], sizes)],
)
def test_first_step_where_squares_overflow(name, dtype, size):
    make, expected = FIRST_STEPS[name]
    with jax.enable_x64(dtype == "float64"):
        gradient = jnp.asarray(np.array([size, -size, size, size]), dtype)
        params, tx = jnp.ones(4, dtype), make()
        updates, state = tx.update(gradient, tx.init(params), params)
        wanted = expected(exact(gradient))
        np.testing.assert_allclose(
            exact(updates), wanted, rtol=1e-2 if dtype == "bfloat16" else 1e-5
        )
        # And the state is fit to go on.
        for again in (jnp.ones(4, dtype), gradient, -gradient):
            updates, state = tx.update(again, state, params)
            assert np.all(np.isfinite(exact(updates)))
        assert all(np.all(np.isfinite(exact(leaf))) for leaf in jax.tree.leaves(state))


FREE = {
    "dog": lambda: gradtx.dog(1.0),
    "dowg": lambda: gradtx.dowg(1.0),
    "dadapt_adamw": gradtx.dadapt_adamw,
    "prodigy": gradtx.prodigy,
    "cocob": gradtx.cocob,
    "momo": lambda: gradtx.momo(1.0),
    "momo_adam": gradtx.momo_adam,
    "polyak_sgd": gradtx.polyak_sgd,
    "madgrad": lambda: gradtx.madgrad(0.1),
    "radam": lambda: gradtx.radam(0.1),
    "acprop": lambda: gradtx.acprop(0.1),
    "soap": lambda: gradtx.soap(0.1),
    "muon": lambda: gradtx.muon(0.1),
    "normuon": lambda: gradtx.normuon(0.1),
    "adafactor": lambda: gradtx.adafactor(0.1),
    "optimistic_adam_v2": lambda: gradtx.optimistic_adam_v2(0.1),
    "scale_by_distance_over_gradients": gradtx.scale_by_distance_over_gradients,
}


@pytest.mark.parametrize("name", FREE)
def test_large_and_small_gradients_leave_no_infinity_behind(name):
    tx = FREE[name]()
    params = {"w": jnp.ones((2, 3)), "b": jnp.array([0.5, -1.0, 2.0])}
    state = tx.init(params)
    update = jax.jit(lambda g, state: tx.update(g, state, params, value=1.0))
    for size in (1e-30, 3e38, 1.0, -1e30, 1e-40, 0.0):
        gradient = jax.tree.map(lambda p, size=size: jnp.sign(p) * size, params)
        updates, state = update(gradient, state)
        for leaf in jax.tree.leaves((updates, state)):
            assert np.all(np.isfinite(exact(leaf)))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15, 1e25])
def test_polyak_step_of_any_size(size):
    x = np.array([3.0, -4.0]) * size
    tx = gradtx.polyak_sgd(max_learning_rate=2.0)
    gradient = jnp.asarray(x, jnp.float32)
    updates, _ = tx.update(gradient, tx.init(gradient), gradient, value=jnp.float32(0.5))
    wanted = -min(2.0, 0.5 / np.sum(x**2)) * x
    np.testing.assert_allclose(updates, wanted, rtol=1e-6)


# Numbers that are none.

ELEMENTWISE = {
    name: getattr(gradtx, name)
    for name in [
        "scale_by_adam",
        "scale_by_amsgrad",
        "scale_by_adamax",
        "scale_by_belief",
        "scale_by_yogi",
        "scale_by_radam",
        "scale_by_adan",
        "scale_by_ademamix",
        "scale_by_simplified_ademamix",
        "scale_by_adopt",
        "scale_by_acprop",
        "scale_by_rms",
        "scale_by_stddev",
        "scale_by_rss",
        "scale_by_adadelta",
        "scale_by_sign",
        "scale_by_lion",
        "scale_by_cocob",
        "scale_by_optimistic_gradient",
        "identity",
        "cocob",
    ]
} | {
    name: lambda name=name: getattr(gradtx, name)(0.1)
    for name in [
        "adagrad",
        "adam",
        "adamw",
        "adamax",
        "amsgrad",
        "nadam",
        "yogi",
        "radam",
        "adabelief",
        "rmsprop",
        "adadelta",
        "sgd",
        "lion",
        "signum",
        "sign_sgd",
        "rprop",
        "ademamix",
        "adan",
        "madgrad",
        "scale_by_madgrad",
        "ema",
        "trace",
        "clip",
        "scale",
        "scale_by_learning_rate",
        "add_decayed_weights",
        "optimistic_gradient_descent",
        "schedule_free_sgd",
        "schedule_free_adamw",
        "acprop",
        "adopt",
        "simplified_ademamix",
    ]
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_in_one_element_shows_there_and_nowhere_else(name):
    params = {"a": jnp.array([0.5, -1.0, 2.0]), "b": jnp.ones(2)}
    good = {"a": jnp.array([1.0, 2.0, -3.0]), "b": jnp.array([0.25, -0.5])}
    bad = {"a": good["a"].at[1].set(jnp.nan), "b": good["b"]}
    tx = ELEMENTWISE[name]()

    def after(*gradients):
        state, updates = tx.init(params), None
        for gradient in gradients:
            updates, state = tx.update(gradient, state, params)
        return updates

    # The first step of some methods is zero, whatever the gradient.
    found, wanted = after(good, bad), after(good, good)
    assert np.isnan(found["a"][1])
    np.testing.assert_array_equal(np.delete(found["a"], 1), np.delete(wanted["a"], 1))
    np.testing.assert_array_equal(found["b"], wanted["b"])


@pytest.mark.parametrize(
    "name",
    ["clip_by_global_norm", "clip_by_a_huge_norm", "normalize", "normalize_by_update_norm"],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_of_nan_or_infinity_hides_nothing(name, bad):
    tree = {"a": jnp.array([1.0, bad]), "b": jnp.ones(2)}
    found = updated(NORMS[name][0](), tree)
    assert np.isnan(found["a"][1])
    # A finite number over infinity is zero; over NaN it is NaN.
    np.testing.assert_array_equal(found["b"], [np.nan, np.nan] if np.isnan(bad) else [0, 0])


@pytest.mark.parametrize(
    "name", ["clip_by_block_rms", "adaptive_grad_clip", "scale_by_trust_ratio"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_of_one_leaf_does_not_reach_another(name, bad):
    tree = {"a": jnp.array([1.0, bad]), "b": jnp.array([3.0, -4.0])}
    tx = NORMS[name][0]()
    ones = jax.tree.map(jnp.ones_like, tree)
    found = updated(tx, tree, ones)
    assert np.isnan(found["a"][1])
    np.testing.assert_allclose(found["b"], NORMS[name][1](exact(tree["b"])), rtol=1e-6)
