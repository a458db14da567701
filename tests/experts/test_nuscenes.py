"""The nuScenes expert: what its predictions depend on and what not, what is taught, and that nothing leaks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes_tree import write_nuscenes_tree

import automoe.experts  # noqa: F401  (registers)
from automoe.data.nuscenes_dataset import BevAugmentConfig, _change_of_world
from automoe.data.nuscenes_prepared import TASK, NuscenesRows
from automoe.data.prepared import prepare
from automoe.errors import ConfigError
from automoe.experts.box3d import LOG_SIZE, decode_boxes, encode_boxes
from automoe.experts.expert import ExpertStep
from automoe.experts.nuscenes import IMAGE_BOXES, NuscenesExpert, _sample_wide, shown_rows
from automoe.experts.nuscenes_criterion import (
    NuscenesCriterion,
    attribute_mask,
    box_distance,
    make_denoising,
    point_loss,
    point_owners,
    rarity_weights,
)
from automoe.experts.registry import build_expert
from automoe.experts.rig_geometry import Rig
from automoe.taxonomy import NUSCENES_ATTRIBUTES, NUSCENES_ATTRIBUTES_OF, NUSCENES_CAMERAS, NUSCENES_DETECTION

SIZE = (32, 64)
QUERIES, DIM, SIDE = 12, 16, 32
REACH = 25.6
MODEL = {
    "image": {"dim": 16, "num_queries": 6, "decoder_layers": 1, "heads": 2},
    "grid": {"reach": REACH, "cell": 0.8},
    "dim": DIM,
    "pillar_dim": 8,
    "paint_dim": 4,
    "num_queries": QUERIES,
    "heads": 2,
    "denoising_groups": 1,
    "max_detections": 20,
}
CAR, PEDESTRIAN, BARRIER = (NUSCENES_DETECTION.index(name) for name in ("car", "pedestrian", "barrier"))
MOVING, STANDING = (NUSCENES_ATTRIBUTES.index(name) for name in ("vehicle.moving", "pedestrian.standing"))
Batch = dict[str, Any]


def build(cameras: tuple[str, ...] = NUSCENES_CAMERAS, lidar: bool = True, **model: Any) -> NuscenesExpert:
    torch.manual_seed(0)
    return build_expert("nuscenes", {**MODEL, "cameras": cameras, "lidar": lidar, **model}, pretrained=True)


def wake(expert: NuscenesExpert) -> NuscenesExpert:
    """Layers that start at zero, or nearly so, would hide what the predictions depend on."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        decoders = [one.decoder for one in (expert, expert.image) if one is not None]
        last = [head for d in decoders for head in [*d.class_heads, *(h[-1] for h in d.reference_heads)]]
        last += [expert.heatmap.classes[-1], expert.heatmap.boxes[-1]]
        last += [expert.lift] if expert.image is not None else []
        last += [expert.pillars.points] if expert.config.lidar else []
        for layer in last:
            layer.weight.normal_(std=0.1, generator=generator)
    return expert


@pytest.fixture(scope="module")
def expert() -> NuscenesExpert:
    return wake(build())


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return prepare(write_nuscenes_tree(tmp_path / "tree", size=(320, 180)), TASK, "train", tmp_path / "out").path


@pytest.fixture(scope="module")
def front() -> NuscenesExpert:
    """One camera and a LiDAR: enough for most, and quick."""
    return wake(build(("CAM_FRONT",)))


def mounted(yaw: float) -> torch.Tensor:
    """T_cam_ego of a camera 1.5 m above the ground that looks along a yaw."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    T = torch.eye(4)
    T[:3, :3] = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]])
    T[1, 3] = 1.5
    return T


def make_batch(counts: list[int], cameras: int = 1, points: int = 300) -> Batch:
    """Samples of so many boxes each. Nothing in it is like a road; that doesn't matter here."""
    size, generator = len(counts), torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    cloud = uniform(size, points, 5) * torch.tensor([24.0, 24, 1.5, 100, 0]) + torch.tensor([0, 0, 0.8, 100, 0])
    boxes = [
        torch.cat([uniform(n, 2) * 20, uniform(n, 1), uniform(n, 3) + 2, uniform(n, 1) * 3], dim=1) for n in counts
    ]
    images = [
        {
            "boxes": torch.rand(n, 4, generator=generator) * 0.3 + 0.2,
            "labels": torch.zeros(n, dtype=torch.int64),
            "ignored": torch.zeros(n, dtype=torch.bool),
        }
        for n in counts
        for _ in range(cameras)
    ]
    return {
        "points": cloud,
        "point_count": torch.full((size,), points),
        "image": torch.randint(0, 256, (size, cameras, 3, *SIZE), dtype=torch.uint8, generator=generator),
        "T_cam_ego": torch.stack([mounted(-place * np.pi / 3) for place in range(cameras)]).repeat(size, 1, 1, 1),
        "intrinsic": torch.tensor([[40.0, 0, 32], [0, 40, 16], [0, 0, 1]]).repeat(size, cameras, 1, 1),
        "transform": torch.tensor([[0.5, 0, 0], [0, 0.5, 0]]).repeat(size, cameras, 1, 1),
        "orig_size": torch.tensor([2 * SIZE[0], 2 * SIZE[1]]).repeat(size, cameras, 1),
        "present": torch.ones(size, cameras, dtype=torch.bool),
        "boxes": boxes,
        "velocity": [uniform(n, 2) for n in counts],
        "labels": [torch.arange(n) % 10 for n in counts],
        "attributes": [torch.full((n,), -1) for n in counts],
        "image_targets": images,
        "sample_id": [str(place) for place in range(size)],
        "index": list(range(size)),
    }


def rows(batch: Batch, index: int, cameras: int = 1) -> Batch:
    """One sample of a batch as a batch."""
    picked = {key: value[index : index + 1] for key, value in batch.items() if key != "image_targets"}
    return picked | {"image_targets": batch["image_targets"][index * cameras : (index + 1) * cameras]}


