"""The training step: its numbers against NumPy, its conventions, and that it is compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.normalization import batch_norm, init_batch_stats
from gradtx.training import TrainState, make_train_step

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=6)
W = np.array([0.5, -1.0, 2.0])


def batch(dtype=jnp.float32):
    return {"x": jnp.asarray(X, dtype), "y": jnp.asarray(Y, dtype)}


def params(dtype=jnp.float32):
    return {"w": jnp.asarray(W, dtype)}


def squared_error(params, batch):
    return jnp.mean(jnp.square(batch["x"] @ params["w"] - batch["y"]))


def reference(w):
    """The loss and its gradient, in NumPy's float64."""
    residual = X @ w - Y
    return np.mean(residual**2), 2 * X.T @ residual / len(Y)


def probe(update):
    """A transformation without state from a function of (gradient, params, extra arguments)."""
    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, **extra: (update(updates, params, extra), state),
    )


def test_steps_and_metrics_are_those_of_the_equations():
    schedule = optax.linear_schedule(0.1, 0.02, 4)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(schedule, momentum=0.9))
    train_step = make_train_step(squared_error, tx, learning_rate=schedule)
    state = TrainState.create(params(), tx)
    w, v = W, np.zeros(3)
    for t in range(6):
        state, metrics = train_step(state, batch())
        loss, g = reference(w)
        v = 0.9 * v + g * min(1.0, 1.0 / np.linalg.norm(g))
        rate = 0.1 - 0.02 * min(t, 4)
        w = w - rate * v
        assert set(metrics) == {"loss", "gradient_norm", "update_norm", "learning_rate"}
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(g), rtol=1e-5)
        np.testing.assert_allclose(metrics["update_norm"], rate * np.linalg.norm(v), rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
        assert state.step == t + 1
    assert np.linalg.norm(reference(W)[1]) > 1, "the first gradient should be clipped"


@pytest.mark.parametrize(
    "start",
    [jnp.ones(()), jnp.asarray(1.0), 1.0, np.float64(1.0)],
    ids=["array", "weakly typed", "number", "numpy"],
)
def test_the_second_step_is_neither_traced_nor_compiled(start, compilations):
    traces = []

    def loss_fn(params, batch):
        traces.append(params)
        return jnp.square(params - batch)

    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 8)
    chain = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(schedule))
    tx = gradtx.average_params(chain, 0.9)
    train_step = make_train_step(loss_fn, tx, learning_rate=schedule)
    state = TrainState.create(start, tx)
    target = jnp.float32(3.0)
    compilations.clear()
    for _ in range(4):
        state, _ = train_step(state, target)
        assert len(traces) == 1
        assert len(compilations) == 1


def test_a_transformation_that_weakens_types_is_compiled_once():
    traces = []

    def update(updates, state, params=None, **extra):
        traces.append(updates)
        return updates, jnp.asarray(1.0)

    tx = optax.GradientTransformationExtraArgs(lambda params: jnp.asarray(1.0), update)
    train_step = make_train_step(squared_error, tx)
    state = TrainState.create(params(), tx)
    for _ in range(3):
        state, _ = train_step(state, batch())
    assert len(traces) == 1


