"""What the docstrings say about the authors' own programs, step by step in double precision."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import gradtx

from .. import programs

RATE, DECAY, STEPS = 0.05, 0.1, 24
# In PyTorch a matrix is (outputs, inputs).
SHAPES = {"wide": (3, 4), "tall": (4, 3)}


def data(shape):
    """A start, and the gradient of a bowl with other noise in each step."""
    rng = np.random.default_rng(4)
    start, target = rng.normal(size=shape), 3 * rng.normal(size=shape)
    noise = rng.normal(size=(2 * STEPS, *shape))
    return start, lambda t, p, size=1.0: size * (p - target + 0.3 * noise[t % len(noise)])


def run(tx, start, gradient, steps=STEPS):
    """The parameters after each step, and the last state."""
    # optax mixes dtypes, which the strict test process would refuse.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        p, path = jnp.asarray(start), []
        state, update = tx.init(p), jax.jit(tx.update)
        for t in range(1, steps + 1):
            updates, state = update(jnp.asarray(gradient(t, np.asarray(p))), state, p)
            p = gradtx.apply_updates(p, updates)
            path.append(np.asarray(p))
        return path, jax.tree.map(np.asarray, state)


def check_follows(tx, program, shape=(5,), **arguments):
    """Assert that a transformation takes the steps of a program."""
    start, gradient = data(shape)
    expected = programs.run(program, start, gradient, STEPS, **arguments)
    found, _ = run(tx, start, gradient)
    for t, pair in enumerate(zip(found, expected, strict=True), start=1):
        np.testing.assert_allclose(*pair, rtol=1e-10, atol=1e-10, err_msg=f"step {t}")


def as_transposed(tx):
    """The transformation of the transposed matrices."""

    def init(params):
        return tx.init(params.T)

    def update(updates, state, params=None):
        updates, state = tx.update(updates.T, state, params.T)
        return updates.T, state

    return optax.GradientTransformation(init, update)


def first(count):
    return jnp.where(count == 0, 0.0, 1.0)


# Prodigy and D-Adaptation.

SLOW = {"growth_rate": 1.5, "weight_decay": DECAY}
PRODIGY = {
    "unlimited": ({}, {}),
    "limited": (SLOW, SLOW),
    "all": (
        {**SLOW, "beta3": 0.9, "estim_lr0": 1e-3, "estim_lr_coef": 0.5, "safeguard_warmup": True},
        {**SLOW, "beta3": 0.9, "d0": 1e-3, "d_coef": 0.5, "safeguard_warmup": True},
    ),
    "standing": ({"growth_rate": 1}, {"growth_rate": 1.0}),
}


@pytest.mark.parametrize("name", PRODIGY)
def test_prodigy_without_eps_is_the_authors(name):
    ours, theirs = PRODIGY[name]
    check_follows(gradtx.prodigy(eps=0.0, **ours), programs.prodigy, eps=0.0, **theirs)


@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_the_new_estimate_beside_eps_makes_the_difference_that_is_documented(size):
    start, gradient = data((5,))
    gradient = functools.partial(gradient, size=size)
    found, _ = run(gradtx.prodigy(), start, gradient, 100)
    expected = programs.run(programs.prodigy, start, gradient, 100)
    relative = max(
        np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, expected, strict=True)
    )
    assert 300 < relative * size / 1e-8 < 3000


def test_prodigys_moments_see_a_gradient_whose_rate_is_zero_unlike_the_authors():
    # A program that skips the first step starts at the second, with moments of zero.
    start, gradient = data((5,))
    found, state = run(gradtx.prodigy(first, eps=0.0), start, gradient, 2)
    np.testing.assert_array_equal(found[0], start)
    skipped, _ = programs.prodigy(1, gradient(1, start), start, {}, lr=0.0, eps=0.0)
    np.testing.assert_array_equal(skipped, start)
    g = [1e-6 * gradient(t, start) for t in (1, 2)]
    np.testing.assert_allclose(state.exp_avg, 0.09 * g[0] + 0.1 * g[1], rtol=1e-12)
    then, memory = programs.prodigy(2, gradient(2, start), start, {}, eps=0.0)
    np.testing.assert_allclose(memory["m"], 0.1 * g[1], rtol=1e-12)
    assert np.max(abs(found[1] - then)) > 1e-7


@pytest.mark.parametrize("growth_rate", [math.inf, 1.5, 1])
def test_dadapt_adamw_is_the_authors(growth_rate):
    tx = gradtx.dadapt_adamw(growth_rate=growth_rate, weight_decay=DECAY)
    arguments = {"growth_rate": growth_rate, "weight_decay": DECAY}
    check_follows(tx, programs.dadapt_adam, **arguments)


@pytest.mark.parametrize("make", [gradtx.prodigy, gradtx.dadapt_adamw])
def test_a_limit_may_be_an_array_or_a_schedule(make):
    start, gradient = data((5,))
    with jax.enable_x64(True):
        expected, _ = run(make(growth_rate=1.5), start, gradient)
        for limit in (jnp.asarray(1.5), lambda count: 1.5):
            found, _ = run(make(growth_rate=limit), start, gradient)
            np.testing.assert_allclose(found, expected, rtol=1e-13)
        unlimited, _ = run(make(), start, gradient)
        found, _ = run(make(growth_rate=jnp.asarray(jnp.inf)), start, gradient)
        np.testing.assert_allclose(found, unlimited, rtol=1e-13)


def test_the_state_is_optaxs_as_long_as_nothing_limits_the_growth():
    start, gradient = data((5,))
    assert type(run(gradtx.prodigy(), start, gradient, 1)[1]) is optax.contrib.ProdigyState
    limited = gradtx.prodigy(growth_rate=1.02)
    _, state = run(limited, start, gradient)
    assert type(state) is gradtx.ProdigyGrowthState
    # The first estimate is taken as it is, those after it are grown towards.
    assert state.estim_lr_max > 10 * state.estim_lr > 1e-5
    for rate in (math.inf, 1.02):
        _, state = run(gradtx.dadapt_adamw(growth_rate=rate), start, gradient, 1)
        assert type(state) is optax.contrib.DAdaptAdamWState


# Schedule-free.


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("r", [0.0, 0.75, 2.0])
@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_schedule_free_is_the_authors(method, r, warmup):
    rates = np.array([RATE * min(t / warmup, 1) for t in range(1, STEPS + 1)] if warmup else [])
    rate = (lambda count: jnp.asarray(rates)[count]) if warmup else RATE
    make = getattr(gradtx, f"schedule_free_{method}")
    theirs = {"weight_decay": DECAY, "r": r}
    ours = theirs | ({"b2": 0.9} if method == "adamw" else {})
    beta2 = 0.9 if method == "adamw" else None
    check_follows(
        make(rate, **ours),
        programs.schedule_free,
        lr=RATE,
        beta2=beta2,
        warmup_steps=warmup,
        **theirs,
    )


def test_the_authors_warm_up_is_the_schedule_that_the_docstring_gives():
    schedule = gradtx.linear_schedule(RATE / 5, RATE, 5 - 1)
    expected = [RATE * min(t / 5, 1) for t in range(1, 9)]
    np.testing.assert_allclose([schedule(count) for count in range(8)], expected, rtol=1e-6)


def test_wrapped_schedule_free_weighs_by_the_step():
    # With b1 = 1 and r = 1 the point is the average of z_t with the weights t.
    tx = gradtx.schedule_free(gradtx.sgd(RATE), RATE, b1=1.0, r=1.0)
    start, gradient = data((3,))
    found, state = run(tx, start, gradient)
    z, points = start, []
    for t in range(1, STEPS + 1):
        z = z - RATE * gradient(t, found[t - 2] if t > 1 else start)
        points.append(z)
        expected = np.average(points, axis=0, weights=np.arange(1, t + 1))
        np.testing.assert_allclose(found[t - 1], expected, rtol=1e-12)
    assert type(state) is optax.contrib.ScheduleFreeState


# NorMuon, Adam-mini, SOAP.


@pytest.mark.parametrize("name", SHAPES)
def test_normuon_without_consistent_rms_is_the_authors(name):
    tx = gradtx.normuon(RATE, weight_decay=DECAY, nesterov=True, consistent_rms=None, eps=1e-7)
    check_follows(as_transposed(tx), programs.normuon, SHAPES[name], lr=RATE, weight_decay=DECAY)


@pytest.mark.parametrize(
    ("kind", "blocks", "shape"),
    [
        ("rows", -1, (3, 4)),
        ("norm", -1, (4,)),
        ("bias", lambda path, leaf: 0, (4,)),
    ],
    ids=["matrix", "norm", "bias"],
)
def test_adamini_has_the_blocks_of_the_authors(kind, blocks, shape):
    decay = DECAY if kind == "rows" else 0.0
    tx = gradtx.adamini(RATE, blocks=blocks, weight_decay=decay)
    tx = as_transposed(tx) if len(shape) == 2 else tx
    check_follows(tx, programs.adam_mini, shape, lr=RATE, weight_decay=DECAY, kind=kind)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_soap_differs_from_the_authors_as_documented(eps):
    # p - lr * U - lr * decay * (p - lr * U) = p - shorter * U - lr * decay * p.
    shorter = RATE * (1 - RATE * DECAY)
    tx = gradtx.soap(
        shorter,
        eps=lambda count: eps / jnp.sqrt(1 - 0.95 ** jnp.maximum(count, 1)),
        weight_decay=lambda count: first(count) * DECAY * RATE / shorter,
    )
    check_follows(tx, programs.soap, SHAPES["wide"], lr=RATE, weight_decay=DECAY, eps=eps)


# ACProp and NAdamW.


@pytest.mark.parametrize("eps", [1e-16, 1e-2])
def test_acprop_differs_from_the_authors_in_its_first_step(eps):
    # The gradient must not see the parameters, which part in the first step.
    start, gradient = data((5,))
    start, gradient = 0 * start, lambda t, p, bowl=gradient: bowl(t, 0 * start)
    found, _ = run(gradtx.acprop(RATE, eps=eps, eps_root=eps), start, gradient)
    expected = programs.run(programs.acprop, start, gradient, STEPS, lr=RATE, eps=eps)
    np.testing.assert_allclose(found[0] * (1 + eps), expected[0], rtol=1e-14)
    np.testing.assert_allclose(np.diff(found, axis=0), np.diff(expected, axis=0), rtol=1e-10)


def test_the_first_step_of_nadamw_is_that_of_the_docstring():
    start, gradient = data((5,))
    found, _ = run(gradtx.nadamw(RATE, eps=0.0, weight_decay=0.0), start, gradient, 1)
    length = 1 + 0.9 / (1 + 0.9)
    np.testing.assert_allclose(abs(found[0] - start), RATE * length, rtol=1e-12)
    settings = {"lr": RATE, "eps": 0.0, "weight_decay": 0.0}
    expected = programs.run(programs.nadamw, start, gradient, 1, **settings)
    np.testing.assert_allclose(abs(expected[0] - start), RATE * 1.9, rtol=1e-12)
    # With a constant gradient the two differ by their corrections only.
    constant = [
        np.diff(path, axis=0)[-1]
        for path in (
            run(gradtx.nadamw(RATE, eps=0.0, weight_decay=0.0), start, lambda t, p: start, 30)[0],
            programs.run(programs.nadamw, start, lambda t, p: start, 30, **settings),
        )
    ]
    np.testing.assert_allclose(constant[1] / constant[0], 1.004, atol=5e-4)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_nadam_without_correction_makes_timms_nadamw(eps):
    def growth(count):
        return jnp.sqrt(1 - 0.999 ** (count + 1)) / (1 - 0.9 ** (count + 1))

    tx = gradtx.nadamw(
        lambda count: RATE * growth(count),
        eps=lambda count: eps * jnp.sqrt(1 - 0.999 ** (count + 1)),
        weight_decay=lambda count: DECAY / growth(count),
        bias_correction=False,
    )
    check_follows(tx, programs.nadamw, lr=RATE, eps=eps, weight_decay=DECAY)
