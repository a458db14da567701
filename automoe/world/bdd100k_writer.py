"""Writes the embedded world as BDD100K: the official raw layout, with every label that the three tasks use.

    images/100k/{train,val}/NAME.jpg           detection, drivable
    images/10k/{train,val}/NAME.jpg            semantic; the same frames (hard links), unlike the real 10k set
    labels/det_20/det_{train,val}.json
    labels/drivable/masks/{train,val}/NAME.png
    labels/sem_seg/masks/{train,val}/NAME.png  trainIds
    world.json                                 how it was made, and what is in it
    .frames/{train,val}/NAME.json              one file per finished frame, so that an export can be resumed

A frame's content is a function of (seed, split, index) alone: neither the number of frames nor that of worker
processes changes it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automoe.config import from_dict
from automoe.errors import WorldError
from automoe.taxonomy import BDD_DETECTION
from automoe.world.workers import begin, check_settings, make_pieces, settings_of, write_piece

if TYPE_CHECKING:
    from automoe.world.renderer import Renderer

FORMAT_VERSION = 2
TRAIN_TOWNS: tuple[str, ...] = tuple(f"bdd-train-{index:02d}" for index in range(1, 11))
VAL_TOWNS: tuple[str, ...] = tuple(f"bdd-val-{index:02d}" for index in range(1, 5))
SPLITS = ("train", "val")
JPEG_QUALITY = 90


@dataclass(frozen=True)
class ExportPlan:
    """What an export makes; written to world.json, and the same in every worker."""

    seed: int
    size: tuple[int, int]
    train: int
    val: int
    train_towns: tuple[str, ...]
    val_towns: tuple[str, ...]
    look: str = "bdd"
    version: int = FORMAT_VERSION

    def towns(self, split: str) -> tuple[str, ...]:
        return self.train_towns if split == "train" else self.val_towns

    def town(self, split: str, index: int) -> str:
        """The town of a frame."""
        towns = self.towns(split)
        return towns[index % len(towns)]

    def frames(self) -> list[tuple[str, int]]:
        """Every (split, index), those of one town together."""
        frames = [("train", i) for i in range(self.train)] + [("val", i) for i in range(self.val)]
        return sorted(frames, key=lambda frame: (frame[0], self.towns(frame[0]).index(self.town(*frame)), frame[1]))


def frame_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The random generator that a frame is drawn from."""
    return np.random.default_rng([seed, 100 + SPLITS.index(split), index])


def frame_name(seed: int, split: str, index: int) -> str:
    """A file stem in BDD100K's style, sixteen hexadecimal digits."""
    digits = np.random.default_rng([seed, 200 + SPLITS.index(split), index]).integers(0, 2**32, 1)[0]
    return f"{digits:08x}-{SPLITS.index(split):01x}{index:07x}"


