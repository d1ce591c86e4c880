"""Runs that orbax has saved go on to the same bits, whatever is inside the wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import gradtx

PARAMS = {
    "kernel": jnp.linspace(-1, 1, 256, dtype=jnp.bfloat16).reshape(16, 16),
    "other": jnp.linspace(1, 2, 256, dtype=jnp.bfloat16).reshape(16, 16),
    "bias": jnp.linspace(0.5, 1, 16, dtype=jnp.bfloat16),
}
INSIDE = {
    "adafactor": lambda: gradtx.adafactor(0.1, min_dim_size_to_factor=2),
    # With a momentum for the matrices, Adam for the others, and a place where each is not.
    "muon": lambda: gradtx.muon(0.1),
    "optax-adam": lambda: optax.adam(0.1),
}
WRAPPERS = {
    "master-weights": gradtx.with_master_weights,
    "kahan": gradtx.with_kahan_sum,
    "stochastic": lambda tx: gradtx.with_stochastic_rounding(tx, 0),
    "quantized": lambda tx: gradtx.quantize_state(tx, min_size=1),
    "cast": gradtx.cast_state,
    "grouped": lambda tx: gradtx.grouped(tx, elementwise=True),
}


# Arrays in other shapes than those of the parameters concern who encodes them.
CASES = [(wrapper, inside) for wrapper in WRAPPERS for inside in ("muon", "optax-adam")]
CASES += [("quantized", "adafactor"), ("cast", "adafactor")]


def check_equal(found, expected):
    assert found.dtype == expected.dtype
    if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
        found, expected = map(jax.random.key_data, (found, expected))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(("wrapper", "inside"), CASES)
def test_a_saved_run_goes_on_to_the_same_bits(wrapper, inside, tmp_path):
    tx = WRAPPERS[wrapper](INSIDE[inside]())

    @jax.jit
    def step(params, state, number):
        gradient = jax.tree.map(lambda p: jnp.sin(number + 3 * p).astype(p.dtype), params)
        return gradtx.update_and_apply(tx, gradient, state, params)

    # optax's Adam mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        # On a device that is told, as what is restored, with which the step is not compiled again.
        run = jax.device_put((PARAMS, tx.init(PARAMS)), jax.devices()[0])
        for number in range(2):
            run = step(*run, jnp.float32(number))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "run", run)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "run", jax.eval_shape(lambda: run))
        for number in range(2, 4):
            run, restored = (step(*each, jnp.float32(number)) for each in (run, restored))
        assert step._cache_size() == 1
    jax.tree.map(check_equal, restored, run)
    moved = jax.tree.map(lambda new, old: np.any(np.asarray(new != old)), run[0], PARAMS)
    assert all(jax.tree.leaves(moved))
