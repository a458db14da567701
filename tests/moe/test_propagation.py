"""Who looked a moment ago is heard on, where the car has moved since."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving_models import model

from automoe.data.sequences import Observation
from automoe.errors import ConfigError
from automoe.moe.planner import Plan
from automoe.moe.propagation import Propagation, Sighting
from automoe.moe.routers import fixed, learned, named
from automoe.moe.tokens import Tokens

ALL = ("detection", "drivable", "segmentation", "nuscenes_2d")


def moment(time: float, speed: float = 0.0, seed: int = 0, yaw_rate: float = 0.0) -> Observation:
    image = np.random.default_rng(seed).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    motion, route = np.array([[speed, yaw_rate]], np.float32), np.array([[15.0, 1.0], [40.0, 4.0]], np.float32)
    return Observation(time, image, motion, 3, route, np.zeros(2, np.float32))


def planned(one: Propagation, seen: Observation) -> tuple[Plan, list[str], dict[str, int]]:
    """The plan, who was heard, and how many pictures each has looked at so far."""
    with torch.no_grad():
        plan, routing = one.plan(seen)
    assert routing is not None
    heard = [name for name, loud in zip(one.model.names, routing.chosen[0].tolist()) if loud]
    return plan, heard, dict(one.source.calls)


def test_two_of_four_look_and_four_are_heard() -> None:
    driver = model(*ALL, top_k=2, revisit=50.0).eval()
    one = Propagation(driver)
    _, first, calls = planned(one, moment(0.0))
    assert first == sorted(one.ran, key=ALL.index)
    assert sum(calls.values()) == len(one.ran) == 2
    plan, second, calls = planned(one, moment(0.1))
    # Who has waited looks now, and of a car that stands everything is as it was a moment ago.
    assert set(second) == set(ALL)
    assert not set(first) & set(one.ran)
    assert set(calls.values()) == {1}
    assert sorted([*first, *one.ran]) == sorted(ALL)
    at_once, heard, _ = planned(Propagation(driver, router=learned(4)), moment(0.1))
    assert set(heard) == set(ALL)
    for held, wanted in zip(plan, at_once):
        torch.testing.assert_close(held, wanted, rtol=1e-4, atol=1e-4)


def test_who_has_not_looked_for_long_is_heard_no_more() -> None:
    driver = model(*ALL, top_k=1, revisit=0.0, hold_seconds=0.25).eval()
    one = Propagation(driver)
    one.router = fixed(["drivable"], ALL)
    planned(one, moment(0.0))
    one.router = fixed(["segmentation"], ALL)
    heard = [planned(one, moment(0.1 * frame))[1] for frame in range(1, 5)]
    assert heard == [["drivable", "segmentation"]] * 2 + [["segmentation"]] * 2


def test_without_holding_only_those_who_look_are_heard() -> None:
    driver = model(*ALL, top_k=2, hold_seconds=0.0, revisit=50.0).eval()
    one, looked = Propagation(driver), []
    for frame in range(4):
        _, heard, _ = planned(one, moment(0.1 * frame))
        assert set(heard) == set(one.ran)
        assert len(heard) == 2
        looked.append(one.ran)
    # Nor is anybody missed who has not looked: the gate's best two look again and again.
    assert looked[1:] == looked[:1] * 3
    assert Propagation(driver, hold_seconds=0.3).hold_seconds == 0.3


def test_who_fills_the_picture_is_in_the_way_as_the_classes_of_its_pieces_tell() -> None:
    driver = model(*ALL, top_k=2).eval()
    one, straight = Propagation(driver), torch.stack([torch.arange(1.0, 21.0), torch.zeros(20)], dim=1)
    expert = driver.experts["segmentation"]
    classes = list(expert.model.classes)  # type: ignore[union-attr]
    shares = torch.zeros(1, 3, len(classes), 4)
    for piece, told in enumerate([{"car": 0.3, "bus": 0.4, "road": 0.3}, {"road": 0.7, "car": 0.3}, {"building": 1.0}]):
        for name, share in told.items():
            shares[0, piece, classes.index(name)] = share
    spots = torch.tensor([[[0.5, 0.7], [0.5, 0.8], [0.5, 0.9]]])
    one.heard = {"segmentation": Tokens(shares.flatten(2), spots)}
    things = one.in_the_way(straight)
    assert things is not None
    assert len(things) == 1
    assert abs(float(things[0, 1])) < 0.01


def test_what_is_in_the_way_is_what_the_experts_are_sure_of_that_tell_boxes() -> None:
    driver = model(*ALL, top_k=2).eval()
    one, straight = Propagation(driver), torch.stack([torch.arange(1.0, 21.0), torch.zeros(20)], dim=1)
    assert one.in_the_way(straight) is None
    planned(one, moment(0.0))
    classes = driver.experts["detection"].model.classes  # type: ignore[union-attr]
    said = torch.zeros(1, 4, driver.experts["detection"].dim())  # type: ignore[operator]
    for row, (name, share) in enumerate([("car", 0.9), ("traffic light", 0.9), ("car", 0.1), ("pedestrian", 0.6)]):
        said[0, row, classes.index(name)] = share
    spots = torch.tensor([[[0.5, 0.7], [0.5, 0.8], [0.5, 0.9], [0.1, 0.7]]])
    one.heard = {"drivable": Tokens(torch.ones(1, 6, 3), torch.full((1, 6, 2), 0.5))}
    assert one.in_the_way(straight) is None
    one.heard["detection"] = Tokens(said, spots)
    things = one.in_the_way(straight)
    assert things is not None
    (ahead, beside) = things.tolist()
    assert ahead[0] > 2.0
    assert abs(ahead[1]) < 0.01
    assert beside[1] > 1.0
    one.forget()
    assert one.in_the_way(straight) is None


def test_a_larger_revisit_spreads_the_looks() -> None:
    looks = []
    for revisit in (0.0, 50.0):
        one = Propagation(model(*ALL, top_k=1, revisit=revisit).eval())
        for frame in range(8):
            calls = planned(one, moment(0.1 * frame))[2]
        looks.append(sorted(calls.values()))
    assert looks == [[0, 0, 0, 8], [2, 2, 2, 2]]


def test_what_was_seen_is_carried_by_the_car_s_motion() -> None:
    driver = model(*ALL).eval()
    one = Propagation(driver, router=fixed(["drivable"], ALL))
    planned(one, moment(0.0, 8.0))
    before = one._sightings["drivable"].tokens
    one.router = fixed(["detection"], ALL)
    planned(one, moment(0.1, 8.0))
    ground = driver.adapters["drivable"].ground
    held = one("drivable", [])
    assert torch.equal(held.features, before.features)
    places, moved = ground(before.positions), ground(held.positions)
    near = (places.norm(dim=-1) < 40.0)[0]
    assert near.any()
    wanted = torch.tensor([-0.8, 0.0]).expand_as(places[0, near])
    torch.testing.assert_close((moved - places)[0, near], wanted, atol=1e-3, rtol=0)


def test_a_car_that_turns_goes_round_a_circle() -> None:
    sighting = Sighting(tokens=None)  # type: ignore[arg-type]
    for _ in range(100):
        sighting.move(0.01, 5.0, 0.5)
    radius = 5.0 / 0.5
    expected = (radius * np.sin(0.5), radius * (1 - np.cos(0.5)), 0.5)
    assert sighting.motion == pytest.approx(expected, abs=1e-3)
    assert sighting.age == pytest.approx(1.0)


@pytest.mark.parametrize(
    "later", [moment(5.0), moment(0.1, float("nan")), moment(-1.0)], ids=["a gap", "no speed", "time runs back"]
)
def test_where_time_or_motion_is_not_known_what_was_seen_is_forgotten(later: Observation) -> None:
    one = Propagation(model(*ALL, top_k=1).eval(), router=fixed(["drivable"], ALL))
    planned(one, moment(0.0))
    one.router = fixed(["segmentation"], ALL)
    assert planned(one, later)[1] == ["segmentation"]


def test_how_long_is_said_behind_a_router() -> None:
    assert named("gate:2,hold=0", ALL)[1] == 0.0
    assert named("random:2,hold=0.5", ALL)[1] == 0.5
    assert named("detection+drivable", ALL)[1] is None
    for wrong in ("gate,hold=", "gate,hold=-1", "gate,hold=nan", "gate,hold=long"):
        with pytest.raises(ConfigError, match="must be a number of seconds"):
            named(wrong, ALL)
