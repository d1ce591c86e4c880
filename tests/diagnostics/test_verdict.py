"""The verdict of `signal_report`: what it calls five diseases, and that its advice cures them.

The cures are read from the sentence itself: the initializer, the factor, the nonlinearity.
"""

import itertools
import math
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from gradtx import diagnostics, initializers, normalization

WIDTH = 32
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Each program here runs once: compiling it well takes longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def inputs(scale=1.0, width=WIDTH, samples=64):
    rng = np.random.default_rng(100)
    return jnp.asarray(scale * rng.standard_normal((samples, width)), jnp.float32)


def network(depth, initializer, seed=0, bias=0.0):
    keys = jax.random.split(jax.random.key(seed), depth)
    return [
        {"kernel": initializer(key, (WIDTH, WIDTH), jnp.float32), "bias": jnp.full(WIDTH, bias)}
        for key in keys
    ]


def loss_with(activation, normalize=lambda z: z):
    def loss_fn(params, x):
        *hidden, last = params
        for layer in hidden:
            x = activation(normalize(x @ layer["kernel"] + layer["bias"][None]))
        return jnp.mean((x @ last["kernel"] + last["bias"][None]) ** 2)

    return loss_fn


def scaled(initializer, factor):
    return lambda *arguments: factor * initializer(*arguments)


def indices_of(names):
    return [int(re.match(r"(\d+)/kernel$", name)[1]) for name in names]


def in_quotation_marks(sentence):
    return re.findall(r"'([^']*)'", sentence)


# The remedies, as the sentence names them.


def named_initializer(sentence):
    """The initializer that the sentence asks for, and the variance times fan_in that it states."""
    found = re.search(r"\b(\w+(?:_normal|_uniform))\(\)", sentence)
    assert found, sentence
    return getattr(initializers, found[1])()


def reinitialized(params, report, seed=7):
    """With new weights in the layers named, and their biases zero if the sentence says so."""
    initializer = named_initializer(report.verdict)
    keys = jax.random.split(jax.random.key(seed), len(params))
    named = indices_of(report.diagnosis.layers)
    assert named
    without_bias = "biases with zeros" in report.verdict
    return [
        {
            "kernel": initializer(keys[i], layer["kernel"].shape, jnp.float32),
            "bias": jnp.zeros_like(layer["bias"]) if without_bias else layer["bias"],
        }
        if i in named
        else layer
        for i, layer in enumerate(params)
    ]


def multiplied(params, report):
    found = re.search(rf"multiply their weights by ({NUMBER})", report.verdict)
    assert found, report.verdict
    named = indices_of(report.diagnosis.layers)
    assert named
    return [
        {**layer, "kernel": float(found[1]) * layer["kernel"]} if i in named else layer
        for i, layer in enumerate(params)
    ]


def layer_normalized(z):
    return normalization.layer_norm(z, jnp.ones(WIDTH), jnp.zeros(WIDTH))


def batch_normalized(z):
    return (z - jnp.mean(z, axis=0, keepdims=True)) / jnp.sqrt(
        jnp.var(z, axis=0, keepdims=True) + 1e-5
    )


NORMALIZATIONS = {"batch_norm": batch_normalized, "layer_norm": layer_normalized}


def assert_healthy(report):
    assert report.kind == "healthy", report.verdict
    assert report.diagnosis.layers == ()
    assert report.diagnosis.factor == 1.0
    assert report.verdict.startswith("healthy")


def assert_sick(report, kind):
    assert report.kind == report.diagnosis.kind == kind, report.verdict
    assert report.verdict == report.diagnosis.sentence
    assert report.verdict.startswith(kind)
    assert report.diagnosis.layers
    listed = set(in_quotation_marks(report.verdict))
    if len(report.diagnosis.layers) <= 4:
        assert set(report.diagnosis.layers) <= listed
    else:
        assert f"{len(report.diagnosis.layers)} layers" in report.verdict
        assert {report.diagnosis.layers[0], report.diagnosis.layers[-1]} <= listed


