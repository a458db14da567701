"""Real CARLA pictures: is the BDD100K detection expert a better start than ImageNet's weights alone?

    python benchmarks/carla_real.py --data_root FOLDER --names car truck motorbike bike person --output_root . \\
        --json carla_real.json

FOLDER holds images/ and labels/*.txt (YOLO's form). The frames, in their order, are cut into as many contiguous blocks
as --folds; each block is predicted by a detector that was trained on the others, fine-tuned from the newest BDD100K
detection expert under --output_root, or from scratch for the same steps (at the source profile's own learning rates,
as in carla_finetuning.py). Printed are the AP50 of cars over all frames together, and a 95 % interval by bootstrap over
runs of neighbouring frames. Predictions are drawn into --pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from carla_finetuning import fresh_start

from automoe.data.carla_prepared import CarlaImages
from automoe.data.carla_yolo import frame_number
from automoe.data.dataset import collate
from automoe.data.prepared import prepare
from automoe.drawing import contact_sheet, draw_boxes, save_png
from automoe.engine.distributed import setup
from automoe.engine.loader import evaluation_loader
from automoe.engine.manifest import origin
from automoe.errors import AutoMoEError
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.inference import load_expert
from automoe.files import write_text
from automoe.metrics.detection import DetectionMetrics, SampleDetections
from automoe.stages.carla import CarlaBddFlags, component_of, stage_of
from automoe.stages.entry import fail
from automoe.stages.train_expert import train_expert
from automoe.taxonomy import DETECTION_COLORS

ARMS = ("fine-tuned", "from scratch")
NEIGHBOURS = 10
"""Frames that are drawn together by the bootstrap: those that stand side by side look alike."""

NEVER = 1_000_000
"""Epochs between evaluations: only the last weights are scored. The held-out block must not choose among them."""

DRAWN = 8
SHOWN_SCORE = 0.3


def fold_metrics(arm: str, fold: int, options: argparse.Namespace) -> tuple[DetectionMetrics, list[np.ndarray]]:
    """The scored predictions of one block's frames by a detector that never saw them, and some of them drawn."""
    base = options.output_root / "carla_real" / f"fold-{fold}-of-{options.folds}"
    chosen = {"names": options.names, "fold": f"{fold}/{options.folds}"}
    for split in ("train", "val"):
        prepare(options.data_root, "frames", split, base / "frames" / split, options=chosen)
    flags = CarlaBddFlags(
        task="detection",
        profile=options.profile,
        run_name=f"real-{arm.replace(' ', '-')}-{options.steps}-steps-fold-{fold}-seed-{options.seed}",
        output_root=options.output_root,
        max_steps=options.steps,
        num_workers=options.num_workers,
        seed=options.seed,
        source=options.source,
        from_scratch=arm == "from scratch",
        config=fresh_start("detection", options) if arm == "from scratch" else None,
        eval_every=NEVER,
    )
    train_expert(stage_of("detection"), base / "frames" / "train", flags)
    path = options.output_root / "models" / "checkpoints" / component_of("detection") / str(flags.run_name) / "best.pth"
    with setup("auto") as dist:
        expert = load_expert(path, dist.device)
        dataset = CarlaImages(base / "frames" / "val", "detection", expert.transform)
        loader = evaluation_loader(dataset, collate, 8, dist, num_workers=options.num_workers)
        kept: list[Any] = []
        drawn: list[np.ndarray] = []

        def draw(sample_id: str, prediction: Any, row: Any) -> None:
            if len(drawn) < -(-DRAWN // options.folds):
                sure = prediction["scores"].numpy() > SHOWN_SCORE
                boxes, labels, scores = (prediction[key].numpy()[sure] for key in ("boxes", "labels", "scores"))
                classes = expert.model.classes
                drawn.append(draw_boxes(row.image(), boxes, labels, scores, classes=classes, colors=DETECTION_COLORS))

        evaluate_expert(expert.model, dataset, loader, dist, observe=draw, keep=kept.append)
    return kept[0].final, drawn


def bootstrap(samples: dict[str, SampleDetections], classes: Sequence[str], draws: int, seed: int) -> list[float]:
    """AP50 of cars over frames drawn again and again, in runs of neighbours."""
    names = sorted(samples, key=lambda name: (frame_number(Path(name)), name))
    blocks = [names[start : start + NEIGHBOURS] for start in range(0, len(names), NEIGHBOURS)]
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        metrics = DetectionMetrics(classes)
        for number, block in enumerate(rng.integers(len(blocks), size=len(blocks)).tolist()):
            metrics.merge([{f"{number:03d}/{name}": samples[name] for name in blocks[block]}])
        found.append(float(metrics.compute()["AP50/car"] or 0.0))
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True, help="of the classes, in order")
    parser.add_argument("--output_root", type=Path, required=True, help="where the source is, and new runs go")
    parser.add_argument("--source", help="a best.pth or a run's name; the newest run's if not given")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--pictures", type=Path, help="receives a sheet of predictions of each arm")
    parser.add_argument("--json", type=Path, help="receives every number")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both arms over all folds."""
    results: dict[str, Any] = {}
    spread: dict[str, list[float]] = {}
    for arm in ARMS:
        began, pooled, pictures = time.perf_counter(), None, []
        for fold in range(options.folds):
            metrics, drawn = fold_metrics(arm, fold, options)
            pooled = pooled or DetectionMetrics(metrics.classes)
            pooled.merge([metrics.state()])
            pictures += drawn
        assert pooled is not None
        spread[arm] = bootstrap(pooled.state(), pooled.classes, options.draws, options.seed)
        scores = pooled.compute()
        results[arm] = {
            "frames": len(pooled),
            "cars": pooled.truth_counts()["car"],
            **{key: scores[key] for key in ("AP50/car", "AP/car", "AP50", "AP")},
            "interval": np.percentile(spread[arm], [2.5, 97.5]).tolist(),
            "seconds": time.perf_counter() - began,
        }
        if options.pictures:
            save_png(options.pictures / f"{arm.replace(' ', '-')}.png", contact_sheet(pictures, options.folds))
    gap = np.array(spread[ARMS[0]]) - np.array(spread[ARMS[1]])
    results["difference"] = {"mean": float(gap.mean()), "interval": np.percentile(gap, [2.5, 97.5]).tolist()}
    return results


def main() -> None:
    options = parse()
    try:
        results = compare(options)
    except AutoMoEError as error:
        fail(str(error))
    for arm in ARMS:
        one = results[arm]
        low, high = one["interval"]
        print(
            f"{arm:14} AP50 of cars {one['AP50/car']:.1f} ({low:.1f} to {high:.1f}), of all classes {one['AP50']:.1f}; "
            f"{one['frames']} frames, {one['cars']} cars, {one['seconds']:.0f} s"
        )
    low, high = results["difference"]["interval"]
    print(f"difference     {results['difference']['mean']:.1f} ({low:.1f} to {high:.1f})")
    if options.json:
        said = {
            "command": f"python benchmarks/carla_real.py --data_root DIR --names {' '.join(options.names)} "
            f"--output_root DIR --profile {options.profile} --steps {options.steps} --seed {options.seed}",
            "scored": {key: origin()[key] for key in ("commit", "dirty", "versions")},
            **results,
        }
        write_text(options.json, json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
