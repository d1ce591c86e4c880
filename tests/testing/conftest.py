"""Settings of the process that runs the tests of the testing kit."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_quickly(quick_compilation):
    """Compile programs quickly: nothing here depends on how well they are compiled."""
