"""The gating stage: gate, adapters and planner are trained on frozen experts, from their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import cyclopts

from automoe.config import profile_path, project_root
from automoe.engine.distributed import setup
from automoe.engine.loop import FitResult
from automoe.errors import CheckpointError, ConfigError
from automoe.moe.routers import RESERVED
from automoe.moe.tokens import FrozenExpert, freeze_expert
from automoe.stages.planning import DEFAULT_ROOT, PlanningConfig, PlanningJob, train_planning
from automoe.stages.train_expert import (
    TrainFlags,
    default_run_name,
    finished_before,
    load_stage_config,
    what_is_asked,
)

COMPONENT = "gating_network"


@dataclass(frozen=True)
class ExpertEntry:
    """One expert of a config. kind: the expert that it must be; checkpoint: its best.pth, from the working folder or
    the output root on. size: height and width of its input, where another than the trained one is wanted."""

    kind: str
    checkpoint: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class GatingConfig(PlanningConfig):
    """models/configs/gating_network/<run>/config.json: experts by name, and all that a policy's config has."""

    experts: dict[str, ExpertEntry] = field(default_factory=dict)
    data_root: str | None = None
    """Where the run's data is; --data_root wins."""
    world_size: int | None = None
    """Processes that the run was last started with, for the record."""


@dataclass(frozen=True, kw_only=True)
class GatingFlags(TrainFlags):
    """Train the gating network."""

    data_root: Path | None = None
    """CARLA runs, or what `automoe prepare carla` made of them; the config's, or datasets/carla/preprocessed."""
    checkpoint_dir: Path | None = None
    """The run's folder, which receives best.pth, and the name of its logs if --run_name isn't given;
    models/checkpoints/gating_network/<run_name> if not given."""
    expert_checkpoints: Annotated[list[Path] | None, cyclopts.Parameter(consume_multiple=True)] = None
    """The experts' best.pth, in the order in which the config names them; the config's own if not given."""
    world_size: int | None = None
    """Processes that are meant to run: checked against those that do."""
    token_cache: Path | None = None
    """Where frozen experts' tokens are kept; a folder inside the data root if not given."""


def load_gating_config(flags: GatingFlags) -> GatingConfig:
    """The config of the named run or profile with the flags on top. Raises ConfigError naming what is wrong."""
    config = load_stage_config(GatingConfig, COMPONENT, flags)
    path = flags.config or profile_path(COMPONENT, flags.profile)
    entries = config.experts
    if not entries:
        raise ConfigError(f"{path} names no experts: a gate has nothing to choose from.")
    for name in entries:
        if not name.isidentifier() or name in RESERVED:
            raise ConfigError(
                f"{path}: an expert can't be named {name!r}; give it letters, digits and _, and not one of "
                f"{', '.join(RESERVED)}, by which routers go."
            )
    if flags.expert_checkpoints is not None:
        if len(flags.expert_checkpoints) != len(entries):
            raise ConfigError(
                f"--expert_checkpoints has {len(flags.expert_checkpoints)} files; {path} names {len(entries)} experts: "
                f"{', '.join(entries)}."
            )
        given = zip(entries.items(), flags.expert_checkpoints)
        entries = {name: replace(entry, checkpoint=str(file)) for (name, entry), file in given}
    if config.gate.supervision == "none" and config.gate.top_k == 1:
        raise ConfigError(
            f"{path}: with gate.top_k 1 the one expert has all the weight whatever the gate says, so the planning loss "
            "teaches it nothing; give supervision utility, or a larger top_k."
        )
    return replace(config, experts=entries)


def freeze_experts(entries: Mapping[str, ExpertEntry], root: Path) -> dict[str, FrozenExpert]:
    """All experts of a config, each the one that its entry says. Raises CheckpointError naming every missing file."""
    paths = {name: _found(root, entry.checkpoint) for name, entry in entries.items()}
    missing = [f"{name} ({path})" for name, path in paths.items() if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"there is no checkpoint of {', '.join(missing)}; train it first (training/finetune_experts_carla.sh), or "
            "name another with --expert_checkpoints."
        )
    return {name: freeze_expert(paths[name], entry.kind, entry.size) for name, entry in entries.items()}


def _found(root: Path, said: str) -> Path:
    path = Path(said)
    return path if path.is_absolute() or path.is_file() else root / path


def train_gating(flags: Annotated[GatingFlags, cyclopts.Parameter(name="*")] = GatingFlags()) -> FitResult:
    """Train the gate, the experts' adapters and the planner on frozen experts, on one device or, under torchrun, on
    many. Leaves models/checkpoints/gating_network/<run_name>/best.pth, which drives with nothing else at hand.
    """
    output_root = flags.output_root or project_root()
    folder = flags.checkpoint_dir
    run_name = flags.run_name or (folder.resolve().name if folder is not None else default_run_name(flags))
    run_dir = folder or output_root / "models" / "checkpoints" / COMPONENT / run_name
    config = load_gating_config(flags)
    root = flags.data_root or (Path(config.data_root) if config.data_root else project_root() / DEFAULT_ROOT)
    asked = what_is_asked(GatingConfig, COMPONENT, root, flags)
    with setup(flags.device) as dist:
        if flags.world_size is not None and flags.world_size != dist.world_size:
            raise ConfigError(
                f"--world_size is {flags.world_size}, and {dist.world_size} run; start them with `torchrun "
                f"--nproc_per_node={flags.world_size} training/train_gating_network.py ...`."
            )
        if (done := finished_before(run_dir, root, asked, flags, dist.say)) is not None:
            return done
        experts = freeze_experts(config.experts, output_root)
        digests = {name: expert.digest() for name, expert in experts.items()}
        job = PlanningJob(
            COMPONENT,
            run_dir,
            output_root / "models" / "runs" / COMPONENT / run_name,
            config,
            experts,
            origin={"start": digests},
            cache=flags.token_cache,
        )
        return train_planning(job, root, flags, dist, asked)
