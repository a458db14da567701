"""A look at a nuScenes tree before anything trains on it: what is there, what is wrong, and pictures of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automoe.data.images import check_jpeg, load_image
from automoe.data.nuscenes import Nuscenes, NuscenesSplit, Sample, load_lidar, read_points
from automoe.drawing import fit_width, legend, save_png, stack_rows
from automoe.errors import DataError
from automoe.poses import invert, move_boxes, points_inside
from automoe.report.doctor import condense, findings
from automoe.report.pictures_3d import camera_sheet, draw_above, draw_camera
from automoe.taxonomy import NUSCENES_ATTRIBUTES, NUSCENES_COLORS, NUSCENES_DETECTION, NUSCENES_RANGE

KEY_SECONDS = 0.5
"""Between key frames; a gap of more than twice as much is worth a word."""


@dataclass(frozen=True)
class NuscenesReport:
    """What a split holds. problems: sentences. picture: the sheet, None where nothing could be drawn."""

    root: Path
    version: str
    splits: dict[str, tuple[int, int]]
    text_lines: tuple[str, ...]
    problems: tuple[str, ...]
    picture: Path | None

    def text(self) -> str:
        """Everything as plain text."""
        found = ", ".join(
            f"{name} {scenes} scenes, {samples} samples" for name, (scenes, samples) in self.splits.items()
        )
        parts = [f"nuScenes {self.version} under {self.root}\n{found or 'no splits'}", "\n".join(self.text_lines)]
        parts.append(findings(self.problems))
        if self.picture:
            parts.append(f"Pictures: {self.picture}")
        return "\n\n".join(parts)


def doctor_nuscenes(
    root: Path | str,
    out_dir: Path | str,
    *,
    version: str | None = None,
    split: str = "val",
    samples: int = 3,
    look_at: int = 60,
    sweeps: int = 3,
) -> NuscenesReport:
    """Examine a tree and draw `samples` of a split, evenly spread, with boxes and points on all cameras and from above.

    Tables are read in full; of the samples' files those of `look_at` samples are opened. Raises DataError for tables
    that can't be read and a split that doesn't exist; everything else that is wrong stands in the report.
    """
    dataset = Nuscenes(root, version)
    own = dataset.split(split, sweeps=sweeps)
    problems = [] if not (own.missing.samples or own.missing.sweeps) else [str(own.missing)]
    problems += _gaps(dataset, own)
    chosen = np.unique(np.linspace(0, max(len(own) - 1, 0), min(look_at, len(own))).astype(int)) if len(own) else []
    opened, more = _open(own, [int(index) for index in chosen])
    pictures = []
    for index in np.unique(np.linspace(0, len(opened) - 1, min(samples, len(opened))).astype(int)) if opened else []:
        pictures.append(draw_sample(opened[int(index)]))
    picture = None
    if pictures:
        key = legend(NUSCENES_DETECTION, NUSCENES_COLORS, pictures[0].shape[1], 16)
        picture = save_png(Path(out_dir) / "nuscenes_overlays.png", stack_rows([*pictures, key]))
    counts = {name: (len(scenes), len(dataset.numbers(name))) for name, scenes in dataset.splits().items()}
    return NuscenesReport(
        Path(root), dataset.version, counts, tuple(_describe(own)), tuple(condense(problems + more)), picture
    )


def draw_sample(sample: Sample, width: int = 560) -> np.ndarray:
    """One sample: six cameras with boxes and the key frame's points, and everything from above."""
    points = load_lidar(sample)
    now = points[points[:, 5] == 0]
    boxes = sample.boxes
    frames = {}
    for channel, camera in sample.cameras.items():
        image = load_image(camera.path)
        image = fit_width(image, width)
        frames[channel] = draw_camera(image, camera, boxes.boxes, boxes.label, NUSCENES_COLORS, now)
    above = draw_above(boxes.boxes, boxes.label, NUSCENES_COLORS, points, boxes.velocity)
    return camera_sheet(frames, above)


