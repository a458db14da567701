"""Recording on a server: what is written, and that nothing stays behind whatever happens."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from carla_server import MODULE, Actor, Client, Location, Rotation, Transform, Vector3D

from automoe import cli
from automoe.carla import collect as module
from automoe.carla import frame, observe
from automoe.carla.collect import CollectPlan, collect
from automoe.carla.run import UNFINISHED, RunWriter
from automoe.carla.server import connect, towns_of
from automoe.data import carla as reader
from automoe.errors import CollectError, WriteError


def plan(out: Path, **more) -> CollectPlan:
    return CollectPlan(out, **{"seconds": 1.0, "vehicles": 4, "walkers": 2, "size": (64, 48)} | more)


def test_a_recorded_run_is_what_the_reader_reads(tmp_path) -> None:
    client = Client()
    folders = collect(plan(tmp_path, runs=2, towns=("Town01", "Town02")), client, MODULE, say=lambda words: None)
    assert [folder.name for folder in folders] == ["run_000", "run_001"]
    run = reader.read_run(folders[1])
    assert run.town == "Town02"
    assert set(run.parts) == {"tags", "lidar", "boxes", "boxes3d"}
    assert run.cameras == ("front", "front_left", "front_right", "rear")
    assert run.problems == ()
    assert [step.number for step in run.steps] == [0, 5, 10, 15]
    assert run.version == ("0.9.14", None)
    step = run.steps[1]
    assert step.ego.speed == pytest.approx(10.0)
    assert step.ego.control == pytest.approx((0.5, -0.1, 0.0))
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


@pytest.fixture
def unhandled() -> Iterator[Callable]:
    """What signals meet that nobody handles: a failure of the test, not the end of all tests."""

    def fail(number: int, _) -> None:
        pytest.fail(f"nobody handled signal {number}")

    before = {number: signal.signal(number, fail) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield fail
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["tick", "spawn", "destroy"])
def test_nothing_stays_behind_when_it_is_killed(tmp_path, monkeypatch, unhandled, number: int, where: str) -> None:
    """By the real entry point; the signal comes once while frames are recorded, once while the server spawns a sensor,
    and again while actors are destroyed."""
    client = Client()
    world = client.get_world()

    def kill(actor: Actor) -> None:
        if actor.type_id == "sensor.lidar.ray_cast":
            signal.raise_signal(number)

    if where == "tick":
        world.on_tick = lambda tick: signal.raise_signal(number) if tick == module.WARM_UP + 7 else None
    if where == "spawn":
        world.on_spawn = kill
    world.on_destroy = kill
    monkeypatch.setitem(sys.modules, "carla", SimpleNamespace(**vars(MODULE), Client=lambda host, port: client))
    words = ["--seconds", "1", "--vehicles", "3", "--walkers", "0", "--size", "64", "48"]
    monkeypatch.setattr(sys, "argv", ["automoe", "collect", "--out", str(tmp_path), *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 128 + number
    assert world.actors == []
    assert world.applied[-1] == (False, None)
    assert client.manager.synchronous == [True, False]
    # Recorded to the end, or not at all: what was broken off is known as such.
    run = tmp_path / "run_000"
    assert (run / "config.json").exists() == (where == "destroy")
    assert (run / UNFINISHED).exists() == (where == "tick")
    assert signal.getsignal(number) == unhandled


@pytest.mark.usefixtures("unhandled")
def test_a_hang_up_that_is_ignored_is_ignored(tmp_path) -> None:
    """As `nohup automoe collect` wants it."""
    client = Client()
    client.get_world().on_tick = lambda tick: signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    folder = collect(plan(tmp_path), client, MODULE, say=lambda words: None)[0]
    assert (folder / "config.json").is_file()


def test_ctrl_c_waits_for_the_tick(tmp_path) -> None:
    """Amid a spawn it would lose the actor; a second one doesn't wait."""
    client = Client()
    world = client.get_world()
    world.on_spawn = lambda actor: signal.raise_signal(signal.SIGINT) if "lidar" in actor.type_id else None
    with pytest.raises(KeyboardInterrupt):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    assert world.actors == []
    assert world.tick_count == 2 + 1  # one for each walker, and the first of the warm-up

    def twice(tick: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was ignored")

    world.on_spawn, world.on_tick = None, twice
    with pytest.raises(KeyboardInterrupt):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    assert world.actors == []
    assert world.applied[-1] == (False, None)


def fail_at(tick: int) -> Callable[[int], None]:
    def fail(now: int) -> None:
        if now == tick:
            raise RuntimeError("time-out of 20000ms while waiting for the simulator")

    return fail


def test_a_server_that_stops_answering_is_named_and_left_in_order(tmp_path) -> None:
    client = Client()
    world = client.get_world()
    world.on_tick = fail_at(module.WARM_UP + 7)
    patience: list[float] = []
    world.on_destroy = lambda actor: patience.append(client.timeouts[-1])
    with pytest.raises(CollectError, match=r"stopped answering while .*run_000 was recorded \(time-out of 20000ms"):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    assert world.actors == []
    assert world.applied[-1] == (False, None)
    assert client.manager.synchronous == [True, False]
    assert set(patience) == {module.LEAVING_SECONDS}  # a dead server would be waited for once for each actor
    assert client.timeouts[-1] == module.ANSWER_SECONDS


@pytest.mark.parametrize("broken", ["traffic manager", "actor", "settings"])
def test_what_cannot_be_restored_does_not_keep_the_rest_from_it(tmp_path, broken: str) -> None:
    client = Client()
    world = client.get_world()

    def refuse(*_) -> None:
        raise RuntimeError("rpc::rpc_error during call")

    def set_synchronous_mode(on: bool) -> None:
        client.manager.synchronous.append(on)
        if not on:
            refuse()

    def apply_settings(settings) -> None:
        type(world).apply_settings(world, settings)
        refuse()  # the server has done it, and its answer was lost

    if broken == "traffic manager":
        client.manager.set_synchronous_mode = set_synchronous_mode
    elif broken == "actor":
        world.on_destroy = refuse
    else:
        world.apply_settings = apply_settings  # type: ignore[method-assign]
    with pytest.raises(CollectError, match="rpc::rpc_error during call"):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    assert world.actors == []
    assert world.applied[-1] == (False, None)
    assert client.manager.synchronous == ([] if broken == "settings" else [True, False])


def test_complete_runs_are_kept_and_broken_ones_recorded_again(tmp_path) -> None:
    collect(plan(tmp_path), Client(), MODULE, say=lambda words: None)
    client = Client()
    client.get_world().on_tick = fail_at(module.WARM_UP + 7)
    with pytest.raises(CollectError):
        collect(plan(tmp_path, runs=2), client, MODULE, say=lambda words: None)
    assert (tmp_path / "run_001" / UNFINISHED).is_file()
    assert not (tmp_path / "run_001" / "config.json").exists()
    stamp = (tmp_path / "run_000" / "config.json").stat().st_mtime_ns
    client = Client()
    collect(plan(tmp_path, runs=2), client, MODULE, say=lambda words: None)
    assert (tmp_path / "run_000" / "config.json").stat().st_mtime_ns == stamp
    assert (tmp_path / "run_001" / "config.json").is_file()
    assert not list(tmp_path.glob(f"*/{UNFINISHED}"))
    assert client.worlds[0].tick_count < 2 * 50


def test_somebody_elses_runs_are_left_alone(tmp_path) -> None:
    """A published run that was broken off has pictures and no config: it isn't ours to delete."""
    picture = tmp_path / "run_001" / "images" / "front" / "000000.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"theirs")
    client = Client()
    with pytest.raises(WriteError, match="run_001 holds files, and neither"):
        collect(plan(tmp_path, runs=2), client, MODULE, say=lambda words: None)
    assert picture.read_bytes() == b"theirs"
    assert not client.worlds  # and nothing was recorded in vain
    with pytest.raises(WriteError, match="neither a complete run nor one that was begun here"):
        RunWriter(tmp_path / "run_001")
    (tmp_path / "run_000" / "config.json").parent.mkdir()
    (tmp_path / "run_000" / "config.json").write_text("{}")
    with pytest.raises(WriteError, match="holds a complete run"):
        RunWriter(tmp_path / "run_000")
    (tmp_path / "run_002").mkdir()  # an empty folder is nothing that could be lost
    assert [path.name for path in RunWriter(tmp_path / "run_002").folder.iterdir()] == [UNFINISHED]


def test_runs_of_an_export_are_known_by_its_world_json(tmp_path) -> None:
    """Also those that were broken off before folders had a mark."""
    (tmp_path / "world.json").write_text("{}")
    (tmp_path / "run_000" / "images").mkdir(parents=True)
    (tmp_path / "run_000" / "vehicle_log.json").write_text("[")
    writer = RunWriter(tmp_path / "run_000")
    assert [path.name for path in writer.folder.iterdir()] == [UNFINISHED]
    writer.finish({"map": "Town01"})
    assert sorted(path.name for path in writer.folder.iterdir()) == [
        "collisions.json", "config.json", "vehicle_log.json",
    ]  # fmt: skip
    with pytest.raises(WriteError, match="holds a complete run"):
        RunWriter(tmp_path / "run_000")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"towns": ("Town02",)}, "with map Town01, not Town02"),
        ({"towns": ()}, "with map Town01, not Town10HD"),  # the one that is loaded
        ({"seed": 1}, "with seed 0, not 1"),
        ({"size": (80, 48)}, "with size 64 x 48, not 80 x 48"),
        ({"save_every": 10}, "with save_every_n 5, not 10"),
        ({"seconds": 2.0}, "with duration_seconds 1.0, not 2.0"),
        ({"vehicles": 5}, "with vehicles 4, not 5"),
        ({"walkers": 5}, "with walkers 2, not 5"),
    ],
)
def test_a_run_that_is_not_what_is_asked_for_is_named(tmp_path, more, named: str) -> None:
    towns = {"towns": ("/Game/Carla/Maps/Town01",)}
    collect(plan(tmp_path, **towns), Client(), MODULE, say=lambda words: None)
    path = tmp_path / "run_000" / "config.json"
    said = path.read_bytes()
    assert collect(plan(tmp_path, **towns), Client(), MODULE, say=lambda words: None)
    with pytest.raises(CollectError, match=named):
        collect(plan(tmp_path, **towns | more), Client(), MODULE, say=lambda words: None)
    assert path.read_bytes() == said


