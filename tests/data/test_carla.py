"""CARLA recordings: every version and every part, what is broken in them, and what becomes of a frame."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from carla_runs import HEIGHT, WIDTH, box, record, tags_of, write_run, write_two_towns
from carla_runs import scene as drawn

from automoe.data import carla
from automoe.data.carla_prepared import CarlaImages, TimeIndex
from automoe.data.carla_source import find_carla, split_runs
from automoe.data.prepared import PreparedInfo, prepare
from automoe.data.transforms import EvalTransform
from automoe.errors import DataError
from automoe.taxonomy import (
    BDD_DETECTION,
    CARLA_TAG_COLORS,
    CARLA_TAG_COLORS_BEFORE,
    CARLA_TAGS,
    DRIVABLE,
    IGNORE_INDEX,
    LIGHT_COLORS,
    NUSCENES_DETECTION,
    SEMANTIC,
)

CAR = BDD_DETECTION.index("car")


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_two_towns(tmp_path / "raw")


def prepared(root: Path, split: str = "train", **options) -> PreparedInfo:
    return prepare(root, "frames", split, root.parent / "prepared" / split, options=options, workers=1)


def images(root: Path, task: str, split: str = "train", **options) -> CarlaImages:
    return CarlaImages(prepared(root, split, **options).path, task, EvalTransform((32, 64)))


def edit(path: Path, change) -> None:
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(change(content) or content))


# --- runs ---


def test_a_run_comes_out_in_our_frame(tree) -> None:
    run = carla.read_run(tree / "run_000")
    assert run.town == "Town01"
    assert set(run.parts) == {"tags", "boxes", "lidar"}
    assert (run.tick, run.stride) == (0.05, 5)
    step = run.steps[2]
    assert (step.number, step.time) == (10, 0.5)  # not the clock on the wall
    np.testing.assert_allclose(step.ego.T_world_ego[:3, 3], [2.5, -10.0, 0.0])
    assert step.ego.control == (0.3, 0.1, 0.0)
    assert step.command == -1
    points = carla.read_points(run.lidar(step), {})
    np.testing.assert_allclose(points[0], [10.0, -2.0, 1.5, 0.9], rtol=1e-6)  # 2.5 m above the ground, right is -y


def test_what_the_world_adds_is_read(tmp_path) -> None:
    folder = write_run(tmp_path, 0)
    more = {
        "route": {"command": 1, "target_points": [[12.5, 13.0], [20.0, 10.0]]},
        "traffic_light": {"id": "a", "state": "Red", "distance": 12.0},
        "acceleration": {"x": 1.0, "y": 0.5, "z": 0.0},
        "angular_velocity": {"x": 0.0, "y": 0.0, "z": 90.0},
        "speed_limit_kmh": 36.0,
        "target_speed_kmh": 18.0,
    }
    edit(folder / "vehicle_log.json", lambda log: [record(entry["frame"], **more) for entry in log])
    step = carla.read_run(folder).steps[2]
    assert step.command == 0
    np.testing.assert_allclose(step.targets, [[10.0, -3.0], [17.5, 0.0]])  # ahead and to the right
    assert step.light == "red"
    assert step.ego.yaw_rate == pytest.approx(-np.pi / 2)
    assert step.speed_limit == pytest.approx(10.0)
    assert step.target_speed == pytest.approx(5.0)


@pytest.mark.parametrize("name", ["config.json", "vehicle_log.json"])
def test_a_run_that_was_broken_off_is_named_and_left_out(tree, name: str) -> None:
    (tree / "run_001" / name).unlink()
    with pytest.raises(DataError, match=f"run_001 has no {name}; was it broken off"):
        carla.read_run(tree / "run_001")
    write_run(tree, 2, town="Town02")
    info = prepared(tree)
    assert info.count + prepared(tree, "val").count == 12
    entries = info.quarantine()
    assert [entry.name for entry in entries] == ["run_001"]
    assert name in entries[0].reason


def test_numbers_that_are_none_leave_a_frame_out(tree) -> None:
    def spoil(log) -> None:
        log[1]["velocity"]["x"] = float("nan")
        del log[2]["control"]

    edit(tree / "run_000" / "vehicle_log.json", spoil)
    run = carla.read_run(tree / "run_000")
    assert [step.number for step in run.steps] == [0, 15, 20, 25]
    assert any("frame 5) holds numbers that are not finite" in problem for problem in run.problems)
    assert any("record 2 of" in problem and "control" in problem for problem in run.problems)
    assert any("gaps between its frames" in problem for problem in run.problems)


def test_frames_told_twice_and_pictures_that_no_log_knows(tree) -> None:
    folder = tree / "run_000"
    edit(folder / "vehicle_log.json", lambda log: [*log[:4], log[3]])
    run = carla.read_run(folder)
    assert len(run.steps) == 4
    assert any("tells frame 15 a second time" in problem for problem in run.problems)
    assert any("has 2 pictures that vehicle_log.json does not tell of, 000020.png" in one for one in run.problems)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"acceleration": {"x": 1.0, "y": 0.0}}, "is not complete"),
        ({"acceleration": {"x": float("nan"), "y": 0.0, "z": 0.0}}, "not finite"),
        ({"angular_velocity": {"x": 0.0, "y": 0.0}}, "is not complete"),
        ({"angular_velocity": {"x": 0.0, "y": 0.0, "z": float("inf")}}, "not finite"),
        ({"speed_limit_kmh": "fast"}, "is not complete"),
        ({"route": {"command": 1, "target_points": [[float("nan"), 0.0]]}}, "not finite"),
        ({"route": {"command": 1, "target_points": [[1.0, 2.0, 3.0]]}}, "is not complete"),
        ({"frame": float("inf")}, "is not complete"),
    ],
)
def test_what_a_record_need_not_tell_has_to_be_right_where_it_does(tree, told: dict, sentence: str) -> None:
    edit(tree / "run_000" / "vehicle_log.json", lambda log: [*log[:2], {**log[2], **told}, *log[3:]])
    run = carla.read_run(tree / "run_000")
    assert [step.number for step in run.steps] == [0, 5, 15, 20, 25]
    assert any("record 2 of" in problem and sentence in problem for problem in run.problems)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"carla_version": 0.9}, "carla_version is 0.9, not text"),
        ({"tick_seconds": 0}, "tick_seconds is 0, not a number above 0"),
        ({"save_every_n": "five"}, "save_every_n is 'five', not a number above 0"),
        ({"weather": {"cloudiness": "much"}}, "the weather's cloudiness is 'much', not a finite number"),
        ({"sensors": {"front": {"location": {"x": 1.0}}}}, "the mounting of front cannot be read"),
        ({"sensors": {"front": {"fov": 270}}}, "the mounting of front holds numbers that make no sense"),
        ({"sensors": [1, 2]}, "sensors is no table"),
    ],
)
def test_a_config_that_is_wrong_takes_its_run_out_and_no_other(tree, told: dict, sentence: str) -> None:
    write_run(tree, 2, town="Town02")
    edit(tree / "run_001" / "config.json", lambda config: {**config, **told})
    entries = prepared(tree).quarantine()
    assert [entry.name for entry in entries] == ["run_001"]
    assert sentence in entries[0].reason


def test_what_a_config_leaves_open_is_taken_as_usual(tree) -> None:
    edit(tree / "run_000" / "config.json", lambda config: {**config, "tick_seconds": None, "save_every_n": None})
    run = carla.read_run(tree / "run_000")
    assert (run.tick, run.stride) == (0.05, 5)


@pytest.mark.parametrize("weather", [None, {}, "ClearNoon", {"cloudiness": None}])
def test_a_weather_that_nobody_tells_is_not_made_up(tree, weather) -> None:
    for index in range(2):
        edit(tree / f"run_00{index}" / "config.json", lambda config: {**config, "weather": weather})
    row = images(tree, "detection").row(0)
    assert (row.weather, row.timeofday) == ("undefined", "undefined")


def test_a_single_frame_without_a_part_serves_without_it(tmp_path) -> None:
    """The public recorder saves a frame whose tags, points or boxes are late without them."""
    write_run(tmp_path, 0, town="Town01")
    folder = write_run(tmp_path, 1, town="Town01")
    write_run(tmp_path, 2, town="Town02")
    (folder / "segmentation" / "front" / "000005.png").unlink()
    (folder / "annots" / "front" / "000010.json").unlink()
    (folder / "lidar" / "000015.npy").unlink()
    info = prepared(tmp_path, val_towns=["Town02"])
    assert (info.count, info.quarantined) == (12, 0)
    assert len(TimeIndex.load(info.path).windows(1, 4)) == 2
    assert len(CarlaImages(info.path, "segmentation", EvalTransform((32, 64)))) == 11
    assert len(CarlaImages(info.path, "drivable", EvalTransform((32, 64)))) == 11
    assert len(CarlaImages(info.path, "detection", EvalTransform((32, 64)))) == 11
    for words, frame in (("semantic tags", "000005"), ("boxes", "000010"), ("LiDAR", "000015")):
        assert any(f"1 single frames have no {words}, run_001/{frame} the first" in note for note in info.notes)


def test_runs_of_pictures_alone_take_no_lanes_from_others(tmp_path) -> None:
    for index, town in enumerate(("Town01", "Town02")):
        folder = write_run(tmp_path, index, town=town)
        lanes = np.full((HEIGHT, WIDTH), DRIVABLE.index("alternative"), np.uint8)
        (folder / "drivable" / "front").mkdir(parents=True)
        for picture in (folder / "images" / "front").iterdir():
            cv2.imwrite(str(folder / "drivable" / "front" / picture.name), lanes)
    write_run(tmp_path, 2, town="Town01", tags=None, boxes=False, lidar=False)
    data = images(tmp_path, "drivable", val_towns=["Town02"])
    assert data.collapse == {}
    assert set(np.unique(data.row(0).mask())) == {DRIVABLE.index("alternative")}


def test_boxes_without_tags_are_said_to_be_of_hidden_things_too(tmp_path) -> None:
    write_run(tmp_path, 0, town="Town01", tags=None)
    write_run(tmp_path, 1, town="Town02")
    info = prepared(tmp_path, val_towns=["Town02"])
    assert any("what stands behind walls counts as seen, run_000" in note for note in info.notes)


def test_lights_have_the_colour_that_a_run_tells(tree) -> None:
    for path in sorted((tree / "run_000" / "annots" / "front").glob("*.json")):
        light = {"bbox": [10.0, 4.0, 16.0, 18.0], "visible_bbox": [10.0, 4.0, 16.0, 18.0], "class": "traffic light"}
        more = [{**light, "state": "R"}, {**light, "state": "NA"}, light]
        edit(path, lambda content, more=more: content["boxes"].extend(more))
    both = [images(tree, "detection", split) for split in ("train", "val")]
    rows = [data.row(index) for data in both for index in range(len(data))]
    ours = [row for row in rows if row.name.startswith("run_000")]
    assert ours
    for row in ours:
        lights = row.labels == BDD_DETECTION.index("traffic light")
        assert row.colors[lights].tolist() == [LIGHT_COLORS.index("red"), LIGHT_COLORS.index("none"), -1]
        assert (row.colors[~lights] == -1).all()


def test_boxes_that_are_not_finite_are_no_truth(tree) -> None:
    for path in sorted((tree / "run_000" / "annots" / "front").glob("*.json")):
        bad = [
            {**box(0), "bbox": [0.0, 0.0, float("inf"), 40.0]},
            {**box(0), "type_id": None},
            {**box(0), "bbox": None},
        ]
        edit(path, lambda content, more=bad: content["boxes"].extend(more))
    both = [images(tree, "detection", split) for split in ("train", "val")]
    rows = [
        data.row(index) for data in both for index in range(len(data)) if data.row(index).name.startswith("run_000")
    ]
    assert len(rows) == 6
    assert all(len(row.boxes) == 1 for row in rows)


def test_cameras_that_sit_elsewhere_are_refused(tree) -> None:
    for index, height in enumerate((2.4, 1.2)):
        sensors = {"front": {"location": {"x": 1.5, "y": 0.0, "z": height}, "fov": 90}}
        edit(tree / f"run_00{index}" / "config.json", lambda config, own=sensors: {**config, "sensors": own})
    with pytest.raises(DataError, match="the front camera is mounted otherwise in run_001 than in run_000"):
        prepared(tree)


def test_targets_are_seen_from_above_on_a_slope(tmp_path) -> None:
    folder = write_run(tmp_path, 0)
    slope = {"location": {"x": 5.0, "y": 10.0, "z": 100.0}, "rotation": {"pitch": 5.0, "yaw": 90.0, "roll": 0.0}}
    ahead = {"route": {"command": 4, "target_points": [[5.0, 20.0], [3.0, 20.0]]}}
    edit(folder / "vehicle_log.json", lambda log: [{**entry, **slope, **ahead} for entry in log])
    np.testing.assert_allclose(carla.read_run(folder).steps[0].targets, [[10.0, 0.0], [10.0, -2.0]], atol=1e-9)


def test_a_camera_beside_the_front_one_that_hung_is_seen(tree) -> None:
    left = tree / "run_000" / "images" / "front_left"
    (left / "000015.png").write_bytes((left / "000010.png").read_bytes())
    both = [prepared(tree, split, cameras=["front", "front_left"]) for split in ("train", "val")]
    entries = [entry for info in both for entry in info.quarantine()]
    assert [entry.name for entry in entries] == ["run_000/000015"]
    assert "front_left" in entries[0].reason


def test_a_cut_picture_and_a_hung_camera_leave_their_frames_out(tree) -> None:
    front = tree / "run_000" / "images" / "front"
    last = front / "000025.png"
    last.write_bytes(last.read_bytes()[:-200])
    (front / "000015.png").write_bytes((front / "000010.png").read_bytes())
    both = [prepared(tree, split) for split in ("train", "val")]
    info = next(one for one in both if any(entry.name.startswith("run_000") for entry in one.quarantine()))
    reasons = {entry.name: entry.reason for entry in info.quarantine()}
    assert "is cut short" in reasons["run_000/000025"]
    assert "is the picture of frame 10 again, 1.2 m farther on" in reasons["run_000/000015"]
    assert info.count == 4


def test_a_standing_car_may_see_the_same_picture_twice(tmp_path) -> None:
    folder = write_run(tmp_path, 0)
    write_run(tmp_path, 1, town="Town02")
    edit(folder / "vehicle_log.json", lambda log: [record(entry["frame"], speed=0.0) for entry in log])
    front = folder / "images" / "front"
    (front / "000015.png").write_bytes((front / "000010.png").read_bytes())
    assert sum(prepared(tmp_path, split).quarantined for split in ("train", "val")) == 0


def test_no_runs_say_where_they_were_looked_for(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no CARLA runs"):
        carla.find_runs(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        carla.find_runs(tmp_path / "nowhere")
    write_run(tmp_path / "raw", 0)
    assert [folder.name for folder in carla.find_runs(tmp_path)] == ["run_000"]  # a level below


# --- tags ---


@pytest.mark.parametrize(("said", "known"), [("0.9.15", "0.9.14"), ("0.9.14", "0.9.14"), ("0.10.0", "0.9.14"),
                                             ("0.9.13", "0.9.0"), ("0.9.10.1", "0.9.0")])  # fmt: skip
def test_versions(said: str, known: str) -> None:
    assert carla.tags_version(said, "config.json") == known


def test_both_orders_of_tags_mean_the_same(tmp_path) -> None:
    _, names = drawn(0)
    for version in CARLA_TAGS:
        path = tmp_path / f"{version}.png"
        raw = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        raw[..., 2] = tags_of(names, version)
        cv2.imwrite(str(path), raw)
        read = np.array(CARLA_TAGS[version], object)[carla.read_tags(path, version)]
        assert (read[names == "road"] == "road").all()
        assert (read[names == "sky"] == "sky").all()
        assert set(read[names == "car"]) == {"car" if version == "0.9.14" else "vehicle"}
        assert carla.guess_version([path])[0] == version
        cv2.imwrite(str(path), raw[..., 2])  # grey values
        np.testing.assert_array_equal(carla.read_tags(path, version), raw[..., 2])


def test_a_picture_that_tells_no_order_of_tags_has_no_vote(tmp_path) -> None:
    """A vehicle close before the car: tag 10 before 0.9.14, terrain since."""
    path = tmp_path / "a.png"
    raw = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    raw[..., 2] = 10
    cv2.imwrite(str(path), raw)
    with pytest.raises(DataError, match="none of 1 semantic pictures shows which order of tags"):
        carla.guess_version([path])
    raw[-3:, WIDTH // 2, 2] = 6  # a road line is enough
    cv2.imwrite(str(path), raw)
    assert carla.guess_version([path])[0] == "0.9.0"


def test_a_tag_that_the_version_does_not_know_is_named(tmp_path) -> None:
    path = tmp_path / "a.png"
    raw = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    raw[3, 4, 2] = 26
    cv2.imwrite(str(path), raw)
    carla.read_tags(path, "0.9.14")
    with pytest.raises(DataError, match=r"a\.png has the tag 26, and CARLA 0\.9\.0 and later know 0 to 22"):
        carla.read_tags(path, "0.9.0")


def test_the_real_picture_reads_back_from_its_colours(fixtures) -> None:
    """A picture of CARLA 0.9.13 in CityScapesPalette's colours; its authors painted standing cars red."""
    path = fixtures("carla_images_0183") / "docs" / "assets" / "0183_semseg.png"
    with pytest.raises(DataError, match=r"the colour \(255, 0, 0\), which is no tag"):
        carla.read_tags(path, "0.9.0")
    picture = cv2.imread(str(path))
    picture[(picture == [0, 0, 255]).all(axis=-1)] = CARLA_TAG_COLORS["vehicle"][::-1]
    repaired = Path(str(path))  # only its pixels are asked for
    tags = carla._from_colours(picture[..., ::-1], "0.9.0", repaired)
    names = np.array(CARLA_TAGS["0.9.0"], object)[tags]
    share = {name: float((names == name).mean()) for name in ("road", "building", "sky", "vehicle", "sidewalk")}
    assert share["building"] > 0.3
    assert share["road"] > 0.25
    assert 0.1 < share["sky"] < 0.2
    assert names[480, 690] == "road"  # before the car
    assert names[330, 120] == "vehicle"  # the dark red one on the left
    assert names[300, 980] != "vehicle"
    assert set(map(tuple, np.unique(picture.reshape(-1, 3), axis=0)[:, ::-1].tolist())) <= set(
        CARLA_TAG_COLORS_BEFORE.values()
    )


