"""From a plan to pedals and steering: lateral on the path, longitudinal on the target speed.

Frames: the ego's, on the ground under the car's middle, x forward, y left. Steering is CARLA's, positive to the right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from automoe.world import vehicle
from automoe.world.vehicle import Control


@dataclass(frozen=True)
class Car:
    """What a controller has to know of the car. wheelbase, and rear_axle, how far behind the middle it is: metres.
    most_wheel: radians of the front wheels with the steering at 1. throttle, brake: m/s^2 with a pedal at 1;
    resistance: m/s^2 that a pedal must make up for to keep a speed."""

    wheelbase: float
    rear_axle: float
    most_wheel: float
    throttle: float
    brake: float
    resistance: float


EMBEDDED_CAR = Car(
    vehicle.WHEELBASE, vehicle.AHEAD, vehicle.MOST_WHEEL, vehicle.THROTTLE, vehicle.BRAKE, vehicle.ROLLING
)
CARLA_CAR = Car(2.87, 1.43, math.radians(70.0), 4.0, 8.0, 0.3)
"""A Lincoln MKZ 2017, the leaderboard's car, by CARLA's physics control; the pedals are rough."""


@dataclass(frozen=True)
class ControllerConfig:
    """aim_seconds, aim_least, aim_most: how far ahead on the path the wheels aim, a time at the present speed between
    two distances (metres). pull, brake_pull: share of the missing, and of the excess speed, that is asked for in a
    second: who lags behind a falling target stops too late. hold_below: a target speed,
    m/s, below which a car that stands is held. comfortable: m/s^2 with which a controlled stop brakes."""

    aim_seconds: float = 0.6
    aim_least: float = 4.0
    aim_most: float = 9.0
    pull: float = 1.3
    brake_pull: float = 3.0
    hold_below: float = 0.4
    comfortable: float = 3.0


class Controller:
    """Pure pursuit (Coulter, 1992) round the rear axle, and a pull towards the target speed. It has no memory."""

    def __init__(self, car: Car = EMBEDDED_CAR, config: ControllerConfig = ControllerConfig()) -> None:
        self.car, self.config = car, config

    def control(self, path: np.ndarray, target_speed: float, speed: float) -> Control:
        """path: float [M, 2], metres, from near the car on; target_speed and speed: m/s."""
        throttle, brake = self.pedals(target_speed, speed)
        return Control(throttle, self.steer(path, speed), brake)

    def stop(self, path: np.ndarray | None, speed: float) -> Control:
        """A controlled stop, along a path while there is one; a speed that is not known is no reason to roll on."""
        steer = 0.0 if path is None else self.steer(path, speed if math.isfinite(speed) else 0.0)
        brake = 1.0 if speed < 0.1 else self.config.comfortable / self.car.brake
        return Control(0.0, steer, min(brake, 1.0))

    def steer(self, path: np.ndarray, speed: float) -> float:
        """-1 (left) to 1 (right)."""
        config, axle = self.config, np.array([-self.car.rear_axle, 0.0])
        reach = min(max(config.aim_seconds * speed, config.aim_least), config.aim_most)
        gap = _ahead(path, axle, reach + self.car.rear_axle) - axle
        curvature = 2.0 * float(gap[1]) / max(float(gap @ gap), 1.0)
        wheel = math.atan(self.car.wheelbase * curvature)
        return max(-1.0, min(1.0, -wheel / self.car.most_wheel))

    def pedals(self, target_speed: float, speed: float) -> tuple[float, float]:
        """Throttle and brake, 0 to 1."""
        if speed < 0.3 and target_speed < self.config.hold_below:
            return 0.0, 0.5
        missing = target_speed - speed
        force = (self.config.pull if missing > 0.0 else self.config.brake_pull) * missing + self.car.resistance
        if force >= 0.0:
            return min(force / self.car.throttle, 1.0), 0.0
        return 0.0, min(-force / self.car.brake, 1.0)


def _ahead(path: np.ndarray, start: np.ndarray, distance: float) -> np.ndarray:
    """The first point of the way from `start` along a path [M, 2] that is so far from the start as the crow flies; its
    last point where it is shorter, farther on in its last direction."""
    line = np.concatenate([[[0.0, 0.0]], path])
    away = np.hypot(*(line - start).T)
    beyond = np.flatnonzero(away >= distance)
    if not len(beyond):
        direction = line[-1] - line[-2]
        length = max(float(np.hypot(*direction)), 1e-6)
        return line[-1] + direction / length * (distance - away[-1])
    index = int(beyond[0])
    if index == 0:
        return line[0]
    share = (distance - away[index - 1]) / (away[index] - away[index - 1])
    return line[index - 1] + share * (line[index] - line[index - 1])
