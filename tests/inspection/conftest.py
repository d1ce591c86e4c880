"""Settings of the process under which the tests of what explains and migrates run."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_quickly(quick_compilation):
    """Nothing here depends on how well a program is compiled."""