# Signals that explode or vanish.


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("factor", [1.5, 0.5])
def test_multiples_of_the_identity(factor, activation):
    """The factor per layer is exactly known, and so is the cure."""
    f = {"linear": lambda z: z, "relu": jax.nn.relu}[activation]
    params = network(8, lambda key, shape, dtype: factor * jnp.eye(*shape, dtype=dtype))
    x = jnp.abs(inputs())
    report = diagnostics.signal_report(loss_with(f), params, x)
    assert_sick(report, "exploding" if factor > 1 else "vanishing")
    assert report.diagnosis.factor == pytest.approx(factor, rel=1e-5)
    assert f"a factor of {factor} per layer" in report.verdict
    assert indices_of(report.diagnosis.layers) == list(range(7))
    rms = [layer.rms for layer in report.layers]
    expected = [factor**i * float(jnp.sqrt(jnp.mean(x**2))) for i in range(1, 9)]
    np.testing.assert_allclose(rms, expected, rtol=1e-5)
    cured = diagnostics.signal_report(loss_with(f), multiplied(params, report), x)
    assert_healthy(cured)
    np.testing.assert_allclose(
        [layer.rms for layer in cured.layers[:-1]], rms[0] / factor, rtol=0.05
    )


SICK = {
    "exploding_relu": (jax.nn.relu, initializers.he_normal(), 2.0, "exploding"),
    "vanishing_tanh": (jnp.tanh, initializers.glorot_normal(), 0.3, "vanishing"),
    "exploding_linear": (lambda z: z, initializers.lecun_normal(), 1.8, "exploding"),
    "vanishing_gelu": (jax.nn.gelu, initializers.he_normal(), 0.4, "vanishing"),
}


@pytest.mark.parametrize("case", SICK)
def test_advice_against_a_changing_signal_cures(case):
    activation, initializer, factor, kind = SICK[case]
    params, loss_fn = network(8, scaled(initializer, factor)), loss_with(activation)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, kind)
    assert indices_of(report.diagnosis.layers) == list(range(7))
    if case == "vanishing_gelu":
        # For a small argument z, gelu(z) is about z / 2.
        assert 0.5 * 0.4 < report.diagnosis.factor < math.sqrt(2) * 0.4
    else:
        assert report.diagnosis.factor == pytest.approx(factor, rel=0.15)
    fresh = reinitialized(params, report)
    assert_healthy(diagnostics.signal_report(loss_fn, fresh, inputs()))
    if case in ("vanishing_tanh", "exploding_linear"):
        rescaled = diagnostics.signal_report(loss_fn, multiplied(params, report), inputs())
        assert_healthy(rescaled)
    # The statement about the variance, of the weights that are there.
    stated = re.search(rf"it is ({NUMBER}) / fan_in now", report.verdict)
    variance = np.mean([np.mean(np.square(layer["kernel"])) for layer in params[:-1]])
    assert float(stated[1]) == pytest.approx(variance * WIDTH, rel=0.1)


@pytest.mark.parametrize(
    ("case", "normalization_name"),
    [("exploding_relu", "layer_norm"), ("vanishing_tanh", "batch_norm")],
)
def test_normalization_cures_a_changing_signal(case, normalization_name):
    activation, initializer, factor, kind = SICK[case]
    params = network(8, scaled(initializer, factor))
    report = diagnostics.signal_report(loss_with(activation), params, inputs())
    assert_sick(report, kind)
    assert f"{normalization_name}" in report.verdict
    assert "before the nonlinearities" in report.verdict
    normalized = loss_with(activation, NORMALIZATIONS[normalization_name])
    # Only hidden layers are normalized: the last stays too large or too small.
    params[-1] = network(1, initializer)[0]
    assert_healthy(diagnostics.signal_report(normalized, params, inputs()))


def test_only_the_layers_that_are_wrong_are_named():
    params = network(8, initializers.he_normal())
    for i in (3, 4, 6):
        params[i]["kernel"] = 6.0 * params[i]["kernel"]
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "exploding")
    assert {3, 4, 6} <= set(indices_of(report.diagnosis.layers)) <= {2, 3, 4, 5, 6, 7}
    assert_healthy(diagnostics.signal_report(loss_fn, reinitialized(params, report), inputs()))


