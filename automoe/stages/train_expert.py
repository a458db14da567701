"""Training an expert on a prepared set: the one path from flags to `best.pth` that every expert's stage takes.

What differs from stage to stage (its config, its data, what its checkpoints say about themselves) is an `ExpertStage`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from automoe.config import from_dict, profile_path, project_root, read_json
from automoe.data.prepared import PreparedInfo, ensure_prepared
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed, setup
from automoe.engine.loader import evaluation_loader
from automoe.engine.loop import FitResult, fit
from automoe.engine.manifest import read_manifest
from automoe.errors import ConfigError
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.expert import Expert, ExpertStep
from automoe.experts.registry import build_expert
from automoe.progress import progress_bar
from automoe.stages.entry import command_line

COARSEST_STRIDE = 32
"""Of the image experts' feature maps."""


@dataclass(frozen=True)
class StageConfig:
    """A profile's config.json: the expert's model and the engine, and in subclasses what the data needs."""

    model: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    backbone_lr_factor: float = 1.0
    """The image backbone learns at this share of the learning rate: it knows something already."""
    eval_batch_size: int = 8


C = TypeVar("C", bound=StageConfig)


@dataclass(frozen=True)
class StageData:
    """The open data of a stage. train, val: map-style data sets; val keeps its rows at hand (`ScoredDataset`). meta:
    what the checkpoint says about the data: preprocess, rig, fingerprints. words: what there is, for the console.
    model: what the data adds to the model's config."""

    train: Any
    val: Any
    collate: Callable[[list], dict]
    meta: dict[str, Any]
    words: str
    sample_weights: Any = None
    model: Mapping[str, Any] = field(default_factory=dict)


class ExpertStage(ABC, Generic[C]):
    """One expert's training on one kind of data.

    kind: the expert's registered name. component: names the config folder and the checkpoint folder. default_root:
    where its data is looked for in the checkout.
    """

    kind: str
    component: str
    default_root: str
    config_type: type[C]

    def configure(self, flags: TrainFlags) -> C:
        """The profile's (or the named) config.json with the flags on top."""
        return load_stage_config(self.config_type, self.component, flags)

    @abstractmethod
    def open(self, root: Path, config: C, flags: TrainFlags, seed: int, dist: Distributed) -> StageData:
        """The data, prepared if need be."""

    def build(self, config: C, flags: TrainFlags, resuming: bool, dist: Distributed) -> Expert:
        """The model that training begins with."""
        # A resumed run loads its weights from last.pth: fetching the pretrained ones again would be for nothing.
        return build_expert(self.kind, config.model, pretrained=flags.pretrained and not resuming)

    def param_groups(self, model: Expert, config: C, engine: EngineConfig) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        return layer_groups(model, engine, config.backbone_lr_factor)

    def origin(self) -> dict[str, Any]:
        """What the weights that training begins with are, for a checkpoint: `source`, what there is to say of them, and
        `start`, a hash of them. Nothing for a backbone's own."""
        return {}

    def on_start(self, model: Expert, evaluate: Evaluation, run_dir: Path, dist: Distributed) -> None:
        """Called by every process before the first step of a run that begins."""

    def closing(self, model: Expert, result: FitResult, run_dir: Path) -> str:
        """What is said at the end."""
        return closing_words(model, result, run_dir)

    def postprocess(self) -> dict[str, Any]:
        """How the model's outputs become predictions, for a checkpoint's reader."""
        return {}

    def keep_best(self, metrics: Any, run_dir: Path) -> None:
        """Called by the main process after a best evaluation, with its accumulator."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """The flags that expert trainers share. What is not given comes from the profile's config.json."""

    profile: str = "base"
    """tiny (minutes on a laptop), small (half an hour on two cores) or base (one GPU)."""
    config: Path | None = None
    """A config.json of your own instead of a profile's."""
    run_name: str | None = None
    """Names the run's folder; the profile's name if not given, which is where later stages look."""
    output_root: Path | None = None
    """Where models/checkpoints, models/runs and logs go; the checkout if not given."""
    prepared_dir: Path | None = None
    """Where prepared data goes; a folder inside the data root if not given."""
    epochs: int | None = None
    batch_size: int | None = None
    """Samples per process; the global batch is printed."""
    learning_rate: float | None = None
    """Taken as it is: not scaled with the number of processes."""
    weight_decay: float | None = None
    num_workers: int | None = None
    """Loader processes per training process."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto falls back to the CPU and says so."""
    seed: int | None = None
    resume: str = "auto"
    """auto goes on from last.pth if there is one, never starts anew, a path goes on from that file."""
    max_steps: int | None = None
    """Stop after so many steps, for quick looks."""
    limit: int | None = None
    """Use only so many training and validation images, for quick looks."""
    accumulate: int | None = None
    """Micro-batches per step."""
    warmup_steps: int | None = None
    clip_norm: float | None = None
    ema_decay: float | None = None
    """Decay of the averaged weights that are evaluated and saved; 0 for none."""
    eval_every: int | None = None
    """Epochs between evaluations."""
    save_steps: int | None = None
    """Write last.pth every so many steps as well."""
    amp: str | None = None
    """auto (bf16 where the device has it), bf16 or off."""
    compile: bool | None = None
    """torch.compile the model."""
    pretrained: bool = True
    """Start the backbone from its ImageNet weights."""


