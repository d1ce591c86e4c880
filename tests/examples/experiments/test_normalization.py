"""The experiments about batch normalization and the batch size, against networks in plain NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.experiments import batchnorm, batchsize, experiment, networks, noisy_batchnorm
from gradtx.initializers import he_normal

SEEDS = (1,)


@pytest.fixture
def run(monkeypatch):
    """Runs an experiment for each seed; returns the calls of one of its functions, with results."""

    def run_with(name, recorded):
        module, calls = experiment.load(name), []
        function = getattr(module, recorded)

        def record(*args):
            calls.append((args, jax.device_get(function(*args))))
            return calls[-1][1]

        monkeypatch.setattr(module, recorded, record)
        for seed in SEEDS:
            outcome = module.run(experiment.Settings(seed, quick=True))
            assert [check for check in outcome.checks if not check.holds] == []
            outcome.figure.savefig("/dev/null", format="png", dpi=20)
        return calls

    return run_with


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def loss_of(layers, images, labels, activation="tanh", normalized=False):
    """The loss of a dense network, its gradient, the nonlinearities' inputs and the accuracy."""
    function, slope = {
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        "relu": (lambda z: np.maximum(z, 0), lambda z: z > 0),
    }[activation]
    x, given, passed = images, [], []
    for layer in layers[:-1]:
        z, deviation = x @ layer["kernel"] + layer["bias"], 1.0
        if normalized:
            deviation = np.sqrt(z.var(axis=0) + 1e-5)
            z = (z - z.mean(axis=0)) / deviation
        passed.append((layer, x, deviation))
        given.append(z)
        x = function(z)
    logits = x @ layers[-1]["kernel"] + layers[-1]["bias"]
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = scores / scores.sum(axis=1, keepdims=True)
    targets = np.eye(10)[labels]
    back = (shares - targets) / len(images)
    gradient = [{"kernel": x.T @ back, "bias": back.sum(axis=0)}]
    back = back @ layers[-1]["kernel"].T
    for (layer, x, deviation), z in zip(passed[::-1], given[::-1], strict=True):
        back = back * slope(z)
        if normalized:
            back = (back - back.mean(axis=0) - z * (back * z).mean(axis=0)) / deviation
        gradient.insert(0, {"kernel": x.T @ back, "bias": back.sum(axis=0)})
        back = back @ layer["kernel"].T
    loss = -np.mean(np.log(shares[targets == 1]))
    return loss, gradient, given, np.mean(shares.argmax(axis=1) == labels)


def descended(layers, gradient, rate):
    return jax.tree.map(lambda w, g: w - rate * g, layers, gradient)


def flat(tree):
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def squares(layers):
    """The sum of the squares of all hidden kernels."""
    return sum(np.sum(layer["kernel"] ** 2) for layer in layers[:-1])


def test_batchnorm_holds_and_measures_what_numpy_does(run):
    (params, batches, normalized, rates, data), both = run("batchnorm", "train")[0]
    assert normalized.tolist() == [False, True]
    np.testing.assert_allclose(rates, [0.5, 0.05])
    images, labels = in_float64(data.train["image"]), np.asarray(data.train["label"])
    start = in_float64(jax.tree.map(lambda leaf: leaf[0], params))
    batches = np.asarray(batches)[0, 0]
    for kind in (0, 1):
        training = jax.tree.map(lambda leaf, kind=kind: leaf[0, kind], both)

        def loss_at(layers, batch, kind=kind):
            return loss_of(layers, images[batch], labels[batch], normalized=kind == 1)

        loss, gradient, _, _ = loss_at(start, batches[0])
        ways = [loss_at(descended(start, gradient, s), batches[0]) for s in batchnorm.STEP_SIZES]
        lengths = np.array(batchnorm.STEP_SIZES) * np.linalg.norm(flat(gradient))
        changes = [np.linalg.norm(flat(way[1]) - flat(gradient)) for way in ways]
        lipschitz = np.max(np.abs([way[0] - loss for way in ways]) / lengths)
        np.testing.assert_allclose(training.lipschitz[:, 0], lipschitz, rtol=1e-4)
        np.testing.assert_allclose(training.curvature[:, 0], np.max(changes / lengths), rtol=1e-4)

        _, _, given, _ = loss_at(start, slice(256))
        np.testing.assert_allclose(training.sums[0, 0], given, rtol=1e-4, atol=1e-4)

        for i, rate in enumerate((0.5, 0.05)):
            layers, expected = start, []
            for batch in batches[:4]:
                loss, gradient, _, _ = loss_at(layers, batch)
                expected.append((loss, squares(layers), rate**2 * squares(gradient)))
                layers = descended(layers, gradient, rate)
            measured = (training.loss, training.kernels, training.steps)
            for got, wanted in zip(measured, np.transpose(expected), strict=True):
                np.testing.assert_allclose(got[i, :4], wanted, rtol=1e-3)


def test_batchnorm_adds_up_the_squares_of_the_earlier_steps():
    steps = np.array([[[1.0, 2.0, 4.0]]])
    training = batchnorm.Training(*[None] * 8)._replace(kernels=10 + 0 * steps, steps=steps)
    np.testing.assert_array_equal(batchnorm.pythagoras(training), [[[10, 11, 13]]])


