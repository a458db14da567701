"""`automoe predict`: what one or several experts see on pictures of any size, drawn, and as JSON.

One picture a file: boxes and drivable area on the frame, the semantic classes in a panel of their own below (or beside,
for an upright picture). A broken file is named and counted; the others go on.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from automoe import taxonomy
from automoe.data.images import load_image
from automoe.drawing import draw_boxes, fit_width, legend, overlay_mask
from automoe.engine.distributed import setup
from automoe.errors import ConfigError, DataError
from automoe.experts.inference import TrainedExpert, load_expert
from automoe.files import atomic_file, write_text
from automoe.progress import progress_bar
from automoe.stages.predictions import det20_frame

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

LARGEST_SIDE = 2560
"""A larger picture is looked at and drawn at this size: the networks see far less, and memory is not unlimited."""

BATCH = 4

COLORS = {
    "detection": taxonomy.DETECTION_COLORS,
    "drivable": taxonomy.DRIVABLE_COLORS,
    "segmentation": taxonomy.SEMANTIC_COLORS,
}
"""Picture colours (RGB) of each task's classes."""

BACKGROUND = taxonomy.DRIVABLE.index("background")


@dataclass(frozen=True)
class Look:
    """One picture on its way: the raw size (height, width), and the pixels that are looked at."""

    path: Path
    raw_size: tuple[int, int]
    image: np.ndarray


