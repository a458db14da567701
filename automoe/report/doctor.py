"""A look at a raw data set before anything trains on it: what was found, what it holds, what is wrong, and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from automoe.data.bdd100k import (
    TASK_CLASSES,
    TASKS,
    Bdd100kLayout,
    Record,
    Source,
    find_layout,
    frames,
    parse_frame,
    read_class_mask,
)
from automoe.data.images import check_jpeg, load_image
from automoe.drawing import contact_sheet, draw_boxes, fit_width, legend, overlay_mask, save_png, stack_rows
from automoe.errors import DataError
from automoe.taxonomy import (
    BDD_DETECTION,
    DETECTION_COLORS,
    DRIVABLE,
    DRIVABLE_COLORS,
    SEMANTIC,
    SEMANTIC_COLORS,
)

SMALL_AREA = 32 * 32
"""COCO's bound of a small box, in raw pixels."""

T = TypeVar("T")

_CELL_WIDTH = 640
_NAMED_PROBLEMS = 5


@dataclass(frozen=True)
class SplitReport:
    """What one task's split holds.

    Attributes:
        images: labelled images that can be read; unlabelled: pictures in the folder without labels.
        classes: boxes per class, or each class's share of the labelled pixels looked at (0..1).
        shares: of boxes that are small, occluded, truncated, ignored (0..1).
        attributes: images per weather, scene, time of day.
        sizes: images per "WxH" and mask ids found, among the files looked at.
        problems: sentences; equal kinds beyond the first few are counted in the last one.
        names: the images' file names.
    """

    task: str
    split: str
    images: int
    unlabelled: int
    looked_at: int
    classes: dict[str, float]
    shares: dict[str, float]
    attributes: dict[str, Counter[str]]
    sizes: Counter[str]
    mask_ids: tuple[int, ...]
    problems: tuple[str, ...]
    names: frozenset[str] = field(repr=False, default=frozenset())

    def text(self) -> str:
        """A paragraph for the console."""
        lines = [f"{self.task} {self.split}: {self.images:,} images"]
        if self.task == "detection":
            boxes = int(sum(self.classes.values()))
            lines[0] += f", {boxes:,} boxes ({boxes / max(1, self.images):.1f} an image)"
        if self.unlabelled:
            lines.append(f"  {self.unlabelled:,} pictures in the folder have no labels; they are not used")
        sizes = ", ".join(f"{size} ({count:,})" for size, count in self.sizes.most_common(4))
        lines.append(f"  sizes {sizes or 'unknown'}, of {self.looked_at:,} files looked at")
        if self.mask_ids:
            lines.append(f"  mask ids {', '.join(map(str, self.mask_ids))}")
        for key, counts in self.attributes.items():
            total = sum(counts.values())
            parts = ", ".join(f"{name} {_percent(count / total)}" for name, count in counts.most_common())
            lines.append(f"  {key}: {parts}")
        if self.shares:
            lines.append("  boxes: " + ", ".join(f"{_percent(share)} {name}" for name, share in self.shares.items()))
        lines.extend(_histogram(self.classes, share=self.task != "detection"))
        return "\n".join(lines)


@dataclass(frozen=True)
class DoctorReport:
    """The doctor's findings. `picture` is the sheet of overlays, None where nothing could be drawn."""

    root: Path
    layout: Bdd100kLayout
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    picture: Path | None

    def text(self) -> str:
        """Everything as plain text."""
        parts = [self.layout.describe(), *(split.text() for split in self.splits)]
        parts.append(findings(self.problems))
        if self.picture:
            parts.append(f"Overlays: {self.picture}")
        return "\n\n".join(parts)


