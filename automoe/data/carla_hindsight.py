"""Routes for runs that were recorded without one: the way that was driven, matched to the town's map afterwards.

That is hindsight. Who drove it may not have meant to go there, and nobody had told him: what is planned with such a
route is not compared with what is planned with one that was told (`TOLD`). Beyond a run's end its way goes straight on:
where it ended would tell who came to stand there.
"""

from __future__ import annotations

import gzip
import importlib
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automoe.carla import frame
from automoe.carla.route import CarlaRoute, plan_on_map
from automoe.data.carla import Run, Step
from automoe.errors import DataError
from automoe.poses import into_frame
from automoe.taxonomy import CARLA_COMMANDS
from automoe.world import polyline

TOLD, HINDSIGHT, NO_ROUTE = "told", "hindsight", "none"
"""What a moment's route is."""

APART = 15.0
"""Metres of way from one place that is matched to the next: short enough that there is one way between them."""

LEAST = 20.0
"""Metres of the shortest way that is matched: who hardly moved shows no route."""

BEYOND = 120.0
"""Metres of way that are added beyond a run's end: more than two points of the sparse plan lie ahead."""

APART_FROM_TOLD = "errors with routes in hindsight say nothing beside those with routes that were told"


def route_kind(run: Run, step: Step) -> str:
    """What the route of a run's step is: one of TOLD, HINDSIGHT and NO_ROUTE."""
    if not step.has_route:
        return NO_ROUTE
    return HINDSIGHT if run.hindsight else TOLD


class MapError(DataError):
    """A town's map is missing or damaged: nothing that is said of a run."""


class Maps:
    """A folder of OpenDRIVE files, named by their towns: Town01.xodr, or Town01.xodr.gz. Needs CARLA's client, which
    knows their lanes. Raises DataError where there is no such folder, or no client."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder} of maps; name one with OpenDRIVE files (Town01.xodr)")
        try:
            self.carla: Any = importlib.import_module("carla")
        except ImportError as error:
            raise DataError(
                "routes in hindsight need the CARLA client, which knows maps; install it with `pip install "
                "automoe[carla]`"
            ) from error
        self.folder = folder
        self._known: dict[str, Any] = {}

    def of(self, town: str) -> Any:
        """The carla.Map of a town. Raises MapError where there is none, or where it can't be read."""
        if town not in self._known:
            paths = [self.folder / f"{town}{end}" for end in (".xodr", ".xodr.gz")]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                raise MapError(f"{self.folder} has no map of {town}; put {town}.xodr or {town}.xodr.gz there")
            try:
                data = path.read_bytes()
                text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
                self._known[town] = self.carla.Map(town, text)
            except (OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:
                raise MapError(f"{path} can't be read as an OpenDRIVE map: {error}") from error
        return self._known[town]


def in_hindsight(run: Run, maps: Maps) -> Run:
    """The run with the commands and target points of the way that it took. Raises DataError where that can't be matched
    to its town's map, and MapError where there is no such map."""
    town_map = maps.of(run.town)
    track = np.array([step.ego.T_world_ego[:3, 3] for step in run.steps])
    along = polyline.stations(track[:, :2])
    if along[-1] < LEAST:
        raise DataError(f"{run.name} went {along[-1]:.0f} m, which shows no route")
    wanted = np.linspace(0.0, along[-1], max(2, round(along[-1] / APART) + 1))
    rows = np.unique(np.searchsorted(along, wanted).clip(max=len(along) - 1))
    try:
        route = plan_on_map(maps.carla, town_map, np.concatenate([track[rows], _beyond(maps.carla, town_map, track)]))
    except DataError as error:
        raise DataError(f"{run.name} doesn't lie on the map of {run.town}: {error}") from error
    return replace(run, steps=tuple(_told(run, route)), hindsight=True)


def _beyond(carla: Any, town_map: Any, track: np.ndarray) -> np.ndarray:
    """Places [N, 3] straight on along the lanes beyond a track's end; none where the map ends there."""
    onward: list[np.ndarray] = []
    waypoint = town_map.get_waypoint(carla.Location(**frame.say_vector(track[-1])))
    while waypoint is not None and len(onward) * APART < BEYOND:
        yaw = waypoint.transform.rotation.yaw
        options = waypoint.next(APART)
        turns = [abs((one.transform.rotation.yaw - yaw + 180.0) % 360.0 - 180.0) for one in options]
        waypoint = options[int(np.argmin(turns))] if options else None
        if waypoint is not None:
            onward.append(frame.vector(frame.location_of(waypoint.transform.location)))
    return np.array(onward).reshape(-1, 3)


def _told(run: Run, route: CarlaRoute) -> list[Step]:
    steps, station = [], 0.0
    for step in run.steps:
        pose = step.ego.T_world_ego
        station = route.advance(pose[:2, 3], station)
        targets = into_frame(pose, route.next_targets(station))
        steps.append(replace(step, command=CARLA_COMMANDS.index(route.command(station)), targets=targets))
    return steps