def test_a_step_reuses_the_memory_of_the_state_but_not_of_the_parameters_given():
    given = params()
    tx = gradtx.adam(0.1)
    before = TrainState.create(given, tx)
    after, _ = make_train_step(squared_error, tx)(before, batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    np.testing.assert_array_equal(given["w"], W.astype(np.float32))


def test_without_donation_the_old_state_stays():
    tx = gradtx.adam(0.1)
    before = TrainState.create(params(), tx)
    train_step = make_train_step(squared_error, tx, donate=False)
    first, _ = train_step(before, batch())
    again, _ = train_step(before, batch())
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_parameters_stay_so_and_norms_do_not_overflow(dtype):
    # Numbers that both dtypes represent; their squares overflow in float16.
    start, slope = np.array([1.0, 2.0, -3.0]), np.array([384.0, 0.0, -512.0])
    tx = gradtx.average_params(gradtx.sgd(1 / 128), 0.9)
    train_step = make_train_step(lambda p, b: jnp.sum(p * b), tx)
    state = TrainState.create(jnp.asarray(start, dtype), tx)
    types = jax.tree.map(lambda leaf: leaf.dtype, state)
    for t in range(1, 3):
        state, metrics = train_step(state, jnp.asarray(slope, dtype))
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == types
        np.testing.assert_array_equal(state.params.astype(jnp.float32), start - t * slope / 128)
        np.testing.assert_allclose(metrics["gradient_norm"], 640.0, rtol=1e-6)
        np.testing.assert_allclose(metrics["update_norm"], 5.0, rtol=1e-6)
    assert state.params.dtype == dtype


def test_in_64_bits_everything_stays_in_64_bits():
    with jax.enable_x64(True):
        tx = gradtx.sgd(0.1)
        train_step = make_train_step(squared_error, tx, learning_rate=0.1)
        state = TrainState.create(params(jnp.float64), tx)
        state, metrics = train_step(state, batch(jnp.float64))
        loss, g = reference(W)
        np.testing.assert_allclose(state.params["w"], W - 0.1 * g, rtol=1e-14)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-14)
        np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(g), rtol=1e-14)
        assert metrics["learning_rate"] == 0.1


def test_a_complex_parameter_goes_downhill():
    target = jnp.array([1.0 + 2.0j, -3.0j])
    tx = gradtx.sgd(0.25)
    train_step = make_train_step(lambda z, t: jnp.sum(jnp.abs(z - t) ** 2), tx)
    start = np.array([2.0 - 1.0j, 0.5 + 0.5j])
    state, metrics = train_step(TrainState.create(jnp.asarray(start, jnp.complex64), tx), target)
    # |z - t|^2 is steepest along 2 (z - t), so that a rate of 1/4 goes half of the way.
    np.testing.assert_allclose(state.params, (start + np.asarray(target)) / 2, rtol=1e-6)
    distance = np.linalg.norm(start - np.asarray(target))
    np.testing.assert_allclose(metrics["gradient_norm"], 2 * distance, rtol=1e-6)


def test_integers_among_the_parameters_are_left_alone():
    start = {"w": jnp.asarray(W, jnp.float32), "size": jnp.int32(3), "unused": None}
    tx = gradtx.chain(gradtx.clip_by_global_norm(1e6), gradtx.adam(0.1))
    train_step = make_train_step(squared_error, tx)
    state, metrics = train_step(TrainState.create(start, tx), batch())
    assert state.params["size"] == 3
    assert state.params["unused"] is None
    g = reference(W)[1]
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(g), rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], W - 0.1 * np.sign(g), rtol=1e-5)


def test_the_model_state_is_carried_from_step_to_step():
    def loss_fn(params, stats, batch):
        hidden, stats = batch_norm(batch["x"], stats, params["w"], training=True, momentum=0.75)
        return jnp.mean(jnp.square(hidden)), stats

    tx = gradtx.sgd(0.1)
    train_step = make_train_step(loss_fn, tx, has_model_state=True)
    state = TrainState.create(params(), tx, model_state=init_batch_stats(3))
    for _ in range(2):
        state, _ = train_step(state, batch())
    kept = 0.75**2
    mean, var = (1 - kept) * X.mean(axis=0), kept + (1 - kept) * X.var(axis=0)
    np.testing.assert_allclose(state.model_state.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.model_state.var, var, rtol=1e-5)


