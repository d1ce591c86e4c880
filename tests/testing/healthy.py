"""Sound transformations in the styles in which people write them.

None of them is made with this library. All are sound for float32 parameters, and none promises
more: they rely on implicit promotion, take no arguments that they do not know, and compare nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

HEALTHY: dict[str, Callable[[], Any]] = {}

tree_map = jax.tree.map


def healthy(make):
    """Add a function that makes a transformation to the table, under the function's name."""
    HEALTHY[make.__name__] = make
    return make


class AdamState(NamedTuple):
    step: Any
    m: Any
    v: Any


@healthy
def closures_with_a_named_tuple():
    def init(params):
        zeros = tree_map(jnp.zeros_like, params)
        return AdamState(jnp.zeros([], jnp.int32), zeros, tree_map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        step = state.step + 1
        m = tree_map(lambda g, m: 0.9 * m + 0.1 * g, grads, state.m)
        v = tree_map(lambda g, v: 0.99 * v + 0.01 * g**2, grads, state.v)
        updates = tree_map(
            lambda m, v: -1e-3 * (m / (1 - 0.9**step)) / (jnp.sqrt(v / (1 - 0.99**step)) + 1e-8),
            m,
            v,
        )
        return updates, AdamState(step, m, v)

    return optax.GradientTransformation(init, update)


@healthy
def closures_with_a_dictionary_and_their_own_schedule():
    def rate(count):
        return 0.1 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count, 100) / 100))

    def init(params):
        return {"count": 0, "velocity": tree_map(jnp.zeros_like, params)}

    def update(grads, state, params=None):
        velocity = tree_map(lambda g, v: 0.9 * v + g, grads, state["velocity"])
        updates = tree_map(lambda v: -rate(state["count"]) * v, velocity)
        return updates, {"count": state["count"] + 1, "velocity": velocity}

    return optax.GradientTransformation(init, update)


@healthy
def a_state_of_nothing_that_clips_by_value():
    def update(grads, state, params=None):
        return tree_map(lambda g: jnp.clip(g, -1, 1), grads), state

    return optax.GradientTransformation(lambda params: None, update)


@healthy
def clipping_by_a_norm_of_its_own():
    def update(grads, state, params=None):
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        return tree_map(lambda g: g * jnp.minimum(1, 1 / (norm + 1e-6)), grads), ()

    return optax.GradientTransformation(lambda params: (), update)


@healthy
def a_class_with_methods():
    class Momentum:
        def __init__(self, decay):
            self.decay = decay

        def init(self, params):
            return tree_map(jnp.zeros_like, params)

        def update(self, grads, state, params=None):
            state = tree_map(lambda g, v: self.decay * v + g, grads, state)
            return state, state

    return Momentum(0.9)


@healthy
def a_callable_dataclass_as_update():
    @dataclasses.dataclass(frozen=True)
    class Decay:
        rate: float

        def __call__(self, grads, state, params):
            return tree_map(lambda g, p: -0.1 * g - self.rate * p, grads, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), Decay(0.01))


@healthy
def an_equinox_module():
    class Sign(eqx.Module):
        rate: float = 0.1
        decay: float = eqx.field(static=True, default=0.9)

        def init(self, params):
            return tree_map(jnp.zeros_like, params)

        def update(self, grads, state, params=None, **extra):
            updates = tree_map(
                lambda g, m: -self.rate * jnp.sign(self.decay * m + 0.1 * g), grads, state
            )
            return updates, tree_map(lambda g, m: 0.99 * m + 0.01 * g, grads, state)

    return Sign()


@healthy
def a_state_that_is_an_equinox_module():
    class State(eqx.Module):
        average: Any
        key: jax.Array
        name: str = eqx.field(static=True, default="noise")

    def init(params):
        return State(tree_map(jnp.zeros_like, params), jax.random.key(0))

    def update(grads, state, params=None):
        key, sub = jax.random.split(state.key)
        leaves, treedef = jax.tree.flatten(grads)
        noise = [
            0.01 * jax.random.normal(k, g.shape, g.dtype)
            for k, g in zip(jax.random.split(sub, max(1, len(leaves))), leaves, strict=False)
        ]
        average = tree_map(lambda g, a: 0.9 * a + 0.1 * g, grads, state.average)
        updates = tree_map(jnp.add, average, treedef.unflatten(noise))
        return updates, State(average, key)

    return optax.GradientTransformationExtraArgs(init, update)


