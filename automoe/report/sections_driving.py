"""What the report says of driving: every driver's scores, what ran meanwhile, and the films, from what `automoe drive`
left. Nothing is driven anew."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from automoe.drive.command import CARLA, EMBEDDED, SUMMARY
from automoe.drive.evaluation import BUDGET, outside_percent
from automoe.drive.leaderboard import FREE, LABELS, OUTSIDE, RouteRecord, read_results
from automoe.drive.routes import GENERATED
from automoe.errors import DataError
from automoe.report import charts
from automoe.report.parts import NONE, Card, Film, Part, Row, Table, part_of_file, read_object
from automoe.report.runs import commit_text
from automoe.report.sections import chart

MADE_BY = "`automoe drive --out`"

LARGEST_FILM = 8_000_000
"""Bytes of a film below which it is part of the page."""

FILMS = 2
"""Films that are part of the page, at most."""

SENTENCES = 6
"""Infractions that are quoted below a film."""

COLLISIONS = {"collisions_pedestrian": "people", "collisions_vehicle": "vehicles", "collisions_layout": "layout"}
RED_LIGHT = "red_light"

SIMULATORS = {EMBEDDED: "AutoMoE's embedded world", CARLA: "a CARLA server"}


@dataclass(frozen=True)
class Driver:
    """A driver's line of summary.json, as `drive.evaluation.summarise_driver` has it; seeds: its scores by seed;
    behind: by how much its score is below the first driver's in the same drives, and the half width of that."""

    name: str
    score: float
    half: float
    seeds: Mapping[str, float]
    completion: float
    success: float
    per_km: Mapping[str, float]
    kilometres: float
    jerk: float
    frame_ms: float
    frames: int
    over_budget: int
    trouble: Mapping[str, int]
    broken_off: Mapping[str, int]
    use: Mapping[str, float]
    behind: tuple[float, float] | None = None

    @classmethod
    def from_json(cls, name: str, said: Mapping[str, Any]) -> Driver:
        """Raises KeyError, TypeError, ValueError or AttributeError where something is missing or no number."""

        def numbers(key: str) -> dict[str, float]:
            return {str(part): float(value) for part, value in said[key].items()}

        trouble, broken = (
            {why: int(count) for why, count in numbers(key).items()} for key in ("trouble", "broken_off")
        )
        lost = said.get("behind_first")
        per_km = {kind: 0.0 for kind in LABELS} | numbers("per_km")
        return cls(
            name, float(said["driving_score"]), _or(said["half_width"], math.inf), numbers("per_seed"),
            float(said["route_completion"]), float(said["success_rate"]), per_km, float(said["kilometres"]),
            float(said["jerk"]), _or(said["frame_ms"], math.nan), int(said["frames"]), int(said["over_budget"]),
            trouble, broken, numbers("use"),
            None if lost is None else (float(lost["mean"]), _or(lost["half_width"], math.inf)),
        )  # fmt: skip

    @property
    def title(self) -> str:
        """Its name as people write it."""
        return self.name.replace("_", " ")

    @property
    def scored(self) -> str:
        """The driving score, with the half width of its interval if it has one."""
        return _with_half(self.score, self.half)

    @property
    def outside(self) -> float:
        """Per cent of its way that lay outside its lanes."""
        return outside_percent(self.per_km, self.kilometres)

    @property
    def other(self) -> float:
        """Infractions a kilometre that are neither collisions nor red lights and have a place, not a length."""
        apart = {*COLLISIONS, RED_LIGHT, OUTSIDE, *FREE}
        return sum(value for kind, value in self.per_km.items() if kind not in apart)


def _or(said: Any, absent: float) -> float:
    return absent if said is None else float(said)


def _with_half(mean: float, half: float) -> str:
    return f"{mean:.1f}" + (f" ± {half:.1f}" if math.isfinite(half) else "")


def driving_part(folder: Path, page: Path, command: str, named: bool) -> Part:
    """What was driven into a folder. page: the file that links lead from; command: drives into that folder.

    named: somebody asked for this folder, so that a DataError is raised where it is absent or damaged.
    """
    path = folder / SUMMARY
    return part_of_file(
        Part("Driving", "driving"),
        path,
        f"Nothing was driven under this name: there is no {path}. To drive: {command}",
        f"--drives: there is no {path}; name a folder that {MADE_BY} left." if named else None,
        lambda part: _fill(part, folder, page),
    )


