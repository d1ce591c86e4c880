"""Which tests cover a file: those that have its name or use what it defines, nearest first."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Tests by the prefix of the files that they cover without naming what is in them.
_ALSO = {
    "gradtx/lift.py": ("tests/test_lift.py", "tests/kernels/test_adam.py", "tests/test_updates.py"),
    "gradtx/whole_tree.py": (
        "tests/test_lift_whole_tree.py",
        "tests/kernels/test_step_size_free.py",
    ),
    "gradtx/leaf.py": ("tests/test_lift.py", "tests/kernels/test_adam.py", "tests/test_stored.py"),
    "gradtx/kernels/": (
        "tests/testing/test_references.py",
        "tests/kernels/test_non_negative.py",
        "tests/inspection/test_effects.py",
        "tests/test_parity.py",
        "tests/recipes/test_torch_trajectories.py",
        "tests/test_integers.py",
    ),
    "gradtx/recipes/": (
        "tests/testing/test_references.py",
        "tests/recipes/test_torch_trajectories.py",
        "tests/test_parity.py",
    ),
    "gradtx/wrappers/factory.py": ("tests/wrappers/test_hyperparameters.py",),
    "gradtx/kernels/arithmetic.py": (
        "tests/kernels/test_adam.py",
        "tests/kernels/test_adan.py",
        "tests/kernels/test_step_size_free.py",
        "tests/kernels/test_trust.py",
    ),
    "gradtx/kernels/normuon.py": (
        "tests/sharding/test_explicit_matrices.py",
        "tests/recipes/test_programs.py",
    ),
    "gradtx/kernels/scale.py": ("tests/wrappers/test_cautious.py",),
    "gradtx/recipes/adam_variants.py": ("tests/recipes/test_adam.py",),
    "gradtx/compose/conditions.py": ("tests/precision/test_narrow_in_use.py",),
    "gradtx/compose/parts.py": (
        "tests/compose/test_conditions.py",
        "tests/compose/test_sequence.py",
        "tests/precision/test_narrow_in_use.py",
    ),
    "gradtx/wrappers/projected.py": ("tests/sharding/test_distributed.py",),
    "gradtx/wrappers/lookahead.py": ("tests/wrappers/test_steps.py",),
    "gradtx/kernels/orthogonalize.py": ("tests/kernels/test_muon.py",),
    "gradtx/kernels/distance.py": ("tests/kernels/test_step_size_free.py",),
    "gradtx/kernels/coin_betting.py": ("tests/kernels/test_step_size_free.py",),
    "gradtx/kernels/dadaptation.py": ("tests/kernels/test_step_size_free.py",),
    "gradtx/kernels/prodigy.py": (
        "tests/kernels/test_step_size_free.py",
        "tests/recipes/test_programs.py",
    ),
    "gradtx/kernels/momo": ("tests/kernels/test_step_size_free.py",),
    "gradtx/kernels/polyak.py": ("tests/kernels/test_step_size_free.py",),
    "gradtx/normalization/": (
        "tests/normalization/test_torch_reference.py",
        "tests/normalization/test_contract.py",
        "tests/normalization/test_sizes.py",
        "tests/normalization/test_statistics.py",
        "tests/normalization/test_layer.py",
        "tests/normalization/test_batch.py",
    ),
    "gradtx/initializers/": (
        "tests/initializers/test_initializer.py",
        "tests/initializers/test_scaling.py",
        "tests/initializers/test_distributions.py",
        "tests/initializers/test_recipes.py",
    ),
}
# Slow tests of other things, which would only say later what others say.
_LEFT_OUT = re.compile("diagnostics|examples|bench|killed|contributing|readme|package")


def covering(file: str, limit: int = 5) -> list[str]:
    """Tests that cover a file, those that fail soonest first; its doctests are among them.

    Args:
        file: the path of the file, from the root of the repository.
        limit: how many tests to name, at most.
    """
    names = _defined(ROOT / file)
    stem = Path(file).stem.strip("_")
    mentions = {test: len(names & words) for test, words in _words().items()}
    same = [test for test in mentions if Path(test).stem == f"test_{stem}"]
    same.sort(key=lambda test: Path(test).parent.name != Path(file).parent.name)
    also = [
        t for prefix, tests in reversed(_ALSO.items()) if file.startswith(prefix) for t in tests
    ]
    near = sorted(filter(mentions.get, mentions), key=lambda test: -mentions[test])
    tests = list(dict.fromkeys([*same, *also, *near]))[:limit]
    return [*tests[:2], file, *tests[2:]]


def _defined(path: Path) -> set[str]:
    """The public names that a file defines."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


@functools.cache
def _words() -> dict[str, frozenset[str]]:
    """For each file of tests, what it takes from other files."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        if not _LEFT_OUT.search(name):
            found[name] = frozenset(_taken(ast.parse(path.read_text())))
    return found


def _taken(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
