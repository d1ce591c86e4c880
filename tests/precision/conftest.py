"""Most programs here run only a few times."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(quick_compilation):
    """Compile programs quickly, because most run only a few times."""
