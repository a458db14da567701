"""What the nuScenes expert's profiles cost: seconds a step, the share that waits for data, memory, and inference.

    python benchmarks/nuscenes_profiles.py --data_root datasets/embedded/nuscenes --json profiles.json

Each profile trains and is evaluated for a moment through the trainer itself, in a process of its own. Peak memory is
what the operating system says of that process (not of its loader's workers, if it has any) and, on a GPU, what PyTorch
says. Training passes over --samples samples for --steps steps; the first step, which compiles and allocates, is among
them. Run it on an idle machine; the load just before each run says whether it was.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from automoe.data.nuscenes_prepared import TASK
from automoe.data.prepared import PreparedInfo, ensure_prepared
from automoe.engine import checkpoint
from automoe.engine.manifest import origin
from automoe.errors import AutoMoEError
from automoe.files import write_text
from automoe.stages.entry import fail
from automoe.stages.nuscenes import NuscenesFlags, NuscenesStage, train_nuscenes

PROFILES = ("tiny", "tiny_lidar", "tiny_camera", "tiny_front", "small")


def prepare(options: argparse.Namespace) -> dict[str, PreparedInfo]:
    """The prepared sets of both splits, with what the greediest of the profiles uses."""
    each = [NuscenesStage().configure(NuscenesFlags(profile=profile)).preparation() for profile in options.profiles]
    needed = {"sweeps": max(one["sweeps"] for one in each), "cameras": max((one["cameras"] for one in each), key=len)}
    return {
        split: ensure_prepared(options.data_root, TASK, split, options.prepared_dir, options=needed)
        for split in ("train", "val")
    }


def measure(profile: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a profile in this process for a moment."""
    import torch

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        flags = NuscenesFlags(
            profile=profile,
            run_name=profile,
            data_root=options.data_root,
            prepared_dir=options.prepared_dir,
            output_root=Path(scratch),
            max_steps=options.steps,
            limit=options.samples,
            batch_size=options.batch_size,
            eval_every=10**6,  # at the end only
            pretrained=not options.random_weights,
        )
        result = train_nuscenes(flags)
        run = Path(scratch) / "models" / "checkpoints" / "nuscenes_expert" / profile
        payload = checkpoint.load(run / "best.pth")
    engine = payload["config"]["engine"]
    evaluated = min(options.samples, prepare(options)["val"].count)
    gpu = torch.cuda.is_available()
    return {
        "parameters": sum(value.numel() for value in payload["model"].values()),
        "batch_size": engine["batch_size"],
        "num_workers": engine["num_workers"],
        "steps": result.steps,
        "seconds_a_step": round(result.seconds / result.steps, 4),
        "data_wait": round(result.data_wait, 4),
        "evaluation_seconds_a_sample": round(result.evaluation_seconds / evaluated, 4),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "random_weights": options.random_weights,
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
        "load_before": round(load, 2),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="raw or prepared nuScenes")
    parser.add_argument("--prepared_dir", type=Path)
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--batch_size", type=int, help="instead of the profiles'")
    parser.add_argument("--random_weights", action="store_true", help="where ImageNet weights can't be had")
    parser.add_argument("--json", type=Path, help="receives every number; profiles that it already has are kept")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.measure:
        try:
            print(json.dumps(measure(options.measure, options)))
        except AutoMoEError as error:
            fail(str(error))
        return
    try:
        prepare(options)
    except AutoMoEError as error:
        fail(str(error))
    rows = json.loads(options.json.read_text())["profiles"] if options.json and options.json.is_file() else {}
    for profile in options.profiles:
        ended = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--measure", profile], stdout=subprocess.PIPE, text=True
        )
        if ended.returncode:
            sys.exit(ended.returncode)
        rows[profile] = json.loads(ended.stdout.splitlines()[-1]) | {"commit": origin()["commit"]}
        print(profile, json.dumps(rows[profile]), flush=True)
        if options.json:
            said = {"command": "python benchmarks/nuscenes_profiles.py --data_root DIR", "cores": os.cpu_count()}
            write_text(options.json, json.dumps({**said, **origin(), "profiles": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
