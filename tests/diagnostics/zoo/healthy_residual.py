"""Residual networks for images."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen.initializers import he_normal, truncated_normal, zeros

from .case import SetUp, healthy
from .materials import (
    affine,
    convolve,
    cross_entropy,
    dense,
    equinox_set_up,
    images,
    kernel,
    keys,
    linen_set_up,
    nnx_set_up,
)

Conv3 = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=he_normal())
BatchNorm = functools.partial(nn.BatchNorm, use_running_average=False)


def _with_statistics(model, x, y):
    """The statistics of batch normalization are updated and returned beside the loss."""
    variables = model.init(jax.random.key(0), x)

    def loss_fn(params, statistics, x, y):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = model.apply(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), updated

    batch = (variables["batch_stats"], x, y)
    return SetUp(loss_fn, variables["params"], batch, {"has_aux": True})


@healthy("ResNet v1", "linen", "He et al. 2016, a zero last scale", is_trained=True)
def resnet():
    class Block(nn.Module):
        width: int
        strides: int

        @nn.compact
        def __call__(self, x):
            y = nn.relu(BatchNorm()(Conv3(self.width, strides=self.strides)(x)))
            y = BatchNorm(scale_init=zeros)(Conv3(self.width)(y))
            if x.shape != y.shape:
                x = nn.Conv(self.width, (1, 1), self.strides, use_bias=False)(x)
                x = BatchNorm()(x)
            return nn.relu(x + y)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(BatchNorm()(Conv3(8)(x)))
            for width, strides in ((8, 1), (16, 2)):
                x = Block(width, strides)(x)
                x = Block(width, 1)(x)
            return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))

    return _with_statistics(Network(), *images(size=8))


@healthy("ResNet v2", "nnx", "He et al. 2016, normalization before activation")
def preactivation_resnet():
    class Block(nnx.Module):
        def __init__(self, width, rngs):
            init = {"kernel_init": nnx.initializers.he_normal(), "rngs": rngs}
            self.norm1 = nnx.BatchNorm(width, rngs=rngs)
            self.conv1 = nnx.Conv(width, width, (3, 3), use_bias=False, **init)
            self.norm2 = nnx.BatchNorm(width, rngs=rngs)
            self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, **init)

        def __call__(self, x):
            y = self.conv1(nnx.relu(self.norm1(x)))
            return x + self.conv2(nnx.relu(self.norm2(y)))

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Conv(3, 12, (3, 3), rngs=rngs)
            self.blocks = nnx.List([Block(12, rngs) for _ in range(3)])
            self.norm = nnx.BatchNorm(12, rngs=rngs)
            self.last = nnx.Linear(12, 10, rngs=rngs)

        def __call__(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return self.last(jnp.mean(nnx.relu(self.norm(x)), axis=(1, 2)))

    return nnx_set_up(Network(nnx.Rngs(0)), cross_entropy, *images(size=8))


@healthy("Wide ResNet", "linen", "Zagoruyko and Komodakis 2016, dropout inside")
def wide_resnet():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Conv3(8)(x)
            for _ in range(2):
                y = nn.relu(BatchNorm()(x))
                skip = nn.Conv(32, (1, 1), use_bias=False)(y) if x.shape[-1] != 32 else x
                y = nn.relu(BatchNorm()(Conv3(32)(y)))
                y = nn.Dropout(0.3, deterministic=False)(y)
                x = skip + Conv3(32)(y)
            return nn.Dense(10)(jnp.mean(nn.relu(BatchNorm()(x)), axis=(1, 2)))

    x, y = images(size=8)
    model = Network()
    variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    def loss_fn(params, statistics, x, y, key):
        variables = {"params": params, "batch_stats": statistics}
        rngs = {"dropout": key}
        logits, updated = model.apply(variables, x, rngs=rngs, mutable=["batch_stats"])
        return cross_entropy(logits, y), updated

    batch = (variables["batch_stats"], x, y, jax.random.key(2))
    return SetUp(loss_fn, variables["params"], batch, {"has_aux": True})


@healthy("ResNeXt", "linen", "Xie et al. 2017, grouped convolutions")
def resnext():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(BatchNorm()(Conv3(16)(x)))
            for _ in range(2):
                y = nn.relu(BatchNorm()(nn.Conv(16, (1, 1), use_bias=False)(x)))
                y = nn.relu(BatchNorm()(Conv3(16, feature_group_count=4)(y)))
                y = BatchNorm()(nn.Conv(16, (1, 1), use_bias=False)(y))
                x = nn.relu(x + y)
            return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))

    return _with_statistics(Network(), *images(size=8))


@healthy("MobileNetV2", "linen", "Sandler et al. 2018, inverted residuals", is_trained=True)
def mobilenet():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu6(BatchNorm()(Conv3(8)(x)))
            for _ in range(2):
                y = nn.Conv(32, (1, 1), use_bias=False, kernel_init=he_normal())(x)
                y = nn.relu6(BatchNorm()(y))
                y = nn.relu6(BatchNorm()(Conv3(32, feature_group_count=32)(y)))
                x = x + BatchNorm()(nn.Conv(8, (1, 1), use_bias=False)(y))
            x = nn.relu6(BatchNorm()(nn.Conv(32, (1, 1), use_bias=False)(x)))
            return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))

    return _with_statistics(Network(), *images(size=8))


@healthy("EfficientNet", "linen", "Tan and Le 2019, squeeze and excitation, swish")
def efficientnet():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.swish(BatchNorm()(Conv3(8)(x)))
            for _ in range(2):
                y = nn.swish(BatchNorm()(nn.Conv(32, (1, 1), use_bias=False)(x)))
                y = nn.swish(BatchNorm()(Conv3(32, feature_group_count=32)(y)))
                gate = jnp.mean(y, axis=(1, 2), keepdims=True)
                gate = nn.swish(nn.Conv(4, (1, 1))(gate))
                y = y * nn.sigmoid(nn.Conv(32, (1, 1))(gate))
                x = x + BatchNorm()(nn.Conv(8, (1, 1), use_bias=False)(y))
            return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))

    return _with_statistics(Network(), *images(size=8))


@healthy("ConvNeXt", "linen", "Liu et al. 2022, layer scale of 1e-6", is_trained=True)
def convnext():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = truncated_normal(0.02)
            x = nn.Conv(16, (2, 2), (2, 2), kernel_init=init)(x)
            x = nn.LayerNorm(epsilon=1e-6)(x)
            for i in range(3):
                y = nn.Conv(16, (5, 5), feature_group_count=16, kernel_init=init)(x)
                y = nn.LayerNorm(epsilon=1e-6)(y)
                y = nn.gelu(nn.Dense(64, kernel_init=init)(y))
                y = nn.Dense(16, kernel_init=init)(y)
                scale = self.param(f"layer_scale_{i}", nn.initializers.constant(1e-6), (16,))
                x = x + scale * y
            x = nn.LayerNorm(epsilon=1e-6)(jnp.mean(x, axis=(1, 2)))
            return nn.Dense(10, kernel_init=init)(x)

    return linen_set_up(Network(), cross_entropy, *images())


@healthy("Fixup", "jax", "Zhang et al. 2019, no normalization, zero last layers")
def fixup():
    def loss_fn(params, x, y):
        x = jax.nn.relu(convolve(params["first"], x))
        for block in params["blocks"]:
            z = convolve(block["conv1"], x + block["bias1"])
            z = jax.nn.relu(z + block["bias2"]) + block["bias3"]
            x = jax.nn.relu(x + block["scale"] * convolve(block["conv2"], z) + block["bias4"])
        return cross_entropy(affine(params["last"], jnp.mean(x, axis=(1, 2))), y)

    k, depth = keys(), 4

    def block():
        biases = {f"bias{i}": jnp.zeros(()) for i in range(1, 5)}
        first = depth**-0.5 * kernel(next(k), 3, 8, 8)
        return biases | {"conv1": first, "conv2": jnp.zeros((3, 3, 8, 8)), "scale": jnp.ones(())}

    params = {
        "first": kernel(next(k), 3, 3, 8),
        "blocks": [block() for _ in range(depth)],
        "last": {"kernel": jnp.zeros((8, 10)), "bias": jnp.zeros(10)},
    }
    return SetUp(loss_fn, params, images(size=8))


@healthy("ReZero", "jax", "Bachlechner et al. 2021, residual weights from zero", is_trained=True)
def rezero():
    def loss_fn(params, x, y):
        x = affine(params["first"], x.reshape(len(x), -1))
        for block in params["blocks"]:
            x = x + block["alpha"] * jax.nn.relu(affine(block, x))
        return cross_entropy(affine(params["last"], x), y)

    k = keys()
    params = {
        "first": dense(next(k), 64, 32, 1.0),
        "blocks": [dense(next(k), 32, 32) | {"alpha": jnp.zeros(())} for _ in range(6)],
        "last": dense(next(k), 32, 10, 1.0),
    }
    return SetUp(loss_fn, params, images(size=8, channels=1))


@healthy("NF-ResNet", "jax", "Brock et al. 2021, scaled weight standardization")
def normalizer_free():
    gamma = (2 / (1 - 1 / jnp.pi)) ** 0.5

    def standardized(weights):
        fan_in = weights[..., 0].size
        centred = weights - jnp.mean(weights, axis=(0, 1, 2))
        return centred * jax.lax.rsqrt(jnp.var(weights, axis=(0, 1, 2)) * fan_in + 1e-4)

    def loss_fn(params, x, y):
        x = convolve(standardized(params["first"]), x)
        variance = 1.0
        for block in params["blocks"]:
            z = gamma * jax.nn.relu(x / variance**0.5)
            z = gamma * jax.nn.relu(convolve(standardized(block["conv1"]), z))
            x = x + 0.2 * block["gain"] * convolve(standardized(block["conv2"]), z)
            variance += 0.2**2
        x = gamma * jax.nn.relu(x)
        return cross_entropy(affine(params["last"], jnp.mean(x, axis=(1, 2))), y)

    k = keys()

    def block():
        return {
            "conv1": kernel(next(k), 3, 12, 12, 1.0),
            "conv2": kernel(next(k), 3, 12, 12, 1.0),
            "gain": jnp.ones(()),
        }

    params = {
        "first": kernel(next(k), 3, 3, 12, 1.0),
        "blocks": [block() for _ in range(4)],
        "last": dense(next(k), 12, 10, 1.0),
    }
    return SetUp(loss_fn, params, images(size=8))


@healthy("group normalization", "equinox", "Wu and He 2018, maximum pooling modules")
def group_normalization():
    class Network(eqx.Module):
        convs: list
        norms: list
        pool: eqx.nn.MaxPool2d
        last: eqx.nn.Linear

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.convs = [
                eqx.nn.Conv2d(3, 16, 3, padding=1, key=a),
                eqx.nn.Conv2d(16, 16, 3, padding=1, key=b),
            ]
            self.norms = [eqx.nn.GroupNorm(4, 16) for _ in range(2)]
            self.pool = eqx.nn.MaxPool2d(2, 2)
            self.last = eqx.nn.Linear(16, 10, key=c)

        def __call__(self, x):
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = self.pool(jax.nn.relu(norm(conv(x))))
            return self.last(jnp.mean(x, axis=(1, 2)))

    x, y = images(size=8)
    return equinox_set_up(Network(jax.random.key(0)), cross_entropy, x.transpose(0, 3, 1, 2), y)


@healthy("ResMLP", "linen", "Touvron et al. 2021, affine transforms and layer scale")
def resmlp():
    class Affine(nn.Module):
        start: float = 1.0

        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.constant(self.start), x.shape[-1:])
            return scale * x + self.param("bias", zeros, x.shape[-1:])

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(24, (4, 4), (4, 4), padding="VALID")(x).reshape(len(x), 9, 24)
            for _ in range(3):
                y = jnp.swapaxes(nn.Dense(9)(jnp.swapaxes(Affine()(x), 1, 2)), 1, 2)
                x = x + Affine(0.1)(y)
                y = nn.Dense(24)(nn.gelu(nn.Dense(96)(Affine()(x))))
                x = x + Affine(0.1)(y)
            return nn.Dense(10)(jnp.mean(Affine()(x), axis=1))

    return linen_set_up(Network(), cross_entropy, *images())
