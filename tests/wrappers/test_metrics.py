"""What a step did, against NumPy, and read from every kind of state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx

from ..trajectory import inputs

NORMS = ("gradient_norm", "update_norm", "update_ratio")


def falling(count):
    return 0.5 / (1 + count)


def norm(tree):
    return np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree)))


def run(tx, gradients=None, steps=4):
    """Gradient, updates, parameters before, and metrics of each step."""
    drawn, [params, *_] = inputs(24)
    params = jax.tree.map(jnp.asarray, params)
    gradients = (
        [jax.tree.map(jnp.asarray, g) for g in drawn[:steps]] if gradients is None else (gradients)
    )

    @jax.jit
    def step(g, state, params):
        updates, state = tx.update(g, state, params)
        return updates, state, gradtx.metrics(state)

    state, path = tx.init(params), []
    for g in gradients:
        updates, state, read = step(g, state, params)
        path.append((g, updates, params, read))
        params = gradtx.apply_updates(params, updates)
    assert step._cache_size() == 1
    assert jax.tree.all(jax.tree.map(lambda x: x.shape == (), path[-1][3]))
    return path


def series(path, name):
    return [float(read[name]) for *_, read in path]


OPTIMIZER = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(falling, weight_decay=0.1))


def test_norms_and_ratio_by_hand():
    path = run(gradtx.with_metrics(OPTIMIZER))
    for t, (g, updates, params, read) in enumerate(path):
        expected = {
            "gradient_norm": norm(g),  # before clipping
            "learning_rate": 0.5 / (1 + t),
            "step": t + 1,
            "update_norm": norm(updates),
            "update_ratio": norm(updates) / norm(params),
        }
        assert list(read) == list(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(read[name], value, rtol=2e-6, err_msg=name)


def test_the_updates_pass_unchanged():
    for watched, plain in zip(run(gradtx.with_metrics(OPTIMIZER)), run(OPTIMIZER), strict=True):
        jax.tree.map(np.testing.assert_array_equal, watched[1], plain[1])
        assert plain[3] == {}


def test_half_precision_and_double_precision():
    big = {"w": jnp.full(4, 3e4, jnp.float16)}
    tx = gradtx.with_metrics(gradtx.sgd(0.5))
    _, state = tx.update(big, tx.init(big), big)
    read = gradtx.metrics(state)
    np.testing.assert_allclose(read["gradient_norm"], 6e4, rtol=1e-3)
    np.testing.assert_allclose(read["update_ratio"], 0.5, rtol=1e-6)
    assert {read[name].dtype for name in NORMS} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        params = np.arange(3.0)
        _, state = tx.update(params / 3, tx.init(params), params)
        read = gradtx.metrics(state)
        np.testing.assert_allclose(read["update_ratio"], 1 / 6, rtol=1e-14)


def test_updates_and_parameters_of_different_precision():
    tx = gradtx.with_metrics(gradtx.identity())
    with jax.enable_x64(True):
        single, double = jnp.array([3.0, 4.0], jnp.float32), jnp.array([5.0, 12.0])
        for updates, params, ratio in ((single, double, 5 / 13), (double, single, 13 / 5)):
            _, state = tx.update(updates, tx.init(params), params)
            np.testing.assert_allclose(gradtx.metrics(state)["update_ratio"], ratio, rtol=1e-6)


def test_only_leaves_with_an_update_count():
    params = {"w": jnp.array([3.0, 4.0]), "frozen": jnp.ones(9), "n": jnp.int32(7), "f": jnp.tanh}
    gradients = {"w": jnp.array([6.0, 8.0]), "frozen": None, "n": None, "f": None}
    tx = gradtx.with_metrics(gradtx.sgd(0.5))
    _, state = tx.update(gradients, tx.init(params), params)
    read = gradtx.metrics(state)
    assert (read["gradient_norm"], read["update_norm"], read["update_ratio"]) == (10, 5, 1)


@pytest.mark.parametrize(
    ("update", "params", "ratio"),
    [
        (0.0, 0.0, 0.0),
        (1.0, 0.0, np.inf),
        (1.0, None, np.nan),
        (2.0**127, 4.0, 2.0**125),
        (4.0, 2.0**127, 2.0**-125),
    ],
    ids=["nothing to nothing", "something to nothing", "no parameters", "huge", "to huge"],
)
def test_ratios_at_the_edge(update, params, ratio):
    tx = gradtx.with_metrics(gradtx.identity())
    params = None if params is None else jnp.full(2, params)
    _, state = tx.update(jnp.full(2, update), tx.init(jnp.zeros(2)), params)
    np.testing.assert_array_equal(gradtx.metrics(state)["update_ratio"], np.float32(ratio))


def test_before_the_first_step_only_the_learning_rate_is_known():
    read = gradtx.metrics(gradtx.with_metrics(OPTIMIZER).init(jnp.ones(2)))
    assert read == dict.fromkeys(NORMS, 0) | {"learning_rate": 0.5, "step": 0}


@pytest.mark.parametrize("library", [gradtx, optax], ids=["gradtx", "optax"])
def test_skipped_steps(library):
    tx = library.apply_if_finite(gradtx.with_metrics(gradtx.sgd(falling)), 5)
    g = jax.tree.map(jnp.asarray, inputs(24)[0][0])
    bad = {name: leaf * jnp.nan for name, leaf in g.items()}
    path = run(tx, [g, bad, bad, g, bad])
    assert series(path, "skipped_steps") == [0, 1, 2, 2, 3]
    assert series(path, "consecutive_skipped") == [0, 1, 2, 0, 1]
    # A step that was skipped leaves no trace inside.
    assert series(path, "step") == [1, 1, 1, 2, 2]
    assert series(path, "learning_rate") == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_schedule_stands_still_while_steps_are_skipped():
    tx = gradtx.with_metrics(gradtx.apply_if_finite(gradtx.sgd(falling), 5))
    g = jax.tree.map(jnp.asarray, inputs(24)[0][0])
    bad = {name: leaf * jnp.nan for name, leaf in g.items()}
    path = run(tx, [g, bad, bad, g])
    assert series(path, "step") == [1, 1, 1, 2]
    assert series(path, "learning_rate") == [0.5, 0.25, 0.25, 0.25]
    assert series(path, "skipped_steps") == [0, 1, 2, 2]
    np.testing.assert_array_equal(series(path, "gradient_norm")[1:3], np.nan)


@pytest.mark.parametrize("library", [gradtx, optax], ids=["gradtx", "optax"])
def test_accumulated_gradients(library):
    def is_large(updates, step, params):
        del step, params
        return jnp.max(updates) > 5, {"should_skip": jnp.max(updates) > 5}

    steps = library.MultiSteps(
        gradtx.with_metrics(gradtx.sgd(falling)), 2, should_skip_update_fn=is_large
    )
    tx = gradtx.with_metrics(steps.gradient_transformation())
    state, params, rows = tx.init(jnp.ones(1)), jnp.ones(1), []
    for g in (1.0, 3.0, 9.0, 2.0, 4.0):
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            state = tx.update(jnp.array([g]), state, params)[1]
        rows.append(gradtx.metrics(state))
    # Outside, the latest gradient is measured; inside, the mean of two. The steps are the same.
    inside = "/inner_state/inner_opt_state"
    expected = {
        "step": [0, 1, 1, 1, 2],
        f"step{inside}": [0, 1, 1, 1, 2],
        "gradient_norm": [1, 3, 9, 2, 4],
        f"gradient_norm{inside}": [0, 2, 2, 2, 3],
        "mini_step": [1, 0, 0, 1, 0],
        "gradient_step": [0, 1, 1, 1, 2],
        "last_skipped": [False, False, True, False, False],
    }
    for name, values in expected.items():
        assert [row[name] for row in rows] == values, name


def test_a_schedule_stands_still_while_gradients_accumulate():
    steps = gradtx.MultiSteps(gradtx.sgd(falling), 2)
    path = run(gradtx.with_metrics(steps.gradient_transformation()))
    assert series(path, "learning_rate") == [0.5, 0.5, 0.25, 0.25]
    assert series(path, "update_norm")[::2] == [0, 0]
    np.testing.assert_allclose(
        series(path, "gradient_norm"), [norm(g) for g, *_ in path], rtol=1e-6
    )


GROUPS = gradtx.select.groups({"matrices": "matrix"}, rest="others")
RATES = {"matrices": gradtx.adam(falling), "others": gradtx.chain(gradtx.sgd(0.25))}


def watched(place):
    return gradtx.with_metrics(gradtx.sgd(0.125 * place))


# Where learning rates are -> their names and their values in the second step.
PLACES = {
    "partition": (
        gradtx.with_metrics(gradtx.partition(RATES, GROUPS)),
        {"learning_rate/matrices": 0.25, "learning_rate/others": 0.25},
    ),
    "partition of watched ones": (
        gradtx.partition({"matrices": watched(1), "others": watched(2)}, GROUPS),
        {"learning_rate/matrices": 0.125, "learning_rate/others": 0.25},
    ),
    "partition of injected ones": (
        gradtx.partition(
            {
                "matrices": gradtx.inject_hyperparams(gradtx.sgd)(falling),
                "others": gradtx.with_hyperparams(gradtx.adam, 0.5),
            },
            GROUPS,
        ),
        {"learning_rate/matrices": 0.25, "learning_rate/others": 0.5},
    ),
    "named chain": (
        gradtx.with_metrics(gradtx.named_chain(("a", gradtx.sgd(falling)), ("b", gradtx.sgd(0.5)))),
        {"learning_rate/a": 0.25, "learning_rate/b": 0.5},
    ),
    "chain": (
        gradtx.with_metrics(gradtx.chain(gradtx.sgd(falling), gradtx.sgd(0.5))),
        {"learning_rate/0/1": 0.25, "learning_rate/1/1": 0.5},
    ),
    "masked": (
        gradtx.with_metrics(gradtx.masked(gradtx.sgd(falling), gradtx.select("matrix"))),
        {"learning_rate": 0.25},
    ),
    "average": (
        gradtx.with_metrics(gradtx.average_params(gradtx.lion(falling), 0.9)),
        {"learning_rate": 0.25},
    ),
    "flattened": (
        gradtx.with_metrics(gradtx.flatten(gradtx.sgd(falling))),
        {"learning_rate": 0.25},
    ),
    "schedule beside slots": (
        gradtx.with_metrics(gradtx.chain(gradtx.trace(falling), gradtx.sgd(falling))),
        {"learning_rate": 0.25},
    ),
    "injected": (
        gradtx.with_metrics(gradtx.inject_hyperparams(gradtx.adamw)(falling)),
        {"learning_rate": 0.25},
    ),
    "injected under another name": (
        gradtx.with_metrics(gradtx.with_hyperparams(lambda rate: gradtx.sgd(rate), falling)),
        {},
    ),
    "optax injected": (optax.inject_hyperparams(optax.sgd)(0.25), {"learning_rate": 0.25}),
    "optax chain of ours": (
        optax.chain(optax.clip(1.0), gradtx.with_metrics(gradtx.sgd(falling))),
        {"learning_rate": 0.25},
    ),
    "optax alone": (gradtx.with_metrics(optax.sgd(0.5)), {}),
    "several watchers": (
        gradtx.chain(watched(1), gradtx.chain(watched(2), gradtx.identity())),
        {"learning_rate/0": 0.125, "learning_rate/1/0": 0.25},
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_learning_rates_are_found_and_named_by_their_place(place):
    tx, expected = PLACES[place]
    read = run(tx, steps=2)[-1][3]
    rates = {name: float(x) for name, x in read.items() if name.startswith("learning_rate")}
    assert rates == expected


def test_line_search():
    def loss(x):
        return jnp.sum((x - 1.0) ** 2)

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))
        x = jnp.zeros(2)
        value, grad = jax.value_and_grad(loss)(x)
        state = tx.update(grad, tx.init(x), x, value=value, grad=grad, value_fn=loss)[1]
    read = gradtx.metrics(state)
    assert read.keys() == {"learning_rate"}
    assert read["learning_rate"] == state[1].learning_rate < 1


def test_measurements_of_monitors_and_plateaus_stand_beside():
    tx = gradtx.chain(
        gradtx.snapshot("largest", lambda g: jnp.max(g["vector"])),
        gradtx.snapshot("vector", lambda g: g["vector"]),
        gradtx.monitor({"norms": lambda g: jax.tree.map(jnp.linalg.norm, g)}),
        gradtx.reduce_on_plateau(),
    )
    g, params = (jax.tree.map(jnp.asarray, tree[0]) for tree in inputs(24))
    _, state = tx.update(g, tx.init(params), params, value=jnp.float32(1))
    read = gradtx.metrics(state)
    assert read.keys() == {"largest", "norms/matrix", "norms/vector", "learning_rate_scale"}
    assert read["largest"] == np.max(g["vector"])
    np.testing.assert_allclose(read["norms/vector"], np.linalg.norm(g["vector"]), rtol=1e-6)
    assert read["learning_rate_scale"] == 1


def test_old_states_of_injected_hyperparameters():
    hyperparams = {"learning_rate": jnp.float32(0.5), "b1": jnp.float32(0.9)}
    state = optax.InjectHyperparamsState(jnp.int32(3), hyperparams, ())
    assert gradtx.metrics(state) == {"learning_rate": 0.5}


def test_parameters_of_the_same_names_are_not_metrics():
    params = {"learning_rate": jnp.ones(()), "step": jnp.ones(()), "count": jnp.ones(())}
    assert gradtx.metrics(gradtx.adam(0.1).init(params)) == {}
    assert gradtx.metrics(jnp.ones(())) == {}
    assert gradtx.metrics(None) == {}


def test_metrics_under_scan_and_vmap():
    tx = gradtx.with_metrics(gradtx.with_hyperparams(gradtx.sgd, 0.5))
    gradients = jnp.array([[3.0, 4.0], [6.0, 8.0]])

    def member(learning_rate):
        state = tx.init(jnp.ones(2))
        state.inner_state.hyperparams["learning_rate"] = learning_rate

        def step(state, g):
            state = tx.update(g, state, jnp.ones(2))[1]
            return state, gradtx.metrics(state)

        return jax.lax.scan(step, state, gradients)

    states, read = jax.jit(jax.vmap(member))(jnp.array([0.5, 2.0, 4.0]))
    np.testing.assert_allclose(read["gradient_norm"], [[5, 10]] * 3)
    np.testing.assert_allclose(read["update_norm"], [[2.5, 5], [10, 20], [20, 40]])
    np.testing.assert_allclose(read["learning_rate"], [[0.5] * 2, [2] * 2, [4] * 2])
    last = jax.vmap(gradtx.metrics)(states)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, -1]), last, read)


def test_the_training_step_reports_the_learning_rate_that_is_recorded():
    def loss(params, batch):
        return jnp.sum((params - batch) ** 2)

    tx = gradtx.with_metrics(gradtx.sgd(falling))
    train_step = gradtx.training.make_train_step(loss, tx)
    state = gradtx.training.TrainState.create(jnp.ones(2), tx)
    for step in range(2):
        state, read = train_step(state, jnp.zeros(2))
        assert read["learning_rate"] == 0.5 / (1 + step)


def test_another_structure_of_parameters_is_refused():
    tx = gradtx.with_metrics(gradtx.identity())
    state = tx.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"with_metrics: .*differ at 'w'"):
        tx.update({"w": jnp.ones(2)}, state, {"b": jnp.ones(2)})


def test_what_is_not_a_transformation_is_refused():
    with pytest.raises(ValueError, match="with_metrics: tx must be a gradient transformation"):
        gradtx.with_metrics(gradtx.sgd)


def test_polyak_sgd_shows_the_learning_rate_of_its_descent():
    tx = gradtx.with_metrics(gradtx.polyak_sgd(scaling=falling))
    state = tx.init(jnp.ones(2))
    for rate in (0.5, 0.25):
        _, state = tx.update(jnp.ones(2), state, jnp.ones(2), value=jnp.float32(1))
        assert gradtx.metrics(state)["learning_rate"] == rate