@pytest.mark.parametrize("has_key", [False, True], ids=["", "key"])
@pytest.mark.parametrize("has_aux", [False, True], ids=["", "aux"])
@pytest.mark.parametrize("has_model_state", [False, True], ids=["", "model_state"])
def test_the_flags_say_what_the_loss_takes_and_returns(has_model_state, has_aux, has_key):
    def loss_fn(params, *rest):
        rest = list(rest)
        steps = rest.pop(0) if has_model_state else None
        loss = params * rest.pop(0)
        aux = {"noise": jax.random.normal(rest.pop(0))} if has_key else {"noise": jnp.float32(0)}
        assert not rest
        if has_model_state and has_aux:
            return loss, (steps + 1, aux)
        if has_model_state:
            return loss, steps + 1
        return (loss, aux) if has_aux else loss

    tx = gradtx.sgd(0.5)
    flags = {"has_model_state": has_model_state, "has_aux": has_aux, "has_key": has_key}
    train_step = make_train_step(loss_fn, tx, **flags)
    key = jax.random.key(5)
    state = TrainState.create(4.0, tx, jnp.int32(0) if has_model_state else None, key)
    for t in range(2):
        state, metrics = train_step(state, 2.0)
        assert metrics["loss"] == 2 * (4 - t)
        assert ("noise" in metrics) == has_aux
        if has_aux and has_key:
            assert metrics["noise"] == jax.random.normal(jax.random.fold_in(key, t))
    assert state.params == 2
    assert state.model_state == (2 if has_model_state else None)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(key).tolist()


def test_transformations_get_the_loss_its_value_and_its_gradient():
    def update(updates, params, extra):
        elsewhere = jax.tree.map(lambda p: p + 1, params)
        return {
            "w": jnp.stack([extra["value"], extra["value_fn"](elsewhere), extra["grad"]["w"][2]])
        }

    tx = probe(update)
    state = TrainState.create({"w": jnp.zeros(3)}, tx)
    state, _ = make_train_step(squared_error, tx)(state, batch())
    loss, gradient = reference(np.zeros(3))
    expected = [loss, reference(np.ones(3))[0], gradient[2]]
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)


def test_newton_solves_a_quadratic_in_one_step():
    tx = gradtx.newton()
    state, _ = make_train_step(squared_error, tx)(TrainState.create(params(), tx), batch())
    solution, *_ = np.linalg.lstsq(X, Y)
    np.testing.assert_allclose(state.params["w"], solution, rtol=1e-4)


def test_a_line_search_reports_the_step_that_it_took():
    # On a quadratic without curvature pairs the first direction is the gradient, and a line
    # search that knows the curvature stops where the slope is a tenth of what it was, or less.
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(20, curv_rtol=0.1))
    state = TrainState.create(params(), tx)
    state, metrics = make_train_step(squared_error, tx)(state, batch())
    g = reference(W)[1]
    np.testing.assert_allclose(state.params["w"], W - metrics["learning_rate"] * g, rtol=1e-5)
    slope = reference(np.asarray(state.params["w"], np.float64))[1] @ g
    assert abs(slope) <= 0.1 * (g @ g)


def test_an_injected_learning_rate_is_read_from_the_state():
    make = optax.inject_hyperparams(gradtx.sgd)
    tx = make(learning_rate=lambda count: 0.5 / (1.0 + count.astype(jnp.float32)))
    train_step = make_train_step(squared_error, tx)
    state = TrainState.create(params(), tx)
    for expected in (0.5, 0.25):
        state, metrics = train_step(state, batch())
        assert metrics["learning_rate"] == expected
        norms = metrics["update_norm"] / metrics["gradient_norm"]
        np.testing.assert_allclose(norms, expected, rtol=1e-6)


def test_two_injected_learning_rates_are_not_one():
    make = functools.partial(optax.inject_hyperparams(gradtx.sgd), learning_rate=0.5)
    tx = gradtx.chain(make(), make())
    state = TrainState.create(params(), tx)
    _, metrics = make_train_step(squared_error, tx)(state, batch())
    assert "learning_rate" not in metrics


