"""The policy stage: what drives, trained by imitation on CARLA runs, without experts or on those that a gate chose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from automoe.config import project_root
from automoe.engine.distributed import setup
from automoe.engine.loop import FitResult
from automoe.errors import ConfigError
from automoe.moe.checkpoint import load_driving_model
from automoe.stages.planning import DEFAULT_ROOT, PlanningConfig, PlanningJob, train_planning
from automoe.stages.train_expert import (
    TrainFlags,
    default_run_name,
    finished_before,
    load_stage_config,
    what_is_asked,
)

COMPONENT = "carla_policy"


@dataclass(frozen=True, kw_only=True)
class PolicyFlags(TrainFlags):
    """Train the policy."""

    data_root: Path | None = None
    """CARLA runs, or what `automoe prepare carla` made of them; datasets/carla/preprocessed if not given."""
    gating_checkpoint: Path | None = None
    """A gating network's best.pth: the policy then hears the experts that its gate chooses, which stays as it is."""
    shifted: float | None = None
    """Share of the moments that are seen from aside, where the runs have such a camera."""
    blind: bool = False
    """Show it no picture: the baseline that knows the car's state and the route alone."""
    token_cache: Path | None = None
    """Where frozen experts' tokens are kept; a folder inside the data root if not given."""


def train_policy(flags: Annotated[PolicyFlags, cyclopts.Parameter(name="*")] = PolicyFlags()) -> FitResult:
    """Train the policy on one device or, under torchrun, on many. Leaves models/checkpoints/carla_policy/<run_name>/
    best.pth, which drives with nothing else at hand.
    """
    if flags.blind and flags.gating_checkpoint is not None:
        raise ConfigError("--blind and --gating_checkpoint exclude each other: the gate has a picture to look at.")
    output_root = flags.output_root or project_root()
    kind = "_gated" if flags.gating_checkpoint is not None else "_blind" if flags.blind else ""
    run_name = flags.run_name or default_run_name(flags) + kind
    run_dir = output_root / "models" / "checkpoints" / COMPONENT / run_name
    root = flags.data_root or project_root() / DEFAULT_ROOT
    asked = what_is_asked(PlanningConfig, COMPONENT, root, flags)
    with setup(flags.device) as dist:
        if (done := finished_before(run_dir, root, asked, flags, dist.say)) is not None:
            return done
        config = load_stage_config(PlanningConfig, COMPONENT, flags)
        if flags.shifted is not None:
            config = replace(config, shifted=flags.shifted)
        if flags.blind:
            config = replace(config, context=replace(config.context, blind=True))
        more: dict[str, Any] = {}
        if flags.gating_checkpoint is not None:
            gated = load_driving_model(flags.gating_checkpoint)
            shape = gated.model.config
            # Whose gate it is decides what it looks at; it is held, so there is nothing to explore.
            held = replace(shape.gate, explore=0.0, supervision="none", balance_weight=0.0)
            config = replace(config, context=shape.context, gate=held, planner=shape.planner, sequence=shape.sequence)
            more = {
                "experts": dict(gated.model.experts.items()),
                "start": gated.model.state_dict(),
                "camera": shape.camera,
                "hold": ("context", "gate"),
                "origin": {"source": {"source": str(gated.path.resolve())}, "start": gated.digest},
            }
        job = PlanningJob(
            COMPONENT,
            run_dir,
            output_root / "models" / "runs" / COMPONENT / run_name,
            config,
            cache=flags.token_cache,
            **more,
        )
        return train_planning(job, root, flags, dist, asked)