def test_stack_in_a_scan_is_diagnosed_like_a_list():
    params = {"kernel": jnp.stack([1.5 * jnp.eye(WIDTH)] * 8)}

    def loss_fn(params, x):
        def layer(x, kernel):
            return jax.nn.relu(x @ kernel), None

        return jnp.mean(lax.scan(layer, x, params["kernel"])[0])

    report = diagnostics.signal_report(loss_fn, params, jnp.abs(inputs()))
    assert_sick(report, "exploding")
    assert report.diagnosis.factor == pytest.approx(1.5, rel=1e-5)
    assert report.diagnosis.layers[0] == "kernel[0]"


def test_stack_in_nested_scans():
    params = {"kernel": jnp.stack([1.5 * jnp.eye(WIDTH)] * 8).reshape(4, 2, WIDTH, WIDTH)}

    def loss_fn(params, x):
        def layer(x, kernel):
            return jax.nn.relu(x @ kernel), None

        def pair(x, kernels):
            return lax.scan(layer, x, kernels)[0], None

        return jnp.mean(lax.scan(pair, x, params["kernel"])[0])

    report = diagnostics.signal_report(loss_fn, params, jnp.abs(inputs()))
    assert_sick(report, "exploding")
    assert report.diagnosis.factor == pytest.approx(1.5, rel=1e-5)


def test_gradient_that_vanishes_behind_a_squashing_function():
    """The slope of a sigmoid is at most 1/4, while its output stays at 1/2."""
    params = network(6, initializers.glorot_normal())
    report = diagnostics.signal_report(loss_with(jax.nn.sigmoid), params, inputs())
    assert_sick(report, "vanishing")
    assert "gradient on its way back" in report.verdict
    gradients = [layer.grad_rms for layer in report.layers]
    per_layer = (gradients[0] / gradients[-1]) ** (1 / 5)
    assert report.diagnosis.factor == pytest.approx(per_layer, rel=0.2)
    assert 0.1 < report.diagnosis.factor < 0.35
    replacement = re.search(r"replace the sigmoid by a (\w+)", report.verdict)
    assert replacement, report.verdict
    cured = loss_with(getattr(jax.nn, replacement[1]))
    fresh = network(6, named_initializer(report.verdict))
    assert_healthy(diagnostics.signal_report(cured, fresh, inputs()))


def test_clipping_threshold_bounds_an_explosion():
    params = network(6, scaled(initializers.he_normal(), 2.0))
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    found = re.search(rf"clip_by_global_norm\(({NUMBER})\)", report.verdict)
    assert found, report.verdict
    norm = float(optax.tree.norm(jax.grad(loss_fn)(params, inputs())))
    assert 0 < float(found[1]) < norm


# Dead units.


def test_advice_for_dead_units_cures():
    params = network(6, initializers.he_normal())
    params[1]["bias"] = params[1]["bias"] - 30.0
    params[4]["bias"] = params[4]["bias"] - 30.0
    # Something arrives behind the dead layers.
    params[2]["bias"] = params[2]["bias"] + 1.0
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "dead")
    assert indices_of(report.diagnosis.layers) == [1, 4]
    assert "100%" in report.verdict
    assert report.layers[1].dead_fraction == 1.0
    assert_healthy(diagnostics.signal_report(loss_fn, reinitialized(params, report), inputs()))


def test_share_of_dead_units_is_stated():
    params = network(4, initializers.he_normal())
    chosen = np.arange(WIDTH) < 28
    params[1]["bias"] = jnp.where(chosen, -100.0, params[1]["bias"])
    loss_fn = loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "dead")
    assert indices_of(report.diagnosis.layers) == [1]
    assert report.layers[1].dead_fraction == pytest.approx(28 / 32)
    assert "88%" in report.verdict
    assert "leaky_relu" in report.verdict
    # The other remedy in the sentence: no unit is without a gradient any more.
    leaky = loss_with(jax.nn.leaky_relu)
    assert diagnostics.signal_report(leaky, params, inputs()).kind != "dead"


def test_units_killed_by_a_learning_rate():
    """Training with a far too large step kills the network, and the report says so."""
    params, loss_fn = network(4, initializers.he_normal()), loss_with(jax.nn.relu)
    gradients = jax.grad(loss_fn)(params, inputs())
    broken = jax.tree.map(lambda p, g: p - 1e3 * g, params, gradients)
    report = diagnostics.signal_report(loss_fn, broken, inputs())
    assert_sick(report, "dead")
    assert "learning rate" in report.verdict


