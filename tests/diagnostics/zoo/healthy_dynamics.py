"""State spaces, solvers of differential equations, and fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .case import SetUp, healthy
from .materials import (
    adding,
    affine,
    cross_entropy,
    dense,
    keys,
    layer_norm,
    norm,
    sentences,
    squared_error,
    vectors,
)


def _orthogonal(key, width):
    return jax.nn.initializers.orthogonal()(key, (width, width), jnp.float32)


@healthy("diagonal state space", "jax", "Gu et al. 2022, S4D with complex eigenvalues")
def diagonal_state_space():
    def layer(params, x):
        decay = -jnp.exp(params["log_decay"]) + 1j * params["frequency"]
        step = jnp.exp(params["log_step"])[:, None]
        time = jnp.arange(x.shape[1])
        powers = jnp.exp((step * decay)[..., None] * time)
        weights = params["c"] * (jnp.exp(step * decay) - 1) / decay
        response = 2 * jnp.real(jnp.einsum("hs,hst->ht", weights, powers))
        size = 2 * x.shape[1]
        spectrum = jnp.fft.rfft(response, size) * jnp.fft.rfft(x.swapaxes(1, 2), size)
        y = jnp.fft.irfft(spectrum, size)[..., : x.shape[1]].swapaxes(1, 2)
        return y + params["skip"] * x

    def loss_fn(params, x, y):
        x = affine(params["first"], x.swapaxes(0, 1))
        for block in params["blocks"]:
            z = jax.nn.gelu(layer(block["ssm"], layer_norm(block["norm"], x)))
            x = x + affine(block["mix"], z)
        return squared_error(affine(params["head"], jnp.mean(x, axis=1))[:, 0], y)

    k = keys()

    def block():
        ssm = {
            "log_decay": jnp.full((16, 4), np.log(0.5), jnp.float32),
            "frequency": jnp.tile(jnp.pi * jnp.arange(4, dtype=jnp.float32), (16, 1)),
            "log_step": jnp.linspace(np.log(0.01), np.log(0.1), 16),
            "c": jax.lax.complex(
                jax.random.normal(next(k), (16, 4)) * 0.7, jax.random.normal(next(k), (16, 4)) * 0.7
            ),
            "skip": jnp.ones(16),
        }
        return {"ssm": ssm, "norm": norm(16), "mix": dense(next(k), 16, 16, 1.0)}

    params = {
        "first": dense(next(k), 2, 16, 1.0),
        "blocks": [block() for _ in range(2)],
        "head": dense(next(k), 16, 1, 1.0),
    }
    return SetUp(loss_fn, params, adding())


@healthy("selective state space", "jax", "Gu and Dao 2023, an associative scan", is_trained=True)
def selective_state_space():
    def scan(decay, inputs):
        def combine(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        return lax.associative_scan(combine, (decay, inputs), axis=1)[1]

    def mixer(params, x):
        x, gate = jnp.split(affine(params["enter"], x), 2, axis=-1)
        padded = jnp.pad(x, ((0, 0), (2, 0), (0, 0)))
        x = sum(padded[:, i : i + x.shape[1]] * params["window"][i] for i in range(3))
        x = jax.nn.silu(x)
        step = jax.nn.softplus(affine(params["step"], x))
        b, c = jnp.split(x @ params["bc"], 2, axis=-1)
        decay = jnp.exp(-step[..., None] * jnp.exp(params["log_a"]))
        states = scan(decay, (step * x)[..., None] * b[:, :, None, :])
        y = jnp.einsum("ntds,nts->ntd", states, c) + params["skip"] * x
        return affine(params["leave"], y * jax.nn.silu(gate))

    def loss_fn(params, tokens):
        x = params["table"][tokens]
        for block in params["blocks"]:
            x = x + mixer(block, layer_norm(block["norm"], x))
        logits = affine(params["head"], layer_norm(params["norm"], x))
        return cross_entropy(logits[:, :-1], tokens[:, 1:])

    k = keys()

    def block():
        step = dense(next(k), 32, 32, 0.1)
        rates = np.exp(np.random.default_rng(0).uniform(np.log(1e-3), np.log(0.1), 32))
        return {
            "norm": norm(16),
            "enter": dense(next(k), 16, 64, 1.0),
            "window": jax.random.normal(next(k), (3, 32)) / 3**0.5,
            "step": step | {"bias": jnp.asarray(np.log(np.expm1(rates)), jnp.float32)},
            "bc": jax.random.normal(next(k), (32, 8)) / 32**0.5,
            "log_a": jnp.tile(jnp.log(jnp.arange(1.0, 5.0)), (32, 1)),
            "skip": jnp.ones(32),
            "leave": dense(next(k), 32, 16, 1.0),
        }

    params = {
        "table": jax.random.normal(next(k), (32, 16)),
        "blocks": [block() for _ in range(2)],
        "norm": norm(16),
        "head": dense(next(k), 16, 32, 1.0),
    }
    return SetUp(loss_fn, params, (sentences(),))


@healthy("linear recurrent unit", "jax", "Orvieto et al. 2023, eigenvalues near the circle")
def linear_recurrent_unit():
    def loss_fn(params, x, y):
        x = affine(params["first"], x)
        modulus = jnp.exp(-jnp.exp(params["nu"]))
        eigenvalues = modulus * jnp.exp(1j * jnp.exp(params["theta"]))
        inputs = jnp.sqrt(1 - modulus**2) * (x @ params["b"])

        def step(h, u):
            h = eigenvalues * h + u
            return h, jnp.real(h @ params["c"])

        _, z = lax.scan(step, jnp.zeros((x.shape[1], 24), jnp.complex64), inputs)
        x = x + jax.nn.gelu(z + params["skip"] * x)
        return squared_error(affine(params["head"], jnp.mean(x, axis=0))[:, 0], y)

    k, rng = keys(), np.random.default_rng(0)
    radius = rng.uniform(0.9, 0.99, 24)

    def complex_weights(shape, fan_in):
        parts = jax.random.normal(next(k), (2, *shape)) / (2 * fan_in) ** 0.5
        return jax.lax.complex(parts[0], parts[1])

    params = {
        "first": dense(next(k), 2, 16, 1.0),
        "nu": jnp.asarray(np.log(-np.log(radius)), jnp.float32),
        "theta": jnp.asarray(np.log(rng.uniform(0.1, np.pi / 4, 24)), jnp.float32),
        "b": complex_weights((16, 24), 16),
        "c": complex_weights((24, 16), 24),
        "skip": jnp.ones(16),
        "head": dense(next(k), 16, 1, 1.0),
    }
    return SetUp(loss_fn, params, adding())


@healthy("neural ODE", "jax", "Chen et al. 2018, Runge-Kutta steps in a scan")
def neural_ode():
    def field(params, x, t):
        x = jnp.tanh(affine(params[0], jnp.append(x, t)))
        return affine(params[1], x)

    def solve(params, x):
        def step(x, t):
            h = 0.1
            k1 = field(params, x, t)
            k2 = field(params, x + h / 2 * k1, t + h / 2)
            k3 = field(params, x + h / 2 * k2, t + h / 2)
            k4 = field(params, x + h * k3, t + h)
            return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        return lax.scan(step, x, jnp.linspace(0.0, 0.9, 10))[0]

    def loss_fn(params, x, y):
        x = jax.vmap(solve, (None, 0))(params["field"], x)
        return cross_entropy(affine(params["head"], x), y)

    k = keys()
    field_params = [dense(next(k), 17, 32, 1.0), dense(next(k), 32, 16, 1.0)]
    return SetUp(loss_fn, {"field": field_params, "head": dense(next(k), 16, 4, 1.0)}, vectors())


@healthy("deep equilibrium", "jax", "Bai et al. 2019, a fixed point with an implicit gradient")
def deep_equilibrium():
    def cell(params, x, z):
        return jnp.tanh(z @ params["recurrent"] + affine(params["input"], x))

    def iterate(f, z):
        def go_on(state):
            return (state[2] < 50) & (jnp.max(jnp.abs(state[0] - state[1])) > 1e-5)

        return lax.while_loop(go_on, lambda s: (s[1], f(s[1]), s[2] + 1), (z, f(z), 0))[1]

    @jax.custom_vjp
    def solve(params, x):
        return iterate(lambda z: cell(params, x, z), jnp.zeros((len(x), 24)))

    def forward(params, x):
        z = solve(params, x)
        return z, (params, x, z)

    def backward(saved, cotangent):
        params, x, z = saved
        _, pull_z = jax.vjp(lambda z: cell(params, x, z), z)
        solved = iterate(lambda u: cotangent + pull_z(u)[0], jnp.zeros_like(z))
        _, pull = jax.vjp(lambda params, x: cell(params, x, z), params, x)
        return pull(solved)

    solve.defvjp(forward, backward)

    def loss_fn(params, x, y):
        return cross_entropy(affine(params["head"], solve(params["cell"], x)), y)

    k = keys()
    cell_params = {
        "recurrent": 0.5 * _orthogonal(next(k), 24),
        "input": dense(next(k), 16, 24, 1.0),
    }
    return SetUp(loss_fn, {"cell": cell_params, "head": dense(next(k), 24, 4, 1.0)}, vectors())
