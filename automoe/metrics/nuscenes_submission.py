"""Submission files of nuScenes' detection task: read with every fault named, written as the devkit reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from automoe.errors import DataError
from automoe.files import write_text
from automoe.metrics.nuscenes import MAX_BOXES, Boxes3D
from automoe.poses import quaternion_yaw
from automoe.taxonomy import NUSCENES_ATTRIBUTES, NUSCENES_DETECTION

MODALITIES = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
_LABELS = {name: label for label, name in enumerate(NUSCENES_DETECTION)}
_ATTRIBUTES = {"": -1, **{name: index for index, name in enumerate(NUSCENES_ATTRIBUTES)}}
_VECTORS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}


def read_submission(path: Path) -> tuple[dict[str, Boxes3D], dict[str, Any]]:
    """The predicted boxes by sample token, in the file's order, and the submission's `meta`.

    Raises DataError naming file, sample and box for whatever the devkit would refuse.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the submission {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not complete JSON ({error}); write it again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise DataError(f'{path} has no "results": a submission is {{"meta": {{...}}, "results": {{token: [boxes]}}}}.')
    if not isinstance(content.get("meta"), dict):
        raise DataError(f'{path} has no "meta": say which sensors were used ({", ".join(MODALITIES)}).')
    boxes = {token: _sample_boxes(found, token, str(path)) for token, found in content["results"].items()}
    return boxes, content["meta"]


def write_submission(path: Path, boxes: Mapping[str, Boxes3D], *, camera: bool, lidar: bool) -> None:
    """Write predictions by sample token; the file appears whole or not at all. Raises DataError where it can't.

    camera, lidar: which sensors the model used.
    """
    meta = dict.fromkeys(MODALITIES, False) | {"use_camera": camera, "use_lidar": lidar}
    for token, found in boxes.items():
        found.check(f"prediction for sample {token}")
        if not np.isfinite(found.velocity).all():
            raise DataError(f"prediction for sample {token} has a velocity that is no number; JSON has none for it.")
    results = {token: _as_records(token, found) for token, found in boxes.items()}
    write_text(path, json.dumps({"meta": meta, "results": results}, allow_nan=False))


def _sample_boxes(found: Any, token: str, path: str) -> Boxes3D:
    where = f"{path}, sample {token}"
    if not isinstance(found, list):
        raise DataError(f"{where} is not a list of boxes.")
    if len(found) > MAX_BOXES:
        raise DataError(f"{where} has {len(found)} boxes; nuScenes allows {MAX_BOXES}.")
    columns: dict[str, list] = {key: [] for key in (*_VECTORS, "label", "attribute", "score")}
    for number, box in enumerate(found):
        at = f"{where}, box {number}"
        if not isinstance(box, dict):
            raise DataError(f"{at} is not an object.")
        if box.get("sample_token") != token:
            raise DataError(f"{at}: sample_token is {box.get('sample_token')!r}; it must be that of the sample.")
        for key, length in _VECTORS.items():
            columns[key].append(_vector(box.get(key), length, key, at))
        if not any(columns["rotation"][-1]):
            raise DataError(f"{at}: rotation is all zeros, which is no quaternion.")
        columns["label"].append(_known(box, "detection_name", _LABELS, at))
        columns["attribute"].append(_known(box, "attribute_name", _ATTRIBUTES, at))
        columns["score"].append(_vector([box.get("detection_score")], 1, "detection_score", at)[0])
    rotation = np.asarray(columns["rotation"], np.float64).reshape(-1, 4)
    boxes = Boxes3D.of(
        columns["translation"],
        columns["size"],
        quaternion_yaw(rotation),
        columns["velocity"],
        columns["label"],
        columns["attribute"],
        columns["score"],
    )
    boxes.check(where)
    return boxes


def _vector(value: Any, length: int, key: str, at: str) -> list[float]:
    sound = isinstance(value, list) and len(value) == length and all(type(v) in (int, float) for v in value)
    # An unknown velocity is NaN, and stays out of the velocity error.
    if not sound or not (key == "velocity" or all(math.isfinite(v) for v in value)):
        raise DataError(f"{at}: {key} is {value!r}; it must be {length} number{'s' if length > 1 else ''}.")
    return value


def _known(box: Mapping[str, Any], key: str, known: Mapping[str, int], at: str) -> int:
    value = box.get(key)
    if not isinstance(value, str) or value not in known:
        raise DataError(f"{at}: {key} is {value!r}; nuScenes knows {', '.join(name or 'none' for name in known)}.")
    return known[value]


def _as_records(token: str, boxes: Boxes3D) -> list[dict[str, Any]]:
    records = []
    for row in range(len(boxes)):
        half = float(boxes.yaw[row]) / 2
        attribute = int(boxes.attribute[row])
        records.append(
            {
                "sample_token": token,
                "translation": boxes.translation[row].tolist(),
                "size": boxes.size[row].tolist(),
                "rotation": [math.cos(half), 0.0, 0.0, math.sin(half)],
                "velocity": boxes.velocity[row].tolist(),
                "detection_name": NUSCENES_DETECTION[boxes.label[row]],
                "detection_score": float(boxes.score[row]),
                "attribute_name": NUSCENES_ATTRIBUTES[attribute] if attribute >= 0 else "",
            }
        )
    return records
