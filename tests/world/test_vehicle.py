"""The driven car: pedals, steering, and that they mean what CARLA's mean."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automoe.errors import WorldError
from automoe.world.vehicle import BRAKE, MOST_WHEEL, WHEELBASE, CarState, Control, control_for, step

STEP = 0.05


def drive(car: CarState, control: Control, seconds: float) -> CarState:
    for _ in range(round(seconds / STEP)):
        car = step(car, control, STEP)
    return car


def test_steering_right_turns_right() -> None:
    car = drive(CarState(0.0, 0.0, 0.0, 5.0), Control(throttle=0.2, steer=0.3), 2.0)
    assert car.yaw < -0.3  # to the right is negative
    assert car.y < -1.0
    assert car.yaw_rate < 0.0
    left = drive(CarState(0.0, 0.0, 0.0, 5.0), Control(throttle=0.2, steer=-0.3), 2.0)
    assert left.y == pytest.approx(-car.y)


def test_a_full_circle_has_the_radius_of_the_wheels_angle() -> None:
    control = Control(throttle=0.15, steer=-0.5)
    car = drive(CarState(0.0, 0.0, 0.0, 4.0), control, 2.0)  # until the wheels stand
    places = []
    for _ in range(2000):
        car = step(car, control, STEP)
        places.append((car.x, car.y))
    wide = max(x for x, _ in places) - min(x for x, _ in places)
    assert wide == pytest.approx(2 * WHEELBASE / math.tan(0.5 * MOST_WHEEL), rel=0.01)


def test_pedals_take_their_time_and_brakes_stop_for_good() -> None:
    car = CarState(0.0, 0.0, 0.0)
    first = step(car, Control(throttle=1.0), STEP)
    assert 0.0 < first.acceleration < 2.0
    fast = drive(car, Control(throttle=1.0), 5.0)
    assert 10.0 < fast.speed < 20.0
    stopped = drive(fast, Control(brake=1.0), fast.speed / BRAKE + 0.6)
    assert stopped.speed == 0.0
    still = drive(stopped, Control(brake=1.0), 1.0)
    assert (still.x, still.y) == (stopped.x, stopped.y)
    assert drive(stopped, Control(), 5.0).speed == 0.0  # nothing pushes it


@given(st.floats(0.0, 20.0), st.floats(-5.0, 3.0), st.floats(-0.15, 0.15))
def test_what_is_asked_for_is_what_comes(speed: float, acceleration: float, curvature: float) -> None:
    control = control_for(speed, acceleration, curvature)
    assert not (control.throttle > 0.0 and control.brake > 0.0)
    wheel = math.atan(WHEELBASE * curvature)
    car = replace(CarState(0.0, 0.0, 0.0, speed, wheel), acceleration=acceleration)
    after = step(car, control, STEP)
    push = 4.0 * (1 - speed / 45.0)
    if after.speed > 0.0 and speed > 0.5 and acceleration < 0.9 * push - 0.4:
        assert after.acceleration == pytest.approx(acceleration, abs=0.05)
    assert after.wheel == pytest.approx(wheel, abs=1e-9)


@pytest.mark.parametrize(
    ("field", "value"), [("throttle", 1.1), ("throttle", -0.1), ("steer", -1.2), ("brake", math.nan)]
)
def test_controls_outside_their_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(WorldError, match=f"{field} must lie between"):
        Control(**{field: value})
