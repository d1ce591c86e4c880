"""A hostile process: whatever passes here keeps its promises under a user's strictest settings.

The environment is set before jax is first imported, because the number of fake devices is
read once, when the backend starts.
"""

import itertools
import os
from importlib.metadata import version

# Most of the tests' time is compilation. The older code generator takes half of it; jaxlib 0.12
# does not have it any more, and ends the process at a flag that it does not know.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib") < "0.11" else "",
    ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

# Tests never time anything, and the first example of a test compiles.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# So many tests compile so much that the programs of one process would fill gigabytes.
_TESTS_BETWEEN_CLEARANCES = 1000
_finished = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Forget the compiled programs every now and then."""
    if next(_finished) % _TESTS_BETWEEN_CLEARANCES == 0:
        jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation():
    """For programs that run once: compiling them well takes longer than running them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
