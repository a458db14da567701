"""What a finished run left behind, read for people: its numbers, its curves and its facts. Nothing is computed anew."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automoe.engine import checkpoint
from automoe.engine.manifest import read_manifest
from automoe.engine.runlog import duration, read_metrics
from automoe.errors import CheckpointError

Curve = list[tuple[float, float]]

TRAIN_LOSS = "train/loss"


class NoRunError(CheckpointError):
    """There is no run of that name: nothing is broken, it just wasn't trained."""


@dataclass(frozen=True)
class TaskRun:
    """One run: an expert's, or one of what drives.

    Attributes:
        task: what was trained: an expert's task, or the component of what drives.
        payload: everything in best.pth but the weights.
        manifest: `manifest.json`; empty where there is none.
        evaluations: the lines of metrics.jsonl, oldest first.
        loss: (step, training loss) as TensorBoard has them, else the means of metrics.jsonl.
    """

    task: str
    run_dir: Path
    payload: dict[str, Any]
    manifest: dict[str, Any]
    evaluations: list[dict[str, Any]]
    loss: Curve

    @property
    def checkpoint(self) -> Path:
        return self.run_dir / "best.pth"

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics of best.pth, over the whole validation set: an expert's in the task's official unit."""
        return self.payload["metrics"]

    @property
    def limit(self) -> int | None:
        """The `--limit` of the command, which cut the validation set as well."""
        return command_limit(self.manifest.get("command", ""))

    def curve(self, key: str) -> Curve:
        """(step, value) of a metric at each evaluation that defines it."""
        points = ((line["step"], line["metrics"].get(key)) for line in self.evaluations)
        return [(step, value) for step, value in points if value is not None]


def load_run(output_root: Path, task: str, component: str, run_name: str, key: str = "expert") -> TaskRun:
    """The run of a task under `output_root`.

    component: its folder's name there. key: where its checkpoint says what it is of, which must be the task.
    Raises NoRunError where there is none, and CheckpointError or DataError where it is damaged.
    """
    run_dir = output_root / "models" / "checkpoints" / component / run_name
    if not (run_dir / "best.pth").is_file():
        have = sorted(p.parent.name for p in run_dir.parent.glob("*/best.pth"))
        others = f"; there are runs named {', '.join(have)}" if have else ""
        raise NoRunError(f"No {task} run at {run_dir}{others}.")
    payload = {key: value for key, value in checkpoint.load(run_dir / "best.pth").items() if key != "model"}
    if payload.get(key) != task or "metrics" not in payload:
        raise CheckpointError(f"{run_dir / 'best.pth'} is not the checkpoint of a {task} run.")
    manifest = read_manifest(run_dir)
    evaluations = read_metrics(run_dir)
    loss = tensorboard_curve(output_root / "models" / "runs" / component / run_name, TRAIN_LOSS)
    means = [(line["step"], line["losses"].get("loss")) for line in evaluations if "losses" in line]
    loss = loss or [(step, value) for step, value in means if value is not None]
    return TaskRun(task, run_dir, payload, manifest, evaluations, loss)


def tensorboard_curve(log_dir: Path, tag: str) -> Curve:
    """(step, value) of a scalar in a TensorBoard folder; empty where there is none."""
    if not any(log_dir.glob("events.out.tfevents.*")):
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in events.Scalars(tag)]


def command_limit(command: str) -> int | None:
    """The number behind `--limit` in a command line."""
    words = [part for word in shlex.split(command) for part in word.split("=", 1)]
    if "--limit" not in words[:-1]:
        return None
    value = words[words.index("--limit") + 1]
    return int(value) if value.isdigit() else None


def facts(run: TaskRun) -> list[tuple[str, str]]:
    """(name, value) of everything that one wants to know about a run before believing or repeating it."""
    manifest, payload = run.manifest, run.payload
    result: Mapping[str, Any] = manifest.get("result") or {}
    progress = payload.get("progress", {})
    preprocess = payload.get("preprocess")
    unit = "moments" if preprocess is None else "samples" if "cameras" in preprocess else "images"
    found: list[tuple[str, str | None]] = [
        ("state", _state(manifest)),
        ("fine-tuned from" if "expert" in payload else "begun from", _source(payload)),
        ("best weights", f"step {progress['step']} of {progress['total_steps']}" if progress else None),
        ("training time", duration(result["seconds"]) if "seconds" in result else None),
        ("evaluation time", duration(result["evaluation_seconds"]) if "evaluation_seconds" in result else None),
        ("speed", f"{result['images_per_second']:.1f} {unit}/s" if "images_per_second" in result else None),
        ("waiting for data", f"{result['data_wait']:.0%} of training time" if "data_wait" in result else None),
        ("device", _device(manifest)),
        ("input", None if preprocess is None else _input(preprocess)),
        ("global batch", _text(manifest.get("global_batch_size"))),
        ("seed", _text(payload.get("seed"))),
        ("commit", commit_text(payload)),
        ("versions", ", ".join(f"{name} {value}" for name, value in (payload.get("versions") or {}).items() if value)),
        ("command", manifest.get("command")),
        ("checkpoint", str(run.checkpoint)),
    ]
    return [(name, value) for name, value in found if value]


def _input(preprocess: Mapping[str, Any]) -> str:
    """What the network is given: a picture's size, or which sensors."""
    height, width = preprocess["size"]
    size = f"{width}x{height}"
    if "cameras" not in preprocess:
        return size
    cameras, sweeps = len(preprocess["cameras"]), preprocess["sweeps"]
    parts = [f"{cameras} camera{'s' if cameras > 1 else ''} at {size}"] if cameras else []
    if preprocess["lidar"]:
        parts.append(f"LiDAR with {sweeps} sweep{'' if sweeps == 1 else 's'} before the key frame's")
    return ", ".join(parts)


def _state(manifest: Mapping[str, Any]) -> str | None:
    when = manifest.get("finished")
    return f"{manifest['state']}{f', {when}' if when else ''}" if "state" in manifest else None


def _source(payload: Mapping[str, Any]) -> str | None:
    source = payload.get("source")
    if not source:
        return None
    return f"{source['source']}, step {source['steps']}" if "steps" in source else source["source"]


def _device(manifest: Mapping[str, Any]) -> str | None:
    if "device" not in manifest:
        return None
    count = manifest.get("world_size", 1)
    return f"{manifest['device']}{f', {count} processes' if count > 1 else ''}"


def commit_text(said: Mapping[str, Any]) -> str | None:
    """The commit that `engine.manifest.origin` recorded, as people write it; None where it wasn't known."""
    commit = said.get("commit")
    return f"{commit[:12]}{' with uncommitted changes' if said.get('dirty') else ''}" if commit else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
