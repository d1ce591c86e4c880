"""What every transformation must keep is kept by sound ones, however they are written."""

import jax
import jax.numpy as jnp
import pytest

from gradtx.testing import check_transformation

from .healthy import HEALTHY

SMALL = {"layer": [jnp.linspace(-1.0, 1.0, 16).reshape(8, 2)], "scale": jnp.float32(0.5)}


@pytest.fixture(autouse=True)
def usual_promotion():
    """Let dtypes and ranks be promoted, as in a process without settings."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", HEALTHY)
def test_a_sound_transformation_keeps_what_every_one_must(name):
    # The default tree for the first ones; the others compile less.
    params = None if list(HEALTHY).index(name) < 3 else SMALL
    check_transformation(HEALTHY[name](), params, level="must")
