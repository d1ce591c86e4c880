"""Muon, NorMuon, Shampoo and SOAP as whole optimizers, and Muon compared with optax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import gradtx

from ..trajectory import ANY_NUMBER, COUNT, DECAY, NON_NEGATIVE, check_refused, wrong_arguments

PARAMS = {
    "kernel": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3) ** 3,
    "heads": jnp.cos(jnp.arange(24.0)).reshape(4, 2, 3),
    "bias": jnp.array([0.5, -0.5, 2.0]),
}
NUMBERS = {"kernel": gradtx.MuonDimensionNumbers(), "heads": None, "bias": None}
BY_HEAD = NUMBERS | {"heads": gradtx.MuonDimensionNumbers(0, 2)}
WARMUP = optax.linear_schedule(0.0, 0.1, 5)


def gradients(params, step):
    return jax.tree.map(lambda p: jnp.sin(3.0 * p + step) + 0.1 * p, params)


def train(tx, params, state, steps, first=0):
    def one(carry, step):
        params, state = carry
        updates, state = tx.update(gradients(params, step), state, params)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        steps = jnp.arange(first, first + steps, dtype=jnp.float32)
        return jax.jit(lambda *carry: jax.lax.scan(one, carry, steps)[0])(params, state)


SHARED = {
    "matrices": {"muon_weight_dimension_numbers": NUMBERS},
    "heads-rms-decay": {
        "learning_rate": WARMUP,
        "muon_weight_dimension_numbers": lambda params: BY_HEAD,
        "consistent_rms": 0.2,
        "weight_decay": 0.1,
        "weight_decay_mask": {"kernel": True, "heads": False, "bias": True},
        "nesterov": False,
        "adam_weight_decay": 0.1,
        "adam_learning_rate": 0.05,
    },
    "dion-spectral": {
        "ns_coeffs": "dion",
        "preconditioning": "spectral",
        "muon_weight_dimension_numbers": BY_HEAD,
    },
}


@pytest.mark.parametrize("arguments", SHARED.values(), ids=SHARED)
def test_run_changes_hands_with_optax_mid_training(arguments):
    arguments = {"learning_rate": 0.1} | arguments
    ours, theirs = gradtx.muon(**arguments), optax.contrib.muon(**arguments)
    start = theirs.init(PARAMS)
    chex.assert_trees_all_equal_structs(ours.init(PARAMS), start)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(PARAMS), start)
    expected, expected_state = train(theirs, PARAMS, start, 8)
    for first, second in ((theirs, ours), (ours, theirs)):
        params, state = train(first, PARAMS, first.init(PARAMS), 4)
        params, state = train(second, params, state, 4, first=4)
        chex.assert_trees_all_close(params, expected, rtol=0, atol=2e-4)
        chex.assert_trees_all_equal_structs(state, expected_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)


def test_without_dimension_numbers_the_state_is_optaxs_for_matrices_and_vectors():
    params = {"kernel": PARAMS["kernel"], "bias": PARAMS["bias"]}
    ours, theirs = (muon(0.1).init(params) for muon in (gradtx.muon, optax.contrib.muon))
    chex.assert_trees_all_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_arrays_of_two_and_more_axes_are_matrices(name):
    tx = getattr(gradtx, name)(0.1)
    state = tx.init(PARAMS)
    masked = optax.MaskedNode()
    assert state.inner_states[name].inner_state[0].mu["bias"] == masked
    moments = state.inner_states["adam"].inner_state[0].mu
    assert moments["kernel"] == moments["heads"] == masked
    # The heads are a stack of four matrices; each is its own.
    g = jax.tree.map(lambda p: p * p + 1, PARAMS)
    updates, _ = tx.update(g, state, PARAMS)
    alone = {"heads": g["heads"][2]}
    expected, _ = tx.update(alone, tx.init(alone), alone)
    np.testing.assert_allclose(updates["heads"][2], expected["heads"], atol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.1 * jnp.sign(g["bias"]), atol=0.051)


def test_a_prefix_of_dimension_numbers_gives_the_rest_to_adam():
    tree = {"embedding": {"table": jnp.ones((4, 2))}, "body": {"kernel": jnp.ones((3, 2))}}
    numbers = {"embedding": None, "body": gradtx.MuonDimensionNumbers()}
    tx = gradtx.muon(0.1, muon_weight_dimension_numbers=numbers)
    moments = tx.init(tree).inner_states["muon"].inner_state[0].mu
    assert moments["embedding"]["table"] == optax.MaskedNode()
    assert moments["body"]["kernel"].shape == (3, 2)
    tx.update(tree, tx.init(tree), tree)


def test_consistent_rms_fits_all_shapes():
    tx = gradtx.muon(1.0, consistent_rms=0.2)
    rng = np.random.default_rng(0)
    for shape in ((8, 8), (4, 16), (16, 4)):
        g = jnp.float32(rng.normal(size=shape))
        updates, _ = tx.update(g, tx.init(g), g)
        # The singular values lie between 0.68 and 1.21, so does the root mean square.
        assert 0.68 * 0.2 <= jnp.sqrt(jnp.mean(updates**2)) <= 1.21 * 0.2


def test_shampoo_takes_the_length_of_another_optimizer():
    tx = gradtx.shampoo(1.0, grafting=gradtx.scale_by_sign())
    plain = gradtx.shampoo(1.0)
    g = gradients(PARAMS, 0.0)
    grafted, _ = tx.update(g, tx.init(PARAMS), PARAMS)
    directions, _ = plain.update(g, plain.init(PARAMS), PARAMS)
    for name, g in PARAMS.items():
        length = np.sqrt(g.size)
        expected = length * directions[name] / jnp.linalg.norm(directions[name])
        np.testing.assert_allclose(grafted[name], expected, rtol=1e-5, atol=1e-6)


def grafted_first(gs, b1, b2=0.75, eps=1e-3):
    """The steps of one array as the authors of scalable Shampoo order them, grafted to AdaGrad.

    They precondition the gradient itself, give that the length, and add it to the momentum.
    """
    shape, momentum, squares = gs[0].shape, 0.0, 0.1
    sums = [0.0 for _ in shape]
    for t, g in enumerate(gs, start=1):
        d = g
        for axis in range(len(shape)):
            unfolded = np.moveaxis(g, axis, 0).reshape(shape[axis], -1)
            sums[axis] = b2 * sums[axis] + (1 - b2) * unfolded @ unfolded.T
            values, vectors = np.linalg.eigh(sums[axis] / (1 - b2**t))
            roots = (values + eps * values[-1]) ** (-1 / (2 * len(shape)))
            d = np.moveaxis(np.tensordot((vectors * roots) @ vectors.T, d, (1, axis)), 0, axis)
        squares = squares + g**2
        length = np.linalg.norm(g / np.sqrt(squares + 1e-7))
        momentum = b1 * momentum + length / np.linalg.norm(d) * d
        # Divided by the sum of its weights 1 + b1 + ... + b1^(t-1), which starts it at full speed.
        yield momentum * (1 - b1) / (1 - b1**t)


@pytest.mark.parametrize("b1", [0.9, 0.5, None])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)], ids=str)
def test_shampoo_grafts_first_and_averages_then(shape, b1):
    gs = np.random.default_rng(6).normal(size=(6, *shape)) + 0.3
    with jax.enable_x64(True):
        params = jnp.full(shape, 2.0)
        tx = gradtx.shampoo(0.5, b1, 0.75, 1e-3, weight_decay=0.25, grafting=gradtx.scale_by_rss())
        update, state = jax.jit(tx.update), tx.init(params)
        for g, step in zip(gs, grafted_first(gs, b1 or 0.0), strict=True):
            updates, state = update(jnp.asarray(g), state, params)
            np.testing.assert_allclose(updates, -0.5 * (step + 0.25 * 2), rtol=0, atol=1e-9)


def mean_square_lengths(tx, gs):
    """The mean of the squares of the norms of the updates, after the average has begun."""

    def step(state, g):
        updates, state = tx.update(g, state, g)
        return state, jnp.sum(updates**2)

    _, squares = jax.lax.scan(step, tx.init(gs[0]), gs)
    return np.mean(squares[50:])


@pytest.mark.parametrize("b1", [0.9, 0.5])
def test_the_average_shortens_grafted_steps_without_a_signal(b1):
    # Independent steps of length 1: an average of them has the mean square (1 - b1) / (1 + b1).
    gs = jnp.float32(np.random.default_rng(7).normal(size=(1000, 6, 6)))
    tx = gradtx.shampoo(1.0, b1, 0.9, grafting=gradtx.normalize())
    # The estimate from 950 steps of 36 elements has a standard error of about 1 %.
    assert abs(mean_square_lengths(tx, gs) * (1 + b1) / (1 - b1) - 1) < 0.05
    # As `graft` says: a direction that is averaged already gets the full length again.
    tx = gradtx.graft(gradtx.normalize(), gradtx.scale_by_shampoo(b1, 0.9))
    np.testing.assert_allclose(mean_square_lengths(tx, gs), 1.0, rtol=1e-5)


def test_shampoo_stores_one_average_with_grafting_too():
    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(4)}
    for b1, averages in ((0.9, 1), (None, 0)):
        plain = gradtx.shampoo(0.1, b1).init(params)
        grafted = gradtx.shampoo(0.1, b1, grafting=gradtx.identity()).init(params)
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(state)) for state in (plain, grafted)]
        # Moments along each axis and roots of these that are matrices, and the count.
        own = 2 * (3 * 3 + 2 * 2) + 4 + 1
        assert sizes == [own + averages * 10, own + averages * (10 + 1)]
    tx = gradtx.scale_by_shampoo(None)
    assert tx.init(params).mu == {"w": [], "b": []}
    without, _ = tx.update(params, tx.init(params))
    chex.assert_trees_all_equal(without, params)


@pytest.mark.parametrize("name", ["muon", "normuon", "shampoo", "soap"])
def test_weight_decay_is_decoupled_and_chooses_leaves(name):
    mask = "weight_decay_mask" if "muon" in name else "mask"
    make = getattr(gradtx, name)
    params = {"a": jnp.ones((2, 2)), "b": jnp.full((2, 2), 3.0)}
    tx = make(0.5, weight_decay=0.1, **{mask: gradtx.select("b")})
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"], 0)
    np.testing.assert_allclose(updates["b"], -0.5 * 0.1 * 3, rtol=1e-6)


def final_loss(make):
    """The loss after 200 steps down a quadratic of condition number 10^4, at the best rate."""
    rng = np.random.default_rng(3)
    axes, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    hessian = jnp.float32(axes * np.geomspace(1, 1e4, 8) @ axes.T)
    start = jnp.float32(rng.normal(size=(8, 8)))

    def run(rate):
        tx = make(lambda count: rate * (1 - count / 200))

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(hessian @ w, state, w)
            return (w + updates, state), None

        (w, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=200)
        return jnp.sum(w * (hessian @ w)) / 2

    return jnp.min(jax.jit(jax.vmap(run))(jnp.array([0.2, 0.4, 0.8, 1.6])))


@pytest.fixture(scope="module")
def loss_of_adam():
    return final_loss(lambda rate: gradtx.adam(rate, 0.95, 0.95))


@pytest.mark.parametrize(
    "make",
    [
        gradtx.muon,
        lambda rate: gradtx.soap(rate, weight_decay=0.0),
        lambda rate: gradtx.shampoo(rate, b2=0.95),
    ],
    ids=["muon", "soap", "shampoo"],
)
def test_a_ravine_across_the_axes_is_hard_for_adam_alone(make, loss_of_adam):
    # In its own basis the Hessian is diagonal, and there a division by the size of the gradient
    # takes out all of the condition number; Adam divides along the axes, which takes out little.
    assert final_loss(make) < loss_of_adam / 10


ADAM = {
    "adam_b1": DECAY,
    "adam_b2": DECAY,
    "adam_eps_root": NON_NEGATIVE,
    "adam_weight_decay": NON_NEGATIVE,
    "adam_learning_rate": ANY_NUMBER,
}
WRONG = [
    *wrong_arguments(gradtx.muon, {"learning_rate": 0.1}, **ADAM, beta=DECAY, ns_coeffs=("fast",)),
    *wrong_arguments(gradtx.normuon, {"learning_rate": 0.1}, **ADAM, b2=DECAY),
    *wrong_arguments(gradtx.shampoo, {"learning_rate": 0.1}, update_interval=COUNT, grafting=(3,)),
    *wrong_arguments(gradtx.soap, {"learning_rate": 0.1}, precondition_frequency=COUNT),
    *[
        test
        for make in (gradtx.muon, gradtx.normuon, gradtx.shampoo, gradtx.soap)
        for test in wrong_arguments(make, {}, learning_rate=ANY_NUMBER)
        + wrong_arguments(make, {"learning_rate": 0.1}, weight_decay=NON_NEGATIVE)
    ],
]


@pytest.mark.parametrize(("factory", "arguments", "name", "value"), WRONG)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)
