"""Numbers that a dtype cannot hold, and derivatives that do not exist."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp

from .case import SetUp, sick
from .materials import (
    affine,
    cross_entropy,
    dense,
    keys,
    labels,
    linen_set_up,
    mlp,
    normal,
    perceptron,
    regression,
    sentences,
    split_heads,
    squared_error,
    vectors,
)


def _half(tree, dtype=jnp.float16):
    return jax.tree.map(lambda p: p.astype(dtype), tree)


@sick(
    "attention scores beyond float16",
    "jax",
    "Hugging Face issues on NaN in half precision; Micikevicius et al. 2018",
    kinds="overflow nan",
    how="scores above 65504 become infinite, and the softmax NaN",
)
def score_overflow(cured=False):
    scale = 1.0 if cured else 60.0
    dtype = jnp.float32 if cured else jnp.float16

    def loss_fn(params, tokens, y):
        params = _half(params, dtype)
        x = params["table"][tokens]
        q, k, v = (split_heads(z, 2) for z in jnp.split(affine(params["qkv"], x), 3, axis=-1))
        scores = (scale * q) @ (scale * jnp.swapaxes(k, -1, -2))  # fault
        p = jax.nn.softmax(scores / 32**0.5, axis=-1)  # fault
        x = jnp.mean((p @ v), axis=(1, 2))
        return cross_entropy(affine(params["head"], x).astype(jnp.float32), y)

    k = keys()
    params = {
        "table": jax.random.normal(next(k), (32, 64)),
        "qkv": dense(next(k), 64, 192, 1.0),
        "head": dense(next(k), 32, 4, 1.0),
    }
    return SetUp(loss_fn, params, (sentences(12), labels(12, 4)))


@sick(
    "an epsilon of 1e-8 in float16",
    "jax",
    "PyTorch forum, epsilon of Adam and of norms in half precision",
    kinds="vanishing_epsilon nan",
    how="the epsilon rounds to zero, and a constant row is divided by zero",
)
def vanishing_epsilon(cured=False):
    epsilon = 1e-3 if cured else 1e-8

    def loss_fn(params, x, y):
        params, x = _half(params), x.astype(jnp.float16)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)  # fault
        z = centred / deviation  # fault
        return cross_entropy(perceptron(params, z).astype(jnp.float32), y)

    x, y = vectors()
    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), (x.at[3].set(1.0), y))


@sick(
    "the logarithm of zero",
    "linen",
    "Stack Overflow, NaN loss of a hand-written cross-entropy; DeepLocalize; UMLAUT",
    kinds="nan overflow",
    how="a probability rounds to zero, its logarithm is infinite and 0 times it NaN",
)
def log_of_zero(cured=False):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.normal(0.2 if cured else 4.0)
            return nn.Dense(4, kernel_init=init)(nn.relu(nn.Dense(32, kernel_init=init)(x)))

    def loss(logits, y):
        target = jax.nn.one_hot(y, 4)
        p = jax.nn.softmax(logits)
        log_p = jnp.log(p + 1e-9) if cured else jnp.log(p)  # fault
        return -jnp.mean(jnp.sum(target * log_p, axis=-1))  # fault

    x, y = vectors()
    return linen_set_up(Network(), loss, 4 * x if not cured else x, y)


@sick(
    "the derivative of a root at zero",
    "jax",
    "jax issue 3058, NaN in the gradient of the norm at 0",
    kinds="nan",
    how="the loss is finite, its gradient NaN",
)
def root_at_zero(cured=False):
    def loss_fn(params, x, other):
        a, b = perceptron(params, x), perceptron(params, other)
        square = jnp.sum((a - b) ** 2, axis=-1)  # fault
        distance = jnp.sqrt(square + 1e-12) if cured else jnp.sqrt(square)  # fault
        return jnp.mean(jnp.maximum(1.0 - distance, 0.0))

    x, _ = vectors()
    # One pair is the same example twice.
    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), (x, jnp.roll(x, 1, axis=0).at[3].set(x[3])))


@sick(
    "a branch of where that is not taken",
    "jax",
    "JAX FAQ, gradients contain NaN where using where; jax issue 17070",
    kinds="nan",
    how="the value is finite, but 0 times the infinite derivative of the other branch is NaN",
)
def other_branch(cured=False):
    def loss_fn(params, x, y):
        z = affine(params[0], x)
        if cured:
            z = jnp.where(z > 0, jnp.sqrt(jnp.where(z > 0, z, 1.0)), 0.0)
        else:
            z = jnp.where(z > 0, jnp.sqrt(z), 0.0)  # fault
        return cross_entropy(affine(params[1], z), y)

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@sick(
    "division by the deviation of a constant",
    "equinox",
    "Stack Overflow, NaN after standardizing each feature of the batch",
    kinds="nan constant_feature nan_data",
    where=r"args\[0\]",
    how="0 / 0 in the loss itself",
)
def zero_deviation(cured=False):
    model = eqx.nn.MLP(16, 4, 32, 1, key=jax.random.key(0))

    def loss_fn(model, x, y):
        deviation = jnp.std(x, axis=0)
        deviation = jnp.where(deviation > 0, deviation, 1.0) if cured else deviation
        x = (x - jnp.mean(x, axis=0)) / deviation  # fault
        return cross_entropy(jax.vmap(model)(x), y)

    x, y = vectors()
    return SetUp(loss_fn, model, (x if cured else x.at[:, 2].set(1.0), y))


@sick(
    "a softmax without the maximum subtracted",
    "jax",
    "Stack Overflow, numerically stable softmax; DeepLocalize",
    kinds="nan overflow",
    how="exp of a logit above 88 is infinite",
)
def unstable_softmax(cured=False):
    def loss_fn(params, x, y):
        z = 100.0 * perceptron(params, x) if not cured else perceptron(params, x)
        z = z - jnp.max(z, axis=-1, keepdims=True) if cured else z
        e = jnp.exp(z)  # fault
        p = e / jnp.sum(e, axis=-1, keepdims=True)  # fault
        p = jnp.take_along_axis(p, y[:, None], axis=-1)
        return -jnp.mean(jnp.log(p + 1e-7))

    return SetUp(loss_fn, mlp(keys(), 16, 32, 4), vectors())


@sick(
    "a long sum in bfloat16",
    "jax",
    "GitHub issues on means that are wrong in bfloat16; Stack Overflow on float16 accumulation",
    kinds="low_precision_sum",
    how="adding to a running sum stops once it is 256 times the terms",
)
def half_sum(cured=False):
    def loss_fn(params, x, y):
        error = (perceptron(_half(params, jnp.bfloat16), x.astype(jnp.bfloat16)) - y) ** 2

        def add(total, term):
            return total + term.astype(total.dtype), None

        start = jnp.zeros((), jnp.float32 if cured else jnp.bfloat16)
        total, _ = jax.lax.scan(add, start, error[:, 0])  # fault
        return (total / len(x)).astype(jnp.float32)

    x, y = normal(1024, 4), normal(1024, 1, seed=1).astype(jnp.bfloat16)
    return SetUp(loss_fn, mlp(keys(), 4, 16, 1), (x, y))


@sick(
    "squares beyond float16 in a norm",
    "linen",
    "Hugging Face issues on T5 in float16, infinite activations before the norm",
    kinds="overflow nan",
    where="",
    how="the mean of squares of values of 400 is infinite, and the output of the norm zero",
)
def norm_overflow(cured=False):
    dtype = jnp.float32 if cured else jnp.float16

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = (400.0 * nn.Dense(32)(x)).astype(dtype)
            square = x**2  # fault
            x = x * jax.lax.rsqrt(jnp.mean(square, axis=-1, keepdims=True))  # fault
            return nn.Dense(4)(x.astype(jnp.float32))

    return linen_set_up(Network(), cross_entropy, *vectors())


@sick(
    "gradients below float16",
    "jax",
    "Micikevicius et al. 2018, gradients that become zero without loss scaling",
    kinds="underflow zero_gradient",
    where=r"0/|1/|\.py",
    how="most gradients are smaller than 6e-8 and become zero",
)
def gradient_underflow(cured=False):
    scale = 1e4 if cured else 1.0

    def loss_fn(params, x, y):
        prediction = perceptron(_half(params), x.astype(jnp.float16))[:, 0]
        error = (prediction - y.astype(jnp.float16)).astype(jnp.float32)
        return scale * jnp.mean(error**2) * 1e-6  # fault

    return SetUp(loss_fn, mlp(keys(), 16, 32, 32, 1), regression(256))


@sick(
    "a power of a negative number",
    "jax",
    "Stack Overflow, NaN loss of the mean squared logarithmic error",
    kinds="nan",
    how="the logarithm of one plus a prediction below -1 is NaN",
)
def logarithmic_error(cured=False):
    def loss_fn(params, x, y):
        prediction = 3 * perceptron(params, x)[:, 0]
        if cured:
            prediction = jax.nn.softplus(prediction)
        log_prediction = jnp.log1p(prediction)  # fault
        return squared_error(log_prediction, jnp.log1p(y))

    x, y = regression()
    return SetUp(loss_fn, mlp(keys(), 16, 32, 1), (x, jnp.exp(y)))
