"""Training items of nuScenes: points, boxes, pictures and cameras change together, and only what is seen is asked."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from nuscenes_tree import NORTH, append_points, edit_table, write_nuscenes_tree

from automoe.data.nuscenes import Nuscenes
from automoe.data.nuscenes_dataset import BevAugmentConfig, NuscenesDataset, NuscenesView, collate, image_boxes
from automoe.data.nuscenes_tables import CAMERAS
from automoe.data.prepared import prepare
from automoe.data.transforms import AugmentConfig
from automoe.errors import ConfigError, DataError
from automoe.poses import move_points, points_inside
from automoe.taxonomy import NUSCENES_DETECTION

RAW = (160, 90)
"""Width and height of the tree's pictures."""

SIZE = (45, 80)
"""Height and width of the network's."""

STILL = AugmentConfig(
    scale=(1.0, 1.0), stretch=0, flip=0, brightness=0, contrast=0, saturation=0, hue=0, gamma=0, blur=0
)
SAME = BevAugmentConfig(image=STILL, flip=0, rotate=0, scale=(1.0, 1.0), shift=0, drop_lidar=0, drop_cameras=0, paste=0)
"""Training without any change; tests turn on what they are about."""

WILD = replace(SAME, flip=0.5, rotate=60.0, scale=(0.8, 1.2), shift=1.0)
MOVED_PICTURES = replace(STILL, scale=(0.8, 1.3), stretch=0.1, flip=0.5)
CAR, PEDESTRIAN = NUSCENES_DETECTION.index("car"), NUSCENES_DETECTION.index("pedestrian")


def write_tree(root: Path, size: tuple[int, int] = RAW) -> Path:
    """Cars that turn and drive aside, pedestrians, and cars behind, each with LiDAR points, at other places in each
    scene. A picture's red tells its column, its green the row, and its blue the sample."""
    tree = write_nuscenes_tree(root, size)
    focal = size[0] / 2
    matrix = [[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1.0]]
    edit_table(
        tree,
        "calibrated_sensor",
        lambda records: [record.update(camera_intrinsic=matrix) for record in records if record["camera_intrinsic"]],
    )
    turned = [float(np.cos(np.pi / 4 + 0.2)), 0.0, 0.0, float(np.sin(np.pi / 4 + 0.2))]
    aside = {"scene-a": -3.0, "scene-b": 7.0, "scene-c": 1.0}

    def change(records: list[dict[str, Any]]) -> None:
        for record in list(records):
            scene, kind = record["token"].rsplit("-", 2)[0] if "car" in record["token"] else "", record["token"]
            if "car" in kind:
                place = int(kind[-1])
                record.update(rotation=turned, translation=[aside[scene] + place, 20.0 + 2 * place, 1.0])
            elif "walker" in kind:
                scene = kind.rsplit("-", 1)[0]
                side = 5.0 if scene == "scene-a" else -6.0
                record.update(translation=[side, 10.0, 1.0], num_lidar_pts=6)
                behind = {"translation": [side, -15.0, 1.0], "size": [1.9, 4.5, 1.6], "rotation": NORTH}
                token = f"{scene}-behind"
                records.append({**record, **behind, "token": token, "instance_token": token, "num_lidar_pts": 9})

    edit_table(tree, "sample_annotation", change)
    edit_table(
        tree,
        "instance",
        lambda records: records.extend(
            {"token": f"scene-{name}-behind", "category_token": "category-vehicle.car"} for name in "abc"
        ),
    )
    add_points_and_pictures(tree, size)
    return tree


def add_points_and_pictures(tree: Path, size: tuple[int, int]) -> None:
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    number = 0
    for split in ("mini_train", "mini_val"):
        for sample in Nuscenes(tree).split(split):
            generator = np.random.default_rng(number)
            picture = np.stack([columns * 255 / size[0], rows * 255 / size[1], 0 * rows + 30 + 40 * number], axis=-1)
            encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(picture.astype(np.uint8)), quality=98)
            for camera in sample.cameras.values():
                camera.path.write_bytes(encoded)
            # Where the other scenes' pedestrian stands there is something here too: it gives way to a pasted one.
            clutter = np.array([10.0, 6.0 if sample.scene == "scene-a" else -5.0, 1.0])
            append_points(sample, clutter + generator.uniform(-0.1, 0.1, (4, 3)))
            for place, (x, y, z, length, width, height, yaw) in enumerate(sample.boxes.boxes):
                inside = generator.uniform(-0.45, 0.45, (20 + place, 3)) * [length, width, height]
                cos, sin = np.cos(yaw), np.sin(yaw)
                turned = np.stack([inside[:, 0] * cos - inside[:, 1] * sin, inside[:, 0] * sin + inside[:, 1] * cos])
                ego = np.column_stack([turned.T, inside[:, 2]]) + np.array([x, y, z])
                append_points(sample, ego)
            number += 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nuscenes")
    return prepare(write_tree(root / "tree"), "detection3d", "train", root / "out", options={"sweeps": 3}).path