def _gaps(dataset: Nuscenes, split: NuscenesSplit) -> list[str]:
    """Scenes whose key frames don't follow each other at 2 Hz."""
    found = []
    for scene in np.unique(dataset.tables.scene_of[dataset.numbers(split.name)]):
        gap = np.diff(dataset.tables.timestamps[dataset.tables.scene_of == scene]) / 1e6
        if len(gap) and gap.max() > 2.5 * KEY_SECONDS:
            found.append(f"{dataset.tables.scenes[scene]}: {gap.max():.1f} s between two key frames")
    return found


def _open(split: NuscenesSplit, chosen: list[int]) -> tuple[list[Sample], list[str]]:
    """The samples whose files are sound, and what is wrong with the others: files, sizes, counts of points."""
    sound, problems = [], []
    empty, held = 0, 0
    for index in chosen:
        sample = split[index]
        try:
            raw = read_points(sample.lidar.path)[:, :3].astype(np.float64)
            for sweep in sample.sweeps:
                read_points(sweep.path)
            for camera in sample.cameras.values():
                size = check_jpeg(camera.path.read_bytes(), str(camera.path))
                if size != camera.size:
                    raise DataError(
                        f"{camera.path} is {size[1]}x{size[0]}, the tables say {camera.size[1]}x{camera.size[0]}"
                    )
        except (DataError, OSError) as error:
            problems.append(str(error))
            continue
        sound.append(sample)
        in_lidar = move_boxes(invert(sample.lidar.T_ego_lidar), sample.boxes.boxes)
        told = sample.boxes.points > 5
        empty += int((points_inside(raw, in_lidar).sum(axis=0)[told] == 0).sum())
        held += int(told.sum())
    if held and empty > 0.05 * held:
        problems.append(
            f"{empty} of {held} boxes that should hold points hold none: axes, poses or calibration may be wrong"
        )
    return sound, problems


def _describe(split: NuscenesSplit) -> list[str]:
    """Counts of the split's boxes by class, distance and attribute."""
    samples = [split.dataset.sample(int(number), cameras=()) for number in split.numbers]
    if not samples:
        return [f"{split.name}: no sample with all its files"]
    label = np.concatenate([sample.boxes.label for sample in samples])
    if not len(label):
        return [f"{split.name}: {len(samples):,} usable samples without annotations"]
    place = np.concatenate([sample.boxes.boxes[:, :2] for sample in samples])
    points = np.concatenate([sample.boxes.points for sample in samples])
    attribute = np.concatenate([sample.boxes.attribute for sample in samples])
    far = np.hypot(place[:, 0], place[:, 1])
    limit = np.array([NUSCENES_RANGE[name] for name in NUSCENES_DETECTION])[label]
    scored = (far < limit) & (points > 0)
    lines = [
        f"{split.name}: {len(samples):,} usable samples, {len(label):,} boxes "
        f"({len(label) / len(samples):.1f} a sample), {int(scored.sum()):,} of them scored",
        f"  without points {100 * (points == 0).mean():.1f} %, median points {np.median(points):.0f}",
    ]
    bins = np.histogram(far, [0, 10, 20, 30, 40, 50, np.inf])[0] / max(len(far), 1)
    names = ("under 10 m", "10-20", "20-30", "30-40", "40-50", "farther")
    lines.append("  " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(names, bins, strict=True)))
    kinds = Counter(NUSCENES_ATTRIBUTES[a] if a >= 0 else "none" for a in attribute.tolist())
    lines.append("  attributes: " + ", ".join(f"{name} {count:,}" for name, count in kinds.most_common()))
    for number, name in enumerate(NUSCENES_DETECTION):
        count = int((label == number).sum())
        share = count / max(len(label), 1)
        lines.append(f"  {name:<21}{count:>8,}  {100 * share:4.1f} %  {'█' * round(40 * share)}".rstrip())
    return lines
