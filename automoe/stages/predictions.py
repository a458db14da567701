"""Predictions in the formats that the official tools (and `automoe score`) read: det_20 frames, mask PNGs and nuScenes
submissions; and how several processes write one output of them, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from automoe.data.images import encode_mask
from automoe.engine.distributed import Distributed
from automoe.errors import DataError
from automoe.experts.inference import TrainedExpert
from automoe.experts.nuscenes import global_boxes
from automoe.files import write_bytes, write_text
from automoe.metrics.nuscenes import Boxes3D, filter_boxes
from automoe.metrics.nuscenes_submission import write_submission
from automoe.taxonomy import det20_light_color


def det20_frame(name: str, prediction: Mapping[str, Tensor], classes: Sequence[str]) -> dict[str, Any]:
    """One image's detections as a frame of a det_20 label file, best first.

    prediction: `boxes` [K, 4] raw pixel xyxy, `scores` [K], `labels` [K], and `colors` [K] of traffic lights, -1 of
    everything else, where the expert tells them.
    """
    rows = zip(prediction["boxes"].tolist(), prediction["scores"].tolist(), prediction["labels"].tolist())
    labels = [
        {
            "id": str(index),
            "category": classes[label],
            "score": _short(score),
            "box2d": dict(zip(("x1", "y1", "x2", "y2"), map(_short, box))),
        }
        for index, (box, score, label) in enumerate(rows)
    ]
    for label, color in zip(labels, prediction["colors"].tolist() if "colors" in prediction else ()):
        if color >= 0:
            label["attributes"] = {"trafficLightColor": det20_light_color(color)}
    return {"name": name, "labels": labels}


def frames_json(frames: Sequence[Mapping[str, Any]]) -> str:
    """A label file: one frame a line, so that people can look into it."""
    return "[\n" + ",\n".join(json.dumps(frame) for frame in frames) + "\n]\n"


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write class ids uint8 [h, w] as a PNG. Raises WriteError where it cannot be written."""
    write_bytes(path, encode_mask(mask), sync=False)


def _short(value: float) -> float:
    """A float32 with no more digits than tell it from its neighbours: half the size of the file, the same order."""
    return float(f"{value:.9g}")


class PredictionWriter(ABC):
    """Collects every process's predictions and puts them at `out`, all or nothing.

    Raises DataError where `out` holds something that isn't an earlier output: nothing else is replaced.
    """

    def __init__(self, out: Path, expert: TrainedExpert, dist: Distributed) -> None:
        self.out, self.expert, self.dist = Path(out), expert, dist
        dist.from_main(self._start)

    @abstractmethod
    def add(self, sample_id: str, prediction: Mapping[str, Tensor], row: Any) -> None:
        """Take one sample's prediction (`Expert.predict_batch`) and its prepared row."""

    def finish(self, count: int) -> Path:
        """Put everything in its place once all processes are here. count: how many samples there must be."""
        parts = self.dist.all_gather_objects(self._part())
        self.dist.barrier()
        self.dist.from_main(lambda: self._place(parts, count))
        return self.out

    def _start(self) -> None:
        if self.out.is_dir():
            raise DataError(f"{self.out} is a folder; these predictions are one JSON file: name a file for them.")

    @abstractmethod
    def _part(self) -> list[Any]:
        """What this process gathered."""

    @abstractmethod
    def _place(self, parts: list[Any], count: int) -> None:
        """Write the output. parts: of all processes."""


class BoxWriter(PredictionWriter):
    """Image boxes as one det_20 label file."""

    def __init__(self, out: Path, expert: TrainedExpert, dist: Distributed) -> None:
        super().__init__(out, expert, dist)
        self._frames: list[dict[str, Any]] = []

    def add(self, sample_id: str, prediction: Mapping[str, Tensor], row: Any) -> None:
        self._frames.append(det20_frame(sample_id, prediction, self.expert.model.classes))

    def _part(self) -> list[Any]:
        return self._frames

    def _place(self, parts: list[Any], count: int) -> None:
        write_text(self.out, frames_json(sorted(parts, key=lambda frame: frame["name"])))


class SubmissionWriter(PredictionWriter):
    """3D boxes as a nuScenes submission."""

    def __init__(self, out: Path, expert: TrainedExpert, dist: Distributed) -> None:
        super().__init__(out, expert, dist)
        self._boxes: list[tuple[str, Boxes3D]] = []

    def add(self, sample_id: str, prediction: Mapping[str, Tensor], row: Any) -> None:
        boxes = global_boxes(prediction, row.T_world_ego)
        # Within the ranges that count, as the trainer writes it: the score is the same, the file is smaller.
        self._boxes.append((sample_id, boxes[filter_boxes(boxes, row.T_world_ego[:2, 3], row.racks)]))

    def _part(self) -> list[Any]:
        return self._boxes

    def _place(self, parts: list[Any], count: int) -> None:
        preprocess = self.expert.payload["preprocess"]
        write_submission(
            self.out, dict(sorted(parts)), camera=bool(preprocess["cameras"]), lidar=bool(preprocess["lidar"])
        )


class MaskWriter(PredictionWriter):
    """Class masks as a folder of PNGs."""

    def __init__(self, out: Path, expert: TrainedExpert, dist: Distributed) -> None:
        self._partial = Path(out).with_name(f".{Path(out).name}.partial")
        super().__init__(out, expert, dist)

    def _start(self) -> None:
        if self.out.is_file():
            raise DataError(f"{self.out} is a file; predicted masks are a folder of PNGs: name a folder for them.")
        foreign = [p for p in self.out.iterdir() if p.suffix != ".png"] if self.out.is_dir() else []
        if foreign:
            raise DataError(f"{self.out} holds other things than masks ({foreign[0].name}); name another folder.")
        shutil.rmtree(self._partial, ignore_errors=True)
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"{self._partial} cannot be made ({error.strerror}); name another folder.") from error

    def add(self, sample_id: str, prediction: Mapping[str, Tensor], row: Any) -> None:
        write_mask(self._partial / f"{Path(sample_id).stem}.png", prediction["mask"].numpy())

    def _part(self) -> list[Any]:
        return []

    def _place(self, parts: list[Any], count: int) -> None:
        found = sum(1 for _ in self._partial.glob("*.png"))
        if found != count:
            raise DataError(
                f"{found} of {count} masks are in {self._partial}: processes on several machines need a shared "
                "folder for --predictions, and image names must differ by more than their suffix."
            )
        shutil.rmtree(self.out, ignore_errors=True)
        os.replace(self._partial, self.out)
