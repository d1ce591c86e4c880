"""Generative models, and networks that represent a signal."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.linen.initializers import he_normal
from jax.scipy.stats import norm as gaussian

from .case import SetUp, healthy
from .materials import (
    affine,
    binary_cross_entropy,
    dense,
    images,
    keys,
    linen_set_up,
    mlp,
    nnx_set_up,
    normal,
    perceptron,
    squared_error,
    vectors,
)


def _pixels():
    """Images with pixels in [0, 1]."""
    x, _ = images(16, 8, 1, 4)
    return jax.nn.sigmoid(2 * x)


@healthy("autoencoder", "linen", "Hinton and Salakhutdinov 2006", is_trained=True)
def autoencoder():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(32, kernel_init=he_normal())(x))
            code = nn.Dense(4)(x)
            x = nn.relu(nn.Dense(32, kernel_init=he_normal())(code))
            return nn.Dense(16)(x)

    x, _ = vectors()
    return linen_set_up(Network(), squared_error, x, x)


@healthy("convolutional denoising autoencoder", "linen", "Vincent et al. 2008, sigmoid pixels")
def denoising():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))
            x = nn.relu(nn.Conv(16, (3, 3), (2, 2))(x))
            x = nn.relu(nn.ConvTranspose(8, (3, 3), (2, 2))(x))
            return nn.sigmoid(nn.ConvTranspose(1, (3, 3), (2, 2))(x))

    x = _pixels()
    noisy = jnp.clip(x + 0.2 * normal(*x.shape), 0, 1)
    return linen_set_up(Network(), squared_error, noisy, x)


@healthy("VAE", "nnx", "Kingma and Welling 2014", is_trained=True)
def vae():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.encode = nnx.Linear(64, 32, rngs=rngs)
            self.moments = nnx.Linear(32, 8, rngs=rngs)
            self.decode = nnx.Linear(4, 32, rngs=rngs)
            self.pixels = nnx.Linear(32, 64, rngs=rngs)

        def __call__(self, inputs):
            x, noise = inputs
            mean, log_variance = jnp.split(self.moments(nnx.relu(self.encode(x))), 2, axis=-1)
            z = mean + jnp.exp(0.5 * log_variance) * noise
            return self.pixels(nnx.relu(self.decode(z))), mean, log_variance

    def loss(outputs, x):
        logits, mean, log_variance = outputs
        reconstruction = jnp.sum(jnp.logaddexp(0.0, logits) - x * logits, axis=-1)
        divergence = 0.5 * jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance, axis=-1)
        return jnp.mean(reconstruction + divergence)

    x = _pixels().reshape(16, -1)
    return nnx_set_up(Network(nnx.Rngs(0)), loss, (x, normal(16, 4)), x)


@healthy("VQ-VAE", "jax", "van den Oord et al. 2017, straight-through codes and commitment")
def vq_vae():
    def loss_fn(params, x):
        z = perceptron(params["encoder"], x)
        distances = jnp.sum((z[:, None] - params["codes"]) ** 2, axis=-1)
        code = params["codes"][jnp.argmin(distances, axis=-1)]
        commitment = squared_error(z, jax.lax.stop_gradient(code))
        codebook = squared_error(code, jax.lax.stop_gradient(z))
        quantized = z + jax.lax.stop_gradient(code - z)
        return squared_error(perceptron(params["decoder"], quantized), x) + (
            codebook + 0.25 * commitment
        )

    k = keys()
    params = {
        "encoder": mlp(k, 16, 32, 4),
        "codes": 0.5 * jax.random.normal(next(k), (4, 4)),
        "decoder": mlp(k, 4, 32, 16),
    }
    return SetUp(loss_fn, params, (vectors()[0],))


def _leaky(x):
    return jax.nn.leaky_relu(x, 0.2)


@healthy("discriminator of a GAN", "jax", "Goodfellow et al. 2014, DCGAN's leaky relu")
def discriminator():
    generator = mlp(keys(9), 8, 32, 16)

    def loss_fn(params, x, z):
        real = perceptron(params, x, _leaky)[:, 0]
        fake = perceptron(params, jnp.tanh(perceptron(generator, z)), _leaky)[:, 0]
        return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))

    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 1), (vectors()[0], normal(32, 8)))


@healthy("generator of a GAN", "jax", "Goodfellow et al. 2014, the non-saturating loss")
def generator():
    judge = mlp(keys(9), 16, 32, 32, 1)

    def loss_fn(params, z):
        fake = jnp.tanh(perceptron(params, z))
        return jnp.mean(jax.nn.softplus(-perceptron(judge, fake, _leaky)[:, 0]))

    return SetUp(loss_fn, mlp(keys(), 8, 32, 32, 16), (normal(32, 8),))


@healthy("critic with a gradient penalty", "jax", "Gulrajani et al. 2017", is_trained=True)
def critic():
    def loss_fn(params, real, fake, mixture):
        def score(x):
            return perceptron(params, x, _leaky)[..., 0]

        between = mixture * real + (1 - mixture) * fake
        gradient = jax.vmap(jax.grad(score))(between)
        norm = jnp.sqrt(jnp.sum(gradient**2, axis=-1) + 1e-12)
        penalty = jnp.mean((norm - 1) ** 2)
        return jnp.mean(score(fake)) - jnp.mean(score(real)) + 10 * penalty

    real, _ = vectors()
    mixture = jax.random.uniform(jax.random.key(1), (32, 1))
    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 1), (real, normal(32, 16), mixture))


@healthy("DDPM", "linen", "Ho et al. 2020, embedded times and a zero last layer", is_trained=True)
def ddpm():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            x, t = inputs
            angle = t[:, None] * 1000.0 ** (-jnp.arange(8) / 8)
            time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
            time = nn.Dense(32)(nn.swish(nn.Dense(32)(time)))
            x = nn.Conv(16, (3, 3))(x)
            for _ in range(2):
                y = nn.Conv(16, (3, 3))(nn.swish(nn.GroupNorm(4)(x)))
                y = y + nn.Dense(16)(nn.swish(time))[:, None, None]
                y = nn.swish(nn.GroupNorm(4)(y))
                x = x + nn.Conv(16, (3, 3), kernel_init=nn.initializers.zeros)(y)
            x = nn.swish(nn.GroupNorm(4)(x))
            return nn.Conv(1, (3, 3), kernel_init=nn.initializers.zeros)(x)

    x, _ = images(8, 8, 1)
    noise = normal(*x.shape)
    t = np.random.default_rng(0).integers(0, 1000, 8)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t][:, None, None, None]
    noisy = jnp.asarray(kept**0.5, jnp.float32) * x + jnp.asarray((1 - kept) ** 0.5) * noise
    inputs = (noisy.astype(jnp.float32), jnp.asarray(t, jnp.float32))
    return linen_set_up(Network(), squared_error, inputs, noise)


@healthy("flow matching", "equinox", "Lipman et al. 2023")
def flow_matching():
    model = eqx.nn.MLP(17, 16, 64, 3, activation=jax.nn.silu, key=jax.random.key(0))

    def loss_fn(model, x, noise, t):
        between = (1 - t) * noise + t * x
        velocity = jax.vmap(model)(jnp.concatenate([between, t], axis=-1))
        return squared_error(velocity, x - noise)

    t = jax.random.uniform(jax.random.key(1), (32, 1))
    return SetUp(loss_fn, model, (vectors()[0], normal(32, 16), t))


@healthy("RealNVP", "jax", "Dinh et al. 2017, couplings from the identity", is_trained=True)
def real_nvp():
    def loss_fn(params, x):
        log_determinant = 0.0
        for i, layer in enumerate(params):
            kept, changed = jnp.split(x, 2, axis=-1) if i % 2 else jnp.split(x, 2, axis=-1)[::-1]
            shift, raw = jnp.split(perceptron(layer, kept), 2, axis=-1)
            log_scale = jnp.tanh(raw)
            changed = changed * jnp.exp(log_scale) + shift
            log_determinant += jnp.sum(log_scale, axis=-1)
            x = jnp.concatenate([kept, changed] if i % 2 else [changed, kept], axis=-1)
        return -jnp.mean(jnp.sum(gaussian.logpdf(x), axis=-1) + log_determinant)

    def coupling(seed):
        *hidden, last = mlp(keys(seed), 8, 32, 16)
        return [*hidden, jax.tree.map(jnp.zeros_like, last)]

    return SetUp(loss_fn, [coupling(i) for i in range(4)], (vectors()[0],))


@healthy("MADE", "jax", "Germain et al. 2015, masked layers", rate=0.01)
def made():
    rng = np.random.default_rng(0)
    order = [np.arange(16), rng.integers(0, 15, 48), rng.integers(0, 15, 48), np.arange(16)]
    masks = [np.asarray(a[:, None] <= b, np.float32) for a, b in itertools.pairwise(order)]
    masks[-1] = np.asarray(order[2][:, None] < order[3], np.float32)

    def loss_fn(params, x):
        z = x
        for i, (layer, mask) in enumerate(zip(params, masks, strict=True)):
            z = z @ (layer["kernel"] * mask) + layer["bias"]
            z = jax.nn.relu(z) if i < 2 else z
        return binary_cross_entropy(z, x)

    k = keys()
    sizes = [(16, 48, 2.0), (48, 48, 4.0), (48, 16, 1.0)]
    params = [dense(next(k), *size) for size in sizes]
    return SetUp(loss_fn, params, ((vectors()[0] > 0).astype(jnp.float32),))


@healthy("score matching", "jax", "Song and Ermon 2019, several noise levels")
def score_matching():
    def loss_fn(params, x, noise, sigma):
        noisy = x + sigma * noise
        inputs = jnp.concatenate([noisy / jnp.sqrt(1 + sigma**2), jnp.log(sigma)], axis=-1)
        score = perceptron(params, inputs, jax.nn.softplus) / sigma
        return 0.5 * jnp.mean(sigma**2 * (score + noise / sigma) ** 2)

    sigma = jnp.asarray(np.geomspace(0.05, 2.0, 32)[:, None], jnp.float32)
    batch = (vectors()[0], normal(32, 16), sigma)
    return SetUp(loss_fn, mlp(keys(), 17, 64, 64, 16), batch)


@healthy("SIREN", "jax", "Sitzmann et al. 2020, sines of frequency 30", rate=1e-3, is_trained=True)
def siren():
    def loss_fn(params, x, y):
        for layer in params[:-1]:
            x = jnp.sin(30.0 * affine(layer, x))
        return squared_error(affine(params[-1], x), y)

    k = keys()

    def layer(inputs, outputs, bound):
        uniform = jax.random.uniform(next(k), (inputs, outputs), minval=-bound, maxval=bound)
        return {"kernel": uniform, "bias": jnp.zeros(outputs)}

    bound = (6 / 32) ** 0.5 / 30
    params = [layer(2, 32, 0.5), layer(32, 32, bound), layer(32, 32, bound), layer(32, 1, bound)]
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, 8)] * 2), axis=-1).reshape(-1, 2)
    value = np.sin(5 * place[:, :1]) * np.cos(4 * place[:, 1:])
    return SetUp(
        loss_fn, params, (jnp.asarray(place, jnp.float32), jnp.asarray(value, jnp.float32))
    )


@healthy("NeRF", "linen", "Mildenhall et al. 2020, encoded positions, rendered rays")
def nerf():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, points):
            angles = points[..., None] * 2.0 ** jnp.arange(4) * jnp.pi
            encoded = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
            encoded = encoded.reshape(*points.shape[:-1], -1)
            x = nn.relu(nn.Dense(32, kernel_init=he_normal())(encoded))
            x = nn.relu(nn.Dense(32, kernel_init=he_normal())(x))
            x = jnp.concatenate([x, encoded], axis=-1)
            x = nn.relu(nn.Dense(32, kernel_init=he_normal())(x))
            density = nn.softplus(nn.Dense(1)(x)[..., 0])
            colour = nn.sigmoid(nn.Dense(3)(x))
            transparency = jnp.exp(-0.2 * density)
            reached = jnp.cumprod(transparency, axis=-1) / transparency
            weights = reached * (1 - transparency)
            return jnp.sum(weights[..., None] * colour, axis=-2)

    points = jax.random.uniform(jax.random.key(1), (16, 8, 3), minval=-1.0)
    colours = jax.random.uniform(jax.random.key(2), (16, 3))
    return linen_set_up(Network(), squared_error, points, colours)