def open_set(
    path: Path,
    augment: BevAugmentConfig | None = None,
    *,
    cameras: tuple[str, ...] = CAMERAS,
    lidar: bool = True,
    sweeps: int = 2,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> NuscenesDataset:
    return NuscenesDataset(path, NuscenesView(size, cameras, lidar, sweeps), augment, seed)


def epochs(dataset: NuscenesDataset, index: int, count: int = 12) -> Iterator[dict[str, Any]]:
    return (dataset[epoch, index] for epoch in range(count))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a.nan_to_num(-1e6), b.nan_to_num(-1e6)) if isinstance(a, torch.Tensor) else a == b


def pixels_of(item: dict[str, Any], camera: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places [N, 3] of an item's world in network pixels of one of its pictures, and their depths."""
    inside = move_points(item["T_cam_ego"][camera].double().numpy(), places)
    projected = inside @ item["intrinsic"][camera].double().numpy().T
    return projected[:, :2] / projected[:, 2:], inside[:, 2]


def in_some_picture(item: dict[str, Any], places: np.ndarray) -> np.ndarray:
    found = np.zeros(len(places), bool)
    height, width = item["image"].shape[-2:]
    for camera in range(len(item["image"])):
        pixels, depth = pixels_of(item, camera, places)
        found |= (depth > 0.1) & (pixels > 0).all(axis=1) & (pixels < [width, height]).all(axis=1)
    return found


# --- items ---


def test_an_item_as_it_is(prepared: Path) -> None:
    dataset = open_set(prepared)
    row, item = dataset.row(0), dataset[0]
    np.testing.assert_allclose(item["points"], row.points(3)[:, [0, 1, 2, 3, 5]], atol=1e-6)
    seen = row.box_points > 0
    assert item["labels"].tolist() == row.labels[seen].tolist() == [CAR, PEDESTRIAN, CAR]
    np.testing.assert_allclose(item["boxes"], row.boxes[seen], atol=1e-5)
    np.testing.assert_allclose(item["velocity"], row.velocity[seen], atol=1e-5)
    np.testing.assert_allclose(item["T_cam_ego"], row.T_cam_ego, atol=1e-6)
    # Half the size: half of everything in the intrinsics.
    np.testing.assert_allclose(item["intrinsic"], row.intrinsic * np.array([0.5, 0.5, 1])[:, None], atol=1e-5)
    assert item["image"].shape == (6, 3, *SIZE)
    assert item["image"].dtype == torch.uint8
    assert item["present"].tolist() == [True] * 6
    assert (item["sample_id"], item["index"]) == ("scene-a-sample-0", 0)
    assert len(item["image_targets"]) == 6
    # The car behind is in the rear camera's picture and not in the front one's.
    labels = [target["labels"].tolist() for target in item["image_targets"]]
    assert labels[CAMERAS.index("CAM_FRONT")] == [CAR, PEDESTRIAN]
    assert labels[CAMERAS.index("CAM_BACK")] == [CAR]
    assert not any(target["ignored"].any() for target in item["image_targets"])


def test_items_are_functions_of_seed_epoch_and_index(prepared: Path) -> None:
    augment = replace(WILD, image=AugmentConfig(), cameras=3, drop_lidar=0.2, drop_cameras=0.2, paste=3)
    dataset = open_set(prepared, augment)
    first = dataset[2, 1]
    sent = pickle.loads(pickle.dumps(dataset))
    for other in (dataset[0, 0], dataset[2, 2], sent[1, 1]):
        assert not equal(first, other)
    assert equal(first, dataset[2, 1])
    assert equal(first, sent[2, 1])
    assert equal(dataset[1], dataset[0, 1])
    assert not equal(first, open_set(prepared, augment, seed=1)[2, 1])
    places = {tuple(item["points"][0].tolist()) for item in epochs(dataset, 0, 5) if len(item["points"])}
    assert len(places) >= 3
    plain = open_set(prepared)
    assert equal(plain[0, 0], plain[7, 0])  # not augmented, each epoch is alike


def test_points_stay_in_their_boxes(prepared: Path) -> None:
    dataset = open_set(prepared, WILD)
    row = dataset.row(0)
    seen = row.box_points > 0
    wanted = points_inside(row.points(3)[:, :3], row.boxes[seen]).sum(axis=0)
    assert wanted.tolist() == [20, 21, 22]
    mirrored = set()
    for item in epochs(dataset, 0):
        found = points_inside(item["points"][:, :3].double().numpy(), item["boxes"].double().numpy())
        assert found.sum(axis=0).tolist() == wanted.tolist()
        # The same points, not only as many.
        np.testing.assert_array_equal(found, points_inside(row.points(3)[:, :3], row.boxes[seen]))
        mirrored.add(bool(np.linalg.det(change_between(row.points(3)[:, :3], item)[0]) < 0))
    assert mirrored == {True, False}


def change_between(points: np.ndarray, item: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The linear part [3, 3] and the shift [3] that brought raw points to an item's, by least squares."""
    given = np.column_stack([points, np.ones(len(points))])
    solved, *_ = np.linalg.lstsq(given, item["points"][:, :3].double().numpy(), rcond=None)
    return solved[:3].T, solved[3]


def test_heading_velocity_and_size_change_as_the_points_do(prepared: Path) -> None:
    dataset = open_set(prepared, WILD)
    row = dataset.row(1)
    assert abs(row.boxes[0, 6]) > 0.3
    assert (np.abs(row.velocity[0]) > 0.5).all()
    for item in epochs(dataset, 1):
        linear, shift = change_between(row.points(3)[:, :3], item)
        size = np.cbrt(abs(np.linalg.det(linear)))
        assert 0.79 < size < 1.21
        box, own = item["boxes"][0].double().numpy(), row.boxes[0]
        np.testing.assert_allclose(box[:3], linear @ own[:3] + shift, atol=1e-3)
        np.testing.assert_allclose(box[3:6], own[3:6] * size, atol=1e-3)
        heading = linear @ [np.cos(own[6]), np.sin(own[6]), 0] / size
        np.testing.assert_allclose([np.cos(box[6]), np.sin(box[6])], heading[:2], atol=1e-3)
        np.testing.assert_allclose(item["velocity"][0], linear[:2, :2] @ row.velocity[0], atol=1e-3)


def test_a_mirrored_world_by_hand(prepared: Path) -> None:
    plain, mirrored = open_set(prepared)[1], open_set(prepared, replace(SAME, flip=1.0))[1]
    signs = torch.tensor([1.0, -1, 1, 1, 1, 1, -1])
    torch.testing.assert_close(mirrored["boxes"], plain["boxes"] * signs)
    torch.testing.assert_close(mirrored["velocity"], plain["velocity"] * signs[:2])
    torch.testing.assert_close(mirrored["points"], plain["points"] * signs[:5])
    assert plain["velocity"][0, 1].abs() > 0.5
    # The pictures and their boxes stay as they are: it is the world round them that is told otherwise.
    assert torch.equal(mirrored["image"], plain["image"])
    assert equal(mirrored["image_targets"], plain["image_targets"])


def test_pictures_show_points_where_they_are_projected(prepared: Path) -> None:
    """Red and green of a picture say which raw pixel it is: the raw projection of the raw point must be found there."""
    dataset = open_set(prepared, replace(WILD, image=MOVED_PICTURES))
    row = dataset.row(0)
    raw = row.points(3)[:, :3].astype(float)
    checked, mirrored = 0, set()
    for item in epochs(dataset, 0):
        moved = item["points"][:, :3].double().numpy()
        for camera in range(6):
            wanted, depth = pixels_of(
                {"T_cam_ego": torch.from_numpy(row.T_cam_ego), "intrinsic": torch.from_numpy(row.intrinsic)},
                camera,
                raw,
            )
            pixels, moved_depth = pixels_of(item, camera, moved)
            np.testing.assert_allclose(moved_depth, depth, atol=1e-3)  # metres of the real camera
            inside = (depth > 1) & (pixels > 1).all(axis=1) & (pixels < np.array(SIZE[::-1]) - 1).all(axis=1)
            inside &= (wanted > 3).all(axis=1) & (wanted < np.array(RAW) - 3).all(axis=1)
            columns, rows = np.floor(pixels[inside]).astype(int).T
            colours = item["image"][camera][:2, rows, columns].T.numpy() / 255 * RAW
            # A network pixel is about two raw ones; JPEG and rounding take one more.
            np.testing.assert_allclose(colours, wanted[inside], atol=3.5)
            checked += inside.sum()
            mirrored.add(bool(item["intrinsic"][camera, 0, 0] < 0))
    assert checked > 200
    assert mirrored == {True, False}


def test_image_boxes_go_with_the_pictures(prepared: Path) -> None:
    """A target's corners lie where its raw box's corners went."""
    dataset = open_set(prepared, replace(WILD, image=MOVED_PICTURES))
    row, plain = dataset.row(0), open_set(prepared)[0]
    place = CAMERAS.index("CAM_BACK")
    for item in epochs(dataset, 0, 6):
        affine = item["intrinsic"][place].double().numpy() @ np.linalg.inv(row.intrinsic[place])
        raw, _ = image_boxes(row.boxes[2:], row.intrinsic[place], row.T_cam_ego[place], RAW[::-1])
        corners = np.column_stack([raw.reshape(2, 2), np.ones(2)]) @ affine[:2].T
        low, high = corners.min(axis=0).clip(0, SIZE[::-1]), corners.max(axis=0).clip(0, SIZE[::-1])
        target = item["image_targets"][place]
        wanted = np.concatenate([(low + high) / 2, high - low]) / [*SIZE[::-1], *SIZE[::-1]]
        np.testing.assert_allclose(target["boxes"][0], wanted, atol=1e-4)
        assert target["labels"].tolist() == plain["image_targets"][place]["labels"].tolist() == [CAR]
        # What the evaluation compares with, and how a network's pixel becomes one of the raw picture.
        truth, labels, hidden = row.image_truth("CAM_BACK")
        np.testing.assert_allclose(truth, raw[:1])
        assert (labels.tolist(), hidden.tolist()) == ([CAR], [False])
        np.testing.assert_allclose(item["transform"][place], affine[:2], atol=1e-3)
        assert item["orig_size"][place].tolist() == [*RAW[::-1]]


def test_hardly_visible_objects_are_ignored_in_pictures_only(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    edit_table(tree, "visibility", lambda records: records.append({"token": "1", "level": "v0-40", "description": ""}))
    edit_table(
        tree,
        "sample_annotation",
        lambda records: [r.update(visibility_token="1") for r in records if r["token"].endswith("walker")],
    )
    dataset = open_set(prepare(tree, "detection3d", "train", tmp_path / "out").path)
    item = dataset[0]
    target = item["image_targets"][CAMERAS.index("CAM_FRONT")]
    _, labels, hidden = dataset.row(0).image_truth("CAM_FRONT")
    assert labels.tolist() == [CAR, PEDESTRIAN]
    assert hidden.tolist() == [False, True]
    assert target["labels"].tolist() == [CAR, PEDESTRIAN]
    assert target["ignored"].tolist() == [False, True]
    assert item["labels"].tolist() == [CAR, PEDESTRIAN, CAR]


# --- what is asked of which sensors ---


def test_without_points_only_what_a_picture_shows_is_asked(prepared: Path) -> None:
    dataset = open_set(prepared, replace(SAME, cameras=2, drop_lidar=0.4, drop_cameras=0.4))
    everything = open_set(prepared)[0]["boxes"]
    kinds: dict[tuple[bool, bool], int] = {}
    for item in epochs(dataset, 0, 40):
        has_points, has_cameras = len(item["points"]) > 0, bool(item["present"].any())
        assert item["present"].tolist() == [has_cameras] * 2
        ignored = torch.cat([target["ignored"] for target in item["image_targets"]])
        if has_points:
            torch.testing.assert_close(item["boxes"], everything)
        else:
            shown = in_some_picture(item, everything[:, :3].double().numpy())
            torch.testing.assert_close(item["boxes"], everything[torch.from_numpy(shown)])
        assert ignored.all() if not has_cameras else not ignored.any()
        kinds[has_points, has_cameras] = kinds.get((has_points, has_cameras), 0) + 1
        assert [len(item[key]) for key in ("velocity", "labels", "attributes")] == [len(item["boxes"])] * 3
    assert set(kinds) == {(True, True), (True, False), (False, True)}
    assert min(kinds.values()) >= 4


def test_every_camera_has_its_turn(prepared: Path) -> None:
    dataset = open_set(prepared, replace(SAME, cameras=2))
    wanted = open_set(prepared)[0]
    seen: set[int] = set()
    for item in epochs(dataset, 0, 20):
        assert item["image"].shape == (2, 3, *SIZE)
        places = [next(p for p in range(6) if torch.equal(T, wanted["T_cam_ego"][p])) for T in item["T_cam_ego"]]
        assert places == sorted(set(places))
        seen |= set(places)
        for own, place in zip(item["image_targets"], places):
            assert own["labels"].tolist() == wanted["image_targets"][place]["labels"].tolist()
    assert seen == set(range(6))


@pytest.mark.parametrize("augment", [None, SAME])
def test_a_front_camera_is_asked_for_what_is_ahead(prepared: Path, augment: BevAugmentConfig | None) -> None:
    front = ("CAM_FRONT",)
    alone = open_set(prepared, augment, cameras=front, lidar=False)[0]
    assert alone["points"].shape == (0, 5)
    assert alone["labels"].tolist() == [CAR, PEDESTRIAN]
    assert (alone["boxes"][:, 0] > 0).all()
    with_lidar = open_set(prepared, augment, cameras=front)[0]
    assert with_lidar["labels"].tolist() == [CAR, PEDESTRIAN, CAR]
    rear = open_set(prepared, augment, cameras=("CAM_BACK",), lidar=False)[0]
    assert (rear["boxes"][:, 0] < 0).all()
    assert len(rear["boxes"]) == 1


def test_what_the_crop_leaves_out_is_not_asked_of_cameras(prepared: Path) -> None:
    augment = replace(SAME, image=replace(STILL, scale=(2.0, 2.0)))
    dataset = open_set(prepared, augment, cameras=("CAM_FRONT",), lidar=False)
    asked = 0
    for item in epochs(dataset, 0, 20):
        assert in_some_picture(item, item["boxes"][:, :3].double().numpy()).all()
        asked += len(item["boxes"])
    assert asked > 0


def test_lidar_alone(prepared: Path) -> None:
    item = open_set(prepared, WILD, cameras=())[0]
    assert item["image"].shape == (0, 3, *SIZE)
    assert item["present"].shape == (0,)
    assert item["image_targets"] == []
    assert len(item["boxes"]) == 3
    batch = collate([item, open_set(prepared, WILD, cameras=())[1]])
    assert batch["image"].shape == (2, 0, 3, *SIZE)


def test_sweeps(prepared: Path) -> None:
    """Sample 1 is the second of its scene: it has earlier turns, and their lag tells which."""
    for sweeps in (0, 1, 3):
        points = open_set(prepared, sweeps=sweeps)[1]["points"]
        assert sorted(set((points[:, 4] * 20).round().int().tolist())) == list(range(sweeps + 1))


# --- image boxes ---

CAMERA = np.array([[0.0, -1, 0, 0], [0, 0, -1, 1.6], [1, 0, 0, 0], [0, 0, 0, 1]])
INTRINSIC = np.array([[100.0, 0, 100], [0, 100, 60], [0, 0, 1]])
PICTURE = (120, 200)


def by_brute_force(box: np.ndarray, steps: int = 161) -> np.ndarray:
    """The bounds of what a picture shows of a box's surface, at points all over it; NaN where it shows none."""
    across, up = (one.ravel() for one in np.meshgrid(*[np.linspace(-0.5, 0.5, steps)] * 2))
    faces = []
    for side in (np.full_like(across, -0.5), np.full_like(across, 0.5)):
        faces += [np.stack(face, axis=1) for face in ((side, across, up), (across, side, up), (across, up, side))]
    local = np.concatenate(faces) * box[3:6]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    x, y = local[:, 0] * cos - local[:, 1] * sin, local[:, 0] * sin + local[:, 1] * cos
    seen = move_points(CAMERA, np.stack([x, y, local[:, 2]], axis=1) + box[:3])
    seen = seen[seen[:, 2] > 0.1] @ INTRINSIC.T
    pixels = seen[:, :2] / seen[:, 2:]
    pixels = pixels[(pixels >= 0).all(axis=1) & (pixels <= PICTURE[::-1]).all(axis=1)]
    return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)]) if len(pixels) else np.full(4, np.nan)


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((20.0, 0, 1, 4, 2, 1.5, 0.3), id="ahead"),
        pytest.param((12.0, -3, 0.2, 0.5, 0.5, 1.7, 2), id="ahead-right"),
        pytest.param((-20.0, 0, 1, 4, 2, 1.5, 0.3), id="behind"),
        pytest.param((-1.0, 0.2, 1, 1.5, 2, 1.5, 0.3), id="just-behind"),
        pytest.param((20.0, 30, 1, 4, 2, 1.5, 0.3), id="aside"),
        pytest.param((10.0, 0, 14, 4, 2, 1.5, 0.3), id="above"),
        pytest.param((1.0, 3, 0.8, 5, 2, 1.6, 0), id="across-the-plane"),
        pytest.param((0.0, 0, 0.2, 4, 2, 2, 0), id="the-ego-s-own"),
        pytest.param((6.0, 0, 5, 1, 1, 5, 0), id="cut-above"),
        pytest.param((1.5, 4.0, 0.8, 6, 2, 1.6, 0), id="beside"),
        pytest.param((8.0, -8, 1, 4, 2, 1.5, 0), id="cut-right"),
        pytest.param((10.0, 0, 9, 4, 2, 1.5, 0.3), id="cut-above-turned"),
        pytest.param((4.5, 5.5, 0.8, 4.8, 1.9, 1.6, 0.1), id="next-lane"),
        pytest.param((6.0, 6.6, -0.5, 3, 1, 1, 0.5), id="corner"),
    ],
)
def test_image_boxes_are_what_the_picture_shows(box: tuple[float, ...]) -> None:
    row = np.array(box)
    found, depth = image_boxes(row[None], INTRINSIC, CAMERA, PICTURE)
    np.testing.assert_allclose(found[0], by_brute_force(row), atol=1.5)
    assert depth == pytest.approx([row[0]])


