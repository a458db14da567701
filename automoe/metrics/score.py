"""Scoring BDD100K predictions from files: what `automoe score` does, and how the result is written and shown.

Needs no GPU, no model and no network, and does not load torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from automoe.files import write_text
from automoe.metrics.scalabel import read_frames

Task = Literal["detection", "drivable", "segmentation"]
Scores = dict[str, float | None]

_SUFFIXES = {
    "detection": ("AP", "AP50"),
    "drivable": ("IoU", "IoU_3class"),
    "segmentation": ("IoU",),
}
_MEANS = {"AP": "AP", "AP50": "AP50", "IoU": "mIoU", "IoU_3class": "mIoU_3class"}


def score_bdd100k(task: Task, gt: Path, pred: Path) -> Scores:
    """Score predictions of a BDD100K task against the ground truth, in percent under the official names.

    detection: label JSON in det_20 form (a list of frames, or {"frames": [...]}), or a folder of such files;
    drivable and segmentation: a folder of PNG masks, a run-length label JSON, or a folder of those, on either
    side. Values without truth are None. Raises DataError with file and record for whatever can't be scored.
    """
    gt, pred = Path(gt), Path(pred)
    if task == "detection":
        from automoe.metrics.detection import score_detection

        return score_detection(read_frames(gt), read_frames(pred))
    from automoe.metrics.segmentation import score_segmentation

    return score_segmentation(task, gt, pred)


def write_metrics_json(path: Path, metrics: Mapping[str, float | None]) -> None:
    """Write {"metrics": {...}}, None as null; the file appears whole or not at all.

    Raises WriteError where it cannot be written (no space, no permission).
    """
    write_text(path, json.dumps({"metrics": dict(metrics)}, indent=2, allow_nan=False) + "\n")


def format_nuscenes_table(metrics: Mapping[str, float | None]) -> str:
    """A nuScenes score as plain text: a line a class with AP at each distance and its errors, the means last."""
    columns = ("AP", "AP@0.5m", "AP@1m", "AP@2m", "AP@4m", "ATE", "ASE", "AOE", "AVE", "AAE")
    names = [key.split("/")[1] for key in metrics if key.startswith("AP/")]
    width = max(map(len, names))
    lines = [f"{'':{width}}" + "".join(f"{column:>9}" for column in columns)]
    for name in names:
        values = [metrics[f"{column}/{name}"] for column in columns]
        lines.append(f"{name:{width}}" + "".join(f"{'-' if v is None else format(v, '.3f'):>9}" for v in values))
    means = ("mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "NDS")
    return "\n".join([*lines, "", "  ".join(f"{key} {metrics[key]:.4f}" for key in means)])


def format_table(metrics: Mapping[str, float | None], task: Task) -> str:
    """A plain text table of a score: one line a class, the means under it, then everything else."""
    columns = _SUFFIXES[task]
    names = list(dict.fromkeys(key.split("/", 1)[1] for key in metrics if "/" in key))
    shown = {f"{column}/{name}" for column in columns for name in names}
    rows = [(name, [metrics.get(f"{column}/{name}") for column in columns]) for name in names]
    means = [_MEANS[column] for column in columns]
    width = max(len(name) for name in (*names, "mean"))
    header = f"{'':{width}}" + "".join(f"{column:>12}" for column in columns)
    rule = "-" * len(header)
    lines = [header, rule, *(_line(name, values, width) for name, values in rows)]
    lines += [rule, _line("mean", [metrics.get(mean) for mean in means], width)]
    rest = [key for key in metrics if key not in shown and key not in means]
    lines += ["", "  ".join(f"{key} {_percent(metrics[key])}" for key in rest)] if rest else []
    return "\n".join(lines)


def _line(name: str, values: list[float | None], width: int) -> str:
    return f"{name:{width}}" + "".join(f"{_percent(value):>12}" for value in values)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
