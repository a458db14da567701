"""Films show what is there: left is left, the path lies on the ground, and who is filmed drives as he always does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from driving_models import model

from automoe.data.sequences import Observation
from automoe.drive import video
from automoe.drive.agent import ModelAgent
from automoe.drive.closed_loop import drive_route
from automoe.drive.embedded import EmbeddedSimulator, Teacher, rig_camera
from automoe.drive.evaluation import TEACHER, DriverSpec
from automoe.drive.routes import RouteTask
from automoe.engine import checkpoint
from automoe.errors import WorldError
from automoe.moe.checkpoint import load_driving_model
from automoe.taxonomy import DETECTION_COLORS
from automoe.world.contacts import Obstacles
from automoe.world.drive import Drive
from automoe.world.furnish import stage_town
from automoe.world.rig import carla_cameras
from automoe.world.route import plan_route
from automoe.world.scene import Actor, Conditions, StagedTown
from automoe.world.town import TownStyle, build_town
from automoe.world.vehicle import Control

STYLE = TownStyle(columns=3, rows=2, spacing=80.0, merged_blocks=0, avenues=1.0, curved=0.0, fleet="tests/0")
RIG = {
    "cameras": {
        "front": {
            "size": [300, 400],
            "field_of_view": 90.0,
            "T_ego_mount": [[1, 0, 0, 1.5], [0, 1, 0, 0], [0, 0, 1, 2.4], [0, 0, 0, 1]],
        }
    }
}
TASK = RouteTask(0, "films-01", 30.0)


@pytest.fixture(scope="module")
def stage() -> StagedTown:
    return stage_town(build_town("films-01", STYLE))


@pytest.fixture(scope="module")
def obstacles(stage) -> Obstacles:
    return Obstacles(stage)


@pytest.fixture
def drive(stage, obstacles) -> Drive:
    lane = max(stage.town.driving_lanes(), key=lambda lane: lane.length)
    route = plan_route(stage.town, (lane.id,), 2.0, 18.0)
    return Drive(stage, route, 0, Conditions(), obstacles=obstacles)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    torn = model("detection", "drivable", "segmentation", "nuscenes_2d", top_k=2).eval()
    path = tmp_path_factory.mktemp("driver") / "best.pth"
    payload = {
        "component": "gating_network", "model": torn.state_dict(), "model_config": torn.config.plain(), "rig": RIG,
    }  # fmt: skip
    checkpoint.save(path, payload)
    return load_driving_model(path)


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


# --- geometry ---


@pytest.mark.parametrize("yaw", [0.0, 1.1, -2.5])
def test_the_view_has_the_heading_up_and_left_on_the_left(yaw: float) -> None:
    middle = np.array([120.0, -40.0])
    ahead, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    whole = video.view_of_world(middle, yaw)
    car, front, aside = (
        whole[:, :2] @ point + whole[:, 2] for point in (middle, middle + 10 * ahead, middle + 5 * left)
    )
    np.testing.assert_allclose(front - car, [0.0, -10 * video.VIEW_SCALE], atol=1e-9)
    np.testing.assert_allclose(aside - car, [-5 * video.VIEW_SCALE, 0.0], atol=1e-9)
    assert car[0] == pytest.approx(video.VIEW_SIZE[1] / 2 - 0.5)


def test_a_path_is_projected_onto_the_ground() -> None:
    camera = rig_camera(RIG)
    # 4.8 m before a camera 2.4 m high whose focal length is 200 pixels, itself 1.5 m before the car's middle.
    pixels, front = video.into_picture(np.array([[6.3, 0.0], [6.3, 2.4], [6.3, -2.4], [0.0, 0.0]]), camera)
    np.testing.assert_allclose(pixels[:3], [[200, 250], [100, 250], [300, 250]], atol=1e-6)
    assert front.tolist() == [True, True, True, False]
    # A camera of the CARLA rig is the same one.
    np.testing.assert_allclose(carla_cameras(400, 300)[0].T_ego_cam, camera.T_ego_cam, atol=1e-9)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_bend_is_drawn_to_its_side(side: float) -> None:
    angle = np.arange(1.0, 21.0) / 12.0
    path = np.stack([12 * np.sin(angle), side * 12 * (1 - np.cos(angle))], axis=1)
    blank = np.zeros((300, 400, 3), np.uint8)
    drawn = video.draw_sight(blank, rig_camera(RIG), [], path)
    assert drawn.shape == (*video.CAMERA_SIZE, 3)
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert rows.min() > video.CAMERA_SIZE[0] / 2  # below the horizon
    middle, far = video.CAMERA_SIZE[1] / 2, rows < np.quantile(rows, 0.2)
    assert side * (middle - columns[far].mean()) > 60.0


def test_a_turned_path_behind_the_camera_is_not_drawn() -> None:
    blank = np.zeros((300, 400, 3), np.uint8)
    for path in (np.zeros((6, 2)), np.array([[-1.0, 0.0], [-2.0, 0.5], [-3.0, 0.0]])):
        assert not video.draw_sight(blank, rig_camera(RIG), [], path).any()


def color(view: np.ndarray, ahead: float, left: float) -> tuple[int, ...]:
    """Of a view from above, so many metres from the car."""
    row = (video.VIEW_AHEAD - ahead) * video.VIEW_SCALE - 0.5
    column = video.VIEW_SIZE[1] / 2 - left * video.VIEW_SCALE - 0.5
    return tuple(view[round(row), round(column)].tolist())


def test_the_map_is_where_the_town_is(stage, obstacles) -> None:
    town_map, town = video.TownMap(stage, obstacles), stage.town
    lane = next(lane for lane in town.driving_lanes() if lane.left is None and lane.length > 30.0)
    place, heading = lane.at(lane.length / 2)
    view = town_map.view((float(place[0]), float(place[1])), float(heading))
    street, axis = town.streets[lane.street], lane.width / 2
    assert color(view, 0.0, 0.0) == video.GROUND["asphalt"]
    assert color(view, 0.0, 2 * axis) == video.GROUND["asphalt"]
    walk = street.half_width + street.sidewalk / 2
    # The axis of the street is to the left of a lane that has no other one on its left.
    assert color(view, 0.0, axis - walk) == video.GROUND["paving"]
    assert color(view, 0.0, axis + walk) == video.GROUND["paving"]
    assert color(view, 0.0, axis + 0.12) == pytest.approx(video.GROUND["paint_yellow"], abs=60)


def test_road_users_and_lights_are_where_they_are(stage, drive) -> None:
    signal, town = stage.town.signals[0], stage.town
    line = next(one for one in town.stop_lines if (one.node, one.street) == (signal.node, signal.street))
    ahead, middle = np.array([np.cos(line.heading), np.sin(line.heading)]), line.points.mean(axis=0)
    left = np.array([-ahead[1], ahead[0]])
    here = middle - 10 * ahead
    bus = Actor(7, "bus", "", *(here + 20 * ahead + 6 * left), 0.0, line.heading, (10.0, 2.6, 3.0))
    walker = Actor(8, "pedestrian", "", *(here + 5 * ahead - 8 * left), 0.0, line.heading, (0.6, 0.6, 1.7))
    for time in (0.0, 5.0, 10.0, 15.0, 20.0, 25.0):
        view = np.zeros((*video.VIEW_SIZE, 3), np.uint8)
        scene = replace(drive.scene, time=time, actors=(bus, walker))
        video.draw_view(view, scene, (here[0], here[1]), line.heading, np.stack([here, here + ahead]))
        assert color(view, 20.0, 6.0) == DETECTION_COLORS[4]
        assert color(view, 5.0, -8.0) == DETECTION_COLORS[0]
        assert color(view, 10.0, 0.0) == video.LIGHT_COLORS[signal.state(time)]
        assert color(view, -1.0, 0.0) == video.EGO
        assert color(view, 20.0, -6.0) == (0, 0, 0)


# --- films ---


def test_a_film_of_the_teacher(drive, tmp_path, monkeypatch) -> None:
    simulator = EmbeddedSimulator(drive, "r", ticks=1)
    monkeypatch.setattr(video, "begin", lambda *_: (simulator, Teacher(simulator)))
    monkeypatch.setattr(video, "FILM_CAMERA", (400, 300))
    (path,) = video.film(DriverSpec(TEACHER), [TASK], 3, tmp_path / "videos")
    assert path == tmp_path / "videos" / "teacher_RouteScenario_0_rep3.mp4"
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == video.SIZE
        assert stream.average_rate == video.PLAYED
    shown = pictures(path)
    driven = simulator.time * video.FILMED + video.VERDICT_SECONDS * video.PLAYED
    assert abs(len(shown) - driven) <= 2
    assert simulator.ended == "completed"
    # The first moment and the verdict differ, the picture has light and shade.
    assert np.abs(shown[0].astype(int) - shown[-1]).mean() > 5.0
    assert shown[0][: video.CAMERA_SIZE[0], : video.CAMERA_SIZE[1]].std() > 20.0


def test_a_film_leaves_out_long_waits(drive, tmp_path, monkeypatch) -> None:
    """A car that never starts is filmed for some seconds, though it takes minutes until it counts as blocked."""

    class Sleeper:
        def __init__(self) -> None:
            self.trouble: dict[str, int] = {}

        def act(self, observation: Observation) -> Control:
            return Control(0.0, 0.0, 1.0)

        def shown(self) -> dict[str, Any]:
            return {}

    stage, obstacles, route = drive.scene.stage, drive.obstacles, drive.route
    record, films = None, []
    for known in (False, True):
        simulator = EmbeddedSimulator(Drive(stage, route, 0, Conditions(), obstacles=obstacles), "r")
        monkeypatch.setattr(video, "begin", lambda *_, simulator=simulator: (simulator, Sleeper()))
        monkeypatch.setattr(video, "FILM_CAMERA", (200, 152))
        records = [record] if known else []
        (path,) = video.film(DriverSpec(TEACHER), [TASK], 0, tmp_path, records)
        films.append(pictures(path))
        filmed = video.STILL * video.FILMED + video.VERDICT_SECONDS * video.PLAYED
        assert abs(len(films[-1]) - filmed) <= 2
        # Who knows how it ended doesn't wait for it.
        assert simulator.time < 10.0 if known else simulator.time > 180.0
        record = record or replace(simulator.record(0.0, None, None), route_id=TASK.name(0))
    np.testing.assert_array_equal(films[0][-1], films[1][-1])  # the verdict


def test_who_is_filmed_drives_as_ever(stage, obstacles, drive, driver, tmp_path) -> None:
    seen = []
    for filmed in (False, True):
        again = Drive(stage, drive.route, 0, Conditions(), obstacles=obstacles)
        simulator = EmbeddedSimulator(again, "r", rig_camera(RIG), seed=5)
        agent, track = ModelAgent(driver), []
        painter = video.Painter(simulator, agent, "policy", "r") if filmed else None
        for _ in range(4):
            observation = simulator.observe()
            control = agent.act(observation)
            if painter is not None:
                picture = painter.paint(observation, control)
                assert picture.shape == (*video.SIZE, 3)
            simulator.step(control)
            track.append((again.car, observation.image.sum()))
        seen.append(track)
    assert seen[0] == seen[1]


def test_experts_that_ran_are_asked_and_those_that_are_heard_on_are_remembered(drive, driver) -> None:
    simulator = EmbeddedSimulator(drive, "r", rig_camera(RIG))
    agent = ModelAgent(driver)
    painter = video.Painter(simulator, agent, "policy", "r")
    observation = simulator.observe()
    picture = observation.image
    weights = {"detection": 0.0, "drivable": 0.6, "segmentation": 0.0, "nuscenes_2d": 0.4}

    def look(*ran: str, picture: np.ndarray = picture, **other: float) -> list[video.Seen]:
        agent._shown = {"weights": {**weights, **other}, "ran": ran}
        painter.note(replace(observation, image=picture))
        return painter.look(agent.shown())

    seen = look("drivable", "nuscenes_2d")
    assert [one.name for one in seen] == ["drivable", "nuscenes_2d"]
    held = look("drivable", picture=255 - picture)
    assert held[0] is not seen[0]
    assert held[1] is seen[1]
    assert [one.name for one in look("drivable", nuscenes_2d=0.0)] == ["drivable"]
    assert seen[0].said["mask"].shape == picture.shape[:2]
    # Who looks at a moment that isn't filmed is drawn at the next one that is.
    agent._shown = {"weights": weights, "ran": ("nuscenes_2d",)}
    painter.note(observation)
    assert look("drivable")[1] is not held[1]
    assert painter.look({}) == []
    plain = video.draw_sight(picture, rig_camera(RIG), [])
    direct = video.Seen("road", "drivable", {"mask": np.zeros((300, 400), np.uint8)})
    tinted = video.draw_sight(picture, rig_camera(RIG), [direct])
    assert (tinted.astype(int) - plain)[..., 0].mean() > 5.0  # "direct" is reddish


@pytest.mark.parametrize("size", [(300, 400), (225, 400), (331, 101), (100, 100)])
def test_pictures_of_any_shape_fit(size: tuple[int, int]) -> None:
    drawn = video.draw_sight(np.full((*size, 3), 255, np.uint8), rig_camera(RIG), [])
    assert drawn.shape == (*video.CAMERA_SIZE, 3)
    shown = (drawn == 255).all(axis=2)
    rows, columns = shown.any(axis=1).sum(), shown.any(axis=0).sum()
    assert rows / columns == pytest.approx(size[0] / size[1], rel=0.02)
    assert rows >= video.CAMERA_SIZE[0] - 1 or columns >= video.CAMERA_SIZE[1] - 1


def test_a_dead_camera_is_filmed_as_one(drive, driver) -> None:
    simulator = EmbeddedSimulator(drive, "r", rig_camera(RIG), dark=(0.0, 1e9))
    agent = ModelAgent(driver)
    painter = video.Painter(simulator, agent, "policy", "r")
    observation = simulator.observe()
    picture = painter.paint(observation, agent.act(observation))
    assert picture.shape == (*video.SIZE, 3)
    assert agent.trouble == {"dead camera": 1}


def test_a_film_that_breaks_off_is_not_there(drive, tmp_path, monkeypatch) -> None:
    simulator = EmbeddedSimulator(drive, "r", ticks=1)
    monkeypatch.setattr(video, "begin", lambda *_: (simulator, Teacher(simulator)))
    monkeypatch.setattr(video, "FILM_CAMERA", (400, 300))
    monkeypatch.setattr(video, "draw_view", lambda *_: 1 / 0)
    with pytest.raises(WorldError, match="was not filmed: Simulation crashed"):
        video.film(DriverSpec(TEACHER), [TASK], 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_verdict_is_the_records(drive) -> None:
    simulator = EmbeddedSimulator(drive, "r", ticks=1)
    record = drive_route(simulator, Teacher(simulator), "r")
    blank = np.full((*video.SIZE, 3), 100, np.uint8)
    good, bad = video.draw_verdict(blank, record), video.draw_verdict(blank, replace(record, completion=10.0))
    assert (good != bad).any()
    assert (blank == 100).all()
    panel = video.draw_panel(simulator, simulator.observe(), Control(0.5, -0.5, 0.0), {}, "teacher")
    assert panel.shape == (*video.PANEL_SIZE, 3)
    # The steering is to the left: its bar is left of its middle.
    row, middle = panel[64], 564 + 54 + 46
    assert tuple(row[middle - 20]) == video.ACCENT
    assert tuple(row[middle + 20]) == video.TRACK
