"""Trains AutoMoE's image experts and their peers for the same minutes on the same data, and scores them alike.

    python benchmarks/peers.py --data_root DIR [--profile small] [--minutes 30] [--seed 0]
        [--tasks detection drivable segmentation] [--only ours peer scratch]
        [--reuse best.pth ...] [--out benchmarks/results/peers_small.json]

The peers are RT-DETRv2 and SegFormer of `transformers` (`pip install 'automoe[peers]'`), on the same backbone with the
same ImageNet weights (see peers_models.py); the row `scratch` is the whole of SegFormer-B0 from random weights.

What is equal for all: the prepared data, input size, crops, augmentation, batch size, the order of samples, the
training loop with its schedule and averaged weights, the choice of the best evaluation, the code that scores, the
machine, and the training minutes. What is a model's own: its losses and its optimizer's settings. The seconds of a
step are measured first, for each model of a task, and the number of steps follows from them, so that every cosine
schedule ends with the budget; what training took in truth is recorded beside it. Evaluation is not training time.

--reuse takes trained checkpoints of ours (best.pth of the trainers) instead of training ours again: the budget of the
peers is then what that whole run took, also where its best weights are from an earlier evaluation.

A row is written when its model is done. The same command goes on where it was stopped, within a model too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automoe.config import from_dict, project_root
from automoe.engine import checkpoint
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed, setup
from automoe.engine.loop import fit
from automoe.engine.manifest import origin
from automoe.engine.runlog import duration
from automoe.errors import AutoMoEError, ConfigError
from automoe.experts.expert import ExpertStep, ImageExpert
from automoe.experts.inference import load_expert
from automoe.experts.registry import build_expert
from automoe.files import write_text
from automoe.stages.bdd100k import stage_of
from automoe.stages.entry import fail
from automoe.stages.image_stage import ImageStageConfig
from automoe.stages.train_expert import (
    Evaluation,
    StageData,
    TrainFlags,
    checkpoint_meta,
    count_reducer,
    layer_groups,
)

try:
    from peers_models import Recipe, RtDetrConfig, RtDetrPeer, SegformerPeer, SegformerPeerConfig, quieten
except ConfigError as error:
    fail(str(error))

TASKS = ("detection", "drivable", "segmentation")
ROWS = ("ours", "peer", "scratch")
HEADLINE = {
    "detection": ("AP", "AP50", "AP50_common", "AP50/car"),
    "drivable": ("mIoU", "mIoU_3class"),
    "segmentation": ("mIoU",),
}
WARM_UP, MEASURED = 5, 15
"""Steps before the stopwatch starts, and steps that it times."""

# The peers' optimizer settings; ours takes its profile's. Chosen in short tries on embedded frames at 288x160, batch 4,
# one thread, by --peer. RT-DETRv2, 60 steps, AP50: learning rate 8e-4 1.00, 4e-4 0.51; backbone at 0.3 of it 0.99;
# the published clipping at 0.1 0.92; the initialisation of `transformers` 0.24.
RT_DETR_RECIPE = Recipe(learning_rate=8e-4, backbone_lr_factor=0.1, weight_decay=1e-4, clip_norm=5.0)
# SegFormer's head, segmentation mIoU after 60 steps: 16e-4 21.7, 8e-4 19.4, 8e-4 with the backbone at 0.3 of it 20.2;
# published width 256 in the time of 50 steps of width 128: 18.8.
SEGFORMER_RECIPE = Recipe(learning_rate=16e-4, backbone_lr_factor=0.1, weight_decay=0.01, clip_norm=5.0)
SCRATCH_RECIPE = Recipe(learning_rate=8e-4, backbone_lr_factor=1.0, weight_decay=0.01, clip_norm=5.0)


@dataclass(frozen=True)
class Entrant:
    """A model in a comparison: how it is built, and the stage's settings with its own recipe in them."""

    row: str
    title: str
    build: Callable[[], ImageExpert]
    stage: ImageStageConfig


@dataclass(frozen=True)
class Arena:
    """What all models of one task share. fingerprint: of the training and the validation set."""

    task: str
    profile: str
    stage: ImageStageConfig
    data: StageData
    dist: Distributed
    root: Path

    @property
    def fingerprint(self) -> dict[str, str]:
        return self.data.meta["dataset_fingerprint"]


@dataclass(frozen=True)
class Plan:
    """How long a model trains. seconds_per_step: as measured before; None where the steps were given."""

    steps: int
    budget_seconds: float | None
    seconds_per_step: float | None


class TimedStep(ExpertStep):
    """Notes when every training step begins."""

    def __init__(self, model: ImageExpert, dist: Distributed) -> None:
        super().__init__(model, count_reducer(dist))
        self.begun: list[float] = []

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        self.begun.append(time.perf_counter())
        return super().forward(batch)


