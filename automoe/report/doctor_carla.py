"""A look at CARLA recordings before anything trains on them: what is there, what is wrong, and pictures of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automoe.carla import run as layout
from automoe.data import carla
from automoe.data.carla import Run, Step
from automoe.data.carla_source import CarlaSource, find_carla, split_runs
from automoe.data.images import decode_jpeg, decode_mask
from automoe.data.nuscenes import CameraFrame
from automoe.drawing import contact_sheet, draw_boxes, fit_width, legend, overlay_mask, save_png, stack_rows
from automoe.errors import DataError
from automoe.poses import LOOKING_FORWARD, pinhole
from automoe.report.doctor import condense, findings
from automoe.report.pictures_3d import draw_camera
from automoe.taxonomy import (
    BDD_DETECTION,
    CARLA_COMMANDS,
    DETECTION_COLORS,
    DRIVABLE,
    DRIVABLE_COLORS,
    SEMANTIC,
    SEMANTIC_COLORS,
)

_CELL_WIDTH = 480
DRIFT = 0.1
"""Of the way between two frames, beside what speed and heading say: more than this, and axes or times may be wrong."""

FAST = 2.0
"""Metres a second above which the way is compared with the speed."""


@dataclass(frozen=True)
class CarlaReport:
    """What a tree of runs holds. problems: sentences. picture: the sheet, None where nothing could be drawn."""

    root: Path
    text_lines: tuple[str, ...]
    problems: tuple[str, ...]
    picture: Path | None

    def text(self) -> str:
        """Everything as plain text."""
        parts = [f"CARLA runs under {self.root}", "\n".join(self.text_lines), findings(self.problems)]
        if self.picture:
            parts.append(f"Pictures: {self.picture}")
        return "\n\n".join(parts)


def doctor_carla(root: Path | str, out_dir: Path | str, *, samples: int = 4, look_at: int = 60) -> CarlaReport:
    """Examine a tree and draw `samples` frames, evenly spread, with boxes, tags, drivable area, points and 3D boxes.

    Configs and logs are read in full, and for every frame it is known which files there are and which camera hung. Of
    the files all those of `look_at` frames are opened, and of each run's last frame, which may be half written. Raises
    DataError where there are no runs at all; everything else that is wrong stands in the report.
    """
    root = Path(root)
    source = find_carla(root, "frames", "train")
    if not isinstance(source, CarlaSource):
        raise DataError(f"{root} holds pictures with boxes in YOLO's form, and no runs to look over")
    runs, problems = [], []
    for folder in source.folders:
        try:
            runs.append(carla.read_run(folder, root))
        except DataError as error:
            problems.append(str(error))
    if not runs:
        raise DataError(f"none of the {len(problems)} runs in {root} can be used; {problems[0]}")
    lines = [*_describe(runs)]
    try:
        splits, words = split_runs(runs, None)
    except DataError as error:
        problems.append(str(error))
    else:
        counts = Counter(splits[one.name] for one in runs for _ in one.steps)
        lines.append(f"splits: {counts['train']:,} frames for training, {counts['val']:,} for validation ({words})")
    for one in runs:
        problems += [*one.problems, *_motion(one), *_missing(one)]
        for camera in one.cameras:
            problems += carla.repeated(one, camera).values()
    try:
        source.rig()
    except DataError as error:
        problems.append(str(error))
    frames = [(one, step) for one in runs for step in one.steps]
    ends = np.cumsum([len(one.steps) for one in runs]) - 1
    spread = np.linspace(0, len(frames) - 1, min(look_at, len(frames))).astype(int)
    rows = []
    for index in np.union1d(spread, ends).tolist():
        one, step = frames[index]
        problems += _unreadable(one, step)
        try:
            row, rejected = source.row((one, step))
        except DataError as error:
            problems.append(str(error))
            continue
        problems += rejected
        rows.append(((one, step), row))
    lines += _labels(rows, source)
    drawn = np.unique(np.linspace(0, len(rows) - 1, min(samples, len(rows))).astype(int)).tolist() if rows else []
    picture = (
        save_png(Path(out_dir) / "carla_overlays.png", _sheet([rows[index] for index in drawn])) if drawn else None
    )
    return CarlaReport(root, tuple(lines), tuple(condense(problems)), picture)


def _describe(runs: Sequence[Run]) -> list[str]:
    """Towns, weather, parts and motion of the runs."""
    towns, parts = Counter(one.town for one in runs), Counter(part for one in runs for part in one.parts)
    frames = sum(len(one.steps) for one in runs)
    speeds = np.array([step.ego.speed for one in runs for step in one.steps])
    cameras = Counter(camera for one in runs for camera in one.cameras)
    versions = Counter(_version(one) for one in runs if one.has("tags"))
    told = [step.command for one in runs for step in one.steps if step.command >= 0]
    commands = Counter(CARLA_COMMANDS[command] for command in told)
    lines = [
        f"{len(runs)} runs, {frames:,} frames, towns "
        + ", ".join(f"{town} ({n})" for town, n in sorted(towns.items())),
        "cameras: " + ", ".join(f"{name} in {n}" for name, n in cameras.items()),
        "parts: " + (", ".join(f"{name} in {n} runs" for name, n in sorted(parts.items())) or "pictures alone"),
        f"frame rate: {', '.join(f'{rate:g} a second ({n} runs)' for rate, n in _rates(runs).items())}",
        f"speed: mean {speeds.mean():.1f} m/s, standing in {100 * (speeds < 0.1).mean():.0f} % of the frames",
    ]
    if versions:
        lines.append("tags: " + ", ".join(f"{name} ({n} runs)" for name, n in versions.items()))
    lines.append("route: " + (", ".join(f"{name} {n:,}" for name, n in commands.items()) or "none of the runs has one"))
    return lines


def _rates(runs: Sequence[Run]) -> Counter[float]:
    return Counter(round(1 / (one.tick * one.stride), 3) for one in runs)


def _version(one: Run) -> str:
    try:
        version, guessed = one.version
    except DataError as error:
        return str(error)
    said = f"CARLA {one.said_version}" if guessed is None else "guessed"
    return f"{said}, {'0.9.14 and later' if version == '0.9.14' else 'before 0.9.14'}"


def _motion(one: Run) -> list[str]:
    """Whether places follow from headings and speeds: a wrong axis or a wrong rate would show here."""
    steps = one.steps
    if len(steps) < 2:
        return []
    pose = np.array([step.ego.T_world_ego for step in steps])
    speed = np.array([step.ego.speed for step in steps])
    seconds = np.diff([step.time for step in steps])
    way = np.diff(pose[:, :2, 3], axis=0)
    said = (speed[:-1] + speed[1:])[:, None] / 2 * seconds[:, None]
    heading = pose[:-1, :2, 0] + pose[1:, :2, 0]
    heading = heading / np.maximum(np.linalg.norm(heading, axis=1, keepdims=True), 1e-9)
    fast = (speed[:-1] > FAST) & (speed[1:] > FAST) & (np.diff([step.number for step in steps]) == one.stride)
    if not fast.any():
        return []
    gap = np.linalg.norm(way - heading * said, axis=1)[fast] / said[fast, 0]
    if np.median(gap) < DRIFT:
        return []
    return [
        f"{one.folder}: between frames the car moves {100 * float(np.median(gap)):.0f} % of its way beside where its "
        "heading and speed say (median): axes, the rate of frames, or the order of the log may be wrong"
    ]


def _missing(one: Run) -> list[str]:
    """Frames of a run without a file of a part that other frames of it have."""
    found = []
    for part, place in carla.PARTS.items():
        without = [step for step in one.steps if not one.has(part, step)]
        if one.has(part) and without:
            found.append(
                f"{one.folder / place} has no file for {len(without)} of {len(one.steps)} frames, {without[0].name} "
                "the first; they serve without it"
            )
    for camera in one.cameras:
        without = [step for step in one.steps if not one.image(camera, step).is_file()]
        if without:
            found.append(
                f"{one.folder / 'images' / camera} has no picture for {len(without)} of {len(one.steps)} frames, "
                f"{without[0].name} the first"
            )
    return found


def _unreadable(one: Run, step: Step) -> list[str]:
    """What cannot be opened of a frame, of what `CarlaSource.row` doesn't open."""
    found = []
    for camera in one.cameras:
        if camera != layout.LABELLED and one.image(camera, step).is_file():
            try:
                carla.read_picture(one.image(camera, step))
            except DataError as error:
                found.append(str(error))
    if one.has("lidar", step):
        try:
            carla.read_points(one.lidar(step), one.sensors.get("lidar", {}))
        except DataError as error:
            found.append(str(error))
    return found


