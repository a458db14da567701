"""A prepared set as a map-style `torch` data set: rows in, training items out, and how items make a batch.

An item is a dictionary:
    image      uint8 [3,H,W] RGB; normalisation is the expert's, on the device
    sample_id  the image's file name; index: int
    orig_size  int64 [2], raw (height, width)
    transform  float32 [2,3], raw pixel edges to network pixel edges
    boxes      float32 [N,4], normalised cxcywh in the network input; labels and colors int64 [N]; ignored bool [N]
    mask       uint8 [H,W], 255 = ignore and padding (dense tasks only)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from automoe.data.images import decode_jpeg, decode_mask
from automoe.data.prepared import PreparedInfo, evenly, open_rows
from automoe.data.transforms import Transform, move_boxes, warp_image, warp_mask
from automoe.errors import DataError


@dataclass(frozen=True)
class PreparedRow:
    """One frame of a prepared set as stored, for scoring and pictures.

    Attributes:
        jpeg, mask_png: the files' bytes; the mask's are None for detection.
        boxes: float32 [N,4], raw pixel xyxy; labels int64 [N]; ignored, occluded, truncated bool [N]; colors
            int64 [N], of traffic lights, places in `taxonomy.LIGHT_COLORS`, -1 where unknown and of everything else.
    """

    name: str
    height: int
    width: int
    weather: str
    scene: str
    timeofday: str
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    occluded: np.ndarray
    truncated: np.ndarray
    colors: np.ndarray
    jpeg: bytes
    mask_png: bytes | None

    def image(self) -> np.ndarray:
        """The raw picture, uint8 [h,w,3] RGB."""
        return decode_jpeg(self.jpeg, self.name).image

    def mask(self) -> np.ndarray:
        """The raw class ids, uint8 [h,w]."""
        if self.mask_png is None:
            raise DataError(f"{self.name} has no mask: its set is prepared for detection")
        return decode_mask(self.mask_png, self.name)


class ImageDataset(ABC, Dataset[dict[str, Any]]):
    """Random access to the pictures of a prepared set, memory-mapped; cheap to send to loader workers.

    A key is an index, or (epoch, index): augmentation is a pure function of (seed, epoch, index), whoever
    asks and in which order. A bare index means epoch 0.
    """

    def __init__(
        self, info: PreparedInfo, task: str, rows: np.ndarray, transform: Transform, seed: int, limit: int | None
    ) -> None:
        """rows: int64 [N], those of the set that count. limit: use only that many, spread evenly over them."""
        self.info, self.task, self.transform, self.seed = info, task, transform, seed
        self._rows = rows[evenly(len(rows), limit)]
        self._table: Any = open_rows(self.info.path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # workers map the files themselves

    @abstractmethod
    def make_row(self, stored: Mapping[str, Any]) -> PreparedRow:
        """A stored row as image experts know it."""

    def row(self, index: int) -> PreparedRow:
        """The stored frame behind an index, untouched by the transform."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples in {self.info.path}")
        if self._table is None:
            self._table = open_rows(self.info.path)
        return self.view(int(self._rows[index]))

    def view(self, number: int) -> PreparedRow:
        """What is seen under a number of `rows`: the stored row of that number."""
        return self.make_row(self._table[number])

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, index])
        row, size = self.row(index), self.transform.size
        matrix = self.transform.matrix(row.height, row.width, rng)
        where = f"sample {row.name} of {self.info.path}"
        picture, decoded_scale = decode_jpeg(row.jpeg, where, needed_scale=float(np.abs(matrix[:, :2]).max()))
        from_decoded = matrix / (decoded_scale, decoded_scale, 1.0)
        image = self.transform.recolor(warp_image(picture, from_decoded, size), rng)
        moved = move_boxes(row.boxes, matrix, self.transform)
        item = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "sample_id": row.name,
            "index": index,
            "orig_size": torch.tensor([row.height, row.width]),
            "transform": torch.from_numpy(matrix.astype(np.float32)),
            "boxes": torch.from_numpy(moved.boxes),
            "labels": torch.from_numpy(row.labels[moved.kept]),
            "colors": torch.from_numpy(row.colors[moved.kept]),
            "ignored": torch.from_numpy(row.ignored[moved.kept] | moved.too_little),
        }
        if row.mask_png is not None:
            item["mask"] = torch.from_numpy(warp_mask(decode_mask(row.mask_png, where), matrix, size))
        return item


class PreparedDataset(ImageDataset):
    """A set of BDD100K, as `prepare` writes it.

    Args:
        path: a directory written by `prepare`.
        task: must be the one the directory was prepared for.
        transform: gives size, affine and colours.
        limit: use only that many frames, spread evenly over the set.

    Raises DataError where the directory isn't a prepared set of that task.
    """

    def __init__(
        self,
        path: Path | str,
        task: str,
        transform: Transform,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        info = PreparedInfo.load(path)
        if info.task != task:
            raise DataError(f"{path} is prepared for {info.task}, not for {task}")
        super().__init__(info, task, np.arange(info.count), transform, seed, limit)

    def make_row(self, stored: Mapping[str, Any]) -> PreparedRow:
        flags = {key: np.asarray(stored[key], bool) for key in ("ignored", "occluded", "truncated")}
        same = {key: stored[key] for key in ("name", "height", "width", "weather", "scene", "timeofday")}
        return PreparedRow(
            boxes=np.asarray(stored["boxes"], np.float32).reshape(-1, 4),
            labels=np.asarray(stored["labels"], np.int64),
            colors=np.asarray(stored["colors"], np.int64),
            jpeg=stored["image"],
            mask_png=stored.get("mask"),
            **flags,
            **same,
        )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items to a batch: image [B,3,H,W], mask [B,H,W] if there is one, transform [B,2,3], orig_size [B,2],
    and lists of sample_id, index, boxes, labels, ignored, colors."""
    listed = ("sample_id", "index", "boxes", "labels", "ignored", "colors")
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in listed}
    for key in ("image", "mask", "transform", "orig_size"):
        if key in items[0]:
            batch[key] = torch.stack([item[key] for item in items])  # pyright: ignore[reportArgumentType]
    return batch
