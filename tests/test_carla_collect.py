"""Recording on a server: what is written, and that nothing stays behind whatever happens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from carla_server import MODULE, Client, Transform, Vector

from automoe.carla import collect as module
from automoe.carla import observe
from automoe.carla.collect import CollectPlan, collect, connect, towns_of
from automoe.data import carla as reader
from automoe.errors import CollectError


def plan(out: Path, **more) -> CollectPlan:
    return CollectPlan(out, **{"seconds": 1.0, "vehicles": 4, "walkers": 2, "size": (64, 48)} | more)


def test_a_recorded_run_is_what_the_reader_reads(tmp_path) -> None:
    client = Client()
    folders = collect(plan(tmp_path, runs=2, towns=("Town01", "Town02")), client, MODULE, say=lambda words: None)
    assert [folder.name for folder in folders] == ["run_000", "run_001"]
    run = reader.read_run(folders[1])
    assert run.town == "Town02"
    assert run.has == {"tags", "lidar", "boxes", "boxes3d"}
    assert run.cameras == ("front", "front_left", "front_right", "rear")
    assert run.problems == ()
    assert [step.number for step in run.steps] == [0, 5, 10, 15]
    assert run.version == ("0.9.14", None)
    step = run.steps[1]
    assert step.ego.speed == pytest.approx(10.0)
    assert step.ego.control == (0.5, -0.1, 0.0)
    assert step.ego.T_world_ego[0, 3] - run.steps[0].ego.T_world_ego[0, 3] == pytest.approx(2.5)
    picture = reader.read_picture(run.image("front", step))
    assert picture.shape == (48, 64, 3)
    assert picture[-1, 0].tolist() == [200, 0, 0]  # what was red on the server is red here
    assert set(np.unique(reader.read_tags(run.tags(step), "0.9.14"))) == {0, 1}
    points = reader.read_points(run.lidar(step), run.sensors["lidar"])
    np.testing.assert_allclose(points[0, :3], [10.0, -2.0, 1.5])
    assert {box["label"] for box in reader.read_boxes(run.boxes(step))} <= {"vehicle", "pedestrian"}


def test_nothing_stays_behind(tmp_path) -> None:
    client = Client()
    collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    world = client.worlds[0]
    assert world.actors == []
    assert world.applied[0] == (True, 0.05)
    assert world.applied[-1] == (False, None)
    assert client.manager.synchronous == [True, False]


@pytest.mark.parametrize(
    "blueprint",
    ["vehicle.tesla.model3", "controller.ai.walker", "sensor.camera.semantic_segmentation", "sensor.lidar.ray_cast",
     "sensor.other.collision"],
)  # fmt: skip
def test_nothing_stays_behind_when_something_cannot_be_spawned(tmp_path, blueprint: str) -> None:
    client = Client(faults={blueprint: RuntimeError("failed to spawn")})
    with pytest.raises(CollectError, match="could not be spawned"):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    world = client.worlds[0]
    assert world.actors == []
    assert world.applied[-1] == (False, None)
    assert not (tmp_path / "run_000" / "config.json").exists()


def test_nothing_stays_behind_when_it_is_interrupted(tmp_path, monkeypatch) -> None:
    client = Client()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(observe, "log_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    assert client.worlds[0].actors == []
    assert client.worlds[0].applied[-1] == (False, None)


def test_a_mute_sensor_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SENSOR_SECONDS", 0.05)
    client = Client(mute="sensor.lidar.ray_cast")
    with pytest.raises(CollectError, match="the sensor lidar said nothing of tick"):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    assert client.worlds[0].actors == []


def test_complete_runs_are_kept_and_broken_ones_recorded_again(tmp_path) -> None:
    collect(plan(tmp_path, runs=2), Client(), MODULE, say=lambda words: None)
    (tmp_path / "run_001" / "config.json").unlink()
    stamp = (tmp_path / "run_000" / "config.json").stat().st_mtime_ns
    client = Client()
    collect(plan(tmp_path, runs=2), client, MODULE, say=lambda words: None)
    assert (tmp_path / "run_000" / "config.json").stat().st_mtime_ns == stamp
    assert (tmp_path / "run_001" / "config.json").is_file()
    assert client.worlds[0].tick_count < 2 * 50


def test_the_same_seed_draws_the_same_run(tmp_path) -> None:
    said = []
    for name in ("a", "b", "c"):
        collect(plan(tmp_path / name, seed=int(name == "c")), Client(), MODULE, say=lambda words: None)
        config = json.loads((tmp_path / name / "run_000" / "config.json").read_bytes())
        said.append((config["weather"]["preset"], config["spawn_point"]))
    assert said[0] == said[1]


def test_boxes_are_where_they_are_seen() -> None:
    """A car ten metres ahead and a little to the right is right of the middle; one behind is not in the picture."""
    box = SimpleNamespace(location=Vector(z=0.8), rotation=Transform().rotation, extent=Vector(2.3, 0.95, 0.8))
    camera = Transform(Vector(1.5, 0.0, 2.4))
    x1, y1, x2, y2 = observe.projected(box, Transform(Vector(13.0, 2.0)), camera, (600, 800))
    assert 400 < x1 < x2 < 600
    assert 300 < y1 < y2 < 500
    left = observe.projected(box, Transform(Vector(13.0, -2.0)), camera, (600, 800))
    assert left[2] < 400
    assert observe.projected(box, Transform(Vector(-13.0, 0.0)), camera, (600, 800)) is None


def test_the_real_clients_types_do_as_well() -> None:
    carla = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")
    box = carla.BoundingBox(carla.Location(z=0.8), carla.Vector3D(2.3, 0.95, 0.8))
    at = carla.Transform(carla.Location(13.0, 2.0, 0.0), carla.Rotation(yaw=30.0))
    camera = carla.Transform(carla.Location(1.5, 0.0, 2.4))
    x1, y1, x2, y2 = observe.projected(box, at, camera, (600, 800))
    # The client's own corners, projected by hand: its camera looks along x, y is right, z is up.
    corners = np.array([[v.x, v.y, v.z] for v in box.get_world_vertices(at)]) - [1.5, 0.0, 2.4]
    pixels = np.stack([400 + 400 * corners[:, 1] / corners[:, 0], 300 - 400 * corners[:, 2] / corners[:, 0]], axis=1)
    np.testing.assert_allclose([x1, y1, x2, y2], [*pixels.min(axis=0), *pixels.max(axis=0)], atol=0.05)
    record = observe.log_record(
        5, 0.25, transform=at, velocity=carla.Vector3D(3.0, 4.0, 0.0), acceleration=carla.Vector3D(),
        angular_velocity=carla.Vector3D(z=5.0), control=carla.VehicleControl(throttle=0.5, steer=0.2),
        vehicles=[camera], walkers=3,
    )  # fmt: skip
    assert record["speed_kmh"] == pytest.approx(18.0)
    assert record["rotation"]["yaw"] == pytest.approx(30.0)
    assert record["control"]["steer"] == pytest.approx(0.2)
    assert record["traffic_density"]["nearby_vehicles_50m"] == 1
    weather = observe.weather_record(carla.WeatherParameters.HardRainNoon, "HardRainNoon")
    assert weather["precipitation"] > 50.0


def test_no_client_no_server_and_no_such_map_get_a_sentence(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "carla", None)
    with pytest.raises(CollectError, match=r"pip install automoe\[carla\]"):
        connect("localhost", 2000)

    class Unreachable:
        def __init__(self, host: str, port: int) -> None: ...

        def set_timeout(self, seconds: float) -> None: ...

        def get_server_version(self) -> str:
            raise RuntimeError("time-out of 20000ms")

    monkeypatch.setitem(sys.modules, "carla", SimpleNamespace(Client=Unreachable))
    with pytest.raises(CollectError, match="no CARLA server answers at localhost:2001"):
        connect("localhost", 2001)
    assert towns_of(Client(), ["Town02"]) == ("/Game/Carla/Maps/Town02",)
    with pytest.raises(CollectError, match="no map Town99; it has Town01, Town02"):
        towns_of(Client(), ["Town99"])


def test_collisions_are_told_once_and_by_the_runs_own_ticks(tmp_path) -> None:
    client = Client()
    world = client.get_world()
    # Contacts before the first frame, in the warm-up, are none of the run's; without walkers nothing else ticks.
    first = module.WARM_UP + 1
    world.bumps = {first - 15, first + 10, first + 11, first + 12}
    folder = collect(plan(tmp_path, walkers=0), client, MODULE, say=lambda words: None)[0]
    said = json.loads((folder / "collisions.json").read_bytes())
    assert [(one["frame"], one["timestamp"]) for one in said] == [(10, 0.5)]
    assert said[0]["impulse"]["x"] == -5.0


@pytest.mark.parametrize("more", [{"runs": 0}, {"seconds": 0.0}, {"vehicles": -1}, {"save_every": 0}])
def test_plans_that_make_no_sense_are_refused(tmp_path, more: dict[str, float]) -> None:
    with pytest.raises(CollectError):
        plan(tmp_path, **more)
