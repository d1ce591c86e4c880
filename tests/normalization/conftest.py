"""Fixtures of the normalization tests."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test in 64 bits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    """Eight fake devices in a row, along the axis `data`."""
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