def _labels(rows: Sequence[tuple[tuple[Run, Step], dict[str, Any]]], source: CarlaSource) -> list[str]:
    """Classes of the boxes and shares of the pixels, of the frames looked at."""
    if not rows:
        return []
    boxed = [row for _, row in rows if row["has_boxes"]]
    labels = Counter(BDD_DETECTION[label] for row in boxed for label in row["labels"])
    lines = [f"of {len(rows)} frames looked at:"]
    if boxed:
        total = sum(labels.values())
        lines.append(f"  boxes {total:,} ({total / len(boxed):.1f} a frame)")
        lines += [f"  {name:<16}{n:>7,}  {100 * n / max(total, 1):4.1f} %" for name, n in labels.most_common()]
    masks = [decode_mask(row["semantic"], row["name"]) for _, row in rows if row["semantic"]]
    if masks:
        counts = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)
        share = counts[: len(SEMANTIC)] / max(counts.sum(), 1)
        top = np.argsort(-share)
        lines.append(
            "  pixels: " + ", ".join(f"{SEMANTIC[i]} {100 * share[i]:.1f} %" for i in top if share[i] > 0.0005)
        )
    for task, joined in source.collapse.items():
        if joined:
            lines.append(f"  {task}: the labels don't tell apart " + ", ".join(f"{a} = {b}" for a, b in joined.items()))
    return lines


