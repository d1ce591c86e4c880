"""What counts, averages or follows a schedule advances with the steps that are taken, not calls.

Every wrapper is put around and inside what skips steps, and one of them around everything that
does, gradtx's and optax's. The expected values come from loops over the steps alone.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx
from gradtx.diagnostics import history_of, record_history
from gradtx.testing import check_transformation
from gradtx.wrappers.steps import is_step

NAN = np.nan
# A step with a zero gradient is a step: the fifth and sixth call.
GRADIENTS = [1.0, 3.0, NAN, 2.0, 0.0, 0.0, -1.0, NAN, 5.0, 1.0, 2.0, 4.0]
START = np.array([4.0, -1.0])
DIRECTION = np.array([1.0, -2.0])


def rate(count):
    return 0.5 / (1.0 + count)


class Step(NamedTuple):
    """The gradient of a step, and that of the call in which it was taken."""

    mean: Any
    last: Any


# What skips steps, as a function from consecutive calls to steps or None.


def finite(steps):
    return [step if step and np.isfinite(step.mean).all() else None for step in steps]


def collected(steps):
    got = []
    for step in steps:
        got += [step] if step else []
        if len(got) == 2:
            yield Step((got[0].mean + got[1].mean) / 2, got[1].last)
            got = []
        else:
            yield None


def every_other(steps):
    return [step if i % 2 else None for i, step in enumerate(steps)]


def multi_steps(library, inner, **arguments):
    return library.MultiSteps(inner, 2, **arguments).gradient_transformation()


def skip(library, inner):
    return multi_steps(library, inner, should_skip_update_fn=library.skip_not_finite)


def mask(library, inner):
    conditionally_mask = getattr(library, "transforms", library).conditionally_mask
    return conditionally_mask(inner, lambda step: step % 2 == 1)


def frozen(library, inner):
    transforms = {"train": multi_steps(library, inner), "freeze": library.set_to_zero()}
    return library.partition(transforms, {"w": "train", "frozen": "freeze"})


def bounded(library, inner):
    return library.chain(library.apply_if_finite(inner, 9), library.clip(1e3))


HOLDS_BACK = {
    "MultiSteps": (multi_steps, [collected]),
    "apply_if_finite": (lambda library, tx: library.apply_if_finite(tx, 9), [finite]),
    "MultiSteps(apply_if_finite)": (
        lambda library, tx: multi_steps(library, library.apply_if_finite(tx, 9)),
        [collected, finite],
    ),
    "apply_if_finite(MultiSteps)": (
        lambda library, tx: library.apply_if_finite(multi_steps(library, tx), 9),
        [finite, collected],
    ),
    "MultiSteps that skips": (skip, [finite, collected]),
    "conditionally_mask": (mask, [every_other]),
    "chain with apply_if_finite": (bounded, [finite]),
    "partition with MultiSteps": (frozen, [collected]),
}


def taken(name):
    """The calls' gradients, and for each call the step that it is, or None."""
    gradients = GRADIENTS
    if finite not in HOLDS_BACK[name][1]:
        gradients = [g if np.isfinite(g) else 7.0 for g in GRADIENTS]
    if name == "conditionally_mask":  # which tells of a step only by what it changes
        gradients = [g or 6.0 for g in gradients]
    vectors = [g * DIRECTION for g in gradients]
    steps = [Step(vector, vector) for vector in vectors]
    for hold_back in HOLDS_BACK[name][1]:
        steps = list(hold_back(steps))
    assert 0 < sum(step is not None for step in steps) < len(steps)
    return vectors, steps


# What counts: the loop over the steps that it should be, from the value before the first.


def descent(steps):
    p = START
    yield p
    for count, step in enumerate(steps):
        p = p - rate(count) * step.mean
        yield p


def averages(decay):
    def reference(steps):
        total, weight = 0.0, 0.0
        start, *points = descent(steps)
        yield [start, start]
        for count, p in enumerate(points):
            d = decay(count)
            total, weight = d * total + (1 - d) * p, d * weight + 1 - d
            yield [p, total / weight]

    return reference


