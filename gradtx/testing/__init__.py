"""The contract of a gradient transformation, as checks for your own transformations too.

`check_transformation(tx)` runs all clauses; each of them is also a function by itself. They raise
`ConformanceError`, which names the clause, the leaf, what was expected and what was found.
`transformation_test_suite(tx)` makes tests of them for pytest.
`collectives(program)` counts what a compiled step sends between devices.
`check_schedule`, `check_initializer` and `check_normalization` do the same for these functions.
`check_reference(tx, references.adam(0.1))` compares a port with its paper in double precision.
Strategies for property-based tests are in `gradtx.testing.strategies`, which needs hypothesis.
"""

from __future__ import annotations

from gradtx.testing import references
from gradtx.testing.capabilities import CAPABILITIES
from gradtx.testing.clause import Clause
from gradtx.testing.clauses_calling import check_calls, check_purity, check_type
from gradtx.testing.clauses_effects import check_leaks, check_side_effects
from gradtx.testing.clauses_inputs import (
    check_complex,
    check_double_precision,
    check_init_values,
    check_numpy,
)
from gradtx.testing.clauses_late import (
    check_counters,
    check_full_counters,
    check_long_run,
    check_zeros,
)
from gradtx.testing.clauses_mismatch import check_mismatches
from gradtx.testing.clauses_numerics import check_degree, check_half_precision, check_locality
from gradtx.testing.clauses_order import check_order, check_sizes
from gradtx.testing.clauses_random import check_random_keys
from gradtx.testing.clauses_sharding import check_layouts, check_sharding
from gradtx.testing.clauses_structure import (
    check_empty_trees,
    check_masked_leaves,
    check_missing_gradients,
    check_non_parameters,
    check_none_leaves,
    check_state,
    check_updates,
    check_weak_types,
)
from gradtx.testing.clauses_tracing import (
    check_donation,
    check_eval_shape,
    check_jit,
    check_scan,
    check_vmap,
)
from gradtx.testing.clauses_use import check_idle, check_unread_parameters
from gradtx.testing.collectives import Sent, collectives
from gradtx.testing.conformance import check_transformation, clauses
from gradtx.testing.initializers import check_initializer
from gradtx.testing.normalizations import check_normalization
from gradtx.testing.references.check import check_reference
from gradtx.testing.report import ConformanceError, Failure
from gradtx.testing.schedules import check_schedule
from gradtx.testing.suite import transformation_test_suite
from gradtx.testing.trees import (
    cast_parameters,
    gradients_like,
    hostile_parameters,
    hostile_trees,
)

__all__ = [
    "CAPABILITIES",
    "Clause",
    "ConformanceError",
    "Failure",
    "Sent",
    "cast_parameters",
    "check_calls",
    "check_complex",
    "check_counters",
    "check_degree",
    "check_donation",
    "check_double_precision",
    "check_empty_trees",
    "check_eval_shape",
    "check_full_counters",
    "check_half_precision",
    "check_idle",
    "check_init_values",
    "check_initializer",
    "check_jit",
    "check_layouts",
    "check_leaks",
    "check_locality",
    "check_long_run",
    "check_masked_leaves",
    "check_mismatches",
    "check_missing_gradients",
    "check_non_parameters",
    "check_none_leaves",
    "check_normalization",
    "check_numpy",
    "check_order",
    "check_purity",
    "check_random_keys",
    "check_reference",
    "check_scan",
    "check_schedule",
    "check_sharding",
    "check_side_effects",
    "check_sizes",
    "check_state",
    "check_transformation",
    "check_type",
    "check_unread_parameters",
    "check_updates",
    "check_vmap",
    "check_weak_types",
    "check_zeros",
    "clauses",
    "collectives",
    "gradients_like",
    "hostile_parameters",
    "hostile_trees",
    "references",
    "transformation_test_suite",
]
