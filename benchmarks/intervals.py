"""Means with intervals, for the benchmarks that train with several seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of the mean (Student's t); infinitely wide for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), float("inf")
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)
