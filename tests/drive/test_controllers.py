"""Controllers alone, with perfect input: right is right, stop is stop, and a car follows its path."""

from __future__ import annotations

import math

import numpy as np
import pytest

from automoe.drive.controllers import CARLA_CAR, EMBEDDED_CAR, Controller
from automoe.world import vehicle
from automoe.world.vehicle import CarState

STRAIGHT = np.stack([np.arange(1.0, 21.0), np.zeros(20)], axis=1)


def arc(radius: float) -> np.ndarray:
    """Twenty metres of a circle that starts straight ahead, to the left for a positive radius."""
    angle = np.arange(1.0, 21.0) / radius
    return np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle))], axis=1)


@pytest.mark.parametrize("car", [EMBEDDED_CAR, CARLA_CAR])
@pytest.mark.parametrize("radius", [8.0, 20.0, 60.0])
def test_a_bend_to_the_right_steers_right(car, radius: float) -> None:
    controller = Controller(car)
    right, left = controller.steer(arc(-radius), 5.0), controller.steer(arc(radius), 5.0)
    assert right > 0.0 > left  # CARLA's steering is positive to the right
    assert right == pytest.approx(-left)
    assert controller.steer(STRAIGHT, 5.0) == pytest.approx(0.0, abs=1e-9)
    # Pure pursuit on a circle steers that circle. The middle of a car that is on it goes somewhat sideways.
    slip = math.asin(car.rear_axle / radius)
    turn = np.array([[math.cos(slip), -math.sin(slip)], [math.sin(slip), math.cos(slip)]])
    wheel = math.atan(car.wheelbase / math.sqrt(radius**2 - car.rear_axle**2))
    assert -controller.steer(arc(radius) @ turn.T, 5.0) * car.most_wheel == pytest.approx(wheel, rel=0.1)


def test_a_path_beside_the_car_brings_it_back() -> None:
    controller = Controller()
    assert controller.steer(STRAIGHT + np.array([0.0, 1.0]), 5.0) < 0.0  # the path is to the left
    assert controller.steer(STRAIGHT - np.array([0.0, 1.0]), 5.0) > 0.0


def test_pedals_pull_towards_the_target() -> None:
    controller = Controller()
    assert controller.pedals(8.0, 2.0)[0] > 0.5
    assert controller.pedals(8.0, 2.0)[1] == 0.0
    throttle, brake = controller.pedals(2.0, 8.0)
    assert throttle == 0.0
    assert brake > 0.5
    assert controller.pedals(0.0, 0.0) == (0.0, 0.5)  # who stands is held
    assert controller.pedals(0.2, 0.1) == (0.0, 0.5)  # and doesn't creep
    assert controller.pedals(3.0, 0.0)[0] > 0.0


def follow(path_of, speed: float, seconds: float, controller: Controller, start: CarState) -> list[CarState]:
    """The world's car under a controller that sees `path_of(car)` and wants a speed."""
    cars = [start]
    for step in range(round(seconds / 0.05)):
        if step % 2 == 0:
            car = cars[-1]
            control = controller.control(path_of(car), speed, car.speed)
        cars.append(vehicle.step(cars[-1], control, 0.05))
    return cars


def in_frame_of(car: CarState, points: np.ndarray) -> np.ndarray:
    cos, sin = math.cos(car.yaw), math.sin(car.yaw)
    return (points - np.array(car.middle)) @ np.array([[cos, -sin], [sin, cos]])


def test_the_worlds_car_comes_back_to_a_line_and_holds_a_speed() -> None:
    def path_of(car: CarState) -> np.ndarray:
        x = car.middle[0] + np.arange(1.0, 21.0)
        return in_frame_of(car, np.stack([x, np.zeros(20)], axis=1))

    cars = follow(path_of, 7.0, 12.0, Controller(), CarState(0.0, 1.2, 0.1, 5.0))
    assert abs(cars[-1].middle[1]) < 0.05
    assert abs(cars[-1].yaw) < 0.01
    assert cars[-1].speed == pytest.approx(7.0, abs=0.3)
    assert min(car.middle[1] for car in cars) > -0.3  # without swinging over


def test_the_worlds_car_follows_a_circle() -> None:
    radius = 10.0

    def path_of(car: CarState) -> np.ndarray:
        x, y = car.middle
        angle = math.atan2(y, x) + np.arange(1.0, 21.0) / radius
        return in_frame_of(car, radius * np.stack([np.cos(angle), np.sin(angle)], axis=1))

    start = CarState(radius, -1.4, math.pi / 2, 5.0)
    away = [math.hypot(*car.middle) - radius for car in follow(path_of, 5.0, 12.0, Controller(), start)]
    assert max(abs(one) for one in away) < 0.5


def test_a_controlled_stop_is_gentle_and_ends_at_rest() -> None:
    controller, cars = Controller(), [CarState(0.0, 0.0, 0.0, 10.0)]
    for _ in range(120):
        cars.append(vehicle.step(cars[-1], controller.stop(STRAIGHT, cars[-1].speed), 0.05))
    assert cars[-1].speed == 0.0
    pushed = np.diff([car.speed for car in cars]) / 0.05
    assert pushed.min() > -4.5
    assert controller.stop(None, 5.0).steer == 0.0