def lookaheads(steps):
    fast = slow = START
    yield [fast, slow]
    for count, step in enumerate(steps):
        fast = fast - rate(count) * step.mean
        if count % 3 == 2:
            fast = slow = slow + 0.25 * (fast - slow)
        yield [fast, slow]


def schedule_frees(steps):
    x = z = START
    total = 0.0
    yield [x, x]
    for count, step in enumerate(steps):
        z = z - rate(count) * step.mean
        weight = growing(count) ** 2
        total += weight
        x = x + weight / total * (z - x)
        yield [0.25 * z + 0.75 * x, x]


def mechanics(steps):
    """Mechanic with one beta, 0.9, and without weight decay."""
    p, s, r, m, v = START, 0.5, 0.0, 0.0, 0.0
    yield p
    for count, step in enumerate(steps):
        way = (p - START) / s
        h = -step.last @ way
        m, v = max(0.9 * m, abs(h) + 1e-8), 0.81 * v + h**2
        r = max(0.9 * r + s * h, 0.0)
        s = (0.5 * m + r) / (np.sqrt(v) + 1e-8)
        p = START + s * (way - rate(count) * step.mean)
        yield p


def counts(steps):
    return range(len(steps) + 1)


def growing(count):
    return 0.25 * (1.0 + count)


def warmup(count):
    return (1.0 + count) / (4.0 + count)


def trained_and_evaluated(params, state):
    return [params["w"], gradtx.eval_params(state, params)["w"]]


class Counter(NamedTuple):
    """A wrapper that counts, the loop over steps, and what to compare."""

    wrap: Any
    reference: Any
    read: Any = lambda params, state: params["w"]


def injected(tx_of):
    return gradtx.inject_hyperparams(lambda learning_rate: tx_of(learning_rate))(rate)


COUNTERS = {
    "average_params": Counter(
        lambda tx_of: gradtx.average_params(tx_of(rate), 0.75),
        averages(lambda count: 0.75),
        trained_and_evaluated,
    ),
    "average_params with a schedule": Counter(
        lambda tx_of: gradtx.average_params(tx_of(rate), warmup),
        averages(warmup),
        trained_and_evaluated,
    ),
    "lookahead": Counter(
        lambda tx_of: gradtx.lookahead(tx_of(rate), 3, 0.25),
        lookaheads,
        lambda params, state: [params.fast["w"], params.slow["w"]],
    ),
    "schedule_free": Counter(
        lambda tx_of: gradtx.schedule_free(tx_of(rate), growing, b1=0.75),
        schedule_frees,
        trained_and_evaluated,
    ),
    "mechanize": Counter(
        lambda tx_of: gradtx.mechanize(tx_of(rate), 0.0, s_init=0.5, num_betas=1), mechanics
    ),
    "inject_hyperparams": Counter(injected, descent),
    "with_metrics": Counter(
        lambda tx_of: gradtx.with_metrics(tx_of(rate)),
        counts,
        lambda params, state: gradtx.metrics(state)["step"],
    ),
}


def run(tx, vectors, read):
    """The last state, and what is read after each call."""
    params = {"w": jnp.asarray(START), "frozen": jnp.zeros(2)}
    if isinstance(tx.init(params), optax.LookaheadState):
        params = gradtx.LookaheadParams.init_synced(params)

    def one(carry, vector):
        params, state = carry
        updates, state = tx.update({"w": vector, "frozen": jnp.zeros(2)}, state, params)
        params = gradtx.apply_updates(params, updates)
        return (params, state), read(params, state)

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        (_, state), values = jax.jit(lambda *carry: jax.lax.scan(one, carry, jnp.array(vectors)))(
            params, tx.init(params)
        )
    return state, values


def check(tx, counter, vectors, steps):
    with jax.enable_x64(True):
        _, values = run(tx, vectors, counter.read)
    after = list(counter.reference([step for step in steps if step]))
    number = np.cumsum([step is not None for step in steps])
    expected = np.array([after[n] for n in number])
    values = np.stack(values, axis=1) if isinstance(values, list) else values
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)


