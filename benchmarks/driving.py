"""The mixture drives: from nothing to closed-loop scores on towns that nobody was trained in.

    python benchmarks/driving.py --work driving --json benchmarks/results/driving.json

Each stage is commands that a person could type, printed as they are run; two of one stage run beside each other, with
half of the cores each. A stage that is finished is not run again, and its seconds and commit are kept: the same line
goes on where it was stopped, and what has been measured by then is written. Measured are, on 20 routes of 300 m with 3
seeds, the learned top-2 gate, the teacher and the blind baselines, and on the first 5 of them the other arms; by
`automoe gate` the open-loop arms, FLOPs and milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from automoe.config import profile_path, project_root
from automoe.engine.manifest import git_state, versions
from automoe.files import write_text
from automoe.machine import available_cores

ROOT = project_root()
BIN = Path(sys.executable).parent
RUN = "driving"
LONGER = {"detection": 1000, "segmentation": 500, "nuscenes_2d": 600, "drivable": 1500}
"""Steps of fine-tuning; the demo's experts have far fewer."""

SCALE = [0.65, 1.2]
"""Of fine-tuning's pictures: a gate shows the experts smaller ones than they are trained on."""

FOLDERS = {
    "detection": "carla_detection_expert_ddp",
    "segmentation": "carla_segmentation_expert_ddp",
    "nuscenes_2d": "carla_nuscenes_2d_ddp",
    "drivable": "carla_drivable_expert_ddp",
}