def test_a_version_that_nobody_says_is_guessed_and_said(tmp_path) -> None:
    write_run(tmp_path, 0, version=None, tags="0.9.0")
    write_run(tmp_path, 1, version=None, tags="0.9.0", town="Town02")
    info = prepared(tmp_path)
    assert any("does not say its carla_version" in note and "before 0.9.14" in note for note in info.notes)
    data = images(tmp_path, "segmentation")
    mask = data.row(0).mask()
    assert set(np.unique(mask)) == {SEMANTIC.index(name) for name in ("sky", "road", "car")}
    assert data.collapse["truck"] == "car"
    assert data.collapse["rider"] == "car"


# --- rows ---


def test_rows_have_what_each_expert_needs(tree) -> None:
    detection = images(tree, "detection")
    row = detection.row(0)
    assert row.labels.tolist() == [CAR]
    np.testing.assert_allclose(row.boxes[0], [4, 26, 20, 40])
    assert not row.ignored[0]
    assert (row.weather, row.timeofday) == ("overcast", "daytime")
    assert row.image().shape == (HEIGHT, WIDTH, 3)
    assert detection.collapse == {}
    drivable = images(tree, "drivable")
    assert set(np.unique(drivable.row(0).mask())) == {DRIVABLE.index("direct"), DRIVABLE.index("background")}
    assert drivable.collapse == {"alternative": "direct"}  # tags know the road alone, and it is said
    nuscenes = images(tree, "nuscenes_2d")
    assert nuscenes.row(0).labels.tolist() == [NUSCENES_DETECTION.index("car")]
    item = drivable[0]
    assert item["mask"].shape == (32, 64)
    assert item["mask"].max() == IGNORE_INDEX  # the letterbox


