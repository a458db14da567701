"""A driver, a drive and a referee: one route from its start to its end."""

from __future__ import annotations

import time
from typing import Protocol

from automoe.drive.leaderboard import RouteRecord
from automoe.drive.referee import Referee
from automoe.world.drive import Drive
from automoe.world.vehicle import Control


class Driver(Protocol):
    """Whoever says what to do at a moment of a drive and may look at all of it."""

    def control(self, drive: Drive) -> Control: ...


def drive_route(drive: Drive, driver: Driver, route_id: str) -> RouteRecord:
    """Drive until the referee ends it."""
    referee, began = Referee(drive, route_id), time.perf_counter()
    while referee.ended is None:
        drive.step(driver.control(drive))
        referee.observe()
    return referee.record(time.perf_counter() - began)