# Saturated units.


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_advice_for_saturated_units_cures(name):
    activation = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[name]
    params = network(4, initializers.glorot_normal())
    for i in (1, 2):
        params[i]["kernel"] = 40.0 * params[i]["kernel"]
    params[2]["bias"] = params[2]["bias"] + 3.0
    loss_fn = loss_with(activation)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "saturated")
    assert indices_of(report.diagnosis.layers) == [1, 2]
    assert name in report.verdict
    worst = max(layer.saturated_fraction for layer in report.layers)
    assert worst > 0.5
    assert f"{worst:.0%}" in report.verdict
    cured = diagnostics.signal_report(loss_fn, reinitialized(params, report), inputs())
    assert max(layer.saturated_fraction for layer in cured.layers) < 0.1
    if name == "tanh":
        assert_healthy(cured)
    else:
        # No initializer makes the slope of a sigmoid larger than 1/4.
        assert cured.kind in ("healthy", "vanishing")
    stated = re.search(rf"it is ({NUMBER}) / fan_in now", report.verdict)
    assert 0.8 * 1600 < float(stated[1]) < 1.2 * 1600


def test_standardizing_the_inputs_cures_saturation():
    params, loss_fn = network(3, initializers.glorot_normal()), loss_with(jnp.tanh)
    x = 40.0 + inputs(100.0)
    report = diagnostics.signal_report(loss_fn, params, x)
    assert_sick(report, "saturated")
    assert 0 in indices_of(report.diagnosis.layers)
    assert "standardize the inputs" in report.verdict
    stated = re.search(rf"their RMS is ({NUMBER})", report.verdict)
    assert float(stated[1]) == pytest.approx(float(jnp.sqrt(jnp.mean(x**2))), rel=0.01)
    standardized = (x - x.mean()) / x.std()
    assert_healthy(diagnostics.signal_report(loss_fn, params, standardized))


@pytest.mark.parametrize("normalization_name", NORMALIZATIONS)
def test_normalization_cures_saturation(normalization_name):
    params = network(4, scaled(initializers.glorot_normal(), 20.0))
    report = diagnostics.signal_report(loss_with(jnp.tanh), params, inputs())
    assert_sick(report, "saturated")
    assert normalization_name in report.verdict
    assert "before the nonlinearity" in report.verdict
    normalized = loss_with(jnp.tanh, NORMALIZATIONS[normalization_name])
    assert_healthy(diagnostics.signal_report(normalized, params, inputs()))


# NaN.


def variance_scaled(x, epsilon):
    centered = x - jnp.mean(x, axis=0, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axis=0, keepdims=True) + epsilon)