# In optax's MultiSteps a NaN stays among the gradients that are collected.
OPTAX = ["MultiSteps", "apply_if_finite", "apply_if_finite(MultiSteps)", "conditionally_mask"]
# All counters ask the same function whether a call was a step: each follows one whose gradients
# are collected and one that sees others which are NaN, and the average tells of all the others.
OUTSIDE = [
    *((gradtx, *case) for case in itertools.product(COUNTERS, ("MultiSteps", "apply_if_finite"))),
    *((gradtx, "average_params", name) for name in list(HOLDS_BACK)[2:]),
    *((optax, "average_params", name) for name in OPTAX),
]


@pytest.mark.parametrize(
    ("library", "counter", "name"), OUTSIDE, ids=lambda own: getattr(own, "__name__", own)
)
def test_around_what_skips_steps(library, counter, name):
    hold_back, _ = HOLDS_BACK[name]
    tx = COUNTERS[counter].wrap(lambda rate: hold_back(library, gradtx.sgd(rate)))
    check(tx, COUNTERS[counter], *taken(name))


@pytest.mark.parametrize("name", ["MultiSteps", "apply_if_finite"])
@pytest.mark.parametrize("counter", [name for name in COUNTERS if name != "lookahead"])
def test_inside_what_skips_steps(counter, name):
    hold_back, _ = HOLDS_BACK[name]
    tx = hold_back(gradtx, COUNTERS[counter].wrap(gradtx.sgd))
    vectors, steps = taken(name)
    # Inside, only the gradient of the step is seen.
    steps = [step and Step(step.mean, step.mean) for step in steps]
    check(tx, COUNTERS[counter], vectors, steps)


@pytest.mark.parametrize("name", ["MultiSteps", "apply_if_finite"])
def test_a_history_inside_is_one_of_steps(name):
    hold_back, _ = HOLDS_BACK[name]
    vectors, steps = taken(name)
    inner = gradtx.chain(record_history(length=len(steps)), gradtx.sgd(rate))
    history = history_of(run(hold_back(gradtx, inner), vectors, lambda params, state: 0)[0])
    norms = [np.linalg.norm(step.mean) for step in steps if step]
    np.testing.assert_array_equal(history["step"], np.arange(len(norms)))
    np.testing.assert_allclose(history["gradient_norm"], norms, rtol=1e-6)


@pytest.mark.parametrize("name", ["MultiSteps", "apply_if_finite"])
def test_a_history_before_it_is_one_of_calls(name):
    hold_back, _ = HOLDS_BACK[name]
    vectors, _ = taken(name)
    tx = gradtx.chain(record_history(length=len(vectors)), hold_back(gradtx, gradtx.sgd(rate)))
    history = history_of(run(tx, vectors, lambda params, state: 0)[0])
    np.testing.assert_allclose(history["gradient_norm"], np.linalg.norm(vectors, axis=1), rtol=1e-6)


def number_of_points(tx, gradients, params):
    """How many points the average around a transformation has, after each call."""
    tx = gradtx.average_params(tx, 0.5)
    state, numbers = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = gradtx.apply_updates(params, updates)
        numbers.append(int(state.average.count))
    return numbers


ONES, ZEROS = jnp.ones(2), jnp.zeros(2)
EDGES = {
    # What is finally passed on moves the parameters, if only to NaN.
    "not finite too often": (
        gradtx.apply_if_finite(gradtx.sgd(1.0), 1),
        [ONES, NAN * ONES, NAN * ONES],
        [1, 1, 2],
    ),
    "decay after what holds back": (
        gradtx.chain(gradtx.MultiSteps(gradtx.sgd(1.0), 2), gradtx.add_decayed_weights(0.5)),
        [ONES, ONES],
        [1, 2],
    ),
    "momentum after what holds back": (
        gradtx.chain(gradtx.apply_if_finite(gradtx.clip(1.0), 9), gradtx.sgd(1.0, 0.5)),
        [ONES, NAN * ONES, ONES],
        [1, 2, 3],
    ),
    "updates that are saved up": (
        gradtx.chain(gradtx.sgd(1.0), gradtx.apply_every(3)),
        [ONES, ONES, ZEROS, ONES],
        [0, 0, 1, 1],
    ),
    "masked, with a count inside": (
        gradtx.conditionally_mask(gradtx.sgd(rate), lambda step: step % 2 == 1),
        [ONES, ZEROS, ZEROS, ZEROS],
        [0, 1, 1, 2],
    ),
    "one after the other": (
        gradtx.MultiSteps(gradtx.MultiSteps(gradtx.sgd(1.0), 2).gradient_transformation(), 2),
        [ONES] * 3 + [ZEROS] * 5,
        [0, 0, 0, 1, 1, 1, 1, 2],
    ),
    "nothing that holds back": (gradtx.sgd(1.0), [ONES, ZEROS], [1, 2]),
}


