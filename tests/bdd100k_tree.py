"""A tiny BDD100K tree in the official raw layout, for any test that needs one: a few painted frames with boxes and
masks that agree with the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

CATEGORIES = ("car", "pedestrian", "traffic sign", "person", "motor", "trailer")
"""Two of these are aliases, the last is an ignore region of class truck."""


def write_bdd100k_tree(
    root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (64, 36), seed: int = 0
) -> Path:
    """Writes `train` and `val` frames of (width, height) for all three tasks under `root` and returns it."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        frames = [_write_frame(root, split, f"{split}{i:04d}", size, rng) for i in range(count)]
        labels = root / "labels" / "det_20" / f"det_{split}.json"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(json.dumps(frames))
    return root


def edit_labels(root: Path, split: str, change: object) -> list[dict]:
    """Lets `change(frames)` edit a split's label JSON in place; returns the frames."""
    path = root / "labels" / "det_20" / f"det_{split}.json"
    frames = json.loads(path.read_text())
    change(frames)  # type: ignore[operator]
    path.write_text(json.dumps(frames))
    return frames


def _write_frame(
    root: Path, split: str, stem: str, size: tuple[int, int], rng: np.random.Generator
) -> dict[str, object]:
    width, height = size
    horizon = height // 2
    image = np.full((height, width, 3), 200, np.uint8)
    drivable = np.full((height, width), 2, np.uint8)
    semantic = np.full((height, width), 10, np.uint8)
    image[horizon:], semantic[horizon:] = 90, 0
    drivable[horizon:, width // 4 : width // 2] = 0
    drivable[horizon:, width // 2 : 3 * width // 4] = 1
    semantic[-1] = 255
    labels = []
    for number, category in enumerate(CATEGORIES):
        w, h = rng.integers(width // 8, width // 3), rng.integers(height // 8, height // 3)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        image[y : y + h, x : x + w] = rng.integers(0, 255, 3)
        semantic[y : y + h, x : x + w] = (13, 11, 7, 11, 17, 14)[number]
        attributes = {"occluded": bool(number % 2), "truncated": False, "trafficLightColor": "NA"}
        box = {"x1": float(x), "y1": float(y), "x2": float(x + w), "y2": float(y + h)}
        labels.append({"id": str(number), "category": category, "attributes": attributes, "box2d": box})
    for kind in ("100k", "10k"):
        _write(root / "images" / kind / split / f"{stem}.jpg", simplejpeg.encode_jpeg(image, quality=95))
    for kind, mask in (("drivable", drivable), ("sem_seg", semantic)):
        path = root / "labels" / kind / "masks" / split / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    attributes = {"weather": "clear", "scene": "city street", "timeofday": "night" if rng.integers(2) else "daytime"}
    return {"name": f"{stem}.jpg", "attributes": attributes, "timestamp": 10000, "labels": labels}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