# --- pictures ---


def _sheet(rows: Sequence[tuple[tuple[Run, Step], dict[str, Any]]]) -> np.ndarray:
    cells, captions = [], []
    for (one, step), row in rows:
        image = fit_width(decode_jpeg(row["images"][0], row["name"]).image, _CELL_WIDTH)
        scale = image.shape[1] / row["widths"][0]
        boxes = np.array(row["boxes"], np.float64).reshape(-1, 4) * scale
        labels = np.array(row["labels"], np.int64)
        cells.append(
            draw_boxes(
                image, boxes, labels, classes=BDD_DETECTION, colors=DETECTION_COLORS, dashed=np.array(row["ignored"])
            )
        )
        told = CARLA_COMMANDS[step.command] if step.command >= 0 else "no route"
        captions.append(f"{row['name']}  {one.town}  {step.ego.speed:.1f} m/s, {told}, {row['weather']}")
        for key, colors, hidden, name in (
            ("semantic", SEMANTIC_COLORS, (), "semantic tags"),
            ("drivable", DRIVABLE_COLORS, (DRIVABLE.index("background"),), "drivable area"),
        ):
            mask = decode_mask(row[key], row["name"]) if row[key] else None
            cells.append(image if mask is None else _tinted(image, mask, colors, hidden))
            captions.append(name if mask is not None else f"no {name}")
        cells.append(_points(image, one, step, row))
        captions.append("LiDAR and 3D boxes" if one.has("lidar", step) else "no LiDAR")
    sheet = contact_sheet(cells, 4, captions, cell_width=_CELL_WIDTH)
    return stack_rows([sheet, legend(BDD_DETECTION, DETECTION_COLORS, sheet.shape[1], 16)])


def _tinted(image: np.ndarray, mask: np.ndarray, colors: Sequence[Any], hidden: Sequence[int]) -> np.ndarray:
    import cv2

    fitted = cv2.resize(mask, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST)
    return overlay_mask(image, fitted, colors, transparent=hidden)


def _points(image: np.ndarray, one: Run, step: Step, row: dict[str, Any]) -> np.ndarray:
    """The front camera's picture with the LiDAR's points and the 3D boxes in it."""
    mounting = carla.camera_mounting(one, layout.LABELLED)
    assert mounting is not None  # that camera has a usual place
    T_ego_mount, field_of_view = mounting
    looking = np.eye(4)
    looking[:3, :3] = LOOKING_FORWARD
    T_ego_cam = T_ego_mount @ looking
    height, width = row["heights"][0], row["widths"][0]
    intrinsic = pinhole(height, width, field_of_view)
    camera = CameraFrame(layout.LABELLED, Path(), 0, (height, width), intrinsic, np.linalg.inv(T_ego_cam))
    boxes = np.array(row["boxes3d"], np.float64).reshape(-1, 10)
    points = None
    if one.has("lidar", step):
        try:
            points = carla.read_points(one.lidar(step), one.sensors.get("lidar", {}))
        except DataError:
            points = None  # named among the problems: `_unreadable` has opened it, too
    return draw_camera(image, camera, boxes[:, :7], boxes[:, 9].astype(int), DETECTION_COLORS, points)
