"""Settings of the process that runs the tests of diagnostics."""

import jax
import pytest

pytest.register_assert_rewrite("tests.diagnostics.layer_reference", "tests.diagnostics.remedies")


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield
