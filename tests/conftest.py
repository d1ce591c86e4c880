"""A hostile process: what passes here works under a user's strictest settings.

The environment is set before jax is first imported, because the number of fake devices is
read once, when the backend starts.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import itertools
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The tests spend most of their time compiling. The older code generator takes half of that, and a
# quarter less if it does not split such small programs among threads. jaxlib 0.12 no longer has it,
# and aborts the process if it does not know a flag.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        if version("jaxlib") < "0.11"
        else "",
    ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs need not say which line of Python each of their operations comes from: that takes an
# eighth of the time of compiling many small ones.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Processes share their compiled programs in a folder of this run, which also serves a process that
# has cleared its own, see below.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

from tests import slow, smoke

# It needs PyTorch, which the tests do without.
collect_ignore = ["examples/make_from_pytorch.py"]

try:
    from jax._src.interpreters import mlir
except ImportError:
    mlir = None

# Tracing makes many objects that stay alive. Searching them for garbage takes long, most of all
# where leaks are looked for, with a search after each trace: what is alive is taken out of the
# search from time to time, see below.
gc.set_threshold(100_000, 50, 1000)

# jax makes an MLIR context for each program, which takes longer than lowering a small one in it. A
# context keeps all types and constants that it has seen, therefore it serves only some programs,
# and only those of one thread, since nothing promises that threads may share one. The function is
# private; where jax has none of that name, the tests only take longer.
_PROGRAMS_IN_A_CONTEXT = 50


def _shared_contexts(make: Callable[[], Any]) -> Callable[[], Any]:
    """Make a context only for every so many programs of a thread."""
    own = threading.local()

    @functools.wraps(make)
    def shared() -> Any:
        own.programs = getattr(own, "programs", -1) + 1
        if own.programs % _PROGRAMS_IN_A_CONTEXT == 0:
            own.context = make()
        return own.context

    return shared


if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = _shared_contexts(mlir.make_ir_context)

# Tests never time anything, and the first example of a test compiles.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Compiling a program well takes longer than running it a few times.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The programs that the tests of one process compile would fill gigabytes. They are cleared when
# they take too much memory, but not so often that shared ones are never reused.
_LIMIT = 1.8 * 2**30
_TESTS_BETWEEN_CLEARANCES = 50
_finished = itertools.count(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files for `-m smoke` or `-m slow` that have no such tests."""
    files = {"smoke": smoke.FILES, "slow": slow.FILES}.get(config.option.markexpr)
    is_other = files and collection_path.relative_to(config.rootpath).as_posix() not in files
    return True if is_other and collection_path.is_file() else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell the processes of a run what it was asked for."""
    node.workerinput["leaves_out_slow"] = _leaves_out_slow(node.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the quick selection, and leave out what is slow where nothing was asked for."""
    for item in items:
        if item.nodeid.startswith(smoke.SMOKE):
            item.add_marker("smoke")
        elif slow.function_of(item.nodeid) in slow.SLOW:
            item.add_marker("slow")
    if _leaves_out_slow(config):
        left_out = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)


def _leaves_out_slow(config: pytest.Config) -> bool:
    """Whether neither files nor markers were asked for: `pytest` alone runs what is not slow."""
    told = getattr(config, "workerinput", {}).get("leaves_out_slow")
    is_bare = config.args_source is config.ArgsSource.TESTPATHS and not config.option.markexpr
    return is_bare if told is None else told


def pytest_collection_finish() -> None:
    """Do not search modules and tests for garbage."""
    gc.freeze()


def pytest_runtest_teardown() -> None:
    """Forget the compiled programs from time to time, and do not search the others for garbage."""
    if next(_finished) % _TESTS_BETWEEN_CLEARANCES:
        return
    if _resident_bytes() > _LIMIT:
        gc.unfreeze()
        jax.clear_caches()
        gc.collect()
        _return_freed_memory()
    gc.freeze()


def _resident_bytes() -> float:
    """The memory that the process uses; infinite if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return math.inf
    return pages * os.sysconf("SC_PAGE_SIZE")


def _return_freed_memory() -> None:
    """Return the memory that the C library keeps for later to the system, if possible."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def usual_compilation():
    """For a test of the compiled program: of its memory, its collectives, its last digits."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
