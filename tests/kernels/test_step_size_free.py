"""Methods that find their own step size, against their papers, their peers and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import gradtx
from gradtx.kernels.distance import scale_by_dog, scale_by_dowg

from ..trajectory import (
    ANY_NUMBER,
    DECAY,
    NON_NEGATIVE,
    SINGLE,
    Case,
    check_equation,
    check_refused,
)
from ..trajectory import wrong_arguments as wrong
from ..wrappers.changing_hands import PARAMS, check_changes_hands

STEPS = 20
CASES = {
    "dog-heuristic": (scale_by_dog, {"init_step": ("heuristic", 0.25)}),
    "dog-rate": (scale_by_dog, {"init_step": ("learning_rate", 0.25), "eps": 0.5}),
    "dog-distance": (scale_by_dog, {"init_step": ("distance", 9.0), "eps": 0.0}),
    "dowg": (scale_by_dowg, {"init_estim_sq_dist": 90.0, "eps": 0.5}),
    "cocob": (gradtx.scale_by_cocob, {"alpha": 7.0, "eps": 0.5}),
    "dadapt": (gradtx.dadapt_adamw, {}),
    "dadapt-all": (
        gradtx.dadapt_adamw,
        {
            "learning_rate": 0.5,
            "betas": (0.5, 0.75),
            "eps": 0.25,
            "estim_lr0": 0.25,
            "weight_decay": 0.125,
            "bias_correction": True,
        },
    ),
    "prodigy": (gradtx.prodigy, {}),
    "prodigy-all": (
        gradtx.prodigy,
        {
            "learning_rate": 0.5,
            "betas": (0.5, 0.75),
            "beta3": 0.625,
            "eps": 0.25,
            "estim_lr0": 0.25,
            "estim_lr_coef": 0.5,
            "weight_decay": 0.125,
            "safeguard_warmup": True,
            "bias_correction": True,
        },
    ),
    "polyak": (
        gradtx.scale_by_polyak,
        {"f_min": 2.0, "max_learning_rate": 0.25, "eps": 0.5},
    ),
    "polyak_sgd": (
        gradtx.polyak_sgd,
        {"scaling": 0.5, "f_min": 2.0, "max_learning_rate": 0.25, "eps": 0.5, "variant": "sps+"},
    ),
    "momo": (
        gradtx.momo,
        {"learning_rate": 0.5, "beta": 0.75, "weight_decay": 0.25, "lower_bound": 1.0},
    ),
    "momo-adapt": (gradtx.momo, {"beta": 0.5, "adapt_lower_bound": True}),
    "momo-negative": (
        gradtx.momo,
        {"beta": 0.5, "lower_bound": -64.0, "weight_decay": 0.25, "adapt_lower_bound": True},
    ),
    "momo_adam": (
        gradtx.momo_adam,
        {
            "learning_rate": 0.5,
            "b1": 0.75,
            "b2": 0.5,
            "eps": 0.25,
            "weight_decay": 0.25,
            "lower_bound": 1.0,
        },
    ),
    "momo_adam-adapt": (
        gradtx.momo_adam,
        {"learning_rate": 0.5, "adapt_lower_bound": True},
    ),
    "momo_adam-negative": (
        gradtx.momo_adam,
        {"learning_rate": 0.5, "lower_bound": -64.0, "adapt_lower_bound": True},
    ),
}
NOT_SCHEDULED = ("init_step", "init_estim_sq_dist", "estim_lr0", "lower_bound")
FULL = ("dog-rate", "dowg", "cocob", "dadapt-all", "prodigy-all", "polyak_sgd", "momo", "momo_adam")


@pytest.mark.parametrize("name", CASES)
def test_equation_in_double_precision(name):
    with jax.enable_x64(True):
        check_equation(Case(*CASES[name], steps=STEPS))


def converted(value, convert):
    """An argument with its numbers converted, also those of a pair."""
    if isinstance(value, tuple):
        return tuple(converted(part, convert) for part in value)
    return convert(value) if isinstance(value, float) else value


@pytest.mark.parametrize("name", FULL)
def test_equation_with_arrays_in_single_precision(name):
    factory, arguments = CASES[name]
    arrays = {key: converted(value, jnp.float32) for key, value in arguments.items()}
    # A gap, a length or a model of the loss is a difference of larger numbers.
    check_equation(Case(factory, arrays, steps=STEPS), tolerance=8 * SINGLE)


@pytest.mark.parametrize("name", FULL)
def test_equation_with_schedules(name):
    factory, arguments = CASES[name]
    # Without beta3 it is the root of what betas[1] is in this step; COCOB's scale starts at eps.
    fixed = (*NOT_SCHEDULED, "eps") if name == "cocob" else NOT_SCHEDULED
    falling = {
        key: value
        if key in fixed
        else converted(value, lambda number: lambda count: number * (1 - count / 64))
        for key, value in arguments.items()
        if key != "beta3"
    }
    with jax.enable_x64(True):
        check_equation(Case(factory, falling, steps=STEPS))


def loss(params):
    return sum(jnp.sum(p**2) for p in jax.tree.leaves(params)) / 4


def with_value(params):
    return {"value": loss(params)}


PAIRS = {
    "dog": (gradtx.dog(weight_decay=0.1), contrib.dog(weight_decay=0.1)),
    "dowg": (gradtx.dowg(0.5), contrib.dowg(0.5)),
    "layer-wise": (
        gradtx.scale_by_distance_over_gradients(1e-2, global_scale=-1.0),
        optax.scale_by_distance_over_gradients(1e-2, global_scale=-1.0),
    ),
    "cocob": (gradtx.cocob(0.5, weight_decay=0.1), contrib.cocob(0.5, weight_decay=0.1)),
    "dadapt_adamw": (
        gradtx.dadapt_adamw(weight_decay=0.1, estim_lr0=1e-2, bias_correction=True),
        contrib.dadapt_adamw(weight_decay=0.1, estim_lr0=1e-2),
    ),
    # With eps = 0 the old and the new estimate cannot differ beside it.
    "prodigy": (
        gradtx.prodigy(weight_decay=0.1, eps=0.0, estim_lr0=1e-2, bias_correction=True),
        contrib.prodigy(weight_decay=0.1, eps=0.0, estim_lr0=1e-2),
    ),
    "polyak_sgd": (gradtx.polyak_sgd(), optax.polyak_sgd()),
    "momo": (gradtx.momo(adapt_lower_bound=True), contrib.momo(adapt_lower_bound=True)),
    "momo_adam": (
        gradtx.momo_adam(adapt_lower_bound=True),
        contrib.momo_adam(adapt_lower_bound=True),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_run_changes_hands_with_optax(name):
    needs_value = name in ("polyak_sgd", "momo", "momo_adam")
    ours, theirs = PAIRS[name]
    extra = with_value if needs_value else lambda params: {}
    # optax's layer-wise sums have an axis of their own.
    with jax.numpy_rank_promotion("allow"):
        check_changes_hands(ours, theirs, at=3, steps=6, extra=extra, rtol=3e-5)


ALL = {
    "dog": gradtx.dog(eps=0.0),
    "dog-rate": gradtx.dog(init_step=("learning_rate", 0.5)),
    "dowg": gradtx.dowg(init_estim_sq_dist=1e-4, eps=0.0),
    "layer-wise": gradtx.scale_by_distance_over_gradients(eps=0.0, global_scale=-1.0),
    "cocob": gradtx.cocob(eps=0.0),
    "dadapt_adamw": gradtx.dadapt_adamw(eps=0.0),
    "prodigy": gradtx.prodigy(eps=0.0),
    "polyak_sgd": gradtx.polyak_sgd(),
    "momo": gradtx.momo(),
    "momo_adam": gradtx.momo_adam(eps=0.0),
    "mechanize": gradtx.mechanize(gradtx.sgd(1.0)),
}


@pytest.mark.parametrize("name", ALL)
def test_after_gradients_of_zero_it_stays_and_then_moves(name):
    tx, params = ALL[name], jnp.array([3.0, -4.0])
    update = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(2):
        updates, state = update(jnp.zeros(2), state, params, value=0.0)
        np.testing.assert_array_equal(updates, 0)
    updates, state = update(params, state, params, value=25.0)
    assert np.all(np.isfinite(updates))
    assert np.all(np.asarray(updates) * np.asarray(params) < 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ALL)
def test_the_state_of_abstract_and_of_half_precision_parameters(name):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    for leaf in jax.tree.leaves(jax.eval_shape(ALL[name].init, params)):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool_)


def test_the_first_distance_has_the_dtype_of_its_parameter_however_the_start_is_stored():
    with jax.enable_x64(True):
        tx = gradtx.scale_by_distance_over_gradients(reps_rel=0.25, param_dtype=jnp.float64)
        state = tx.init(jnp.array([3.0, 4.0], jnp.float32))
    assert (state.max_dist, state.max_dist.dtype) == (1.5, jnp.float32)


def test_momo_takes_a_decay_rate_of_numpy_in_any_precision():
    with jax.enable_x64(True):
        g, value = jnp.ones(2, jnp.float32), jnp.float32(2.0)
        plain, precise = (gradtx.momo(0.5, beta=beta) for beta in (0.5, np.float64(0.5)))
        expected, _ = plain.update(g, plain.init(g), g, value=value)
        updates, _ = precise.update(g, precise.init(g), g, value=value)
    assert updates.dtype == jnp.float32
    np.testing.assert_array_equal(updates, expected)


def test_cautious_knows_that_cocob_descends():
    g, tx = jnp.array([1.0, -2.0]), gradtx.cautious(gradtx.scale_by_cocob())
    updates, _ = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(jnp.sign(updates), [-1, 1])


def test_layer_wise_dog_is_dog_on_one_leaf():
    gradient, start = jnp.array([1.0, -2.0]), jnp.array([3.0, 4.0])
    paths = []
    for tx in (scale_by_dog(("heuristic", 0.25)), gradtx.scale_by_distance_over_gradients(0.25)):
        params, state = start, tx.init(start)
        for t in range(4):
            updates, state = tx.update((t + 1) * gradient, state, params)
            params = gradtx.apply_updates(params, updates)
        paths.append(params)
    np.testing.assert_allclose(*paths, rtol=1e-6)


def test_the_first_distance_of_a_layer_is_in_the_state_at_once():
    params = {"w": jnp.array([3.0, 4.0]), "frozen": None, "steps": jnp.int32(1)}
    for scale in (1.0, lambda count: 1.0):
        state = gradtx.scale_by_distance_over_gradients(0.5, global_scale=scale).init(params)
        np.testing.assert_allclose(optax.tree.get(state, "max_dist")["w"], 3.0)
        assert optax.tree.get(state, "max_dist")["frozen"] is None


def test_dog_with_a_first_rate_waits_for_the_first_gradient():
    tx = scale_by_dog(("learning_rate", 0.5))
    params = jnp.array([1.0])
    state = tx.init(params)
    for gradient in (0.0, 2.0):
        updates, state = tx.update(jnp.array([gradient]), state, params)
        np.testing.assert_allclose(updates, 0.5 * gradient)


def test_momo_below_its_cap_is_momentum_and_adam():
    # A loss far above its bound leaves the learning rate as it is.
    gradients = [jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0]), jnp.array([-1.0, 3.0])]
    params = jnp.array([0.25, 0.5])
    adam, ours = gradtx.adam(0.1), gradtx.momo_adam(0.1)
    average, mean = gradtx.momo(0.1, beta=0.75), np.zeros(2)
    states = [tx.init(params) for tx in (adam, ours, average)]
    for t, g in enumerate(gradients):
        expected, states[0] = adam.update(g, states[0], params)
        found, states[1] = jax.jit(ours.update)(g, states[1], params, value=1e6)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        mean = np.asarray(g) if t == 0 else 0.75 * mean + 0.25 * np.asarray(g)
        found, states[2] = jax.jit(average.update)(g, states[2], params, value=1e6)
        np.testing.assert_allclose(found, -0.1 * mean, rtol=1e-6)


def test_momo_divides_the_whole_step_by_the_growth_of_the_penalty():
    # The proximal step on sum(x^2), worked out by hand: tau = 3 / 10, c = 1.1.
    params = jnp.array([1.0, 2.0, 3.0])
    tx = gradtx.momo(1.0, weight_decay=0.1)
    updates, _ = tx.update(2 * params, tx.init(params), params, value=14.0)
    tau = (1.1 * (14 - 28) + 28) / 56
    np.testing.assert_allclose(params + updates, np.array([1, 2, 3]) * (1 - 2 * tau) / 1.1, 1e-6)


@pytest.mark.parametrize("shift", [0.0, -40.0, -99.0])
@pytest.mark.parametrize("make", [gradtx.momo, gradtx.momo_adam], ids=["momo", "momo_adam"])
def test_momo_finds_a_bound_below_a_negative_loss(make, shift):
    # A bound above the loss leaves no gap and ends the descent, at half of the shift or higher.
    tx = make(0.5, lower_bound=shift - 50, adapt_lower_bound=True)

    def above(x):
        return jnp.sum(jnp.array([1.0, 10.0]) * x**2)

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(above)(x), state, x, value=above(x) + shift)
        return (x + updates, state), None

    x = jnp.array([3.0, 4.0])
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=300)
    assert above(x) < 1


@pytest.mark.parametrize("size", [1e-9, 1e-15])
def test_small_gradients_still_move(size):
    # On f = x^2 Polyak's step halves x, however small it is; optax stops at |g| = 1.5e-8.
    params = jnp.array([size])
    for tx in (gradtx.polyak_sgd(), gradtx.momo(1.0)):
        updates, _ = tx.update(2 * params, tx.init(params), params, value=params[0] ** 2)
        np.testing.assert_allclose(updates, -params / 2, rtol=1e-6)


POSITIVE = (0.0, *NON_NEGATIVE)
MINUS = (-1.0, float("nan"), "high")


@pytest.mark.parametrize(
    ("factory", "arguments", "name", "value"),
    [
        *wrong(gradtx.dog, {}, eps=MINUS, weight_decay=MINUS, learning_rate=MINUS[1:]),
        *wrong(gradtx.dog, {}, init_step=(None, ("far", 1.0), ("distance",), "distance")),
        *wrong(gradtx.dowg, {}, eps=POSITIVE[:2], init_estim_sq_dist=POSITIVE[:3]),
        *wrong(gradtx.scale_by_distance_over_gradients, {}, reps_rel=POSITIVE, eps=MINUS),
        *wrong(gradtx.scale_by_distance_over_gradients, {}, param_dtype=("int32", "high")),
        *wrong(gradtx.scale_by_cocob, {}, alpha=MINUS, eps=MINUS),
        *wrong(gradtx.dadapt_adamw, {}, betas=(0.9, (0.9,)), estim_lr0=POSITIVE),
        *wrong(gradtx.dadapt_adamw, {}, learning_rate=MINUS[1:], eps=MINUS, weight_decay=MINUS),
        *wrong(gradtx.prodigy, {}, betas=(None,), beta3=DECAY[:2], estim_lr_coef=MINUS),
        *wrong(gradtx.prodigy, {}, growth_rate=(0.5, *MINUS)),
        *wrong(gradtx.dadapt_adamw, {}, growth_rate=(0.5, *MINUS)),
        *wrong(gradtx.scale_by_polyak, {}, f_min=ANY_NUMBER, max_learning_rate=MINUS),
        *wrong(gradtx.polyak_sgd, {}, variant=("SPS", None), scaling=MINUS[1:], eps=MINUS),
        *wrong(gradtx.momo, {}, learning_rate=MINUS, beta=DECAY[:2], lower_bound=ANY_NUMBER),
        *wrong(gradtx.momo_adam, {}, b1=DECAY[:2], b2=DECAY[:2], eps=MINUS, weight_decay=MINUS),
    ],
)
def test_wrong_argument(factory, arguments, name, value):
    check_refused(factory, arguments, name, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradtx.dog(init_step=("distance", 0.0)), "init_step must be > 0, got 0.0"),
        (lambda: gradtx.prodigy(betas=(1.5, 0.9)), r"betas\[0\] must be in .*, got 1.5"),
        (lambda: gradtx.dadapt_adamw(betas=(0.9, 1.0)), r"betas\[1\] must be in .*, got 1.0"),
        (lambda: gradtx.momo(lower_bound=lambda count: 0.0), "lower_bound must be a number"),
    ],
    ids=["init_step", "b1", "b2", "schedule"],
)
def test_wrong_part_of_an_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [gradtx.polyak_sgd, gradtx.momo, gradtx.momo_adam])
def test_missing_loss_is_asked_for(make):
    tx, params = make(), jnp.ones(2)
    with pytest.raises(ValueError, match="needs value"):
        tx.update(params, tx.init(params), params)


def test_momo_keeps_a_bound_that_the_model_just_reaches():
    # Without momentum the model at p is the loss. The first step sets the bound to 8 - 2^2 / 2.
    tx, params = gradtx.momo(1.0, beta=0.0, adapt_lower_bound=True), jnp.array([1.0])
    state = tx.init(params)
    for value, bound, step in ((8.0, 6.0, -2.0), (6.0, 6.0, 0.0)):
        updates, state = tx.update(2 * params, state, params, value=value)
        assert (state.lb, updates[0]) == (bound, step)
