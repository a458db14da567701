"""BDD100K as a `RawSource`: what of a frame goes into a row of a prepared set.

Columns: name, image (JPEG bytes), height, width, weather, scene, timeofday, boxes (pixel xyxy), labels,
ignored, occluded, truncated; and mask (8-bit PNG of class ids) for drivable and segmentation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automoe.data.bdd100k import Record, Source, find_layout, frames, parse_frame, read_class_mask
from automoe.data.images import check_jpeg, encode_mask, is_plain_mask
from automoe.data.raw_source import (
    Quarantined,
    folder_listing,
    quarantine,
    read_file,
    same_text,
    text_listing,
)
from automoe.errors import DataError

_BOX_FLAGS = ("ignored", "occluded", "truncated")


def find_bdd100k(root: Path, task: str, split: str) -> Bdd100kSource:
    """One task's split under a root. Raises DataError with where it was looked for."""
    return Bdd100kSource(root, find_layout(root).source(task, split))


@dataclass(frozen=True)
class Bdd100kSource:
    """One task's split of a BDD100K tree; see `RawSource`."""

    root: Path
    found: Source
    dataset: str = "bdd100k"
    unit: str = "images"
    rows_per_shard: int = 256
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.found.task

    @property
    def split(self) -> str:
        return self.found.split

    @property
    def place(self) -> Path:
        return self.found.labels

    def describe(self) -> str:
        return f"images {self.found.images}, labels {self.found.labels}"

    def notes(self) -> tuple[str, ...]:
        return self.found.notes

    def rig(self) -> dict[str, Any]:
        return {}  # dashcams of many cars, none of them calibrated

    def features(self) -> Any:
        from datasets import Features, List, Value

        columns: dict[str, Any] = {"name": Value("string"), "image": Value("binary")}
        columns |= {"height": Value("int32"), "width": Value("int32")}
        columns |= {key: Value("string") for key in ("weather", "scene", "timeofday")}
        columns["boxes"] = List(List(Value("float32")))
        columns["labels"] = List(Value("int64"))
        columns |= {flag: List(Value("bool")) for flag in _BOX_FLAGS}
        columns["colors"] = List(Value("int64"))
        if self.task != "detection":
            columns["mask"] = Value("binary")
        return Features(columns)

    def plan(self) -> tuple[list[Record], list[Quarantined]]:
        usable: list[Record] = []
        quarantined: list[Quarantined] = []
        seen: set[str] = set()
        for frame in frames(self.found):
            try:
                record = parse_frame(frame, self.found)
            except DataError as error:
                name = str(frame.get("name")) if isinstance(frame, dict) else ""
                quarantined.append(quarantine(name, str(error)))
                continue
            if record.name in seen:
                reason = f"{self.found.labels}: frame {record.name} occurs a second time; the first is used"
                quarantined.append(quarantine(record.name, reason))
                continue
            seen.add(record.name)
            usable.append(record)
        return usable, quarantined

    def name(self, record: Record) -> str:
        return record.name

    def files(self, record: Record) -> tuple[Path, ...]:
        return (record.image,) if record.mask is None else (record.image, record.mask)

    def key(self, record: Record) -> bytes:
        words = f"{record.name}|{record.weather}|{record.scene}|{record.timeofday}|{record.rejected}"
        digest = hashlib.sha256(f"{words}|{self.found.background_first}".encode())
        for array in (record.boxes, record.labels, record.colors, *(getattr(record, flag) for flag in _BOX_FLAGS)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def row(self, record: Record) -> tuple[dict[str, Any], list[str]]:
        image = read_file(record.image, "image")
        height, width = check_jpeg(image, str(record.image))
        boxes, keep, outside = _clip(record, height, width)
        row: dict[str, Any] = {"name": record.name, "image": image, "height": height, "width": width}
        row |= {"weather": record.weather, "scene": record.scene, "timeofday": record.timeofday}
        row |= {"boxes": boxes[keep].tolist(), "labels": record.labels[keep].tolist()}
        row |= {flag: getattr(record, flag)[keep].tolist() for flag in _BOX_FLAGS}
        row["colors"] = record.colors[keep].tolist()
        if record.mask is not None:
            data = read_file(record.mask, "mask")
            ids = read_class_mask(data, self.found, str(record.mask))
            if ids.shape != (height, width):
                raise DataError(
                    f"{record.mask} is {ids.shape[1]}x{ids.shape[0]} and its image {record.name} {width}x{height}"
                )
            as_found = is_plain_mask(data) and not self.found.background_first
            row["mask"] = data if as_found else encode_mask(ids)
        return row, [*record.rejected, *outside]

    def origin(self) -> dict[str, Any]:
        images, labels = self.found.images, self.found.labels
        told = folder_listing(labels, self._label_suffix) if labels.is_dir() else text_listing(labels)
        listing = {"images": folder_listing(images, self.found.image_suffix), "labels": told}
        return {"images": str(images), "labels": str(labels), "listing": listing}

    def changed(self, origin: Mapping[str, Any]) -> str | None:
        images, labels, before = self.found.images, self.found.labels, origin["listing"]
        if folder_listing(images, self.found.image_suffix) != before["images"]:
            return f"the images in {images} have changed"
        if labels.is_dir():
            same = folder_listing(labels, self._label_suffix) == before["labels"]
        else:
            same = same_text(labels, before["labels"])
        return None if same else f"the labels in {labels} have changed"

    @property
    def _label_suffix(self) -> str:
        return ".json" if self.task == "detection" else self.found.mask_suffix


def _clip(record: Record, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes clipped to the image, which of them to keep, and a reason for each that lies outside."""
    limits = np.array([width, height, width, height], np.float32)
    boxes = np.clip(record.boxes, 0, limits)
    emptied = (boxes[:, 2:] == boxes[:, :2]) & (record.boxes[:, 2:] > record.boxes[:, :2])
    beyond = (record.boxes[:, :2] > limits[:2]) | (record.boxes[:, 2:] < 0)
    keep = ~(emptied | beyond).any(axis=1)
    reasons = [
        f"{record.name}: the box ({', '.join(f'{v:g}' for v in box)}) lies outside the {width}x{height} image"
        for box in record.boxes[~keep]
    ]
    return boxes, keep, reasons