SAID = ("logits", "numbers", "attributes", "heat_logits", "heat_numbers", "tokens")


@torch.no_grad()
def say(expert: NuscenesExpert, batch: Batch, **more: Any) -> dict[str, Any]:
    return expert.eval()(batch, **more)


def same(a: dict[str, Any], b: dict[str, Any], keys: tuple[str, ...] = SAID, atol: float = 1e-4) -> bool:
    return all(torch.allclose(a[key], b[key], atol=atol) for key in keys)


# --- the model ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cameras": [], "lidar": False}, "neither cameras nor a LiDAR"),
        ({"cameras": ["CAM_TOP"]}, r"model\.cameras has 'CAM_TOP'; nuScenes has CAM_FRONT, "),
        pytest.param(
            {"cameras": ["CAM_BACK", "CAM_BACK"]},
            r"model\.cameras has 'CAM_BACK' twice",
        ),
        ({"max_detections": 501}, r"model\.max_detections is 501; nuScenes allows 1 to 500"),
        ({"max_detections": 0}, r"model\.max_detections is 0"),
        ({"grid": {"cell": 0.5}}, r"model\.grid: reach 51.2 m in cells of 0.5 m"),
        ({"num_queries": 0}, r"model\.num_queries is 0"),
        ({"attribute_weight": -0.1}, r"model\.attribute_weight is -0.1"),
        ({"balance": 1.5}, r"model\.balance is 1.5; give 0 to 1"),
        ({"class_counts": [3, 4]}, r"model\.class_counts must be 10 numbers"),
        ({"num_query": 5}, r"num_query.*did you mean 'num_queries'"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_expert("nuscenes", change, pretrained=False)


@pytest.mark.parametrize(
    ("cameras", "lidar"), [(NUSCENES_CAMERAS, True), (("CAM_BACK",), True), ((), True), (NUSCENES_CAMERAS[:3], False)]
)
def test_outputs_have_the_documented_shapes(cameras: tuple[str, ...], lidar: bool) -> None:
    batch = make_batch([2, 0], max(1, len(cameras)))
    for key in ("points", "point_count") * (not lidar) + ("image", "T_cam_ego", "intrinsic", "present") * (not cameras):
        del batch[key]  # what the model isn't made for needn't be there
    out = say(build(cameras, lidar), batch)
    shapes = {"logits": (2, 2, QUERIES, 10), "numbers": (2, 2, QUERIES, 10), "attributes": (2, QUERIES, 8)}
    shapes |= {"seed_logits": (2, QUERIES, 10), "seed_numbers": (2, QUERIES, 10)}
    shapes |= {"heat_logits": (2, 10, SIDE, SIDE), "heat_numbers": (2, SIDE, SIDE, 10)}
    shapes |= {"tokens": (2, QUERIES, DIM), "token_positions": (2, QUERIES, 2)}
    for key, shape in shapes.items():
        assert out[key].shape == shape, key
        assert out[key].isfinite().all(), key
    assert ("image" in out) == bool(cameras)
    if cameras:
        assert out["image"]["logits"].shape == (1, 2 * len(cameras), 6, 10)
    assert "denoising_logits" not in out


def test_an_untrained_decoder_repeats_its_seeds() -> None:
    out = say(build(("CAM_FRONT",)), make_batch([0]))
    torch.testing.assert_close(out["logits"][-1], out["seed_logits"])
    torch.testing.assert_close(out["numbers"][-1], out["seed_numbers"])


def test_the_lidar_is_looked_at(front: NuscenesExpert) -> None:
    batch = make_batch([0])
    plain = say(front, batch)
    assert same(plain, say(front, batch))
    moved = {**batch, "points": batch["points"] + torch.tensor([3.0, -2, 0, 0, 0])}
    empty = {**batch, "point_count": torch.tensor([0])}
    for other in (moved, empty):
        assert not any(torch.allclose(plain[key], say(front, other)[key], atol=1e-3) for key in SAID)
    # Place, intensity and lag each count.
    for column in range(5):
        changed = batch["points"].clone()
        changed[..., column] += torch.linspace(0, 0.4 if column < 3 else 40, changed.shape[1])
        assert not same(plain, say(front, {**batch, "points": changed}), atol=1e-5)


def test_every_camera_is_looked_at(expert: NuscenesExpert) -> None:
    batch = make_batch([0], 6)
    plain = say(expert, batch)
    for camera in range(6):
        images = batch["image"].clone()
        images[:, camera] = 255 - images[:, camera]
        said = say(expert, {**batch, "image": images})
        assert not same(plain, said, ("heat_logits",), atol=1e-3)


def test_what_a_camera_shows_is_lifted_to_where_it_looks() -> None:
    cameras = wake(build(lidar=False))
    batch = make_batch([0], 6)
    plain = say(cameras, batch)
    centres = cameras.config.grid.centres(SIDE, SIDE, torch.device("cpu"))
    bearing = centres / centres.norm(dim=-1, keepdim=True)
    for camera in range(6):
        images = batch["image"].clone()
        images[:, camera] = 255 - images[:, camera]
        change = (say(cameras, {**batch, "image": images})["heat_logits"] - plain["heat_logits"])[0].abs().sum(dim=0)
        # Norms carry a little of it everywhere.
        most = change >= change.flatten().quantile(0.9)
        towards = (bearing[most] * change[most, None]).sum(dim=0)
        yaw = -camera * np.pi / 3
        ahead = towards @ torch.tensor([np.cos(yaw), np.sin(yaw)], dtype=torch.float32) / towards.norm()
        assert ahead > 0.8, camera


def test_what_a_camera_shows_is_painted_on_the_points(front: NuscenesExpert) -> None:
    """With the other two ways closed, pictures still count, if and only if there are points in them."""
    expert, batch = copy.deepcopy(front), make_batch([0])
    for layer in (expert.lift, expert.for_decoder):
        torch.nn.init.zeros_(layer.weight)
    negative = 255 - batch["image"]
    assert not same(say(expert, batch), say(expert, {**batch, "image": negative}), ("heat_logits",), atol=1e-3)
    behind = batch["points"].clone()
    behind[..., 0] = -behind[..., 0].abs() - 1
    assert same(say(expert, {**batch, "points": behind}), say(expert, {**batch, "points": behind, "image": negative}))


def test_cameras_alone_are_looked_at_where_they_stand() -> None:
    camera_only = wake(build(("CAM_FRONT",), lidar=False))
    batch = make_batch([0])
    plain = say(camera_only, batch)
    assert not same(plain, say(camera_only, {**batch, "image": 255 - batch["image"]}), atol=1e-3)
    T = batch["T_cam_ego"].clone()
    T[:, 0] = mounted(np.pi)
    assert not same(plain, say(camera_only, {**batch, "T_cam_ego": T}), atol=1e-3)
    assert not same(plain, say(camera_only, {**batch, "intrinsic": batch["intrinsic"] * 0.7}), atol=1e-3)
    noise = {**batch, "points": batch["points"] + 1, "point_count": torch.tensor([7])}
    assert same(plain, say(camera_only, noise), atol=0)


def test_an_absent_camera_s_pixels_are_not_looked_at(expert: NuscenesExpert) -> None:
    batch = make_batch([0, 0], 6)
    batch["present"][0, [1, 4]] = False
    plain = say(expert, batch)
    images = batch["image"].clone()
    images[0, [1, 4]] = 255 - images[0, [1, 4]]
    said = say(expert, {**batch, "image": images})
    assert same(plain, said, atol=1e-6)
    assert not torch.allclose(plain["image"]["logits"], said["image"]["logits"], atol=1e-3)
    # Nor does it matter where an absent camera would stand; a present one's presence does matter.
    T = batch["T_cam_ego"].clone()
    T[0, [1, 4]] = mounted(0.3)
    assert same(plain, say(expert, {**batch, "T_cam_ego": T}), atol=1e-6)
    assert not same(plain, say(expert, {**batch, "present": torch.ones(2, 6, dtype=torch.bool)}), atol=1e-3)


def test_without_any_camera_only_points_count_and_without_points_only_cameras(front: NuscenesExpert) -> None:
    batch = make_batch([0])
    blind = {**batch, "present": torch.zeros(1, 1, dtype=torch.bool)}
    assert same(say(front, blind), say(front, {**blind, "image": 255 - batch["image"]}), atol=1e-6)
    assert not same(say(front, blind), say(front, {**blind, "points": batch["points"] * 0.9}), atol=1e-3)
    dark = {**batch, "point_count": torch.tensor([0])}
    assert same(say(front, dark), say(front, {**dark, "points": batch["points"] * 0.9}), atol=0)
    assert not same(say(front, dark), say(front, {**dark, "image": 255 - batch["image"]}), atol=1e-3)


def test_padding_and_other_samples_of_the_batch_change_nothing(front: NuscenesExpert) -> None:
    both = make_batch([0, 0])
    both["point_count"] = torch.tensor([300, 120])
    together = say(front, both)
    for index in (0, 1):
        alone = rows(both, index)
        alone["points"] = alone["points"][:, : int(both["point_count"][index])]
        said = say(front, alone)
        for key in SAID:
            place = (slice(None), index) if key in ("logits", "numbers") else (index,)
            alone_place = (slice(None), 0) if key in ("logits", "numbers") else (0,)
            torch.testing.assert_close(together[key][place], said[key][alone_place], atol=1e-3, rtol=1e-3)


def test_tokens_say_where_their_boxes_are(front: NuscenesExpert) -> None:
    out = say(front, make_batch([0, 0]))
    torch.testing.assert_close(out["token_positions"], out["numbers"][-1][..., :2])
    assert out["token_positions"].std() > 1  # all over the map
    assert out["tokens"].std() > 0.1


def test_a_changed_world_is_the_same_in_the_pictures() -> None:
    """Turn, mirror, scale and shift the world, and cameras' poses by the inverse: points fall on the same pixels."""
    batch = make_batch([0], 6)
    points = batch["points"][..., :3]
    rig = Rig(batch["T_cam_ego"], batch["intrinsic"], SIZE, batch["present"])
    places, seen = rig.project(points)
    assert seen.any(dim=-1).all()
    mirrored = set()
    for seed in range(6):
        augment = BevAugmentConfig(rotate=180.0, scale=(0.8, 1.25), shift=2.0)
        change = torch.from_numpy(_change_of_world(augment, np.random.default_rng(seed))).float()
        mirrored.add(bool(change[:3, :3].det() < 0))
        changed = Rig(batch["T_cam_ego"] @ change.inverse(), batch["intrinsic"], SIZE, batch["present"])
        found, found_seen = changed.project(points @ change[:3, :3].T + change[:3, 3])
        assert (found_seen == seen).float().mean() > 0.999
        both = seen & found_seen
        torch.testing.assert_close(found[both], places[both], atol=1e-3, rtol=0)
        torch.testing.assert_close(
            changed.locate(points @ change[:3, :3].T + change[:3, 3], 16)[both.any(dim=1)],
            rig.locate(points, 16)[both.any(dim=1)],
            atol=2e-3,
            rtol=0,
        )
    assert mirrored == {True, False}


def test_the_image_branch_is_the_image_only_expert(front: NuscenesExpert) -> None:
    variant = build_expert("nuscenes_2d", MODEL["image"], pretrained=False)
    assert variant.classes == NUSCENES_DETECTION
    own = {key.removeprefix("image."): value for key, value in front.state_dict().items() if key.startswith("image.")}
    variant.load_state_dict(own, strict=True)
    batch = make_batch([0, 0])
    images = batch["image"].flatten(0, 1)
    whole = say(front, batch)["image"]
    with torch.no_grad():
        alone = variant.eval()(variant.normalise(images))
    for key in ("logits", "boxes", "seed_logits", "tokens"):
        torch.testing.assert_close(alone[key], whole[key], atol=1e-5, rtol=1e-5)
    # Its classes are nuScenes' whatever the image branch's config says.
    other = build_expert("nuscenes_2d", {"classes": ["dog"]}, pretrained=False)
    assert other.classes == NUSCENES_DETECTION


# --- predictions ---


def test_predictions_are_valid_boxes_best_first(front: NuscenesExpert) -> None:
    found = front.eval().predict_batch(make_batch([0, 0]))
    assert len(found) == 2
    for sample in found:
        for prefix in ("", "heatmap/"):
            boxes, scores, labels = (sample[prefix + key] for key in ("boxes", "scores", "labels"))
            assert boxes.shape == (20, 7)
            assert sample[prefix + "velocity"].shape == (20, 2)
            assert (scores.diff() <= 0).all()
            assert ((scores > 0) & (scores < 1)).all()
            limits = torch.tensor(LOG_SIZE).exp()
            assert ((boxes[:, 3:6] >= limits[0] - 1e-4) & (boxes[:, 3:6] <= limits[1] + 1e-3)).all()
            assert (boxes[:, 6].abs() <= np.pi + 1e-5).all()
            for label, attribute in zip(labels.tolist(), sample[prefix + "attributes"].tolist()):
                allowed = NUSCENES_ATTRIBUTES_OF[NUSCENES_DETECTION[label]]
                assert (NUSCENES_ATTRIBUTES[attribute] in allowed) if allowed else attribute == -1


def test_a_detection_by_hand(front: NuscenesExpert) -> None:
    """Two queries: the scores of all classes compete, and box, velocity and attribute are those of their query."""
    logits = torch.full((2, 10), -9.0)
    logits[0, BARRIER], logits[1, CAR], logits[1, PEDESTRIAN] = 0.0, 2.0, 1.0
    boxes = torch.tensor([[1.0, 2, 0, 4, 2, 1, 0.5], [-3.0, 4, 1, 1, 1, 2, -3.0]])
    numbers = encode_boxes(boxes, torch.tensor([[1.0, 0], [0, 2]]))
    attributes = torch.zeros(2, 8)
    attributes[1, MOVING], attributes[1, STANDING] = 1.0, 2.0
    found = front._detections(logits, numbers, attributes)
    assert found["labels"][:3].tolist() == [CAR, PEDESTRIAN, BARRIER]
    torch.testing.assert_close(found["scores"][:3], torch.tensor([2.0, 1.0, 0.0]).sigmoid())
    torch.testing.assert_close(found["boxes"][:3], boxes[[1, 1, 0]])
    torch.testing.assert_close(found["velocity"][:3], torch.tensor([[0.0, 2], [0, 2], [1, 0]]))
    assert found["attributes"][:3].tolist() == [MOVING, STANDING, -1]


def test_image_boxes_are_those_of_the_image_only_expert(expert: NuscenesExpert) -> None:
    batch = make_batch([0, 0], cameras=6)
    found = expert.eval().predict_batch(batch)
    assert expert.image is not None
    alone = expert.image.eval().predict(*(batch[key].flatten(0, 1) for key in ("image", "transform", "orig_size")))
    for index, sample in enumerate(found):
        for place in range(6):
            own = sample["image/cameras"] == place
            assert own.sum() == IMAGE_BOXES < len(alone[6 * index + place]["boxes"])
            for key in ("boxes", "scores", "labels"):
                torch.testing.assert_close(sample[f"image/{key}"][own], alone[6 * index + place][key][:IMAGE_BOXES])
        assert sample["image/boxes"].amax() > SIZE[1]  # raw pixels


def test_image_boxes_are_scored_camera_by_camera(prepared: Path) -> None:
    """The truth said in each picture is worth 1; said in the next camera's, nothing, and beside no 3D box at all."""
    rows = NuscenesRows(prepared)
    expert = build(rows.cameras)
    for shift, value in ((0, 1.0), (1, 0.0)):
        metrics = expert.make_metrics()
        for index in range(len(rows)):
            row = rows.row(index)
            said: dict[str, list[np.ndarray]] = {"boxes": [], "scores": [], "labels": [], "cameras": []}
            for place, channel in enumerate(rows.cameras):
                boxes, labels, ignored = row.image_truth(channel)
                assert not ignored.any()
                said["boxes"].append(boxes)
                said["labels"].append(labels)
                said["scores"].append(np.full(len(labels), 0.9))
                said["cameras"].append(np.full(len(labels), (place + shift) % len(rows.cameras)))
            prediction = {f"image/{key}": torch.from_numpy(np.concatenate(own)) for key, own in said.items()}
            nothing = {"boxes": (0, 7), "velocity": (0, 2), "scores": (0,), "labels": (0,), "attributes": (0,)}
            empty = {key: torch.zeros(shape).to(torch.int64 if key in ("labels", "attributes") else torch.float32)
                     for key, shape in nothing.items()}  # fmt: skip
            prediction |= {prefix + key: one for prefix in ("", "heatmap/") for key, one in empty.items()}
            expert.add_to_metrics(metrics, row.token, prediction, row)
        other = expert.make_metrics()
        other.merge([metrics.state()])
        scores = expert.summarise(other)
        assert scores["image/AP50"] == pytest.approx(value)
        assert scores["mAP"] == 0.0


# --- what is taught ---


def criterion_of(expert: NuscenesExpert, reduce_count: Any = lambda n: float(max(1, n))) -> NuscenesCriterion:
    return expert.make_criterion(reduce_count)


def targets_of(batch: Batch) -> list[dict[str, torch.Tensor]]:
    columns = zip(batch["boxes"], batch["velocity"], batch["labels"], batch["attributes"])
    return [{"boxes": b, "numbers": encode_boxes(b, v), "labels": c, "attributes": a} for b, v, c, a in columns]


def said_by_hand(numbers: torch.Tensor, layers: int = 2) -> dict[str, torch.Tensor]:
    """Outputs of a model that is undecided on everything: numbers [B, Q, 10] in all layers."""
    batch, queries = numbers.shape[:2]
    leaves = {
        "logits": torch.zeros(layers, batch, queries, 10),
        "numbers": numbers.repeat(layers, 1, 1, 1),
        "attributes": torch.zeros(batch, queries, 8),
        "heat_logits": torch.full((batch, 10, SIDE, SIDE), -4.0),
        "heat_numbers": torch.zeros(batch, SIDE, SIDE, 10),
    }
    return {key: value.requires_grad_() for key, value in leaves.items()}


def one_car(x: float = 10.0, y: float = 4.0, attribute: int = MOVING) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[x, y, 0.8, 4.5, 1.9, 1.6, 0.3]])
    numbers = encode_boxes(boxes, torch.tensor([[3.0, 0.5]]))
    return {"boxes": boxes, "numbers": numbers, "labels": torch.tensor([CAR]), "attributes": torch.tensor([attribute])}


