"""The teacher: a driver who knows the whole scene and what everybody's lights and lines are.

It minds what all traffic minds (`Traffic.advice`), with its own car, and steers for a point ahead on the lanes' centres
(pure pursuit; Coulter, 1992). With lapses it shows what a good driver never gets into, and how he gets out of it.
"""

from __future__ import annotations

import math

import numpy as np

from automoe.world import polyline, vehicle
from automoe.world.drive import STEP, Drive
from automoe.world.vehicle import Control

LATE = -4.5
"""m/s^2 that the teacher would brake with, at which a lapse of going on ends: he still stops in time."""

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


class Lapses:
    """A teacher who at times doesn't drive as he should: he brakes for nothing and stands a while, or goes on as if
    nothing were ahead. What a learner never sees is how to set off where nothing holds him, or to brake late, since a
    good driver never has to; so the teaching is disturbed (as in DART; Laskey et al., 2017) and he is watched making up
    for it. He steers well all the time.

    every: seconds between two lapses, on average. lapsing: whether the last control was a lapse's.
    """

    def __init__(self, pilot: Autopilot, rng: np.random.Generator, every: float) -> None:
        self.pilot, self.rng, self.every = pilot, rng, every
        self.lapsing = False
        self._push = 0.0
        self._until = float(rng.uniform(0.2, 1.2)) * every
        """Of the clock below: when the lapse ends, or the next one begins."""
        self._clock = 0.0

    def control(self, drive: Drive) -> Control:
        """What to do now; to be asked once in a step of the drive."""
        speed, advice = drive.car.speed, drive.traffic.advice()
        self._clock += STEP
        over = self._clock >= self._until
        if self.lapsing and (over or drive.impact > 0.0 or (self._push >= 0.0 and advice < LATE)):
            self.lapsing = False
            self._until = self._clock + float(self.rng.uniform(0.5, 1.5)) * self.every
        elif not self.lapsing and over:
            self._begin(speed, advice)
        control = self.pilot.follow(drive, advice)
        if not self.lapsing:
            return control
        pedals = vehicle.control_for(speed, self._push, 0.0)
        return Control(pedals.throttle, control.steer, pedals.brake)

    def _begin(self, speed: float, advice: float) -> None:
        self.lapsing = True
        goes_on = speed > 2.0 and advice > LATE / 2 and self.rng.random() < 0.5
        self._push = float(self.rng.uniform(0.0, 2.0) if goes_on else self.rng.uniform(-5.0, -1.5))
        self._until = self._clock + float(self.rng.uniform(0.5, 2.5) if goes_on else self.rng.uniform(1.0, 5.0))
