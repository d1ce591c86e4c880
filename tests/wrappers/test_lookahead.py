"""Lookahead against Algorithm 1 of its paper, and against what a quadratic predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import COUNT, NON_NEGATIVE, check_refused, wrong_arguments
from .changing_hands import PARAMS, TIMES_VALUE, check_changes_hands, smooth

PERIOD, STEP_SIZE = 3, 0.4


def train(tx, start, gradient, steps):
    """The pair of weights and the state after each step."""
    params = gradtx.LookaheadParams.init_synced(start)
    state, path = tx.init(params), []

    @jax.jit
    def one(params, state):
        updates, state = tx.update(gradient(params.fast), state, params)
        return gradtx.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = one(params, state)
        path.append((params, state))
    return path


def algorithm_1(start, gradient, cycles, learning_rate, momentum, resets):
    """The two nested loops of the paper with heavy-ball momentum as A: fast weights, slow ones."""
    slow, velocity = start, np.zeros_like(start)
    for _ in range(cycles):
        fast = slow
        if resets:
            velocity = np.zeros_like(start)
        for step in range(PERIOD):
            velocity = momentum * velocity + gradient(fast)
            fast = fast - learning_rate * velocity
            if step < PERIOD - 1:
                yield fast, slow
        slow = slow + STEP_SIZE * (fast - slow)
        yield slow, slow


@pytest.mark.parametrize("resets", [True, False], ids=["reset", "kept"])
def test_algorithm_1(resets):
    def gradient(x, np=np):
        return np.sin(2 * x) + 0.5 * x

    start = np.array([1.0, -2.0, 3.0])
    with jax.enable_x64(True):
        tx = gradtx.lookahead(gradtx.sgd(0.2, momentum=0.9), PERIOD, STEP_SIZE, reset_state=resets)
        path = train(tx, jnp.asarray(start), lambda x: gradient(x, jnp), 5 * PERIOD)
        expected = algorithm_1(start, gradient, 5, 0.2, 0.9, resets)
        for (params, _), (fast, slow) in zip(path, expected, strict=True):
            np.testing.assert_allclose(params.fast, fast, rtol=1e-12)
            np.testing.assert_allclose(params.slow, slow, rtol=1e-12)


def test_rate_on_a_quadratic():
    # On a x^2 / 2 a cycle multiplies the weights with 1 - alpha + alpha * (1 - lr * a)^k.
    curvature = np.array([0.1, 1.0, 4.0])
    tx = gradtx.lookahead(gradtx.sgd(0.3), PERIOD, STEP_SIZE)
    path = train(tx, jnp.ones(3), lambda x: jnp.asarray(curvature, jnp.float32) * x, 5 * PERIOD)
    factor = 1 - STEP_SIZE + STEP_SIZE * (1 - 0.3 * curvature) ** PERIOD
    np.testing.assert_allclose(path[-1][0].slow, factor**5, rtol=5e-6)


def test_noise_of_the_slow_weights():
    # Proposition 2: lookahead's variance on a noisy quadratic, as a share of that of SGD.
    rate, steps = 0.2, 100 * PERIOD + 1
    decay = 1 - rate
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(steps, 2000)), jnp.float32)
    tx = gradtx.lookahead(gradtx.sgd(rate), PERIOD, STEP_SIZE)
    params = gradtx.LookaheadParams.init_synced(jnp.zeros(2000))

    def one(carry, sample):
        params, state = carry
        updates, state = tx.update(params.fast - sample, state, params)
        return (gradtx.apply_updates(params, updates), state), jnp.var(params.slow)

    _, variances = jax.lax.scan(one, (params, tx.init(params)), noise)
    sgd = rate**2 / (1 - decay**2)
    keeps = 1 - STEP_SIZE + STEP_SIZE * decay**PERIOD
    expected = STEP_SIZE**2 * (1 - decay ** (2 * PERIOD)) / (1 - keeps**2) * sgd
    np.testing.assert_allclose(np.mean(variances[-90:]), expected, rtol=0.03)


@pytest.mark.usefixtures("usual_compilation")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fast_and_slow_weights_meet_exactly(dtype):
    start = jnp.asarray(np.random.default_rng(0).normal(size=2000) + 4, dtype)
    tx = gradtx.lookahead(gradtx.sgd(0.3), 2, 0.3)
    params = gradtx.LookaheadParams.init_synced(start)
    state, update = tx.init(params), jax.jit(tx.update)
    for meets in (False, True, False, True):
        # Added outside of the compiled step, so that no compiler merges the two.
        updates, state = update(jnp.sin(params.fast), state, params)
        params = gradtx.apply_updates(params, updates)
        assert bool(jnp.all(params.fast == params.slow)) == meets
        assert params.slow.dtype == dtype


def test_slow_weights_rest_in_between():
    path = train(gradtx.lookahead(gradtx.adam(0.1), 4, 0.5), jnp.ones(3), jnp.sin, 4)
    for params, _ in path[:3]:
        np.testing.assert_array_equal(params.slow, np.ones(3))
    assert [int(state.steps_since_sync) for _, state in path] == [1, 2, 3, 0]


def test_a_whole_step_is_the_fast_optimizer():
    plain, path = (
        gradtx.adam(0.1),
        train(gradtx.lookahead(gradtx.adam(0.1), 2, 1.0), jnp.ones(3), jnp.sin, 6),
    )
    x = jnp.ones(3)
    state = plain.init(x)
    for params, _ in path:
        updates, state = plain.update(jnp.sin(x), state, x)
        x = gradtx.apply_updates(x, updates)
        np.testing.assert_allclose(params.fast, x, rtol=1e-6)


def test_an_infinite_fast_weight_leaves_the_slow_ones_alone_until_they_meet():
    tx = gradtx.lookahead(gradtx.sgd(1.0), 2, 0.5)
    params = gradtx.LookaheadParams.init_synced(jnp.ones(1))
    updates, _ = tx.update(jnp.full(1, jnp.inf), tx.init(params), params)
    assert updates.slow == 0
    assert updates.fast == -jnp.inf


def test_a_reset_starts_where_the_weights_meet():
    # A transformation whose state is the point where it was last initialized.
    anchored = optax.GradientTransformation(
        lambda params: jnp.copy(params), lambda updates, state, params=None: (updates, state)
    )
    path = train(gradtx.lookahead(anchored, 2, 0.5, reset_state=True), jnp.ones(2), jnp.sin, 4)
    for (params, state), start in zip(path, [1.0, None, path[1][0].slow, None], strict=True):
        expected = params.slow if start is None else start
        np.testing.assert_array_equal(state.fast_state, np.broadcast_to(expected, 2))


def test_a_reset_handles_keys_and_counters():
    inner = gradtx.chain(gradtx.add_noise(0.1, 0.5, jax.random.key(3)), gradtx.adam(0.1))
    tx = gradtx.lookahead(inner, 2, 0.5, reset_state=True)
    path = train(tx, jnp.ones(2), jnp.sin, 2)
    jax.tree.map(
        np.testing.assert_array_equal, *map(_data, (path[1][1].fast_state, inner.init(jnp.ones(2))))
    )
    assert path[0][1].fast_state[0].count == 1


def _data(tree):
    """The tree with the data of its keys."""

    def numbers(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    return jax.tree.map(numbers, tree)


@pytest.mark.parametrize("resets", [True, False], ids=["reset", "kept"])
def test_a_run_changes_hands(resets):
    def make(library):
        return library.lookahead(library.adam(0.1), PERIOD, STEP_SIZE, reset_state=resets)

    check_changes_hands(
        make(gradtx),
        make(optax),
        at=4,
        steps=8,
        params=gradtx.LookaheadParams.init_synced(PARAMS),
        gradient=lambda params, step: smooth(params.fast, step),
    )


def test_init_accepts_the_fast_weights_alone():
    tx = gradtx.lookahead(gradtx.trace(0.9), 2, 0.5)
    pair = gradtx.LookaheadParams.init_synced(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, tx.init(PARAMS), tx.init(pair))


def test_leaves_without_a_gradient():
    tx = gradtx.lookahead(gradtx.sgd(1.0), 1, 0.5)
    weights = {"w": jnp.ones(1), "steps": jnp.int32(3), "frozen": jnp.ones(1), "absent": None}
    params = gradtx.LookaheadParams.init_synced(weights)
    gradients = {"w": jnp.ones(1), "steps": None, "frozen": None, "absent": None}
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert updates.fast["frozen"] is updates.slow["frozen"] is updates.slow["absent"] is None
    new = gradtx.apply_updates(params, updates)
    assert (new.slow["w"], new.fast["w"], new.slow["steps"]) == (0.5, 0.5, 3)


def test_extra_arguments_reach_the_fast_optimizer():
    tx = gradtx.lookahead(TIMES_VALUE, 1, 1.0)
    params = gradtx.LookaheadParams.init_synced(jnp.zeros(1))
    updates, _ = tx.update(jnp.ones(1), tx.init(params), params, value=3.0)
    assert updates.slow == 3.0


@pytest.mark.parametrize("params", [None, jnp.ones(2)], ids=["none", "array"])
def test_params_that_are_not_a_pair_are_refused(params):
    tx = gradtx.lookahead(gradtx.sgd(0.1), 2, 0.5)
    with pytest.raises(ValueError, match="LookaheadParams"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), params)


def test_pairs_that_do_not_fit_are_refused():
    tx = gradtx.lookahead(gradtx.sgd(0.1), 2, 0.5)
    ours, other = {"w": jnp.ones(2)}, {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"'w'.*\(2,\).*params\.slow.*\(3,\)"):
        tx.update(ours, tx.init(ours), gradtx.LookaheadParams(ours, other))
    with pytest.raises(ValueError, match="'w'"):
        tx.update(ours, tx.init(ours), gradtx.LookaheadParams(ours, {"v": jnp.ones(2)}))


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    wrong_arguments(
        gradtx.lookahead,
        {"fast_optimizer": gradtx.sgd(0.1), "sync_period": 2, "slow_step_size": 0.5},
        sync_period=COUNT,
        slow_step_size=NON_NEGATIVE,
        fast_optimizer=(None, "sgd", gradtx.sgd),
    ),
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


def test_it_may_come_after_other_pieces_of_a_chain():
    params = {"w": jnp.array([3.0, 4.0])}
    pair = gradtx.LookaheadParams.init_synced(params)
    pieces = (gradtx.clip_by_global_norm(1.0), gradtx.trace(0.5), gradtx.add_decayed_weights(0.1))
    inner = gradtx.chain(*pieces, gradtx.sgd(0.5))
    behind = gradtx.chain(*pieces, gradtx.lookahead(gradtx.sgd(0.5), 2, 0.5))
    around = gradtx.lookahead(inner, 2, 0.5)
    results = []
    for tx in (behind, around):
        state, p = tx.init(pair), pair
        for _ in range(3):
            updates, state = tx.update(p.fast, state, p)
            p = gradtx.apply_updates(p, updates)
        results.append(p)
    np.testing.assert_array_equal(results[0].fast["w"], results[1].fast["w"])
    np.testing.assert_array_equal(results[0].slow["w"], results[1].slow["w"])


def test_mini_steps_do_not_count():
    fast = gradtx.MultiSteps(gradtx.sgd(1.0), 2).gradient_transformation()
    tx = gradtx.lookahead(fast, sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(jnp.array([0.0]))
    state, counts = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update(jnp.array([1.0]), state, params)
        params = optax.apply_updates(params, updates)
        counts.append(int(state.steps_since_sync))
    assert counts == [0, 1, 1, 0]
    # Two steps of the fast parameters from 0 to -2, and half of the way back.
    np.testing.assert_array_equal([params.fast[0], params.slow[0]], [-1, -1])