NOTHING = {
    "boxes": torch.zeros(0, 7),
    "numbers": torch.zeros(0, 10),
    "labels": torch.zeros(0, dtype=torch.int64),
    "attributes": torch.zeros(0, dtype=torch.int64),
}


def test_unmatched_queries_learn_background_and_no_box(front: NuscenesExpert) -> None:
    car = one_car()
    numbers = car["numbers"].repeat(4, 1)
    numbers[:, 0] += torch.tensor([9.0, 1.0, -9.0, 20.0])
    out = said_by_hand(numbers[None])
    criterion_of(front).losses(out, [car])["loss"].backward()
    for layer in range(2):
        logits, boxes = out["logits"].grad[layer, 0], out["numbers"].grad[layer, 0]
        assert (logits < 0).nonzero().tolist() == [[1, CAR]]  # the nearest one, its class
        assert (logits[[0, 2, 3]] > 0).all()
        assert (boxes[[0, 2, 3]] == 0).all()
        assert boxes[1, 0] > 0  # a metre too far ahead
    attributes = out["attributes"].grad[0]
    assert (attributes[[0, 2, 3]] == 0).all()
    assert (attributes[1] < 0).nonzero().tolist() == [[MOVING]]
    # Only among a car's attributes.
    others = [NUSCENES_ATTRIBUTES.index(name) for name in NUSCENES_ATTRIBUTES if not name.startswith("vehicle")]
    assert (attributes[1, others] == 0).all()


