"""The experiment on faults: its claim fails where a fault is missed or made up.

That it holds is what `python -m examples.experiments --quick` tells.
"""

import jax.numpy as jnp
import numpy as np

from examples.digits import load_digits
from examples.experiments import experiment, faults
from gradtx import diagnostics

SETTINGS = experiment.Settings(seed=1, quick=True)


def checks_of(finding, without_fault=()):
    """The checks if every fault shows one finding, and the programs without a fault others."""
    accuracies = np.array([0.1, 0.2]), np.array([0.8, 0.9])
    result = faults.Result(diagnostics.CheckUp(1.0, (finding,)), *accuracies)
    results = dict.fromkeys(faults.FAULTS[:2], result)
    return faults._checks(results, [diagnostics.CheckUp(1.0, tuple(without_fault))])


def test_the_claim_fails_where_a_fault_is_missed_or_made_up():
    found = diagnostics.Finding("label_out_of_range", "error", "", "")
    named, quiet, costly = checks_of(found)
    assert (named.holds, quiet.holds, costly.holds) == (False, True, True)
    assert named.measured == "not named: softmax applied twice"
    named, quiet, _ = checks_of(found, [found])
    assert (quiet.holds, quiet.measured) == (False, "found: label_out_of_range")


def test_a_remark_names_no_fault():
    remark = diagnostics.Finding("label_out_of_range", "remark", "", "")
    named, quiet, _ = checks_of(remark, [remark])
    assert (named.holds, quiet.holds) == (False, True)


def test_accuracy_is_the_share_of_recognized_images():
    digits = load_digits()
    always_three = faults.HEALTHY._replace(decide=lambda outputs: jnp.full(len(outputs), 3))
    accuracy = faults.train(always_three, SETTINGS.key, digits, networks=2, steps=1)
    np.testing.assert_allclose(accuracy, np.mean(digits.test["label"] == 3), rtol=1e-6)
