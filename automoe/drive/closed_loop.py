"""A driver, a drive and a referee: one route from its start to its end."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Protocol

from automoe.drive.leaderboard import AGENT_CRASHED, SIMULATION_CRASHED, RouteRecord
from automoe.drive.referee import Referee
from automoe.world.drive import Drive
from automoe.world.vehicle import Control


class Driver(Protocol):
    """Whoever says what to do at a moment of a drive and may look at all of it."""

    def control(self, drive: Drive) -> Control: ...


def drive_route(drive: Drive, driver: Driver, route_id: str) -> RouteRecord:
    """Drive until the referee ends it. A driver that raises ends it, too, and so does the world: the record says so and
    counts as nothing, the traceback goes to the standard error stream, and other routes are driven as before."""
    referee, began = Referee(drive, route_id), time.perf_counter()
    failure: str | None = None
    reason: str | None = None
    try:
        while referee.ended is None:
            failure = AGENT_CRASHED
            control = driver.control(drive)
            failure = SIMULATION_CRASHED
            drive.step(control)
            referee.observe()
            failure = None
    except Exception as error:  # noqa: BLE001 - whatever it is: one of many routes is lost, not all
        reason = f"{type(error).__name__}: {error}"
        print(f"{route_id}: {failure} after {drive.scene.time - referee.began:.2f} s", file=sys.stderr)
        traceback.print_exc()
    return referee.record(time.perf_counter() - began, failure, reason)
