"""The world's CARLA recordings: what the reader reads, labels that lie on what they name, and drives that are the
teacher's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from automoe.carla.run import CAMERAS, SHIFTED
from automoe.data import carla
from automoe.data.carla_prepared import CarlaImages, TimeIndex
from automoe.data.prepared import prepare
from automoe.data.sequences import shift_pose
from automoe.data.transforms import EvalTransform
from automoe.errors import WorldError
from automoe.moe.ground import CameraSpec, Ground
from automoe.poses import into_frame
from automoe.report.doctor_carla import doctor_carla
from automoe.taxonomy import BDD_DETECTION, CARLA_TAGS, DRIVABLE, SEMANTIC
from automoe.world import carla_writer
from automoe.world.carla_writer import export_carla

SIZE = (160, 120)
SECONDS = 3.0


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("carla") / "raw"
    export_carla(out, 1, 1, 0, seconds=SECONDS, size=SIZE, workers=1)
    return out


def test_the_reader_reads_what_the_world_writes(exported: Path) -> None:
    runs = [carla.read_run(folder) for folder in carla.find_runs(exported)]
    assert [(run.name, run.split) for run in runs] == [("run_000", "train"), ("run_900", "val")]
    for run in runs:
        assert run.cameras == CAMERAS
        assert set(run.parts) == {"tags", "drivable", "lidar", "boxes", "boxes3d"}
        assert run.problems == ()
        assert run.version == ("0.9.14", None)
        assert [step.number for step in run.steps] == list(range(0, round(SECONDS / 0.05), 5))
        assert all(step.command >= 0 and len(step.targets) == 2 for step in run.steps)
        assert all(0.0 <= step.target_speed <= step.speed_limit * 1.1 for step in run.steps)
        assert run.town.startswith(f"carla-{run.split}")
        assert (exported / "maps" / f"{run.town}.xodr").is_file()


def test_the_car_goes_where_it_looks(exported: Path) -> None:
    report = doctor_carla(exported, exported.parent / "doctor", samples=2)
    assert report.problems == ()
    assert report.picture is not None
    assert report.picture.is_file()
    run = carla.read_run(exported / "run_000")
    pose = np.array([step.ego.T_world_ego for step in run.steps])
    speed = np.array([step.ego.speed for step in run.steps])
    assert speed[-1] > 2.0  # it has set off
    way = np.linalg.norm(np.diff(pose[:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(way, (speed[1:] + speed[:-1]) / 2 * 0.25, atol=0.05)
    ahead = np.array([step.targets[0] for step in run.steps])
    assert (ahead[:, 0] > 0).all()  # the next point of the route lies before it


def test_boxes_and_tags_and_points_lie_on_each_other(exported: Path) -> None:
    """What a box says is there is there in the tags and, of the larger ones, in the LiDAR's points."""
    names, shares, held = CARLA_TAGS["0.9.14"], [], []
    for folder in carla.find_runs(exported):
        run = carla.read_run(folder)
        for step in run.steps[::3]:
            tags = carla.read_tags(run.tags(step), "0.9.14")
            for box in carla.read_boxes(run.boxes(step)):
                if box["class"] in ("car", "truck", "bus") and box["visible_bbox"] and not box["occluded"]:
                    x1, y1, x2, y2 = map(int, box["visible_bbox"])
                    inside = tags[y1:y2, x1:x2]
                    shares.append(float((inside == names.index(box["class"])).mean()))
            points = carla.read_points(run.lidar(step), run.sensors["lidar"])
            for box in carla.read_boxes(run.boxes3d(step)):
                T_world_box = carla.frame.pose(box["location"], box["rotation"])
                local = points[:, :3] @ step.ego.T_world_ego[:3, :3].T + step.ego.T_world_ego[:3, 3]
                inside = (local - T_world_box[:3, 3]) @ T_world_box[:3, :3]
                extent = np.array([box["extent"][axis] for axis in "xyz"]) + 0.1
                near = np.hypot(*(T_world_box[:2, 3] - step.ego.T_world_ego[:2, 3])) < 25.0
                if near and box["class"] == "car":
                    held.append(int((np.abs(inside) < extent).all(axis=1).sum()))
    assert np.median(shares) > 0.5
    assert np.mean(np.array(held) > 0) > 0.6