SICK_WITH_NAN = {
    # the mistake, what the sentence is to ask for, and the function that does it
    "rsqrt": (
        lambda z: variance_scaled(z * jnp.asarray([1.0, 0.0] * (WIDTH // 2))[None], 0.0),
        "small epsilon under the root",
        lambda z: variance_scaled(z * jnp.asarray([1.0, 0.0] * (WIDTH // 2))[None], 1e-5),
    ),
    "log": (
        lambda z: jnp.log(jax.nn.softmax(100.0 * z)) / 100.0,
        "log_softmax",
        lambda z: jax.nn.log_softmax(100.0 * z) / 100.0,
    ),
    "div": (
        lambda z: z / jnp.max(jax.nn.relu(z) * 0, axis=-1, keepdims=True),
        "small epsilon to the denominator",
        lambda z: z / (jnp.max(jax.nn.relu(z) * 0, axis=-1, keepdims=True) + 1.0),
    ),
    "sqrt": (
        lambda z: z + jnp.sqrt(jnp.square(z - lax.stop_gradient(z))),
        "small epsilon under the root",
        lambda z: z + jnp.sqrt(jnp.square(z - lax.stop_gradient(z)) + 1e-6),
    ),
    "exp": (
        lambda z: jnp.exp(100.0 * z) / jnp.sum(jnp.exp(100.0 * z), axis=-1, keepdims=True),
        "subtract the largest",
        lambda z: (
            jnp.exp(100.0 * (z - lax.stop_gradient(jnp.max(z, -1, keepdims=True))))
            / jnp.sum(
                jnp.exp(100.0 * (z - lax.stop_gradient(jnp.max(z, -1, keepdims=True)))),
                axis=-1,
                keepdims=True,
            )
        ),
    ),
}


@pytest.mark.parametrize("operation", SICK_WITH_NAN)
def test_advice_for_nan_cures(operation):
    mistake, advice, remedy = SICK_WITH_NAN[operation]
    params = network(3, initializers.he_normal())

    def loss_with_function(f):
        def loss_fn(params, x):
            first, second, third = params
            hidden = jax.nn.relu(x @ first["kernel"])
            return jnp.mean((f(hidden @ second["kernel"]) @ third["kernel"]) ** 2)

        return loss_fn

    report = diagnostics.signal_report(loss_with_function(mistake), params, inputs())
    assert_sick(report, "nan")
    root = report.culprit.infinity or report.culprit
    assert operation in (root.operation, report.culprit.derivative_of)
    assert "1/kernel" in (root.layer, *report.diagnosis.layers)
    assert "'1/kernel'" in report.verdict
    assert f"`{operation}`" in report.verdict
    assert advice in report.verdict
    cured = jax.jit(jax.value_and_grad(loss_with_function(remedy)))(params, inputs())
    assert all(bool(jnp.all(jnp.isfinite(array))) for array in jax.tree.leaves(cured))


def test_overflow_of_an_exploding_network_is_traced_to_its_weights():
    params, loss_fn = network(8, scaled(initializers.he_normal(), 1e6)), loss_with(jax.nn.relu)
    report = diagnostics.signal_report(loss_fn, params, inputs())
    assert_sick(report, "nan")
    assert "grows by a factor" in report.verdict
    assert report.diagnosis.factor == pytest.approx(1e6, rel=0.2)
    initializer = named_initializer(report.verdict)
    assert_healthy(diagnostics.signal_report(loss_fn, network(8, initializer), inputs()))


# Recurrences.


def recurrent_loss(activation):
    def loss_fn(params, x):
        def step(state, signal):
            return activation(state @ params["recurrent"] + signal @ params["input"]), None

        return jnp.mean(lax.scan(step, jnp.ones(x.shape[1:]), x)[0] ** 2)

    return loss_fn


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_gradient_through_time(factor):
    """In a linear recurrence the gradient changes by the factor in each step on its way back."""
    x = inputs(samples=20 * 4).reshape(20, 4, WIDTH)
    params = {"recurrent": factor * jnp.eye(WIDTH), "input": jnp.eye(WIDTH)}
    loss_fn = recurrent_loss(lambda z: z)
    report = diagnostics.signal_report(loss_fn, params, x)
    assert_sick(report, "exploding" if factor > 1 else "vanishing")
    assert report.diagnosis.factor == pytest.approx(factor, rel=0.1)
    assert "per step of the recurrence" in report.verdict
    assert report.diagnosis.layers == ("recurrent",)
    (layer,) = (one for one in report.layers if one.name == "recurrent")
    steps = np.asarray(layer.grad_rms_by_step)
    np.testing.assert_allclose(steps[1:] / steps[:-1], 1 / factor, rtol=1e-5)
    found = re.search(rf"multiply their weights by ({NUMBER})", report.verdict)
    assert found, report.verdict
    cured = {**params, "recurrent": float(found[1]) * params["recurrent"]}
    steps = next(
        one.grad_rms_by_step
        for one in diagnostics.signal_report(loss_fn, cured, x).layers
        if one.name == "recurrent"
    )
    assert steps[0] == pytest.approx(steps[-1], rel=0.5)


# Healthy networks.


@pytest.mark.parametrize("depth", [2, 16])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_well_initialized_networks_are_healthy(name, depth):
    activation, initializer = {
        "relu": (jax.nn.relu, initializers.he_normal()),
        "tanh": (jnp.tanh, initializers.glorot_normal()),
    }[name]
    params = network(depth, initializer)
    assert_healthy(diagnostics.signal_report(loss_with(activation), params, inputs()))


@pytest.mark.parametrize("name", ["gelu", "silu", "selu", "elu"])
def test_other_activations_with_their_initializers_are_healthy(name):
    initializer = initializers.lecun_normal() if name == "selu" else initializers.he_normal()
    loss_fn = loss_with(getattr(jax.nn, name))
    assert_healthy(diagnostics.signal_report(loss_fn, network(4, initializer), inputs()))


def trained(loss_fn, params, *args, steps=60, learning_rate=3e-3):
    tx = optax.adam(learning_rate)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params, *args), state)
            return (optax.apply_updates(params, updates), state), None

        return lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return run(params)


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=-1))


def labels_for(number, classes):
    return jax.nn.one_hot(jnp.arange(number) % classes, classes)


def classifier_loss(params, x, labels):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return cross_entropy((x @ last["kernel"] + last["bias"][None])[:, :10], labels)


def test_trained_classifier_is_healthy():
    params = network(8, initializers.he_normal())
    labels = labels_for(64, 10)
    before = float(classifier_loss(params, inputs(), labels))
    params = trained(classifier_loss, params, inputs(), labels, learning_rate=3e-3, steps=150)
    report = diagnostics.signal_report(classifier_loss, params, inputs(), labels)
    assert report.loss < 0.1 * before
    assert_healthy(report)


class LeNet(nn.Module):
    has_norm: bool
    pool: str

    @nn.compact
    def __call__(self, x):
        he = initializers.he_normal()
        for features in (6, 8):
            x = nn.Conv(features, (3, 3), kernel_init=he)(x)
            if self.has_norm:
                x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.relu(x)
            operation, start = (lax.max, -jnp.inf) if self.pool == "max" else (lax.add, 0.0)
            x = nn.pool(x, start, operation, (2, 2), (2, 2), "VALID")
            x = x if self.pool == "max" else 0.25 * x
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(24, kernel_init=he)(x))
        return nn.Dense(10)(x)


@pytest.mark.parametrize(
    ("has_norm", "pool", "is_trained"),
    [
        pytest.param(False, "max", False, id="plain-max"),
        pytest.param(True, "mean", False, id="batch_norm-mean"),
        pytest.param(False, "max", True, id="plain-max-trained"),
        pytest.param(True, "max", True, id="batch_norm-max-trained"),
    ],
)
def test_convolutional_network_is_healthy(has_norm, pool, is_trained):
    model = LeNet(has_norm, pool)
    images = inputs(samples=8, width=144).reshape(8, 12, 12, 1)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss_fn(params, images, labels):
        given = {**variables, "params": params}
        return cross_entropy(model.apply(given, images, mutable=["batch_stats"])[0], labels)

    params, labels = variables["params"], labels_for(8, 10)
    if is_trained:
        params = trained(loss_fn, params, images, labels)
    assert_healthy(diagnostics.signal_report(loss_fn, params, images, labels))


class ResidualNetwork(nn.Module):
    blocks: int

    @nn.compact
    def __call__(self, x):
        def normalized(x):
            return nn.BatchNorm(use_running_average=False)(x)

        x = nn.relu(normalized(nn.Conv(6, (3, 3), use_bias=False)(x)))
        for _ in range(self.blocks):
            hidden = nn.relu(normalized(nn.Conv(6, (3, 3), use_bias=False)(x)))
            x = nn.relu(x + normalized(nn.Conv(6, (3, 3), use_bias=False)(hidden)))
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


def test_residual_network_with_batch_norm_is_healthy():
    model = ResidualNetwork(3)
    images = inputs(samples=8, width=64).reshape(8, 8, 8, 1)
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss_fn(params, images, labels):
        given = {**variables, "params": params}
        return cross_entropy(model.apply(given, images, mutable=["batch_stats"])[0], labels)

    report = diagnostics.signal_report(loss_fn, variables["params"], images, labels_for(8, 10))
    assert len(report.layers) == 8
    assert_healthy(report)


def transformer(blocks, width, seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 4 * blocks + 2))
    init = initializers.lecun_normal()

    def weights(m, n):
        return init(next(keys), (m, n), jnp.float32)

    return {
        "embedding": jax.random.normal(next(keys), (11, width)),
        "blocks": [
            {
                "attention": weights(width, 3 * width),
                "projection": weights(width, width),
                "up": weights(width, 4 * width),
                "down": weights(4 * width, width),
            }
            for _ in range(blocks)
        ],
        "head": weights(width, 11),
    }


