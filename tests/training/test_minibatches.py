"""Mini-batches: every sample once per epoch, in the key's order, from arrays and trees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradtx.training import minibatches

KEY = jax.random.key(0)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 12, 13, 100])
def test_every_sample_comes_once_an_epoch(batch_size):
    batches = list(minibatches(KEY, np.arange(13), batch_size, epochs=3))
    sizes = [len(batch) for batch in batches]
    full, rest = divmod(13, batch_size)
    assert sizes == ([batch_size] * full + [rest] * (rest > 0)) * 3
    per_epoch = np.concatenate(batches).reshape(3, 13)
    np.testing.assert_array_equal(np.sort(per_epoch, axis=1), np.tile(np.arange(13), (3, 1)))


def test_a_dropped_remainder_leaves_only_whole_batches():
    batches = list(minibatches(KEY, np.arange(13), 4, epochs=2, drop_remainder=True))
    assert [len(batch) for batch in batches] == [4] * 6
    for epoch in (batches[:3], batches[3:]):
        assert len(np.unique(np.concatenate(epoch))) == 12


def test_another_sample_is_dropped_in_each_epoch():
    batches = minibatches(KEY, np.arange(5), 4, epochs=20, drop_remainder=True)
    dropped = {(set(range(5)) - set(batch.tolist())).pop() for batch in batches}
    assert len(dropped) > 1


def test_the_key_decides_the_order():
    def order(key, **options):
        return np.concatenate(list(minibatches(key, np.arange(50), 7, **options))).tolist()

    assert order(KEY) == order(jax.random.key(0))
    assert order(KEY) == order(jax.random.PRNGKey(0))
    assert order(KEY) != order(jax.random.key(1))
    assert order(KEY) != list(range(50))


def test_each_epoch_has_an_order_of_its_own_whatever_their_number():
    long = np.concatenate(list(minibatches(KEY, np.arange(20), 20, epochs=3))).reshape(3, 20)
    short = next(minibatches(KEY, np.arange(20), 20))
    np.testing.assert_array_equal(long[0], short)
    assert len({tuple(row) for row in long.tolist()}) == 3


def test_without_a_number_of_epochs_there_is_no_end():
    batches = itertools.islice(minibatches(KEY, np.arange(4), 2, epochs=None), 10)
    np.testing.assert_array_equal(np.bincount(np.concatenate(list(batches))), [5, 5, 5, 5])


@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 11, 12, 100])
def test_a_later_start_gives_what_an_earlier_one_would_go_on_with(start, drop_remainder):
    def batches(**options):
        data = {"x": np.arange(11), "y": np.random.default_rng(0).normal(size=(11, 2))}
        return list(minibatches(KEY, data, 3, epochs=3, drop_remainder=drop_remainder, **options))

    expected, found = batches()[start:], batches(start=start)
    assert len(found) == len(expected) == max(0, 3 * (3 if drop_remainder else 4) - start)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_is_left_out_is_not_run_through():
    # At one batch a microsecond, it would take an hour.
    late = next(minibatches(KEY, np.arange(10), 4, epochs=None, start=3 * 10**9 + 1))
    expected = jax.random.permutation(jax.random.fold_in(KEY, 10**9), 10)[4:8]
    np.testing.assert_array_equal(late, expected)


def test_orders_are_uniform():
    # 24 orders of 4 samples, 2,400 times: chi-squared with 23 degrees of freedom, whose 0.999
    # quantile is 49.7.
    batches = minibatches(KEY, np.arange(4), 4, epochs=2400)
    _, counts = np.unique([tuple(batch) for batch in batches], axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum((counts - 100) ** 2 / 100) < 49.7


def test_the_arrays_of_a_tree_stay_together():
    images = np.arange(10 * 6, dtype=np.float32).reshape(10, 2, 3)
    data = {"image": images, "rest": (np.arange(10), None)}
    for batch in minibatches(KEY, data, 4):
        labels, nothing = batch["rest"]
        np.testing.assert_array_equal(batch["image"], images[labels])
        assert nothing is None


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_batches_are_of_the_kind_and_dtype_of_the_data(make):
    data = make(np.arange(6, dtype=np.int16))
    for batch in minibatches(KEY, data, 4):
        assert type(batch) is type(data)
        assert batch.dtype == np.int16


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.arange(4), {"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        (np.arange(4), {"batch_size": 1.5}, "batch_size must be a whole number >= 1, got 1.5"),
        (np.arange(4), {"batch_size": 2, "epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        (np.arange(4), {"batch_size": 2, "start": -1}, "start must be a whole number >= 0, got -1"),
        (
            np.arange(4),
            {"batch_size": 5, "drop_remainder": True},
            "batch_size must be at most the number of samples, 4, with drop_remainder, got 5",
        ),
        ({"a": None}, {"batch_size": 1}, "data must have at least one array"),
        ([1.0, 2.0], {"batch_size": 1}, "need a first axis of samples, got 1.0 at '0'"),
        (np.zeros((0, 3)), {"batch_size": 1}, "data must have at least one sample"),
        (
            {"image": np.zeros((3, 2)), "label": {"digit": np.zeros(4)}},
            {"batch_size": 1},
            "must have the same length, got 3 at 'image' and 4 at 'label/digit'",
        ),
    ],
    ids=[
        "no batch",
        "half a sample",
        "no epoch",
        "no start",
        "all dropped",
        "no array",
        "no axis",
        "no sample",
        "lengths",
    ],
)
def test_wrong_arguments_are_refused_before_the_first_batch(data, options, message):
    with pytest.raises(ValueError, match="minibatches: ") as refusal:
        minibatches(KEY, data, **options)
    assert message in str(refusal.value)