def test_an_empty_sample_teaches_background_alone(front: NuscenesExpert) -> None:
    out = said_by_hand(torch.zeros(1, 5, 10))
    losses = criterion_of(front).losses(out, [NOTHING])
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert (out["logits"].grad > 0).all()
    assert (out["heat_logits"].grad > 0).all()
    for key in ("numbers", "heat_numbers", "attributes"):
        assert (out[key].grad == 0).all()


def test_a_nearer_box_has_a_higher_target_and_costs_less(front: NuscenesExpert) -> None:
    car, costs, pulls = one_car(), [], []
    for apart in (0.0, 1.0, 4.0):
        out = said_by_hand(car["numbers"][None] + torch.tensor([apart, *[0.0] * 9]))
        losses = criterion_of(front).losses(out, [car])
        losses["loss"].backward()
        costs.append(losses["bbox"].item())
        pulls.append(out["logits"].grad[-1, 0, 0, CAR].item())
    assert costs == pytest.approx([0.0, 0.5, 2.0], abs=1e-5)  # bbox_weight of a half
    assert pulls[0] < pulls[1] < 0


def test_the_loss_is_per_box_whatever_the_batch(front: NuscenesExpert) -> None:
    """Twice the same sample costs what one does; and so do its parts in two processes, averaged."""
    car = one_car(attribute=-1)
    numbers = car["numbers"].repeat(3, 1)[None] + torch.randn(1, 3, 10, generator=torch.Generator().manual_seed(0))
    criterion = criterion_of(front)
    once = criterion.losses(said_by_hand(numbers), [car])
    twice = criterion.losses(said_by_hand(numbers.repeat(2, 1, 1)), [car, car])
    for key, value in once.items():
        torch.testing.assert_close(twice[key], value)


