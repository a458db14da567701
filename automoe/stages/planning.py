"""Training what drives: a policy on its own, or gate, adapters and planner on frozen experts.

Both are one model (`moe.model.DrivingModel`) and one path from flags to a `best.pth` that drives with nothing else at
hand: experts, camera rig and config are in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automoe.config import from_dict
from automoe.data.carla_hindsight import APART_FROM_TOLD, HINDSIGHT, TOLD
from automoe.data.carla_prepared import TASK
from automoe.data.sequences import CarlaSequences, SequenceConfig, TargetsBatch, collate
from automoe.data.transforms import ColorConfig
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed
from automoe.engine.loader import evaluation_loader, to_device
from automoe.engine.loop import FitResult, fit
from automoe.errors import ConfigError
from automoe.metrics.planning import METRIC, PlanningScores
from automoe.moe.cache import Remembered, TokenCache
from automoe.moe.context import Context, ContextConfig
from automoe.moe.gate import GateConfig, balance_loss, highest, random_choice, utility_loss
from automoe.moe.ground import CameraSpec
from automoe.moe.model import DrivingConfig, DrivingModel
from automoe.moe.planner import PlannerConfig, mean_losses, planning_losses
from automoe.moe.routers import given
from automoe.moe.tokens import FrozenExpert, TokenSource
from automoe.stages.entry import command_line
from automoe.stages.memory import Memory, remember
from automoe.stages.train_expert import StageConfig, TrainFlags, layer_groups, prepare_splits

_NO_RECIPE = {
    "model", "context", "gate", "planner", "sequence", "experts", "engine", "eval_batch_size", "data_root",
    "world_size",
}  # fmt: skip
"""Keys of a config that are told otherwise what a run is made of (`model_config`, `start`), or don't matter for it."""

DEFAULT_ROOT = "datasets/carla/preprocessed"


