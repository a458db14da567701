"""The CARLA stage: experts trained on other data are fine-tuned on CARLA recordings, from their checkpoints.

The model is the source's own, with all its weights; what the recordings' labels don't tell apart is merged
(`ClassMerge`). The backbone is held still first, then learns more slowly the nearer a layer is to the picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import torch

from automoe.config import profile_path, project_root, read_json
from automoe.data.carla_prepared import TASK, CarlaImages
from automoe.data.dataset import collate
from automoe.data.transforms import EvalTransform
from automoe.engine import checkpoint
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed
from automoe.engine.loop import FitResult
from automoe.engine.manifest import read_manifest
from automoe.errors import CheckpointError, ConfigError
from automoe.experts.expert import Expert
from automoe.experts.inference import TrainedExpert, load_expert, load_image_branch
from automoe.experts.registry import build_expert
from automoe.files import write_text
from automoe.stages import bdd100k, nuscenes
from automoe.stages.image_stage import ImageStageConfig, check_size, random_start
from automoe.stages.train_expert import (
    Evaluation,
    ExpertStage,
    StageData,
    TrainFlags,
    closing_words,
    default_run_name,
    headline_words,
    layer_groups,
    load_stage_config,
    prepare_splits,
    train_expert,
)

DEFAULT_ROOT = "datasets/carla/preprocessed"
Task = Literal["detection", "drivable", "segmentation"]

SOURCE_METRICS = "source.json"
"""In the folder of a run: where its weights are from, and the metrics of the source before anything was learnt."""


@dataclass(frozen=True, kw_only=True)
class CarlaStageConfig(ImageStageConfig):
    """A fine-tuning's config.json. model: what differs from the source's model config (its losses, say); the rest of it
    comes from the source."""

    size: tuple[int, int] = (0, 0)
    """Height and width of the input; the source's own if not given."""
    layer_decay: float = 1.0
    """Each earlier stage of the backbone learns at this share of the next one's rate."""
    hold_backbone_steps: int = 0
    """Steps in which the backbone does not learn at all."""

    def __post_init__(self) -> None:
        if self.size != (0, 0):
            super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay is {self.layer_decay}; give a number above 0 and up to 1.")
        if self.hold_backbone_steps < 0:
            raise ConfigError(f"hold_backbone_steps is {self.hold_backbone_steps}; give 0 or more.")


@dataclass(frozen=True, kw_only=True)
class CarlaFlags(TrainFlags):
    """What both CARLA trainers are told beside the usual."""

    data_root: Path | None = None
    """CARLA runs, or what `automoe prepare carla` made of them; datasets/carla/preprocessed if not given."""
    source: str | None = None
    """The source expert: a best.pth, or a run's name; the newest run's if not given."""
    from_scratch: bool = False
    """Start from the backbone's ImageNet weights, with the network of the source expert but none of its weights."""
    layer_decay: float | None = None
    """Each earlier stage of the backbone learns at this share of the next one's rate."""
    hold_backbone_steps: int | None = None
    """Steps in which the backbone does not learn."""
    cost_class: float | None = None
    """Weight of the class in matching."""
    cost_bbox: float | None = None
    """Weight of the boxes' L1 distance in matching."""
    cost_giou: float | None = None
    """Weight of the boxes' overlap in matching."""
    bbox_loss_weight: float | None = None
    """Weight of the boxes' L1 distance in the loss."""


@dataclass(frozen=True, kw_only=True)
class CarlaBddFlags(CarlaFlags):
    """Fine-tune one BDD100K expert on CARLA."""

    task: Task = "detection"
    """Which expert."""


@dataclass(frozen=True, kw_only=True)
class CarlaNuscenesFlags(CarlaFlags):
    """Fine-tune the image branch of the nuScenes expert on CARLA."""

    num_queries: int | None = None
    """Boxes that the decoder may say in a picture."""


