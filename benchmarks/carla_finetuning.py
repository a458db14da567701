"""Is it worth anything to come from another data set? Experts on CARLA: source unchanged, from scratch, fine-tuned.

    python benchmarks/carla_finetuning.py --data_root datasets/embedded/carla-320 --output_root . --json table.json

The sources are the newest runs of the BDD100K and nuScenes experts under --output_root, where `make demo` leaves them.
From scratch is the source's network from the same ImageNet backbone, for the same steps and crops, but at the learning
rates at which the source's own profile starts from ImageNet, with nothing held still: what is good for fine-tuning is
not good for a fresh start. Where there is no data under --data_root, the embedded world records it: 16 training and 8
validation runs of 10 s. Trained models are kept and found again, so that a stopped comparison goes on. Printed are
means over the seeds with the half width of a 95 % interval (Student's t), on the held-out towns' frames, and the
differences seed by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intervals import interval

from automoe.config import profile_path, read_json
from automoe.engine import checkpoint
from automoe.engine.manifest import origin
from automoe.errors import AutoMoEError
from automoe.files import write_text
from automoe.stages.carla import CarlaFlags, CarlaNuscenesFlags, component_of, source_metrics, stage_of
from automoe.stages.entry import fail
from automoe.stages.train_expert import train_expert

TASKS = ("detection", "drivable", "segmentation", "nuscenes_2d")
SHOWN = {
    "detection": ("AP", "AP50", "AP50/car"),
    "drivable": ("mIoU_3class", "mIoU"),
    "segmentation": ("mIoU", "pAcc"),
    "nuscenes_2d": ("AP", "AP50", "AP50/car"),
}
"""The first selects best.pth and is the one that is compared."""

ARMS = ("source unchanged", "from scratch", "fine-tuned")


def record(root: Path) -> None:
    """The recordings of the comparison."""
    from automoe.progress import progress_bar
    from automoe.world.carla_writer import export_carla

    with progress_bar("drive and render") as progress:
        export_carla(root, 16, 8, 0, seconds=10.0, save_every=10, progress=progress)


def fresh_start(task: str, options: argparse.Namespace) -> Path:
    """The fine-tuning's config with the learning rates of the source's profile, written to a file."""
    stage = stage_of(task)
    config = read_json(profile_path(stage.component, options.profile))
    source = read_json(profile_path(stage.source_component, options.profile))
    config |= {"layer_decay": 1.0, "hold_backbone_steps": 0, "backbone_lr_factor": source["backbone_lr_factor"]}
    config["engine"]["learning_rate"] = source["engine"]["learning_rate"]
    path = options.output_root / "carla_finetuning" / f"{task}-{options.profile}-from-scratch.json"
    write_text(path, json.dumps(config, indent=2) + "\n")
    return path


def train(task: str, arm: str, seed: int, options: argparse.Namespace) -> Path:
    """The run folder of an arm that is trained, now or earlier."""
    flags_of = CarlaNuscenesFlags if task == "nuscenes_2d" else CarlaFlags
    flags = flags_of(
        profile=options.profile,
        run_name=f"{options.profile}-{arm.replace(' ', '-')}-seed-{seed}"
        + (f"-{options.steps}" if options.steps else ""),
        output_root=options.output_root,
        prepared_dir=options.prepared_dir,
        max_steps=options.steps,
        num_workers=options.num_workers,
        seed=seed,
        from_scratch=arm == "from scratch",
        config=fresh_start(task, options) if arm == "from scratch" else None,
    )
    train_expert(stage_of(task), options.data_root, flags)
    return options.output_root / "models" / "checkpoints" / component_of(task) / str(flags.run_name)


def compare(task: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The metrics of every arm, a dictionary a seed; the source has one."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in options.seeds:
        for arm in ARMS[1:]:
            folder = train(task, arm, seed, options)
            payload = checkpoint.load(folder / "best.pth")
            trained = {"steps": payload["progress"]["step"], "commit": payload["commit"], "dirty": payload["dirty"]}
            found[arm].append({**payload["metrics"], **trained, "seed": seed})
            if arm == "fine-tuned" and not found[ARMS[0]]:
                source = payload["source"]
                path = Path(source["source"]).relative_to(options.output_root.resolve()).as_posix()
                told = {**source, "source": path, "dataset_fingerprint": payload["dataset_fingerprint"]}
                found[ARMS[0]].append({**(source_metrics(folder) or {}), **told})
    return found


def difference(arms: Mapping[str, Sequence[Mapping[str, Any]]], other: str, key: str) -> list[float]:
    """How much better fine-tuned is than another arm, seed by seed."""
    before = arms[other] * len(arms[ARMS[2]]) if len(arms[other]) == 1 else arms[other]
    return [float(ours[key] or 0.0) - float(own[key] or 0.0) for ours, own in zip(arms[ARMS[2]], before, strict=True)]


def table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """The comparison as text: a line for each expert and metric."""
    heads = [*ARMS, "better than source", "better than scratch"]
    lines = [f"{'':28}" + "".join(f"{head:>20}" for head in heads)]
    for task, arms in results.items():
        for key in SHOWN[task]:
            cells = []
            for arm in ARMS:
                mean, half = interval([float(run[key] or 0.0) for run in arms[arm]])
                cells.append(f"{mean:.1f}" if len(arms[arm]) < 2 else f"{mean:.1f} +- {half:.1f}")
            for other in ARMS[:2]:
                mean, half = interval(difference(arms, other, key))
                cells.append(f"{mean:+.1f} +- {half:.1f}")
            lines.append(f"{f'{task} {key}':28}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_root", type=Path, required=True, help="CARLA runs, raw or prepared; recorded if not there"
    )
    parser.add_argument("--prepared_dir", type=Path)
    parser.add_argument("--output_root", type=Path, required=True, help="where the sources are, and new runs go")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--steps", type=int, help="instead of the profile's")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--json", type=Path, help="receives every number")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    try:
        if not options.data_root.exists():
            record(options.data_root)
        results = {task: compare(task, options) for task in options.tasks}
    except AutoMoEError as error:
        fail(str(error))
    print(table(results))
    if options.json:
        command = f"python benchmarks/carla_finetuning.py --data_root DIR --output_root DIR --profile {options.profile}"
        if options.steps:
            command += f" --steps {options.steps}"
        said = {
            "command": command + " --seeds " + " ".join(map(str, options.seeds)),
            "seeds": options.seeds,
            "scored": {key: origin()[key] for key in ("commit", "dirty", "versions")},
            "experts": results,
        }
        write_text(options.json, json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
