"""Label files in Scalabel form (BDD100K's det_20 JSON, RLE JSON) as the official scoring reads them.

Here live the reading of frames, the official name mapping of detection labels, the pairing of predicted with
true frames, and the decoding of run-length masks. No metric is computed here; the training reader of BDD100K,
which repairs and sets aside what it can, lives elsewhere: scoring refuses instead, with file and record.

Sources followed: scalabel (label/io.py, eval/utils.py) and bdd100k (label/to_scalabel.py, configs/det.toml).
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from automoe.errors import DataError
from automoe.taxonomy import BDD_DETECTION_SPELLINGS, bdd_detection_class

logger = logging.getLogger(__name__)

_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Frame:
    """One frame of a label file: its labels as found (an absent or null list is empty) and its place."""

    name: str
    video: str | None
    labels: list[dict[str, Any]]
    size: tuple[int, int] | None
    """Height and width in pixels, where the file gives them."""
    where: str
    """File and record, for messages."""

    @property
    def stem(self) -> str:
        """The name without a picture's extension: predictions for `a.jpg` may be called `a.png`."""
        path = PurePosixPath(self.name)
        return str(path.with_suffix("")) if path.suffix.lower() in _PICTURE_SUFFIXES else self.name


@dataclass(frozen=True)
class FrameBoxes:
    """The boxes of one frame: boxes_xyxy float64 [N, 4] raw pixels as in the file (x2, y2 inclusive),
    labels int64 [N] (index in the class list), ignored bool [N], scores float64 [N] (1 for truth)."""

    boxes_xyxy: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    scores: np.ndarray