@dataclass
class CarlaStage(ExpertStage[CarlaStageConfig]):
    """Fine-tuning of an image expert. branch: the part of the source's model config that is this expert's own."""

    kind: str
    component: str
    source_component: str
    branch: str | None = None
    default_root: str = DEFAULT_ROOT
    config_type: type[CarlaStageConfig] = CarlaStageConfig
    source: TrainedExpert | None = None
    words: list[str] = field(default_factory=list)
    """About how the source was found, for the console."""

    def configure(self, flags: TrainFlags) -> CarlaStageConfig:
        """The config with the flags on top and the source's model beneath. Finds the source."""
        assert isinstance(flags, CarlaFlags)
        config = load_stage_config(self.config_type, self.component, flags)
        given = {key: getattr(flags, key) for key in ("layer_decay", "hold_backbone_steps")}
        config = replace(config, **{key: value for key, value in given.items() if value is not None})
        own = {key: getattr(flags, name, None) for name, key in nuscenes.MODEL_FLAGS.items()}
        own = {key: value for key, value in own.items() if value is not None}
        if own and self.kind not in ("detection", "nuscenes_2d"):
            raise ConfigError(f"{', '.join(own)} belong to boxes; the {self.kind} expert has none.")
        output_root = flags.output_root or project_root()
        if flags.from_scratch:
            model, size = self._untrained(output_root, flags)
        else:
            wanted = flags.source or self._source_of_run(output_root, flags)
            self.source = self._find(output_root, wanted)
            model, size = self.source.payload["model_config"], self.source.size
        if self.branch:
            model = model.get(self.branch, {})
        model = {**model, **config.model, **own}
        if flags.from_scratch and not flags.pretrained:
            model = random_start(model)
        if config.size == (0, 0):
            check_size("size", size)
            config = replace(config, size=size)
        return replace(config, model=model)

    def _find(self, output_root: Path, wanted: str | None) -> TrainedExpert:
        """The source expert: the named one, or the newest that can be one. Raises CheckpointError."""
        if wanted is not None:
            return self._load(named_source(output_root, self.source_component, wanted))
        found = sources(output_root, self.source_component)
        for path in found:
            # A nuScenes expert of the LiDAR alone has no image branch to go on from; anything else is a mistake.
            if self.branch is None or checkpoint.load(path)["model_config"].get("cameras"):
                return self._load(path)
            self.words.append(f"{path} is newer, but has no image branch: passed over.")
        folder = output_root / "models" / "checkpoints" / self.source_component
        raise CheckpointError(
            f"there is no source expert {'with cameras ' if found else ''}under {folder}; train it first, name its "
            "best.pth with --source, or start without one with --from_scratch."
        )

    def _load(self, path: Path) -> TrainedExpert:
        expert = load_image_branch(path) if self.branch else load_expert(path)
        if expert.model.kind != self.kind:
            raise CheckpointError(f"{path} is a {expert.model.kind} expert; a {self.kind} one is wanted.")
        return expert

    def _source_of_run(self, output_root: Path, flags: CarlaFlags) -> str | None:
        """The source that a run which goes on began with, whatever has been trained since."""
        run_dir = output_root / "models" / "checkpoints" / self.component / (flags.run_name or default_run_name(flags))
        if flags.resume == "never" or not (run_dir / "last.pth").is_file():
            return None
        said = read_manifest(run_dir).get("source")
        return said["source"] if said else None

    def _untrained(self, output_root: Path, flags: CarlaFlags) -> tuple[dict[str, Any], tuple[int, int]]:
        """The model config and input size of the source expert; those that a profile's would have where there is no
        source at all."""
        if flags.source is not None or sources(output_root, self.source_component):
            source = self._find(output_root, flags.source)
            self.words.append(f"The network is that of {source.path}.")
            return source.payload["model_config"], source.size
        path = profile_path(self.source_component, flags.profile)
        self.words.append(f"There is no source expert: the network is that of {path}.")
        plain = read_json(path)
        height, width = plain["size"]
        return plain.get("model", {}), (height, width)

    def open(self, root: Path, config: CarlaStageConfig, flags: TrainFlags, seed: int, dist: Distributed) -> StageData:
        train_info, val_info = prepare_splits(root, TASK, flags.prepared_dir, dist)
        train = CarlaImages(
            train_info.path, self.kind, config.train_transform(), seed=seed, limit=flags.limit, aside=True
        )
        val = CarlaImages(val_info.path, self.kind, EvalTransform(config.size), limit=flags.limit)
        if train.collapse != val.collapse or dict(train_info.options) != dict(val_info.options):
            raise ConfigError(
                f"{train_info.path} and {val_info.path} were not prepared alike (towns, cameras, classes); prepare "
                "both splits from one tree with the same options."
            )
        for info in (train_info, val_info):
            for note in info.notes:
                dist.say(f"{info.split}: {note}")
        height, width = config.size
        meta = {
            "dataset": "carla",
            "preprocess": {"size": list(config.size), "resize": "letterbox"},
            "rig": {key: train_info.rig[key] for key in ("note", "cameras")},
            "dataset_fingerprint": {"train": train_info.fingerprint, "val": val_info.fingerprint},
            "data_root": str(train_info.path),
        }
        aside = f", {train.from_aside} of them seen from aside" if train.from_aside else ""
        words = f"{len(train)} CARLA frames{aside} ({len(val)} for validation) at {width}x{height}"
        return StageData(train, val, collate, meta, words, model={"collapse": dict(train.collapse)})

    def build(self, config: CarlaStageConfig, flags: TrainFlags, resuming: bool, dist: Distributed) -> Expert:
        pretrained = self.source is None and flags.pretrained and not resuming
        model = build_expert(self.kind, config.model, pretrained=pretrained)
        for line in self.words:
            dist.say(line)
        if self.source is None:
            start = "ImageNet" if flags.pretrained else "random"
            dist.say(f"From scratch: the backbone has its {start} weights, and nothing comes from an expert.")
            return model
        report = checkpoint.load_weights(model, self.source.model.state_dict(), source=str(self.source.path))
        preprocess = self.source.payload["preprocess"]
        model.set_normalisation(tuple(preprocess["mean"]), tuple(preprocess["std"]))
        for line in self._class_map(model, report):
            dist.say(line)
        return model

    def _class_map(self, model: Expert, report: checkpoint.KeyReport) -> list[str]:
        assert self.source is not None
        collapse: Mapping[str, str] = getattr(model.config, "collapse", {})  # type: ignore[union-attr]
        mapped = [f"{name} -> {collapse[name]}" if name in collapse else name for name in model.classes]
        return [
            f"From {self.source.path} ({len(report.loaded)} tensors).",
            f"Classes, source -> here: {', '.join(mapped)}",
            f"Newly initialised: {', '.join(report.missing) or 'nothing'}.",
        ]

    def param_groups(self, model: Expert, config: CarlaStageConfig, engine: EngineConfig) -> list[dict[str, Any]]:
        """The head's groups, and the backbone's, stage by stage."""
        if config.layer_decay == 1.0 and config.hold_backbone_steps == 0:
            return layer_groups(model, engine, config.backbone_lr_factor)
        depths = {f"backbone.{name}": depth for name, depth in model.backbone.depths().items()}  # type: ignore[union-attr]
        groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((depths.get(name, -1), parameter.ndim > 1), []).append(parameter)

        def share(depth: int) -> float:
            return config.backbone_lr_factor * config.layer_decay**depth if depth >= 0 else 1.0

        return [
            {
                "params": parameters,
                "lr": engine.learning_rate * share(depth),
                "weight_decay": engine.weight_decay if decays else 0.0,
                "hold_steps": config.hold_backbone_steps if depth >= 0 else 0,
            }
            for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]

    def origin(self) -> dict[str, Any]:
        """The source, and a hash of its file: a run from other weights is another run."""
        if self.source is None:
            return {"source": None, "start": None}
        with self.source.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"source": _origin_of(self.source), "start": digest}

    def on_start(self, model: Expert, evaluate: Evaluation, run_dir: Path, dist: Distributed) -> None:
        """Scores the source as it is, so that there is something to compare with."""
        if self.source is None:
            return
        metrics = evaluate(model, dist)
        if dist.is_main:
            said = {**_origin_of(self.source), "metrics": metrics}
            write_text(run_dir / SOURCE_METRICS, json.dumps(said, indent=1) + "\n")
        dist.say(f"The source as it is, on these frames: {headline_words(model, metrics)}")

    def closing(self, model: Expert, result: FitResult, run_dir: Path) -> str:
        """The result beside what the source scored before."""
        words = closing_words(model, result, run_dir)
        metrics = source_metrics(run_dir)
        return words if metrics is None else f"{words}\nBefore, the source as it was: {headline_words(model, metrics)}"

    def postprocess(self) -> dict[str, Any]:
        dense = self.kind in ("drivable", "segmentation")
        return {"mask": "argmax at raw size"} if dense else {"scores": "sigmoid"}