def _fill(part: Part, folder: Path, page: Path) -> None:
    said = read_object(folder / SUMMARY, MADE_BY)
    try:
        drivers = [Driver.from_json(name, one) for name, one in said["drivers"].items()]
        driven = [(name, one["checkpoint"]) for name, one in said["drivers"].items() if "checkpoint" in one]
        part.facts = [*_facts(said), *((f"checkpoint of {name}", str(file)) for name, file in driven)]
        part.facts.append(("from", str(folder)))
        seeds, embedded = len(said["seeds"]), said["simulator"] == EMBEDDED
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / SUMMARY} is not what {MADE_BY} leaves ({error!r}); drive again, or name another folder with "
            "--drives."
        ) from error
    if not drivers:
        raise DataError(f"{folder / SUMMARY} names no driver; drive again, or name another folder with --drives.")
    if embedded:
        part.notes.append(
            "Driven in AutoMoE's embedded world, among its own traffic: no number here says anything about CARLA's "
            "towns or about real streets."
        )
    if seeds < 2:
        part.notes.append(
            "Driven with one seed: the intervals are infinite, and a difference between two drivers may be chance."
        )
    part.card = _card(drivers)
    part.tables = [_table(drivers)]
    part.charts = [_scores(drivers, seeds), *(_use(driver) for driver in drivers if driver.use)]
    part.films = _films(folder, page, drivers)
    part.films_about = (
        "What the experts that ran have seen, the plan, the gate's probabilities, and the scene from above."
        if part.films
        else "No drive was filmed."
    )


def _facts(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    routes, seeds = said["routes"], said["seeds"]
    source = "drawn" if routes["from"] == GENERATED else f"of {routes['from']}"
    count, metres = int(routes["count"]), float(routes["length"])
    facts = [
        ("routes", f"{count}, {source}, {metres:.0f} m long on average, in {', '.join(map(str, routes['towns']))}"),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))}): {count * len(seeds)} drives a driver"),
        ("simulator", SIMULATORS.get(said["simulator"], str(said["simulator"]))),
        ("scores", f"CARLA leaderboard {said['leaderboard']}"),
    ]
    commit = commit_text(said)
    return [*facts, ("commit", commit)] if commit else facts


# --- scores ---


def clearly_best(drivers: Sequence[Driver]) -> str | None:
    """The driver whose whole interval lies above everybody else's; none where intervals meet, or there are none."""
    first, *rest = sorted(drivers, key=lambda driver: driver.score, reverse=True)
    above = [first.score - first.half > other.score + other.half for other in rest]
    return first.name if rest and all(above) else None


def _table(drivers: Sequence[Driver]) -> Table:
    columns = [
        "driving score", "each seed", f"below {drivers[0].title}", "route done, %", "success, %",
        *(f"{name} hit / km" for name in COLLISIONS.values()), "red lights / km", "others / km", "outside, %",
        "jerk, m/s³", "ms a frame", f"frames over {1000 * BUDGET:.0f} ms", "trouble",
    ]  # fmt: skip
    best = clearly_best(drivers)
    rows = []
    for one in drivers:
        trouble = ", ".join(
            [f"{why}: {count}" for why, count in one.trouble.items()]
            + [f"drives lost, {why.lower()}: {count}" for why, count in one.broken_off.items()]
        )
        cells = [
            one.scored,
            " · ".join(f"{score:.1f}" for score in one.seeds.values()),
            NONE if one.behind is None else _with_half(*one.behind),
            f"{one.completion:.1f}",
            f"{100 * one.success:.0f}",
            *(f"{one.per_km[kind]:.2f}" for kind in (*COLLISIONS, RED_LIGHT)),
            f"{one.other:.2f}",
            f"{one.outside:.1f}",
            f"{one.jerk:.2f}",
            _finite(one.frame_ms, 1),
            f"{one.over_budget:,} of {one.frames:,}",
            trouble or "none",
        ]
        rows.append(Row(one.title, cells, strong=(0,) if one.name == best else ()))
    about = (
        "Driving score: route completion times the penalty of all infractions, 0 to 100; ± is the half width of the "
        "95 % interval of its mean over the seeds, on these routes. A score is bold where its whole interval "
        f"lies above all others'. Below {drivers[0].title}: by how much the score is lower in the same drives, the "
        "mean over them; ± is the half width of its 95 % interval. Success: completed without an infraction. Others: "
        "stop signs, deviations, blocked, timeouts. Outside: the share of the way outside its lanes. Milliseconds are "
        "the agent's, the median; trouble counts frames in which the car was brought to a stop, and drives that broke "
        "off, which count as nothing."
    )
    return Table("Drivers", columns, rows, about)


