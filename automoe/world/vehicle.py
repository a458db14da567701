"""The car that somebody drives: how it answers to steering wheel and pedals.

A kinematic bicycle round the rear axle (Rajamani, Vehicle Dynamics and Control, 2.2) whose front wheels and pedals take
their time. Flat ground, dry road: what a driver feels of a car below 60 km/h, and nothing of its tyres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from automoe.errors import WorldError

LENGTH, WIDTH, HEIGHT = 4.6, 1.9, 1.55
"""Of the ego's box, metres."""

AHEAD = 1.4
"""Metres from the rear axle forward to the middle of the box."""

WHEELBASE = 2.8
MOST_WHEEL = math.radians(40.0)
"""Of the front wheels to each side, with the steering at -1 or 1."""

WHEEL_RATE = math.radians(70.0)
"""Radians a second that the front wheels turn at most."""

PEDAL_SECONDS = 0.15
"""Until an answer to a pedal has come by two thirds."""

THROTTLE, BRAKE = 4.0, 8.0
"""Metres a second squared with a pedal at 1: the throttle's at standstill, where it is most."""

TOP_SPEED = 45.0
ROLLING, DRAG = 0.1, 0.0006
"""What slows a car without pedals: metres a second squared, and that by the square of the speed."""


@dataclass(frozen=True)
class Control:
    """What a driver does, as CARLA's VehicleControl: throttle and brake 0 to 1, steer -1 (left) to 1 (right).

    Raises WorldError for numbers outside, or not finite.
    """

    throttle: float = 0.0
    steer: float = 0.0
    brake: float = 0.0

    def __post_init__(self) -> None:
        for name, low in (("throttle", 0.0), ("steer", -1.0), ("brake", 0.0)):
            value = getattr(self, name)
            if not low <= value <= 1.0:
                raise WorldError(f"{name} must lie between {low:g} and 1, not {value}")


@dataclass(frozen=True)
class CarState:
    """Where the car is and how it moves.

    x, y: world, of the point on the ground under the rear axle, metres; yaw: radians to the left. speed: forward, m/s.
    wheel: the front wheels' angle, radians to the left. acceleration: along the car, m/s^2.
    """

    x: float
    y: float
    yaw: float
    speed: float = 0.0
    wheel: float = 0.0
    acceleration: float = 0.0

    @property
    def yaw_rate(self) -> float:
        """Radians a second, to the left."""
        return self.speed * math.tan(self.wheel) / WHEELBASE

    @property
    def velocity(self) -> tuple[float, float]:
        """Of the middle of the car's box, world, m/s: in a bend it moves sideways, too."""
        cos, sin, side = math.cos(self.yaw), math.sin(self.yaw), self.yaw_rate * AHEAD
        return self.speed * cos - side * sin, self.speed * sin + side * cos

    @property
    def middle(self) -> tuple[float, float]:
        """The middle of the car's box on the ground, world."""
        return self.x + AHEAD * math.cos(self.yaw), self.y + AHEAD * math.sin(self.yaw)


def step(car: CarState, control: Control, seconds: float) -> CarState:
    """The car after a short while (0.05 s or so) under a control. It never rolls backwards."""
    turn = -control.steer * MOST_WHEEL - car.wheel
    wheel = car.wheel + max(-WHEEL_RATE * seconds, min(WHEEL_RATE * seconds, turn))
    asked = _push(car.speed) * control.throttle - BRAKE * control.brake - _resistance(car.speed)
    acceleration = car.acceleration + (asked - car.acceleration) * (1 - math.exp(-seconds / PEDAL_SECONDS))
    speed = car.speed + acceleration * seconds
    if speed < 0.0 or (speed < 0.05 and asked < 0.0):
        speed, acceleration = 0.0, 0.0
    # An arc of the circle that the rear axle is on.
    way = (car.speed + speed) / 2 * seconds
    turned = way * math.tan((car.wheel + wheel) / 2) / WHEELBASE
    middle = car.yaw + turned / 2
    return CarState(
        car.x + way * math.cos(middle),
        car.y + way * math.sin(middle),
        math.remainder(car.yaw + turned, 2 * math.pi),
        speed,
        wheel,
        acceleration,
    )


def control_for(speed: float, acceleration: float, curvature: float) -> Control:
    """The pedals and the steering that ask for an acceleration (m/s^2) and a path of that curvature (1/m, positive to
    the left), as far as the car has them."""
    steer = -math.atan(WHEELBASE * curvature) / MOST_WHEEL
    force = acceleration + _resistance(speed)
    return Control(
        throttle=min(max(force, 0.0) / max(_push(speed), 0.1), 1.0),
        steer=max(-1.0, min(1.0, steer)),
        brake=min(max(-force, 0.0) / BRAKE, 1.0),
    )


def _push(speed: float) -> float:
    """What a full throttle gives, m/s^2."""
    return THROTTLE * max(1.0 - speed / TOP_SPEED, 0.0)


def _resistance(speed: float) -> float:
    return (ROLLING if speed > 0.0 else 0.0) + DRAG * speed**2