def test_two_processes_with_one_box_count_as_one_process(front: NuscenesExpert) -> None:
    car, numbers = one_car(), torch.zeros(1, 3, 10)
    alone = criterion_of(front).losses(said_by_hand(numbers.repeat(2, 1, 1)), [car, NOTHING])
    shared = criterion_of(front, lambda _: 0.5)
    parts = [shared.losses(said_by_hand(numbers), [own]) for own in (car, NOTHING)]
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, alone["loss"])


def test_an_unknown_velocity_teaches_nothing(front: NuscenesExpert) -> None:
    car = one_car()
    car["numbers"][:, 8:] = float("nan")
    got = one_car()["numbers"][None] + 0.5
    out = said_by_hand(got)
    losses = criterion_of(front).losses(out, [car])
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert (out["numbers"].grad[..., 8:] == 0).all()
    assert (out["numbers"].grad[..., :8] != 0).all()
    assert (out["heat_numbers"].grad[..., 8:] == 0).all()
    assert out["heat_numbers"].grad[..., :3].any()
    # A known one does, less than a place.
    true = torch.zeros(1, 10)
    moved = torch.zeros(10, 10).fill_diagonal_(1.0)
    distance = box_distance(moved, true.expand(10, 10))
    assert (distance[8:] > 0).all()
    assert (distance[8:] < distance[0]).all()


