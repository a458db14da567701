"""Which evaluation is the best one: by one metric, in which undefined values never win."""

from __future__ import annotations

import math
from collections.abc import Mapping

from automoe.errors import ConfigError


def checked_metrics(found: Mapping[str, float | None], metric: str) -> dict[str, float | None]:
    """The metrics as plain floats, None where they are undefined (None, NaN, infinite).

    Raises ConfigError if `metric`, which selects, is not among them.
    """
    if metric not in found:
        raise ConfigError(f"metric is {metric!r}, but the evaluation gives: {', '.join(found) or 'nothing'}.")
    defined = {key for key, value in found.items() if value is not None and math.isfinite(value)}
    return {key: float(value) if key in defined else None for key, value in found.items()}  # type: ignore[arg-type]


def is_better(value: float | None, best: float | None, mode: str) -> bool:
    """Whether `value` beats `best` where `mode` ("max", "min") is better. Ties keep the earlier."""
    if value is None:
        return False
    return best is None or (value > best if mode == "max" else value < best)
