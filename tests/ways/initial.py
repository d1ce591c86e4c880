"""Initializers: how each is made, and the shapes that it draws."""

from typing import Any

SHAPE, KERNEL = (3, 4), (2, 2, 4, 5)
FANS: list[Any] = [({}, SHAPE), ({}, KERNEL), ({"in_axis": 0, "out_axis": (1, 3)}, KERNEL)]
TRUNCATED: list[Any] = [*FANS, ({"dtype": "complex64"}, KERNEL)]

INITIALIZERS: dict[str, list[Any]] = {
    "constant": [({"value": -0.3}, SHAPE), ({"value": 7}, ())],
    "delta_orthogonal": [({}, (3, 4, 5)), ({"scale": 0.5, "column_axis": -2}, (3, 3, 5, 5))],
    "glorot_normal": TRUNCATED,
    "glorot_uniform": FANS,
    "he_normal": TRUNCATED,
    "he_uniform": FANS,
    "kaiming_normal": TRUNCATED,
    "kaiming_uniform": FANS,
    "lecun_normal": TRUNCATED,
    "lecun_uniform": FANS,
    "normal": [({}, SHAPE), ({"stddev": 3.0}, KERNEL), ({"stddev": 0.0}, (5,))],
    "orthogonal": [({}, SHAPE), ({"scale": 0.5, "column_axis": 0}, KERNEL), ({}, (5, 2))],
    "truncated_normal": [
        ({}, SHAPE),
        ({"stddev": 3.0}, KERNEL),
        ({"lower": -1.0, "upper": 0.5}, KERNEL),
        ({"lower": -3.0, "upper": -1.5}, KERNEL),
        ({"lower": 1.5, "upper": 4.0}, KERNEL),
    ],
    "uniform": [({}, SHAPE), ({"scale": 3.0}, KERNEL), ({"scale": 0.0}, (5,))],
    "variance_scaling": [
        ({"scale": 1.0, "mode": "fan_in", "distribution": "normal"}, SHAPE),
        ({"scale": 2.0, "mode": "fan_avg", "distribution": "uniform"}, KERNEL),
        ({"scale": 0.5, "mode": "fan_out", "distribution": "truncated_normal"}, KERNEL),
        (
            {
                "scale": 1.0,
                "mode": "fan_geo_avg",
                "distribution": "truncated_normal",
                "dtype": "complex64",
            },
            SHAPE,
        ),
    ],
    "xavier_normal": TRUNCATED,
    "xavier_uniform": FANS,
}
# These are initializers, not makers of them.
READY_MADE = ("ones", "zeros")