def test_other_cameras_and_other_peoples_configs_are_named(tmp_path) -> None:
    collect(plan(tmp_path), Client(), MODULE, say=lambda words: None)
    path = tmp_path / "run_000" / "config.json"
    said = json.loads(path.read_bytes())
    del said["sensors"]["rear"]
    path.write_text(json.dumps(said))
    with pytest.raises(CollectError, match="with cameras front, front_left, front_right, not"):
        collect(plan(tmp_path), Client(), MODULE, say=lambda words: None)
    path.write_text('{"map": "Carla/Maps/Town10HD", "weather": "ClearNoon"}')  # as in public runs
    with pytest.raises(CollectError, match="with seed None, not 0"):
        collect(plan(tmp_path), Client(), MODULE, say=lambda words: None)
    for damaged in ("{", "[]", '{"sensors": {"front": 1}}'):
        path.write_text(damaged)
        with pytest.raises(CollectError, match=r"config\.json is damaged or not a recorded run's"):
            collect(plan(tmp_path), Client(), MODULE, say=lambda words: None)


def test_the_same_seed_draws_the_same_run(tmp_path) -> None:
    said = []
    for name in ("a", "b", "c"):
        collect(plan(tmp_path / name, seed=int(name == "c")), Client(), MODULE, say=lambda words: None)
        config = json.loads((tmp_path / name / "run_000" / "config.json").read_bytes())
        said.append((config["weather"]["preset"], config["spawn_point"]))
    assert said[0] == said[1]
    assert said[0] != said[2]


