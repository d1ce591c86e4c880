"""Per-example clipping and the noise on the sum, against NumPy, optax and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import check_refused, wrong_arguments

# Examples whose gradients are of very different size; the third is zero.
SIZE = np.array([1e-3, 1.0, 0.0, 10.0, 1e4])


def examples():
    rng = np.random.default_rng(3)
    shapes = {"bias": (5, 4), "scalar": (5,), "weight": (5, 2, 3)}
    return {
        name: np.float32(rng.normal(size=shape) * SIZE.reshape(-1, *[1] * (len(shape) - 1)))
        for name, shape in shapes.items()
    }


def clipped_sum(leaves, max_norm):
    """Abadi et al. 2016, Algorithm 1, line "clip gradient", and the number of clipped examples."""
    leaves = [np.float64(leaf) for leaf in leaves]
    total, number = [np.zeros(leaf.shape[1:]) for leaf in leaves], 0
    for i in range(len(leaves[0])):
        norm = np.sqrt(sum(np.sum(leaf[i] ** 2) for leaf in leaves))
        divisor = max(1.0, norm / max_norm)
        number += divisor > 1
        total = [old + leaf[i] / divisor for old, leaf in zip(total, leaves, strict=True)]
    return total, number


@pytest.fixture
def as_optax_likes_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_close(total, expected, tolerance):
    """Compare relative to the largest element, because a sum may be smaller than its parts."""
    for name, leaf in expected.items():
        atol = tolerance * np.max(np.abs(leaf))
        np.testing.assert_allclose(total[name], leaf, rtol=tolerance, atol=atol)


@pytest.mark.usefixtures("as_optax_likes_it")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_global_clip(dtype):
    leaves = examples()
    with jax.enable_x64(dtype == "float64"):
        grads = {name: jnp.asarray(leaf, dtype) for name, leaf in leaves.items()}
        ours = jax.jit(gradtx.per_example_global_norm_clip)
        theirs = jax.jit(optax.per_example_global_norm_clip)
        tolerance = 1e-6 if dtype == "float32" else 1e-14
        for max_norm in (0.5, 30.0, np.inf):
            total, number = ours({**grads, "frozen": None}, max_norm)
            expected, count = clipped_sum(leaves.values(), max_norm)
            their_total, their_number = theirs(grads, max_norm)
            assert number == count == their_number
            assert total["frozen"] is None
            assert_close(total, dict(zip(leaves, expected, strict=True)), tolerance)
            assert_close(total, jax.tree.map(np.asarray, their_total), tolerance)


@pytest.mark.usefixtures("as_optax_likes_it")
@pytest.mark.parametrize("uniform", [True, False], ids=["uniform", "by-size"])
def test_layer_clip(uniform):
    grads = jax.tree.map(jnp.asarray, examples())
    (total, numbers), (theirs, their_numbers) = (
        jax.jit(lib.per_example_layer_norm_clip, static_argnums=2)(grads, 2.0, uniform)
        for lib in (gradtx, optax)
    )
    sizes = {"bias": 4, "scalar": 1, "weight": 6}
    assert numbers == their_numbers
    assert_close(total, jax.tree.map(np.asarray, theirs), 1e-6)
    for name, leaf in examples().items():
        limit = 2.0 * np.sqrt(1 / 3 if uniform else sizes[name] / 11)
        [expected], number = clipped_sum([leaf], limit)
        assert numbers[name] == number
        assert_close(total, {name: expected}, 1e-6)


def test_integers_are_numbers_here():
    grads = [jnp.array([[0, 0, 0], [0, 3, 4], [4, 0, 3], [3, 4, 0]]), jnp.tanh]
    total, number = gradtx.per_example_global_norm_clip(grads, 1.25)
    np.testing.assert_array_equal(total[0], [1.75, 1.75, 1.75])
    assert total[1] is jnp.tanh
    assert number == 3
    _, numbers = gradtx.per_example_layer_norm_clip(grads, 0.0)
    assert numbers[0] == 3


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 3e37])
def test_no_example_moves_the_sum_by_more_than_the_limit(size):
    grads = jnp.array([[3.0, 4.0], [0.0, 0.0]]) * size
    total, number = gradtx.per_example_global_norm_clip(grads, size / 2)
    np.testing.assert_allclose(total, np.array([0.3, 0.4]) * size, rtol=1e-6)
    assert number == 1


def test_a_limit_that_the_largest_gradients_keep_leaves_them_as_they_are():
    g = jnp.array([[3e38], [-1e38]])
    total, clipped = gradtx.per_example_global_norm_clip(g, 3.2e38)
    np.testing.assert_allclose(total, [2e38], rtol=1e-6)
    assert clipped == 0


def test_half_precision_is_added_up_in_single():
    tx = gradtx.differentially_private_aggregate(1e6, 0.0, key=0)
    # The sum is 90000, beyond float16; so is the square of each element.
    grads = jnp.full((300, 2), 300.0, jnp.float16)
    mean, _ = tx.update(grads, tx.init(None))
    assert mean.dtype == jnp.float16
    np.testing.assert_array_equal(mean, [300.0, 300.0])


@pytest.mark.parametrize("lot_size", [None, 20.0])
def test_aggregate_is_the_clipped_sum_over_the_size_of_the_lot(lot_size):
    tx = gradtx.differentially_private_aggregate(0.5, 0.0, key=0, lot_size=lot_size)
    mean, _ = jax.jit(tx.update)(jax.tree.map(jnp.asarray, examples()), tx.init(None))
    expected, _ = clipped_sum(examples().values(), 0.5)
    assert_close(
        mean,
        {name: leaf / (lot_size or 5) for name, leaf in zip(mean, expected, strict=True)},
        1e-6,
    )


@pytest.mark.usefixtures("as_optax_likes_it")
def test_noise_is_drawn_as_optax_draws_it():
    key = jax.random.key(5)
    ours = gradtx.differentially_private_aggregate(0.5, 0.8, key)
    theirs = optax.contrib.differentially_private_aggregate(0.5, 0.8, key)
    grads, state = jax.tree.map(jnp.asarray, examples()), theirs.init(None)
    their_update = jax.jit(theirs.update)
    for _ in range(2):
        expected, expected_state = their_update(grads, state)
        updates, state = ours.update(grads, state)
        assert type(state) is type(expected_state)
        assert state.rng_key == expected_state.rng_key
        assert_close(updates, jax.tree.map(np.asarray, expected), 1e-6)


NUMBER = 20_000
# Five standard errors of a variance, of a mean and of a correlation of normal numbers.
OF_VARIANCE, OF_MEAN = 5 * np.sqrt(2 / NUMBER), 5 / np.sqrt(NUMBER)


def test_noise_has_the_predicted_variance_and_is_independent():
    tx = gradtx.differentially_private_aggregate(0.5, 3.0, key=1)
    grads = {"a": jnp.zeros((4, NUMBER)), "b": jnp.zeros((4, NUMBER))}
    state, update, draws = tx.init(None), jax.jit(tx.update), []
    for _ in range(2):
        updates, state = update(grads, state)
        draws += [np.float64(leaf) for leaf in updates.values()]
    deviation = 0.5 * 3.0 / 4  # of the sum, over four examples
    for draw in draws:
        np.testing.assert_allclose(np.var(draw), deviation**2, rtol=OF_VARIANCE)
        assert abs(np.mean(draw)) < OF_MEAN * deviation
    correlations = np.corrcoef(draws)[np.triu_indices(4, 1)]
    assert np.max(np.abs(correlations)) < OF_MEAN


def test_noise_covers_the_real_and_the_imaginary_part():
    tx = gradtx.differentially_private_aggregate(0.5, 3.0, key=2)
    noise, _ = tx.update(jnp.zeros((1, NUMBER), jnp.complex64), tx.init(None))
    for part in (np.float64(noise.real), np.float64(noise.imag)):
        np.testing.assert_allclose(np.var(part), 1.5**2, rtol=OF_VARIANCE)


def test_limit_and_noise_may_follow_schedules():
    tx = gradtx.differentially_private_aggregate(
        lambda count: 1.0 + count, lambda count: 0.0 * count, key=0
    )
    state = tx.init(None)
    for step in range(3):
        updates, state = tx.update(jnp.array([[6.0, 8.0]]), state)
        np.testing.assert_allclose(updates, np.array([0.6, 0.8]) * (step + 1), rtol=1e-6)
    assert state.count == 3


def test_keys_of_every_kind_are_taken():
    grads = jnp.zeros((2, 3))
    makers = (7, np.int32(7), jax.random.key(7), jax.random.PRNGKey(7))
    draws = []
    for key in makers:
        tx = gradtx.differentially_private_aggregate(1.0, 1.0, key)
        draws.append(tx.update(grads, tx.init(None))[0])
    for draw in draws[1:]:
        np.testing.assert_array_equal(draw, draws[0])


def test_gradients_without_the_axis_of_the_examples_are_refused():
    tx = gradtx.differentially_private_aggregate(1.0, 1.0, 0)
    params = {"w": jnp.zeros((3, 2))}
    with pytest.raises(ValueError, match=r"'w'.*\(3, 2\).*\(3, 2\).*one more axis"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "shapes",
    [{"a": (3, 2), "b": (4,)}, {"a": (3,), "b": ()}, {"a": (0, 2)}],
    ids=["different-numbers", "no-axis", "no-examples"],
)
def test_leaves_must_agree_on_the_number_of_examples(shapes):
    grads = {name: jnp.ones(shape) for name, shape in shapes.items()}
    tx = gradtx.differentially_private_aggregate(1.0, 1.0, 0)
    for call in (
        lambda: gradtx.per_example_global_norm_clip(grads, 1.0),
        lambda: gradtx.per_example_layer_norm_clip(grads, 1.0),
        lambda: tx.update(grads, tx.init(None)),
    ):
        with pytest.raises(ValueError, match=r"examples.*'a': \(") as refusal:
            call()
        assert all(str(shape) in str(refusal.value) for shape in shapes.values())


FINITE = (-1.0, float("inf"), float("nan"), True, "high")


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong_arguments(
            gradtx.differentially_private_aggregate,
            {"l2_norm_clip": 1.0, "noise_multiplier": 1.0, "key": 0},
            l2_norm_clip=FINITE,
            noise_multiplier=FINITE,
            key=(True, "seed", 0.5),
            lot_size=(0.0, -1.0, "all"),
        ),
        *wrong_arguments(
            gradtx.per_example_global_norm_clip,
            {"grads": jnp.ones((2, 2))},
            l2_norm_clip=(-1.0, float("nan")),
        ),
        *wrong_arguments(
            gradtx.per_example_layer_norm_clip,
            {"grads": jnp.ones((2, 2))},
            global_l2_norm_clip=(-1.0, float("nan")),
        ),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
