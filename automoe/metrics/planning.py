"""Open-loop errors of what drives: how far a plan is from what was driven, in metres and m/s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

METRIC = "planning_error"
"""What selects best.pth: the mean distance of path and of waypoints (metres) and of the target speed (m/s), summed."""


class PlanningScores:
    """Open-loop errors over a set, each sample counting once. path_error: metres, the mean over the path's points;
    l2_Xs: metres at a time; ade: their mean; speed_mae: m/s, of the target speed; light_accuracy: a share."""

    def __init__(self, times: Sequence[float]) -> None:
        self.times = times
        self.rows: list[dict[str, float]] = []

    def add(self, plan: Any, targets: Any, choice: Tensor | None) -> None:
        """A batch of plans; choice: bool [B, E] of the gate."""
        path = (plan.path - targets.path).norm(dim=-1)
        hops = (plan.waypoints - targets.waypoints).norm(dim=-1)
        speed = (plan.speed - targets.speed).abs()
        for row in range(len(path)):
            found = {"speed_mae": float(speed[row])} if speed[row].isfinite() else {}
            known, reached = targets.path_known[row], targets.waypoints_known[row]
            if known.any():
                found["path_error"] = float(path[row][known].mean())
            if reached.any():
                found["ade"] = float(hops[row][reached].mean())
            for place, time in enumerate(self.times):
                if reached[place]:
                    found[f"l2_{time:g}s"] = float(hops[row, place])
            if targets.light[row] >= 0:
                found["light_accuracy"] = float(plan.light_logits[row].argmax() == targets.light[row])
            if choice is not None:
                found |= {f"use_{place}": float(said) for place, said in enumerate(choice[row].tolist())}
            self.rows.append(found)

    def compute(self) -> dict[str, float | None]:
        """The means; planning_error is the sum of path_error, ade and speed_mae."""
        keys = sorted({key for row in self.rows for key in row})
        means: dict[str, float | None] = {}
        for key in keys:
            means[key] = float(np.mean([row[key] for row in self.rows if key in row]))
        parts = [means.get(key) for key in ("path_error", "ade", "speed_mae")]
        means[METRIC] = None if any(one is None for one in parts) else float(sum(filter(None, parts)))
        return means
