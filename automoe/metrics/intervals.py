"""How sure a mean of a few numbers is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t at 0.975 for 1 to 30 degrees of freedom; beyond, the normal distribution's 1.96 is near enough."""


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of the mean (Student's t); infinitely wide for a single value."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.inf
    quantile = T_975[count - 2] if count - 2 < len(T_975) else 1.96
    return float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(count))
