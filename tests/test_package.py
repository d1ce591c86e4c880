"""The package as a whole: its public names, and which part may know which."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import gradtx

PACKAGE = Path(gradtx.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# Each part may import the parts before it. The rest of the library uses public names only.
LAYERS = [
    ("messages.py", "trees.py", "inputs.py", "kernel.py", "tables.py"),
    ("roles.py", "select.py"),
    ("leaf.py", "leaves.py"),
    ("compose/",),
    ("lift.py", "updates.py"),
    ("kernels/",),
    ("wrappers/", "schedules.py"),
    ("recipes/",),
    ("inspection/",),
]
ALONE = ("initializers/", "normalization/")


def imported_by(module):
    """The parts of gradtx that a module imports, as paths."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradtx"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                path = name.removeprefix("gradtx").strip(".").replace(".", "/")
                if (PACKAGE / f"{path}.py").exists():
                    found.add(f"{path}.py")
                elif path and (PACKAGE / path).is_dir():
                    found.add(f"{path}/")
    return found


def layer_of(path):
    for number, parts in enumerate(LAYERS):
        if path.startswith(parts):
            return number
    return None


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m) is not None])
def test_imports_point_downward(module):
    for path in imported_by(module):
        assert layer_of(path) is not None, f"{module} imports {path}"
        assert layer_of(path) <= layer_of(module), f"{module} imports {path}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(ALONE)])
def test_initializers_and_normalization_stand_alone(module):
    own = module.split("/")[0] + "/"
    assert all(path.startswith(own) for path in imported_by(module))


def test_public_names_are_listed_once_and_documented():
    assert sorted(gradtx.__all__) == sorted(set(gradtx.__all__))
    for name in gradtx.__all__:
        thing = getattr(gradtx, name)
        if inspect.isfunction(thing) and thing.__module__.startswith("gradtx"):
            assert ">>>" in (thing.__doc__ or ""), f"{name} has no example"


def test_library_needs_its_four_dependencies_only():
    program = (
        "import sys, gradtx\n"
        "extras = {'matplotlib', 'sklearn', 'rich', 'flax', 'equinox', 'orbax', 'hypothesis',"
        " 'haiku', 'scipy.stats', 'pytest', 'tensorboardX'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_import_starts_no_devices():
    # jax.distributed.initialize must come before that.
    program = (
        "import gradtx\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_modules_are_reached_as_attributes():
    for name in ("initializers", "normalization", "schedules", "testing", "training"):
        assert inspect.ismodule(getattr(gradtx, name))