def test_the_step_runs_inside_scan_and_vmap():
    tx = gradtx.sgd(0.1)
    train_step = make_train_step(squared_error, tx)
    states = jax.vmap(lambda w: TrainState.create({"w": w}, tx))(jnp.stack([jnp.asarray(W)] * 2))
    batches = jax.tree.map(lambda x: jnp.stack([x] * 3), batch())
    run = jax.vmap(lambda state: jax.lax.scan(train_step, state, batches))
    states, metrics = run(states)
    w = W
    for t in range(3):
        loss, g = reference(w)
        np.testing.assert_allclose(metrics["loss"][:, t], [loss, loss], rtol=1e-5)
        w = w - 0.1 * g
    np.testing.assert_allclose(states.params["w"], [w, w], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_fn": 3}, "loss_fn must be a function, got 3"),
        ({"tx": gradtx.adam}, "tx must be a gradient transformation, got <function adam"),
        ({"learning_rate": np.nan}, "learning_rate must be a number, not NaN, got nan"),
        ({"learning_rate": "big"}, "learning_rate must be a number, got 'big'"),
    ],
    ids=["loss_fn", "tx", "NaN rate", "rate"],
)
def test_wrong_arguments_are_refused_when_the_step_is_built(arguments, message):
    given = {"loss_fn": squared_error, "tx": gradtx.sgd(0.1)} | arguments
    with pytest.raises(ValueError, match="make_train_step: ") as refusal:
        make_train_step(**given)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("loss_fn", "flags", "message"),
    [
        (lambda p, b: p["w"], {}, "the loss must be a real scalar, got float32 of shape (3,)"),
        (lambda p, b: jnp.int32(1), {}, "the loss must be a real scalar, got int32 of shape ()"),
        (lambda p, b: (p["w"][0], {}), {}, "the loss must be a real scalar, got tuple"),
        (lambda p, b: p["w"][0], {"has_aux": True}, "loss_fn must return (loss, ...)"),
        (
            lambda p, b: (p["w"][0], b["x"]),
            {"has_aux": True},
            "aux must be a dictionary of metrics",
        ),
        (
            lambda p, b: (p["w"][0], {"loss": b["x"], "ok": b["x"]}),
            {"has_aux": True},
            "aux must not use the names of other metrics, got ['loss']",
        ),
        (
            lambda p, s, b: (p["w"][0], s),
            {"has_model_state": True, "has_aux": True},
            "loss_fn must return (loss, (model_state, aux)), got dict",
        ),
        (lambda p, b, k: p["w"][0], {"has_key": True}, "has_key needs a state with a key"),
        (
            lambda p, s, b: (p["w"][0], {"mean": s["mean"].astype(jnp.float16)}),
            {"has_model_state": True},
            "at 'mean' from float32 of shape (2,) to float16 of shape (2,)",
        ),
        (
            lambda p, s, b: (p["w"][0], {"mean": {"new": s["mean"]}}),
            {"has_model_state": True},
            "at 'mean': the old model_state has shape (2,), the new model_state has no leaf there",
        ),
        (
            lambda p, s, b: (p["w"][0], {}),
            {"has_model_state": True},
            "the old model_state and the new model_state differ at 'mean'",
        ),
    ],
    ids=[
        "loss shape",
        "loss dtype",
        "forgotten flag",
        "no aux",
        "aux no dictionary",
        "aux name",
        "no pair inside",
        "no key",
        "model_state dtype",
        "model_state deeper",
        "model_state structure",
    ],
)
def test_a_loss_that_breaks_the_convention_is_refused(loss_fn, flags, message):
    tx = gradtx.sgd(0.1)
    state = TrainState.create(params(), tx, model_state={"mean": jnp.zeros(2)})
    with pytest.raises(ValueError, match="make_train_step: ") as refusal:
        make_train_step(loss_fn, tx, **flags)(state, batch())
    assert message in str(refusal.value)


def test_a_missing_model_state_is_refused():
    tx = gradtx.sgd(0.1)
    train_step = make_train_step(lambda p, s, b: (p["w"][0], s), tx, has_model_state=True)
    with pytest.raises(ValueError, match="has_model_state needs a state with a model_state"):
        train_step(TrainState.create(params(), tx), batch())