@dataclass(frozen=True)
class PlanningConfig(StageConfig):
    """A config.json of what drives; `model` and `backbone_lr_factor` are StageConfig's, the latter the stem's.

    shifted: share of training moments that are seen from aside (`carla.run.SHIFTED`). augment: of the stem's pictures;
    frozen experts look at each picture as it is. recolored: versions of each picture beside itself that a stem looks at
    that learns nothing; one that learns looks at a new one each time. changes: how much more often a training moment is
    drawn at which the target speed is 1 m/s or more off the car's own, and in between as much as it is off; 0 draws all
    alike.
    """

    context: ContextConfig = field(default_factory=ContextConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    shifted: float = 0.5
    augment: ColorConfig = field(default_factory=ColorConfig)
    recolored: int = 3
    changes: float = 0.0

    def __post_init__(self) -> None:
        if self.recolored < 0:
            raise ConfigError(f"recolored is {self.recolored}; give 0 or more.")
        if self.changes < 0.0:
            raise ConfigError(f"changes is {self.changes}; give 0 or more.")
        if self.sequence.past:
            raise ConfigError("sequence.past: who drives is told no past yet; leave it at 0.")


class PlanningStep(nn.Module):
    """What the engine trains: a batch of `CarlaSequences` in, losses out. memory: of what frozen parts see; hold: parts
    of the model that learn nothing (see `hold_still`), and stay in eval mode."""

    def __init__(self, model: DrivingModel, memory: Memory, hold: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.memory, self.hold = model, memory, tuple(hold)

    def train(self, mode: bool = True) -> PlanningStep:
        """Held parts keep their statistics, and drop nothing."""
        super().train(mode)
        for name in self.hold:
            self.model.get_submodule(name).eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        observation, targets, model = batch["observation"], batch["targets"], self.model
        count, device = len(observation.command), observation.command.device
        context = self.memory.context(model, batch)
        if model.gate is None:
            plan, _ = model.decide(context, observation.pictures)
            return mean_losses(planning_losses(plan, targets, model.planner))
        assert self.memory.experts is not None
        config, experts = model.gate.config, len(model.names)
        source = Remembered(self.memory.experts, observation.pictures)
        with torch.no_grad():
            own = model.gate(context.vector).chosen
            held = torch.rand(count, experts, device=device) < config.hold_share
            drawn = random_choice(count, experts, experts, device)
            explores = torch.rand(count, 1, device=device) < config.explore
            heard = torch.where(explores, drawn, own | held)
        plan, routing = model.decide(context, observation.pictures, source, given(heard))
        assert routing is not None
        losses = mean_losses(planning_losses(plan, targets, model.planner))
        if config.supervision == "utility":
            some = math.ceil(config.utility_share * count)
            utility = measured_utility(model, context, source, batch, some)
            losses["utility"] = utility_loss(routing.logits[:some], utility, config.utility_temperature)
            losses["utility"] = losses["utility"] * config.utility_weight
        if config.balance_weight > 0.0:
            # Of the gate's own choice: what is drawn at random is even by itself.
            losses["balance"] = balance_loss(routing._replace(chosen=own)) * config.balance_weight
        # Under DDP every parameter has a gradient at every step, also that of an expert nobody listened to.
        spared = [*model.adapters.parameters()]
        for part in (model.planner.pointer, model.planner.holds):
            spared += [] if part is None else part.parameters()
        unheard = torch.stack([p.float().sum() for p in spared]).sum() * 0.0
        unheard = unheard + routing.logits.sum() * 0.0
        extra = [losses[key] for key in ("utility", "balance") if key in losses]
        losses["loss"] = losses["loss"] + unheard + sum(extra)
        return losses


@torch.no_grad()
def measured_utility(
    model: DrivingModel, context: Context, source: TokenSource, batch: Mapping[str, Any], count: int
) -> Tensor:
    """By how much each expert lowers the planning loss of each of the first `count` samples of a batch, beside as many
    others, drawn at random, as run beside it in use: [count, E]. Alone, two that say the same would both look good."""
    assert model.gate is not None
    experts, device = len(model.names), context.vector.device
    # Whether an expert is heard, beside others: [2, E, count, E], without it and with it.
    drawn = torch.rand(experts, count, experts, device=device)
    drawn.diagonal(dim1=0, dim2=2).fill_(-1.0)
    without = highest(drawn, model.gate.config.top_k - 1)
    together = without.clone()
    together.diagonal(dim1=0, dim2=2).fill_(True)
    chosen = torch.stack([without, together])
    again = 2 * experts
    pictures = batch["observation"].pictures[:count] * again
    context = Context._make(one[:count].repeat(again, *[1] * (one.dim() - 1)) for one in context)
    targets = TargetsBatch._make(one[:count].repeat(again, *[1] * (one.dim() - 1)) for one in batch["targets"])
    training = model.planner.training
    model.planner.eval()
    plan, _ = model.decide(context, pictures, source, given(chosen.flatten(0, 2)))
    model.planner.train(training)
    loss = planning_losses(plan, targets, model.planner)["loss"].view(2, experts, count)
    return (loss[0] - loss[1]).T


def hold_still(model: nn.Module, names: Sequence[str]) -> None:
    """Have the named parts of a model learn nothing."""
    for name in names:
        model.get_submodule(name).requires_grad_(False)


class PlanningEvaluation:
    """The engine's evaluation hook: the whole validation set over all ranks."""

    def __init__(
        self, dataset: CarlaSequences, size: tuple[int, int], memory: Memory, batch_size: int, workers: int
    ) -> None:
        self.dataset, self.size, self.memory = dataset, size, memory
        self.batch_size, self.workers = batch_size, workers
        self._loader: Any = None

    def __call__(self, model: nn.Module, dist: Distributed) -> dict[str, float | None]:
        assert isinstance(model, DrivingModel)
        if self._loader is None:
            self._loader = evaluation_loader(
                self.dataset, partial(collate, size=self.size), self.batch_size, dist, num_workers=self.workers
            )
        scores = PlanningScores(self.dataset.config.waypoint_seconds)
        for batch in self._loader:
            batch = to_device(batch, dist.device)
            context = self.memory.context(model, batch)
            plan, routing = model.decide(context, batch["observation"].pictures, self.memory.experts)
            scores.add(plan, batch["targets"], None if routing is None else routing.chosen)
        scores.rows = dist.all_gather_objects(scores.rows)
        found = scores.compute()
        for place, name in enumerate(model.names):
            found[f"use/{name}"] = found.pop(f"use_{place}", None)
        return found


def comparable(open_set: Callable[..., CarlaSequences], dist: Distributed) -> CarlaSequences:
    """A set, opened by `open_set`, without moments whose routes are in hindsight where others have routes that were
    told: their errors are not to be averaged. Says what is left out, and what the kind means."""
    found = open_set()
    if HINDSIGHT in found.kinds and TOLD in found.kinds:
        found = open_set(routes=[kind for kind in found.kinds if kind != HINDSIGHT])
        dist.say(f"note: moments of {found.info.path} whose route is in hindsight are left out: {APART_FROM_TOLD}.")
    elif HINDSIGHT in found.kinds:
        dist.say(f"note: routes of {found.info.path} are in hindsight: {APART_FROM_TOLD}.")
    return found


@dataclass(frozen=True)
class PlanningJob:
    """One training of a driving model. experts: frozen, by name. start: weights to begin with, of a model with the same
    experts, and camera: whose pictures that one looked at; hold: parts of the model that don't learn."""

    component: str
    run_dir: Path
    log_dir: Path
    config: PlanningConfig
    experts: Mapping[str, FrozenExpert] = field(default_factory=dict)
    start: Mapping[str, Tensor] | None = None
    camera: CameraSpec | None = None
    hold: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None


def train_planning(
    job: PlanningJob, root: Path, flags: TrainFlags, dist: Distributed, asked: Mapping[str, Any] | None = None
) -> FitResult:
    """Train a driving model on prepared CARLA runs (or on runs, which are prepared first)."""
    config = job.config
    seed = int(config.engine.get("seed", 0))
    train_info, val_info = prepare_splits(root, TASK, flags.prepared_dir, dist)
    torch.manual_seed(seed)
    specs = {name: expert.spec for name, expert in job.experts.items()}
    shape = DrivingConfig(specs, config.context, config.gate, config.planner, config.sequence)
    if shape.looks:
        shape = replace(shape, camera=job.camera or CameraSpec.of_rig(train_info.rig))
        assert shape.camera is not None
        for info in (train_info, val_info):
            shape.camera.must_see(info.rig, str(info.path))
    model = DrivingModel(shape, job.experts, pretrained=flags.pretrained and job.start is None)
    if job.start is not None:
        model.load_state_dict(dict(job.start))
    hold_still(model, job.hold)
    recall = model.context.stem_is_frozen
    train = CarlaSequences(
        train_info.path, config.sequence, shifted=config.shifted, fixed=bool(job.experts), colors=config.augment,
        remembered=1 + config.recolored if recall else None, seed=seed, limit=flags.limit,
    )  # fmt: skip
    val = comparable(partial(CarlaSequences, val_info.path, config.sequence, remembered=1 if recall else None,
                             limit=flags.limit), dist)  # fmt: skip
    routes = {"train": train.route_kinds, "val": val.route_kinds}
    if HINDSIGHT in routes["train"]:
        dist.say(
            f"note: {routes['train'][HINDSIGHT]} of {len(train)} training moments have a route in hindsight, matched "
            "to the map afterwards."
        )
    towns = set(train.times.words["town"]) & set(val.times.words["town"])
    if towns:
        dist.say(f"note: {', '.join(sorted(towns))} is trained in and validated in: errors say little of other towns.")
    if config.shifted > 0.0 and not train.has_shifted:
        dist.say(
            "note: there is no camera that stands aside: the policy learns nothing of how to come back to its lane."
        )
    cache = TokenCache(job.cache or root / "tokens")
    memory = remember(cache, model, job.experts, [train, val], dist)
    torch.manual_seed(seed)
    engine = from_dict(
        EngineConfig,
        {**config.engine, "metric": METRIC, "metric_mode": "min", "resume_command": command_line()},
        "engine",
    )
    size = config.context.size
    step = PlanningStep(model, memory, job.hold)
    dist.say(
        f"Training {job.component} on {len(train)} moments ({len(val)} for validation) of {root}, "
        f"{', '.join(job.experts) or 'no experts'}; run folder {job.run_dir}"
    )
    plain = asdict(config)
    meta = {
        "component": job.component,
        "model_config": shape.plain(),
        "config": plain,
        "recipe": {**{key: value for key, value in plain.items() if key not in _NO_RECIPE}, "hold": list(job.hold)},
        "rig": {key: train_info.rig[key] for key in ("note", "cameras")},
        "dataset_fingerprint": {"train": train_info.fingerprint, "val": val_info.fingerprint},
        "data_root": str(train_info.path),
        "routes": routes,
        "towns": sorted(set(train.times.words["town"].tolist())),
        **job.origin,
    }
    if asked is not None:
        meta["asked"] = dict(asked)
    result = fit(
        step,
        dataset=train,
        collate=partial(collate, size=size),
        evaluate=PlanningEvaluation(val, size, memory, config.eval_batch_size, engine.num_workers),
        config=engine,
        run_dir=job.run_dir,
        log_dir=job.log_dir,
        meta=meta,
        dist=dist,
        sample_weights=1.0 + config.changes * train.speed_changes().clip(max=1.0) if config.changes else None,
        param_groups=layer_groups(model, engine, config.backbone_lr_factor, backbone="stem"),
    )
    if dist.is_main:
        dist.say(f"{planning_words(result.metrics)} after {result.steps} steps ({result.seconds:.0f} s)")
        dist.say(f"Best weights: {job.run_dir / 'best.pth'}")
    return result


def planning_words(metrics: Mapping[str, float | None]) -> str:
    """The errors in words."""
    units = {"path_error": "m", "ade": "m", "speed_mae": "m/s"}
    found = [f"{key} {metrics[key]:.2f} {unit}" for key, unit in units.items() if metrics.get(key) is not None]
    return ", ".join(found)
