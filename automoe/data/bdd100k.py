"""BDD100K as people have it on disk: what a tree holds, and its frames one by one. Nothing is written here.

The official layout is `images/{100k,10k}/<split>/*.jpg` with `labels/det_20/det_<split>.json`,
`labels/drivable/masks/<split>/*.png` and `labels/sem_seg/masks/<split>/*.png`. The common variants are found
too: folders a level up or down, `labels/detection2020`, `labels/bdd100k_labels_images_<split>.json`, one JSON
per image, `labels/segmentation/<split>`, old mask names and values. Which of two folders is meant is decided
by content: the image folder that has the labels' names, the mask folder whose files hold class ids.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from automoe.data.images import read_mask
from automoe.data.json_stream import iter_json_records
from automoe.errors import DataError
from automoe.taxonomy import (
    BDD_DETECTION,
    BDD_DETECTION_SPELLINGS,
    DRIVABLE,
    SEMANTIC,
    TRAFFIC_LIGHT,
    bdd_detection_class,
    light_color,
)

TASKS = ("detection", "drivable", "segmentation")
SPLITS = ("train", "val", "test")

TASK_CLASSES: dict[str, tuple[str, ...]] = {
    "detection": BDD_DETECTION,
    "drivable": DRIVABLE,
    "segmentation": SEMANTIC,
}

# Where each thing may lie, relative to a base folder, most official first. {s} is the split.
_IMAGES_100K = ("images/100k/{s}", "100k/{s}", "images/{s}", "images/100k", "{s}/images", "{s}", "images")
_IMAGES_10K = ("images/10k/{s}", "10k/{s}", "seg/images/{s}", *_IMAGES_100K)
_LABELS = {
    "detection": (
        "labels/det_20/det_{s}.json",
        "labels/detection2020/det_{s}.json",
        "labels/detection20/det_{s}.json",
        "labels/detection20/det_v2_{s}_release.json",
        "labels/det_v2_{s}_release.json",
        "labels/det_{s}.json",
        "labels/bdd100k_labels_images_{s}.json",
        "det_20/det_{s}.json",
        "detection2020/det_{s}.json",
        "det_{s}.json",
        "bdd100k_labels_images_{s}.json",
        "labels/100k/{s}",
        "labels/{s}",
        "det_annotations/{s}",
    ),
    "drivable": (
        "labels/drivable/masks/{s}",
        "labels/drivable/{s}",
        "labels/drivable/labels/{s}",
        "labels/drivable/colormaps/{s}",
        "drivable/masks/{s}",
        "drivable/{s}",
        "drivable_maps/labels/{s}",
        "labels/drivable_maps/{s}",
        "labels/drivable_area/{s}",
    ),
    "segmentation": (
        "labels/sem_seg/masks/{s}",
        "labels/segmentation/{s}",
        "labels/segmentation/masks/{s}",
        "labels/sem_seg/{s}",
        "labels/sem_seg/colormaps/{s}",
        "sem_seg/masks/{s}",
        "segmentation/{s}",
        "seg/labels/{s}",
        "labels/seg/{s}",
    ),
}
_MASK_SUFFIXES = ("_drivable_id.png", "_train_id.png", ".png")
# Folders that are never a base: their content is what the patterns above name.
_NOT_A_BASE = {
    "automoe_prepared",
    "100k",
    "10k",
    "masks",
    "colormaps",
    "bitmasks",
    "polygons",
    "rles",
    *SPLITS,
}
# Kinds of annotation that share the old label files with boxes and carry polygons instead.
_NO_BOX_CATEGORIES = {"drivable area", "lane", "area/drivable", "area/alternative"}
_LOOK_AT = 16
_MOST_FOLDERS = 200


@dataclass(frozen=True)
class Source:
    """Where one task's split lies.

    Attributes:
        labels: a label JSON, a folder of one JSON per image, or a folder of mask PNGs.
        image_suffix: `.jpg` as a rule.
        mask_suffix: what follows the image's stem in a mask's name.
        background_first: drivable masks of the 2018 release hold 0 background, 1 direct, 2 alternative.
        notes: what a user should know about this choice.
    """

    task: str
    split: str
    images: Path
    labels: Path
    image_suffix: str = ".jpg"
    mask_suffix: str = ".png"
    background_first: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def image_names(self) -> frozenset[str]:
        """File names of the images folder that end in `image_suffix`."""
        return frozenset(_names(self.images, self.image_suffix))


@dataclass(frozen=True)
class Bdd100kLayout:
    """What `find_layout` found under a root, by (task, split).

    Attributes:
        sources: what can be read.
        missing: for everything else the sentence saying why not.
        problems: those of the sentences where something is there and can't be used.
    """

    root: Path
    sources: dict[tuple[str, str], Source]
    missing: dict[tuple[str, str], str] = field(repr=False)
    problems: tuple[str, ...] = ()

    def source(self, task: str, split: str) -> Source:
        """The source of one task's split; raises DataError with where it was looked for."""
        if task not in TASKS or split not in SPLITS:
            raise DataError(
                f"there is no BDD100K task {task!r} with split {split!r}; tasks are {', '.join(TASKS)}, "
                f"splits {', '.join(SPLITS)}"
            )
        if (task, split) not in self.sources:
            raise DataError(self.missing[task, split])
        return self.sources[task, split]

    def describe(self) -> str:
        """A text for people: one line for each task and split, then notes."""
        lines = [f"BDD100K under {self.root}"]
        for task in TASKS:
            for split in SPLITS:
                source = self.sources.get((task, split))
                if source is None:
                    if split != "test":
                        lines.append(f"  {task:<13}{split:<6}not found")
                    continue
                images, labels = self._short(source.images), self._short(source.labels)
                lines.append(f"  {task:<13}{split:<6}images {images}, labels {labels}")
                lines.extend(f"  {'':<19}note: {note}" for note in source.notes)
        return "\n".join(lines)

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