@pytest.mark.parametrize(
    ("type_id", "name"),
    [("vehicle.carlamotors.firetruck", "truck"), ("vehicle.mitsubishi.fusorosa", "bus"),
     ("vehicle.carlacola.actors", "truck"), ("vehicle.firetruck.actors", "truck"), ("vehicle.fuso.mitsubishi", "bus"),
     ("vehicle.sprinter.mercedes", "car"),
     ("vehicle.bh.crossbike", "bicycle"), ("vehicle.yamaha.yzf", "motorcycle"), ("vehicle.audi.tt", "car")],
)  # fmt: skip
def test_blueprints_tell_classes(tmp_path, type_id: str, name: str) -> None:
    write_run(tmp_path, 0, type_id=type_id, tags=None)
    write_run(tmp_path, 1, type_id=type_id, tags=None, town="Town02")
    assert images(tmp_path, "detection").row(0).labels.tolist() == [BDD_DETECTION.index(name)]


def test_labels_alone_are_vehicles_and_people(tmp_path) -> None:
    write_run(tmp_path, 0, type_id=None)
    write_run(tmp_path, 1, town="Town02", type_id="vehicle.carlamotors.firetruck", tags="0.9.14")
    for split in ("train", "val"):
        data = images(tmp_path, "detection", split)
        assert data.row(0).labels.tolist() == [CAR]  # the same for both splits, whichever run tells more
        assert data.collapse["truck"] == "car"
        assert data.collapse["rider"] == "pedestrian"


