"""Scores of the CARLA leaderboard 2.0 (the multiplicative penalty, as Bench2Drive counts it), and its results file.

Driving score = route completion x penalty, from 0 to 100; the penalty is the product of one factor for each infraction.
The numbers are those of leaderboard/utils/statistics_manager.py (carla-simulator/leaderboard, commit aec8131, the same
as branch leaderboard-2.0 but for comments). Leaderboard 2.1 (branch leaderboard-2.1, commit cfecdc8) is another one:
it adds penalties up, 1 / (1 + their sum), and its scores don't compare with these. Two things differ from 2.0 here: a
low speed costs nothing, as in Bench2Drive, and the referee of this package does not look for it; and a drive that broke
off counts as nothing, whatever it had completed.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automoe.errors import DataError

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

AGENT_CRASHED, SIMULATION_CRASHED = "Agent crashed", "Simulation crashed"
BAD_SENSORS = "Agent's sensors were invalid"
CRASHES = (AGENT_CRASHED, SIMULATION_CRASHED, BAD_SENSORS, "Agent couldn't be set up")
"""What breaks a drive off, in the leaderboard's words."""

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

GIVE = "give the results.json of `automoe drive`, of the CARLA leaderboard 2.0 or of Bench2Drive"

_OUTSIDE_SAID = re.compile(r"for about ([\d.]+) meters \(([\d.]+)% of")


@dataclass(frozen=True)
class RouteRecord:
    """What became of one drive along one route.

    completion: per cent of the route. infractions: for each kind a sentence for every one of them. length: of the
    route, metres. seconds: of the world's time; seconds_taken: of ours. outside: share of the driven route that lay
    outside its lanes, 0 to 1; outside_metres: the same in metres. failure: what ended the route where no infraction
    did, in the leaderboard's words, one of `CRASHES`, or in a fork's (Bench2Drive's TickRuntime). reason: what was
    raised when it crashed.
    """

    route_id: str
    completion: float
    infractions: dict[str, list[str]]
    length: float
    seconds: float
    seconds_taken: float = 0.0
    outside: float = 0.0
    outside_metres: float = 0.0
    failure: str | None = None
    reason: str | None = None

    @property
    def crashed(self) -> bool:
        """Whether the drive broke off. It then counts as nothing."""
        return self.failure in CRASHES

    @property
    def penalty(self) -> float:
        """The product of all penalties, 0 to 1."""
        return _factors(self.infractions) * (1.0 - self.outside)

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
        if self.completion >= 100.0 and not self.crashed:
            return "Completed" if any(self.infractions.values()) else "Perfect"
        reasons = [words for kind, words in ENDING.items() if self.infractions.get(kind)]
        if self.failure is not None:
            reasons.insert(0 if self.crashed else len(reasons), self.failure)
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
            **({} if self.reason is None else {"reason": self.reason}),
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> RouteRecord:
        """A record of a results file, of this package, the leaderboard or Bench2Drive. The share outside the lanes, of
        which the sentence gives two digits, is taken from the penalty.

        Raises DataError, naming the route, where something is missing or the scores are not those that the infractions
        give by the rules of this file: those of another version.
        """
        name = str(entry.get("route_id"))
        try:
            scores, meta, status = entry["scores"], entry["meta"], str(entry["status"])
            infractions = {str(kind): [str(words) for words in said] for kind, said in entry["infractions"].items()}
            completion, penalty, composed = (
                float(scores[key]) for key in ("score_route", "score_penalty", "score_composed")
            )
            length, seconds, taken = (float(meta[key]) for key in ("route_length", "duration_game", "duration_system"))
            if not all(map(math.isfinite, (completion, penalty, composed, length, seconds, taken))):
                raise ValueError("what is no number")
            if not (0.0 <= completion <= 100.0 and 0.0 <= penalty <= 1.0):
                raise ValueError(f"a completion of {completion:g} per cent, a penalty of {penalty:g}")
            outside = [_OUTSIDE_SAID.search(words) for words in infractions.get(OUTSIDE, [])]
            metres = sum(float(match[1]) for match in outside if match)
            inside = math.prod(1.0 - float(match[2]) / 100 for match in outside if match)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"the record of route {name} is not one of the leaderboard's ({error!r}); {GIVE}"
            ) from error
        strange = [kind for kind, said in infractions.items() if said and kind not in KINDS]
        if strange or not all(outside):
            raise DataError(f"the record of route {name} tells of {', '.join(strange) or OUTSIDE} in unknown words")
        factors = _factors(infractions)
        if abs(penalty - factors * inside) > 5e-5 * len(outside) + 2e-6:
            raise DataError(
                f"the record of route {name} has a penalty of {penalty:g}, but its infractions give "
                f"{factors * inside:g} by leaderboard 2.0 as Bench2Drive counts it: another version's scores?"
            )
        failure = status.removeprefix("Failed").removeprefix(" - ") if status.startswith("Failed") else ""
        record = cls(
            name, completion, infractions, length, seconds, taken, 1.0 - penalty / factors if outside else 0.0, metres,
            None if failure in ("", *ENDING.values()) else failure, entry.get("reason"),
        )  # fmt: skip
        if not record.crashed and abs(composed - record.driving_score) > 1e-4:
            raise DataError(
                f"the record of route {name} has a driving score of {composed:g}, not {record.driving_score:g} as its "
                "completion and penalty give"
            )
        return record


