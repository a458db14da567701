"""Going on from where a run stopped: find its last.pth, see that it belongs to this command, or clear the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from automoe.engine import checkpoint
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed
from automoe.engine.manifest import MANIFEST
from automoe.engine.runlog import METRICS
from automoe.errors import CheckpointError, ConfigError
from automoe.files import write_bytes

LAST, BEST = "last.pth", "best.pth"
COMPANIONS = ("submission.json", "source.json")
"""What stages write beside best.pth (`fit`'s on_start and on_best): it goes where that file goes."""

TRAINING_KIND, MODEL_KIND = "automoe-training", "automoe-model"

# May differ between the two commands without changing what is learned, or are checked in another way.
_FREE_KEYS = {
    "num_workers", "save_seconds", "save_steps", "log_steps", "log_seconds", "resume", "resume_command",
    "eval_every", "compile", "find_unused_parameters", "batch_size", "accumulate", "seed",
    "metric", "metric_mode",
}  # fmt: skip


def identity(config: EngineConfig, meta: dict[str, Any], *, length: int, world_size: int) -> dict[str, Any]:
    """What two commands must share to be parts of one run. `meta` adds its dataset_fingerprint, model_config,
    recipe and start (a hash of the weights that training begins with, where they are not a backbone's)."""
    return {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "world_size": world_size,
        "dataset_length": length,
        "dataset_fingerprint": meta.get("dataset_fingerprint"),
        "model_config": meta.get("model_config"),
        "recipe": meta.get("recipe"),
        "start": meta.get("start"),
        "metric": config.metric,
        "metric_mode": config.metric_mode,
        "averaged_weights": config.ema_decay > 0,
    }


def find_or_clear(config: EngineConfig, run_dir: Path, log_dir: Path, say: Callable[[str], None]) -> Path | None:
    """The last.pth to go on from, or None for a fresh start, with what an earlier run left moved aside.

    Raises CheckpointError if `config.resume` is a path where there is nothing.
    """
    own = run_dir / LAST
    if config.resume == "auto" and own.is_file():
        return own
    if config.resume not in ("auto", "never"):
        given = Path(config.resume)
        found = given / LAST if given.is_dir() else given
        if not found.is_file():
            raise CheckpointError(f"resume is {config.resume}, but there is no {found}: check the path.")
        if found.resolve() == own.resolve():
            return found
        _move_aside(run_dir, log_dir, say)
        _bring_along(found.parent, run_dir)
        return found
    _move_aside(run_dir, log_dir, say)
    return None


def _bring_along(source: Path, run_dir: Path) -> None:
    """Copy the best weights and the evaluations so far of the run that is gone on with in another folder."""
    for name in (BEST, METRICS, *COMPANIONS):
        if (source / name).is_file():
            write_bytes(run_dir / name, (source / name).read_bytes())


def load_training(path: Path) -> dict[str, Any]:
    """The payload of a last.pth. Raises CheckpointError if the file is anything else."""
    payload = checkpoint.load(path)
    if payload.get("kind") != TRAINING_KIND:
        raise CheckpointError(
            f"{path} holds a model but not the state of its training: resume from the {LAST} beside it."
        )
    return payload


def check_same_run(saved: dict[str, Any], now: dict[str, Any], source: Path) -> None:
    """Raise ConfigError naming the first key in which the saved run and this command differ.

    A global batch may be shared among another number of processes: every step still sees the same samples.
    """

    def sharing(values: dict[str, Any]) -> int:
        return values["batch_size"] * values["accumulate"] * values["world_size"]

    same_batch = sharing(saved) == sharing(now)
    for key in now:
        if key in ("batch_size", "accumulate", "world_size") and same_batch:
            continue
        where = _difference(saved.get(key), now[key], key)
        if where is None:
            continue
        name, before, after = where
        hint = ""
        if key in ("batch_size", "accumulate", "world_size"):
            hint = f" (batch_size * accumulate * processes was {sharing(saved)} and is {sharing(now)})"
        raise ConfigError(
            f"{source} is of a run with {name} {_short(before)}, this command has {_short(after)}{hint}: "
            "give the same to go on with that run, or another run name or --resume never to start anew."
        )


def say_differences(
    saved: dict[str, Any], config: EngineConfig, then: dict[str, Any], now: dict[str, Any], dist: Distributed
) -> None:
    """Say which hyper-parameters go on with another value than they began with: allowed, but never silent."""
    for key, value in asdict(config).items():
        if key not in _FREE_KEYS and saved.get(key) != value:
            dist.say(f"Going on with {key} {value} (it was {saved.get(key)}).")
    if then["world_size"] != now["world_size"]:
        dist.say(
            f"Going on with {now['world_size']} processes (it was {then['world_size']}) and the same global "
            "batch: the same samples a step, but not the same bits."
        )


def _move_aside(run_dir: Path, log_dir: Path, say: Callable[[str], None]) -> None:
    """Move an earlier run's files into the first free old-N folder, so that a fresh start destroys nothing."""
    for folder, names in (
        (run_dir, (LAST, BEST, METRICS, MANIFEST, *COMPANIONS)),
        (log_dir, ("events.out.tfevents.*",)),
    ):
        found = [path for name in names for path in sorted(folder.glob(name))]
        if not found:
            continue
        number = 1
        while (aside := folder / f"old-{number}").exists():
            number += 1
        aside.mkdir(parents=True)
        for path in found:
            path.rename(aside / path.name)
        if folder == run_dir:
            say(f"Starting anew: the files of the earlier run are now in {aside}.")


def _difference(saved: Any, now: Any, name: str) -> tuple[str, Any, Any] | None:
    """The dotted name and the two values of the first difference, or None. Tuples equal lists, as saved."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in saved if key not in now)]:
            found = _difference(saved.get(key), now.get(key), f"{name}.{key}")
            if found:
                return found
        return None
    saved, now = _as_lists(saved), _as_lists(now)
    return None if saved == now else (name, saved, now)


def _as_lists(value: Any) -> Any:
    return [_as_lists(one) for one in value] if isinstance(value, tuple | list) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
