"""Are both sensors used? The nuScenes expert with camera and LiDAR, with either alone, and with either shuffled.

    python benchmarks/nuscenes_ablation.py --data_root datasets/embedded/nuscenes --seeds 0 1 2 --json ablation.json

For each seed three models train for the same steps (profiles `<profile>`, `<profile>_lidar`, `<profile>_camera`); the
first is then scored again with every sample's LiDAR, or its pictures, taken from a sample of another scene. Trained
models are kept under --output_root and found again, so that a stopped comparison goes on. On a prepared set several
processes may each train one of the first three --rows; a last call without --rows makes the table. Printed are means
over the seeds with the half width of a 95 % interval (Student's t).

Camera-only models are taught what lies in the pictures of a sample, which are fewer in training than in evaluation
(`augment.cameras`), and without points there is no loss of what pictures say of points; LiDAR-only ones are taught all
that has a point. A row says what a sensor is good for within this recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intervals import interval

from automoe.data.nuscenes_dataset import NuscenesDataset, collate
from automoe.data.nuscenes_prepared import TASK
from automoe.data.prepared import ensure_prepared
from automoe.engine.distributed import setup
from automoe.engine.loader import evaluation_loader
from automoe.engine.manifest import origin
from automoe.errors import AutoMoEError, DataError
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.inference import load_expert
from automoe.files import write_text
from automoe.stages.entry import fail
from automoe.stages.nuscenes import COMPONENT, NuscenesFlags, NuscenesStage, view_of
from automoe.stages.train_expert import train_expert
from automoe.taxonomy import NUSCENES_DETECTION

TRAINED = {"camera+LiDAR": "", "LiDAR only": "_lidar", "camera only": "_camera"}
"""Rows that are trained, and what their profiles' names end with."""

SHUFFLED = {"shuffled LiDAR": "points", "shuffled images": "image"}
"""Rows that are the first one's model, and the entry of a sample that comes from another one."""

SHOWN = ("mAP", "NDS", "AP/car", "AP/pedestrian")


class Shuffled:
    """An evaluation set in which one sensor's data is that of a sample of another scene, always the same one."""

    def __init__(self, dataset: NuscenesDataset, entry: str, seed: int) -> None:
        self.dataset, self.entry = dataset, entry
        scenes = np.array(dataset.rows.column("scene"))
        if len(set(scenes)) < 2:
            raise DataError(f"{dataset.info.path} has samples of one scene only; shuffling needs two")
        rng = np.random.default_rng(seed)
        self.other = np.array([rng.choice(np.flatnonzero(scenes != scene)) for scene in scenes])

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> Any:
        return self.dataset.row(index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        return self.dataset[epoch, index] | {self.entry: self.dataset[epoch, int(self.other[index])][self.entry]}


def train(row: str, seed: int, options: argparse.Namespace) -> Path:
    """The best.pth of a row that is trained, now or earlier."""
    flags = NuscenesFlags(
        profile=options.profile + TRAINED[row],
        run_name=f"{options.profile}{TRAINED[row]}-{options.steps or 'all'}-steps-seed-{seed}",
        output_root=options.output_root,
        prepared_dir=options.prepared_dir,
        max_steps=options.steps,
        num_workers=options.num_workers,
        seed=seed,
    )
    train_expert(NuscenesStage(), options.data_root, flags)
    return options.output_root / "models" / "checkpoints" / COMPONENT / str(flags.run_name) / "best.pth"


def score(path: Path, entry: str | None, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The metrics of a checkpoint on the validation set, the trainer's own or, if an entry is given, those with that
    entry of the samples shuffled; and by which steps and commit it was trained."""
    info = ensure_prepared(options.data_root, TASK, "val", options.prepared_dir)
    with setup("auto") as dist:
        expert = load_expert(path, dist.device)
        payload = expert.payload
        metrics = payload["metrics"]
        if entry is not None:
            dataset = Shuffled(NuscenesDataset(info.path, view_of(payload["preprocess"])), entry, seed)
            loader = evaluation_loader(dataset, collate, 2, dist, num_workers=options.num_workers)
            metrics = evaluate_expert(expert.model, dataset, loader, dist)
        trained = {"steps": payload["progress"]["step"], "commit": payload["commit"], "dirty": payload["dirty"]}
        return {**metrics, **trained, "seed": seed}


def compare(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The metrics of every row, a dictionary a seed."""
    _prepare(options)
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for row in options.rows:
            if row in TRAINED:
                found.setdefault(row, []).append(score(train(row, seed, options), None, seed, options))
            else:
                checkpoint = train("camera+LiDAR", seed, options)
                found.setdefault(row, []).append(score(checkpoint, SHUFFLED[row], seed, options))
    return found


def _prepare(options: argparse.Namespace) -> None:
    """The sets as the row with most sensors needs them, whichever row is trained first."""
    needed = NuscenesStage().configure(NuscenesFlags(profile=options.profile)).preparation()
    for split in ("train", "val"):
        ensure_prepared(options.data_root, TASK, split, options.prepared_dir, options=needed)


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The comparison as text."""
    width = max(map(len, found))
    lines = [" " * width + "".join(f"{key:>20}" for key in SHOWN)]
    for row, runs in found.items():
        cells = [interval([float(run[key] or 0.0) for run in runs]) for key in SHOWN]
        lines.append(f"{row:{width}}" + "".join(f"{f'{mean:.3f} +- {half:.3f}':>20}" for mean, half in cells))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = [*TRAINED, *SHUFFLED]
    parser.add_argument("--data_root", type=Path, required=True, help="raw or prepared nuScenes")
    parser.add_argument("--prepared_dir", type=Path)
    parser.add_argument("--output_root", type=Path, default=Path("runs/ablation"), help="where trained models are kept")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--steps", type=int, help="instead of the profile's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="receives every number")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    try:
        found = compare(options)
        info = ensure_prepared(options.data_root, TASK, "val", options.prepared_dir)
    except AutoMoEError as error:
        fail(str(error))
    print(table(found))
    if options.json:
        kept = {"mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "heatmap/mAP", "image/AP50"}
        kept |= {"seed", "steps", "commit", "dirty"}
        kept |= {f"AP/{name}" for name in NUSCENES_DETECTION}
        said = {
            "command": f"python benchmarks/nuscenes_ablation.py --data_root DIR --profile {options.profile} --seeds "
            + " ".join(map(str, options.seeds))
            + (f" --steps {options.steps}" if options.steps else ""),
            "seeds": options.seeds,
            "validation": {"samples": info.count, "boxes": info.boxes, "fingerprint": info.fingerprint},
            "scored": {key: origin()[key] for key in ("commit", "dirty", "versions")},
            "rows": {row: [{k: v for k, v in run.items() if k in kept} for run in runs] for row, runs in found.items()},
        }
        write_text(options.json, json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
