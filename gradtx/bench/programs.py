"""The programs that are measured: the step of a training loop, on several kinds of trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import gradtx
from gradtx.bench.measure import Settings, Subject

LIBRARIES = ("optax", "gradtx")


def named(library: str, name: str) -> Any:
    """A public name of a library; names in `optax.contrib` count as optax's, as in gradtx."""
    if library == "gradtx":
        return getattr(gradtx, name)
    # `dir`, because `getattr` of a deprecated name warns.
    return getattr(optax if name in dir(optax) else optax.contrib, name)


def clipped_adamw(library: str) -> optax.GradientTransformation:
    """The transformation that most large models are trained with."""
    clip, adamw = named(library, "clip_by_global_norm"), named(library, "adamw")
    return named(library, "chain")(clip(1.0), adamw(1e-3))


def training_step(
    library: str, tx: optax.GradientTransformation, **extra: Any
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Maps parameters, state and gradient to new parameters and state, using the library."""
    update = optax.with_extra_args_support(tx).update

    def with_optax(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    def with_gradtx(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        return gradtx.update_and_apply(tx, gradient, state, params, **extra)

    return with_gradtx if library == "gradtx" else with_optax


def to_run(
    settings: Settings, function: Callable[..., Any], tx: Any, gradient: Any, params: Any = None
) -> Subject:
    """The subject for a step, with arrays of its own.

    Args:
        settings: the options of the command line.
        function: the step.
        tx: the transformation in it.
        gradient: the gradients.
        params: the parameters; None: random ones of the gradients' shapes.
    """
    params = drawn(gradient, 1) if params is None else params
    # Copies, because some states of optax share arrays with the parameters.
    carried = jax.tree.map(jnp.copy, (params, tx.init(params)))
    return Subject(settings, function, (*carried, gradient), 2)


def touch(params: Any, mu: Any, nu: Any, gradient: Any) -> Any:
    """Read and write once what a step of Adam must, with next to no arithmetic."""
    return params + gradient, 0.9 * mu, 0.9 * nu


def trees(quick: bool = False) -> dict[str, Any]:
    """Shapes of parameters by the name of the tree; the one large leaf comes first."""
    if quick:
        return {"1 leaf of 4K": [_shape(4096)], "GPT-like, 1 layer": gpt(1, 8, 16)}
    return {
        "1 leaf of 16M": [_shape(1 << 24)],
        "500 leaves of 32K": leaves(500, 1 << 15),
        "300 leaves of 64": leaves(300, 64),
        "1,000 leaves of 64": leaves(1000, 64),
        "GPT-like, 12 layers, 10M": gpt(12, 256, 2048),
    }


def gpt(layers: int, width: int, vocabulary: int) -> Any:
    """The parameters of a transformer with biases and learned positions."""

    def dense(inputs: int, outputs: int) -> Any:
        return {"kernel": _shape(inputs, outputs), "bias": _shape(outputs)}

    def norm() -> Any:
        return {"scale": _shape(width), "bias": _shape(width)}

    def layer() -> Any:
        return {
            "attention": {"qkv": dense(width, 3 * width), "out": dense(width, width)},
            "attention_norm": norm(),
            "mlp": {"up": dense(width, 4 * width), "down": dense(4 * width, width)},
            "mlp_norm": norm(),
        }

    return {
        "tokens": _shape(vocabulary, width),
        "positions": _shape(256, width),
        **{f"layer{number}": layer() for number in range(layers)},
        "norm": norm(),
    }


def loss_of_transformer(params: Any, tokens: jax.Array) -> jax.Array:
    """The mean cross-entropy of the next token, for parameters of `gpt` and tokens (batch, time).

    Heads have 64 features, or as many as there are.
    """

    def dense(x: jax.Array, layer: Any) -> jax.Array:
        return x @ layer["kernel"] + layer["bias"]

    def norm(x: jax.Array, layer: Any) -> jax.Array:
        return jax.nn.standardize(x) * layer["scale"] + layer["bias"]

    batch, time = tokens.shape
    x = params["tokens"][tokens] + params["positions"][:time]
    width = x.shape[-1]
    head = min(64, width)
    for name in sorted(key for key in params if key.startswith("layer")):
        layer = params[name]
        qkv = dense(norm(x, layer["attention_norm"]), layer["attention"]["qkv"])
        q, k, v = jnp.split(qkv.reshape(batch, time, -1, head), 3, axis=2)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(mixed.reshape(batch, time, width), layer["attention"]["out"])
        hidden = jax.nn.gelu(dense(norm(x, layer["mlp_norm"]), layer["mlp"]["up"]))
        x = x + dense(hidden, layer["mlp"]["down"])
    logits = norm(x, params["norm"]) @ params["tokens"].T
    each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    return jnp.mean(each)


def drawn(shapes: Any, seed: int) -> Any:
    """Normally distributed numbers."""
    # From NumPy, because jax would compile a program per shape whenever its caches are cleared.
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.array(generator.standard_normal(leaf.shape, np.float32), leaf.dtype),
        shapes,
    )


def matrices(count: int, rows: int, columns: int) -> Any:
    """Matrices of one shape."""
    return {f"layer{number}": _shape(rows, columns) for number in range(count)}


def leaves(count: int, size: int) -> Any:
    """Vectors of one length."""
    return {f"leaf{number}": _shape(size) for number in range(count)}


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