def test_it_is_prepared_with_all_that_it_has(exported: Path, tmp_path: Path) -> None:
    info = prepare(exported, "frames", "train", tmp_path / "train", workers=1)
    assert info.count == 12
    assert info.rig["collapse"] == {"detection": {}, "segmentation": {}, "drivable": {}}
    height, width = SIZE[1], SIZE[0]
    assert info.rig["cameras"]["front"]["size"] == [height, width]
    np.testing.assert_allclose(np.array(info.rig["cameras"]["front"]["T_ego_mount"])[:3, 3], [1.5, 0.0, 2.4])
    for task in ("detection", "drivable", "segmentation", "nuscenes_2d"):
        assert len(CarlaImages(info.path, task, EvalTransform((96, 128)))) == 12
    mask = CarlaImages(info.path, "drivable", EvalTransform((96, 128))).row(0).mask()
    assert (mask == DRIVABLE.index("direct")).mean() > 0.05
    semantic = CarlaImages(info.path, "segmentation", EvalTransform((96, 128))).row(0).mask()
    assert (semantic == SEMANTIC.index("road")).mean() > 0.1
    assert (semantic[mask == DRIVABLE.index("direct")] == SEMANTIC.index("road")).all()
    assert len(TimeIndex.load(info.path).windows(2, 4)) == 6


def test_an_export_goes_on_and_is_the_same(exported: Path, tmp_path: Path) -> None:
    world = json.loads((exported / "world.json").read_bytes())
    assert world["complete"]
    assert world["train"]["frames"] == 12
    assert world["train"]["collisions"] == 0
    assert set(world["train"]["boxes_per_category"]) == set(BDD_DETECTION)
    again = tmp_path / "raw"
    export_carla(again, 1, 1, 0, seconds=SECONDS, size=SIZE, workers=1)
    name = "run_000/images/rear/000025.png"
    assert (again / name).read_bytes() == (exported / name).read_bytes()
    (again / "run_900" / "config.json").unlink()  # broken off
    kept = (again / "run_000" / "config.json").stat().st_mtime_ns
    export_carla(again, 1, 1, 0, seconds=SECONDS, size=SIZE, workers=1)
    assert (again / "run_000" / "config.json").stat().st_mtime_ns == kept
    assert (again / "run_900" / "vehicle_log.json").read_bytes() == (
        exported / "run_900" / "vehicle_log.json"
    ).read_bytes()
    with pytest.raises(WorldError, match="export with seconds"):
        export_carla(again, 1, 1, 0, seconds=5.0, size=SIZE, workers=1)


def test_only_the_cameras_that_are_asked_for_are_rendered(tmp_path: Path) -> None:
    out = tmp_path / "raw"
    export_carla(out, 1, 1, 0, seconds=1.0, size=SIZE, cameras=["rear", "front"], workers=1)
    run = carla.read_run(out / "run_000")
    assert run.cameras == ("front", "rear")
    assert set(run.sensors) == {"front", "rear", "lidar"}
    assert run.problems == ()
    with pytest.raises(WorldError, match="export with cameras"):
        export_carla(out, 1, 1, 0, seconds=1.0, size=SIZE, workers=1)
    for wrong in (["rear"], ["front", "roof"]):
        with pytest.raises(
            WorldError, match="cameras are some of front, front_left, front_right, rear, front_shifted, front among"
        ):
            export_carla(tmp_path / "other", 1, 1, 0, seconds=1.0, size=SIZE, cameras=wrong, workers=1)


def test_towns_are_shared_with_no_other_set() -> None:
    from automoe.world import bdd100k_writer, nuscenes_writer

    sets = [{*module.TRAIN_TOWNS, *module.VAL_TOWNS} for module in (bdd100k_writer, nuscenes_writer, carla_writer)]
    assert not sets[2] & (sets[0] | sets[1])
    assert not set(carla_writer.TRAIN_TOWNS) & set(carla_writer.VAL_TOWNS)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"runs": 901}, {"val_runs": 0}, {"seconds": 0.5}, {"save_every": 0}])
def test_plans_that_make_no_sense_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    plan = {"runs": 1, "val_runs": 1, "seconds": 2.0, "save_every": 5} | wrong
    with pytest.raises(WorldError, match="an export needs"):
        export_carla(
            tmp_path, int(plan["runs"]), int(plan["val_runs"]), 0, seconds=plan["seconds"],
            save_every=int(plan["save_every"]),
        )  # fmt: skip


def test_there_need_be_no_lidar(tmp_path: Path) -> None:
    out = tmp_path / "raw"
    settings = {"seconds": 1.0, "size": SIZE, "cameras": ["front"], "workers": 1}
    export_carla(out, 1, 1, 3, lidar=False, **settings)
    run = carla.read_run(out / "run_000")
    assert run.problems == ()
    assert "lidar" not in run.parts
    assert set(run.sensors) == {"front"}
    with pytest.raises(WorldError, match="export with lidar"):
        export_carla(out, 1, 1, 3, **settings)