ENGINE_FLAGS = [
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "num_workers",
    "seed",
    "max_steps",
    "accumulate",
    "warmup_steps",
    "clip_norm",
    "ema_decay",
    "eval_every",
    "save_steps",
    "amp",
    "compile",
    "resume",
]


def load_stage_config(config_type: type[C], component: str, flags: TrainFlags) -> C:
    """The profile's (or the named) config.json with the flags on top. Raises ConfigError naming a wrong key."""
    path = flags.config or profile_path(component, flags.profile)
    config = from_dict(config_type, read_json(path), str(path))
    given = {name: getattr(flags, name) for name in ENGINE_FLAGS if getattr(flags, name) is not None}
    engine = dict(config.engine)
    if flags.epochs is not None:
        # Whoever asks for epochs means epochs: a profile's own bound in steps, and the evaluation that goes with it,
        # would silently win.
        engine.pop("max_steps", None)
        engine.pop("eval_every", None)
    return replace(config, engine={**engine, **given})


def train_expert(stage: ExpertStage[Any], data_root: Path | None, flags: TrainFlags) -> FitResult:
    """Train a stage's expert on `data_root` (raw or prepared) and leave `best.pth` in its run folder.

    Raises AutoMoEErrors, and SystemExit after a signal.
    """
    output_root = flags.output_root or project_root()
    run_name = flags.run_name or default_run_name(flags)
    run_dir = output_root / "models" / "checkpoints" / stage.component / run_name
    root = data_root or project_root() / stage.default_root
    asked = what_is_asked(stage.config_type, stage.component, root, flags)
    with setup(flags.device) as dist:
        if (done := finished_before(run_dir, root, asked, flags, dist.say)) is not None:
            return done
        config = stage.configure(flags)
        seed = int(config.engine.get("seed", 0))
        data = stage.open(root, config, flags, seed, dist)
        config = replace(config, model={**config.model, **data.model})
        torch.manual_seed(seed)
        resuming = flags.resume != "never" and (flags.resume != "auto" or (run_dir / "last.pth").is_file())
        model = stage.build(config, flags, resuming, dist)
        engine = from_dict(
            EngineConfig, {**config.engine, "metric": model.metric, "resume_command": command_line()}, "engine"
        )
        dist.say(f"Training the {stage.kind} expert on {data.words}; run folder {run_dir}")
        evaluate = Evaluation(data, config.eval_batch_size, engine.num_workers)
        result = fit(
            ExpertStep(model, count_reducer(dist)),
            dataset=data.train,
            collate=data.collate,
            evaluate=evaluate,
            config=engine,
            run_dir=run_dir,
            log_dir=output_root / "models" / "runs" / stage.component / run_name,
            meta=checkpoint_meta(stage, model, config, data) | stage.origin() | {"asked": asked},
            dist=dist,
            param_groups=stage.param_groups(model, config, engine),
            sample_weights=data.sample_weights,
            on_start=lambda: stage.on_start(model, evaluate, run_dir, dist),
            on_best=lambda: stage.keep_best(evaluate.metrics, run_dir),
        )
        if dist.is_main:
            dist.say(stage.closing(model, result, run_dir))
    return result


_FREE_FLAGS = ("run_name", "output_root", "prepared_dir", "device", "resume", "num_workers", "data_root")
"""Flags that change nothing of what is learnt."""


def what_is_asked(config_type: type[StageConfig], component: str, root: Path, flags: TrainFlags) -> dict[str, Any]:
    """What a command asks for, as plain values: the config, the flags and the data. Two equal ones ask for one run."""
    config = load_stage_config(config_type, component, flags)
    own = {key: value for key, value in asdict(flags).items() if key not in _FREE_FLAGS}
    own["config"] = {**asdict(config), "engine": {k: v for k, v in config.engine.items() if k not in _FREE_FLAGS}}
    return json.loads(json.dumps({**own, "data_root": str(root.resolve())}, default=str))


