"""The batches and the small functions that the tests of `check_examples` share."""

import jax.numpy as jnp
import numpy as np
import optax

N, D, C, T = 12, 6, 4, 5


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, Y, WORDS, LABELS = normal(N, D), normal(N, seed=1), normal(N, T, D), jnp.arange(N) % C
HIDDEN = {"w0": normal(D, 8), "w1": normal(8, C, seed=1)}


def entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def kinds(findings):
    return [(one.kind, one.severity) for one in findings]