class Recipe:
    """The stages, by name, as commands; `settings` go before all of them into the environment."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.work, self.options = work, options
        self.raw, self.prepared, self.output = work / "raw", work / "preprocessed", work / "output"
        models = self.output / "models" / "checkpoints"
        self.gate = models / "gating_network" / RUN / "best.pth"
        self.seeing, self.unseeing = (models / "carla_policy" / run / "best.pth" for run in (RUN, "blind"))
        self.settings = {"PYTHON": sys.executable, "DEVICE": "cpu", "OUTPUT_ROOT": str(self.output)}

    def write_configs(self, finished: Collection[str]) -> None:
        """The profile `tiny`'s, with what is said here; those that a finished stage was run with stay as they are."""
        if "finetune" not in finished:
            for task, steps in LONGER.items():
                config = _profile(FOLDERS[task])
                config["augment"]["scale"] = SCALE
                config["engine"]["max_steps"] = steps
                self._write(task, config)
        if "mixture" not in finished:
            gate = _profile("gating_network")
            gate["engine"] |= {"max_steps": self.options.gate_steps, "eval_every": 2}
            self._write("gate", gate)
        if not {"blind", "policy"} & set(finished):
            policy = _profile("carla_policy")
            policy["engine"] |= {"max_steps": self.options.policy_steps, "eval_every": 2}
            self._write("policy", policy)

    def _write(self, name: str, config: dict[str, Any]) -> None:
        write_text(self.work / f"{name}.json", json.dumps(config, indent=2) + "\n")

    # -------------------------------------------------------- commands

    def experts(self) -> list[str]:
        bdd100k, nuscenes = self.work / "bdd100k", self.work / "nuscenes"
        export, workers = f"{BIN}/automoe world export", max(1, available_cores() // 2)
        return [
            f"{export} bdd100k --out {bdd100k} --train 800 --val 100 --seed 0 --workers {workers} && "
            f"PROFILE=tiny RUN_NAME={RUN} DATA_ROOT={bdd100k} bash training/train_bdd100k_experts_ddp.sh",
            f"{export} nuscenes --out {nuscenes} --scenes 8 --val_scenes 2 --seconds 10 --seed 0 --workers {workers} "
            f"&& EXTRA_ARGS='--train_cameras 1' PROFILE=tiny RUN_NAME={RUN} DATA_ROOT={nuscenes} "
            "bash training/train_nuscenes_expert_ddp.sh",
        ]

    def record(self) -> list[str]:
        return [
            f"{BIN}/automoe world export carla --out {self.raw} --runs {self.options.runs} --val_runs 20 --seconds 10 "
            "--save_every 6 --lead_in 12 --late_starts 4 --towns 30 --size 512 384 --cameras front front_shifted "
            "--no-lidar --seed 5"
        ]

    def prepare(self) -> list[str]:
        return [
            f"{BIN}/automoe prepare carla --data_root {self.raw} --out {self.prepared} --cameras front front_shifted"
        ]

    def finetune(self) -> list[str]:
        def one(task: str) -> str:
            script = "train_carla_bdd_experts_ddp.py --task " + task
            if task == "nuscenes_2d":
                script = "train_carla_nuscenes_expert_2d_ddp.py"
            return self._trained(f"training/{script} --config {self.work}/{task}.json", RUN)

        detection, *others = LONGER
        return [one(detection), " && ".join(map(one, others))]

    def mixture(self) -> list[str]:
        count = available_cores()
        return [
            f"WORLD_SIZE={count} OMP_NUM_THREADS=1 RUN_NAME={RUN} CONFIG={self.work}/gate.json "
            f"DATA_ROOT={self.prepared} BATCH_SIZE={48 // count} bash training/train_gating_network.sh"
        ]

    def blind(self) -> list[str]:
        return [self._trained(f"training/train_carla_policy.py --config {self.work}/policy.json --blind", "blind")]

    def policy(self) -> list[str]:
        return [self._trained(f"training/train_carla_policy.py --config {self.work}/policy.json", RUN)]

    def _trained(self, script: str, run: str) -> str:
        return (
            f"{sys.executable} {script} --data_root {self.prepared} --run_name {run} --output_root {self.output} "
            "--device cpu"
        )

    def open_loop(self) -> list[str]:
        return [
            f"{BIN}/automoe gate --checkpoint {self.gate} --data_root {self.prepared} --limit 800 "
            f"--beside no_experts={self.seeing} blind={self.unseeing} "
            f"--out {self.work}/gate_report.json --device cpu"
        ]

    def drive(self) -> list[str]:
        return [
            f"{BIN}/automoe drive --checkpoint {self.gate} --out {self.work}/drives --number {self.options.routes} "
            f"--seeds 3 --beside teacher constant_velocity blind={self.unseeing} && "
            f"cp {self.work}/drives/summary.json {self.work}/drives/all_routes.json"
        ]

    def arms(self) -> list[str]:
        said = json.loads((self.work / "gate_report.json").read_bytes())
        routed = {
            "all_four": f"gate:{len(said['experts'])}",
            "best_single": said["best single"],
            "best_fixed_pair": said["best fixed pair"],
            "random_2": "random:2",
            "not_held": f"gate:{said['top_k']},hold=0",
        }
        beside = [f"no_experts={self.seeing}", *(f"{name}={self.gate}@{router}" for name, router in routed.items())]
        return [
            f"{BIN}/automoe drive --checkpoint {self.gate} --out {self.work}/drives --number {self.options.arm_routes} "
            f"--seeds 3 --videos 0 --beside {' '.join(beside)}"
        ]


STAGES = (
    "experts", "record", "prepare", "finetune", "mixture", "blind", "drive", "policy", "open_loop", "arms",
)  # fmt: skip


def _profile(component: str) -> dict[str, Any]:
    return json.loads(profile_path(component, "tiny").read_bytes())


def run_stage(name: str, commands: list[str], settings: dict[str, str]) -> float:
    """Run a stage's commands beside each other; returns its seconds. Exits where one of them fails."""
    began = time.perf_counter()
    share = max(1, available_cores() // len(commands))
    environment = {**os.environ, **settings, "OMP_NUM_THREADS": str(share)}
    for command in commands:
        print(f"[{name}] {command}", flush=True)
    running = [subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=environment) for command in commands]
    codes = [one.wait() for one in running]
    if any(codes):
        sys.exit(f"{name} stopped with exit code {max(codes)}, see above; the same line goes on from there.")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="receives data, checkpoints, drives: about 12 GB")
    parser.add_argument("--json", type=Path, required=True, help="receives what was measured")
    parser.add_argument("--runs", type=int, default=240, help="recorded for training, 10 s each")
    parser.add_argument("--gate_steps", type=int, default=1600)
    parser.add_argument("--policy_steps", type=int, default=4000)
    parser.add_argument("--routes", type=int, default=20)
    parser.add_argument("--arm_routes", type=int, default=5)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage that is run")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    recipe, kept = Recipe(work, options), work / "stages.json"
    stages: dict[str, Any] = json.loads(kept.read_bytes()) if kept.is_file() else {}
    recipe.write_configs(stages)
    for name in STAGES[: STAGES.index(options.until) + 1]:
        if name in stages:
            print(f"[{name}] done before, in {stages[name]['seconds']} s")
            continue
        commands = getattr(recipe, name)()
        code = git_state()
        seconds = run_stage(name, commands, recipe.settings)
        words = [command.replace(str(work), "$WORK").replace(str(BIN) + "/", "") for command in commands]
        stages[name] = {"seconds": round(seconds), "commands": words, **code}
        write_text(kept, json.dumps(stages, indent=1) + "\n")
        print(f"[{name}] {seconds:.0f} s", flush=True)
    parts = {name: work / path for name, (stage, path) in PARTS.items() if stage in stages}
    if parts:
        found = {name: json.loads(path.read_bytes()) for name, path in parts.items()}
        said = {"cores": available_cores(), "versions": versions(), "stages": stages, **found}
        text = json.dumps(said, indent=1).replace(str(work), "$WORK")
        write_text(options.json, text + "\n")
        print(options.json)


PARTS = {
    "drives": ("drive", "drives/all_routes.json"),
    "open_loop": ("open_loop", "gate_report.json"),
    "arms": ("arms", "drives/summary.json"),
}
"""Of the result, the stage of each and what it leaves; drives that two stages ask for are driven once."""


if __name__ == "__main__":
    main()