@healthy
def a_state_that_is_a_flax_struct():
    @flax.struct.dataclass
    class State:
        count: jax.Array
        total: Any

    def init(params):
        return State(jnp.int32(0), tree_map(lambda p: jnp.full(p.shape, 0.1), params))

    def update(grads, state, params=None, **extra):
        total = tree_map(lambda g, s: s + jnp.square(g), grads, state.total)
        updates = tree_map(lambda g, s: g * jax.lax.rsqrt(s), grads, total)
        return updates, state.replace(count=state.count + 1, total=total)

    return optax.GradientTransformationExtraArgs(init, update)


@healthy
def a_state_that_is_a_registered_dataclass():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class State:
        count: Any
        largest: Any

    def init(params):
        return State(np.int32(0), tree_map(lambda p: jnp.zeros(()), params))

    def update(grads, state, params=None):
        largest = tree_map(lambda g, b: jnp.maximum(b, jnp.abs(g).max()), grads, state.largest)
        return tree_map(lambda g, b: g / (b + 1e-8), grads, largest), State(
            state.count + 1, largest
        )

    return optax.GradientTransformation(init, update)


@healthy
def a_step_on_one_long_vector():
    def init(params):
        return jnp.zeros_like(ravel_pytree(params)[0])

    def update(grads, state, params=None):
        flat, unravel = ravel_pytree(grads)
        state = 0.9 * state + flat
        return unravel(-0.1 * state), state

    return optax.GradientTransformation(init, update)


@healthy
def a_wrapper_that_looks_ahead():
    inner = optax.adam(1e-2)

    def init(params):
        return {"inner": inner.init(params), "slow": params, "count": jnp.zeros([], jnp.int32)}

    def update(grads, state, params):
        updates, new = inner.update(grads, state["inner"], params)
        count = state["count"] + 1
        is_due = count % 2 == 0
        fast = optax.apply_updates(params, updates)
        slow = tree_map(lambda s, f: jnp.where(is_due, s + 0.5 * (f - s), s), state["slow"], fast)
        updates = tree_map(lambda u, s, p: jnp.where(is_due, s - p, u), updates, slow, params)
        return updates, {"inner": new, "slow": slow, "count": count}

    return optax.GradientTransformation(init, update)


@healthy
def a_difference_of_new_and_old_parameters():
    def update(grads, state, params):
        # A compiled program rounds once where an eager one rounds twice.
        new = tree_map(lambda p, g: p * (1 - 1e-5) - 1e-4 * g, params, grads)
        return tree_map(lambda n, p: n - p, new, params), state

    return optax.GradientTransformation(lambda params: (), update)


@healthy
def a_wrapper_that_skips_what_is_not_finite():
    inner = optax.sgd(0.1, momentum=0.9)

    def update(grads, state, params=None):
        is_fine = jnp.array([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]).all()
        return jax.lax.cond(
            is_fine,
            lambda: inner.update(grads, state, params),
            lambda: (tree_map(jnp.zeros_like, grads), state),
        )

    return optax.GradientTransformation(inner.init, update)


@healthy
def matrices_orthogonalized_and_the_rest_scaled():
    def orthogonal(g):
        if g.ndim != 2:
            return 0.1 * g
        x = g / (jnp.linalg.norm(g) + 1e-7)
        for _ in range(3):
            x = 1.5 * x - 0.5 * x @ x.T @ x
        return x

    def update(grads, state, params=None):
        return tree_map(orthogonal, grads), state

    return optax.GradientTransformation(lambda params: (), update)