def test_what_tags_do_not_show_is_hidden(tmp_path) -> None:
    """Public runs box everything in view of the camera, behind walls too."""
    for index, town in enumerate(("Town01", "Town02")):
        folder = write_run(tmp_path, index, town=town)
        for path in (folder / "annots" / "front").glob("*.json"):
            number = int(path.stem)
            behind = {**box(number), "bbox": [2.0, 2.0, 30.0, 20.0], "type_id": "vehicle.audi.tt"}  # in the sky
            left = 4 + number % 40
            mostly = {**behind, "bbox": [max(left - 40.0, 0.0), 0.0, left + 4.0, 47.0]}
            edit(path, lambda content, more=(behind, mostly): content["boxes"].extend(more))
    row = images(tmp_path, "detection").row(2)
    assert len(row.boxes) == 2
    assert row.ignored.tolist() == [False, True]


def test_runs_of_pictures_alone_serve_no_expert_and_say_so(tmp_path) -> None:
    for index, town in enumerate(("Town01", "Town02")):
        write_run(tmp_path, index, town=town, tags=None, boxes=False, lidar=False)
    info = prepared(tmp_path)
    assert info.count == 6
    assert any("have no semantic tags" in note for note in info.notes)
    with pytest.raises(DataError, match="no frame with labels for segmentation"):
        CarlaImages(info.path, "segmentation", EvalTransform((32, 64)))