def test_boxes_are_where_they_are_seen() -> None:
    """A car ten metres ahead and a little to the right is right of the middle; one behind is not in the picture."""
    box = MODULE.BoundingBox(Location(z=0.8), Vector3D(2.3, 0.95, 0.8))
    camera = Transform(Location(1.5, 0.0, 2.4))
    seen = observe.projected(box, Transform(Location(13.0, 2.0, 0.0)), camera, (600, 800))
    assert seen is not None
    x1, y1, x2, y2 = seen
    assert 400 < x1 < x2 < 600
    assert 300 < y1 < y2 < 500
    left = observe.projected(box, Transform(Location(13.0, -2.0, 0.0)), camera, (600, 800))
    assert left is not None
    assert left[2] < 400
    assert observe.projected(box, Transform(Location(-13.0, 0.0, 0.0)), camera, (600, 800)) is None


def test_a_car_ahead_that_turns_right_is_recorded_so(tmp_path) -> None:
    """CARLA's axes in the file: y and yaw grow to the right. In our frame both are negative there."""
    client = Client()
    world = client.get_world()
    start = Transform(Location(100.0, 12.0, 0.5), Rotation(yaw=30.0))
    world.elsewhere = start
    folder = collect(plan(tmp_path, vehicles=1, walkers=0), client, MODULE, say=lambda words: None)[0]
    run = reader.read_run(folder)
    step = run.steps[1]
    (box,) = json.loads(run.boxes3d(step).read_bytes())["boxes"]
    gone = 10.0 * (module.WARM_UP + 1 + step.number) * 0.05
    turn = np.array([np.cos(np.radians(30.0)), np.sin(np.radians(30.0))])
    # The stand-in's boxes have their middle 0.2 m before an actor's origin and 0.8 m above it.
    x, y = [100.0, 12.0] + (gone + 0.2) * turn
    assert box["location"] == pytest.approx({"x": x, "y": y, "z": 1.3}, abs=1e-3)
    assert box["rotation"] == pytest.approx({"pitch": 0.0, "yaw": 30.0, "roll": 0.0}, abs=1e-3)
    assert box["velocity"] == pytest.approx({"x": 10.0 * turn[0], "y": 10.0 * turn[1], "z": 0.0}, abs=1e-3)
    assert box["extent"] == pytest.approx({"x": 2.3, "y": 0.95, "z": 0.8})

    T_ego_box = np.linalg.inv(step.ego.T_world_ego) @ frame.pose(box["location"], box["rotation"])
    assert T_ego_box[0, 3] > 10.0
    assert T_ego_box[1, 3] < -8.0
    assert np.arctan2(T_ego_box[1, 0], T_ego_box[0, 0]) == pytest.approx(-np.pi / 6, abs=1e-4)
    assert frame.vector(box["velocity"])[1] == pytest.approx(-5.0, abs=1e-3)
    (seen,) = json.loads(run.boxes(step).read_bytes())["boxes"]
    assert seen["actor_id"] == box["actor_id"]
    assert 32 < seen["bbox"][0] < seen["bbox"][2] <= 64  # right of the middle of the picture


