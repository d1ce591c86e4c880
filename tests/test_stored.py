"""Rounding to what is stored, against NumPy's casts, and in the programs of an accelerator."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gradtx
from gradtx import stored

pytestmark = pytest.mark.usefixtures("usual_compilation")

NARROW = [jnp.bfloat16, jnp.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
RNG = np.random.default_rng(0)


def numbers(dtype):
    """Random numbers, ties and their neighbours, over the whole range of a dtype, and below it."""
    info = jnp.finfo(dtype)
    exponents = np.arange(max(info.minexp - info.nmant - 2, -120), info.maxexp - 1)
    normal = RNG.normal(size=(exponents.size, 16)) * 2.0 ** exponents[:, None]
    exact = normal.astype(dtype).astype(np.float64)
    ties = exact * (1 + 2.0 ** -(info.nmant + 1))
    found = np.concatenate([normal, exact, ties, np.nextafter(ties, 0)]).astype(np.float32).ravel()
    found = found[np.abs(found) < float(info.max)]
    return np.concatenate([found, np.float32([0.0, -0.0])])


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: jnp.dtype(dtype).name)
def test_rounds_as_numpy_casts(dtype):
    x = numbers(dtype)
    found = np.asarray(jax.jit(stored.rounded, static_argnums=1)(x, dtype))
    np.testing.assert_array_equal(found.astype(dtype).astype(np.float32), found)
    np.testing.assert_array_equal(found, x.astype(dtype).astype(np.float32))


def test_infinities_and_nan_stay(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 1e30])
    found = stored.to_store(x, jnp.float16)
    np.testing.assert_array_equal(found.astype(np.float32), [np.inf, -np.inf, np.nan, np.inf])


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_accelerators_are_told_to_round_what_is_narrow(platform, monkeypatch):
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    tx = gradtx.sgd(0.1, momentum=0.9)
    for dtype, rounds in ((jnp.bfloat16, platform != "cpu"), (jnp.float32, False)):
        w = jnp.ones(3, dtype)

        def step(w, state):
            return gradtx.update_and_apply(tx, w, state, w)

        program = jax.jit(step).lower(w, tx.init(w)).as_text()
        assert ("reduce_precision" in program) == rounds
    jax.clear_caches()


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.float32, jnp.complex64])
def test_other_dtypes_are_cast(dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.array([0.0, 1.0, 3.0])
    np.testing.assert_array_equal(stored.to_store(x, dtype), x.astype(dtype))