def _origin_of(source: TrainedExpert) -> dict[str, Any]:
    """Where a source is and how it was trained, for the checkpoint and for source.json."""
    payload = source.payload
    steps = payload.get("progress", {}).get("step")
    return {"source": str(source.path.resolve()), "commit": payload.get("commit"), "steps": steps}


def source_metrics(run_dir: Path) -> dict[str, float | None] | None:
    """What the source of a run scored on its frames before anything was learnt; None for a run from scratch. Raises
    CheckpointError where the file is damaged."""
    path = run_dir / SOURCE_METRICS
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text())["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); delete it to go on without.") from error


def named_source(output_root: Path, component: str, wanted: str) -> Path:
    """A source expert's best.pth: a path, or the run of that name. Raises CheckpointError."""
    folder = output_root / "models" / "checkpoints" / component
    path = Path(wanted) if wanted.endswith(".pth") else folder / wanted / "best.pth"
    if not path.is_file():
        raise CheckpointError(f"there is no source checkpoint {path}.")
    return path


def sources(output_root: Path, component: str) -> list[Path]:
    """The best.pth of all runs of a source expert, the newest first."""
    folder = output_root / "models" / "checkpoints" / component
    return sorted(folder.glob("*/best.pth"), key=lambda path: (-path.stat().st_mtime_ns, path))