@pytest.mark.parametrize("case", EDGES)
def test_a_call_is_a_step_if_nothing_was_skipped_or_something_moves(case):
    tx, gradients, numbers = EDGES[case]
    assert number_of_points(tx, gradients, jnp.array([4.0, -2.0])) == numbers


def test_a_group_that_steps_at_each_call_makes_it_a_step():
    transforms = {"rare": gradtx.MultiSteps(gradtx.sgd(1.0), 2), "often": gradtx.sgd(1.0)}
    tx = gradtx.partition(transforms, {"rare": "rare", "often": "often"})
    gradients = {"rare": ONES, "often": ONES}
    assert number_of_points(tx, [gradients] * 3, gradients) == [1, 2, 3]


@pytest.mark.parametrize("library", [gradtx, optax.contrib], ids=["gradtx", "optax"])
@pytest.mark.parametrize("every", [1, 2], ids=["each", "MultiSteps"])
def test_an_average_around_sam_leaves_out_its_climbs(library, every):
    def gradient(p, np=np):
        return np.sin(p) + 0.5 * p

    def slow_descent(rate):
        inner = gradtx.sgd(rate)
        return gradtx.MultiSteps(inner, every).gradient_transformation() if every > 1 else inner

    tx = gradtx.average_params(library.sam(slow_descent(0.5), gradtx.sgd(0.25)), 0.75)
    params = jnp.asarray(START, jnp.float32)
    state = tx.init(params)
    p, gradients, total, weight = START, [], 0.0, 0.0
    update = jax.jit(tx.update)
    for _ in range(6):
        for _ in range(2):
            with jax.numpy_dtype_promotion("standard"):  # optax needs it
                updates, state = update(gradient(params, jnp), state, params)
            params = gradtx.apply_updates(params, updates)
        gradients.append(gradient(p + 0.25 * gradient(p)))
        if len(gradients) == every:
            p = p - 0.5 * np.mean(gradients, axis=0)
            total, weight, gradients = 0.75 * total + 0.25 * p, 0.75 * weight + 0.25, []
        np.testing.assert_allclose(params, p, rtol=2e-5)
        if weight:
            np.testing.assert_allclose(gradtx.averaged_params(state), total / weight, rtol=2e-5)


def test_galore_chooses_a_subspace_for_steps():
    # Diagonal matrices: the subspace is the axis of the larger element.
    gradients = [jnp.diag(jnp.array(d)) for d in ([3.0, 2.0], [2.0, 5.0], [1.0, 4.0], [6.0, 1.0])]
    tx = gradtx.scale_by_galore(1, 1, base_optimizer=gradtx.MultiSteps(gradtx.identity(), 2))
    state, updates = tx.init(gradients[0]), []
    for g in gradients:
        u, state = tx.update(g, state)
        updates.append(np.diag(u).tolist())
    assert updates == [[0.0, 0.0], [2.5, 0.0], [0.0, 0.0], [0.0, 2.5]]
    assert state.count == 2


def test_galore_does_not_keep_the_subspace_of_a_gradient_that_is_skipped():
    tx = gradtx.scale_by_galore(1, 10, base_optimizer=gradtx.apply_if_finite(gradtx.identity(), 9))
    g = jnp.diag(jnp.array([3.0, 2.0]))
    _, state = tx.update(NAN * g, tx.init(g))
    updates, state = tx.update(g, state)
    np.testing.assert_allclose(updates, jnp.diag(jnp.array([3.0, 0.0])), atol=1e-6)
    assert state.count == 1


