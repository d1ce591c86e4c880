"""What `pytest -m smoke` runs: of each part, tests that are quick and go through most of it."""

SMOKE = (
    "gradtx/recipes",
    "tests/bench/test_bench.py::test_each_method_is_built_by_both_libraries",
    "tests/compose/test_sequence.py",
    "tests/diagnostics/test_update_ratio.py",
    "tests/examples/experiments/test_gallery.py",
    "tests/idioms/test_loops.py",
    "tests/initializers/test_recipes.py",
    "tests/inspection/test_decays.py",
    "tests/kernels/test_sign.py",
    "tests/normalization/test_torch_reference.py",
    "tests/precision/test_lost.py",
    "tests/recipes/test_torch_trajectories.py",
    "tests/sharding/test_norms_on_meshes.py::test_one_all_reduce_and_the_numbers_of_one_device[lamb",
    "tests/test_package.py",
    "tests/test_parity.py",
    "tests/test_readme.py",
    "tests/testing/test_exports.py::test_contract[adamw]",
    "tests/training/test_state.py",
    "tests/wrappers/test_multipliers.py",
)
FILES = frozenset(name.partition("::")[0] for name in SMOKE)