def test_headings_are_pulled_to_the_right_one_from_everywhere_and_first_to_an_axis() -> None:
    true = torch.zeros(1, 10)
    true[0, 6:8] = torch.tensor([0.0, 1.0])

    def said(sine: float, cosine: float) -> torch.Tensor:
        got = true.clone()
        got[0, 6:8] = torch.tensor([sine, cosine])
        return got.requires_grad_()

    backward = said(0.0, -0.9)
    box_distance(backward, true).sum().backward()
    assert backward.grad is not None
    assert backward.grad[0, 7] < 0  # even from nearly the opposite it is turned round
    # Where either way round is as likely, a heading costs less than none; plain L1 would not care.
    opposite = true.clone()
    opposite[0, 6:8] = -true[0, 6:8]
    costs = [box_distance(one, true) + box_distance(one, opposite) for one in (said(0, 1), said(0, 0), said(1, 0))]
    assert costs[0] < costs[1] < costs[2]


def test_samples_count_alike_in_the_points_loss(front: NuscenesExpert) -> None:
    """So that processes with as many samples each agree with one process that has them all."""
    batch = make_batch([40, 0, 40])
    assert float(criterion_of(front)(front.train(), rows(batch, 1))["point"].detach()) == 0.0
    with torch.no_grad():
        whole = criterion_of(front)(front, batch)["point"]
        each = [criterion_of(front)(front, rows(batch, place))["point"] for place in range(3)]
    assert whole > 0
    torch.testing.assert_close(whole, torch.stack(each).mean())


def test_a_cone_has_no_heading(front: NuscenesExpert) -> None:
    losses = []
    for yaw in (0.0, 2.0):
        batch = make_batch([3])
        batch["labels"] = [torch.full((3,), NUSCENES_DETECTION.index("traffic_cone"))]
        batch["boxes"][0][:, 6] = yaw
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(criterion_of(front)(front.eval(), batch))
    assert losses[0]["loss"].isfinite()
    for key in ("heatmap_bbox", "denoising_bbox_0", "bbox"):
        assert losses[0][key] > 0
        torch.testing.assert_close(losses[0][key], losses[1][key])


def test_rarer_classes_weigh_more() -> None:
    counts = [900, 0, 50, 50, 0, 0, 0, 0, 0, 0]
    weights = rarity_weights(counts, 0.5)
    share = torch.tensor(counts) / 1000
    assert float((weights * share).sum()) == pytest.approx(1.0)
    assert float(weights[2] / weights[0]) == pytest.approx((900 / 50) ** 0.5)
    assert float(weights[1] / weights[2]) == pytest.approx((0.05 / 0.01) ** 0.5)  # never more than a hundredth's
    assert rarity_weights(counts, 0.0).tolist() == pytest.approx([1.0] * 10)
    assert rarity_weights((), 0.5).tolist() == [1.0] * 10


def test_the_losses_follow_the_weights() -> None:
    """Twice as rare in the counts, the same box costs more, and nothing but its class does."""
    losses = {}
    for name, counts in (("rare", (1, *[9] * 9)), ("common", (9, *[1] * 9))):
        expert = build_expert("nuscenes", {**MODEL, "class_counts": counts}, pretrained=False)
        assert isinstance(expert, NuscenesExpert)
        car = one_car()
        losses[name] = criterion_of(expert).losses(said_by_hand(car["numbers"][None] + 0.3), [car])
    assert losses["rare"]["class"] > losses["common"]["class"]
    assert losses["rare"]["heatmap"] != losses["common"]["heatmap"]
    torch.testing.assert_close(losses["rare"]["bbox"], losses["common"]["bbox"])


def test_points_belong_to_the_box_that_they_lie_in() -> None:
    turned = torch.tensor([[10.0, 5.0, 1.0, 4.0, 2.0, 1.6, 0.5]])
    boxes = torch.cat([turned, torch.tensor([[10.0, 5.0, 1.0, 0.5, 0.5, 0.5, 0.0]])])
    ahead = torch.tensor([np.cos(0.5), np.sin(0.5), 0.0], dtype=torch.float32)
    aside = torch.tensor([-np.sin(0.5), np.cos(0.5), 0.0], dtype=torch.float32)
    up = torch.tensor([0.0, 0.0, 1.0])
    steps = [0.0 * up, 1.9 * ahead, 2.1 * ahead, 0.9 * aside, 1.1 * aside, 0.7 * up, 0.9 * up, 1.9 * aside]
    points = turned[0, :3] + torch.stack(steps)
    assert point_owners(points, boxes).tolist() == [1, 0, -1, 0, -1, 0, -1, -1]  # the smallest of several
    assert point_owners(points, boxes[:0]).tolist() == [-1] * 8


def test_pictures_learn_what_their_points_are() -> None:
    """Points that no picture shows, and those of earlier turns, teach nothing; those in a car pull to a car."""
    car = torch.tensor([[10.0, 0.0, 0.5, 4.0, 2.0, 1.6, 0.0]])
    places = [[10.0, 0, 0.5], [10.5, 0, 0.5], [10.0, 0.5, 0.5], [14.0, 3, 0.5], [14.0, -3, 0.5], [10.0, 0, 0.5]]
    lag = torch.tensor([[0.0], [0.0], [0.0], [0.0], [0.0], [0.1]])
    points = torch.cat([torch.tensor(places), torch.zeros(6, 1), lag], dim=1)
    batch = {
        "points": points[None], "point_count": torch.tensor([6]), "boxes": [car], "labels": [torch.tensor([CAR])],
    }  # fmt: skip
    logits = torch.zeros(1, 6, 11, requires_grad=True)
    places = torch.tensor([[0.5, 0.5]]).repeat(1, 6, 1)
    places[0, 2:5:2] = -2.0
    rows, shown = shown_rows(batch["points"], batch["point_count"], places)
    assert rows[shown].tolist() == [0, 1, 3]
    outputs = {
        "point_logits": logits.gather(1, rows[..., None].expand(-1, -1, 11)),
        "point_rows": rows,
        "point_seen": shown,
    }
    loss = point_loss(outputs, batch, torch.ones(10))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(11))
    pull = logits.grad[0]
    assert (pull[[2, 4, 5]] == 0).all()
    assert (pull[:2] < 0).nonzero().tolist() == [[0, CAR], [1, CAR]]
    assert (pull[3] < 0).nonzero().tolist() == [[10]]  # background
    torch.testing.assert_close(pull[:2, CAR].sum(), pull[3, 10])  # objects as much as the background


