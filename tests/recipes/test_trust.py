"""LARS, LAMB, Fromage and NovoGrad: equations, and steps of the predicted relative length."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import gradtx

from ..trajectory import (
    cases,
    check_refused,
    equation_tests,
    wrong_arguments,
)
from ..wrappers.changing_hands import check_changes_hands

CASES = [
    *cases(
        gradtx.lars,
        {
            "learning_rate": 0.1,
            "trust_coefficient": 0.3,
            "eps": 0.7,
            "momentum": 0.6,
            "nesterov": True,
        },
    ),
    *cases(
        gradtx.lamb,
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps_root": 1e-2, "weight_decay": 0.3},
    ),
    *cases(
        gradtx.fromage,
        {"learning_rate": 0.5, "min_norm": 2.5},
    ),
    *cases(
        gradtx.novograd,
        {"learning_rate": 0.1, "b1": 0.5, "b2": 0.9, "eps": 0.1, "eps_root": 0.5},
    ),
]
DECAYED = cases(
    gradtx.lars,
    {"learning_rate": 0.1, "weight_decay": 0.5, "trust_coefficient": 0.3, "eps": 0.2},
)


# optax's LARS has the norm of the sum in the denominator instead of the sum of the norms.
TESTS = [*equation_tests(CASES), *equation_tests(DECAYED, unlike_optax=[gradtx.lars])]


# Arrays reach the pieces as numbers do.
@pytest.mark.parametrize(("check", "case"), [test for test in TESTS if "arrays" not in test.id])
def test_equation(check, case):
    check(case)


def path(tx, gradient, start, steps):
    """The points of a descent in double precision, with a gradient that depends on the point."""

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(gradient(x), state, x)
        x = gradtx.apply_updates(x, updates)
        return (x, state), x

    with jax.enable_x64(True):
        start = jax.tree.map(jnp.float64, start)
        _, points = lax.scan(step, (start, tx.init(start)), length=steps)
    return jax.tree.map(np.asarray, points)


START = {"flat": np.array([3.0, -4.0]), "steep": np.array([[1.0], [2.0], [-2.0]])}
CURVATURES = {"flat": 1e-3, "steep": 1e3}


def bowls(x):
    """A round bowl for each layer, of very different curvature."""
    return {name: CURVATURES[name] * x[name] for name in x}


def test_lars_descends_all_curvatures_at_the_same_rate():
    # ||p|| / ||g|| g = p whatever the curvature, so that x is a heavy ball in a bowl of curvature
    # 1, whose characteristic roots are complex and of modulus sqrt(momentum).
    points = path(gradtx.lars(0.5, trust_coefficient=0.2, momentum=0.81), bowls, START, 60)
    matrix = np.array([[1 - 0.5 * 0.2, 0.81], [-0.5 * 0.2, 0.81]])
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(matrix)), 0.9, rtol=1e-12)
    x, v = 1.0, 0.0
    for t in range(60):
        x, v = matrix @ (x, v)
        for name in START:
            np.testing.assert_allclose(
                points[name][t], x * START[name], rtol=1e-9, atol=1e-9 * 0.9**t
            )


def test_lamb_contracts_by_one_minus_the_learning_rate():
    # Where all elements are equal in size the sign of the gradient points along the weights.
    start = {"flat": np.array([3.0, -3.0]), "steep": np.full((3, 1), 0.5)}
    points = path(gradtx.lamb(0.2, b1=0.0, b2=0.0, eps=0.0), bowls, start, 40)
    for name, x in start.items():
        powers = 0.8 ** np.arange(1, 41).reshape(-1, *np.ones(x.ndim, int))
        np.testing.assert_allclose(points[name], powers * x, rtol=1e-10)


def test_fromage_contracts_by_its_rate_on_any_curvature():
    points = path(gradtx.fromage(0.75, min_norm=0.0), bowls, START, 20)
    for name, x in START.items():
        powers = (0.25 / 1.25) ** np.arange(1, 21).reshape(-1, *np.ones(x.ndim, int))
        np.testing.assert_allclose(points[name], powers * x, rtol=1e-10)


def test_fromage_turns_weights_of_a_scale_invariant_loss_without_changing_their_norm():
    # A gradient perpendicular to the weights turns them by atan(learning_rate) in each step.
    def across(x):
        return 7.0 * jnp.stack([x[1], -x[0]])

    points = path(gradtx.fromage(0.3), across, np.array([2.0, 0.0]), 50)
    angles = np.arctan(0.3) * np.arange(1, 51)
    circle = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(points, circle, rtol=1e-11, atol=1e-11)


def test_fromage_refuses_a_wrong_learning_rate_by_its_own_name():
    for wrong in (None, float("nan")):
        with pytest.raises(ValueError, match=r"^fromage: learning_rate"):
            gradtx.fromage(wrong)


def test_shrinking_of_fromage_survives_single_precision():
    # 1 - 1 / sqrt(1 + 1e-8) is 5e-9, less than the rounding of numbers near 1; optax's schedule
    # loses it.
    p, g = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    tx = gradtx.fromage(lambda count: jnp.float32(1e-4))
    updates, _ = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose(updates, [-5e-9, -1e-4], rtol=1e-6)


def test_novograd_walks_to_the_minimum_of_a_round_bowl_at_a_constant_pace():
    # Without averages each layer moves by the learning rate along its unit gradient.
    tx = gradtx.novograd(0.1, b1=0.0, b2=0.0, eps=0.0)
    points = path(tx, bowls, START, 25)
    for name, x in START.items():
        left = 1 - 0.1 * np.arange(1, 26) / np.linalg.norm(x)
        expected = left.reshape(-1, *np.ones(x.ndim, int)) * x
        np.testing.assert_allclose(points[name], expected, rtol=1e-10)


G, P = np.array([3.0, -0.5, 4.0]), np.array([1.0, 2.0, -2.0])
FIRST_STEPS = {
    "lars": (
        gradtx.lars(0.5, trust_coefficient=0.1, weight_decay=0.25),
        -0.5 * 0.1 * 3 / (np.sqrt(25.25) + 0.25 * 3) * (G + 0.25 * P),
    ),
    "lamb": (gradtx.lamb(0.5, eps=0.0), -0.5 * 3 / np.sqrt(3) * np.sign(G)),
    "novograd": (
        gradtx.novograd(0.5, eps=0.0, weight_decay=0.25),
        -0.5 * (G / np.sqrt(25.25) + 0.25 * P),
    ),
}


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_first_step(name):
    tx, expected = FIRST_STEPS[name]
    g, p = jnp.asarray(G), jnp.asarray(P)
    updates, _ = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_masks_of_lars():
    names = ("both", "decay", "trust", "none")
    params = {name: jnp.asarray(P) for name in names}
    grads = {name: jnp.asarray(G) for name in names}
    tx = gradtx.lars(
        1.0,
        weight_decay=0.25,
        weight_decay_mask=gradtx.select("both|decay"),
        trust_coefficient=0.1,
        trust_ratio_mask={"both": True, "decay": False, "trust": True, "none": False},
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    norm = np.sqrt(25.25)
    expected = {
        "both": -0.1 * 3 / (norm + 0.25 * 3) * (G + 0.25 * P),
        "decay": -(G + 0.25 * P),
        "trust": -0.1 * 3 / norm * G,
        "none": -G,
    }
    for name in names:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6, err_msg=name)


WARMUP = optax.linear_schedule(0.0, 0.1, 5)
SHARED = {
    # Where the two denominators agree: no leaf has both.
    "lars": lambda lib: lib.lars(
        0.01,
        weight_decay=WARMUP,
        weight_decay_mask={"matrix": False, "vector": True},
        trust_ratio_mask={"matrix": True, "vector": False},
    ),
    "lamb": lambda lib: lib.lamb(0.1, b2=0.9, weight_decay=WARMUP),
    "fromage": lambda lib: lib.fromage(WARMUP),
    "novograd": lambda lib: lib.novograd(WARMUP, weight_decay=0.1),
    "pieces": lambda lib: lib.chain(
        lib.scale_by_param_block_norm(),
        lib.scale_by_param_block_rms(),
        lib.scale_by_trust_ratio(min_norm=0.1, eps=0.1),
        lib.apply_every(3),
        lib.scale(-0.1),
        lib.keep_params_nonnegative(),
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_run_changes_hands(name):
    make = SHARED[name]
    check_changes_hands(make(gradtx), make(optax), at=4, steps=8)


@pytest.mark.parametrize("weight_decay", [0.1, WARMUP], ids=["number", "schedule"])
def test_state_of_lars_with_decay_is_that_of_optax(weight_decay):
    params = {"w": jnp.ones(3)}
    ours, theirs = [
        lib.lars(WARMUP, weight_decay, weight_decay_mask=lambda p: {"w": True}).init(params)
        for lib in (gradtx, optax)
    ]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


# Each argument reaches the piece that refuses all kinds of wrong values.
WRONG = (-1.5, float("nan"))
NUMBERS = {
    gradtx.lars: ("weight_decay", "eps", "momentum"),
    gradtx.lamb: ("b1", "b2", "eps", "eps_root", "weight_decay"),
    gradtx.fromage: ("min_norm",),
    gradtx.novograd: ("b1", "b2", "eps", "eps_root", "weight_decay"),
}


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        test
        for factory, names in NUMBERS.items()
        for test in wrong_arguments(
            factory, {"learning_rate": 0.1}, learning_rate=WRONG[1:], **dict.fromkeys(names, WRONG)
        )
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


@pytest.mark.parametrize("argument", ["weight_decay_mask", "trust_ratio_mask"])
def test_mask_of_lars_that_is_a_string_is_refused_by_name(argument):
    with pytest.raises(ValueError, match=f"lars: {argument}"):
        gradtx.lars(0.1, **{argument: "bias"})
