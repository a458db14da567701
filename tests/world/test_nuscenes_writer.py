"""The nuScenes export: official tables, boxes on points and pixels, deterministic, resumable; the devkit agrees."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from automoe.data.nuscenes import Nuscenes, read_points, seven, to_global
from automoe.data.nuscenes_tables import CAMERAS, TABLES
from automoe.errors import WorldError
from automoe.metrics.nuscenes import Boxes3D
from automoe.metrics.nuscenes_submission import write_submission
from automoe.poses import invert, move_boxes, points_inside
from automoe.stages.score_nuscenes import score_nuscenes
from automoe.taxonomy import NUSCENES_DETECTION
from automoe.world import nuscenes_writer, town
from automoe.world.furnish import stage_town
from automoe.world.lidar import LidarCaster
from automoe.world.look import scene_light
from automoe.world.motion import Traffic
from automoe.world.nuscenes_writer import TRAIN_TOWNS, VAL_TOWNS, VERSION, export_nuscenes, list_things
from automoe.world.renderer import Renderer
from automoe.world.rig import nuscenes_cameras, nuscenes_lidar
from automoe.world.scene import Conditions, world_to_camera
from automoe.world.scene import project as scene_project
from automoe.world.traffic import draw_nuscenes_density, sample_scene

SIZE = (160, 90)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short scenes in small towns with roadworks."""
    out = tmp_path_factory.mktemp("nuscenes")
    with pytest.MonkeyPatch.context() as patch:
        quick_towns(patch)
        export_nuscenes(out, 1, 1, seed=3, seconds=1.5, size=SIZE, workers=1)
    return out


def quick_towns(patch: pytest.MonkeyPatch) -> None:
    style = town.TownStyle(
        columns=2, rows=2, spacing=110.0, merged_blocks=0, avenues=1.0, roadworks=1.0, fleet="tests-nuscenes/0"
    )
    patch.setattr(town, "draw_style", lambda name: style)
    patch.setattr(nuscenes_writer.ScenePlan, "town", lambda self, split, index: f"tests-2{len(split)}")


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_towns_of_the_two_splits_are_disjoint_and_share_no_vehicles() -> None:
    assert not set(TRAIN_TOWNS) & set(VAL_TOWNS)
    fleets = [{town.draw_style(name).fleet for name in towns} for towns in (TRAIN_TOWNS, VAL_TOWNS)]
    assert not fleets[0] & fleets[1]
    assert all(town.draw_style(name).roadworks > 0 and not town.draw_style(name).tram for name in VAL_TOWNS)


def test_every_official_table_is_there_and_every_token_leads_somewhere(export: Path) -> None:
    tables = {name: json.loads((export / VERSION / f"{name}.json").read_text()) for name in TABLES}
    tokens = {name: {record["token"] for record in records} for name, records in tables.items()}
    links = {
        "scene": ("log_token:log", "first_sample_token:sample", "last_sample_token:sample"),
        "sample": ("scene_token:scene", "prev:sample", "next:sample"),
        "sample_data": (
            "sample_token:sample", "ego_pose_token:ego_pose", "calibrated_sensor_token:calibrated_sensor",
            "prev:sample_data", "next:sample_data",
        ),
        "calibrated_sensor": ("sensor_token:sensor",),
        "instance": (
            "category_token:category", "first_annotation_token:sample_annotation",
            "last_annotation_token:sample_annotation",
        ),
        "sample_annotation": (
            "sample_token:sample", "instance_token:instance", "visibility_token:visibility",
            "prev:sample_annotation", "next:sample_annotation",
        ),
    }  # fmt: skip
    for name, fields in links.items():
        for field, target in (link.split(":") for link in fields):
            for record in tables[name]:
                assert record[field] in tokens[target] or (field in ("prev", "next") and record[field] == "")
    for name, records in tables.items():
        assert len(tokens[name]) == len(records), name
    assert all((export / record["filename"]).is_file() for record in tables["sample_data"] + tables["map"])
    assert json.loads((export / VERSION / "splits.json").read_text()).keys() == {"embedded_train", "embedded_val"}


