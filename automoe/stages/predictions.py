"""Predictions in the formats that the official tools (and `automoe score`) read: det_20 frames and mask PNGs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from automoe.data.images import encode_mask
from automoe.files import write_bytes


def det20_frame(name: str, prediction: Mapping[str, Tensor], classes: Sequence[str]) -> dict[str, Any]:
    """One image's detections as a frame of a det_20 label file, best first.

    prediction: `boxes` [K, 4] raw pixel xyxy, `scores` [K], `labels` [K].
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
