"""Each program of an idiom runs once."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(quick_compilation):
    """Do not spend more time on compiling a program than on running it."""