def test_sweeps_come_at_20_hz_and_key_frames_at_2(export: Path) -> None:
    sample = Nuscenes(export).split("train", sweeps=10)[2]
    lags = [(sample.lidar.timestamp - frame.timestamp) / 1e6 for frame in sample.sweeps]
    assert lags == pytest.approx([0.05 * k for k in range(1, 11)])
    assert sample.cameras.keys() == set(CAMERAS)
    image = cv2.imread(str(sample.cameras["CAM_BACK"].path))
    assert image.shape == (SIZE[1], SIZE[0], 3)


def test_boxes_hold_the_points_that_they_say(export: Path) -> None:
    dataset, counted = Nuscenes(export), 0
    for number in range(len(dataset.tables.tokens)):
        sample = dataset.sample(number, cameras=())
        raw = read_points(sample.lidar.path)[:, :3].astype(np.float64)
        in_lidar = move_boxes(invert(sample.lidar.T_ego_lidar), sample.boxes.boxes)
        found = points_inside(raw, in_lidar).sum(axis=0)
        np.testing.assert_allclose(found, sample.boxes.points, atol=1)  # a point on the skin may round to either side
        counted += int(found.sum())
    assert counted > 100


def test_points_are_counted_as_by_trying_every_box() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-20, 20, (4000, 3)) * [1, 1, 0.1]
    boxes = np.column_stack([rng.uniform(-25, 25, (60, 2)), np.zeros(60), rng.uniform(0.3, 9, (60, 3)),
                             rng.uniform(-4, 4, 60)])  # fmt: skip
    assert nuscenes_writer.count_points(points, boxes) == points_inside(points, boxes).sum(axis=0).tolist()


def test_cycles_without_riders_and_people_who_stand_or_sit_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_towns(monkeypatch)
    stage = stage_town("tests-25")
    attributes: set[str | None] = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        traffic = Traffic(sample_scene(stage, rng, Conditions(), draw_nuscenes_density(rng)), seed)
        before = {thing.instances: thing for thing in list_things(traffic.step(0.05))}
        after = {thing.instances: thing for thing in list_things(traffic.step(0.5))}
        attributes |= {thing.attribute for thing in after.values()}
        for instances, thing in after.items():
            if thing.attribute in ("cycle.without_rider", "pedestrian.sitting_lying_down", "vehicle.parked"):
                assert thing.box == before[instances].box
    assert {"cycle.without_rider", "pedestrian.standing", "pedestrian.sitting_lying_down"} <= attributes


