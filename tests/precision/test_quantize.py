"""States in 8 bits: the laws, the rounding, and what is kept in them."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx
from gradtx import pieces, trees
from gradtx.bench.programs import gpt
from gradtx.leaf import composed_step
from gradtx.precision.quantized import (
    NON_NEGATIVE,
    SIGNED,
    Quantized,
    Seeded,
    quantized,
    scales_shape,
)
from gradtx.testing import check_transformation

from ..testing.exports.precision import NARROW

LAWS = {SIGNED: (127, 4), NON_NEGATIVE: (255, 8)}
SMALL = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(4)}


def levels_of(law):
    """The numbers that the codes stand for, in float64."""
    top, power = LAWS[law]
    levels = (np.arange(top + 1) / top) ** power
    return np.concatenate([-levels[:0:-1], levels]) if law == SIGNED else levels


def numbers(law, shape, seed=0, spread=4):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape) * np.exp2(generator.normal(0, spread, shape))
    return (x if law == SIGNED else x**2).astype(np.float32)


def seeded(stored, step):
    return Seeded(stored.codes, stored.scales, jnp.array([step, 3, 0], jnp.uint32))


@pytest.mark.parametrize("law", LAWS)
def test_nearest_level_of_each_block(law):
    x = numbers(law, (6, 512))
    stored = quantized(jnp.array(x), law, 256)
    assert stored.codes.dtype == (jnp.int8 if law == SIGNED else jnp.uint8)
    blocks = x.reshape(6, 2, 256).astype(np.float64)
    scales = np.abs(blocks).max(-1)
    np.testing.assert_array_equal(stored.scales, scales)
    distances = np.abs(blocks[..., None] / scales[..., None, None] - levels_of(law))
    nearest = levels_of(law)[distances.argmin(-1)]
    if law == NON_NEGATIVE:
        nearest = np.maximum(nearest, levels_of(law)[1])
    found = np.asarray(stored.decoded(), np.float64).reshape(blocks.shape) / scales[..., None]
    # Half-way between two levels, either is right.
    close = np.isclose(found, nearest, rtol=1e-6, atol=0)
    assert close.mean() > 0.999
    exact = blocks / scales[..., None]
    assert np.all(np.abs(found - exact) <= distances.min(-1) + 5e-6 * np.abs(found) + 1e-19)


@pytest.mark.parametrize("law", LAWS)
def test_rounding_is_right_on_average(law):
    x = numbers(law, 256, spread=1)
    start = quantized(jnp.array(x), law, 256)
    steps = 4000
    draw = jax.jit(jax.vmap(lambda step: seeded(start, step).encoded(jnp.array(x)).decoded()))
    drawn = np.asarray(draw(jnp.arange(steps)), np.float64)
    levels = levels_of(law) * np.abs(x).max()
    above = np.searchsorted(levels, x.astype(np.float64)).clip(1, len(levels) - 1)
    gaps = levels[above] - levels[above - 1]
    # Each draw is one of the two levels around x: its variance is at most a quarter of their gap's.
    assert np.all(np.abs(drawn - x) <= gaps * (1 + 1e-4))
    errors = (drawn.mean(0) - x) / (gaps / 2 / np.sqrt(steps))
    assert np.abs(errors).max() < 5
    assert abs(errors.mean()) < 5 / np.sqrt(errors.size)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
def test_what_was_decoded_is_encoded_to_the_same(law, dtype):
    for factor in (1e-15, 1.0, 1e30):
        x = jnp.array(numbers(law, (4, 256)) * np.float32(factor)).astype(dtype)
        stored = quantized(x, law, 256)
        assert stored.dtype == dtype
        wide = stored.codes, stored.scales.astype(jnp.float32)
        again = seeded(Quantized(*wide), 5).encoded(Quantized(*wide).decoded())
        np.testing.assert_array_equal(again.codes, stored.codes)
        np.testing.assert_array_equal(again.scales, wide[1])


@pytest.mark.parametrize("law", LAWS)
def test_zero_and_small_numbers(law):
    x = np.zeros((3, 256), np.float32)
    x[1, :4] = 1, 1e-12, 1e-37, 0
    x[2] = 1e-38
    found = np.asarray(quantized(jnp.array(x), law, 256).decoded())
    np.testing.assert_array_equal(found[0], 0)
    assert found[1, 0] == 1
    assert found[1, 3] == 0
    # What is not zero does not become zero where it may be a divisor.
    assert (found[1, 1:3] > 0).all() == (law == NON_NEGATIVE)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stays_in_its_block(law, bad):
    x = np.ones((3, 256), np.float32)
    x[1, 7] = bad
    found = np.asarray(quantized(jnp.array(x), law, 256).decoded())
    assert not np.isfinite(found[1]).any()
    np.testing.assert_array_equal(found[[0, 2]], 1)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2048, 256), (2048, 1)),
        ((256, 768), (256, 3)),
        ((784, 300), (784, 2)),
        ((512, 8, 64), (512, 2)),
        ((784, 100), (320,)),
        ((5003,), (20,)),
        ((3, 3), (1,)),
        ((256,), (1,)),
    ],
)
def test_blocks(shape, expected):
    assert scales_shape(shape, 256) == expected
    size, number = np.prod(shape), np.prod(expected)
    assert number * 4 <= 0.05 * size or size < 100
    x = numbers(SIGNED, shape)

    @jax.jit
    def there_and_back(x):
        stored = quantized(x, SIGNED, 256)
        return stored, stored.decoded()

    stored, decoded = there_and_back(x)
    assert stored.codes.shape == shape
    assert stored.scales.shape == expected
    np.testing.assert_allclose(decoded, x, rtol=0.5, atol=1e-4 * np.abs(x).max())


def trained(tx, params, steps=60):
    step = jax.jit(lambda params, state, g: gradtx.update_and_apply(tx, g, state, params))
    state = tx.init(params)
    for i in range(steps):
        g = jax.tree.map(
            lambda p, i=i: jnp.array(np.random.default_rng(i).normal(0.3, 1, p.shape), p.dtype),
            params,
        )
        params, state = step(params, state, g)
    assert step._cache_size() == 1
    return params, state


@pytest.mark.parametrize(
    "make",
    [gradtx.adam, gradtx.lion, lambda rate: gradtx.sgd(rate, momentum=0.9), gradtx.muon],
    ids=["adam", "lion", "momentum", "muon"],
)
def test_parameters_follow_those_of_a_full_state(make):
    params = {"kernel": jnp.ones((16, 320)), "bias": jnp.ones(16)}
    plain, _ = trained(make(0.01), params)
    found, state = trained(gradtx.quantize_state(make(0.01)), params)
    assert any(isinstance(x, Quantized) for x in jax.tree.leaves(state, is_leaf=is_quantized))
    moved = np.asarray(plain["kernel"] - 1)
    error = np.asarray(found["kernel"] - plain["kernel"])
    assert 0 < np.sqrt(np.mean(error**2)) < 0.15 * np.sqrt(np.mean(moved**2))
    np.testing.assert_array_equal(found["bias"], plain["bias"])


@pytest.fixture
def in_pieces(monkeypatch):
    """As on one device; the tests have several."""
    monkeypatch.setattr(pieces, "are_worth_it", lambda: True)
    composed_step.cache_clear()
    yield
    composed_step.cache_clear()


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("shape", [(16, 320), (10, 16, 64), (5003,)], ids=str)
def test_pieces_of_a_leaf_take_the_same_step(shape):
    params = {"kernel": jnp.linspace(0.5, 1, np.prod(shape)).reshape(shape)}
    plain, _ = trained(gradtx.adamw(0.01, weight_decay=0.1), params)
    tx = gradtx.quantize_state(gradtx.adamw(0.01, weight_decay=0.1))
    found, state = trained(tx, params)
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, tx.init(params))
    moved = np.asarray(plain["kernel"] - params["kernel"])
    error = np.asarray(found["kernel"] - plain["kernel"])
    assert 0 < np.sqrt(np.mean(error**2)) < 0.1 * np.sqrt(np.mean(moved**2))
    # No piece is left out, and each rounds in its own way.
    updates, _ = tx.update(params, state, params)
    assert np.all(np.asarray(updates["kernel"]) != 0)
    assert len(np.unique(error)) > 0.9 * error.size


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(
    ("dtype", "wrapper", "applied"),
    [  # each pair once
        ("float32", gradtx.quantize_state, True),
        ("bfloat16", gradtx.quantize_state, False),
        ("float32", gradtx.cast_state, False),
        ("bfloat16", gradtx.cast_state, True),
    ],
)
def test_many_pieces_of_a_leaf_are_those_of_few(dtype, wrapper, applied, monkeypatch):
    monkeypatch.setattr(pieces, "_ROWS", 16)
    params = {"kernel": jnp.linspace(0.5, 1, 150 * 256).astype(dtype)}
    tx = wrapper(gradtx.adamw(0.01, weight_decay=0.1))

    def after_two_steps(many):
        # A new function, because the loop is chosen when it is traced.
        monkeypatch.setattr(pieces, "_MANY", many)
        composed_step.cache_clear()

        @jax.jit
        def step(params, state):
            if applied:
                return gradtx.update_and_apply(tx, params, state, params)
            updates, state = tx.update(params, state, params)
            return gradtx.apply_updates(params, updates), state

        return step(*step(params, tx.init(params)))

    def equal(found, expected):
        assert found.dtype == expected.dtype
        assert (found == expected).all()

    jax.tree.map(equal, after_two_steps(2), after_two_steps(1000))


@pytest.mark.usefixtures("in_pieces")
def test_a_last_piece_that_is_shorter_is_the_rest(monkeypatch):
    params = {"kernel": jnp.linspace(0.5, 1, 150 * 256)}
    tx = gradtx.quantize_state(gradtx.adamw(0.01, weight_decay=0.1))

    def after_a_step(rows):
        monkeypatch.setattr(pieces, "_ROWS", rows)
        composed_step.cache_clear()
        return jax.jit(lambda: tx.update(params, tx.init(params), params))()[0]["kernel"]

    np.testing.assert_allclose(after_a_step(64), after_a_step(75), rtol=1e-6)


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("wrapper", [gradtx.quantize_state, gradtx.cast_state])
def test_arrays_on_an_explicit_mesh_of_one_device_are_not_cut(wrapper):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
    tx, g = wrapper(gradtx.adam(0.1)), {"kernel": jnp.ones((256, 256))}
    expected, _ = jax.jit(tx.update)(g, tx.init(g), g)
    g = jax.device_put(g, NamedSharding(mesh, PartitionSpec(None, "x")))
    updates, _ = jax.jit(tx.update)(g, tx.init(g), g)
    assert updates["kernel"].sharding.spec == PartitionSpec(None, "x")
    np.testing.assert_allclose(updates["kernel"], expected["kernel"], rtol=1e-6)


@pytest.mark.usefixtures("in_pieces")
def test_large_leaves_are_not_copied():
    size = 1 << 23
    tx = gradtx.quantize_state(gradtx.adamw(1e-3))
    params = jax.ShapeDtypeStruct((size,), jnp.float32)
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(
        lambda params, state, g: gradtx.update_and_apply(tx, g, state, params),
        donate_argnums=(0, 1),
    )
    program = step.lower(params, state, params).compile()
    assert program.memory_analysis().temp_size_in_bytes < size


@pytest.mark.usefixtures("in_pieces")
def test_memory_of_a_step():
    params = gpt(3, 128, 4096)
    largest = max(4 * leaf.size for leaf in jax.tree.leaves(params))

    def temporary(tx):
        step = jax.jit(
            lambda params, state, g: gradtx.update_and_apply(tx, g, state, params),
            donate_argnums=(0, 1),
        )
        state = jax.eval_shape(tx.init, params)
        return step.lower(params, state, params).compile().memory_analysis().temp_size_in_bytes

    tx = gradtx.quantize_state(gradtx.adamw(1e-3))
    assert temporary(tx) < 3 * largest
    assert gradtx.explain(tx, params).bytes_per_parameter < 2.1


def is_quantized(node):
    return isinstance(node, Quantized)


def paths_in_8_bits(tx, params=SMALL):
    named, _ = jax.tree_util.tree_flatten_with_path(tx.init(params), is_leaf=is_quantized)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("inner_state/"): (
            node.codes.dtype.name
        )
        for path, node in named
        if is_quantized(node)
    }


def test_default_choice():
    found = paths_in_8_bits(gradtx.quantize_state(gradtx.adam(0.1), min_size=8))
    assert found == {"0/mu/kernel": "int8", "0/nu/kernel": "uint8"}
    # By name, of a transformation that declares nothing.
    assert paths_in_8_bits(gradtx.quantize_state(optax.adam(0.1), min_size=8)) == found
    # Parameters are not kept in 8 bits: madgrad's start, schedule-free's averages, master copies.
    found = paths_in_8_bits(gradtx.quantize_state(gradtx.madgrad(0.1), min_size=8))
    assert found == {"1/s/kernel": "int8", "1/grad_sum_sq/kernel": "uint8"}
    tx = optax.contrib.schedule_free_adamw(0.1)
    assert set(paths_in_8_bits(gradtx.quantize_state(tx, min_size=8))) == {
        "base_optimizer_state/0/nu/kernel"
    }
    half = {"kernel": jnp.ones((4, 8), jnp.bfloat16)}
    tx = gradtx.quantize_state(gradtx.with_master_weights(gradtx.sgd(0.1, 0.9)), min_size=8)
    assert set(paths_in_8_bits(tx, half)) == {"inner_state/0/trace/kernel"}
    # Nor integers, complex numbers, or arrays of another shape.
    odd = {"c": jnp.ones((4, 8), jnp.complex64), "i": jnp.ones((4, 8), jnp.int32)}
    assert paths_in_8_bits(gradtx.quantize_state(gradtx.adam(0.1), min_size=1), odd) == {
        "0/nu/c": "uint8"
    }
    tx = gradtx.quantize_state(gradtx.scale_by_shampoo(), min_size=1)
    assert set(paths_in_8_bits(tx)) == {"mu/kernel", "mu/bias"}


def test_chosen_by_path():
    def found(select):
        return paths_in_8_bits(gradtx.quantize_state(gradtx.adam(0.1), min_size=8, select=select))

    assert found("nu/") == {"0/nu/kernel": "uint8"}
    assert found(lambda path, leaf: "mu" in path) == {"0/mu/kernel": "int8"}
    assert found({"signed": "nu"}) == {"0/nu/kernel": "int8"}
    assert found({"signed": "/mu/", "non_negative": "/nu/"}) == {
        "0/mu/kernel": "int8",
        "0/nu/kernel": "uint8",
    }
    with pytest.raises(ValueError, match=r"^select: 'trace' matches none"):
        found("trace")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 4}, "bits must be 8, got 4"),
        ({"block_size": 0}, "block_size must be a whole number >= 1, got 0"),
        ({"min_size": -1}, "min_size must be a whole number >= 0, got -1"),
        ({"select": {"linear": "nu"}}, "select must have the keys 'signed' and 'non_negative'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^quantize_state: {message}"):
        gradtx.quantize_state(gradtx.adam(0.1), **arguments)


def test_step_that_was_held_back_changes_no_code():
    tx = gradtx.quantize_state(gradtx.apply_if_finite(gradtx.adam(0.1), 5), min_size=8)
    g = jax.tree.map(lambda p: jnp.linspace(-1, 2, p.size).reshape(p.shape), SMALL)
    _, state = tx.update(g, tx.init(SMALL))
    _, held = tx.update(jax.tree.map(lambda x: x * jnp.nan, g), state)
    before, after = state.inner_state.inner_state, held.inner_state.inner_state
    assert any(map(is_quantized, jax.tree.leaves(before, is_leaf=is_quantized)))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_stacks_are_refused():
    with pytest.raises(ValueError, match=r"^quantize_state: tx must not keep its arrays in stacks"):
        gradtx.quantize_state(gradtx.chain(gradtx.grouped(gradtx.adam(0.1))))
    with pytest.raises(ValueError, match=r"^grouped: quantize_state does not work on groups"):
        gradtx.grouped(gradtx.quantize_state(gradtx.adam(0.1)))


def test_migrate_in_both_directions():
    plain, packed = gradtx.adam(0.1), gradtx.quantize_state(gradtx.adam(0.1), min_size=8)
    _, full = trained(plain, SMALL, 3)
    state, report = gradtx.migrate(full, packed, SMALL)
    assert set(report.fresh) == {"calls"}
    assert report.dropped == ()
    assert jax.tree.structure(state) == jax.tree.structure(packed.init(SMALL))
    nearest = trees.encoded_like(packed.init(SMALL).inner_state, full)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, nearest)
    # Back, and from a checkpoint without classes: the numbers that the codes stand for.
    back, report = gradtx.migrate(state, plain, SMALL)
    assert report.fresh == {}
    jax.tree.map(np.testing.assert_array_equal, back, trees.decoded(state.inner_state))
    dictionary = flax.serialization.to_state_dict(state)
    for old in (state, dictionary):
        again, report = gradtx.migrate(old, packed, SMALL)
        assert set(report.carried) >= {"inner_state/0/mu/kernel", "inner_state/0/nu/bias"}
        jax.tree.map(np.testing.assert_array_equal, again.inner_state, state.inner_state)


def test_metrics_and_learning_rate():
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    tx = gradtx.with_metrics(gradtx.quantize_state(gradtx.adam(schedule), min_size=8))
    _, state = trained(tx, SMALL, 2)
    assert gradtx.metrics(state)["learning_rate"] == pytest.approx(0.075)
    assert gradtx.metrics(state)["step"] == 2
    tx = gradtx.quantize_state(gradtx.average_params(gradtx.adam(0.1), 0.9), min_size=8)
    params, state = trained(tx, SMALL, 2)
    average = gradtx.eval_params(state, params)
    assert average["kernel"].shape == params["kernel"].shape
    assert float(jnp.abs(average["kernel"] - params["kernel"]).max()) > 0


def test_checkpoint_resumes_to_the_same_bits(tmp_path):
    tx = gradtx.quantize_state(gradtx.adam(0.1), min_size=8)
    params, state = trained(tx, SMALL, 3)
    with ocp.StandardCheckpointer() as saved:
        saved.save(tmp_path / "run", (params, state))
        saved.wait_until_finished()
        restored = saved.restore(tmp_path / "run", jax.eval_shape(lambda: (params, state)))
    step = jax.jit(lambda params, state: gradtx.update_and_apply(tx, params, state, params))
    jax.tree.map(np.testing.assert_array_equal, step(*restored), step(params, state))


@pytest.mark.parametrize("spec", [("x", None), (None, "y"), ("x", "y")], ids=str)
def test_layout_is_that_of_the_parameter(spec):
    g = {"kernel": jnp.sin(jnp.arange(8 * 1024.0)).reshape(8, 1024)}
    tx = gradtx.quantize_state(gradtx.adam(0.1))

    def first_step(g):
        # An eager init is tested in `tests.sharding.test_states_in_8_bits`.
        return jax.jit(tx.update)(g, jax.jit(tx.init)(g), g)

    alone = first_step(g)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(kind,) * 2)
        with jax.set_mesh(mesh):
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            updates, state = first_step(jax.device_put(g, sharding))
        stored = state.inner_state[0].nu["kernel"]
        assert stored.codes.sharding.is_equivalent_to(sharding, 2)
        assert stored.scales.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_array_equal(updates["kernel"], alone[0]["kernel"])
        jax.tree.map(np.testing.assert_array_equal, state, alone[1])


@pytest.mark.parametrize(
    "wrapper",
    [lambda tx: gradtx.quantize_state(tx, min_size=1), gradtx.cast_state],
    ids=["quantize_state", "cast_state"],
)
def test_contract_around_a_transformation_of_optax(wrapper):
    params = jax.tree.map(lambda p: p.astype(jnp.float32), NARROW)
    # What depends on how the state of a stranger is found and encoded. The table of exports has
    # both wrappers around our own, with all clauses.
    names = ("calls", "type", "purity", "state", "updates", "jit", "scan", "donation", "eval_shape")
    with jax.numpy_dtype_promotion("standard"):
        check_transformation(wrapper(optax.trace(0.9)), params, clauses=names)
