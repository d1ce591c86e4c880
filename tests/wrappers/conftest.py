"""Settings of the process that runs the tests of wrappers."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_quickly(quick_compilation):
    """Compile programs quickly, because most run only a few times."""