def test_noisy_batchnorm_holds_and_measures_what_numpy_does(run):
    (params, batches, _, data, normalized, noisy), training = run("noisy-batchnorm", "train")[0]
    assert (normalized.tolist(), noisy.tolist()) == ([False, True, True], [False, False, True])
    train, test = (
        (in_float64(part["image"]), np.asarray(part["label"])) for part in (data.train, data.test)
    )
    batches = np.asarray(batches)[0, 0]
    for kind in (0, 1):
        layers = in_float64(jax.tree.map(lambda leaf: leaf[0], params))
        for when in (0, 1):
            loss, _, _, right = loss_of(layers, *test, normalized=kind == 1)
            np.testing.assert_allclose(training.loss[0, kind, when], loss, rtol=1e-4)
            # Two of the 360 images may lie on the border between two digits.
            assert abs(training.accuracy[0, kind, when] - right) < 3 / 360
            if when == 1:
                break
            for step, batch in enumerate(batches):
                images, labels = train[0][batch], train[1][batch]
                _, gradient, given, _ = loss_of(layers, images, labels, normalized=kind == 1)
                for measured, expected in (
                    (training.means, np.mean(given, axis=1)),
                    (training.variances, np.var(given, axis=1)),
                ):
                    got = measured[0, kind, step]
                    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
                layers = descended(layers, gradient, 0.1)


def test_noisy_batchnorm_draws_a_stretch_and_a_shift_for_each_unit():
    z = jax.random.normal(jax.random.key(0), (4000, 500))
    y = np.asarray(noisy_batchnorm.add_noise(jax.random.key(1), z), np.float64)
    stretch, shift, left = [], [], []
    for given, noisy in zip(np.asarray(z).T, y.T, strict=True):
        slope, constant = np.polyfit(given, noisy, 1)
        stretch.append(slope)
        shift.append(constant)
        left.append(np.std(noisy - slope * given - constant))
    for drawn, low, high in ((stretch, 0.5, 2), (shift, -1, 1)):
        assert low - 0.01 < np.min(drawn) < low + 0.02
        assert high - 0.02 < np.max(drawn) < high + 0.01
        # The standard error of the mean of 500 uniform numbers, three times.
        assert abs(np.mean(drawn) - (low + high) / 2) < 3 * (high - low) / np.sqrt(12 * 500)
    np.testing.assert_allclose(left, 0.1, rtol=0.06)


def test_noisy_batchnorm_judges_instability_late_and_relative_to_the_batch():
    means, variances = np.zeros((2, 1, 1, 4, 1, 1))
    means[0, 0, :, 0, 0] = [100, -100, 1, 5]
    variances[0, 0, :, 0, 0] = [0, 900, 12, 20]
    training = noisy_batchnorm.Training(means, variances, None, None)
    np.testing.assert_allclose(training.instability().ravel(), [2 / np.sqrt(16), 4 / 16])


def test_batchsize_holds_and_measures_what_numpy_does(run):
    (params, data, sizes, *sources), scatter = run("batchsize", "scatter_of")[0]
    images, labels = in_float64(data["image"]), np.asarray(data["label"])
    layers = in_float64(params)
    gradients = np.stack(
        [
            flat(loss_of(layers, image[None], labels[i : i + 1], "relu")[1])
            for i, image in enumerate(images)
        ]
    )
    np.testing.assert_allclose(scatter.full, -0.05 * gradients.mean(axis=0), rtol=1e-3, atol=1e-7)
    trace = 0.05**2 * np.sum(np.mean((gradients - gradients.mean(axis=0)) ** 2, axis=0))
    B, N = np.array(sizes), len(labels)
    np.testing.assert_allclose(scatter.expected[0], trace / B, rtol=1e-5)
    np.testing.assert_allclose(scatter.expected[1], trace / B * (N - B) / (N - 1), rtol=1e-5)
    size = sizes.index(256)
    for j, source in enumerate(sources):
        batches = source[:, : N // 256 * 256].reshape(-1, 256)[:384]
        squared = [np.sum((0.05 * gradients[b].mean(axis=0) + scatter.full) ** 2) for b in batches]
        np.testing.assert_allclose(scatter.measured[j, size], np.mean(squared), rtol=1e-4)


def test_batchsize_knows_the_variance_of_all_batches():
    values = np.array([3.0, -1.0, 4.0, 1.0, 5.0])
    for size in (1, 2, 3, 5):
        drawn = itertools.product(values, repeat=size), itertools.combinations(values, size)
        factors = [np.var([np.mean(batch) for batch in kind]) / np.var(values) for kind in drawn]
        measured = batchsize.variance_factors(np.array(size), len(values))
        np.testing.assert_allclose(measured, factors, atol=1e-15)


def test_batchsize_descends_as_numpy_does():
    key = jax.random.key(5)
    params = networks.init_dense(key, batchsize.WIDTHS, he_normal())
    data = {"image": jax.random.uniform(key, (20, 64)), "label": jnp.arange(20) % 10}
    batches = jax.random.randint(key, (1, 6, 3), 0, 20)
    images, labels = in_float64(data["image"]), np.asarray(data["label"])
    layers, expected = in_float64(params), []
    for batch in np.asarray(batches)[0]:
        expected.append(loss_of(layers, images, labels, "relu")[0])
        gradient = loss_of(layers, images[batch], labels[batch], "relu")[1]
        layers = descended(layers, gradient, 0.05)
    expected.append(loss_of(layers, images, labels, "relu")[0])
    losses = batchsize.descend(params, data, batches, 2)
    np.testing.assert_allclose(losses[0], expected[::2], rtol=1e-5)


def test_an_epoch_of_shuffled_batches_has_no_sample_twice():
    batches = np.asarray(networks.shuffled_batches(jax.random.key(0), 10, 3, 7))
    assert batches.shape == (7, 3)
    for epoch in (batches[:3], batches[3:6]):
        assert len(set(epoch.ravel())) == 9
        assert set(epoch.ravel()) <= set(range(10))
    assert np.any(batches[:3] != batches[3:6])