@dataclass(frozen=True)
class Record:
    """One frame with its labels as found.

    Attributes:
        name: the image's file name.
        boxes: float32 [N,4], pixel xyxy, not clipped.
        labels: int64 [N], index in `taxonomy.BDD_DETECTION`.
        ignored: bool [N], crowd and ignore categories: regions in which the score looks away.
        occluded, truncated: bool [N].
        colors: int64 [N], of traffic lights, places in `taxonomy.LIGHT_COLORS`; -1 of everything else and where the
            labels don't say.
        mask: the mask file of a dense task.
        rejected: one sentence for each label that was left out because its box is impossible.
    """

    name: str
    image: Path
    weather: str
    scene: str
    timeofday: str
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    occluded: np.ndarray
    truncated: np.ndarray
    colors: np.ndarray
    mask: Path | None = None
    rejected: tuple[str, ...] = ()


def find_layout(root: Path | str) -> Bdd100kLayout:
    """Finds every task's and split's images and labels. Raises DataError where `root` is no folder."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root}; point the data root at the unzipped BDD100K "
            "(the folder with images/ and labels/ in it)"
        )
    bases = _bases(root)
    sources: dict[tuple[str, str], Source] = {}
    missing: dict[tuple[str, str], str] = {}
    problems: list[str] = []
    for task in TASKS:
        for split in SPLITS:
            remarks: list[str] = []
            try:
                sources[task, split] = _find_source(root, bases, task, split, remarks)
            except DataError as error:
                missing[task, split] = str(error)
                if remarks:
                    problems.append(str(error))
    return Bdd100kLayout(root, sources, missing, tuple(problems))


def records(root: Path | str, task: str, split: str) -> Iterator[Record]:
    """Yields a split's records one by one, in the label file's (or the mask names') order.

    Raises DataError naming file and record at the first that can't be understood (an unknown class, say);
    `prepared.prepare` goes on past such records and lists them.
    """
    source = find_layout(root).source(task, split)
    for frame in frames(source):
        yield parse_frame(frame, source)


def frames(source: Source) -> Iterator[dict[str, Any]]:
    """Yields a source's frames as dictionaries: of the label JSON, or `{"name": ...}` for each file of a
    folder.

    Raises DataError naming the file where the JSON is truncated or isn't a list of frames.
    """
    if source.task != "detection":
        stems = {name.removesuffix(source.mask_suffix) for name in _names(source.labels, source.mask_suffix)}
        yield from ({"name": stem + source.image_suffix} for stem in sorted(stems))
    elif source.labels.is_dir():
        yield from ({"name": name.removesuffix(".json")} for name in _names(source.labels, ".json"))
    else:
        yield from iter_json_records(source.labels)


def parse_frame(frame: Any, source: Source) -> Record:
    """Turns a frame's dictionary into a Record. Raises DataError naming file and record."""
    name = frame.get("name") if isinstance(frame, dict) else None
    if not isinstance(name, str) or not name:
        raise DataError(f"{source.labels}: a frame has no name: {str(frame)[:80]}")
    where = f"{source.labels}, frame {name}"
    if not Path(name).suffix:
        name += source.image_suffix
    if source.task == "detection" and source.labels.is_dir():
        file = source.labels / f"{Path(name).stem}.json"
        frame = next(iter_json_records(file), None)
        if not isinstance(frame, dict):
            raise DataError(f"{file} holds no frame")
    attributes = _typed(frame, "attributes", dict, where)
    inner = _typed(frame, "frames", list, where)  # of the one-JSON-per-image release
    holder = inner[0] if frame.get("labels") is None and inner and isinstance(inner[0], dict) else frame
    parsed = _parse_labels(_typed(holder, "labels" if holder is frame else "objects", list, where), where)
    mask = source.labels / (Path(name).stem + source.mask_suffix) if source.task != "detection" else None
    return Record(
        name=name,
        image=source.images / name,
        weather=str(attributes.get("weather") or "undefined"),
        scene=str(attributes.get("scene") or "undefined"),
        timeofday=str(attributes.get("timeofday") or "undefined"),
        mask=mask,
        **parsed,
    )


def read_class_mask(data: bytes, source: Source, where: str) -> np.ndarray:
    """A mask's bytes as the task's class ids, uint8 [H,W], 255 = ignore. DataError for unknown ids."""
    ids = read_mask(data, where)
    if source.background_first:
        ids = _from_background_first(ids)
    classes = len(TASK_CLASSES[source.task])
    unknown = [int(v) for v in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)) if classes <= v < 255]
    if unknown:
        listed = ", ".join(map(str, unknown[:8]))
        raise DataError(
            f"{where} holds class ids that {source.task} doesn't have: {listed} "
            f"(known are 0 to {classes - 1}, and 255 for ignore)"
        )
    return ids


