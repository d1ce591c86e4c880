"""What an optimizer will do to each parameter."""

import html.parser

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.inspection import WeightDecay

PARAMS = {
    "embedding": jax.ShapeDtypeStruct((10, 4), jnp.float32),
    "layers": {
        "kernel": jax.ShapeDtypeStruct((3, 4, 4), jnp.bfloat16),
        "bias": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16),
    },
    "step": jax.ShapeDtypeStruct((), jnp.int32),
}


def row_of(tx, path="embedding", params=PARAMS):
    return next(row for row in gradtx.explain(tx, params).rows if row.path == path)


def test_rows_say_what_the_arrays_are():
    rows = gradtx.explain(gradtx.sgd(0.1), PARAMS).rows
    assert [(row.path, row.shape, row.dtype, row.kind) for row in rows] == [
        ("embedding", (10, 4), "float32", "trained"),
        ("layers/bias", (3, 4), "bfloat16", "trained"),
        ("layers/kernel", (3, 4, 4), "bfloat16", "trained"),
        ("step", (), "int32", "no parameter"),
    ]
    assert rows[-1].rules == ()
    assert rows[-1].learning_rate is None


def test_rules_come_in_their_order_with_what_is_masked():
    tx = gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.adamw(1e-3, weight_decay=0.1, decay="matrices")
    )
    before, after = ("clip_by_global_norm", "scale_by_adam"), ("scale_by_learning_rate",)
    assert row_of(tx).rules == (*before, "add_decayed_weights", *after)
    assert row_of(tx).weight_decay == (WeightDecay(0.1),)
    assert row_of(tx, "layers/bias").rules == (*before, *after)
    assert row_of(tx, "layers/bias").weight_decay == ()
    # The stacked kernel decays, the stacked bias, a matrix by its shape, does not.
    assert row_of(tx, "layers/kernel").weight_decay == (WeightDecay(0.1),)


def test_groups_inside_of_groups_show_labels_in_reverse():
    by_shape = gradtx.partition(
        {"muon": gradtx.lion(0.1), "adam": gradtx.adam(0.2)},
        lambda tree: jax.tree.map(lambda x: "muon" if x.ndim == 2 else "adam", tree),
    )
    tx = gradtx.named_chain(
        ("all", gradtx.masked(by_shape, gradtx.select("layers"))), ("clip", gradtx.clip(1.0))
    )
    # The rule that takes each array of two axes for a matrix is wrong about stacked layers.
    assert row_of(tx, "layers/kernel").rules[0] == "scale_by_adam"
    assert row_of(tx, "layers/bias").rules[0] == "scale_by_lion"
    assert row_of(tx, "layers/bias").rules[-1] == "clip"
    assert row_of(tx).rules == ("clip",)


