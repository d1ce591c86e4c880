"""Networks for the verdict of `signal_report`, and the remedies that its sentence names.

The remedies are read from the sentence itself: the initializer, the factor, the nonlinearity.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import initializers, normalization

WIDTH = 32
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def inputs(scale=1.0, width=WIDTH, samples=64):
    rng = np.random.default_rng(100)
    return jnp.asarray(scale * rng.standard_normal((samples, width)), jnp.float32)


def network(depth, initializer):
    keys = jax.random.split(jax.random.key(0), depth)
    return [
        {"kernel": initializer(key, (WIDTH, WIDTH), jnp.float32), "bias": jnp.zeros(WIDTH)}
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
    """The initializer that the sentence recommends."""
    found = re.search(r"\b(\w+(?:_normal|_uniform))\(\)", sentence)
    assert found, sentence
    return getattr(initializers, found[1])()


def reinitialized(params, report):
    """New weights in the named layers, and zero biases there if the sentence says so."""
    initializer = named_initializer(report.verdict)
    keys = jax.random.split(jax.random.key(7), len(params))
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
    found = re.search(rf"multiply (?:its|their) weights by ({NUMBER})", report.verdict)
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
