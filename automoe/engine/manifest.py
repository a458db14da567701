"""`manifest.json`: what a run was, well enough to do it again."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import automoe
from automoe.engine.run import Run
from automoe.errors import DataError
from automoe.files import write_text

MANIFEST = "manifest.json"


def versions() -> dict[str, str | None]:
    """Versions of what the results depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "automoe": automoe.__version__}
    found["torch"] = str(torch.__version__)
    for package in ("torchvision", "timm", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state() -> dict[str, Any]:
    """{"commit": str | None, "dirty": bool | None} of the working tree this package is run from.

    None where there is no git or the package is installed elsewhere. Untracked files do not count as dirty.
    """
    folder = Path(automoe.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # A package in a virtual environment that lies inside some other repository is not of that repository.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--", "__init__.py") else None
    status = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def origin() -> dict[str, Any]:
    """Versions, commit and dirty flag, as one dict: what the code was when a run began."""
    return {"versions": versions(), **git_state()}


def write_manifest(run: Run, step: int) -> None:
    """Write the manifest of a run that starts, or goes on, now at `step`."""
    earlier = read_manifest(run.run_dir) if step else {}
    config, dist, now = run.config, run.dist, _now()
    manifest = {
        "state": "running",
        "started": earlier.get("started", now),
        "resumed": [*earlier.get("resumed", []), {"at": now, "step": step}] if step else [],
        "finished": None,
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "seed": config.seed,
        **run.origin,
        "device": torch.cuda.get_device_name(dist.device) if dist.device.type == "cuda" else "cpu",
        "world_size": dist.world_size,
        "global_batch_size": run.sampler.global_batch_size,
        "total_steps": run.total_steps,
        "dataset_fingerprint": run.meta.get("dataset_fingerprint"),
        "engine": asdict(config),
        "config": run.meta.get("config"),
        "asked": run.meta.get("asked"),
        "source": run.meta.get("source"),
    }
    _write(run.run_dir, manifest)


def close_manifest(run_dir: Path, state: str, **more: Any) -> None:
    """Record how the run ended: "finished", "interrupted" or "failed", and whatever else is known."""
    _write(run_dir, {**read_manifest(run_dir), "state": state, "finished": _now(), **more})


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest of a run directory; empty if there is none. Raises DataError where it is damaged."""
    path = run_dir / MANIFEST
    try:
        said = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to go on without.") from error
    if not isinstance(said, dict):
        raise DataError(f"{path} is damaged: it is no object; delete it to go on without.")
    return said


def _write(run_dir: Path, manifest: dict[str, Any]) -> None:
    write_text(run_dir / MANIFEST, json.dumps(manifest, indent=2, default=str) + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