@healthy
def rows_and_columns_of_matrices():
    def init(params):
        return tree_map(
            lambda p: (
                (jnp.zeros(p.shape[:1]), jnp.zeros(p.shape[1:]))
                if p.ndim == 2
                else jnp.zeros(p.shape)
            ),
            params,
        )

    def update(grads, state, params=None):
        leaves, treedef = jax.tree.flatten(grads)
        pairs = [_factored(g, s) for g, s in zip(leaves, treedef.flatten_up_to(state), strict=True)]
        return treedef.unflatten(u for u, _ in pairs), treedef.unflatten(s for _, s in pairs)

    return optax.GradientTransformation(init, update)


def _factored(g, slot):
    if g.ndim != 2:
        slot = 0.9 * slot + 0.1 * g**2
        return g / (jnp.sqrt(slot) + 1e-8), slot
    row, column = (0.9 * s + 0.1 * (g**2).mean(axis) for s, axis in zip(slot, (1, 0), strict=True))
    scale = jnp.sqrt(jnp.outer(row, column) / (row.mean() + 1e-30))
    return g / (scale + 1e-8), (row, column)


@healthy
def a_state_that_knows_the_best_value_of_a_loss():
    def update(grads, state, params=None, *, value=None, **extra):
        loss = jnp.float32(0) if value is None else value
        best = jnp.minimum(state, loss)
        return tree_map(lambda g: g * jnp.where(loss > best, 0.5, 1.0), grads), best

    return optax.GradientTransformationExtraArgs(lambda params: jnp.float32(jnp.inf), update)


@healthy
def one_step_for_every_second_gradient():
    def init(params):
        return jnp.array(0), tree_map(jnp.zeros_like, params)

    def update(grads, state, params=None):
        count, total = state
        total = tree_map(jnp.add, total, grads)
        emit = count % 2 == 1
        updates = tree_map(lambda t: jnp.where(emit, t / 2, 0), total)
        return updates, (count + 1, tree_map(lambda t: jnp.where(emit, 0, t), total))

    return optax.GradientTransformation(init, update)


@healthy
def noise_that_is_thrown_away_in_every_second_step():
    def init(params):
        return jnp.zeros([], jnp.int32), jax.random.key(0)

    def update(grads, state, params=None):
        count, key = state
        use, new = jax.random.split(key)
        leaves, treedef = jax.tree.flatten(grads)
        keys = jax.random.split(use, max(1, len(leaves)))
        noise = treedef.unflatten(
            jax.random.normal(k, g.shape, g.dtype) for k, g in zip(keys, leaves, strict=False)
        )
        is_due = count % 2 == 1
        updates = tree_map(lambda g, n: jnp.where(is_due, g + n, g), grads, noise)
        return updates, (count + 1, jnp.where(is_due, new, key))

    return optax.GradientTransformation(init, update)


HEALTHY |= {
    "optax_chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.01),
        optax.scale_by_schedule(optax.warmup_cosine_decay_schedule(0.0, -0.1, 10, 100)),
    ),
    "optax_adam_with_a_narrow_average": lambda: optax.adam(0.1, mu_dtype="bfloat16"),
    "optax_sgd_with_a_narrow_sum": lambda: optax.sgd(
        0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16
    ),
    "optax_named_chain": lambda: optax.named_chain(
        ("clip", optax.clip(1.0)), ("lion", optax.lion(1e-3))
    ),
    "optax_stateless": lambda: optax.stateless(
        lambda updates, params: tree_map(lambda u, p: u + 0.1 * p, updates, params)
    ),
    "optax_apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-3), 3),
    "optax_multi_steps": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
    "optax_inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(
        optax.linear_schedule(0.1, 0.0, 10)
    ),
    "optax_partition": lambda: optax.partition(
        {True: optax.adam(1e-3), False: optax.sgd(0.1)},
        lambda params: tree_map(lambda p: p.ndim > 1, params),
    ),
    "optax_masked": lambda: optax.masked(
        optax.trace(0.9), lambda params: tree_map(lambda p: p.ndim > 1, params)
    ),
}