# --- labels -------------------------------------------------------------------------------------------------


def _typed(holder: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """holder[key], empty where it is null or absent. Raises DataError where it is something else than a `kind`."""
    value = holder.get(key)
    if value is not None and not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise DataError(f"{where}: {key} is not {wanted} but {str(value)[:60]!r}")
    return value or kind()


def _parse_labels(labels: list[Any], where: str) -> dict[str, Any]:
    boxes: list[tuple[float, ...]] = []
    classes: list[int] = []
    colors: list[int] = []
    flags: list[tuple[bool, bool, bool]] = []
    rejected: list[str] = []
    for position, label in enumerate(labels):
        if not isinstance(label, dict):
            raise DataError(f"{where}, label {position} is not an object but {str(label)[:60]!r}")
        category = label.get("category")
        at = f"{where}, label {label.get('id', position)}"
        if not isinstance(category, str):
            raise DataError(f"{at}: the category is not a word but {str(category)[:60]!r}")
        if category in _NO_BOX_CATEGORIES:
            continue
        mapped = bdd_detection_class(category)
        if mapped is None:
            raise DataError(f"{at}: unknown class {category!r}; BDD100K has {', '.join(BDD_DETECTION_SPELLINGS)}")
        index, ignore = mapped
        box2d = label.get("box2d")
        if box2d is None and (label.get("poly2d") or label.get("rle")):
            continue  # the same object as a polygon: another task's label
        attributes = _typed(label, "attributes", dict, at)
        reason = _impossible(box2d)
        if reason is not None or box2d is None:
            rejected.append(f"{at} ({category}): {reason}")
            continue
        boxes.append(tuple(float(box2d[key]) for key in ("x1", "y1", "x2", "y2")))
        classes.append(index)
        colors.append(light_color(attributes.get("trafficLightColor")) if BDD_DETECTION[index] == TRAFFIC_LIGHT else -1)
        ignore = ignore or bool(attributes.get("crowd")) or bool(attributes.get("ignored"))
        flags.append((ignore, bool(attributes.get("occluded")), bool(attributes.get("truncated"))))
    ignored, occluded, truncated = np.asarray(flags, bool).reshape(-1, 3).T
    return {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "labels": np.asarray(classes, np.int64),
        "ignored": ignored,
        "occluded": occluded,
        "truncated": truncated,
        "colors": np.asarray(colors, np.int64),
        "rejected": tuple(rejected),
    }


def _impossible(box2d: Any) -> str | None:
    """Why a box can't be one. Zero width passes: the official score counts such a box as one pixel wide."""
    if not isinstance(box2d, dict):
        return "it has no box2d"
    try:
        x1, y1, x2, y2 = (float(box2d[key]) for key in ("x1", "y1", "x2", "y2"))
    except (KeyError, TypeError, ValueError):
        return f"its box2d needs the numbers x1, y1, x2, y2 and has {box2d}"
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        return f"its box is not finite ({x1}, {y1}, {x2}, {y2})"
    if x2 < x1 or y2 < y1:
        return f"its box is inside out ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    return None


# --- layout -------------------------------------------------------------------------------------------------


def _bases(root: Path) -> list[Path]:
    """Folders that may hold `images/` or `labels/`: the root, up to two levels below, and those above it."""
    bases, level = [root], [root]
    for _ in range(2):
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.name not in _NOT_A_BASE
            and not child.name.startswith(".")
            and child.is_dir()
            and os.access(child, os.R_OK | os.X_OK)
        ][:_MOST_FOLDERS]
        bases.extend(level)
    if root.name in {"images", "labels", "100k", "10k"}:
        bases.append(root.resolve().parent)
        if root.name in {"100k", "10k"}:
            bases.append(root.resolve().parent.parent)
    return bases


