"""Write what finished runs measured into one small JSON file, to be committed beside the code.

    python benchmarks/collect_runs.py --run_name tiny --output_root . --out benchmarks/results/demo_tiny.json \
        --command "make demo"

For each of the experts that have a run of that name: the official metrics of best.pth (percent; nuScenes' as
fractions), steps, seconds, seed, commit and versions, the baselines if `automoe report` has computed them, and for
those that were fine-tuned the metrics of the source as it was.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from automoe.engine import checkpoint
from automoe.files import write_text
from automoe.stages.carla import source_metrics

COMPONENTS = {
    "detection": "bdd100k_detection_expert",
    "drivable": "bdd100k_drivable_expert",
    "segmentation": "bdd100k_segmentation_expert",
    "nuscenes": "nuscenes_expert",
    "carla_detection": "carla_detection_expert_ddp",
    "carla_drivable": "carla_drivable_expert_ddp",
    "carla_segmentation": "carla_segmentation_expert_ddp",
    "carla_nuscenes_2d": "carla_nuscenes_2d_ddp",
}
"""Entries of the file, and the folders of their checkpoints."""

DECIMALS = {"nuscenes": 5}
"""Of metrics that are fractions; percent have three."""


def collect(output_root: Path, run_name: str) -> dict[str, dict]:
    """One entry an expert; one without a finished run is left out."""
    found = {}
    for task, component in COMPONENTS.items():
        folder = output_root / "models" / "checkpoints" / component / run_name
        if not (folder / "best.pth").is_file():
            continue
        payload = checkpoint.load(folder / "best.pth")
        baselines = folder / "baselines.json"
        decimals = DECIMALS.get(task, 3)
        source = source_metrics(folder)
        found[task] = {
            "metrics": _rounded(payload["metrics"], decimals),
            **({} if source is None else {"source": _rounded(source, decimals)}),
            "baselines": json.loads(baselines.read_text()) if baselines.is_file() else None,
            "progress": payload["progress"],
            "seed": payload["seed"],
            "commit": payload["commit"],
            "dirty": payload["dirty"],
            "versions": payload["versions"],
            "dataset_fingerprint": payload["dataset_fingerprint"],
            "parameters": sum(value.numel() for value in payload["model"].values()),
        }
    return found


def _rounded(metrics: Mapping[str, float | None], decimals: int) -> dict[str, float | None]:
    return {key: None if value is None else round(value, decimals) for key, value in metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_name", default="tiny")
    parser.add_argument("--output_root", type=Path, default=Path("."))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", required=True, help="the command that made the runs, for the record")
    parser.add_argument("--note", default="", help="a sentence on how it was run")
    flags = parser.parse_args()
    tasks = collect(flags.output_root, flags.run_name)
    if not tasks:
        parser.error(f"no finished run {flags.run_name} under {flags.output_root}")
    result = {"command": flags.command, "note": flags.note, "cores": os.cpu_count(), "tasks": tasks}
    write_text(flags.out, json.dumps(result, indent=1) + "\n")
    print(f"{flags.out}: {', '.join(tasks)}")


if __name__ == "__main__":
    main()