def test_the_real_clients_types_do_as_well() -> None:
    carla = pytest.importorskip("carla", reason="the real client comes with `pip install automoe[carla]`")
    box = carla.BoundingBox(carla.Location(z=0.8), carla.Vector3D(2.3, 0.95, 0.8))
    at = carla.Transform(carla.Location(13.0, 2.0, 0.0), carla.Rotation(yaw=30.0))
    camera = carla.Transform(carla.Location(1.5, 0.0, 2.4))
    seen = observe.projected(box, at, camera, (600, 800))
    assert seen is not None
    # The client's own corners, projected by hand: its camera looks along x, y is right, z is up.
    corners = np.array([[v.x, v.y, v.z] for v in box.get_world_vertices(at)]) - [1.5, 0.0, 2.4]
    pixels = np.stack([400 + 400 * corners[:, 1] / corners[:, 0], 300 - 400 * corners[:, 2] / corners[:, 0]], axis=1)
    np.testing.assert_allclose(seen, [*pixels.min(axis=0), *pixels.max(axis=0)], atol=0.05)
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


def server_at(monkeypatch, client: Client) -> None:
    monkeypatch.setitem(sys.modules, "carla", SimpleNamespace(Client=lambda host, port: client))


@pytest.mark.parametrize("said", ["0.9.15", "0.9.15-12-gb1d5a3c-dirty", "0.10.0"])
def test_a_servers_version_is_one_that_the_reader_reads(tmp_path, monkeypatch, said: str) -> None:
    client = Client(version=said)
    server_at(monkeypatch, client)
    assert connect("localhost", 2000)[0] is client
    folder = collect(plan(tmp_path), client, MODULE, say=lambda words: None)[0]
    assert reader.read_run(folder).version == ("0.9.14", None)


@pytest.mark.parametrize("said", ["a1b2c3d-dirty", "1234567", ""])
def test_a_server_that_does_not_say_its_version_has_to_be_told(tmp_path, monkeypatch, said: str) -> None:
    client = Client(version=said)
    server_at(monkeypatch, client)
    with pytest.raises(CollectError, match=f"its version is '{said}'.*--carla_version"):
        connect("localhost", 2000)
    with pytest.raises(CollectError, match="--carla_version"):
        collect(plan(tmp_path), client, MODULE, say=lambda words: None)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CollectError, match="--carla_version is 'newest', not a number"):
        connect("localhost", 2000, carla_version="newest")
    assert connect("localhost", 2000, carla_version="0.9.13")[0] is client
    folder = collect(plan(tmp_path, carla_version="0.9.13"), client, MODULE, say=lambda words: None)[0]
    assert reader.read_run(folder).version == ("0.9.0", None)


def test_a_server_that_says_its_version_is_believed(monkeypatch) -> None:
    client = Client(version="0.9.15")
    server_at(monkeypatch, client)
    assert connect("localhost", 2000, carla_version="0.9.15")[0] is client
    with pytest.raises(CollectError, match=r"is 0\.9\.13, and the server says 0\.9\.15; leave the flag out"):
        connect("localhost", 2000, carla_version="0.9.13")


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