def doctor_bdd100k(root: Path | str, out_dir: Path | str, samples: int = 12, look_at: int = 300) -> DoctorReport:
    """Examines a raw BDD100K tree and draws `samples` frames with their labels into `out_dir`.

    Label files are read in full; of the images and masks of each split at most `look_at`, evenly spread, are opened.
    Raises DataError where `root` is no folder; everything else that is wrong stands in the report.
    """
    layout = find_layout(root)
    splits: list[SplitReport] = []
    problems = [*layout.problems] if layout.sources else [layout.missing["detection", "train"]]
    drawable: list[tuple[Source, list[Record]]] = []
    for (task, split), source in layout.sources.items():
        try:
            report, records = _examine(source, look_at)
        except DataError as error:  # the label file as a whole: the other splits are still worth a look
            problems.append(str(error))
            continue
        splits.append(report)
        problems.extend(f"{task} {split}: {problem}" for problem in report.problems)
        drawable.append((source, records))
    problems.extend(_shared_frames(splits))
    problems.extend(
        f"{task}: training data without validation data; {layout.missing[task, 'val']}"
        for task in TASKS
        if (task, "train") in layout.sources
        and (task, "val") in layout.missing
        and layout.missing[task, "val"] not in layout.problems
    )
    sheet = _draw(drawable, samples)
    picture = None if sheet is None else save_png(Path(out_dir) / "bdd100k_overlays.png", sheet)
    return DoctorReport(Path(root), layout, tuple(splits), tuple(problems), picture)


# --- one split --------------------------------------------------------------------------------------------------


def _examine(source: Source, look_at: int) -> tuple[SplitReport, list[Record]]:
    """The report on a split, and those of its records that are good to draw."""
    records: list[Record] = []
    problems: list[str] = []
    unusable: set[str] = set()
    for frame in frames(source):
        try:
            records.append(parse_frame(frame, source))
        except DataError as error:
            problems.append(str(error))
            unusable.add(str(frame.get("name")) if isinstance(frame, dict) else "")
    problems.extend(reason for record in records for reason in record.rejected)
    names = frozenset(record.name for record in records)
    absent = sorted(names - source.image_names)
    problems.extend(f"{source.images / name} is missing" for name in absent)
    present = [record for record in records if record.name in source.image_names]
    if len(names) < len(records):
        problems.append(f"{len(records) - len(names)} image names occur more than once")
    looked = _spread(present, look_at)
    sizes, pixels, good, file_problems = _open_files(source, looked)
    problems.extend(file_problems)
    classes, shares = _box_statistics(present) if source.task == "detection" else (_pixel_shares(source, pixels), {})
    attributes: dict[str, Counter[str]] = {}
    if source.task == "detection":
        for key in ("weather", "timeofday", "scene"):
            attributes[key] = Counter(getattr(record, key) for record in present)
    report = SplitReport(
        source.task,
        source.split,
        len(present),
        len(source.image_names - names - unusable),
        len(looked),
        classes,
        shares,
        attributes,
        sizes,
        tuple(int(i) for i in np.flatnonzero(pixels)),
        tuple(condense(problems)),
        names,
    )
    return report, good


def _open_files(source: Source, records: Iterable[Record]) -> tuple[Counter[str], np.ndarray, list[Record], list[str]]:
    """(image sizes, pixels per mask id [256], records without a fault, problems) of the records' files."""
    sizes: Counter[str] = Counter()
    pixels = np.zeros(256, np.int64)
    good: list[Record] = []
    problems: list[str] = []
    for record in records:
        try:
            height, width = check_jpeg(record.image.read_bytes(), str(record.image))
            sizes[f"{width}x{height}"] += 1
            if record.mask is not None:
                ids = read_class_mask(record.mask.read_bytes(), source, str(record.mask))
                pixels += np.bincount(ids.ravel(), minlength=256)
                if ids.shape != (height, width):
                    raise DataError(f"{record.mask} is {ids.shape[1]}x{ids.shape[0]}, its image {width}x{height}")
            if (record.boxes > (width, height, width, height)).any() or (record.boxes < 0).any():
                problems.append(f"{source.labels}, frame {record.name}: a box reaches beyond the image")
        except DataError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"cannot read {error.filename}: {error.strerror}")
            continue
        good.append(record)
    return sizes, pixels, good, problems


def _box_statistics(records: Sequence[Record]) -> tuple[dict[str, float], dict[str, float]]:
    """Boxes per class without ignore regions, and the shares of small, occluded, truncated and ignored ones."""
    counts = np.zeros(len(BDD_DETECTION), np.int64)
    flags: Counter[str] = Counter()
    total = 0
    for record in records:
        counts += np.bincount(record.labels[~record.ignored], minlength=len(counts))
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        total += len(sides)
        flags["small (under 32x32)"] += int((sides.prod(axis=1) < SMALL_AREA).sum())
        for name in ("occluded", "truncated", "ignored"):
            flags[name] += int(getattr(record, name).sum())
    shares = {name: count / total for name, count in flags.items()} if total else {}
    return dict(zip(BDD_DETECTION, counts.tolist())), shares


