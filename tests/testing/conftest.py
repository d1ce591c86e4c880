"""Settings of the process under which the tests of the testing kit run."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_quickly(quick_compilation):
    """Nothing here depends on how well a program is compiled."""
