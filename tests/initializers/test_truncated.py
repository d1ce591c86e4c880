"""The standard deviation of the truncated normal, where closed forms are available."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from gradtx.initializers.truncated import truncated_deviation


def closed_form(lower, upper):
    """Johnson, Kotz and Balakrishnan (1994), chapter 13, section 10.1, in float64."""
    density, mass = stats.norm.pdf, stats.norm.cdf(upper) - stats.norm.cdf(lower)
    mean = (density(lower) - density(upper)) / mass
    edges = (lower * density(lower) - upper * density(upper)) / mass
    return math.sqrt(1 + edges - mean**2)


@pytest.mark.parametrize("bounds", [(-2, 2), (-1, 3), (-3, 0.5), (0, 4), (-5, 5), (-0.5, 0.5)])
def test_closed_form(bounds):
    assert truncated_deviation(*bounds) == pytest.approx(closed_form(*bounds), rel=1e-12)


def test_half_normal():
    assert truncated_deviation(0, math.inf) == pytest.approx(math.sqrt(1 - 2 / math.pi), rel=1e-13)


def test_no_truncation():
    assert truncated_deviation(-math.inf, math.inf) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("center", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("width", [1e-3, 1e-6])
def test_narrow_interval_is_uniform(center, width):
    # The density is flat up to a slope of center and a curvature of 1, so the relative error
    # of the uniform's width/√12 is of the order of width².
    expected = width / math.sqrt(12)
    interval = (center - width / 2, center + width / 2)
    rounding_of_the_bounds = 4 * np.spacing(abs(center)) / width
    assert truncated_deviation(*interval) == pytest.approx(
        expected, rel=(1 + center**2) * width**2 + rounding_of_the_bounds + 1e-13
    )


@pytest.mark.parametrize("bounds", [(3, math.inf), (8, 9), (-math.inf, -6), (12, math.inf)])
def test_tails_against_adaptive_quadrature(bounds):
    nearest = min(abs(bounds[0]), abs(bounds[1]))
    farthest = min(max(abs(bounds[0]), abs(bounds[1])), nearest + 20)

    def moment(power, center):
        return integrate.quad(
            lambda z: (z - center) ** power * math.exp((nearest**2 - z**2) / 2),
            nearest,
            farthest,
            epsabs=0,
            epsrel=1e-13,
            points=[min(nearest + 1, farthest)],
        )[0]

    mass = moment(0, 0)
    mean = nearest + moment(1, nearest) / mass
    expected = math.sqrt(moment(2, mean) / mass)
    assert truncated_deviation(*bounds) == pytest.approx(expected, rel=1e-12)
