"""The teacher: a driver who knows the whole scene and what everybody's lights and lines are.

It minds what all traffic minds (`Traffic.advice`), with its own car, and steers for a point ahead on the lanes' centres
(pure pursuit; Coulter, 1992).
"""

from __future__ import annotations

import math

import numpy as np

from automoe.world import polyline, vehicle
from automoe.world.drive import Drive
from automoe.world.vehicle import Control

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
