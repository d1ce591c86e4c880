"""The package as a whole: its public names, and which part may import which."""

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import gradtx

PACKAGE = Path(gradtx.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# Each part may import the parts before it. The rest of the library uses public names only.
LAYERS = [
    (
        "explicit.py",
        "placement.py",
        "stored.py",
        "messages.py",
        "trees.py",
        "boxes.py",
        "lengths.py",
        "norms.py",
        "bounds.py",
        "safe.py",
        "inputs.py",
        "arguments.py",
        "effect.py",
        "kernel.py",
        "tables.py",
        "remembered.py",
    ),
    ("roles.py", "select.py"),
    (
        "pieces.py",
        "leaf.py",
        "leaves.py",
        "waiting.py",
        "joined.py",
        "stacks.py",
        "spread.py",
    ),
    ("compose/",),
    ("whole_tree.py", "lift.py", "updates.py"),
    ("kernels/",),
    ("wrappers/", "precision/", "schedules.py"),
    ("recipes/",),
    ("by_name.py",),
    ("inspection/",),
    ("sharding/",),
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


def printed_by(program):
    """What a program prints in a separate process."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_each_public_name_stands_once():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias for node in imports for alias in node.names]
    # "import name as name" is how a stub says that the name is public.
    assert all(alias.name == alias.asname for alias in names)
    assert sorted(alias.name for alias in names) == gradtx.__all__


def test_public_names_have_an_example():
    for name in gradtx.__all__:
        thing = getattr(gradtx, name)
        if inspect.isfunction(thing) and thing.__module__.startswith("gradtx"):
            assert ">>>" in (thing.__doc__ or ""), f"{name} has no example"


def test_public_names_are_found_after_all_modules_were_imported():
    # Importing a module sets an attribute of the package, which could hide a public name.
    program = (
        "import importlib, pkgutil, types, gradtx\n"
        "for module in pkgutil.walk_packages(gradtx.__path__, 'gradtx.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "print([name for name in gradtx.__all__ if name != 'tree'\n"
        "       and isinstance(getattr(gradtx, name), types.ModuleType)])"
    )
    modules = ["diagnostics", "initializers", "normalization", "schedules", "sharding"]
    modules += ["testing", "training"]
    assert printed_by(program) == str(modules)


def test_importing_gradtx_imports_no_room_before_it_is_asked_for():
    program = (
        "import sys, gradtx\n"
        "loaded = lambda: {name.split('.')[1] for name in sys.modules if name[:7] == 'gradtx.'}\n"
        "before = loaded()\n"
        "gradtx.explain, gradtx.testing.check_transformation\n"
        "print(sorted(before), sorted(loaded() - before))"
    )
    before, after = printed_by(program).split("] [")
    rooms = ("bench", "by_name", "catalogue", "diagnostics", "differences", "inspection", "testing")
    rooms += ("initializers", "kernels", "normalization", "precision", "recipes")
    rooms += ("sharding", "training", "wrappers")
    assert [room for room in rooms if room in before] == []
    assert "inspection" in after
    assert "testing" in after


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("softmax_cross_entropy", r"; it is in optax: optax\.softmax_cross_entropy$"),
        ("losses", r"; it is in optax: optax\.losses$"),
        ("contrib", r"; the names of optax\.contrib are in gradtx itself$"),
        ("softmax_cross_entropi", "$"),
        ("_src", "$"),
    ],
)
def test_names_that_stay_in_optax(name, message):
    with pytest.raises(
        AttributeError, match=f"^module 'gradtx' has no attribute '{name}'{message}"
    ):
        getattr(gradtx, name)
    assert not hasattr(gradtx, name)


def test_the_package_is_used_like_any_other():
    scope = {}
    exec("from gradtx import *", scope)
    assert set(gradtx.__all__) <= set(scope)
    assert set(gradtx.__all__) <= set(dir(gradtx))
    assert gradtx.inspection.explain is gradtx.explain
    assert pickle.loads(pickle.dumps(gradtx.explain)) is gradtx.explain
    with pytest.raises(AttributeError, match="module 'gradtx' has no attribute 'adamm'"):
        _ = gradtx.adamm


def test_signatures_name_types_instead_of_what_these_mean():
    signature = str(inspect.signature(gradtx.adamw))
    assert "learning_rate: 'ScalarOrSchedule'" in signature
    assert len(signature) < 500


def test_library_needs_its_four_dependencies_only():
    program = (
        "import sys\n"
        "from gradtx import *\n"
        "extras = {'matplotlib', 'sklearn', 'rich', 'flax', 'equinox', 'orbax', 'hypothesis',"
        " 'haiku', 'scipy.stats', 'pytest', 'tensorboardX'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    assert printed_by(program) == "[]"


def test_import_starts_no_devices():
    # jax.distributed.initialize must come before that.
    program = (
        "from gradtx import *\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    assert printed_by(program) == "False"
