"""What `automoe drive` does: drivers, routes and seeds in, drives, results files and a table out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from automoe.drive.evaluation import (
    BUDGET,
    CONSTANT,
    TEACHER,
    DriverSpec,
    behind,
    drive_all,
    summarise_driver,
    table,
    write_results,
)
from automoe.drive.routes import (
    DRAWN,
    GENERATED,
    SHORTEST_DRAWN,
    TOWNS,
    RouteTask,
    generated_routes,
    planned_routes,
    read_routes,
    write_routes,
    written_routes,
)
from automoe.engine.manifest import origin
from automoe.errors import CheckpointError, ConfigError
from automoe.files import check_writable, write_text
from automoe.progress import progress_bar
from automoe.world.renderer import check_rendering

SUMMARY = "summary.json"
FOLDERS = ("drives", "videos")
"""Under what is left by driving: drivers have folders beside these."""

EMBEDDED, CARLA = "embedded", "carla"
"""Where it is driven."""


def drive_command(
    checkpoint: Path | None,
    out: Path,
    *,
    routes: str = GENERATED,
    number: int | None = None,
    length: float = 300.0,
    seeds: int = 3,
    router: str | None = None,
    beside: Sequence[str] = (TEACHER, CONSTANT),
    videos: int = 1,
    workers: int | None = None,
    simulator: str = EMBEDDED,
    host: str = "localhost",
    port: int = 2000,
) -> dict[str, Any]:
    """Drive, and leave everything under `out`. Returns the content of summary.json.

    routes, number, length: as of `tasks_of`, or of `server_tasks` for the simulator `CARLA`; seeds: drives of each
    route. Raises ConfigError, and what `drive_all` raises.
    """
    if seeds < 1:
        raise ConfigError("--seeds says how often each route is driven; give one at least.")
    if simulator == CARLA:
        if TEACHER in beside:
            print(f"the {TEACHER} drives in the embedded world alone; it is left out")
        drivers = drivers_of(checkpoint, router, [one for one in beside if one != TEACHER])
        tasks = server_tasks(routes, number, host, port)
    else:
        drivers, tasks = drivers_of(checkpoint, router, beside), tasks_of(routes, number, length)
        if any(driver.checkpoint for driver in drivers):
            check_rendering()
    check_writable(out)
    numbers = list(range(seeds))
    with progress_bar("drive") as progress:
        results = drive_all(drivers, tasks, numbers, out, workers=workers, progress=progress)
    summaries: dict[str, dict[str, Any]] = {}
    first = [result for result in results if result.driver == drivers[0].name]
    for driver in drivers:
        own = [result for result in results if result.driver == driver.name]
        summaries[driver.name] = {**driver.told(), **summarise_driver(own, len(tasks), numbers)}
        if driver is not drivers[0]:
            summaries[driver.name]["behind_first"] = behind(first, own)
        write_results(own, len(tasks) * seeds, out / driver.name / "results.json")
    said = {
        "routes": {
            "from": routes,
            "count": len(tasks),
            "length": sum(task.length for task in tasks) / len(tasks),
            "towns": sorted({task.town for task in tasks}),
        },
        "seeds": numbers,
        "leaderboard": "2.0",
        "simulator": simulator,
        **origin(),
        "drivers": summaries,
    }
    write_text(out / SUMMARY, json.dumps(said, indent=1) + "\n")
    print(table(summaries))
    for name, one in summaries.items():
        if "checkpoint" in one and one["frame_ms"] is not None:
            speed = 1000 * BUDGET / (one["frame_ms"] + one["world_ms"])
            print(
                f"{name}: {one['frame_ms']:.0f} ms of the {1000 * BUDGET:.0f} ms that it has for a frame "
                f"({one['over_budget']} of {one['frames']} frames took longer); with {one['world_ms']:.0f} ms of the "
                f"simulator, {speed:.1f} times real time on each core"
            )
        for why, count in one["broken_off"].items():
            print(f"{name}: {why} in {count} of {len(tasks) * seeds} drives, which count as nothing; see above")
        for why, count in one["trouble"].items():
            print(f"{name}: {why} in {count} of {one['frames']} frames; the car was brought to a stop")
    if checkpoint is not None and videos and simulator == EMBEDDED:
        from automoe.drive.video import film

        records = [one.scored for one in results if one.driver == drivers[0].name and one.seed == numbers[0]]
        for path in film(drivers[0], tasks[:videos], numbers[0], out / "videos", records):
            print(f"Video: {path}")
    print(f"Results: {out / SUMMARY}")
    return said


def tasks_of(routes: str = GENERATED, number: int | None = None, length: float = 300.0) -> list[RouteTask]:
    """The routes of a command line: drawn ones of a length (metres), or those of a file.

    number: how many are drawn, `DRAWN` if not given; with a file, how many of its first ones are taken, all if not
    given.

    Says in a line what of a file is not followed. Raises ConfigError where nothing can be driven, and DataError as
    `read_routes` and `planned_routes` do.
    """
    if number is not None and number < 1:
        raise ConfigError("--number says how many routes there are; give one at least.")
    if routes == GENERATED:
        _long_enough(length)
        return generated_routes(DRAWN if number is None else number, length)
    path = Path(routes)
    if not path.is_file():
        raise ConfigError(
            f"--routes takes {GENERATED} or a file of routes, and there is no file {routes}; how many routes are drawn "
            "is said by --number."
        )
    found = read_routes(path)[:number]
    tasks = planned_routes(found, path)
    scenarios, weathers = sum(len(route.scenarios) for route in found), sum(bool(route.weather) for route in found)
    if scenarios or weathers:
        print(
            f"{path}: {scenarios} scenarios and the weather of {weathers} routes are not followed; the embedded world "
            "has its own traffic and weather, drawn with the seed"
        )
    return tasks


def server_tasks(routes: str, number: int | None, host: str, port: int) -> list[RouteTask]:
    """The routes of a file for a CARLA server, all or its first `number`. Says in a line what of it is not followed.
    Raises ConfigError where no file is given, CollectError where there is no client or no server, and DataError as
    `read_routes` does."""
    from automoe.drive.carla_simulator import carla_tasks
    from automoe.drive.evaluation import server_at

    path = Path(routes)
    if not path.is_file():
        raise ConfigError(
            f"--simulator {CARLA} drives routes of a file, and there is no file {routes}; give one of the CARLA "
            "leaderboard's as --routes."
        )
    if number is not None and number < 1:
        raise ConfigError("--number says how many routes there are; give one at least.")
    found = read_routes(path)[:number]
    server_at(host, port)
    scenarios = sum(len(route.scenarios) for route in found)
    if scenarios:
        print(f"{path}: {scenarios} scenarios are not played; traffic is the traffic manager's, drawn with the seed")
    return [*carla_tasks(found, host, port)]


def write_generated(out: Path, number: int = DRAWN, length: float = 300.0, towns: Sequence[str] | None = None) -> None:
    """What `automoe routes generated` does: the routes that `tasks_of` draws, in other towns if some are named, into a
    file. Raises ConfigError for too few or too short ones or an unknown town, WorldError where a town has none of that
    length, and WriteError."""
    if number < 1:
        raise ConfigError("--number says how many routes there are; give one at least.")
    _long_enough(length)
    unknown = [name for name in towns or () if name not in TOWNS]
    if unknown:
        raise ConfigError(f"--towns: there is no town {unknown[0]!r}; there are {', '.join(TOWNS)}.")
    tasks = generated_routes(number, length, towns) if towns else generated_routes(number, length)
    write_routes(out, written_routes(tasks))
    print(f"{len(tasks)} routes in {len({task.town for task in tasks})} towns: {out}")


def _long_enough(length: float) -> None:
    if not length >= SHORTEST_DRAWN:
        raise ConfigError(f"--length {length:g} is too short; a drawn route has {SHORTEST_DRAWN:g} m or more.")


def drivers_of(checkpoint: Path | None, router: str | None, beside: Sequence[str]) -> list[DriverSpec]:
    """The drivers of a command line, the checkpoint's first. Raises ConfigError and CheckpointError."""
    found = []
    if checkpoint is not None:
        found.append(DriverSpec("policy", str(checkpoint), router))
    elif router is not None:
        raise ConfigError(
            f"--router {router} is of --checkpoint, and there is none; --beside takes NAME=best.pth@ROUTER."
        )
    for said in beside:
        name, named, path = said.partition("=")
        if named:
            # A path may have an @ of its own.
            file, at, routed = (path, "", "") if Path(path).is_file() else path.rpartition("@")
            found.append(DriverSpec(name, file if at else path, routed or None))
        elif said in (TEACHER, CONSTANT):
            found.append(DriverSpec(said))
        else:
            raise ConfigError(f"--beside takes {TEACHER}, {CONSTANT} or NAME=best.pth[@ROUTER], not {said!r}.")
    names = [driver.name for driver in found]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"drivers need different names, and one at least; there are {', '.join(names) or 'none'}.")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in FOLDERS:
            raise ConfigError(
                f"--beside: a driver can't be named {name!r}, since a folder of --out is; give it letters, digits, "
                f"_, . and -, and not {' or '.join(FOLDERS)}."
            )
    _check(found)
    return found


def _check(drivers: Sequence[DriverSpec]) -> None:
    """Say now what is wrong with a checkpoint or a router, and not when the drivers before have driven."""
    from automoe.moe.checkpoint import load_driving_model
    from automoe.moe.routers import named

    for path in dict.fromkeys(driver.checkpoint for driver in drivers if driver.checkpoint):
        if not Path(path).is_file():
            raise CheckpointError(f"there is no checkpoint {path}; train it first, or check the path.")
        names = load_driving_model(path).model.names
        for driver in drivers:
            if driver.checkpoint == path and driver.router is not None:
                named(driver.router, names)
