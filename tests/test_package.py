"""The package as a whole: its public names, and which part may know which."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import optax
import pytest

import gradtx

PACKAGE = Path(gradtx.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# Each part may import the parts before it. The rest of the library uses public names only.
LAYERS = [
    ("trees.py", "kernel.py", "updates.py"),
    ("select.py",),
    ("compose/",),
    ("lift.py", "leaf.py"),
    ("kernels/",),
    ("wrappers/",),
    ("recipes/",),
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


def optax_twins():
    """The functions that both libraries have, and ours is not optax's own."""
    for name in gradtx.__all__:
        ours, theirs = getattr(gradtx, name), getattr(optax, name, None)
        if theirs is not None and ours is not theirs and inspect.isfunction(ours):
            yield name


@pytest.mark.parametrize("name", sorted(optax_twins()))
def test_arguments_are_those_of_optax_with_ours_behind(name):
    ours = inspect.signature(getattr(gradtx, name)).parameters
    theirs = dict(inspect.signature(getattr(optax, name)).parameters)
    if name == "add_noise":
        del theirs["seed"]  # deprecated in optax
    if name in ("nadam", "nadamw"):
        del theirs["nesterov"]  # a partial application, in which it is always true
    if name == "global_norm":
        assert next(iter(ours)) == next(iter(theirs))
        return
    # Names, order and defaults; what only we have comes behind, by keyword.
    positional = [p for p in ours.values() if p.kind is not p.KEYWORD_ONLY]
    expected = [p for p in theirs.values() if p.kind is not p.KEYWORD_ONLY]
    assert [p.name for p in positional] == [p.name for p in expected]
    for parameter in theirs.values():
        assert ours[parameter.name].default == parameter.default, parameter.name
        assert ours[parameter.name].kind == parameter.kind, parameter.name


def test_library_needs_its_four_dependencies_only():
    program = (
        "import sys, gradtx\n"
        "extras = {'matplotlib', 'sklearn', 'rich', 'flax', 'equinox', 'orbax', 'hypothesis',"
        " 'scipy.stats', 'pytest'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_modules_are_reached_as_attributes():
    for name in ("initializers", "normalization", "schedules", "testing", "training"):
        assert inspect.ismodule(getattr(gradtx, name))