def _pixel_shares(source: Source, pixels: np.ndarray) -> dict[str, float]:
    classes = TASK_CLASSES[source.task]
    labelled = pixels[: len(classes)].sum()
    return {name: float(count / max(1, labelled)) for name, count in zip(classes, pixels)}


def _shared_frames(splits: Sequence[SplitReport]) -> list[str]:
    """A sentence for each task whose training frames are validated on."""
    by_key = {(split.task, split.split): split.names for split in splits}
    problems = []
    for task in TASKS:
        shared = by_key.get((task, "train"), frozenset()) & by_key.get((task, "val"), frozenset())
        if shared:
            problems.append(
                f"{task}: {len(shared)} frames are in train and in val (such as {min(shared)}); "
                "validation numbers will be too good"
            )
    return problems


# --- pictures and text ------------------------------------------------------------------------------------------


def _draw(drawable: Sequence[tuple[Source, list[Record]]], samples: int) -> np.ndarray | None:
    """One sheet: a part for each task with up to its share of `samples` frames, and the legends."""
    tasks = [task for task in TASKS if any(source.task == task and records for source, records in drawable)]
    if not tasks or samples < 1:
        return None
    parts = []
    for number, task in enumerate(tasks):
        share = samples // len(tasks) + (number < samples % len(tasks))
        frames_of_task = [(s, r) for s, records in drawable if s.task == task for r in records]
        chosen = _spread(frames_of_task, share)
        if not chosen:
            continue
        pictures = [_picture(source, record) for source, record in chosen]
        captions = [_caption(source, record) for source, record in chosen]
        columns = 4 if len(chosen) % 4 == 0 else min(3, max(2, len(chosen)))
        parts.append(contact_sheet(pictures, columns, captions, cell_width=_CELL_WIDTH, title=f"BDD100K {task}"))
        colors = {"detection": DETECTION_COLORS, "drivable": DRIVABLE_COLORS, "segmentation": SEMANTIC_COLORS}[task]
        shown = {"detection": BDD_DETECTION, "drivable": DRIVABLE[:2], "segmentation": SEMANTIC}[task]
        parts.append(legend(shown, colors, parts[-1].shape[1]))
    return stack_rows(parts)


def _picture(source: Source, record: Record) -> np.ndarray:
    image = load_image(record.image)
    if record.mask is None:
        scale = _CELL_WIDTH / image.shape[1]
        return draw_boxes(
            fit_width(image, _CELL_WIDTH),
            record.boxes * scale,
            record.labels,
            classes=BDD_DETECTION,
            colors=DETECTION_COLORS,
            dashed=record.ignored,
        )
    ids = read_class_mask(record.mask.read_bytes(), source, str(record.mask))
    if source.task == "drivable":
        return overlay_mask(image, ids, DRIVABLE_COLORS, transparent=(DRIVABLE.index("background"),))
    return overlay_mask(image, ids, SEMANTIC_COLORS)


def _caption(source: Source, record: Record) -> str:
    words = [source.split, record.name]
    words += [word for word in (record.timeofday, record.weather) if word != "undefined"]
    return " · ".join(words)


def _histogram(values: dict[str, float], share: bool) -> list[str]:
    highest = max(values.values(), default=0) or 1
    lines = []
    for name, value in values.items():
        number = _percent(value) if share else f"{int(value):,}"
        lines.append(f"  {name:<14}{number:>9}  {'█' * round(30 * value / highest)}".rstrip())
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def findings(problems: Sequence[str]) -> str:
    """Problems as a paragraph, or that there are none."""
    if not problems:
        return "No problems found in what is there."
    return "Problems:\n" + "\n".join(f"  - {problem}" for problem in problems)


def condense(problems: Sequence[str]) -> list[str]:
    """The first few problems, and how many more there are."""
    more = len(problems) - _NAMED_PROBLEMS
    return [*problems[:_NAMED_PROBLEMS], *([f"and {more:,} more like these"] if more > 0 else [])]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]
