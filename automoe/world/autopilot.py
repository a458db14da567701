"""The teacher: a driver who knows the whole scene and what everybody's lights and lines are.

It minds what all traffic minds (`Traffic.advice`), with its own car, and steers for a point ahead on the lanes' centres
(pure pursuit; Coulter, 1992).
"""

from __future__ import annotations

import math

import numpy as np

from automoe.world import polyline, vehicle
from automoe.world.drive import STEP, Drive
from automoe.world.vehicle import Control

FREE = 1.5
"""Target speed, m/s, from which on nothing holds a car that stands."""

AIM_SECONDS, AIM_LEAST, AIM_MOST = 0.6, 3.0, 9.0
"""How far ahead it aims: a time at its speed, between two distances (metres)."""


class Autopilot:
    """Drives a `Drive`. It has no memory: the same moment gives the same control."""

    def control(self, drive: Drive) -> Control:
        """What to do now."""
        return self.follow(drive, drive.traffic.advice())

    def follow(self, drive: Drive, acceleration: float) -> Control:
        """What to do now, given the traffic's advice, m/s^2."""
        if drive.car.speed < 0.3 and acceleration < 0.05:
            return Control(brake=0.5, steer=self._steer(drive))
        control = vehicle.control_for(drive.car.speed, acceleration, 0.0)
        return Control(control.throttle, self._steer(drive), control.brake)

    def _steer(self, drive: Drive) -> float:
        car, line = drive.car, drive.route.line
        reach = min(max(AIM_SECONDS * car.speed, AIM_LEAST), AIM_MOST)
        # The rear axle is what follows: it is behind the middle of the car, whose progress the drive knows.
        here = drive.station - vehicle.AHEAD
        target, _ = polyline.sample(line, here + reach, drive.route.along)
        gap = target - np.array([car.x, car.y])
        aside = math.cos(car.yaw) * gap[1] - math.sin(car.yaw) * gap[0]
        curvature = 2.0 * aside / max(float(gap @ gap), 1.0)
        return vehicle.control_for(car.speed, 0.0, curvature).steer


class LateStarts:
    """The teacher, who doesn't notice at once that nothing holds him any more: he stands on for up to `most` seconds,
    drawn each time. A learner sees then what it is to stand before a light that is green, which who always sets off at
    once shows in one moment of a thousand; what he should want there is told beside (`Traffic.target_speed`). To be
    asked once in each step of a drive.
    """

    def __init__(self, pilot: Autopilot, rng: np.random.Generator, most: float) -> None:
        self.pilot, self.rng, self.most = pilot, rng, most
        self._left: float | None = None

    def control(self, drive: Drive) -> Control:
        """What to do now."""
        if drive.car.speed >= 0.3 or drive.traffic.target_speed() < FREE:
            self._left = None
            return self.pilot.control(drive)
        if self._left is None:
            self._left = float(self.rng.uniform(0.0, self.most))
        self._left -= STEP
        return self.pilot.follow(drive, 0.0) if self._left > 0.0 else self.pilot.control(drive)