def test_a_camera_that_stands_aside_is_rendered_and_told(tmp_path: Path) -> None:
    out = tmp_path / "raw"
    export_carla(out, 1, 1, 0, seconds=1.0, size=SIZE, cameras=["front", SHIFTED], workers=1)
    run = carla.read_run(out / "run_000")
    assert run.cameras == ("front", SHIFTED)
    assert run.problems == ()
    shift = np.array([step.shift for step in run.steps])
    assert (np.abs(shift) <= [1.5, np.radians(10.0)]).all()
    assert (shift.std(axis=0) > 0).all()
    log = json.loads((out / "run_000" / "vehicle_log.json").read_bytes())
    said = [[-record["camera_shift"]["y"], -np.radians(record["camera_shift"]["yaw"])] for record in log]
    np.testing.assert_allclose(shift, said)
    for step in run.steps:
        front, aside = (carla.read_picture(run.image(camera, step)).astype(float) for camera in ("front", SHIFTED))
        assert np.abs(front - aside).mean() > 1.0
    info = prepare(out, "frames", "train", tmp_path / "train", options={"cameras": ["front", SHIFTED]}, workers=1)
    np.testing.assert_allclose(TimeIndex.load(info.path).columns["shift"], shift)


def test_lanes_are_labelled_from_aside_too(tmp_path: Path) -> None:
    """Each such picture is a sample more, and its lane lies where the car would see it from there."""
    out = tmp_path / "raw"
    export_carla(out, 1, 1, 0, seconds=1.0, size=SIZE, cameras=["front", SHIFTED], lidar=False, workers=1)
    options = {"cameras": ["front", SHIFTED]}
    info = prepare(out, "frames", "train", tmp_path / "train", options=options, workers=1)
    height, width = SIZE[1], SIZE[0]
    data = CarlaImages(info.path, "drivable", EvalTransform((height, width)), aside=True)
    assert (len(data), data.from_aside) == (2 * info.count, info.count)
    assert CarlaImages(info.path, "drivable", EvalTransform((height, width))).from_aside == 0
    assert CarlaImages(info.path, "segmentation", EvalTransform((height, width)), aside=True).from_aside == 0
    ys, xs = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    ground = Ground(CameraSpec.of_rig(info.rig), (height, width))(torch.stack([xs, ys], dim=-1)).double().numpy()

    def middle(places: np.ndarray) -> float:
        """Of what lies 6 to 9 m ahead, to the left."""
        return float(places[(places[:, 0] > 6.0) & (places[:, 0] < 9.0), 1].mean())

    for index, shift in enumerate(TimeIndex.load(info.path).columns["shift"]):
        front, aside = (ground[data.row(row).mask() == 0] for row in (index, info.count + index))
        moved = into_frame(shift_pose(np.eye(4), *shift), front)
        assert middle(aside) == pytest.approx(middle(moved), abs=0.3)
        assert data.row(info.count + index).name.endswith(" aside")
        assert len(data.row(info.count + index).boxes) == 0
    # Who doesn't ask for that camera gets what it sees neither as a picture nor as a label.
    alone = prepare(out, "frames", "train", tmp_path / "alone", options={"cameras": ["front"]}, workers=1)
    assert CarlaImages(alone.path, "drivable", EvalTransform((height, width)), aside=True).from_aside == 0


def test_a_run_may_begin_under_way_and_in_more_towns(tmp_path: Path) -> None:
    """The earlier export, of a program that knew no lead-in, is gone on with where none is asked for."""
    out = tmp_path / "raw"
    export_carla(out, 3, 1, 5, seconds=1.0, size=SIZE, cameras=["front"], towns=3, lead_in=8.0, workers=1)
    runs = [carla.read_run(folder) for folder in carla.find_runs(out)]
    assert {run.town for run in runs[:3]} == {"carla-train-01", "carla-train-02", "carla-train-03"}
    speeds = [run.steps[0].ego.speed for run in runs]
    assert max(speeds) > 2.0
    assert len(set(speeds)) == 4
    assert all(run.steps[0].time == 0.0 and len(run.steps) == 4 for run in runs)
    with pytest.raises(WorldError, match="export with lead_in"):
        export_carla(out, 3, 1, 5, seconds=1.0, size=SIZE, cameras=["front"], towns=3, workers=1)
    with pytest.raises(WorldError, match="1 to 99 training towns"):
        export_carla(out, 3, 1, 5, towns=100)
    with pytest.raises(WorldError, match="late starts of 0 s or more"):
        export_carla(out, 3, 1, 5, late_starts=-1.0)
    old = tmp_path / "old"
    export_carla(old, 1, 1, 0, seconds=1.0, size=SIZE, cameras=["front"], workers=1)
    world = json.loads((old / "world.json").read_bytes())
    del world["settings"]["lead_in"], world["settings"]["late_starts"]
    (old / "world.json").write_text(json.dumps(world))
    export_carla(old, 1, 1, 0, seconds=1.0, size=SIZE, cameras=["front"], workers=1)