def test_cameras_and_lidar_see_the_same_things_at_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LiDAR point of a car, projected by the rig that is written, falls on a pixel of that car."""
    quick_towns(monkeypatch)
    stage = stage_town("tests-25")
    scene = sample_scene(stage, np.random.default_rng(1), Conditions())
    lidar = nuscenes_lidar()
    sweep = LidarCaster(stage).sweep(scene, lidar)
    ego = sweep.points[sweep.instance > 0] @ lidar.T_ego_lidar[:3, :3].T + lidar.T_ego_lidar[:3, 3]
    instance = sweep.instance[sweep.instance > 0]
    right = looked_at = 0
    with Renderer(stage, 400, 225) as renderer:
        for camera in nuscenes_cameras(400, 225):
            frame = renderer.render(scene, camera, scene_light(scene.conditions))
            points = world_to_camera(camera.T_ego_cam, ego)
            pixels = scene_project(camera, np.where(points[:, 2:] > 0.5, points, 1.0))
            shown = (points[:, 2] > 0.5) & (pixels >= 0).all(axis=1) & (pixels < [400, 225]).all(axis=1)
            columns, rows = pixels[shown].astype(int).T
            right += int((frame.instance[rows, columns] == instance[shown]).sum())
            looked_at += int(shown.sum())
    assert looked_at > 200
    assert right > 0.8 * looked_at  # the LiDAR sits higher than the cameras, and edges are a pixel wide


def test_velocities_are_those_of_the_moving_world(export: Path) -> None:
    boxes = [sample.boxes for sample in Nuscenes(export).split("train")]
    speed = np.concatenate([np.linalg.norm(one.velocity, axis=1) for one in boxes])
    label = np.concatenate([one.label for one in boxes])
    known = ~np.isnan(speed)
    assert known.any()
    assert speed[known].max() < 16
    still = np.isin(label, [NUSCENES_DETECTION.index(name) for name in ("barrier", "traffic_cone")]) & known
    assert still.any()
    assert speed[still].max() < 1e-6


def test_the_same_seed_gives_the_same_files_however_often_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_towns(monkeypatch)

    class KilledError(Exception):
        pass

    def die(done: int, total: int) -> None:
        if done == 1:
            raise KilledError

    arguments = {"seed": 5, "seconds": 1.0, "size": (64, 36), "workers": 1}
    export_nuscenes(tmp_path / "whole", 1, 1, **arguments)
    with pytest.raises(KilledError):
        export_nuscenes(tmp_path / "parts", 1, 1, **arguments, progress=die)
    export_nuscenes(tmp_path / "parts", 1, 1, **arguments)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    with pytest.raises(WorldError, match=r"seconds 1.0, not 2.0"):
        export_nuscenes(tmp_path / "parts", 1, 1, **{**arguments, "seconds": 2.0})


def test_the_devkit_loads_it_and_scores_alike(export: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    if find_spec("nuscenes") is None:
        if os.environ.get("AUTOMOE_REQUIRE_FIXTURES") == "1":
            pytest.fail("nuscenes-devkit is not installed: `make devkit` does that")
        pytest.skip("nuscenes-devkit is not installed: `make devkit` does that")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import NuScenesEval
    from nuscenes.nuscenes import NuScenes

    recwarn.clear()
    devkit = NuScenes(VERSION, str(export), verbose=False)
    assert not [warning for warning in recwarn if "nuscenes" in str(warning.filename)]
    dataset, rng, predicted = Nuscenes(export), np.random.default_rng(0), {}
    for number in dataset.numbers("val"):
        sample = dataset.sample(int(number), cameras=())
        boxes, count = sample.boxes, len(sample.boxes.label)
        noisy = boxes.boxes + rng.normal(0, [0.7, 0.7, 0.3, 0.2, 0.1, 0.1, 0.4], (count, 7))
        noisy[:, 3:6] = np.maximum(noisy[:, 3:6], 0.1)
        velocity = np.nan_to_num(boxes.velocity) + rng.normal(0, 0.5, (count, 2))
        attribute = np.where(rng.random(count) < 0.8, boxes.attribute, -1)
        found = to_global(noisy, velocity, boxes.label, attribute, rng.random(count), sample.T_world_ego)
        predicted[sample.token] = found[rng.random(count) < 0.9]
    pred = tmp_path / "pred.json"
    write_submission(pred, predicted, camera=True, lidar=True)
    ours = score_nuscenes(export, VERSION, "val", pred).metrics
    theirs = NuScenesEval(
        devkit, config_factory("detection_cvpr_2019"), str(pred), "embedded_val", str(tmp_path / "eval"), verbose=False
    ).evaluate()[0]
    assert ours["mAP"] == pytest.approx(theirs.mean_ap, abs=1e-6)
    assert ours["NDS"] == pytest.approx(theirs.nd_score, abs=1e-6)
    assert ours["mAP"] > 0.01  # type: ignore[operator]
    for error, value in theirs.tp_errors.items():
        name = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}[error]
        assert ours[f"m{name}"] == pytest.approx(value, abs=1e-6)
    for name, value in theirs.mean_dist_aps.items():
        assert ours[f"AP/{name}"] == pytest.approx(value, abs=1e-6)


def test_seven_and_back() -> None:
    boxes = Boxes3D.of([[1, 2, 3]], [[2, 4, 1.5]], [0.3], [[1, 0]], [0], [-1], [0.5])
    np.testing.assert_allclose(seven(boxes), [[1, 2, 3, 4, 2, 1.5, 0.3]])
    back = to_global(seven(boxes), boxes.velocity, boxes.label, boxes.attribute, boxes.score, np.eye(4))
    np.testing.assert_allclose(back.size, boxes.size)