def finished_before(
    run_dir: Path, root: Path, asked: Mapping[str, Any], flags: TrainFlags, say: Callable[[str], None]
) -> FitResult | None:
    """The result of a run that its manifest calls finished and that is what is asked for, if what it was made from,
    the data or the source expert, is no longer there to compare, and a sentence about it; None otherwise."""
    if flags.resume != "auto":
        return None
    manifest = read_manifest(run_dir)
    if manifest.get("state") != "finished" or manifest.get("asked") != asked or not (run_dir / "best.pth").is_file():
        return None
    source = (manifest.get("source") or {}).get("source")
    gone = not root.exists() or (source is not None and not Path(source).is_file())
    if not gone:
        return None
    say(f"Already finished, and what it was made from is gone: {run_dir / 'best.pth'} is kept.")
    return FitResult(**manifest["result"])


def default_run_name(flags: TrainFlags) -> str:
    """The profile's name, which is where later stages look; for a config of one's own, its file's or folder's name."""
    if flags.config is None:
        return flags.profile
    return flags.config.stem if flags.config.stem != "config" else flags.config.resolve().parent.name


def prepare_splits(
    root: Path, task: str, prepared_dir: Path | None, dist: Distributed, options: Mapping[str, Any] | None = None
) -> tuple[PreparedInfo, PreparedInfo]:
    """The prepared training and validation sets of one task; the main process prepares what isn't there yet."""

    def both() -> list[Path]:
        paths = []
        for split in ("train", "val"):
            with progress_bar(f"prepare {task} {split}") as progress:
                info = ensure_prepared(root, task, split, prepared_dir, progress=progress, options=options or {})
                paths.append(info.path)
        return paths

    train, val = dist.from_main(both)
    return PreparedInfo.load(train), PreparedInfo.load(val)


def count_reducer(dist: Distributed) -> Callable[[int], float]:
    """A count of this process to its mean over processes, so that DDP's averaged gradient is the global one.

    Where all processes count nothing, as if they had counted one among them.
    """

    def mean_count(count: int) -> float:
        if dist.world_size == 1:
            return float(max(1, count))
        total = dist.all_reduce_sum(torch.tensor(float(count), device=dist.device))
        return max(1.0, float(total)) / dist.world_size

    return mean_count


class Evaluation:
    """The engine's evaluation hook; its loader is made at the first call and kept. metrics: the last accumulator."""

    def __init__(self, data: StageData, batch_size: int, num_workers: int) -> None:
        self.data, self.batch_size, self.num_workers = data, batch_size, num_workers
        self.metrics: Any = None
        self._loader: Any = None

    def __call__(self, model: nn.Module, dist: Distributed) -> dict[str, float | None]:
        assert isinstance(model, Expert)
        if self._loader is None:
            self._loader = evaluation_loader(
                self.data.val, self.data.collate, self.batch_size, dist, num_workers=self.num_workers
            )
        return evaluate_expert(model, self.data.val, self._loader, dist, keep=self._keep)

    def _keep(self, metrics: Any) -> None:
        self.metrics = metrics


def checkpoint_meta(stage: ExpertStage[Any], model: Expert, config: StageConfig, data: StageData) -> dict[str, Any]:
    """What a checkpoint says about itself: enough to run it with nothing else at hand."""
    plain = asdict(config)
    return {
        "expert": stage.kind,
        "component": stage.component,
        "model_config": asdict(model.config),  # type: ignore[call-overload]
        "config": plain,
        "recipe": {key: value for key, value in plain.items() if key not in ("model", "engine", "eval_batch_size")},
        "classes": list(model.classes),
        "postprocess": stage.postprocess(),
        **data.meta,
        "preprocess": {**data.meta["preprocess"], **model.normalisation()},
    }


def layer_groups(
    model: nn.Module, engine: EngineConfig, backbone_factor: float, backbone: str = "backbone"
) -> list[dict[str, Any]]:
    """Parameter groups for the optimizer: the backbone, any module of that name, at its own rate; biases, norms and
    lone vectors without weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((backbone in name.split("."), parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise ConfigError("every parameter of the model is frozen; lower model.frozen_stages.")
    return [
        {
            "params": parameters,
            "lr": engine.learning_rate * (backbone_factor if in_backbone else 1.0),
            "weight_decay": engine.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]


def headline_words(model: Expert, metrics: Mapping[str, float | None]) -> str:
    """The metrics that a person looks at first, in words."""
    found = {key: metrics.get(key) for key in model.headline}
    return ", ".join(f"{key} {value:.{model.decimals}f}" for key, value in found.items() if value is not None)


def closing_words(model: Expert, result: FitResult, run_dir: Path) -> str:
    """The result of a run in two lines."""
    return (
        f"{headline_words(model, result.metrics)} after {result.steps} steps ({result.seconds:.0f} s)\n"
        f"Best weights: {run_dir / 'best.pth'}"
    )
