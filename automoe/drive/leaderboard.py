"""Scores of the CARLA leaderboard (2.0 and later), and its results file.

Driving score = route completion x penalty, from 0 to 100; the penalty is the product of one factor for each infraction.
The numbers are those of leaderboard/utils/statistics_manager.py (carla-simulator/leaderboard, commit aec8131), but for
one: a low speed costs nothing here, as in Bench2Drive, and the referee of this package does not look for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PENALTIES: dict[str, float] = {
    "collisions_pedestrian": 0.50,
    "collisions_vehicle": 0.60,
    "collisions_layout": 0.65,
    "red_light": 0.70,
    "stop_infraction": 0.80,
    "scenario_timeouts": 0.70,
    "yield_emergency_vehicle_infractions": 0.70,
}
"""The factor that each infraction of a kind costs."""

OUTSIDE = "outside_route_lanes"
"""Costs the share of the driven route that was driven outside."""

FREE = ("min_speed_infractions",)
"""Of files that have them: at no cost."""

ENDING: dict[str, str] = {
    "route_dev": "Agent deviated from the route",
    "vehicle_blocked": "Agent got blocked",
    "route_timeout": "Agent timed out",
}
"""What ends a route, and in which words."""

KINDS = (*PENALTIES, OUTSIDE, *FREE, *ENDING)

LABELS = {
    "collisions_pedestrian": "Collisions with pedestrians",
    "collisions_vehicle": "Collisions with vehicles",
    "collisions_layout": "Collisions with layout",
    "red_light": "Red lights infractions",
    "stop_infraction": "Stop sign infractions",
    OUTSIDE: "Off-road infractions",
    "route_dev": "Route deviations",
    "route_timeout": "Route timeouts",
    "vehicle_blocked": "Agent blocked",
    "yield_emergency_vehicle_infractions": "Yield emergency vehicles infractions",
    "scenario_timeouts": "Scenario timeouts",
    "min_speed_infractions": "Min speed infractions",
}
"""Of a results file, in its order."""


@dataclass(frozen=True)
class RouteRecord:
    """What became of one drive along one route.

    completion: per cent of the route. infractions: for each kind a sentence for every one of them. outside: share of
    the driven route that lay outside its lanes, 0 to 1; outside_metres: the same in metres. length: of the route,
    metres. seconds: of the world's time; seconds_taken: of ours. crashed: why the drive broke off, if it did; it then
    counts as nothing.
    """

    route_id: str
    completion: float
    infractions: dict[str, list[str]]
    length: float
    seconds: float
    seconds_taken: float = 0.0
    outside: float = 0.0
    outside_metres: float = 0.0
    crashed: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def penalty(self) -> float:
        """The product of all penalties, 0 to 1."""
        factors = [PENALTIES[kind] ** len(said) for kind, said in self.infractions.items() if kind in PENALTIES]
        return math.prod(factors) * (1.0 - self.outside)

    @property
    def driving_score(self) -> float:
        """0 to 100."""
        return 0.0 if self.crashed else self.completion * self.penalty

    @property
    def succeeded(self) -> bool:
        """Whether the route was completed without an infraction that costs."""
        costly = [kind for kind, said in self.infractions.items() if said and kind not in FREE]
        return self.completion >= 100.0 and not costly and not self.crashed

    @property
    def status(self) -> str:
        """In the leaderboard's words."""
        if self.crashed:
            return "Failed - Simulation crashed"
        if self.completion >= 100.0:
            return "Completed" if any(self.infractions.values()) else "Perfect"
        reasons = [words for kind, words in ENDING.items() if self.infractions.get(kind)]
        return " - ".join(["Failed", *reasons[:1]])

    def to_json(self, index: int) -> dict[str, Any]:
        """As a record of a results file."""
        said = {kind: list(self.infractions.get(kind, [])) for kind in KINDS}
        return {
            "index": index,
            "route_id": self.route_id,
            "status": self.status,
            "num_infractions": sum(map(len, said.values())),
            "infractions": said,
            "scores": {
                "score_route": round(self.completion, 6),
                "score_penalty": round(self.penalty, 6),
                "score_composed": round(self.driving_score, 6),
            },
            "meta": {
                "route_length": round(self.length, 3),
                "duration_game": round(self.seconds, 3),
                "duration_system": round(self.seconds_taken, 3),
            },
            **self.extra,
        }


@dataclass(frozen=True)
class Scores:
    """Of all routes: driving_score, route_completion (0 to 100), penalty (0 to 1), success_rate (0 to 1), and how often
    each kind of infraction happens, `per_km`; of `outside_route_lanes` kilometres in all."""

    driving_score: float
    route_completion: float
    penalty: float
    success_rate: float
    per_km: dict[str, float]
    kilometres: float


def summarise(records: Sequence[RouteRecord], routes: int | None = None) -> Scores:
    """The means over `routes` drives (as many as there are records, if not given); those that are missing count as
    nothing."""
    count = max(routes or len(records), len(records), 1)
    kilometres = sum(record.length / 1000 * record.completion / 100 for record in records)
    per_km = {
        kind: sum(len(record.infractions.get(kind, [])) for record in records) / max(kilometres, 0.001)
        for kind in KINDS
    }
    per_km[OUTSIDE] = sum(record.outside_metres for record in records) / 1000
    return Scores(
        sum(record.driving_score for record in records) / count,
        sum(record.completion for record in records) / count,
        sum(record.penalty for record in records) / count,
        sum(record.succeeded for record in records) / count,
        per_km,
        kilometres,
    )


def results_file(records: Sequence[RouteRecord], routes: int, sensors: Sequence[str] = ()) -> dict[str, Any]:
    """All records and their means in the form of the leaderboard's results file."""
    scores = summarise(records, routes)
    means = {
        "score_composed": round(scores.driving_score, 6),
        "score_route": round(scores.route_completion, 6),
        "score_penalty": round(scores.penalty, 6),
    }
    per_km = {kind: round(value, 3) for kind, value in scores.per_km.items()}
    each = [record.to_json(index) for index, record in enumerate(records)]
    spread = {
        key: round(math.sqrt(sum((one["scores"][key] - mean) ** 2 for one in each) / max(routes - 1, 1)), 3)
        for key, mean in means.items()
    }
    failed = [
        (record.route_id, index, record.status) for index, record in enumerate(records) if record.completion < 100
    ]
    return {
        "_checkpoint": {
            "global_record": {
                "index": -1,
                "route_id": -1,
                "status": _worst([record.status for record in records]),
                "infractions": per_km,
                "scores_mean": means,
                "scores_std_dev": spread,
                "meta": {
                    "total_length": round(sum(record.length for record in records), 3),
                    "duration_game": round(sum(record.seconds for record in records), 3),
                    "duration_system": round(sum(record.seconds_taken for record in records), 3),
                    "exceptions": failed,
                },
            },
            "progress": [len(records), routes],
            "records": each,
        },
        "entry_status": "Crashed" if any(record.crashed for record in records) else "Finished",
        "eligible": not any(record.crashed for record in records) and len(records) == routes,
        "sensors": list(sensors),
        "values": [str(value) for value in (*means.values(), *(per_km[kind] for kind in LABELS))],
        "labels": ["Avg. driving score", "Avg. route completion", "Avg. infraction penalty", *LABELS.values()],
    }


def _worst(statuses: Sequence[str]) -> str:
    for word in ("Failed", "Completed"):
        if any(status.startswith(word) for status in statuses):
            return word
    return "Perfect"