def entrant(row: str, task: str, stage: ImageStageConfig, peer: Mapping[str, Any] | None = None) -> Entrant:
    """The model behind a row of a task. peer: settings of the peer's config and recipe in place of those chosen here.

    Raises ConfigError naming a setting that neither knows.
    """
    model = stage.model
    shared = {key: model[key] for key in ("backbone", "frozen_stages") if key in model}
    if row == "ours":
        return Entrant(row, f"AutoMoE {task} expert", lambda: build_expert(task, model, pretrained=True), stage)
    if row == "scratch":
        config = SegformerPeerConfig(backbone="mit_b0")
        title = "SegFormer-B0, random start"
        return Entrant(row, title, lambda: SegformerPeer(task, config), _with(stage, SCRATCH_RECIPE))
    of_recipe = {field.name for field in dataclasses.fields(Recipe)}
    recipe = {key: value for key, value in (peer or {}).items() if key in of_recipe}
    shared |= {key: value for key, value in (peer or {}).items() if key not in of_recipe}
    if task == "detection":
        shared = {key: model[key] for key in ("num_queries",) if key in model} | shared
        detector = from_dict(RtDetrConfig, shared, "--peer")
        title = f"RT-DETRv2 on {detector.backbone}, d_model {detector.dim}"
        return Entrant(row, title, lambda: RtDetrPeer(detector), _with(stage, replace(RT_DETR_RECIPE, **recipe)))
    head = from_dict(SegformerPeerConfig, shared, "--peer")
    title = f"SegFormer on {head.backbone}, width {head.dim}"
    return Entrant(row, title, lambda: SegformerPeer(task, head), _with(stage, replace(SEGFORMER_RECIPE, **recipe)))


def _with(stage: ImageStageConfig, recipe: Recipe) -> ImageStageConfig:
    values = asdict(recipe)
    factor = values.pop("backbone_lr_factor")
    return replace(stage, engine={**stage.engine, **values}, backbone_lr_factor=factor)


def open_arena(task: str, options: argparse.Namespace, dist: Distributed) -> Arena:
    """Prepare a task's data as the trainers do."""
    flags = TrainFlags(
        profile=options.profile,
        config=options.config,
        seed=options.seed,
        limit=options.limit,
        prepared_dir=options.prepared_dir,
    )
    stage = stage_of(task)
    config = stage.configure(flags)
    if options.eval_every is not None:
        config = replace(config, engine={**config.engine, "eval_every": options.eval_every})
    data = stage.open(options.data_root, config, flags, options.seed, dist)
    return Arena(task, options.profile, config, data, dist, options.output_root)


def run_dirs(arena: Arena, name: str) -> tuple[Path, Path]:
    """Where a model's checkpoints and its TensorBoard files go."""
    inside = Path("peers") / arena.profile / name
    return arena.root / "models" / "checkpoints" / inside, arena.root / "models" / "runs" / inside