def test_an_attribute_that_the_class_can_not_have_teaches_nothing(front: NuscenesExpert) -> None:
    """A slip of an annotator's: one such box among a million must not end a run."""
    car = one_car(attribute=STANDING)
    losses = criterion_of(front).losses(said_by_hand(car["numbers"][None]), [car])
    assert losses["attribute"] == 0


def test_attributes_that_a_class_can_have() -> None:
    mask = attribute_mask(torch.arange(10))
    assert mask.shape == (10, 8)
    for label, name in enumerate(NUSCENES_DETECTION):
        allowed = {NUSCENES_ATTRIBUTES[place] for place in (mask[label] == 0).nonzero().flatten().tolist()}
        assert allowed == set(NUSCENES_ATTRIBUTES_OF[name] or NUSCENES_ATTRIBUTES)
        assert (mask[label][mask[label] != 0] == -torch.inf).all()


@pytest.mark.parametrize(
    ("counts", "points", "present"),
    [([3, 0], 300, True), ([0, 0], 300, True), ([1, 40], 300, True), ([2, 1], 0, True), ([2, 1], 300, False)],
)
def test_losses_are_finite_and_reach_every_weight(
    front: NuscenesExpert, counts: list[int], points: int, present: bool
) -> None:
    """Whatever is missing in a batch: boxes, points or cameras. DDP waits for the gradients of all parameters."""
    batch = make_batch(counts)
    batch["point_count"] = torch.full((2,), points)
    batch["present"][:] = present
    losses = ExpertStep(front.train(), lambda n: float(max(1, n)))(batch)
    losses["loss"].backward()
    without = [name for name, p in front.named_parameters() if p.requires_grad and p.grad is None]
    sound = all(p.grad.isfinite().all() for p in front.parameters() if p.grad is not None)
    front.zero_grad()
    assert all(value.isfinite() for value in losses.values())
    assert not without
    assert sound
    assert ("denoising_class_0" in losses) == (sum(counts) > 0)
    parts = torch.stack([value for key, value in losses.items() if key != "loss"]).sum()
    torch.testing.assert_close(losses["loss"], parts)
    if sum(counts) > 10:  # boxes enough that one lies in the picture
        assert losses["point"] > 0
    if not (present and points and sum(counts)):
        assert losses["point"] == 0


@pytest.mark.parametrize(("cameras", "lidar"), [((), True), (("CAM_FRONT",), False)])
def test_one_modality_alone_trains_every_weight(cameras: tuple[str, ...], lidar: bool) -> None:
    expert = build(cameras, lidar)
    losses = ExpertStep(expert.train(), float)(make_batch([2, 0]))
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert any(key.startswith("image_") for key in losses) == bool(cameras)
    assert [name for name, p in expert.named_parameters() if p.requires_grad and p.grad is None] == []


def test_bf16_trains_as_well(front: NuscenesExpert) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = ExpertStep(front.train(), float)(make_batch([3, 1]))
    losses["loss"].backward()
    sound = all(p.grad is not None and p.grad.isfinite().all() for p in front.parameters() if p.requires_grad)
    reached = front.pillars.points.weight.grad.abs().sum(), front.paint.weight.grad.abs().sum()
    front.zero_grad()
    assert losses["loss"].isfinite()
    assert sound
    assert min(reached) > 0


@pytest.mark.parametrize("counts", [[2, 3], [0, 0]])
@pytest.mark.parametrize("broken", [False, True])
def test_all_processes_exchange_as_many_counts(front: NuscenesExpert, counts: list[int], broken: bool) -> None:
    """Three, whatever the batch holds and also where predictions are not finite: the others wait for them."""
    asked: list[int] = []

    def count(own: int) -> float:
        asked.append(own)
        return float(max(1, own))

    expert = copy.deepcopy(front)
    if broken:
        torch.nn.init.constant_(expert.heatmap.classes[-1].bias, float("nan"))
    loss = ExpertStep(expert.train(), count)(make_batch(counts))["loss"]
    assert bool(loss.isfinite()) != broken
    assert len(asked) == 3


def test_predictions_that_are_not_finite_reach_every_weight_too(front: NuscenesExpert) -> None:
    """Else DDP waits for the gradients of the others for ever, and the engine never gets to say what went wrong."""
    expert = copy.deepcopy(front)
    torch.nn.init.constant_(expert.heatmap.classes[-1].bias, float("nan"))
    loss = ExpertStep(expert.train(), float)(make_batch([2, 1]))["loss"]
    loss.backward()
    assert loss.isnan()
    assert [name for name, p in expert.named_parameters() if p.requires_grad and p.grad is None] == []


def test_boxes_beyond_the_map_are_not_taught(front: NuscenesExpert) -> None:
    """nuScenes annotates objects at twice the map's reach; nothing on it shows them, and the metric doesn't ask."""
    near = make_batch([0])
    far = near | {
        "boxes": [torch.tensor([[REACH + 20.0, 3.0, 0.8, 4.5, 1.9, 1.6, 0.3]])],
        "labels": [torch.tensor([CAR])],
    }
    far |= {"velocity": [torch.ones(1, 2)], "attributes": [torch.tensor([MOVING])]}
    step = ExpertStep(front.eval(), lambda n: float(max(1, n)))
    with torch.no_grad():
        wanted, got = step(near), step(far)
    for key in ("class", "bbox", "heatmap", "heatmap_bbox"):
        torch.testing.assert_close(got[key], wanted[key])