def test_runs_without_a_part_are_left_out_of_its_task_only(tmp_path) -> None:
    write_run(tmp_path, 0, town="Town01")
    write_run(tmp_path, 1, town="Town01", tags=None)
    write_run(tmp_path, 2, town="Town02")
    info = prepared(tmp_path, "train", val_towns=["Town02"])
    assert info.count == 12
    assert len(CarlaImages(info.path, "detection", EvalTransform((32, 64)))) == 12
    assert len(CarlaImages(info.path, "segmentation", EvalTransform((32, 64)))) == 6


# --- splits and time ---


def test_splits_are_by_town_and_never_by_frame(tmp_path) -> None:
    for index in range(6):
        write_run(tmp_path, index, frames=2, town=f"Town{index // 2:02d}")
    runs = [carla.read_run(folder) for folder in carla.find_runs(tmp_path)]
    splits, _ = split_runs(runs, None)
    by_town = {town: {splits[run.name] for run in runs if run.town == town} for town in {run.town for run in runs}}
    assert all(len(found) == 1 for found in by_town.values())
    assert {"train", "val"} == {split for found in by_town.values() for split in found}
    assert split_runs(runs, None) == split_runs(runs[::-1], None)
    named, _ = split_runs(runs, ["Town01"])
    assert [name for name, split in named.items() if split == "val"] == ["run_002", "run_003"]
    with pytest.raises(DataError, match="no run was recorded in Town09"):
        split_runs(runs, ["Town09"])