def component_of(task: str) -> str:
    """The folder name of a task's configs, checkpoints and runs."""
    return "carla_nuscenes_2d_ddp" if task == "nuscenes_2d" else f"carla_{task}_expert_ddp"


def stage_of(task: str) -> CarlaStage:
    """The stage that fine-tunes a task's expert; nuscenes_2d is the image branch of the nuScenes expert."""
    if task == "nuscenes_2d":
        return CarlaStage(task, component_of(task), nuscenes.COMPONENT, branch="image")
    return CarlaStage(task, component_of(task), bdd100k.component_of(task))


def train_carla_bdd(flags: Annotated[CarlaBddFlags, cyclopts.Parameter(name="*")] = CarlaBddFlags()) -> FitResult:
    """Fine-tune a BDD100K expert (detection, drivable area or semantic segmentation) on CARLA recordings, on one device
    or, under torchrun, on many. Leaves models/checkpoints/carla_<task>_expert_ddp/<run_name>/best.pth.
    """
    return train_expert(stage_of(flags.task), flags.data_root, flags)


def train_carla_nuscenes_2d(
    flags: Annotated[CarlaNuscenesFlags, cyclopts.Parameter(name="*")] = CarlaNuscenesFlags(),
) -> FitResult:
    """Fine-tune the image branch of the nuScenes expert on CARLA recordings. Leaves
    models/checkpoints/carla_nuscenes_2d_ddp/<run_name>/best.pth.
    """
    return train_expert(stage_of("nuscenes_2d"), flags.data_root, flags)