def _card(drivers: Sequence[Driver]) -> Card:
    rows = [Row(one.title, [one.scored, f"{one.completion:.1f}", f"{100 * one.success:.0f}"]) for one in drivers]
    table = Table("", ["driving score", "route done, %", "success, %"], rows, "")
    return Card(f"{drivers[0].score:.1f}", f"driving score, {rows[0].name}", table)


def _scores(drivers: Sequence[Driver], seeds: int) -> dict[str, Any]:
    means = [
        charts.Mean(one.title, one.score, one.half, {f"seed {name}": score for name, score in one.seeds.items()})
        for one in drivers
    ]
    about = "The mean, its 95 % interval, and a dot for each seed." if seeds > 1 else "Of one seed: without intervals."
    return chart("Driving score", charts.interval_chart(means, x_title="driving score"), about)


def _use(driver: Driver) -> dict[str, Any]:
    rows = [(name, 100 * share, f"{100 * share:.0f} %") for name, share in driver.use.items()]
    about = "Share of the frames in which each expert ran, the mean over all drives."
    return chart(f"Experts that ran: {driver.title}", charts.bar_chart(rows), about)


def _finite(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NONE


# --- films ---


def _films(folder: Path, page: Path, drivers: Sequence[Driver]) -> list[Film]:
    """The films of a folder, those of the first drivers first: the first ones as part of the page, the others as links.
    Raises DataError for a file that is no film, and as `read_results` does."""
    order = [driver.name for driver in drivers]
    owned = [(_owner(path, order), path) for path in sorted((folder / "videos").glob("*.mp4"))]
    owned.sort(key=lambda one: order.index(one[0]) if one[0] in order else len(order))
    records: dict[str, dict[str, RouteRecord]] = {}
    found, inside = [], 0
    for driver, path in owned:
        if driver and driver not in records:
            records[driver] = {one.route_id: one for one in read_results(folder / driver / "results.json")}
        record = records[driver].get(path.stem.removeprefix(f"{driver}_")) if driver else None
        source = _inline_film(path) if inside < FILMS else None
        inside += source is not None
        link = None if source else quote(os.path.relpath(path.resolve(), page.resolve().parent))
        found.append(_film(path, driver, record, source, link))
    return found


def _owner(path: Path, drivers: Sequence[str]) -> str:
    """Whose film it is: the driver with the longest name with which the file's begins; "" if nobody's."""
    return max((name for name in drivers if path.stem.startswith(f"{name}_")), key=len, default="")


def _inline_film(path: Path) -> str | None:
    """A film as a data URI; none where it is too large. Raises DataError where it is no MP4."""
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            raise DataError(f"{path} is no MP4 film; delete it, and {MADE_BY} makes it anew.")
    if path.stat().st_size >= LARGEST_FILM:
        return None
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _film(path: Path, driver: str, record: RouteRecord | None, source: str | None, link: str | None) -> Film:
    if record is None:
        return Film(path.name, "results.json has no record of this drive.", [], source, link)
    caption = (
        f"driving score {record.driving_score:.1f}, route completion {record.completion:.0f} %, penalty "
        f"{record.penalty:.2f}; a route of {record.length:.0f} m, driven for {record.seconds:.0f} s; {record.status}"
    )
    said = [words for lines in record.infractions.values() for words in lines]
    if record.reason:
        said.insert(0, record.reason)
    if len(said) > SENTENCES:
        said = [*said[:SENTENCES], f"and {len(said) - SENTENCES} more"]
    title = f"{driver.replace('_', ' ')}, {record.route_id}"
    return Film(title, caption, said or ["No infractions."], source, link)
