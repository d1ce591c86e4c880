"""Compares samples with a distribution of SciPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats


@pytest.fixture
def assert_moments() -> Callable[[Any, Any], None]:
    """Mean and variance within five standard errors of those of a frozen SciPy distribution."""

    def check(samples: Any, law: Any) -> None:
        values = np.asarray(samples, np.float64).ravel()
        mean, variance, _, excess_kurtosis = law.stats("mvsk")
        mean_error = np.sqrt(variance / values.size)
        variance_error = variance * np.sqrt((excess_kurtosis + 2) / values.size)
        assert abs(values.mean() - mean) < 5 * mean_error
        assert abs(values.var() - variance) < 5 * variance_error

    return check


@pytest.fixture
def assert_distributed(assert_moments: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """The moments, and a Kolmogorov-Smirnov test at one in a thousand (the seeds are fixed)."""

    def check(samples: Any, law: Any) -> None:
        assert_moments(samples, law)
        values = np.asarray(samples, np.float64).ravel()
        assert stats.kstest(values, law.cdf).pvalue > 1e-3

    return check
