"""Convolutional networks without residual connections."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.linen.initializers import constant, he_normal, normal
from jax import lax

from .case import SetUp, healthy
from .materials import (
    affine,
    binary_cross_entropy,
    convolve,
    cross_entropy,
    dense,
    equinox_set_up,
    images,
    kernel,
    keys,
    labels,
    linen_set_up,
    nnx_set_up,
    sentences,
)


def _average_pool(x, size=2):
    return nn.avg_pool(x, (size, size), (size, size))


@healthy("LeNet-5", "jax", "LeCun et al. 1998, tanh and mean pooling", is_trained=True)
def lenet():
    def loss_fn(params, x, y):
        x = _average_pool(jnp.tanh(convolve(params["conv1"], x)))
        x = _average_pool(jnp.tanh(convolve(params["conv2"], x, padding="VALID")))
        x = x.reshape(len(x), -1)
        x = jnp.tanh(affine(params["dense1"], x))
        x = jnp.tanh(affine(params["dense2"], x))
        return cross_entropy(affine(params["dense3"], x), y)

    k = keys()
    params = {
        "conv1": kernel(next(k), 5, 1, 6, 1.0),
        "conv2": kernel(next(k), 3, 6, 16, 1.0),
        "dense1": dense(next(k), 64, 32, 1.0),
        "dense2": dense(next(k), 32, 24, 1.0),
        "dense3": dense(next(k), 24, 10, 1.0),
    }
    return SetUp(loss_fn, params, images(channels=1))


@healthy("AlexNet", "linen", "Krizhevsky et al. 2012, maximum pooling and dropout")
def alexnet():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(16, (5, 5))(x))
            x = nn.max_pool(x, (3, 3), (2, 2))
            x = nn.relu(nn.Conv(32, (3, 3))(x))
            x = nn.relu(nn.Conv(32, (3, 3))(x))
            x = nn.max_pool(x, (3, 3), (2, 2)).reshape(len(x), -1)
            x = nn.Dropout(0.5, deterministic=False)(x)
            x = nn.relu(nn.Dense(64)(x))
            x = nn.Dropout(0.5, deterministic=False)(x)
            return nn.Dense(10)(x)

    x, y = images()
    model = Network()
    params = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    def loss_fn(params, x, y, key):
        return cross_entropy(model.apply(params, x, rngs={"dropout": key}), y)

    return SetUp(loss_fn, params, (x, y, jax.random.key(2)))


@healthy("VGG", "linen", "Simonyan and Zisserman 2015 with he_normal", is_trained=True)
def vgg():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (8, 16, 32):
                for _ in range(2):
                    x = nn.relu(nn.Conv(width, (3, 3), kernel_init=he_normal())(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.reshape(len(x), -1)
            x = nn.relu(nn.Dense(32, kernel_init=he_normal())(x))
            return nn.Dense(10)(x)

    return linen_set_up(Network(), cross_entropy, *images(size=8))


@healthy("all convolutional network", "haiku", "Springenberg et al. 2015")
def all_convolutional():
    def network(x):
        init = hk.initializers.VarianceScaling(2.0)
        for width, stride in ((16, 1), (16, 2), (32, 1), (32, 2)):
            x = jax.nn.relu(hk.Conv2D(width, 3, stride, w_init=init)(x))
        return jnp.mean(hk.Conv2D(10, 1)(x), axis=(1, 2))

    x, y = images()
    model = hk.without_apply_rng(hk.transform(network))

    def loss_fn(params, x, y):
        return cross_entropy(model.apply(params, x), y)

    return SetUp(loss_fn, jax.jit(model.init)(jax.random.key(0), x), (x, y))


@healthy("Inception", "nnx", "Szegedy et al. 2015, parallel branches")
def inception():
    class Block(nnx.Module):
        def __init__(self, inputs, rngs):
            self.one = nnx.Conv(inputs, 8, (1, 1), rngs=rngs)
            self.reduce3 = nnx.Conv(inputs, 6, (1, 1), rngs=rngs)
            self.three = nnx.Conv(6, 8, (3, 3), rngs=rngs)
            self.reduce5 = nnx.Conv(inputs, 4, (1, 1), rngs=rngs)
            self.five = nnx.Conv(4, 8, (5, 5), rngs=rngs)
            self.pooled = nnx.Conv(inputs, 8, (1, 1), rngs=rngs)

        def __call__(self, x):
            pooled = nnx.max_pool(x, (3, 3), (1, 1), "SAME")
            branches = [
                self.one(x),
                self.three(nnx.relu(self.reduce3(x))),
                self.five(nnx.relu(self.reduce5(x))),
                self.pooled(pooled),
            ]
            return nnx.relu(jnp.concatenate(branches, axis=-1))

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = Block(3, rngs)
            self.second = Block(32, rngs)
            self.last = nnx.Linear(32, 10, rngs=rngs)

        def __call__(self, x):
            x = nnx.max_pool(self.first(x), (2, 2), (2, 2))
            return self.last(jnp.mean(self.second(x), axis=(1, 2)))

    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, *images(size=8))


@healthy("DenseNet", "linen", "Huang et al. 2017, statistics returned beside the loss")
def densenet():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(16, (3, 3), kernel_init=he_normal(), use_bias=False)(x)
            for _ in range(4):
                y = nn.relu(nn.BatchNorm(use_running_average=False)(x))
                y = nn.Conv(8, (3, 3), kernel_init=he_normal(), use_bias=False)(y)
                x = jnp.concatenate([x, y], axis=-1)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
            return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))

    x, y = images(size=8)
    model = Network()
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def loss_fn(params, statistics, x, y):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = model.apply(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), updated

    batch = (variables["batch_stats"], x, y)
    return SetUp(loss_fn, variables["params"], batch, {"has_aux": True})


@healthy("SqueezeNet", "jax", "Iandola et al. 2016, fire modules")
def squeezenet():
    def fire(params, x):
        x = jax.nn.relu(convolve(params["squeeze"], x))
        branches = [convolve(params["one"], x), convolve(params["three"], x)]
        return jax.nn.relu(jnp.concatenate(branches, axis=-1))

    def loss_fn(params, x, y):
        x = jax.nn.relu(convolve(params["first"], x))
        for module in params["fire"]:
            x = fire(module, x)
        return cross_entropy(jnp.mean(convolve(params["last"], x), axis=(1, 2)), y)

    k = keys()

    def module(inputs):
        return {
            "squeeze": kernel(next(k), 1, inputs, 6),
            "one": kernel(next(k), 1, 6, 12),
            "three": kernel(next(k), 3, 6, 12),
        }

    params = {
        "first": kernel(next(k), 3, 3, 16),
        "fire": [module(16), module(24)],
        "last": kernel(next(k), 1, 24, 10, 1.0),
    }
    return SetUp(loss_fn, params, images(size=8))


@healthy("U-Net", "linen", "Ronneberger et al. 2015, a label for each pixel", is_trained=True)
def unet():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            skips = []
            for width in (8, 16):
                x = nn.relu(nn.Conv(width, (3, 3), kernel_init=he_normal())(x))
                skips.append(x)
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Conv(32, (3, 3), kernel_init=he_normal())(x))
            for width, skip in zip((16, 8), reversed(skips), strict=True):
                x = nn.ConvTranspose(width, (2, 2), (2, 2))(x)
                x = jnp.concatenate([x, skip], axis=-1)
                x = nn.relu(nn.Conv(width, (3, 3), kernel_init=he_normal())(x))
            return nn.Conv(3, (1, 1))(x)

    x, _ = images(8, 12, 1)
    y = jnp.asarray(np.digitize(np.asarray(x[..., 0]), [-0.5, 0.5]), jnp.int32)
    return linen_set_up(Network(), cross_entropy, x, y)


@healthy("detector with a focal loss", "linen", "Lin et al. 2017, bias of rare objects")
def focal_loss():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.relu(nn.Conv(16, (3, 3), kernel_init=he_normal())(x))
            prior = constant(-np.log(99.0))
            return nn.Conv(2, (3, 3), kernel_init=normal(0.01), bias_init=prior)(x)

    def loss(logits, y):
        p = jax.nn.sigmoid(logits)
        right = jnp.where(y == 1, p, 1 - p)
        log_right = jnp.where(y == 1, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))
        weight = jnp.where(y == 1, 0.25, 0.75)
        return -jnp.sum(weight * (1 - right) ** 2 * log_right) / jnp.sum(y)

    x, _ = images(8)
    y = jnp.asarray(np.random.default_rng(0).random((8, 12, 12, 2)) < 0.03, jnp.int32)
    return linen_set_up(Network(), loss, x, y)


@healthy("text convolution", "jax", "Kim 2014, maximum over time")
def text_convolution():
    def loss_fn(params, tokens, y):
        x = params["table"][tokens]
        features = []
        for weights in params["filters"]:
            windows = jnp.stack([x[:, i : 13 - len(weights) + i] for i in range(len(weights))], 0)
            z = jnp.einsum("wnti,wio->nto", windows, weights)
            features.append(jnp.max(jax.nn.relu(z), axis=1))
        return cross_entropy(affine(params["last"], jnp.concatenate(features, axis=-1)), y)

    k = keys()
    params = {
        "table": 0.25 * jax.random.normal(next(k), (32, 16)),
        "filters": [(2 / 16 / w) ** 0.5 * jax.random.normal(next(k), (w, 16, 8)) for w in (3, 4)],
        "last": dense(next(k), 16, 2, 1.0),
    }
    return SetUp(loss_fn, params, (sentences(16), labels(16, 2)))


@healthy("temporal convolutional network", "equinox", "Bai et al. 2018, dilated and causal")
def temporal_convolution():
    class Network(eqx.Module):
        layers: list
        last: eqx.nn.Conv1d

        def __init__(self, key):
            *layer_keys, last = jax.random.split(key, 4)
            self.layers = [
                eqx.nn.Conv1d(16, 16, 3, padding=[(2 * 2**i, 0)], dilation=2**i, key=k)
                for i, k in enumerate(layer_keys)
            ]
            self.last = eqx.nn.Conv1d(16, 1, 1, key=last)

        def __call__(self, x):
            for layer in self.layers:
                x = x + jax.nn.relu(layer(x))
            return self.last(x)[0]

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 16, 20)), jnp.float32)
    y = jnp.cumsum(x[:, 0], axis=-1) / jnp.sqrt(jnp.arange(1, 21))
    model = Network(jax.random.key(0))
    return equinox_set_up(model, lambda prediction, y: jnp.mean((prediction - y) ** 2), x, y)


@healthy("PixelCNN", "jax", "van den Oord et al. 2016, masked kernels")
def pixelcnn():
    def mask(size, includes_centre):
        allowed = np.zeros((size, size, 1, 1), np.float32)
        allowed[: size // 2] = 1
        allowed[size // 2, : size // 2 + includes_centre] = 1
        return allowed

    def loss_fn(params, x):
        z = jax.nn.relu(convolve(params["first"] * mask(5, False), 2 * x - 1))
        for weights in params["layers"]:
            z = jax.nn.relu(convolve(weights * mask(3, True), z))
        return binary_cross_entropy(convolve(params["last"], z), x)

    k = keys()
    params = {
        "first": kernel(next(k), 5, 1, 16, 4.0),
        "layers": [kernel(next(k), 3, 16, 16, 3.6) for _ in range(2)],
        "last": kernel(next(k), 1, 16, 1, 1.0),
    }
    x, _ = images(8, 10, 1, classes=2)
    return SetUp(loss_fn, params, ((x > 0).astype(jnp.float32),))


@healthy("separable convolutions", "haiku", "Chollet 2017, depthwise then pointwise")
def separable():
    def network(x):
        x = jax.nn.relu(hk.Conv2D(16, 3, w_init=hk.initializers.VarianceScaling(2.0))(x))
        for width in (16, 32):
            x = hk.DepthwiseConv2D(1, 3)(x)
            x = hk.Conv2D(width, 1, w_init=hk.initializers.VarianceScaling(2.0))(x)
            x = jax.nn.relu(hk.LayerNorm(-1, True, True)(x))
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return hk.Linear(10)(jnp.mean(x, axis=(1, 2)))

    x, y = images()
    model = hk.without_apply_rng(hk.transform(network))

    def loss_fn(params, x, y):
        return cross_entropy(model.apply(params, x), y)

    return SetUp(loss_fn, jax.jit(model.init)(jax.random.key(0), x), (x, y))
