"""Each program of an idiom runs once."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly(quick_compilation):
    """Compile programs quickly, because most run only a few times."""
