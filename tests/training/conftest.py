"""Fixtures of the training tests."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    """Eight fake devices in a row, along the axis `data`."""
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """A list that grows by one with every program that is compiled."""
    compiled: list[str] = []

    def listen(event: str, duration: float, **details: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)