def fit_entrant(
    arena: Arena, one: Entrant, model: ImageExpert, step: ExpertStep, steps: int, name: str, **changes: Any
) -> Any:
    """Train `one` for `steps` by the engine's loop; `changes` go into its config, `evaluate` replaces the scoring."""
    evaluate = changes.pop("evaluate", None)
    batches = max(1, len(arena.data.train) // int(one.stage.engine["batch_size"]))
    settings = {"epochs": -(-steps // batches) + 1, "max_steps": steps, "metric": model.metric}
    engine = from_dict(EngineConfig, {**one.stage.engine, **settings, **changes}, "engine")
    run_dir, log_dir = run_dirs(arena, name)
    return fit(
        step,
        dataset=arena.data.train,
        collate=arena.data.collate,
        evaluate=evaluate or Evaluation(arena.data, one.stage.eval_batch_size, engine.num_workers),
        config=engine,
        run_dir=run_dir,
        log_dir=log_dir,
        meta=checkpoint_meta(stage_of(arena.task), model, one.stage, arena.data),
        dist=arena.dist,
        param_groups=layer_groups(model, engine, one.stage.backbone_lr_factor),
    )


def build(one: Entrant) -> ImageExpert:
    """A fresh model, the same for the same seed."""
    torch.manual_seed(int(one.stage.engine["seed"]))
    return one.build()


def seconds_per_step(arena: Arena, one: Entrant) -> float:
    """The mean of `MEASURED` training steps after `WARM_UP`, data waits included, as the budget counts them."""
    model = build(one)
    step = TimedStep(model, arena.dist)
    name, steps = f"{arena.task}-{one.row}-speed", WARM_UP + MEASURED + 1
    try:
        fit_entrant(arena, one, model, step, steps, name, resume="never", evaluate=lambda *_: {model.metric: None})
    finally:
        for folder in run_dirs(arena, name):
            shutil.rmtree(folder, ignore_errors=True)
    return (step.begun[-1] - step.begun[WARM_UP]) / MEASURED


def make_plan(arena: Arena, one: Entrant, budget: float | None, steps: int | None) -> Plan:
    """The steps that fit into `budget` seconds, or those given. What was planned for a run that stopped stays."""
    path = run_dirs(arena, f"{arena.task}-{one.row}")[0] / "plan.json"
    if steps is not None:
        return Plan(steps, None, None)
    assert budget is not None
    if path.is_file() and (path.parent / "last.pth").is_file():
        plan = Plan(**json.loads(path.read_text()))
        if plan.budget_seconds == budget:
            return plan
    each = seconds_per_step(arena, one)
    plan = Plan(max(1, round(budget / each)), budget, each)
    arena.dist.say(f"{one.title}: {each:.3f} s a step, so {plan.steps} steps in {duration(budget)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(plan)) + "\n")
    return plan


def train_entrant(arena: Arena, one: Entrant, plan: Plan) -> dict[str, Any]:
    """Train and score one model: its row."""
    name = f"{arena.task}-{one.row}"
    arena.dist.say(f"\n{arena.task}: {one.title}, {plan.steps} steps")
    model = build(one)
    result = fit_entrant(arena, one, model, ExpertStep(model, count_reducer(arena.dist)), plan.steps, name)
    best = checkpoint.load(run_dirs(arena, name)[0] / "best.pth")
    row = describe(one, model, best["metrics"])
    row["training"] = {
        "seconds": round(result.seconds, 1),
        "budget_seconds": plan.budget_seconds,
        "steps": result.steps,
        "best_step": result.best_step,
        "seconds_per_step": result.seconds / max(1, result.steps),
        "measured_seconds_per_step": plan.seconds_per_step,
        "data_wait": round(result.data_wait, 4),
        "images": result.steps * int(one.stage.engine["batch_size"]) * int(one.stage.engine.get("accumulate", 1)),
        "commit": best["commit"],
        "dirty": best["dirty"],
    }
    return row


def reuse_ours(arena: Arena, path: Path) -> dict[str, Any]:
    """The row of a checkpoint that a trainer left, scored again here. Raises ConfigError for one of other data."""
    expert = load_expert(path, arena.dist.device)
    payload = expert.payload
    if payload["dataset_fingerprint"] != arena.fingerprint:
        data = arena.data.train.info.path
        raise ConfigError(f"{path} was trained or evaluated on other data than {data}: train ours anew.")
    if tuple(expert.size) != tuple(arena.stage.size):
        raise ConfigError(f"{path} takes images of {expert.size}, profile {arena.profile} of {arena.stage.size}.")
    progress, engine = payload["progress"], payload["engine"]
    stage = replace(arena.stage, engine={**arena.stage.engine, **{k: engine[k] for k in arena.stage.engine}})
    one = Entrant("ours", f"AutoMoE {arena.task} expert", lambda: expert.model, stage)
    evaluate = Evaluation(arena.data, stage.eval_batch_size, int(engine["num_workers"]))
    arena.dist.say(f"\n{arena.task}: {one.title} from {path}")
    row = describe(one, expert.model, evaluate(expert.model, arena.dist))
    each = progress["seconds"] / max(1, progress["step"])
    row["training"] = {
        "seconds": round(each * progress["total_steps"], 1),
        "budget_seconds": None,
        "steps": progress["total_steps"],
        "best_step": progress["step"],
        "seconds_per_step": each,
        "measured_seconds_per_step": None,
        "data_wait": None,
        "images": progress["total_steps"] * engine["batch_size"] * engine["accumulate"] * payload["world_size"],
        "commit": payload["commit"],
        "dirty": payload["dirty"],
    }
    row["seed"], row["reused"] = payload["seed"], True
    return row


def describe(one: Entrant, model: ImageExpert, metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """A row without its training."""
    engine = one.stage.engine
    keys = ("learning_rate", "weight_decay", "clip_norm", "warmup_steps", "ema_decay", "batch_size", "eval_every")
    return {
        "model": one.row,
        "title": one.title,
        "headline": {key: metrics.get(key) for key in HEADLINE[model.kind]},
        "metrics": dict(metrics),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seed": engine["seed"],
        "config": dataclasses.asdict(model.config),  # type: ignore[call-overload]
        "optimizer": {key: engine.get(key) for key in keys} | {"backbone_lr_factor": one.stage.backbone_lr_factor},
    }


class Results:
    """The JSON of results, written anew after every row."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        """Goes on with the file at `path`. Raises ConfigError where it holds another setting's results."""
        self.path, self.data = path, {"setting": setting, "tasks": {}}
        if path.is_file():
            old = json.loads(path.read_text())
            if old.get("setting") != json.loads(json.dumps(setting)):
                raise ConfigError(f"{path} holds results of another setting: give another --out, or remove it.")
            self.data["tasks"] = old["tasks"]

    def rows(self, arena: Arena) -> dict[str, Any]:
        """The finished rows of a task. Raises ConfigError if they were made with other data."""
        task = self.data["tasks"].setdefault(arena.task, {"dataset_fingerprint": arena.fingerprint, "rows": {}})
        if task["dataset_fingerprint"] != arena.fingerprint:
            raise ConfigError(f"{self.path} has {arena.task} results on other data: give another --out.")
        task["images"] = {"train": len(arena.data.train), "val": len(arena.data.val)}
        task["size"] = list(arena.stage.size)
        return task["rows"]

    def save(self, dist: Distributed) -> None:
        self.data |= {
            "command": shlex.join(["python", *sys.argv]),
            **origin(),
            "transformers": metadata.version("transformers"),
            "machine": {
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "device": str(dist.device),
                "platform": platform.machine(),
            },
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.data, indent=2) + "\n")


def compete(arena: Arena, options: argparse.Namespace, results: Results, reused: Path | None) -> None:
    """Fill in the rows of one task that are missing."""
    rows = results.rows(arena)
    wanted = [r for r in options.only if not (r == "scratch" and arena.task == "detection")]
    if reused and "ours" in wanted and "ours" not in rows:
        rows["ours"] = reuse_ours(arena, reused)
        results.save(arena.dist)
    budget = options.minutes * 60
    if rows.get("ours", {}).get("reused"):
        budget = rows["ours"]["training"]["seconds"]
    missing = [entrant(r, arena.task, arena.stage, options.peer) for r in wanted if r not in rows]
    # All are measured before any is trained: a machine that slows down in between slows down none of the plans alone.
    plans = [make_plan(arena, one, budget, options.steps) for one in missing]
    for one, plan in zip(missing, plans):
        rows[one.row] = train_entrant(arena, one, plan)
        results.save(arena.dist)
    results.save(arena.dist)


def table(data: Mapping[str, Any]) -> str:
    """The headline numbers of all rows as text."""
    lines = []
    for task, found in data["tasks"].items():
        names = HEADLINE[task]
        lines.append(f"\n{task:<62}" + "".join(f"{n:>13}" for n in names) + f"{'train s':>9}{'steps':>7}{'s/step':>8}")
        for row in found["rows"].values():
            numbers = "".join(f"{'-' if v is None else format(v, '.2f'):>13}" for v in row["headline"].values())
            t = row["training"]
            speed = f"{t['seconds']:>9.0f}{t['steps']:>7}{t['seconds_per_step']:>8.3f}"
            lines.append(f"{row['title']:<53}{row['parameters'] / 1e6:>7.2f} M{numbers}{speed}")
    return "\n".join(lines)


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE with a JSON value, or a word."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="BDD100K as downloaded, or prepared")
    parser.add_argument("--prepared_dir", type=Path, help="where prepared data goes; inside the data root if not given")
    parser.add_argument("--profile", default="small")
    parser.add_argument("--config", type=Path, help="a config.json instead of the profile's")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, for each model")
    parser.add_argument("--steps", type=int, help="train so many steps instead, whatever they take: a quick look")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="+", choices=ROWS, default=["ours", "peer"], help="the models to train")
    parser.add_argument(
        "--peer",
        nargs="+",
        type=setting,
        default=[],
        metavar="KEY=VALUE",
        help="another setting of the peer's model or recipe, as dim=96 or learning_rate=4e-4",
    )
    parser.add_argument("--reuse", type=Path, nargs="+", default=[], help="checkpoints of ours, at most one a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only so many training and validation images: a quick look")
    parser.add_argument("--eval_every", type=int, help="epochs between evaluations; the profile's if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output_root", type=Path, default=project_root(), help="where checkpoints and runs go")
    parser.add_argument("--out", type=Path, help="the results; benchmarks/results/peers_<profile>.json if not given")
    options = parser.parse_args(arguments)
    options.peer = dict(options.peer)
    options.out = options.out or Path(__file__).parent / "results" / f"peers_{options.profile}.json"
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark; returns what is in the JSON. Raises AutoMoEErrors, and SystemExit after a signal."""
    quieten()
    reused = {str(checkpoint.load(path).get("expert")): path for path in options.reuse}
    setting = {key: getattr(options, key) for key in ("profile", "minutes", "steps", "seed", "limit", "peer")}
    results = Results(options.out, setting)
    with setup(options.device) as dist:
        if dist.world_size > 1:
            raise ConfigError("the benchmark compares training in one process: start it without torchrun.")
        for task in options.tasks:
            compete(open_arena(task, options, dist), options, results, reused.get(task))
        dist.say(table(results.data))
        dist.say(f"\nResults: {options.out}")
    return results.data


def main() -> None:
    try:
        run(parse())
    except AutoMoEError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