def standardized(x):
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    return centered * lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-5)


def transformer_loss(params, tokens, heads=2):
    x = params["embedding"][tokens[:, :-1]]
    is_seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    for block in params["blocks"]:
        projected = (standardized(x) @ block["attention"]).reshape(*x.shape[:2], 3, heads, -1)
        query, key, value = jnp.moveaxis(projected, 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        shares = jax.nn.softmax(jnp.where(is_seen[None, None], scores, -1e9))
        attended = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(x.shape)
        x = x + attended @ block["projection"]
        x = x + jax.nn.gelu(standardized(x) @ block["up"]) @ block["down"]
    logits = standardized(x) @ params["head"]
    return cross_entropy(logits, jax.nn.one_hot(tokens[:, 1:], 11))


def test_transformer_is_healthy():
    blocks = 2
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 9)))
    params = transformer(blocks, 16)
    report = diagnostics.signal_report(transformer_loss, params, tokens)
    assert len(report.layers) == 4 * blocks + 1
    assert_healthy(report)


def test_transformer_whose_branches_begin_at_zero_is_healthy():
    """A usual trick: each block begins as the identity."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 9)))
    params = transformer(1, 16)
    for block in params["blocks"]:
        block["projection"] = jnp.zeros_like(block["projection"])
        block["down"] = jnp.zeros_like(block["down"])
    assert_healthy(diagnostics.signal_report(transformer_loss, params, tokens))


def test_classifier_whose_head_begins_at_zero_is_healthy():
    params = network(4, initializers.he_normal())
    params[-1]["kernel"] = jnp.zeros((WIDTH, WIDTH))
    report = diagnostics.signal_report(classifier_loss, params, inputs(), labels_for(64, 10))
    assert_healthy(report)


@pytest.mark.parametrize("cell", ["OptimizedLSTMCell", "GRUCell"])
def test_gated_recurrent_network_of_flax_is_healthy(cell):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(getattr(nn, cell)(12))(x)[:, -1])

    x = inputs(samples=8 * 15, width=5).reshape(8, 15, 5)
    params = jax.jit(Network().init)(jax.random.key(0), x)

    def loss_fn(params, x, labels):
        return cross_entropy(Network().apply(params, x), labels)

    assert_healthy(diagnostics.signal_report(loss_fn, params, x, labels_for(8, 3)))


class RecurrentNetwork(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __call__(self, x):
        def step(state, signal):
            return self.cell(signal, state), None

        state, _ = lax.scan(step, (jnp.zeros(12), jnp.zeros(12)), x)
        return self.head(state[0])


def test_gated_recurrent_network_of_equinox_is_healthy():
    keys = jax.random.split(jax.random.key(0))
    model = RecurrentNetwork(eqx.nn.LSTMCell(5, 12, key=keys[0]), eqx.nn.Linear(12, 3, key=keys[1]))
    x = inputs(samples=8 * 15, width=5).reshape(8, 15, 5)

    def loss_fn(model, x, labels):
        return cross_entropy(jax.vmap(model)(x), labels)

    assert_healthy(diagnostics.signal_report(loss_fn, model, x, labels_for(8, 3)))


def test_trained_autoencoder_is_healthy():
    widths = (WIDTH, 16, 8, 16, WIDTH)
    init = initializers.he_normal()
    params = [
        init(jax.random.key(i), shape, jnp.float32)
        for i, shape in enumerate(itertools.pairwise(widths))
    ]

    def loss_fn(params, x):
        hidden = x
        for kernel in params[:-1]:
            hidden = jax.nn.relu(hidden @ kernel)
        return jnp.mean((hidden @ params[-1] - x) ** 2)

    params = trained(loss_fn, params, inputs(), steps=150)
    assert_healthy(diagnostics.signal_report(loss_fn, params, inputs()))


def test_linear_regression_from_zero_is_healthy():
    def loss_fn(params, x):
        return jnp.mean((x @ params["w"] + params["b"] - 1.0) ** 2)

    params = {"w": jnp.zeros(WIDTH), "b": jnp.asarray(0.0)}
    assert_healthy(diagnostics.signal_report(loss_fn, params, inputs()))