def export_bdd100k(
    out: Path,
    train: int,
    val: int,
    seed: int,
    *,
    towns: Sequence[str] | None = None,
    size: tuple[int, int] = (640, 360),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write `train` and `val` frames under `out`, going on where an earlier call with the same settings stopped.

    towns: names of the train towns, instead of TRAIN_TOWNS; validation towns are always VAL_TOWNS. size: width and
    height. workers: processes, by default one for each CPU. progress: called with (frames done, frames in all).
    Returns the content of world.json. Raises WorldError when `out` holds an export with other settings, a train town
    is a validation town, or the world cannot be rendered.
    """
    out = Path(out)
    train_towns = tuple(towns) if towns else TRAIN_TOWNS
    plan = ExportPlan(seed, (int(size[0]), int(size[1])), train, val, train_towns, VAL_TOWNS)
    shared = sorted(set(train_towns) & set(VAL_TOWNS))
    if shared:
        raise WorldError(f"town {shared[0]!r} is kept for validation and cannot be trained on; name other towns")
    _claim(out, plan)
    waiting = [frame for frame in plan.frames() if not _sidecar(out, plan, *frame).is_file()]
    make_pieces(
        write_frames, "automoe.world.bdd100k_writer:work", out, plan, waiting, workers=workers, progress=progress
    )
    return _finish(out, plan)


# ---------------------------------------------------------------- one process


def write_frames(out: Path, plan: ExportPlan, frames: Sequence[tuple[str, int]], on_frame: Callable[[], None]) -> None:
    """Render and write frames one after another; those of one town should stand together."""
    from automoe.world.furnish import stage_town
    from automoe.world.renderer import Renderer, check_rendering

    check_rendering()
    current, renderer = None, None
    try:
        for split, index in frames:
            town = plan.town(split, index)
            if town != current:
                if renderer is not None:
                    renderer.close()
                renderer, current = Renderer(stage_town(town), *plan.size), town
            assert renderer is not None
            write_frame(out, plan, split, index, renderer)
            on_frame()
    finally:
        if renderer is not None:
            renderer.close()


def write_frame(out: Path, plan: ExportPlan, split: str, index: int, renderer: Renderer) -> None:
    """Render one frame and write its picture, masks and, last, its sidecar."""
    import cv2
    import simplejpeg

    from automoe.world.annotate import boxes_2d, drivable_mask
    from automoe.world.look import LOOKS, scene_light, shade
    from automoe.world.rig import dash_camera
    from automoe.world.traffic import sample_scene

    rng = frame_generator(plan.seed, split, index)
    scene = sample_scene(renderer.stage, rng, all_round=False)
    camera = dash_camera(*plan.size, rng)
    frame = renderer.render(scene, camera, scene_light(scene.conditions))
    picture = shade(frame, scene, camera, renderer, LOOKS[plan.look], rng)
    boxes = boxes_2d(frame, scene, camera)
    name = frame_name(plan.seed, split, index)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=JPEG_QUALITY, colorspace="RGB")
    image = out / f"images/100k/{split}/{name}.jpg"
    write_piece(image, jpeg)
    _link(image, out / f"images/10k/{split}/{name}.jpg")
    for folder, mask in (("drivable", drivable_mask(frame, scene, camera)), ("sem_seg", frame.semantic)):
        write_piece(out / f"labels/{folder}/masks/{split}/{name}.png", cv2.imencode(".png", mask)[1].tobytes())
    record = {
        "name": f"{name}.jpg",
        "attributes": {
            "weather": scene.conditions.weather,
            "timeofday": scene.conditions.time_of_day,
            "scene": scene.scene_type,
        },
        "timestamp": 10000,
        "labels": [
            {
                "id": str(number),
                "category": box.category,
                "attributes": {
                    "occluded": box.occluded,
                    "truncated": box.truncated,
                    "trafficLightColor": box.light_color,
                },
                "box2d": dict(zip(("x1", "y1", "x2", "y2"), box.xyxy, strict=True)),
            }
            for number, box in enumerate(boxes)
        ],
    }
    write_piece(_sidecar(out, plan, split, index), json.dumps(record).encode())


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_piece(target, source.read_bytes())


def _sidecar(out: Path, plan: ExportPlan, split: str, index: int) -> Path:
    return out / ".frames" / split / f"{frame_name(plan.seed, split, index)}.json"


# ---------------------------------------------------------------- many processes


def work(job: dict[str, Any], on_frame: Callable[[], None]) -> None:
    """A worker's share of an export."""
    plan = from_dict(ExportPlan, job["plan"], "plan")
    write_frames(Path(job["out"]), plan, [(split, index) for split, index in job["pieces"]], on_frame)


# ---------------------------------------------------------------- beginning and end


def _claim(out: Path, plan: ExportPlan) -> None:
    """Make sure that what lies under `out` was made with the same settings; more frames are welcome."""
    check_settings(out, plan, "images", "pictures")
    for split, count in (("train", plan.train), ("val", plan.val)):
        wanted = {frame_name(plan.seed, split, index) for index in range(count)}
        there = {picture.stem for picture in (out / "images" / "100k" / split).glob("*.jpg")}
        if there - wanted:
            raise WorldError(
                f"{out} holds {len(there - wanted)} {split} frames beyond the {count} asked for, which readers would "
                "find too; ask for more, or choose another directory"
            )
    begin(out, plan)


def _finish(out: Path, plan: ExportPlan) -> dict:
    """Join the frames' labels into the official files and write world.json."""
    statistics = {}
    for split, count in (("train", plan.train), ("val", plan.val)):
        records = [json.loads(_sidecar(out, plan, split, index).read_bytes()) for index in range(count)]
        write_piece(out / f"labels/det_20/det_{split}.json", json.dumps(records).encode())
        statistics[split] = describe(records, plan.size[0])
    world = {
        "settings": settings_of(plan),
        "complete": True,
        "frames": {"train": plan.train, "val": plan.val},
        **statistics,
    }
    write_piece(out / "world.json", json.dumps(world, indent=1).encode())
    return world


def describe(records: Sequence[dict], width: int) -> dict:
    """Counts and shares of a split's labels: what makes it hard or easy. `small` is under 32 x 32 at 1280 wide."""
    labels = [(record, label) for record in records for label in record["labels"]]
    limit = (32 * width / 1280) ** 2
    counts = Counter(label["category"] for _, label in labels)
    number = max(len(labels), 1)

    def share(test: Callable[[dict, dict], bool]) -> float:
        return round(sum(test(record, label) for record, label in labels) / number, 4)

    def area(label: dict) -> float:
        box = label["box2d"]
        return (box["x2"] - box["x1"]) * (box["y2"] - box["y1"])

    return {
        "images": len(records),
        "boxes": len(labels),
        "boxes_per_image": round(len(labels) / max(len(records), 1), 2),
        "boxes_per_category": {name: counts.get(name, 0) for name in BDD_DETECTION},
        "share_small": share(lambda _, label: area(label) < limit),
        "share_occluded": share(lambda _, label: label["attributes"]["occluded"]),
        "share_truncated": share(lambda _, label: label["attributes"]["truncated"]),
        "share_night": share(lambda record, _: record["attributes"]["timeofday"] == "night"),
        "images_per_timeofday": dict(Counter(record["attributes"]["timeofday"] for record in records)),
        "images_per_weather": dict(Counter(record["attributes"]["weather"] for record in records)),
    }
