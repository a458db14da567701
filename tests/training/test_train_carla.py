"""`finetune_experts_carla.sh` and its trainers as a user runs them, on small runs and from small source experts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from carla_runs import write_run
from entry_points import start
from trained_experts import trained as bdd_trained  # noqa: F401 - a fixture
from trained_nuscenes import trained_nuscenes  # noqa: F401 - a fixture

from automoe.config import from_dict, profile_path
from automoe.data.prepared import prepare
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import setup
from automoe.errors import CheckpointError
from automoe.experts.inference import load_expert, load_image_branch
from automoe.stages import bdd100k, nuscenes
from automoe.stages.carla import CarlaFlags, component_of, named_source, sources, stage_of
from automoe.stages.evaluate import evaluate_checkpoint
from automoe.stages.train_expert import layer_groups

RunHere = Callable[[list[str]], tuple[int, str, str]]

ROOT = Path(__file__).resolve().parents[2]
SHELL = ROOT / "training" / "finetune_experts_carla.sh"
BDD = ROOT / "training" / "train_carla_bdd_experts_ddp.py"
NUSCENES = ROOT / "training" / "train_carla_nuscenes_expert_2d_ddp.py"
TASKS = ("detection", "drivable", "segmentation")
ENGINE = {"epochs": 2, "batch_size": 2, "num_workers": 0, "warmup_steps": 0, "ema_decay": 0.0, "log_steps": 1}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared runs of two towns."""
    base = tmp_path_factory.mktemp("carla")
    write_run(base / "raw", 0, frames=4)
    write_run(base / "raw", 1, frames=3, town="Town02")
    for split in ("train", "val"):
        prepare(base / "raw", "frames", split, base / "prepared" / "frames" / split, workers=1)
    return base / "prepared" / "frames" / "train"


@pytest.fixture
def output(bdd_trained, trained_nuscenes, tmp_path: Path) -> Path:  # noqa: F811
    """A place for runs where the source experts are."""
    folder = tmp_path / "out"
    for source in (bdd_trained.output, trained_nuscenes.output):
        shutil.copytree(source / "models", folder / "models", dirs_exist_ok=True)
    return folder


def write_config(path: Path, **more: Any) -> Path:
    path.write_text(json.dumps({"size": [64, 96], "engine": ENGINE} | more))
    return path


def words(script: Path, data_root: Path, output: Path, config: Path, *more: str) -> list[str]:
    return [
        str(script), "--data_root", str(data_root), "--output_root", str(output), "--config", str(config),
        "--run_name", "mine", "--device", "cpu", *more,
    ]  # fmt: skip