def read_frames(path: Path) -> list[Frame]:
    """Read the frames of a label JSON, or of every `*.json` in a folder, in the order of the files.

    A file holds a list of frames or an object with such a list under "frames". Raises DataError, naming file
    and record, for what is missing, is not JSON, or has not that form.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise DataError(f"{path} holds no .json file; give a label file or a folder of label files.")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path} does not exist; give the path of a label JSON or of a folder of them.")
    return [frame for file in files for frame in _read_file(file)]


def _read_file(file: Path) -> list[Frame]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a UTF-8 text file; a label JSON is expected.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "it may be truncated: write or download it again."
        ) from error
    records = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise DataError(f'{file} is neither a list of frames nor an object with a list under "frames".')
    return [_parse_frame(record, index, file) for index, record in enumerate(records)]


def _parse_frame(record: Any, index: int, file: Path) -> Frame:
    where = f"{file}, frame {index}"
    if not isinstance(record, dict):
        raise DataError(f"{where} is not an object.")
    name = record.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(f'{where} has no "name".')
    where = f"{where} ({name})"
    labels = record.get("labels")
    labels = [] if labels is None else labels
    if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
        raise DataError(f'{where}: "labels" is not a list of objects.')
    video = record.get("videoName")
    return Frame(name, str(video) if video else None, labels, _parse_size(record.get("size"), where), where)


def _parse_size(size: Any, where: str) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        return int(size["height"]), int(size["width"])
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f'{where}: "size" is not an object with "height" and "width".') from error


def frame_boxes(frame: Frame, need_scores: bool) -> FrameBoxes:
    """The boxes of a frame under the official mapping; labels without box2d (lanes, areas) are left out.

    Ignored are the boxes of ignored categories and those whose attributes say crowd or ignored. With
    `need_scores` (predictions) each box must have a finite score. Raises DataError with file and record.
    """
    boxes, labels, ignored, scores = [], [], [], []
    for index, label in enumerate(frame.labels):
        if label.get("box2d") is None:
            continue
        where = f"{frame.where}, label {index}"
        mapped = bdd_detection_class(label.get("category"))
        if mapped is None:
            known = ", ".join(BDD_DETECTION_SPELLINGS)
            raise DataError(f"{where}: unknown class {label.get('category')!r}; known are {known}.")
        class_index, by_category = mapped
        attributes = label.get("attributes") or {}
        boxes.append(_parse_box(label["box2d"], where))
        labels.append(class_index)
        ignored.append(by_category or bool(attributes.get("crowd")) or bool(attributes.get("ignored")))
        scores.append(_number(label, "score", where) if need_scores else 1.0)
    return FrameBoxes(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(ignored, dtype=bool),
        np.array(scores, dtype=np.float64),
    )


def _parse_box(box: Any, where: str) -> list[float]:
    if not isinstance(box, dict):
        raise DataError(f'{where}: "box2d" is not an object with x1, y1, x2, y2.')
    return [_number(box, key, where) for key in ("x1", "y1", "x2", "y2")]


def _number(record: dict[str, Any], key: str, where: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        problem = "is missing" if value is None else f"is {value!r}"
        raise DataError(f'{where}: "{key}" {problem}; a number is needed.')
    if not math.isfinite(value):
        raise DataError(f'{where}: "{key}" is {value}; a finite number is needed.')
    return float(value)


def pair_frames(truth: Sequence[Frame], predicted: Sequence[Frame]) -> list[tuple[Frame, Frame | None]]:
    """Pair each true frame with its prediction, or with None where there is none, in the order of the truth.

    Frames meet by stem; where stems repeat and every frame has a videoName, by video and stem (the official
    rule). As in the official tool a missing prediction is scored as empty and a prediction without truth is
    not scored: both are logged as warnings. Raises DataError for a frame given twice, for empty truth, and
    where not one name fits, which is a mix-up of files and not a score of zero.
    """
    if not truth:
        raise DataError("The ground truth holds no frames; there is nothing to score.")
    both = (*truth, *predicted)
    repeated = any(len({frame.stem for frame in frames}) < len(frames) for frames in (truth, predicted))
    by_video = repeated and all(frame.video for frame in both)
    truth_by_key = _index_frames(truth, by_video, "the ground truth")
    predicted_by_key = _index_frames(predicted, by_video, "the predictions")
    check_names(truth_by_key, predicted_by_key)
    return [(frame, predicted_by_key.get(key)) for key, frame in truth_by_key.items()]


def _index_frames(frames: Iterable[Frame], by_video: bool, role: str) -> dict[str, Frame]:
    indexed: dict[str, Frame] = {}
    for frame in frames:
        key = f"{frame.video}/{frame.stem}" if by_video else frame.stem
        if key in indexed:
            raise DataError(
                f"{frame.where} appears twice in {role} (the first time as {indexed[key].where}); keep one."
            )
        indexed[key] = frame
    return indexed


def check_names(truth: Iterable[str], predicted: Iterable[str]) -> None:
    """Warn of predictions that are missing or have no truth; raise DataError where not one name fits."""
    truth, predicted = dict.fromkeys(truth), dict.fromkeys(predicted)
    strays = [name for name in predicted if name not in truth]
    missing = [name for name in truth if name not in predicted]
    if predicted and len(strays) == len(predicted):
        raise DataError(
            f"None of the {len(predicted)} predictions has the name of a ground truth frame "
            f"(the first prediction is {next(iter(predicted))}, the first truth {next(iter(truth))}); "
            "check that both paths belong to the same split."
        )
    if missing:
        logger.warning(
            "%d of %d frames have no prediction and count as missed; the first is %s.",
            len(missing),
            len(truth),
            missing[0],
        )
    if strays:
        logger.warning(
            "%d predictions have no ground truth and are not scored; the first is %s.", len(strays), strays[0]
        )


def frame_mask(frame: Frame, classes: Sequence[str], fill: int, strict: bool) -> np.ndarray | None:
    """Draw a frame's run-length labels, in their order, into a uint8 [H, W] mask of class indices.

    Pixels of no label hold `fill`. Labels of other categories are left out as in the official tool, unless
    `strict` (predictions), where a category that is neither a class nor "background" is an error. None where
    nothing is drawn and the frame gives no size. Raises DataError with file and record.
    """
    mask = None if frame.size is None else np.full(frame.size, fill, dtype=np.uint8)
    left_out: Counter[str] = Counter()
    for index, label in enumerate(frame.labels):
        where = f"{frame.where}, label {index}"
        category = label.get("category")
        if label.get("rle") is None and not label.get("poly2d"):
            continue
        if category not in classes:
            if strict and category != "background":
                raise DataError(f"{where}: unknown class {category!r}; known are {', '.join(classes)}.")
            left_out[str(category)] += 1
            continue
        if label.get("rle") is None:
            raise DataError(f'{where} is a polygon without "rle"; scoring takes run-length or PNG masks.')
        region = decode_rle(label["rle"], where)
        if mask is None:
            mask = np.full(region.shape, fill, dtype=np.uint8)
        if region.shape != mask.shape:
            raise DataError(f"{where}: the mask is {_size(region)}, the frame's others are {_size(mask)}.")
        mask[region] = classes.index(category)
    if left_out:
        logger.debug("%s: left out %s", frame.where, dict(left_out))
    return mask


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"


def decode_rle(rle: Any, where: str) -> np.ndarray:
    """Decode COCO's run-length form {"size": [h, w], "counts": str or list} to a bool [h, w] mask.

    Runs go down the columns and begin with zeros; a string packs each run's difference from the one before
    the last in 5-bit groups. Raises DataError where the runs do not fill the mask exactly.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f'{where}: "rle" needs "size": [height, width] and "counts".') from error
    runs = _unpack_counts(counts) if isinstance(counts, str) else np.asarray(counts)
    sound = runs.ndim == 1 and runs.dtype.kind in "iu" and bool(np.all(runs >= 0))
    if not sound or int(runs.sum()) != height * width:
        raise DataError(f"{where}: the run-length counts do not fill a {width}x{height} mask; the record is damaged.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _unpack_counts(counts: str) -> np.ndarray:
    """Run lengths from COCO's packed string; empty where it isn't one."""
    codes = np.frombuffer(counts.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        return np.zeros(0, dtype=np.int64)
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    negative = (codes[ends] & 16) != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    # From the fourth run on each value is a difference to the run two before: a running sum for each parity.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