def _factors(infractions: dict[str, list[str]]) -> float:
    """The product of what infractions cost that cost the same every time."""
    return math.prod(PENALTIES[kind] ** len(said) for kind, said in infractions.items() if kind in PENALTIES)


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

    def flat(self) -> dict[str, float | None]:
        """As plain metrics, each kind of infraction as per_km/<kind>."""
        own: dict[str, float | None] = {key: value for key, value in vars(self).items() if key != "per_km"}
        return own | {f"per_km/{kind}": value for kind, value in self.per_km.items()}


def summarise(records: Sequence[RouteRecord], routes: int | None = None) -> Scores:
    """The means over `routes` drives (as many as there are records, if not given); those that are missing count as
    nothing. Raises DataError for more records than routes."""
    if routes is not None and len(records) > routes:
        raise DataError(f"there are {len(records)} records of {routes} routes: each route counts once")
    count = max(len(records) if routes is None else routes, 1)
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


def format_scores(scores: Scores, records: int, routes: int) -> str:
    """Scores as a person reads them."""
    lines = [
        f"driving score     {scores.driving_score:.5f}",
        f"success rate      {scores.success_rate:.6f}",
        f"route completion  {scores.route_completion:.5f}",
        f"penalty           {scores.penalty:.5f}",
        f"{records} records of {routes} routes, {scores.kilometres:.3f} km",
    ]
    for kind, value in scores.per_km.items():
        if value > 0.0:
            unit = "km in all" if kind == OUTSIDE else "per km"
            lines.append(f"  {LABELS[kind]}: {value:.3f} {unit}")
    return "\n".join(lines)


def results_file(records: Sequence[RouteRecord], routes: int, sensors: Sequence[str] = ()) -> dict[str, Any]:
    """All records and their means over `routes` drives in the form of the leaderboard's results file."""
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
        (record.route_id, index, record.status)
        for index, record in enumerate(records)
        if record.status.startswith("Failed")
    ]
    entry_status = _entry_status(records, routes)
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
        "entry_status": entry_status,
        "eligible": entry_status == "Finished",
        "sensors": list(sensors),
        "values": [str(value) for value in (*means.values(), *(per_km[kind] for kind in LABELS))],
        "labels": ["Avg. driving score", "Avg. route completion", "Avg. infraction penalty", *LABELS.values()],
    }


def _worst(statuses: Sequence[str]) -> str:
    for word in ("Failed", "Completed"):
        if any(status.startswith(word) for status in statuses):
            return word
    return "Perfect"


def _entry_status(records: Sequence[RouteRecord], routes: int) -> str:
    """In the leaderboard's words. An agent's crash costs its route and no more."""
    if len(records) != routes:
        return "Invalid"
    failures = {record.failure for record in records}
    return "Rejected" if BAD_SENSORS in failures else "Crashed" if SIMULATION_CRASHED in failures else "Finished"


def read_results(path: Path) -> list[RouteRecord]:
    """The records of a results file, plain or gzipped; its own means are not looked at.

    Raises DataError, naming the file, if it isn't one, has a route twice, or a record that `RouteRecord.from_json`
    refuses.
    """
    try:
        data = path.read_bytes()
        entries = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)["_checkpoint"]["records"]
        records = [RouteRecord.from_json(entry) for entry in entries]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a results file of the CARLA leaderboard ({error!r}); {GIVE}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not records:
        raise DataError(f"{path} has no records: nothing was driven yet.")
    twice = [name for name, count in Counter(record.route_id for record in records).items() if count > 1]
    if twice:
        raise DataError(f"{path} has more than one record of {', '.join(twice)}: each route counts once")
    return records