def test_each_run_of_a_batch_takes_its_own_steps():
    tx = gradtx.average_params(gradtx.apply_if_finite(gradtx.sgd(1.0), 9), 0.5)
    params, gradients = jnp.array([[4.0], [4.0]]), jnp.array([[1.0], [NAN]])
    _, states = jax.vmap(tx.update)(gradients, jax.vmap(tx.init)(params), params)
    assert states.average.count.tolist() == [1, 0]
    np.testing.assert_array_equal(jax.vmap(gradtx.averaged_params)(states, params), [[3.0], [4.0]])


def test_a_state_of_another_class_tells_as_well():
    """Such as one that was restored into the user's own records."""

    class Restored(NamedTuple):
        mini_step: Any
        gradient_step: Any
        inner_opt_state: Any
        acc_grads: Any
        skip_state: Any
        comment: Any = "from elsewhere"

    state = gradtx.MultiSteps(gradtx.sgd(1.0), 2).init(ONES)
    old, new = Restored(*state), Restored(*state._replace(gradient_step=jnp.int32(1)))
    assert is_step({"a": old}, {"a": new}, ZEROS)
    assert not is_step({"a": old}, {"a": old}, ZEROS)


@pytest.mark.parametrize("counter", ["average_params", "lookahead", "schedule_free"])
def test_it_costs_nothing_where_nothing_skips(counter):
    tx = COUNTERS[counter].wrap(gradtx.sgd)
    params = gradtx.LookaheadParams.init_synced(ONES) if counter == "lookahead" else ONES
    state = tx.init(params)
    assert is_step(state, state, ONES) is None
    program = str(jax.make_jaxpr(tx.update)(ONES, state, params))
    assert not [name for name in (" ne ", "reduce_or", "cond[") if name in program]


# What choosing between two states may break; the table of exports has all clauses for each wrapper.
CHOICES = ("state", "updates", "weak_types", "masked_leaves", "jit", "vmap", "scan", "donation")
CHOICES += ("layouts", "half_precision", "double_precision")


@pytest.mark.parametrize(
    ("counter", "clauses"),
    [("average_params", None), ("schedule_free", CHOICES), ("inject_hyperparams", CHOICES)],
    ids=lambda own: own if isinstance(own, str) else "",
)
def test_contract(counter, clauses):
    tx = COUNTERS[counter].wrap(lambda rate: multi_steps(gradtx, gradtx.sgd(rate)))
    # Averages of parameters move without a gradient, and a call that is not a step reads none.
    skip = [] if clauses else ["mismatches", "unread_parameters"]
    check_transformation(tx, capabilities=["own_clock"], clauses=clauses, skip=skip)


class EverySecond(NamedTuple):
    """The state of a new wrapper, whose methods tell what others ask."""

    count: jax.Array
    last: Any
    inner_state: Any

    def held_back(self, before):
        del before
        return self.count % 2 == 1

    def measured(self):
        return {"calls": self.count}

    def evaluated(self):
        return self.last, lambda p, last: last


def every_second(inner):
    def init(params):
        return EverySecond(jnp.zeros([], jnp.int32), params, inner.init(params))

    def update(updates, state, params=None):
        new, inner_state = inner.update(updates, state.inner_state, params)
        count = state.count + 1
        is_step = count % 2 == 0
        kept = jax.tree.map(lambda a, b: jnp.where(is_step, a, b), inner_state, state.inner_state)
        return jax.tree.map(lambda u: jnp.where(is_step, u, 0.0), new), EverySecond(
            count, params, kept
        )

    return optax.GradientTransformationExtraArgs(init, update)


def test_the_state_of_a_new_wrapper_tells_what_others_ask():
    tx = gradtx.with_metrics(every_second(gradtx.sgd(1.0)))
    params = jnp.ones(1)
    state = tx.init(params)
    for call in (1, 2, 3, 4):
        before = params
        updates, state = tx.update(jnp.ones(1), state, params)
        params = gradtx.apply_updates(params, updates)
        read = gradtx.metrics(state)
        assert (read["calls"], read["step"]) == (call, call // 2)
        assert gradtx.eval_params(state, params) == before
