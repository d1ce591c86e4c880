"""Settings of the process under which the tests of diagnostics run."""

import jax
import pytest

pytest.register_assert_rewrite("tests.diagnostics.layer_reference", "tests.diagnostics.remedies")


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield
