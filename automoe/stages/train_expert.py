"""Training an image expert on a prepared set: the one path from flags to `best.pth` that every expert's stage takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automoe.config import from_dict, profile_path, project_root, read_json
from automoe.data.dataset import PreparedDataset, collate
from automoe.data.prepared import PreparedInfo, ensure_prepared, progress_bar
from automoe.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed, setup
from automoe.engine.loader import evaluation_loader
from automoe.engine.loop import FitResult, fit
from automoe.errors import ConfigError
from automoe.experts.evaluation import evaluate_expert
from automoe.experts.expert import ExpertStep, ImageExpert
from automoe.experts.registry import build_expert
from automoe.stages.entry import command_line

COARSEST_STRIDE = 32
"""Of the experts' feature maps."""


@dataclass(frozen=True)
class StageConfig:
    """A profile's config.json: the expert's model, its input size (height, width), augmentation, and the engine."""

    size: tuple[int, int]
    crop: tuple[int, int] | None = None
    """Height and width of the pieces that training cuts out of the input; None trains on the whole input."""
    model: dict[str, Any] = field(default_factory=dict)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    engine: dict[str, Any] = field(default_factory=dict)
    backbone_lr_factor: float = 1.0
    """The backbone learns at this share of the learning rate: it knows something already."""
    eval_batch_size: int = 8

    def __post_init__(self) -> None:
        # Otherwise the coarse maps of whole inputs would not lie where those of pieces lie, nor where boxes are said.
        for name, size in (("size", self.size), ("crop", self.crop or self.size)):
            if not all(side > 0 and side % COARSEST_STRIDE == 0 for side in size):
                raise ConfigError(f"{name} is {list(size)}; give multiples of {COARSEST_STRIDE} for height and width.")
        if self.crop and any(piece > whole for piece, whole in zip(self.crop, self.size)):
            raise ConfigError(f"crop is {list(self.crop)}, larger than the size {list(self.size)} that it is cut from.")

    def train_transform(self) -> TrainTransform:
        """What training does to a picture: pieces of the input, or all of it, under the augmentation."""
        return TrainTransform(self.crop or self.size, self.augment, self.size)


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


def load_stage_config(component: str, flags: TrainFlags) -> StageConfig:
    """The profile's (or the named) config.json with the flags on top. Raises ConfigError naming a wrong key."""
    path = flags.config or profile_path(component, flags.profile)
    config = from_dict(StageConfig, read_json(path), str(path))
    given = {name: getattr(flags, name) for name in ENGINE_FLAGS if getattr(flags, name) is not None}
    engine = dict(config.engine)
    if flags.epochs is not None:
        # Whoever asks for epochs means epochs: a profile's own bound in steps, and the evaluation that goes with it,
        # would silently win.
        engine.pop("max_steps", None)
        engine.pop("eval_every", None)
    model = dict(config.model)
    if not flags.pretrained:
        model["norm"] = "batch"  # a random start has no statistics to fold
        model["frozen_stages"] = 0
    return replace(config, engine={**engine, **given}, model=model)


def train_expert(
    kind: str, component: str, data_root: Path | None, flags: TrainFlags, *, default_root: str
) -> FitResult:
    """Train the expert `kind` on `data_root` (raw or prepared) and leave `best.pth` in its run folder.

    component: names the config folder and the checkpoint folder. Raises AutoMoEErrors, and SystemExit after a signal.
    """
    stage = load_stage_config(component, flags)
    output_root = flags.output_root or project_root()
    run_name = flags.run_name or default_run_name(flags)
    run_dir = output_root / "models" / "checkpoints" / component / run_name
    with setup(flags.device) as dist:
        root = data_root or project_root() / default_root
        train_info, val_info = prepare_splits(root, kind, flags.prepared_dir, dist)
        torch.manual_seed(int(stage.engine.get("seed", 0)))
        resuming = flags.resume != "never" and (flags.resume != "auto" or (run_dir / "last.pth").is_file())
        # A resumed run loads its weights from last.pth: fetching the pretrained ones again would be for nothing.
        model: ImageExpert = build_expert(kind, stage.model, pretrained=flags.pretrained and not resuming)
        engine = from_dict(
            EngineConfig, {**stage.engine, "metric": model.metric, "resume_command": command_line()}, "engine"
        )
        train_set = PreparedDataset(
            train_info.path,
            kind,
            stage.train_transform(),
            seed=engine.seed,
            limit=flags.limit,
        )
        val_set = PreparedDataset(val_info.path, kind, EvalTransform(stage.size), limit=flags.limit)
        dist.say(describe(kind, train_set, val_set, stage, run_dir))
        step = ExpertStep(model, count_reducer(dist))
        result = fit(
            step,
            dataset=train_set,
            collate=collate,
            evaluate=make_evaluate(val_set, stage.eval_batch_size, engine.num_workers, dist),
            config=engine,
            run_dir=run_dir,
            log_dir=output_root / "models" / "runs" / component / run_name,
            meta=checkpoint_meta(kind, component, model, stage, train_info, val_info),
            dist=dist,
            param_groups=layer_groups(model, engine, stage.backbone_lr_factor),
        )
        dist.say(closing_words(model, result, run_dir))
    return result


def default_run_name(flags: TrainFlags) -> str:
    """The profile's name, which is where later stages look; for a config of one's own, its file's or folder's name."""
    if flags.config is None:
        return flags.profile
    return flags.config.stem if flags.config.stem != "config" else flags.config.resolve().parent.name


def prepare_splits(
    root: Path, kind: str, prepared_dir: Path | None, dist: Distributed
) -> tuple[PreparedInfo, PreparedInfo]:
    """The prepared training and validation sets of one task; the main process prepares what isn't there yet."""

    def both() -> list[Path]:
        paths = []
        for split in ("train", "val"):
            with progress_bar(f"prepare {kind} {split}") as progress:
                paths.append(ensure_prepared(root, kind, split, prepared_dir, progress=progress).path)
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


def make_evaluate(
    val_set: PreparedDataset, batch_size: int, num_workers: int, dist: Distributed
) -> Callable[[nn.Module, Distributed], dict[str, float | None]]:
    """The engine's evaluation hook; its loader is made at the first call and kept."""
    loader: list[Any] = []

    def evaluate(model: nn.Module, dist: Distributed) -> dict[str, float | None]:
        if not loader:
            loader.append(evaluation_loader(val_set, collate, batch_size, dist, num_workers=num_workers))
        assert isinstance(model, ImageExpert)
        return evaluate_expert(model, val_set, loader[0], dist)

    return evaluate


def checkpoint_meta(
    kind: str,
    component: str,
    model: ImageExpert,
    stage: StageConfig,
    train_info: PreparedInfo,
    val_info: PreparedInfo,
) -> dict[str, Any]:
    """What a checkpoint says about itself: enough to run it with nothing else at hand."""
    return {
        "expert": kind,
        "component": component,
        "model_config": asdict(model.config),  # type: ignore[call-overload]
        "config": asdict(stage),
        "recipe": {
            "size": list(stage.size),
            "crop": list(stage.crop) if stage.crop else None,
            "augment": asdict(stage.augment),
            "backbone_lr_factor": stage.backbone_lr_factor,
        },
        "classes": list(model.classes),
        "preprocess": {
            "size": list(stage.size),
            "resize": "letterbox",
            "mean": (model.mean / 255).flatten().tolist(),
            "std": (model.std / 255).flatten().tolist(),
            "color": "RGB",
        },
        "postprocess": {"scores": "sigmoid"} if kind == "detection" else {"mask": "argmax at raw size"},
        "rig": {"cameras": 1, "note": "a single front camera of unknown mounting, as BDD100K publishes none"},
        "dataset_fingerprint": {"train": train_info.fingerprint, "val": val_info.fingerprint},
        "data_root": str(train_info.path),
    }


def layer_groups(model: ImageExpert, engine: EngineConfig, backbone_factor: float) -> list[dict[str, Any]]:
    """Parameter groups for the optimizer: the backbone at its own rate; biases and norms without weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
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


def describe(kind: str, train_set: PreparedDataset, val_set: PreparedDataset, stage: StageConfig, run_dir: Path) -> str:
    """What is about to be trained, in a line."""
    height, width = stage.size
    pieces = f" in pieces of {stage.crop[1]}x{stage.crop[0]}" if stage.crop else ""
    return (
        f"Training the {kind} expert on {len(train_set)} images ({len(val_set)} for validation) "
        f"at {width}x{height}{pieces}; run folder {run_dir}"
    )


def closing_words(model: ImageExpert, result: FitResult, run_dir: Path) -> str:
    """The result of a run in two lines."""
    shown = [f"{key} {result.metrics[key]:.1f}" for key in model.headline if result.metrics.get(key) is not None]
    return (
        f"{', '.join(shown)} after {result.steps} steps ({result.seconds:.0f} s)\nBest weights: {run_dir / 'best.pth'}"
    )
