"""Most programs here run a few times only."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(quick_compilation):
    """Do not spend more time on compiling a program than on running it."""