def _find_source(root: Path, bases: list[Path], task: str, split: str, remarks: list[str]) -> Source:
    """Adds to `remarks` what it can't use; raises DataError where labels or images are missing."""
    seen: set[Path] = set()
    for base in bases:
        for pattern in _LABELS[task]:
            labels = base / pattern.format(s=split)
            if labels in seen:
                continue
            seen.add(labels)
            found = _inspect_labels(labels, task, remarks)
            if found is None:
                continue
            mask_suffix, background_first, stems = found
            images = _find_images(bases, task, split, stems)
            if images is None:
                kind = "10k" if task == "segmentation" else "100k"
                remarks.append(
                    f"{labels} has labels, but images/{kind}/{split} or another folder with their images "
                    f"(such as {stems[0]}.jpg) is missing"
                )
                continue
            folder, suffix, images_split = images
            notes = list(remarks)
            if images_split != split:
                notes.append(f"the images of the {split} labels lie in the folder of {images_split}")
            if background_first:
                notes.append("masks hold 0 background, 1 direct, 2 alternative (2018 release); they are mapped")
            return Source(task, split, folder, labels, suffix, mask_suffix, background_first, tuple(notes))
    places = [pattern.format(s=split) for pattern in _LABELS[task]]
    looked = f"{', '.join(places[:5])} and {len(places) - 5} less common places"
    why = f" ({'; '.join(remarks)})" if remarks else ""
    raise DataError(
        f"no {task} labels with images for split {split!r} under {root}{why}; "
        f"looked there, up to two folders down, for {looked}"
    )


def _inspect_labels(path: Path, task: str, remarks: list[str]) -> tuple[str, bool, list[str]] | None:
    """(mask suffix, whether drivable ids start with background, some image stems), or None with a remark."""
    if task == "detection":
        if path.is_dir():
            stems = [Path(name).stem for name in _some(_names(path, ".json"))]
            return (".png", False, stems) if stems else None
        if not path.is_file():
            return None
        stems = []
        try:
            for frame in islice(iter_json_records(path), _LOOK_AT):
                stems.append(Path(str(frame.get("name"))).stem if isinstance(frame, dict) else "")
        except DataError as error:
            remarks.append(str(error))
            raise
        if not stems:
            remarks.append(f"{path} holds no frames")
        return (".png", False, stems) if stems else None
    if not path.is_dir():
        return None
    for suffix in _MASK_SUFFIXES:
        names = _some(_names(path, suffix))
        if names:
            break
    else:
        return None
    votes = []
    for name in names:
        try:
            ids = read_mask((path / name).read_bytes(), str(path / name))
        except DataError as error:
            votes.append(str(error))
            continue
        votes.append(_background_id(ids))
    colours = [vote for vote in votes if isinstance(vote, str) and "colours" in vote]
    if len(colours) * 2 > len(votes):
        remarks.append(colours[0])
        return None
    background_first = task == "drivable" and votes.count(0) > votes.count(2)
    return suffix, background_first, [name.removesuffix(suffix) for name in names]


def _background_id(ids: np.ndarray) -> int:
    """The id that fills the top tenth of a drivable mask: sky and buildings, so background."""
    return int(np.bincount(ids[: max(1, len(ids) // 10)].ravel(), minlength=1).argmax()) if ids.size else 255


def _from_background_first(ids: np.ndarray) -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    table[:3] = (DRIVABLE.index("background"), DRIVABLE.index("direct"), DRIVABLE.index("alternative"))
    return table[ids]


def _find_images(bases: list[Path], task: str, split: str, stems: list[str]) -> tuple[Path, str, str] | None:
    """(folder, suffix, its split) with most of the given images, the most official among equals."""
    patterns = _IMAGES_10K if task == "segmentation" else _IMAGES_100K
    best, best_count = None, 0
    for wanted in (split, *(other for other in SPLITS if other != split)):
        for pattern in patterns:
            for base in bases:
                folder = base / pattern.format(s=wanted)
                for suffix in (".jpg", ".jpeg"):
                    count = sum((folder / (stem + suffix)).is_file() for stem in stems)
                    if count > best_count:
                        best, best_count = (folder, suffix, wanted), count
        if best is not None:  # only if no image lies in the split's own folder is another split's looked at
            return best
    return None


def _names(folder: Path, suffix: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.name[0] != ".")


def _some(names: list[str]) -> list[str]:
    """Up to sixteen names, evenly spread."""
    step = max(1, len(names) // _LOOK_AT)
    return names[::step][:_LOOK_AT]