def test_no_boxes_are_no_boxes() -> None:
    found, depth = image_boxes(np.zeros((0, 7)), INTRINSIC, CAMERA, PICTURE)
    assert found.shape == (0, 4)
    assert depth.shape == (0,)


# --- pasting ---


def test_pasted_objects_bring_their_points_and_pixels(prepared: Path) -> None:
    dataset = open_set(prepared, replace(SAME, paste=3))
    rows = [dataset.row(index) for index in range(4)]
    everything = np.concatenate([row.boxes[row.box_points > 0] for row in rows])
    donor_of = np.concatenate([np.full((row.box_points > 0).sum(), index) for index, row in enumerate(rows)])
    pasted: set[int] = set()
    for index in range(4):
        plain = open_set(prepared)[index]
        own = len(plain["boxes"])
        for item in epochs(dataset, index, 10):
            boxes = item["boxes"].double().numpy()
            torch.testing.assert_close(item["boxes"][:own], plain["boxes"])
            assert len(item["labels"]) == len(item["attributes"]) == len(item["velocity"]) == len(boxes) <= own + 3
            apart = np.linalg.norm(boxes[:, None, :2] - boxes[None, :, :2], axis=-1) + 100 * np.eye(len(boxes))
            assert apart.min() > 0.7  # nothing collides
            expected = plain["image"].clone()
            for box, label in zip(boxes[own:], item["labels"][own:].tolist()):
                at = int(np.abs(everything - box).max(axis=1).argmin())
                assert np.abs(everything[at] - box).max() < 1e-4
                donor = int(donor_of[at])
                assert donor != index
                pasted.add(at)
                given = rows[donor].points(3)
                wanted = given[points_inside(given[:, :3], box[None])[:, 0]]
                got = item["points"].numpy()
                got = got[points_inside(got[:, :3].astype(float), box[None])[:, 0]]
                assert len(wanted) >= 20
                np.testing.assert_allclose(
                    np.sort(got[:, 0]), np.sort(wanted[:, 0]), atol=1e-4, err_msg=f"{donor} in {index}"
                )
                for camera in range(6):
                    shown, _ = image_boxes(
                        box[None], rows[donor].intrinsic[camera], rows[donor].T_cam_ego[camera], RAW[::-1]
                    )
                    if np.isnan(shown).any():
                        continue
                    target = item["image_targets"][camera]
                    assert label in target["labels"].tolist()
                    x1, y1, x2, y2 = (shown[0] / 2).round().astype(int)
                    if min(x2 - x1, y2 - y1) > 4:  # the middle is the donor's, at its own place
                        middle = item["image"][camera][:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float()
                        assert (middle[2] - (30 + 40 * donor)).abs().max() < 8
                        same_place = plain["image"][camera][:2, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float()
                        assert (middle[:2] - same_place).abs().max() < 8
                    expected[camera][:, max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = 0
            # Elsewhere nothing has changed.
            untouched = expected[:, 2] > 0
            assert ((item["image"][:, 2].float() - plain["image"][:, 2].float()).abs()[untouched] < 3).all()
            margin = np.concatenate([boxes[own:, :3], boxes[own:, 3:6] + 0.2, boxes[own:, 6:]], axis=1)
            away = ~points_inside(plain["points"][:, :3].double().numpy(), margin).any(axis=1)
            kept = {tuple(point) for point in item["points"].tolist()}
            assert all(tuple(point) in kept for point in plain["points"][torch.from_numpy(away)].tolist())
    assert len(pasted) >= 3


def test_what_would_collide_is_not_pasted(tmp_path: Path) -> None:
    """In the plain tree all cars stand in each other's way, and nobody else has points."""
    path = prepare(write_nuscenes_tree(tmp_path / "tree"), "detection3d", "train", tmp_path / "out").path
    with_paste, without = open_set(path, replace(SAME, paste=4)), open_set(path, SAME)
    for index in range(4):
        for epoch in range(6):
            assert equal(with_paste[epoch, index], without[epoch, index])


@pytest.mark.parametrize(("near", "far"), [([1.9, 4.5, 1.6], [1.9, 4.5, 1.6]), ([0.3, 0.3, 1.6], [8.0, 3.0, 3.0])])
def test_what_stands_behind_something_nearer_is_not_pasted(tmp_path: Path, near: list[float], far: list[float]) -> None:
    """Something ten metres ahead in one scene, something twice as far in the other: only the near one may come to the
    other, whether it would hide the far one or, slim as it is, be painted over by it."""
    tree = write_tree(tmp_path / "tree")

    def change(records: list[dict[str, Any]]) -> None:
        records[:] = [record for record in records if "-car-" in record["token"]]
        for record in records:
            ahead = 10.0 if record["token"].startswith("scene-a") else 22.0
            size = near if record["token"].startswith("scene-a") else far
            record.update(translation=[0.0, ahead, 1.0], rotation=NORTH, size=size)
            if record["token"].endswith("1"):
                record.update(translation=[0.0, ahead + 4.0, 1.0])  # as the ego has moved on

    edit_table(tree, "sample_annotation", change)
    add_points_and_pictures(tree, RAW)
    dataset = open_set(prepare(tree, "detection3d", "train", tmp_path / "out").path, replace(SAME, paste=2))
    most = [max(len(item["boxes"]) for item in epochs(dataset, index, 15)) for index in range(4)]
    assert most == [1, 1, 2, 2]


def test_without_a_lidar_nothing_is_pasted(prepared: Path) -> None:
    with_paste = open_set(prepared, replace(SAME, paste=4), lidar=False)
    for item, plain in zip(epochs(with_paste, 0, 6), epochs(open_set(prepared, SAME, lidar=False), 0, 6)):
        assert len(item["boxes"]) == len(plain["boxes"])


# --- the set ---


def test_samples_with_rare_classes_are_drawn_more_often(prepared: Path) -> None:
    """Cars are in all four samples, pedestrians in two: the root of two."""
    weights = open_set(prepared, SAME).sample_weights()
    np.testing.assert_allclose(weights, [2**0.5, 1, 2**0.5, 1])


def test_the_raw_size_does_not_matter(tmp_path: Path) -> None:
    """The same scenes in pictures of two sizes: the same boxes and cameras for the network."""
    items = []
    for number, size in enumerate([(800, 448), (200, 112)]):
        tree = write_tree(tmp_path / str(number), size)
        path = prepare(tree, "detection3d", "val", tmp_path / f"out{number}").path
        items.append(open_set(path, size=(56, 100))[0])
    large, small = items
    torch.testing.assert_close(large["intrinsic"], small["intrinsic"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(large["T_cam_ego"], small["T_cam_ego"])
    shown = 0
    for one, other in zip(large["image_targets"], small["image_targets"]):
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-5, rtol=0)
        shown += len(one["boxes"])
    assert shown >= 3
    assert (large["image"].float() - small["image"].float()).abs().mean() < 3


def test_a_picture_that_is_decoded_smaller_is_not_stretched(tmp_path: Path) -> None:
    """225 rows become 57 at a quarter, of which the last is a fourth: an edge must stay where the intrinsics say."""
    size = (400, 225)
    tree = write_nuscenes_tree(tmp_path / "tree", size)
    picture = np.zeros((225, 400, 3), np.uint8)
    picture[180:] = 255
    for sample in Nuscenes(tree).split("val"):
        for camera in sample.cameras.values():
            camera.path.write_bytes(simplejpeg.encode_jpeg(picture, quality=98))
    path = prepare(tree, "detection3d", "val", tmp_path / "out").path
    item = open_set(path, size=(56, 100))[0]
    scale = 56 / 225
    edge = (255 - item["image"][0, 0, :, 50].float()).sum() / 255
    assert edge == pytest.approx(180 * scale, abs=0.15)


def test_batches(prepared: Path) -> None:
    dataset = open_set(prepared, replace(SAME, drop_lidar=0.5, drop_cameras=0.1))
    items = [dataset[epoch, index] for epoch in range(3) for index in range(2)]
    batch = collate(items)
    counts = [len(item["points"]) for item in items]
    assert 0 in counts
    assert batch["point_count"].tolist() == counts
    assert batch["points"].shape == (6, max(counts), 5)
    for padded, item in zip(batch["points"], items):
        assert torch.equal(padded[: len(item["points"])], item["points"])
        assert (padded[len(item["points"]) :] == 0).all()
    assert batch["image"].shape == (6, 6, 3, *SIZE)
    assert batch["present"].dtype == torch.bool
    assert [len(one) for one in batch["boxes"]] == [len(item["boxes"]) for item in items]
    assert len(batch["image_targets"]) == 36
    assert equal(batch["image_targets"][6 * 2 + 3], items[2]["image_targets"][3])
    alone = collate([items[counts.index(0)]])
    assert alone["points"].shape == (1, 1, 5)
    assert alone["point_count"].tolist() == [0]


def test_more_than_was_prepared_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepared with 3 sweeps and 5 are asked for; .* --sweeps 5"):
        open_set(prepared, sweeps=5)
    assert len(open_set(prepared, sweeps=5, lidar=False)) == 4  # which has none
    tree = write_nuscenes_tree(tmp_path / "tree")
    path = prepare(tree, "detection3d", "train", tmp_path / "out", options={"cameras": ("CAM_FRONT",)}).path
    with pytest.raises(DataError, match="was prepared without CAM_BACK"):
        open_set(path, cameras=("CAM_FRONT", "CAM_BACK"))
    assert open_set(path, cameras=("CAM_FRONT",))[0]["image"].shape == (1, 3, *SIZE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": (1.1, 0.9)}, r"augment\.scale"),
        ({"flip": 1.5}, r"augment\.flip"),
        ({"drop_lidar": -0.1}, r"augment\.drop_lidar"),
        ({"drop_lidar": 0.5, "drop_cameras": 0.5}, "must leave some samples whole"),
        ({"cameras": 0}, r"augment\.cameras"),
        ({"paste": -1}, r"augment\.paste"),
    ],
)
def test_impossible_augmentation_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BevAugmentConfig(**change)


def test_colours_of_the_tree_survive(prepared: Path) -> None:
    """What the other tests rest on: red is the column, green the row, blue the sample."""
    image = open_set(prepared)[1]["image"][0].permute(1, 2, 0).numpy()
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    wanted = np.stack([(columns + 0.5) * 255 / SIZE[1], (rows + 0.5) * 255 / SIZE[0], 0 * rows + 70.0], axis=-1)
    assert np.abs(cv2.blur(image, (3, 3)).astype(float) - wanted)[2:-2, 2:-2].max() < 5