def best(output: Path, task: str) -> Path:
    return output / "models" / "checkpoints" / component_of(task) / "mine" / "best.pth"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# --- the trainers ---


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_goes_on_from_its_source(
    task: str, data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    config = write_config(tmp_path / "config.json")
    code, said, wrong = run_here(words(BDD, data_root, output, config, "--task", task))
    assert code == 0, wrong
    source = output / "models" / "checkpoints" / bdd100k.component_of(task) / "toy" / "best.pth"
    assert f"From {source}" in said
    assert "Classes, source -> here:" in said
    assert "Newly initialised: nothing." in said
    assert "The source as it is, on these frames:" in said
    payload, before = load(best(output, task)), load(source)
    assert payload["dataset"] == "carla"
    assert payload["source"]["source"] == str(source)
    assert set(payload["model"]) == set(before["model"])
    assert any(not torch.equal(payload["model"][key], before["model"][key]) for key in before["model"])
    told = json.loads((best(output, task).parent / "source.json").read_text())
    metrics = evaluate_checkpoint(best(output, task), data_root.parent / "val", device="cpu", num_workers=0)
    assert metrics == pytest.approx({key: payload["metrics"][key] for key in metrics}, nan_ok=True)
    assert set(told["metrics"]) == set(payload["metrics"])


def test_what_the_labels_do_not_tell_apart_is_merged(
    data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    """Tags know the road alone: the checkpoint says so, and its predictions keep to it."""
    config = write_config(tmp_path / "config.json")
    code, said, wrong = run_here(words(BDD, data_root, output, config, "--task", "drivable"))
    assert code == 0, wrong
    assert "alternative -> direct" in said
    expert = load_expert(best(output, "drivable"))
    assert expert.payload["model_config"]["collapse"] == {"alternative": "direct"}
    images = [torch.randint(0, 255, (48, 64, 3), dtype=torch.uint8).numpy()]
    assert 1 not in expert.predict(images)[0]["mask"].unique().tolist()


def test_the_image_branch_of_the_nuscenes_expert_learns_boxes(
    data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    config = write_config(tmp_path / "config.json")
    code, said, wrong = run_here(words(NUSCENES, data_root, output, config, "--num_queries", "5"))
    assert code == 0, wrong
    assert "Newly initialised: nothing." in said
    expert = load_expert(best(output, "nuscenes_2d"))
    assert expert.model.kind == "nuscenes_2d"
    assert expert.payload["model_config"]["num_queries"] == 5
    source = output / "models" / "checkpoints" / nuscenes.COMPONENT / "toy" / "best.pth"
    assert set(expert.model.state_dict()) == set(load_image_branch(source).model.state_dict())
    metrics = evaluate_checkpoint(best(output, "nuscenes_2d"), data_root.parent / "val", device="cpu", num_workers=0)
    assert metrics["AP"] == pytest.approx(expert.payload["metrics"]["AP"])


def test_two_processes_train_as_one(data_root: Path, output: Path, tmp_path: Path, run_here: RunHere) -> None:
    """Under torchrun: what the source scores, losses and gradients are those of one process."""
    calm = {"dropout": 0.0, "denoising_weight": 0.0}  # chance is drawn for each rank
    engine = ENGINE | {"max_steps": 2, "learning_rate": 1e-9, "amp": "off"}  # the weights stay as they are
    config = write_config(tmp_path / "calm.json", model=calm, engine=engine)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    places = {name: shutil.copytree(output, tmp_path / name) for name in ("one", "two")}
    process = start([*launcher, *words(BDD, data_root, places["two"], config, "--batch_size", "1")])
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert printed.count("The source as it is") == 1
    code, _, wrong = run_here(words(BDD, data_root, places["one"], config, "--batch_size", "2"))
    assert code == 0, wrong
    folders = {name: best(place, "detection").parent for name, place in places.items()}
    lines = {name: (folder / "metrics.jsonl").read_text().splitlines()[-1] for name, folder in folders.items()}
    one, two = (json.loads(lines[name])["losses"] for name in ("one", "two"))
    source_of_one, source_of_two = (
        json.loads((folders[name] / "source.json").read_text())["metrics"] for name in ("one", "two")
    )
    assert one["grad_norm"] > 0
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-3 if key == "grad_norm" else 1e-4, abs=1e-5), key
    for key, value in source_of_one.items():
        assert source_of_two[key] == pytest.approx(value, abs=1e-3), key


def test_without_a_source_there_is_a_sentence_unless_asked_for(
    data_root: Path, tmp_path: Path, run_here: RunHere
) -> None:
    config = write_config(
        tmp_path / "config.json", model={"dim": 16, "num_queries": 6, "decoder_layers": 1, "heads": 2}
    )
    line = words(BDD, data_root, tmp_path / "out", config)
    code, _, wrong = run_here(line)
    assert code == 2
    assert "no source expert under" in wrong
    assert "--from_scratch" in wrong
    assert not (tmp_path / "out").exists()
    code, said, wrong = run_here([*line, "--from_scratch", "--profile", "tiny", "--max_steps", "1"])
    assert code == 0, wrong
    assert "From scratch: the backbone has its ImageNet weights" in said
    assert load(best(tmp_path / "out", "detection"))["source"] is None


def test_sources_are_the_newest_or_the_named(output: Path) -> None:
    folder = output / "models" / "checkpoints" / "bdd100k_detection_expert"
    shutil.copytree(folder / "toy", folder / "older")
    os.utime(folder / "older" / "best.pth", (1, 1))
    newest, oldest = folder / "toy" / "best.pth", folder / "older" / "best.pth"
    assert sources(output, "bdd100k_detection_expert") == [newest, oldest]
    assert named_source(output, "bdd100k_detection_expert", "older") == oldest
    assert named_source(output, "bdd100k_detection_expert", str(oldest)) == oldest
    stage = stage_of("detection")
    stage.configure(CarlaFlags(profile="tiny", output_root=output))
    assert stage.source is not None
    assert stage.source.path == newest


def test_a_newest_source_without_cameras_is_passed_over_and_that_is_said(output: Path) -> None:
    folder = output / "models" / "checkpoints" / nuscenes.COMPONENT
    shutil.copytree(folder / "toy", folder / "lidar")
    payload = load(folder / "lidar" / "best.pth")
    payload["model_config"]["cameras"] = []
    torch.save(payload, folder / "lidar" / "best.pth")
    stage = stage_of("nuscenes_2d")
    stage.configure(CarlaFlags(profile="tiny", output_root=output))
    assert stage.source is not None
    assert stage.source.path == folder / "toy" / "best.pth"
    assert [word for word in stage.words if "lidar/best.pth is newer, but has no image branch" in word]
    shutil.rmtree(folder / "toy")
    with pytest.raises(CheckpointError, match="there is no source expert with cameras under"):
        stage_of("nuscenes_2d").configure(CarlaFlags(profile="tiny", output_root=output))


def test_a_damaged_newest_source_is_an_error_and_no_reason_to_take_another_network(output: Path) -> None:
    path = output / "models" / "checkpoints" / "bdd100k_detection_expert" / "toy" / "best.pth"
    path.write_bytes(b"1234")
    for from_scratch in (False, True):
        with pytest.raises(CheckpointError, match="is damaged"):
            stage_of("detection").configure(CarlaFlags(profile="tiny", output_root=output, from_scratch=from_scratch))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--source", "nobody"], "there is no source checkpoint"),
        (["--task", "drivable", "--cost_bbox", "2"], "belong to boxes"),
        (["--layer_decay", "1.5"], "layer_decay is 1.5"),
        (["--hold_backbone_steps", "-1"], "hold_backbone_steps is -1"),
        (["--data_root", "/nowhere"], "no folder /nowhere"),
    ],
)
def test_a_mistake_gets_one_sentence(
    more: list[str], sentence: str, data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    line = words(BDD, data_root, output, write_config(tmp_path / "config.json"))
    if more[0] in line:
        at = line.index(more[0])
        line[at : at + 2] = []
    code, _, wrong = run_here([*line, *more])
    assert code == 2
    assert sentence in wrong
    assert "Traceback" not in wrong


def test_a_source_of_another_task_is_refused(data_root: Path, output: Path, tmp_path: Path, run_here: RunHere) -> None:
    other = output / "models" / "checkpoints" / "bdd100k_drivable_expert" / "toy" / "best.pth"
    line = words(BDD, data_root, output, write_config(tmp_path / "config.json"), "--source", str(other))
    code, _, wrong = run_here(line)
    assert code == 2
    assert "is a drivable expert; a detection one is wanted" in wrong


def test_the_backbone_is_held_still_and_then_learns(
    data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    config = write_config(tmp_path / "config.json")
    changed = {}
    for steps in ("2", "0"):
        line = words(BDD, data_root, output, config, "--task", "drivable", "--resume", "never")
        code, _, wrong = run_here([*line, "--hold_backbone_steps", steps, "--max_steps", "2", "--weight_decay", "0"])
        assert code == 0, wrong
        source = load(output / "models" / "checkpoints" / "bdd100k_drivable_expert" / "toy" / "best.pth")["model"]
        now = load(best(output, "drivable").parent / "last.pth")["module"]
        different = [key for key in source if not torch.equal(source[key], now[f"model.{key}"])]
        changed[steps] = {key.startswith("backbone") for key in different}
    assert changed == {"2": {False}, "0": {False, True}}


def test_earlier_layers_learn_more_slowly(output: Path) -> None:
    stage = stage_of("drivable")
    flags = CarlaFlags(profile="tiny", output_root=output, layer_decay=0.5, hold_backbone_steps=7)
    config = stage.configure(flags)
    with setup("cpu") as dist:
        model = stage.build(config, flags, False, dist)
    engine = EngineConfig(metric="AP", learning_rate=1.0)
    groups = stage.param_groups(model, config, engine)
    rate = {id(p): (group["lr"], group["hold_steps"]) for group in groups for p in group["params"]}
    own = {name: rate[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert all(value == (1.0, 0) for name, value in own.items() if not name.startswith("backbone"))
    depths = model.backbone.depths()
    assert depths["net.conv_stem.weight"] == 4
    assert min(depths.values()) == 0
    for name, (lr, held) in own.items():
        if name.startswith("backbone."):
            depth = depths[name.removeprefix("backbone.")]
            assert lr == pytest.approx(config.backbone_lr_factor * 0.5**depth)
            assert held == 7
    plain = layer_groups(model, engine, config.backbone_lr_factor)
    assert sum(len(group["params"]) for group in plain) == sum(len(group["params"]) for group in groups)


def test_the_same_line_again_changes_nothing_and_scores_no_source(
    data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    line = words(BDD, data_root, output, write_config(tmp_path / "config.json"), "--task", "segmentation")
    code, said, _ = run_here(line)
    assert code == 0
    assert "The source as it is" in said
    assert "Before, the source as it was: mIoU" in said
    path = best(output, "segmentation")
    files = {file: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    code, said, _ = run_here(line)
    assert code == 0
    assert "Already finished" in said
    assert "The source as it is" not in said
    assert {file: file.stat().st_mtime_ns for file in path.parent.iterdir()} == files


def test_what_is_finished_is_kept_when_its_source_and_its_data_are_gone(
    data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    data = tmp_path / "data" / "frames" / "train"
    for split in ("train", "val"):
        shutil.copytree(data_root.parent / split, data.parent / split)
    line = words(BDD, data, output, write_config(tmp_path / "config.json"), "--task", "drivable")
    code, _, wrong = run_here(line)
    assert code == 0, wrong
    stamp = best(output, "drivable").stat().st_mtime_ns
    shutil.rmtree(output / "models" / "checkpoints" / "bdd100k_drivable_expert")
    for gone in (None, data.parent):
        if gone:
            shutil.rmtree(gone.parent)
        code, said, wrong = run_here(line)
        assert code == 0, wrong
        assert "Already finished, and what it was made from is gone" in said
        assert best(output, "drivable").stat().st_mtime_ns == stamp
        code, _, wrong = run_here([*line, "--learning_rate", "0.5"])  # something else is asked for
        assert code == 2
        assert "there is no source checkpoint" in wrong


def test_a_run_goes_on_from_its_own_source_alone(
    data_root: Path, output: Path, tmp_path: Path, run_here: RunHere
) -> None:
    """Another source, none, or the same one trained anew: each would make another run of it."""
    folder = output / "models" / "checkpoints" / "bdd100k_detection_expert"
    shutil.copytree(folder / "toy", folder / "other")
    payload = load(folder / "other" / "best.pth")
    payload["model"] = {key: value + 0.01 for key, value in payload["model"].items()}
    torch.save(payload, folder / "other" / "best.pth")
    os.utime(folder / "other" / "best.pth", (1, 1))
    config = write_config(tmp_path / "config.json")
    line = words(BDD, data_root, output, config)
    assert run_here([*line, "--source", "toy"])[0] == 0
    run_dir = best(output, "detection").parent
    kept = {file: file.read_bytes() for file in run_dir.iterdir()}
    refused = [["--source", "other"], ["--from_scratch"]]
    for more in refused:
        code, _, wrong = run_here([*line, *more])
        assert code == 2
        assert "is of a run with start" in wrong
        assert {file: file.read_bytes() for file in run_dir.iterdir()} == kept
    code, _, wrong = run_here([*line, "--limit", "2"])  # refused for another reason: nothing is written either
    assert code == 2
    assert {file: file.read_bytes() for file in run_dir.iterdir()} == kept
    shutil.copy(folder / "other" / "best.pth", folder / "toy" / "best.pth")  # trained anew
    code, _, wrong = run_here([*line, "--source", "toy"])
    assert code == 2
    assert "is of a run with start" in wrong

    code, _, wrong = run_here([*line, "--source", "other", "--resume", "never"])
    assert code == 0, wrong
    assert (run_dir / "old-1" / "source.json").read_bytes() == kept[run_dir / "source.json"]
    assert json.loads((run_dir / "source.json").read_text())["source"] == str(folder / "other" / "best.pth")


@pytest.mark.parametrize("task", [*TASKS, "nuscenes_2d"])
@pytest.mark.parametrize("profile", ["tiny", "small", "base"])
def test_every_profile_on_disk_is_valid(task: str, profile: str, output: Path) -> None:
    assert profile_path(component_of(task), profile).is_file()
    config = stage_of(task).configure(CarlaFlags(profile=profile, output_root=output))
    assert config.size[0] % 32 == config.size[1] % 32 == 0
    from_dict(EngineConfig, {**config.engine, "metric": "AP"}, profile)


# --- the shell script ---

RECORDER = """#!/usr/bin/env bash
# Stands for the Python interpreter: writes down how it was called.
printf '%s\\n' "WORLD_SIZE=${WORLD_SIZE-unset} $*" >> "$CALLS"
[[ -n "${FAIL-}" && "$*" == *"$FAIL"* ]] && exit 7 || exit 0
"""


def call_shell(tmp_path: Path, *more: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    own = {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "OUTPUT_ROOT": str(tmp_path / "out")}
    (tmp_path / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(SHELL), *more],
        env=keep | own | variables,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    calls = tmp_path / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_the_bare_line_fine_tunes_all_four(tmp_path: Path) -> None:
    done, calls = call_shell(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [call.split("--task ")[1].split()[0] for call in calls[:3]] == list(TASKS)
    assert "train_carla_nuscenes_expert_2d_ddp.py" in calls[3]
    for call in calls:
        assert "--data_root datasets/carla/preprocessed" in call
        assert "--profile base" in call
        assert "--run_name base" in call
        assert "--epochs" not in call
        assert "--num_queries" not in call


@pytest.mark.parametrize(
    ("variable", "value", "flag", "tasks"),
    [
        ("DATA_ROOT", "/data/carla", "--data_root /data/carla", (0, 1, 2, 3)),
        ("BATCH", "3", "--batch_size 3", (0, 1, 2, 3)),
        ("WORKERS", "5", "--num_workers 5", (0, 1, 2, 3)),
        ("EPOCHS_DET", "7", "--epochs 7", (0,)),
        ("EPOCHS_DRV", "7", "--epochs 7", (1,)),
        ("EPOCHS_SEG", "7", "--epochs 7", (2,)),
        ("EPOCHS_NUSC", "7", "--epochs 7", (3,)),
        ("NUM_QUERIES", "44", "--num_queries 44", (3,)),
        ("RUN_NAME", "mine", "--run_name mine", (0, 1, 2, 3)),
        ("DEVICE", "cpu", "--device cpu", (0, 1, 2, 3)),
        ("SEED", "4", "--seed 4", (0, 1, 2, 3)),
        ("EXTRA_ARGS", "--from_scratch", "--from_scratch", (0, 1, 2, 3)),
        ("PROFILE", "small", "--profile small --data_root datasets/carla/preprocessed --run_name small", (0, 1, 2, 3)),
        ("MAX_STEPS", "9", "--max_steps 9", (0, 1, 2, 3)),
        ("LIMIT", "8", "--limit 8", (0, 1, 2, 3)),
        ("RESUME", "never", "--resume never", (0, 1, 2, 3)),
        ("SOURCE_DET", "run", "--source run", (0,)),
        ("SOURCE_DRV", "run", "--source run", (1,)),
        ("SOURCE_SEG", "a/best.pth", "--source a/best.pth", (2,)),
        ("SOURCE_NUSC", "run", "--source run", (3,)),
    ],
)
def test_every_variable_reaches_its_trainers(
    tmp_path: Path, variable: str, value: str, flag: str, tasks: tuple[int, ...]
) -> None:
    done, calls = call_shell(tmp_path, **{variable: value})
    assert done.returncode == 0, done.stderr
    assert tuple(number for number, call in enumerate(calls) if f"{flag} " in f"{call} ") == tasks


def test_the_place_for_runs_reaches_all_trainers(tmp_path: Path) -> None:
    done, calls = call_shell(tmp_path, OUTPUT_ROOT=str(tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stderr
    assert len(calls) == 4
    assert all(f"--output_root {tmp_path / 'elsewhere'} " in f"{call} " for call in calls)
    assert len(list((tmp_path / "elsewhere" / "logs").iterdir())) == 4


@pytest.mark.parametrize(
    ("flag", "left_out"),
    [("SKIP_DETECTION", "--task detection"), ("SKIP_DRIVABLE", "--task drivable"),
     ("SKIP_SEGMENTATION", "--task segmentation"), ("SKIP_NUSCENES", "nuscenes_expert_2d")],
)  # fmt: skip
def test_skip_flags_skip_their_task_and_no_other(tmp_path: Path, flag: str, left_out: str) -> None:
    done, calls = call_shell(tmp_path, **{flag: "1"})
    assert done.returncode == 0
    assert len(calls) == 3
    assert not any(left_out in call for call in calls)
    assert call_shell(tmp_path, **{flag: "maybe"})[0].returncode == 2


def test_a_failing_task_stops_with_its_log_named(tmp_path: Path) -> None:
    done, calls = call_shell(tmp_path, FAIL="--task drivable")
    assert done.returncode == 7
    assert len(calls) == 2
    assert "the drivable expert stopped with exit code 7" in done.stderr
    assert "logs/carla_drivable_expert_base.log" in done.stderr
    assert "Go on with:" in done.stderr


def test_num_gpus_starts_torchrun_and_world_size_is_the_users_own(tmp_path: Path) -> None:
    _, calls = call_shell(tmp_path, NUM_GPUS="2", WORLD_SIZE="8")
    assert len(calls) == 4
    assert all("-m torch.distributed.run --standalone --nproc_per_node=2" in call for call in calls)
    assert all(call.startswith("WORLD_SIZE=unset") for call in calls)


def test_help_shows_every_tunable(tmp_path: Path) -> None:
    done, calls = call_shell(tmp_path, "--help")
    assert done.returncode == 0
    assert not calls
    for name in ("DATA_ROOT", "NUM_GPUS", "BATCH", "WORKERS", "EPOCHS_DET", "EPOCHS_DRV", "EPOCHS_SEG", "EPOCHS_NUSC",
                 "NUM_QUERIES", "SKIP_DETECTION", "SKIP_DRIVABLE", "SKIP_SEGMENTATION", "SKIP_NUSCENES"):  # fmt: skip
        assert name in done.stdout