@dataclass
class PredictionSummary:
    """What `predict_images` did. failed: (file, reason)."""

    out: Path
    pictures: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def predict_images(
    checkpoints: Sequence[Path],
    images: Path,
    out: Path,
    *,
    threshold: float = 0.3,
    device: str = "auto",
    limit: int | None = None,
) -> PredictionSummary:
    """Draw the experts' predictions for a picture or for every picture of a folder (not of its subfolders) into `out`.

    Args:
        checkpoints: `best.pth` files, one a task at most.
        out: receives <stem>.jpg (<name>.jpg where two pictures share a stem) and predictions.json: det_20 frames with
            boxes in raw pixels, and the share of the picture that each dense class takes.
        threshold: boxes of a lower score are neither drawn nor written.
        limit: only the first so many pictures by name.

    Raises DataError at the end, when all others are done, if pictures could not be read; ConfigError and
    CheckpointError before anything is written.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"the threshold is {threshold}; scores lie between 0 and 1.")
    files = find_images(images, out, limit)
    with setup(device) as dist:
        experts = load_experts(checkpoints, dist.device)
    names = _picture_names(files)
    summary, frames = PredictionSummary(out), []
    with progress_bar("predict") as progress:
        progress(0, len(files))
        for looks in _batches(files, summary):
            predictions = {kind: expert.predict([look.image for look in looks]) for kind, expert in experts.items()}
            for index, look in enumerate(looks):
                found = {kind: keep_sure(predicted[index], threshold) for kind, predicted in predictions.items()}
                _save_jpeg(out / names[look.path], compose(look.image, found))
                summary.pictures.append(out / names[look.path])
                frames.append(describe(look, found))
            progress(len(summary.pictures) + len(summary.failed), len(files))
    said = {
        "frames": frames,
        "failed": [{"name": path.name, "reason": reason} for path, reason in summary.failed],
        "checkpoints": {kind: str(expert.path) for kind, expert in experts.items()},
        "threshold": threshold,
    }
    write_text(out / "predictions.json", json.dumps(said, indent=1) + "\n")
    print(f"{len(summary.pictures)} pictures and predictions.json are in {out}", flush=True)
    if summary.failed:
        for _, reason in summary.failed[1:20]:
            print(f"not read: {reason}", flush=True)
        raise DataError(
            f"{len(summary.failed)} of {len(files)} pictures could not be read; the first: {summary.failed[0][1]}. "
            f"All are listed in {out / 'predictions.json'}."
        )
    return summary


def find_images(images: Path, out: Path, limit: int | None = None) -> list[Path]:
    """The pictures to look at, by name. Raises DataError where there are none or where `out` is their own folder."""
    images, out = Path(images), Path(out)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}: give a number of at least 1, or leave it out.")
    if images.is_file():
        folder, files = images.parent, [images]
    elif images.is_dir():
        folder = images
        files = sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    else:
        raise DataError(f"{images} does not exist; give a picture or a folder of pictures.")
    if not files:
        inner = sorted({p.parent.name for p in images.glob("*/*") if p.suffix.lower() in SUFFIXES})
        hint = f"; its folders {', '.join(inner[:5])} do: give one of them" if inner else ""
        raise DataError(f"{images} holds no picture ({', '.join(SUFFIXES)}){hint}.")
    if out.resolve() == folder.resolve():
        raise DataError(f"{out} is the folder of the pictures themselves; name another one, nothing is overwritten.")
    return files[:limit]


def load_experts(checkpoints: Sequence[Path], device: Any) -> dict[str, TrainedExpert]:
    """The experts by task. Raises ConfigError where two are for the same one or none is given."""
    experts: dict[str, TrainedExpert] = {}
    for path in checkpoints:
        expert = load_expert(path, device)
        kind = expert.model.kind
        if kind in experts:
            raise ConfigError(f"{experts[kind].path} and {path} are both {kind} experts; give one for each task.")
        experts[kind] = expert
    if not experts:
        raise ConfigError("no checkpoint was given; name the best.pth of one or several experts.")
    return experts


def keep_sure(prediction: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """A prediction without what scores less than `threshold`, and without auxiliary outputs."""
    own = {key: value for key, value in prediction.items() if "/" not in key}
    if "scores" not in own:
        return own
    sure = own["scores"] >= threshold
    return {key: value[sure] for key, value in own.items()}


def compose(image: np.ndarray, found: Mapping[str, Mapping[str, Tensor]]) -> np.ndarray:
    """All predictions for one picture [h, w, 3] in one picture, with a legend for the semantic classes in it."""
    panels = []
    if "detection" in found or "drivable" in found:
        front = image
        if "drivable" in found:
            mask = found["drivable"]["mask"].numpy()
            front = overlay_mask(front, mask, COLORS["drivable"], transparent=[BACKGROUND])
        if "detection" in found:
            boxes, labels, scores = (found["detection"][key].numpy() for key in ("boxes", "labels", "scores"))
            front = draw_boxes(front, boxes, labels, scores, classes=taxonomy.BDD_DETECTION, colors=COLORS["detection"])
        panels.append(front)
    if "segmentation" in found:
        mask = found["segmentation"]["mask"].numpy()
        panels.append(overlay_mask(image, mask, COLORS["segmentation"], alpha=0.65))
    upright = image.shape[0] > image.shape[1]
    picture = np.concatenate(panels, axis=1 if upright else 0)
    if "segmentation" in found:
        present = np.unique(found["segmentation"]["mask"].numpy())
        names = [taxonomy.SEMANTIC[i] for i in present]
        colors = [COLORS["segmentation"][i] for i in present]
        width = picture.shape[1]
        picture = np.concatenate([picture, fit_width(legend(names, colors, width, max(11, width // 80)), width)])
    return picture


def describe(look: Look, found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """One picture's frame in predictions.json: det_20 labels in raw pixels, shares of the dense classes in percent."""
    height, width = look.raw_size
    frame: dict[str, Any] = {"name": look.path.name, "size": {"width": width, "height": height}, "labels": []}
    for kind, prediction in found.items():
        if kind == "detection":
            grown = prediction["boxes"] * (width / look.image.shape[1])
            frame |= det20_frame(look.path.name, {**prediction, "boxes": grown}, taxonomy.BDD_DETECTION)
        else:
            classes = taxonomy.DRIVABLE if kind == "drivable" else taxonomy.SEMANTIC
            counts = np.bincount(prediction["mask"].numpy().ravel(), minlength=len(classes))
            shares = 100 * counts / max(1, counts.sum())
            frame[kind] = {name: round(float(share), 2) for name, share in zip(classes, shares) if share}
    return frame


def _batches(files: Sequence[Path], summary: PredictionSummary) -> Iterator[list[Look]]:
    """Pictures in groups, read ahead while the networks work; what can't be read goes to `summary.failed`."""
    groups = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(_read, groups[0])
        for number in range(len(groups)):
            looks, failed = ahead.result()
            if number + 1 < len(groups):
                ahead = reader.submit(_read, groups[number + 1])
            summary.failed += failed
            if looks:
                yield looks


def _read(files: Sequence[Path]) -> tuple[list[Look], list[tuple[Path, str]]]:
    looks, failed = [], []
    for path in files:
        try:
            image = load_image(path)
        except DataError as error:
            failed.append((path, str(error)))
            continue
        height, width = image.shape[:2]
        shrink = min(1.0, LARGEST_SIDE / max(height, width))
        looks.append(Look(path, (height, width), fit_width(image, max(1, round(width * shrink)))))
    return looks, failed


def _picture_names(files: Sequence[Path]) -> dict[Path, str]:
    count = Counter(path.stem for path in files)
    return {path: f"{path.stem if count[path.stem] == 1 else path.name}.jpg" for path in files}


def _save_jpeg(path: Path, picture: np.ndarray) -> None:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=92)
    with atomic_file(path) as file:
        file.write(data.getvalue())