RATES = {
    "number": (gradtx.sgd(0.5), 0.5),
    "array": (gradtx.sgd(np.float32(0.5)), 0.5),
    "scale": (gradtx.scale(-0.5), 0.5),
    "ascent": (gradtx.scale(0.5), -0.5),
    "ascent_by_name": (gradtx.scale_by_learning_rate(0.5, flip_sign=False), -0.5),
    "pattern": (
        gradtx.chain(gradtx.sgd(0.5), gradtx.multiply_learning_rate({"embedding": 0.5})),
        0.25,
    ),
    "path": (gradtx.chain(gradtx.sgd(0.5), gradtx.multiply_learning_rate(len)), 4.5),
    "factor_of_the_gradient": (
        gradtx.chain(gradtx.multiply_learning_rate({"embedding": 0.1}), gradtx.adamw(0.5)),
        0.5,
    ),
    "factor_before_signs": (gradtx.chain(gradtx.scale(0.1), gradtx.sign_sgd(0.5)), 0.5),
    "factor_before_momentum": (
        gradtx.chain(gradtx.scale(0.1), gradtx.sgd(0.5, momentum=0.9)),
        0.05,
    ),
    "factor_before_trust_ratio": (gradtx.chain(gradtx.scale(0.1), gradtx.lars(0.5)), 0.5),
    # The second one climbs along the first one's steps.
    "adam_twice": (gradtx.chain(gradtx.adam(0.25), gradtx.adam(0.5)), -0.5),
    "up_and_down": (gradtx.chain(gradtx.adam(0.25), gradtx.scale(-1.0), gradtx.adam(0.5)), 0.5),
    "scale_of_the_gradient": (gradtx.chain(gradtx.scale(8.0), gradtx.adam(0.5)), 0.5),
    "two_scales": (gradtx.chain(gradtx.sgd(0.5), gradtx.scale(0.5)), 0.25),
    "wrapped": (gradtx.apply_if_finite(gradtx.adam(0.5), 3), 0.5),
    "with_optax": (gradtx.chain(optax.clip(1.0), gradtx.sgd(0.5)), 0.5),
    "two_optimizers": (gradtx.sam(gradtx.adam(0.5), gradtx.sgd(7.0)), 0.5),
    "in_the_state": (gradtx.inject_hyperparams(gradtx.sgd)(0.5), 0.5),
    "accumulated": (gradtx.MultiSteps(gradtx.adam(0.5), 2), 0.5),
    "own_rate": (gradtx.rprop(0.5), 0.5),
    "rate_and_its_norm": (gradtx.fromage(0.75), 0.75 * (1 / 1.25)),
    "trust_ratio": (gradtx.lars(0.5), 0.5),
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rate(name):
    tx, expected = RATES[name]
    assert row_of(tx).learning_rate.number == expected


UNKNOWN = {
    "optax": optax.adamw(0.5),
    "multiplied_optax": gradtx.chain(optax.sgd(0.5), gradtx.scale(0.5)),
    "optax_behind_a_factor": gradtx.chain(gradtx.sgd(0.5), optax.scale_by_adam()),
    "factor_before_a_cube_root": gradtx.chain(gradtx.scale(0.5), gradtx.madgrad(0.5)),
    "direction": gradtx.scale_by_adam(),
    "multiplied_direction": gradtx.multiply_learning_rate({"embedding": 0.5}),
    "nothing": gradtx.identity(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_learning_rate_is_none(name):
    assert row_of(UNKNOWN[name]).learning_rate is None


MEASURED = {
    "adam": gradtx.adam(0.5),
    "adam_twice": gradtx.chain(gradtx.adam(0.25), gradtx.adam(0.5)),
    "momentum": gradtx.sgd(0.5, momentum=0.9),
    "normalized": gradtx.chain(gradtx.normalize(), gradtx.sgd(0.5)),
    "rprop": gradtx.rprop(0.5),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_factor_shows_if_it_has_an_effect_and_the_sign_is_that_of_the_step(name):
    params, gradients = jnp.ones((2,)), jnp.array([3.0, -4.0])

    def update(tx):
        return np.asarray(tx.update(gradients, tx.init(params), params)[0])

    def rate(tx):
        return gradtx.explain(tx, params).rows[0].learning_rate.number

    plain, scaled = MEASURED[name], gradtx.chain(gradtx.scale(0.25), MEASURED[name])
    np.testing.assert_allclose(update(scaled) / update(plain), rate(scaled) / rate(plain), 1e-5)
    np.testing.assert_array_equal(np.sign(update(plain)), -np.sign(rate(plain) * gradients))


DECAYS = {
    "decoupled": (gradtx.adamw(0.5, weight_decay=0.1), "0.1"),
    "lamb": (gradtx.lamb(0.5, weight_decay=0.1), "0.1"),
    "plain": (gradtx.chain(gradtx.add_decayed_weights(0.1), gradtx.sgd(0.5)), "0.1"),
    "in_the_gradient": (
        gradtx.chain(gradtx.add_decayed_weights(0.1), gradtx.adam(0.5)),
        "0.1 (L2)",
    ),
    "in_a_gradient_that_is_scaled": (
        gradtx.chain(gradtx.scale(0.5), gradtx.add_decayed_weights(0.1), gradtx.adam(0.5)),
        "0.2 (L2)",
    ),
    "in_the_momentum": (
        gradtx.chain(gradtx.add_decayed_weights(0.1), gradtx.sgd(0.5, momentum=0.9)),
        "0.1 (L2)",
    ),
    "twice": (
        gradtx.chain(gradtx.add_decayed_weights(0.1), gradtx.adamw(0.5, weight_decay=0.2)),
        "0.1 (L2) + 0.2",
    ),
    "behind_the_step": (
        gradtx.chain(gradtx.adam(0.5), gradtx.add_decayed_weights(0.1)),
        "-0.1 per step (grows)",
    ),
    "independent": (
        gradtx.chain(
            gradtx.scale_by_adam(),
            gradtx.scale(0.5),
            gradtx.add_decayed_weights(0.1),
            gradtx.scale(-1.0),
        ),
        "0.1 per step",
    ),
    "ascent": (
        gradtx.chain(gradtx.adamw(0.5, weight_decay=0.1), gradtx.scale(-1.0)),
        "0.1 (grows)",
    ),
    "hidden": (gradtx.chain(gradtx.add_decayed_weights(0.1), optax.adam(0.5)), "0.1 (?)"),
    "adan": (gradtx.adan(0.5, weight_decay=0.1), "0.1"),
}


@pytest.mark.parametrize("name", DECAYS)
def test_weight_decay_says_where_it_acts(name):
    tx, expected = DECAYS[name]
    params = {"w": jax.ShapeDtypeStruct((3, 3), jnp.float32)}
    (row,) = gradtx.explain(tx, params).rows
    assert " + ".join(map(str, row.weight_decay)) == expected


def test_weights_change_by_the_share_that_is_shown():
    params, zeros = jnp.array([2.0, -3.0]), jnp.zeros(2)
    for name in ("decoupled", "behind_the_step", "independent", "ascent", "plain"):
        tx, _ = DECAYS[name]
        (row,) = gradtx.explain(tx, params).rows
        (decay,) = row.weight_decay
        share = decay.number * (1.0 if decay.kind == "per step" else row.learning_rate.number)
        update, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_allclose(update, -share * params, rtol=1e-6)
        assert decay.grows == (share < 0)


def halved(count):
    return 0.5 / (1 + count)


def make_schedule():
    def schedule(count):
        return 0.5 / (1 + count)

    return schedule


def in_a_function():
    def own_name(count):
        return 0.5 / (1 + count)

    return own_name


schedules = gradtx.schedules
SCHEDULES = {
    "halved": halved,
    "make_schedule": make_schedule(),
    "own_name": in_a_function(),
    "schedule": lambda count: 0.5 + 0 * count,
    "constant_schedule": schedules.constant_schedule(0.5),
    "cosine_decay_schedule": schedules.cosine_decay_schedule(0.5, 10),
    "exponential_decay": schedules.exponential_decay(0.5, 10, 0.5),
    "linear_schedule": schedules.linear_schedule(0.5, 0.0, 10),
    "polynomial_schedule": schedules.polynomial_schedule(0.5, 0.0, 2, 10),
    "warmup_cosine_decay_schedule": schedules.warmup_cosine_decay_schedule(0.5, 1.0, 5, 10),
    "warmup_exponential_decay_schedule": schedules.warmup_exponential_decay_schedule(
        0.5, 1.0, 5, 10, 0.5
    ),
    "sgdr_schedule": schedules.sgdr_schedule(
        [{"init_value": 0.5, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 9}] * 2
    ),
    "join_schedules": schedules.join_schedules([halved, halved], [5]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_named_with_their_value(name):
    tx = gradtx.chain(
        gradtx.adamw(SCHEDULES[name], weight_decay=SCHEDULES[name]),
        gradtx.multiply_learning_rate({"embedding": 0.5}),
    )
    assert row_of(tx).learning_rate == (0.25, name, 0)
    assert row_of(tx).weight_decay == (WeightDecay(0.5, name),)
    assert f"0.25 ({name} at step 0)" in str(gradtx.explain(tx, PARAMS))


WITH_A_SCHEDULE = {
    "plain": gradtx.adamw(halved, weight_decay=0.1),
    "injected": gradtx.inject_hyperparams(gradtx.adamw)(halved, weight_decay=0.1),
    "kept": gradtx.with_hyperparams(gradtx.adamw, halved, weight_decay=0.1),
}


@pytest.mark.parametrize("name", WITH_A_SCHEDULE)
def test_values_are_those_of_the_step(name):
    (row, *_) = gradtx.explain(WITH_A_SCHEDULE[name], PARAMS, step=4).rows
    assert row.learning_rate == (pytest.approx(0.1), "halved", 4)
    assert row.weight_decay == (WeightDecay(0.1),)


def test_stateful_schedules_are_known_at_the_first_step_only():
    class Falling(optax.schedules.StatefulSchedule):
        def init(self):
            return jnp.float32(0.5)

        def update(self, state, **extra_args):
            return 0.5 * state

        def __call__(self, state, **extra_args):
            return state

    tx = gradtx.with_hyperparams(gradtx.sgd, Falling())
    assert row_of(tx).learning_rate.number == 0.5
    rate = gradtx.explain(tx, PARAMS, step=1).rows[0].learning_rate
    assert np.isnan(rate.number)
    assert "Falling" in rate.schedule


def test_frozen_leaves():
    plain = gradtx.chain(gradtx.adam(0.1), gradtx.freeze(gradtx.select("embedding")))
    assert row_of(plain).kind == "frozen"
    assert row_of(plain).state_bytes == 2 * 40 * 4
    thrifty = gradtx.selective_transform(
        gradtx.adam(0.1), freeze_mask=gradtx.select("embedding|step")
    )
    assert (row_of(thrifty).kind, row_of(thrifty).state_bytes) == ("frozen", 0)
    assert row_of(thrifty, "layers/bias").kind == "trained"
    # Decay after the freezing moves the parameters all the same.
    thawed = gradtx.chain(gradtx.set_to_zero(), gradtx.add_decayed_weights(0.1), gradtx.scale(-1.0))
    assert row_of(thawed).kind == "trained"
    assert "40 frozen" in str(gradtx.explain(plain, PARAMS))


def test_names_of_what_is_not_lifted():
    def made_here():
        return optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, s))

    tx = gradtx.chain(
        optax.scale_by_adam(), made_here(), gradtx.stateless(lambda g, p: g), gradtx.scale(-1.0)
    )
    row = row_of(tx)
    assert row.rules[0] == "optax.scale_by_adam"
    assert "test_names_of_what_is_not_lifted" in row.rules[1]
    assert row.rules[3] == "scale"
    assert not row.is_known
    assert "?" in str(gradtx.explain(tx, PARAMS))


def test_wrappers_show_what_they_wrap():
    tx = gradtx.apply_if_finite(gradtx.chain(gradtx.clip(1.0), gradtx.sgd(0.1)), 3)
    assert row_of(tx).rules == ("apply_if_finite(clip -> scale_by_learning_rate)",)
    tx = gradtx.sam(gradtx.adam(0.5), gradtx.sgd(7.0))
    inner = "scale_by_adam -> scale_by_learning_rate; scale_by_learning_rate"
    assert row_of(tx).rules == (f"sam({inner})",)


def float32_params():
    return {"a": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "0": jnp.ones(2)}


WITH_STATE = {
    "adam": lambda: gradtx.adam(0.1),
    "half_moment": lambda: gradtx.adamw(0.1, mu_dtype=jnp.bfloat16, decay="matrices"),
    "optax": lambda: optax.chain(optax.clip(1.0), optax.adamw(0.1), optax.ema(0.9)),
    "partition": lambda: gradtx.partition(
        {"m": gradtx.adam(0.1), "v": gradtx.sgd(0.1, momentum=0.9)},
        gradtx.select.groups({"m": gradtx.select.matrices}, rest="v"),
    ),
    "average": lambda: gradtx.average_params(gradtx.adam(0.1), 0.9),
    "accumulated": lambda: gradtx.MultiSteps(gradtx.adam(0.1), 2),
    "one_vector": lambda: gradtx.flatten(gradtx.adam(0.1)),
    "noise": lambda: gradtx.add_noise(0.1, 0.5, 0),
    "factored": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
}


@pytest.mark.parametrize("name", WITH_STATE)
def test_bytes_are_those_of_the_state(name):
    tx, params = WITH_STATE[name](), float32_params()
    explanation = gradtx.explain(tx, params)
    state = jax.tree.leaves(tx.init(params))
    assert explanation.state_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in state)
    assert explanation.parameters == 12 + 3 + 2
    assert explanation.bytes_per_parameter == explanation.state_bytes / 17


def test_bytes_of_each_leaf():
    tx = gradtx.chain(gradtx.adam(0.1, mu_dtype=jnp.bfloat16), gradtx.trace(0.9))
    explanation = gradtx.explain(tx, float32_params())
    assert {row.path: row.state_bytes for row in explanation.rows} == {
        "0": 2 * (2 + 4 + 4),
        "a/bias": 3 * (2 + 4 + 4),
        "a/kernel": 12 * (2 + 4 + 4),
    }
    assert explanation.shared_bytes == 4


def test_paths_of_states_and_parameters_are_not_confused():
    # Both the chain and the parameters are tuples, so that their paths begin the same.
    tx = gradtx.chain(gradtx.adam(0.1), gradtx.trace(0.9))
    rows = gradtx.explain(tx, (jnp.ones(2), jnp.ones(5))).rows
    assert [row.state_bytes for row in rows] == [2 * 3 * 4, 5 * 3 * 4]
    (row,) = gradtx.explain(tx, jnp.ones(7)).rows
    assert (row.path, row.state_bytes) == ("", 7 * 3 * 4)


def test_module_with_functions_and_missing_leaves():
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    rows = {row.path: row for row in gradtx.explain(gradtx.adam(0.1), model).rows}
    assert rows["layers/0/weight"].state_bytes == 2 * 6 * 4
    assert {row.kind for path, row in rows.items() if "activation" in path} == {"no parameter"}
    assert gradtx.explain(gradtx.adam(0.1), {"a": None}).rows == ()
    assert gradtx.explain(gradtx.adam(0.1), {}).bytes_per_parameter == 0.0


def test_mistakes_are_those_of_init():
    with pytest.raises(ValueError, match="'decoder' matches none"):
        gradtx.explain(gradtx.masked(gradtx.sgd(0.1), gradtx.select("decoder")), PARAMS)
    with pytest.raises(ValueError, match="tx must be a gradient transformation"):
        gradtx.explain(gradtx.adam, PARAMS)
    with pytest.raises(ValueError, match="tx must be a gradient transformation, got a dict"):
        gradtx.explain(PARAMS, gradtx.adam(0.1))
    with pytest.raises(ValueError, match="params must be the parameters, got a transformation"):
        gradtx.explain(gradtx.adam(0.1), gradtx.adam(0.1))
    with pytest.raises(ValueError, match="step must be a whole number >= 0, got -1"):
        gradtx.explain(gradtx.adam(0.1), PARAMS, step=-1)


def many(**options):
    params = {f"layer_{i}": {"kernel": PARAMS["embedding"], "bias": 0.0} for i in range(100)}
    return gradtx.explain(gradtx.adamw(0.1, decay="matrices"), params, **options)


def test_text_of_many_leaves_is_aligned_and_in_sections():
    text = str(many(all_leaves=True))
    decayed, plain, total = text.split("\n\n")
    assert plain.splitlines()[0].endswith("[100]")
    assert decayed.count("add_decayed_weights") + plain.count("add_decayed_weights") == 1
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    assert len(lines) == 202
    assert len({len(line) for line in lines}) == 1
    assert total.startswith("4,100 parameters")


class Rows(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.cells = []

    def handle_data(self, data):
        self.cells.append(data)


def test_notebooks_show_a_table_with_escaped_names():
    params = {"<b>&": jnp.ones(2)}
    parser = Rows()
    page = gradtx.explain(gradtx.adam(0.1), params)._repr_html_()
    parser.feed(page)
    assert "<b>" not in page
    assert "<b>&" in parser.cells
    assert "scale_by_adam -> scale_by_learning_rate  [1]" in parser.cells
    # The headings, and one line for each of the two routes.
    assert many(all_leaves=True)._repr_html_().count("<tr>") == 3 + 200
    page = many()._repr_html_()
    assert page.count("<tr>") == 3 + 2
    assert "layer_[0-99]/kernel" in page


def test_layers_that_are_treated_alike_share_a_line():
    params = {f"layer_{i}": {"kernel": PARAMS["embedding"], "bias": 0.0} for i in range(100)}
    params["layer_7"]["kernel"] = params["layer_7"]["kernel"].update(shape=(4, 4))
    tx = gradtx.chain(
        gradtx.adamw(0.1, decay="matrices"), gradtx.freeze(gradtx.select("layer_12/kernel"))
    )
    explanation = gradtx.explain(tx, params)
    assert repr(explanation) == str(explanation)
    assert len(explanation.rows) == 200
    cells = [line.split() for line in str(explanation).splitlines() if "layer_" in line]
    # Two moments of four bytes for each element: 10 × 4, 4 × 4 and 1 of them.
    assert sorted((path, "".join(memory)) for path, _, _, _, _, *memory in cells) == [
        ("layer_12/kernel", "320"),
        ("layer_7/kernel", "128"),
        ("layer_[0-6,8-11,13-99]/kernel", "98×320"),
        ("layer_[0-99]/bias", "100×8"),
    ]
    assert [line.partition("  ")[2] for line in str(explanation).splitlines() if "->" in line] == [
        "[100]",
        "[99]",
        "[1]",
    ]
