"""Masks against NumPy's sort, and training under a mask against training without the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.diagnostics.pruning import apply_mask, freeze_pruned, prune_by_magnitude
from gradtx.testing import check_transformation, gradients_like


def parameters(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 5), "b": (3,), "c": {"kernel": (2, 3, 7), "bias": (7,)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def kernels(tree):
    return [tree["a"], tree["c"]["kernel"]]


def flat(arrays):
    return np.concatenate([np.ravel(np.asarray(array)) for array in arrays])


def kept_by_sorting(values, fraction, kept=None):
    """The mask of a vector, by a stable sort in double precision."""
    kept = np.ones(len(values), bool) if kept is None else kept.copy()
    left = np.flatnonzero(kept)
    order = left[np.argsort(np.abs(values.astype(np.complex128))[left], kind="stable")]
    kept[order[: round(fraction * len(left))]] = False
    return kept


FRACTIONS = [0.0, 0.1, 0.5, 0.8, 1.0]


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16, jnp.complex64])
def test_global_scope(dtype, fraction):
    params = parameters(dtype)
    mask = prune_by_magnitude(params, fraction)
    expected = kept_by_sorting(flat(kernels(params)), fraction)
    assert np.sum(~expected) == round(fraction * 62)
    np.testing.assert_array_equal(flat(kernels(mask)), expected)
    assert np.all(mask["b"])
    assert np.all(mask["c"]["bias"])
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), mask)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(bool)), params)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_leaf_scope(fraction):
    params = parameters()
    mask = prune_by_magnitude(params, fraction, scope="leaf")
    for weights, flags in zip(kernels(params), kernels(mask), strict=True):
        np.testing.assert_array_equal(flat([flags]), kept_by_sorting(flat([weights]), fraction))


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_a_second_round_refers_to_the_weights_that_are_left(scope):
    first, second = parameters(seed=0), parameters(seed=1)
    mask = prune_by_magnitude(first, 0.3, scope=scope)
    again = prune_by_magnitude(second, 0.5, scope=scope, mask=mask)
    groups = [kernels] if scope == "global" else [lambda t, i=i: [kernels(t)[i]] for i in (0, 1)]
    for group in groups:
        before = kept_by_sorting(flat(group(first)), 0.3)
        expected = kept_by_sorting(flat(group(second)), 0.5, before)
        np.testing.assert_array_equal(flat(group(again)), expected)
    assert not np.any(flat(kernels(again)) & ~flat(kernels(mask)))


def test_many_rounds_leave_the_predicted_number():
    params, mask, left = {"w": jnp.arange(1000.0).reshape(10, 100)}, None, 1000
    for _ in range(12):
        mask = prune_by_magnitude(params, 0.2, mask=mask)
        left -= round(0.2 * left)
        np.testing.assert_array_equal(flat([mask["w"]]), np.arange(1000) >= 1000 - left)


def test_of_equal_weights_the_first_go_first():
    params = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array([[-1.0, 0.5], [1.0, 1.0]])}
    mask = prune_by_magnitude(params, 0.5)
    np.testing.assert_array_equal(mask["a"], [[False, False]])
    np.testing.assert_array_equal(mask["b"], [[True, False], [True, True]])
    mask = prune_by_magnitude(jnp.ones((50, 40)), 0.3)
    np.testing.assert_array_equal(flat([mask]), np.arange(2000) >= 600)


def test_zero_counts_as_left_and_nan_as_largest():
    params = jnp.array([[0.0, jnp.nan], [jnp.inf, 0.0]])
    mask = prune_by_magnitude(params, 0.5, mask=jnp.array([[True, True], [True, False]]))
    np.testing.assert_array_equal(mask, [[False, True], [False, False]])


def test_subnormal_weights_of_half_precision_are_compared_exactly():
    params = {"a": jnp.full((1, 3), 6e-8, jnp.float16), "b": jnp.full((1, 3), 7e-8, jnp.float32)}
    mask = prune_by_magnitude(params, 0.5)
    assert flat(jax.tree.leaves(mask)).tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("select", "pruned"),
    [
        ("kernel", {"c/kernel"}),
        (gradtx.select("bias") | gradtx.select("b$"), {"b", "c/bias"}),
        (lambda path, leaf: leaf.size == 3, {"b"}),
        (True, {"a", "b", "c/kernel", "c/bias"}),
        ({"a": True, "b": False, "c": True}, {"a", "c/kernel", "c/bias"}),
    ],
    ids=["pattern", "selection", "predicate", "boolean", "prefix"],
)
def test_selected_leaves(select, pruned):
    mask = prune_by_magnitude(parameters(), 1.0, select)
    named, _ = jax.tree_util.tree_flatten_with_path(mask)
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}
    assert {path for path, leaf in found.items() if not np.any(leaf)} == pruned
    assert all(np.all(leaf) for path, leaf in found.items() if path not in pruned)


def test_leaves_that_are_not_parameters():
    params = {"w": jnp.ones((2, 2)), "ids": jnp.ones((2, 2), jnp.int32), "f": jnp.tanh, "n": None}
    mask = prune_by_magnitude(params, 1.0, True)
    assert (mask["ids"], mask["f"], mask["n"]) == (True, True, None)
    pruned = apply_mask(params, mask)
    assert pruned["f"] is jnp.tanh
    assert pruned["n"] is None
    np.testing.assert_array_equal(pruned["ids"], 1)
    np.testing.assert_array_equal(pruned["w"], 0)


def test_compiled_and_mapped():
    rounds = [parameters(seed=seed) for seed in range(4)]

    def prune_twice(first, second):
        mask = prune_by_magnitude(first, 0.3)
        return prune_by_magnitude(second, 0.35, mask=mask)

    pairs = [prune_twice(rounds[0], rounds[1]), prune_twice(rounds[2], rounds[3])]
    compiled = jax.jit(prune_twice)(rounds[0], rounds[1])
    jax.tree.map(np.testing.assert_array_equal, compiled, pairs[0])
    stacked = [jax.tree.map(lambda *a: jnp.stack(a), *pair) for pair in (rounds[::2], rounds[1::2])]
    mapped = jax.vmap(prune_twice)(*stacked)
    jax.tree.map(
        np.testing.assert_array_equal, mapped, jax.tree.map(lambda *a: np.stack(a), *pairs)
    )


def test_double_precision_decides_where_single_could_not():
    with jax.enable_x64(True):
        params = {"a": jnp.array([[1.0 + 1e-12]]), "b": jnp.ones((1, 1), jnp.float32)}
        mask = prune_by_magnitude(params, 0.5)
    assert (bool(mask["a"]), bool(mask["b"])) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 1.5}, r"fraction must be in \[0, 1\], got 1.5"),
        ({"fraction": float("nan")}, r"fraction must be in \[0, 1\], got nan"),
        ({"scope": "layer"}, "scope must be one of .*, got 'layer'"),
        ({"select": "head"}, "'head' matches none of the paths"),
        ({"select": lambda path, leaf: False}, r"chooses no parameter of \['a', 'b', "),
        ({"mask": {"a": True}}, "params and the mask differ at 'b'"),
        ({"mask": parameters()}, "the leaves of a mask must be booleans, got float32 at 'a'"),
        (
            {"mask": {"a": jnp.ones((4, 1), bool), "b": True, "c": {"kernel": True, "bias": True}}},
            r"shapes differ at 'a': params has shape \(4, 5\), the mask has shape \(4, 1\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_wrong_arguments_of_prune_by_magnitude(arguments, message):
    with pytest.raises(ValueError, match=message):
        prune_by_magnitude(parameters(), **{"fraction": 0.5} | arguments)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_apply_mask(dtype):
    params = parameters(dtype)
    mask = prune_by_magnitude(params, 0.5)
    pruned = apply_mask(params, mask)
    expected = jax.tree.map(lambda p, m: np.where(m, p, 0), params, mask)
    jax.tree.map(np.testing.assert_array_equal, pruned, expected)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(pruned))


def test_apply_mask_removes_what_is_not_finite():
    pruned = apply_mask(jnp.array([jnp.nan, jnp.inf, 1.0]), jnp.array([False, False, True]))
    np.testing.assert_array_equal(pruned, [0.0, 0.0, 1.0])


def test_apply_mask_refuses_a_mask_of_another_tree():
    with pytest.raises(ValueError, match="apply_mask: params and the mask differ at 'c/bias'"):
        apply_mask(parameters(), {"a": True, "b": True, "c": {"kernel": True}})


OPTIMIZERS = {
    "sgd": gradtx.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": gradtx.adamw(0.1, weight_decay=0.3),
    "lion": gradtx.lion(0.1, weight_decay=0.3),
    "clipped": gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adam(0.1)),
    "averaged": gradtx.average_params(gradtx.rmsprop(0.1), 0.9),
    "optax": optax.sgd(0.1, momentum=0.9),
}


def train(tx, params, gradient, steps=12):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(gradient(params), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_that_of_the_weights_that_are_left(optimizer):
    rng = np.random.default_rng(3)
    kept = rng.random(20) > 0.4
    start, targets, rates = rng.standard_normal(20), rng.standard_normal(20), rng.uniform(1, 2, 20)

    def gradient(chosen):
        a, b = (jnp.asarray(v[chosen], jnp.float32) for v in (rates, targets))
        return jax.jit(lambda params: {"w": a * (params["w"] - b)})

    tx, mask = OPTIMIZERS[optimizer], {"w": jnp.asarray(kept)}
    whole = apply_mask({"w": jnp.asarray(start, jnp.float32)}, mask)
    everything = np.ones(20, bool)
    pruned, _ = train(freeze_pruned(tx, mask), whole, gradient(everything))
    short, _ = train(tx, {"w": jnp.asarray(start[kept], jnp.float32)}, gradient(kept))
    np.testing.assert_array_equal(pruned["w"][~kept], 0.0)
    np.testing.assert_allclose(pruned["w"][kept], short["w"], rtol=1e-5, atol=1e-6)
    # Without the wrapper the pruned weights would move again.
    free, _ = train(tx, whole, gradient(everything))
    assert np.all(np.asarray(free["w"])[~kept] != 0)


def test_weights_that_moved_before_the_pruning_stay_still_after_it():
    params = jnp.array([1.0, 1.0])
    _, state = train(gradtx.sgd(0.1, momentum=0.9), params, lambda p: p)
    mask = jnp.array([True, False])
    tx = freeze_pruned(gradtx.sgd(0.1, momentum=0.9), mask)
    params = apply_mask(params, mask)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = gradtx.apply_updates(params, updates)
        assert params[1] == 0
        assert updates[0] != 0


def test_noise_and_gradients_that_are_not_finite_stay_out():
    mask = jnp.array([True, False])
    tx = freeze_pruned(gradtx.chain(gradtx.add_noise(1.0, 0.5, key=0), gradtx.adam(0.1)), mask)
    state = tx.init(jnp.zeros(2))
    for g in (jnp.nan, jnp.inf, -jnp.inf):
        updates, state = tx.update(jnp.array([1.0, g]), state, jnp.zeros(2))
        assert updates[1] == 0
        assert np.isfinite(updates[0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters())
    mask = prune_by_magnitude(params, 0.7)
    tx = freeze_pruned(gradtx.adamw(0.1), mask)
    params = apply_mask(params, mask)
    trained, _ = train(tx, params, lambda p: gradients_like(p))
    for leaf, flags in zip(jax.tree.leaves(trained), jax.tree.leaves(mask), strict=True):
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(np.asarray(leaf)[~np.asarray(flags)], 0)


def test_the_state_is_that_of_the_transformation():
    params = parameters()
    mask = prune_by_magnitude(params, 0.5)
    for tx in OPTIMIZERS.values():
        plain, masked = tx.init(params), freeze_pruned(tx, mask).init(params)
        jax.tree.map(np.testing.assert_array_equal, plain, masked)
        assert jax.tree.structure(plain) == jax.tree.structure(masked)


def is_kept(params):
    """A mask for any parameters: every second weight, by its position."""
    return jax.tree.map(
        lambda leaf: (
            (jnp.arange(leaf.size) % 2 == 0).reshape(leaf.shape)
            if jnp.issubdtype(getattr(leaf, "dtype", np.bool_), jnp.inexact)
            else True
        ),
        params,
    )


def test_contract():
    check_transformation(freeze_pruned(OPTIMIZERS["clipped"], is_kept))


def test_the_mask_may_hide_what_masked_hides():
    params = parameters()
    mask = prune_by_magnitude(params, 0.5)
    tx = gradtx.masked(freeze_pruned(gradtx.sgd(1.0), mask), gradtx.select("kernel|a"))
    updates, _ = tx.update(params, tx.init(params), params)
    expected = jax.tree.map(lambda p, m: np.where(m, -p, 0), params, mask)
    for found, right in zip(kernels(updates), kernels(expected), strict=True):
        np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(updates["b"], params["b"])


def test_extra_arguments_reach_the_transformation():
    tx = freeze_pruned(gradtx.newton(), jnp.array([True, False]))
    x = jnp.array([1.0, 2.0])

    def loss_fn(p):
        return jnp.sum(p**2)

    updates, _ = tx.update(2 * x, tx.init(x), x, value_fn=loss_fn)
    np.testing.assert_allclose(updates, [-1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: freeze_pruned(gradtx.adam, True), "freeze_pruned: tx must be .*; did you forget"),
        (
            lambda: freeze_pruned(gradtx.sgd(1.0), is_kept).update(jnp.ones(2), ()),
            "freeze_pruned: a mask that is a function needs the parameters",
        ),
        (
            lambda: freeze_pruned(gradtx.sgd(1.0), {"v": True}).update({"w": jnp.ones(2)}, ()),
            "freeze_pruned: updates and the mask differ at 'w'",
        ),
        (
            lambda: freeze_pruned(gradtx.sgd(1.0), jnp.ones(3, bool)).update(jnp.ones(2), ()),
            r"updates has shape \(2,\), the mask has shape \(3,\)",
        ),
        (
            lambda: freeze_pruned(gradtx.sgd(1.0), jnp.ones(2)).update(jnp.ones(2), ()),
            "freeze_pruned: the leaves of a mask must be booleans",
        ),
    ],
    ids=["transformation", "function", "structure", "shape", "dtype"],
)
def test_wrong_arguments_of_freeze_pruned(call, message):
    with pytest.raises(ValueError, match=message):
        call()