def test_one_town_is_split_by_run_and_that_is_said(tmp_path) -> None:
    for index in range(5):
        write_run(tmp_path, index, frames=2)
    info = prepared(tmp_path)
    assert info.count == 8
    assert any("in a town that was trained in" in note for note in info.notes)
    only = tmp_path / "one"
    write_run(only, 0, frames=2)
    with pytest.raises(DataError, match="both splits need one"):
        find_carla(only, "frames", "train").plan()


def test_windows_of_time_know_runs_and_gaps(tmp_path) -> None:
    write_run(tmp_path, 0, frames=8)
    write_run(tmp_path, 1, frames=8)
    write_run(tmp_path, 2, frames=3, town="Town02")
    edit(tmp_path / "run_000" / "vehicle_log.json", lambda log: log[:5] + log[6:])
    info = prepared(tmp_path, "train", val_towns=["Town02"])
    index = TimeIndex.load(info.path)
    assert index.runs == ("run_000", "run_001")
    assert len(index.run) == 15
    windows = index.windows(1, 2)
    rows = {(index.runs[index.run[row]], int(index.frame[row])) for row in windows}
    assert rows == {("run_000", 5), ("run_000", 10)} | {("run_001", frame) for frame in (5, 10, 15, 20, 25)}
    np.testing.assert_allclose(index.T_world_ego[windows[0], :2, 3], [1.25, -10.0])
    np.testing.assert_allclose(index.columns["time"][windows[:2]], [0.25, 0.5])
    small = [index.run, index.frame, index.T_world_ego, index.targets, *index.columns.values()]
    assert sum(array.nbytes for array in small) < 500 * len(index.run)


def test_a_changed_run_is_prepared_again_and_an_unchanged_one_is_not(tree) -> None:
    first = prepared(tree)
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    assert prepared(tree).fingerprint == first.fingerprint
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp
    for index in range(2):
        edit(
            tree / f"run_00{index}" / "vehicle_log.json",
            lambda log: [{**entry, "angular_velocity": {"x": 0.0, "y": 0.0, "z": 50.0}} for entry in log],
        )
    turned = prepared(tree)
    assert turned.fingerprint != first.fingerprint
    np.testing.assert_allclose(TimeIndex.load(turned.path).columns["yaw_rate"], np.radians(-50.0))
    edit(tree / "run_001" / "vehicle_log.json", lambda log: log[:-1])
    edit(tree / "run_000" / "vehicle_log.json", lambda log: log[:-1])
    assert prepared(tree).count == first.count - 1
