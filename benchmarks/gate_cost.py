"""Does the cost of a frame follow the number of experts that run? Time and FLOPs of the whole model, from a raw picture
to a plan, with 4 and with 12 experts of which 1, 2, 4 or all run.

    python benchmarks/gate_cost.py --json gate_cost.json

Context, experts and planner are those of the profile `tiny` with random weights (a time does not depend on them), three
experts of each kind where there are 12. Which of them run is drawn anew in every round: experts differ in cost. All
settings are timed in turn, round after round; printed are the median time and the mean FLOPs, and their ratios to all
experts. FLOPs are torch's own count (two for a multiplication and addition).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from automoe import taxonomy
from automoe.config import from_dict, profile_path, read_json
from automoe.data.sequences import ROUTE_POINTS, Observation
from automoe.engine.manifest import origin
from automoe.files import write_text
from automoe.moe.context import ContextConfig
from automoe.moe.cost import frame_costs
from automoe.moe.ground import CameraSpec
from automoe.moe.model import DrivingConfig, DrivingModel
from automoe.moe.planner import PlannerConfig
from automoe.moe.routers import drawn
from automoe.moe.tokens import ExpertSpec

SOURCES = {
    "detection": ("bdd100k_detection_expert", taxonomy.BDD_DETECTION),
    "drivable": ("bdd100k_drivable_expert", taxonomy.DRIVABLE),
    "segmentation": ("bdd100k_segmentation_expert", taxonomy.SEMANTIC),
    "nuscenes_2d": ("nuscenes_expert", taxonomy.NUSCENES_DETECTION),
}
"""Of each kind the config that its network comes from, and its classes."""


CAMERA = CameraSpec(
    (384, 512), 90.0, ((1.0, 0.0, 0.0, 1.5), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.6), (0.0, 0.0, 0.0, 1.0))
)
"""Of the moment that is looked at; the cost doesn't depend on it."""


def specs(copies: int) -> dict[str, ExpertSpec]:
    """`copies` experts of each kind, as the gating network's profile `tiny` has them."""
    gating = read_json(profile_path("gating_network", "tiny"))["experts"]
    found = {}
    for copy in range(copies):
        for kind, (component, classes) in SOURCES.items():
            plain = read_json(profile_path(component, "tiny"))
            model = plain["model"]["image"] if kind == "nuscenes_2d" else plain["model"]
            own = gating[kind].get("size") or read_json(profile_path("carla_drivable_expert_ddp", "tiny"))["size"]
            half = (0.5, 0.5, 0.5)
            found[f"{kind}_{copy}"] = ExpertSpec(kind, model, classes, (own[0], own[1]), half, half)
    return found


def observed() -> Observation:
    """A moment with a picture of the size that `driving.py` records."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*CAMERA.size, 3), dtype=np.uint8)
    motion, route = np.array([[5.0, 0.0]], np.float32), np.full((ROUTE_POINTS, 2), 20.0, np.float32)
    return Observation(0.0, image, motion, 3, route, np.zeros(2, np.float32))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 3], help="experts of each of the four kinds")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def measure(copies: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, GFLOPs and their ratios to all experts, for each number of experts that run."""
    torch.manual_seed(0)
    profile = read_json(profile_path("gating_network", "tiny"))
    context = from_dict(ContextConfig, profile["context"], "context")
    planner = from_dict(PlannerConfig, profile["planner"], "planner")
    config = DrivingConfig(specs(copies), context, planner=planner, camera=CAMERA)
    model, seen = DrivingModel(config).eval(), observed()
    count = len(model.names)
    numbers = sorted({1, 2, 4, count})
    costs = frame_costs(model, [seen] * rounds, {f"{k} of {count}": drawn(k, 1) for k in numbers})
    whole = costs[f"{count} of {count}"]
    return {
        name: {
            "ms": cost.milliseconds,
            "gflops": cost.gflops,
            "time_of_all": cost.milliseconds / whole.milliseconds,
            "flops_of_all": cost.gflops / whole.gflops,
        }
        for name, cost in costs.items()
    }


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {}
    for copies in options.copies:
        for name, row in measure(copies, options.rounds).items():
            found[name] = row
            print(
                f"{name:>9} experts: {row['ms']:6.1f} ms, {row['gflops']:6.2f} GFLOPs: "
                f"{100 * row['time_of_all']:.0f} % of the time of all, {100 * row['flops_of_all']:.0f} % of the FLOPs"
            )
    if options.json:
        said = {
            "command": "python benchmarks/gate_cost.py",
            "threads": options.threads,
            "rounds": options.rounds,
            **{key: origin()[key] for key in ("commit", "dirty", "versions")},
            "settings": found,
        }
        write_text(options.json, json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
