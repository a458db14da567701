"""Times the Hungarian matcher beside plain implementations of the same matching, and checks that all agree.

    python benchmarks/matcher.py [--threads 1] [--seed 0] [--device cpu] [--json benchmarks/results/matcher.json]

One setting, B=32 images, Q=300 queries, L=6 decoder layers, 20-100 boxes an image, 10 classes, focal class cost,
in three states of training:

- untrained: logits and boxes at random;
- trained: every query sits near some target and leans to its class;
- crowded: as untrained, but some queries score high for all classes, so that all targets want the same ones.

Beside the matcher stand three forms, each with the costs written as usual (`torch.cdist`, torchvision's GIoU):

- image_loop: for each layer and image compute the costs of that image alone, solve it with scipy;
- detr: the published form, for each layer the costs of all predictions and all targets of the batch, then split;
- target_loop: as image_loop, but the costs of one target after the other, the form without any pairwise broadcast.

The rounds are interleaved, so that what else the machine does falls on all alike, and the medians are compared:
`total` is wall time, `cpu` the processor time of the same calls, which other processes disturb less.
`assignment` is the time in the solver alone: scipy's in the other forms, and for the matcher all that turns costs
on the host into indices. `scipy_on_own_costs` solves the matcher's own cost blocks, which already have the layout
that scipy likes best, with nothing but scipy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import scipy
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from automoe import matching
from automoe.files import write_text
from automoe.matching import HungarianMatcher

BATCH, QUERIES, LAYERS, CLASSES, FEWEST, MOST = 32, 300, 6, 10, 20, 100
COST_CLASS, COST_BBOX, COST_GIOU, ALPHA = 2.0, 5.0, 2.0, 0.25
STATES = ("untrained", "trained", "crowded")

Outputs = dict[str, Tensor]
Targets = list[dict[str, Tensor]]
Matches = list[list[tuple[Tensor, Tensor]]]


class Solver:
    """scipy's solver with a stopwatch: `seconds` is what it took since it was last set to zero."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = time.perf_counter()
        solved = linear_sum_assignment(costs)
        self.seconds += time.perf_counter() - start
        return solved


def make_scene(state: str, seed: int, device: str) -> tuple[Outputs, Targets]:
    """Predictions of all layers and targets, as described above."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, BATCH, QUERIES, CLASSES, generator=random) - 2
    boxes = torch.rand(LAYERS, BATCH, QUERIES, 4, generator=random) * torch.tensor([1, 1, 0.3, 0.3])
    boxes[..., 2:] += 0.01
    targets = []
    for image in range(BATCH):
        count = int(torch.randint(FEWEST, MOST + 1, (1,), generator=random))
        own = torch.rand(count, 4, generator=random) * torch.tensor([1, 1, 0.2, 0.2])
        own[:, 2:] += 0.01
        labels = torch.randint(0, CLASSES, (count,), generator=random)
        if state == "trained":
            near = torch.randint(0, count, (LAYERS, QUERIES), generator=random)
            noise = 0.02 * torch.randn(LAYERS, QUERIES, 4, generator=random)
            boxes[:, image] = (own[near] + noise).clamp(0.005, 1)
            logits[:, image] += 2 * torch.nn.functional.one_hot(labels[near], CLASSES)
        targets.append({"labels": labels.to(device), "boxes": own.to(device)})
    if state == "crowded":
        logits += torch.linspace(-3, 3, QUERIES)[:, None]
    return {"pred_logits": logits.to(device), "pred_boxes": boxes.to(device)}, targets


def focal_costs(logits: Tensor) -> Tensor:
    """Deformable DETR's class cost of each query for each class: [..., C]."""
    p = logits.sigmoid()
    says = ALPHA * (1 - p) ** 2 * -(p + 1e-8).log()
    return says - (1 - ALPHA) * p**2 * -(1 - p + 1e-8).log()


def pair_costs(logits: Tensor, boxes: Tensor, labels: Tensor, own: Tensor) -> Tensor:
    """The weighted cost [Q, N] of predictions [Q, C], [Q, 4] with targets [N], [N, 4]."""
    giou = generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(own, "cxcywh", "xyxy"))
    costs = COST_CLASS * focal_costs(logits)[:, labels] + COST_BBOX * torch.cdist(boxes, own, p=1)
    return costs - COST_GIOU * giou


def as_tensors(rows: np.ndarray, columns: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(columns, dtype=torch.int64)


@torch.no_grad()
def image_loop(outputs: Outputs, targets: Targets, solve: Solver) -> Matches:
    """Layer by layer and image by image: costs of that image, copy, scipy."""
    matches = []
    for logits_BQC, boxes_BQ4 in zip(outputs["pred_logits"], outputs["pred_boxes"]):
        layer = []
        for logits, boxes, target in zip(logits_BQC, boxes_BQ4, targets):
            costs = pair_costs(logits, boxes, target["labels"], target["boxes"])
            layer.append(as_tensors(*solve(costs.cpu().numpy())))
        matches.append(layer)
    return matches


@torch.no_grad()
def target_loop(outputs: Outputs, targets: Targets, solve: Solver) -> Matches:
    """As `image_loop`, one target after the other."""
    matches = []
    for logits_BQC, boxes_BQ4 in zip(outputs["pred_logits"], outputs["pred_boxes"]):
        layer = []
        for logits, boxes, target in zip(logits_BQC, boxes_BQ4, targets):
            columns = [
                pair_costs(logits, boxes, label[None], box[None])
                for label, box in zip(target["labels"], target["boxes"])
            ]
            layer.append(as_tensors(*solve(torch.cat(columns, dim=1).cpu().numpy())))
        matches.append(layer)
    return matches


@torch.no_grad()
def detr(outputs: Outputs, targets: Targets, solve: Solver) -> Matches:
    """The published form: each layer's predictions with all targets of the batch, of which blocks are used."""
    labels = torch.cat([target["labels"] for target in targets])
    own = torch.cat([target["boxes"] for target in targets])
    sizes = [len(target["boxes"]) for target in targets]
    matches = []
    for logits, boxes in zip(outputs["pred_logits"], outputs["pred_boxes"]):
        costs = pair_costs(logits.flatten(0, 1), boxes.flatten(0, 1), labels, own)
        blocks = costs.view(BATCH, QUERIES, -1).cpu().split(sizes, -1)
        matches.append([as_tensors(*solve(block[image].numpy())) for image, block in enumerate(blocks)])
    return matches


class Ours:
    """The matcher, with a stopwatch around its assignment and its costs kept for scipy to solve."""

    def __init__(self) -> None:
        self.matcher = HungarianMatcher(COST_CLASS, COST_BBOX, COST_GIOU)
        self.costs: tuple[np.ndarray, list[int]] | None = None

    def __call__(self, outputs: Outputs, targets: Targets, solve: Solver) -> Matches:
        assign_rows = matching.assign_rows

        def timed(costs: np.ndarray, sizes: list[int]) -> np.ndarray:
            start = time.perf_counter()
            taken = assign_rows(costs, sizes)
            solve.seconds += time.perf_counter() - start
            self.costs = costs, sizes
            return taken

        matching.assign_rows = timed
        try:
            return self.matcher(outputs, targets)
        finally:
            matching.assign_rows = assign_rows

    def scipy_seconds(self) -> float:
        """What scipy alone takes for the costs of the last call."""
        solve = Solver()
        costs, sizes = self.costs or (np.zeros((0, 1), np.float32), [])
        for block in np.split(costs, np.cumsum(sizes)[:-1]):
            solve(block)
        return solve.seconds


def agree(one: Matches, other: Matches) -> bool:
    pairs = [pair for layer in zip(one, other) for pair in zip(*layer)]
    return all(torch.equal(a[0].cpu(), b[0].cpu()) and torch.equal(a[1].cpu(), b[1].cpu()) for a, b in pairs)


def time_state(state: str, seed: int, device: str, rounds: int, slow_rounds: int) -> dict[str, object]:
    """Median milliseconds of each form in one state, and the ratios."""
    outputs, targets = make_scene(state, seed, device)
    ours = Ours()
    forms: dict[str, Callable[[Outputs, Targets, Solver], Matches]] = {"matcher": ours, "image_loop": image_loop}
    slow = {"detr": detr, "target_loop": target_loop}
    total: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    assignment: dict[str, list[float]] = {}
    reference = ours(outputs, targets, Solver())  # also the warm-up
    for turn in range(rounds):
        for name, form in (forms | slow if turn < slow_rounds else forms).items():
            solve = Solver()
            start, cpu_start = time.perf_counter(), time.process_time()
            matches = form(outputs, targets, solve)
            if device != "cpu":
                torch.cuda.synchronize()
            total.setdefault(name, []).append(time.perf_counter() - start)
            cpu.setdefault(name, []).append(time.process_time() - cpu_start)
            assignment.setdefault(name, []).append(solve.seconds)
            if not agree(reference, matches):
                raise SystemExit(f"{name} does not agree with the matcher in state {state}")
        assignment.setdefault("scipy_on_own_costs", []).append(ours.scipy_seconds())

    def median_ms(times: dict[str, list[float]]) -> dict[str, float]:
        return {name: round(1000 * statistics.median(values), 2) for name, values in times.items()}

    total_ms, cpu_ms, assignment_ms = median_ms(total), median_ms(cpu), median_ms(assignment)

    def times_ours(values: dict[str, float]) -> dict[str, float]:
        return {name: round(value / values["matcher"], 2) for name, value in values.items() if name != "matcher"}

    return {
        "boxes": sum(len(target["labels"]) for target in targets),
        "total_ms": total_ms,
        "total_times_the_matcher": times_ours(total_ms),
        "cpu_ms": cpu_ms,
        "cpu_times_the_matcher": times_ours(cpu_ms),
        "assignment_ms": assignment_ms,
        "assignment_times_the_matcher": times_ours(assignment_ms),
        "rounds": {name: len(times) for name, times in total.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here, beside printing it")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of torch threads to time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slow_rounds", type=int, default=1, help="of the forms that take seconds")
    options = parser.parse_args()
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    result: dict[str, object] = {
        "command": shlex.join(["python", *sys.argv]),
        "seed": options.seed,
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None,
        "machine": {"cores": os.cpu_count(), "device": options.device},
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__,
            "numba": numba.__version__,
        },
        "setting": {
            "images": BATCH, "queries": QUERIES, "layers": LAYERS, "classes": CLASSES, "boxes": [FEWEST, MOST],
        },
    }  # fmt: skip
    for threads in options.threads:
        torch.set_num_threads(threads)
        states = {}
        for state in STATES:
            states[state] = time_state(state, options.seed, options.device, options.rounds, options.slow_rounds)
            print(f"{threads} thread(s), {state}: {json.dumps(states[state])}", flush=True)
        result[f"threads_{threads}"] = states
    if options.json:
        write_text(options.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