# --- denoising ---


def test_denoising_queries_leak_nothing(front: NuscenesExpert) -> None:
    """What ordinary queries say doesn't depend on them, and neither group sees the other."""
    batch = make_batch([3, 1])
    numbers, _ = make_denoising(targets_of(batch), 1, REACH, torch.Generator().manual_seed(0)) or (None, None)
    assert numbers is not None
    assert numbers.shape == (2, 6, 10)
    without, first = say(front, batch), say(front, batch, denoising_numbers=numbers)
    assert same(without, first, atol=1e-4)
    assert first["denoising_logits"].shape == first["denoising_numbers"].shape == (2, 2, 6, 10)
    changed = numbers.clone()
    changed[:, 3:, :2] += 4.0  # the negatives
    second = say(front, batch, denoising_numbers=changed)
    assert same(without, second, atol=1e-4)
    torch.testing.assert_close(
        first["denoising_logits"][:, :, :3], second["denoising_logits"][:, :, :3], atol=1e-4, rtol=0
    )
    assert not torch.allclose(first["denoising_logits"][:, :, 3:], second["denoising_logits"][:, :, 3:], atol=1e-3)


def test_denoising_boxes_know_where_they_come_from() -> None:
    batch = make_batch([3, 1, 0])
    batch["velocity"][0][1] = float("nan")
    targets = targets_of(batch)
    made = make_denoising(targets, 2, REACH, torch.Generator().manual_seed(0))
    assert made is not None
    numbers, source = made
    assert numbers.shape == (3, 12, 10)
    assert numbers.isfinite().all()
    assert source[0].tolist() == [0, 1, 2] * 2 + [-1] * 6
    assert source[1].tolist() == [0, -2, -2] * 2 + [-1, -2, -2] * 2
    assert (source[2] == -2).all()
    true = targets[0]["numbers"].repeat(4, 1)
    apart = (numbers[0, :, :2] - true[:, :2]).norm(dim=-1)
    sizes = (batch["boxes"][0][:, 3:5].sum(dim=1) / 4).clamp(0.5, 1.5).repeat(4)
    assert (apart[:6] <= sizes[:6] + 1e-4).all()
    assert ((apart[6:] >= sizes[6:] + 0.5 - 1e-4) & (apart[6:] <= 2 * sizes[6:] + 1 + 1e-4)).all()
    assert apart[:6].unique().numel() == 6  # each copy its own noise
    turned = decode_boxes(numbers[0])[0][:, 6] - batch["boxes"][0][:, 6].repeat(4)
    assert turned.sin().abs().max() < 0.75
    assert make_denoising([targets[2]], 2, REACH) is None


def test_denoising_stays_on_the_map() -> None:
    car = one_car(REACH - 0.1, -REACH + 0.1)
    numbers, _ = make_denoising([car] * 4, 3, REACH, torch.Generator().manual_seed(0)) or (torch.zeros(0), None)
    assert numbers[..., :2].abs().max() <= REACH
    assert ((numbers[..., 3:6] >= LOG_SIZE[0]) & (numbers[..., 3:6] <= LOG_SIZE[1])).all()


def test_denoising_losses_by_source(front: NuscenesExpert) -> None:
    """A positive learns box and class, a negative background, padding nothing."""
    car = one_car()
    out = said_by_hand(car["numbers"][None] + 0.3)
    logits = torch.zeros(2, 1, 4, 10, requires_grad=True)
    numbers = (car["numbers"] + 0.3).expand(2, 1, 4, 10).clone().requires_grad_()
    out |= {"denoising_logits": logits, "denoising_numbers": numbers}
    losses = criterion_of(front).losses(out, [car], torch.tensor([[0, -2, -1, -2]]))
    sum(value for key, value in losses.items() if key.startswith("denoising")).backward()
    assert logits.grad is not None
    assert numbers.grad is not None
    for layer in range(2):
        assert (logits.grad[layer, 0] < 0).nonzero().tolist() == [[0, CAR]]
        assert (logits.grad[layer, 0, 2] > 0).all()
        assert (logits.grad[layer, 0, [1, 3]] == 0).all()
        assert (numbers.grad[layer, 0].abs().sum(dim=1) > 0).tolist() == [True, False, False, False]


def test_a_negative_that_falls_on_another_object_is_not_called_background() -> None:
    """Pedestrians in a row, a metre apart: two to four metres aside of one stands another one."""
    boxes = torch.tensor([[5.0, 0.5 * place, 0.8, 0.6, 0.6, 1.7, 0.0] for place in range(-20, 21)])
    numbers = encode_boxes(boxes, torch.zeros(41, 2))
    row = {"boxes": boxes, "numbers": numbers, "labels": torch.full((41,), PEDESTRIAN), "attributes": torch.zeros(41)}
    copies, source = make_denoising([row], 4, REACH, torch.Generator().manual_seed(0)) or (None, None)
    assert copies is not None
    assert source is not None
    nearest = torch.cdist(copies[0, :, :2], boxes[:, :2]).amin(dim=1)
    assert (source[0] == -1).any()
    assert nearest[source[0] == -1].min() > 0.5


def test_a_map_in_bfloat16_is_sampled_at_exact_places() -> None:
    columns = torch.arange(256, dtype=torch.bfloat16).expand(1, 1, 2, 256)
    places = torch.tensor([[[100.3, 1.0], [200.8, 1.0]]]) / torch.tensor([256.0, 2.0])
    sampled = _sample_wide(columns, places)
    assert sampled[0, :, 0].tolist() == pytest.approx([99.8, 200.3], abs=1e-3)
