"""Settings of the process under which the tests of diagnostics run."""

import jax
import pytest

pytest.register_assert_rewrite("tests.diagnostics.layer_reference", "tests.diagnostics.remedies")


@pytest.fixture(scope="module")
def quick_compilation():
    """Each program here runs once: compiling it well takes longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield
