"""`train_nuscenes_expert_ddp.sh` and its trainer as a user runs them, on a small tree in the official layout."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from entry_points import run_script
from nuscenes_tree import append_points, edit_table, write_nuscenes_tree

from automoe import cli
from automoe.config import from_dict
from automoe.data.nuscenes import Nuscenes
from automoe.data.nuscenes_dataset import NuscenesDataset, collate
from automoe.data.nuscenes_prepared import TASK
from automoe.data.prepared import PreparedInfo, ensure_prepared
from automoe.engine.config import EngineConfig
from automoe.experts.inference import load_expert
from automoe.experts.registry import build_expert
from automoe.metrics.nuscenes import filter_boxes
from automoe.metrics.nuscenes_submission import read_submission
from automoe.stages.evaluate import evaluate_checkpoint
from automoe.stages.nuscenes import MODEL_FLAGS, NuscenesFlags, NuscenesStage, view_of
from automoe.stages.score_nuscenes import score_nuscenes
from automoe.stages.train_expert import ENGINE_FLAGS
from automoe.taxonomy import NUSCENES_CAMERAS, NUSCENES_DETECTION

RunHere = Callable[[list[str]], tuple[int, str, str]]

ROOT = Path(__file__).resolve().parents[2]
SHELL = ROOT / "training" / "train_nuscenes_expert_ddp.sh"
SCRIPT = ROOT / "training" / "train_nuscenes_expert_ddp.py"
VAL_SAMPLES = ["scene-c-sample-0", "scene-c-sample-1"]

IMAGE = {"dim": 16, "num_queries": 8, "decoder_layers": 1, "heads": 2, "denoising_groups": 1}
MODEL: dict[str, Any] = {"image": IMAGE, "grid": {"reach": 25.6, "cell": 1.6}, "dim": 16, "pillar_dim": 8}
MODEL |= {"paint_dim": 4, "num_queries": 12, "decoder_layers": 2, "heads": 2, "dropout": 0.1}
CALM = {"dropout": 0.0, "denoising_groups": 0, "image": IMAGE | {"denoising_groups": 0}}
"""Chance in the model is drawn by each process for itself."""
ENGINE = {"epochs": 3, "batch_size": 1, "num_workers": 1, "warmup_steps": 1, "ema_decay": 0.9, "clip_norm": 5.0}
# Nothing is mirrored, so that a car is found within a few steps.
AUGMENT = {"flip": 0.0, "rotate": 3.0, "cameras": 3, "drop_lidar": 0.2, "drop_cameras": 0.2}

# Every variable of the contract but NUM_GPUS at an unusual value: the flag that it becomes, and where best.pth has it.
CONTRACT: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("EPOCHS", "12", "--epochs", ("engine", "epochs")),
    ("BATCH_SIZE", "2", "--batch_size", ("engine", "batch_size")),
    ("LR", "0.011", "--learning_rate", ("engine", "learning_rate")),
    ("WD", "0.023", "--weight_decay", ("engine", "weight_decay")),
    ("NUM_WORKERS", "0", "--num_workers", ("engine", "num_workers")),
    ("NUM_QUERIES", "13", "--num_queries", ("model_config", "num_queries")),
    ("COST_CLASS", "1.7", "--cost_class", ("model_config", "cost_class")),
    ("COST_BBOX", "0.31", "--cost_bbox", ("model_config", "cost_bbox")),
    ("COST_GIOU", "0.2", "--cost_giou", ("model_config", "cost_giou")),
    ("BBOX_LOSS_W", "0.6", "--bbox_loss_weight", ("model_config", "bbox_weight")),
]
BEYOND = [
    ("RUN_NAME", "mine", "--run_name"),
    ("PROFILE", "tiny", "--profile"),
    ("VERSION", "v1.0-mini", "--version"),
    ("DEVICE", "cpu", "--device"),
    ("SEED", "3", "--seed"),
    ("MAX_STEPS", "9", "--max_steps"),
    ("LIMIT", "11", "--limit"),
    ("RESUME", "never", "--resume"),
    ("DATA_ROOT", "/data/my nuscenes", "--data_root"),
    ("OUTPUT_ROOT", "", "--output_root"),
]

RECORDER = """#!/usr/bin/env bash
# Stands for the Python interpreter: writes down how it was called, a word a line.
printf '%s\\n' "WORLD_SIZE=${WORLD_SIZE-unset}" "$@" > "$CALLS"
"""


@dataclass(frozen=True)
class Trained:
    """One finished run. variables: what the shell script was given for it."""

    variables: dict[str, str]
    output: Path
    data: Path

    @property
    def folder(self) -> Path:
        return run_folder(self.output, "mine")

    @property
    def best(self) -> dict[str, Any]:
        return load(self.folder / "best.pth")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nuscenes_tree(tmp_path_factory.mktemp("data") / "nuscenes", size=(96, 54))


@pytest.fixture(scope="module")
def trained(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with all of the contract's variables set: the flags as the script gives them, the trainer in this process
    with one thread."""
    folder = tmp_path_factory.mktemp("trained")
    output, file = folder / "out", write_config(folder / "tiny.json")
    variables = {name: value for name, value, *_ in CONTRACT} | {"RUN_NAME": "mine", "SEED": "3", "DEVICE": "cpu"}
    variables |= {"DATA_ROOT": str(data_root), "VERSION": "v1.0-mini", "OUTPUT_ROOT": str(output)}
    variables |= {"EXTRA_ARGS": f"--config {file} --eval_every 3 --save_steps 1"}
    done, words = call_shell(folder, **variables)
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run_script([str(SCRIPT), *words[2:]]) == 0
    torch.set_num_threads(threads)
    return Trained(variables, output, data_root)


def run_folder(output: Path, name: str) -> Path:
    return output / "models" / "checkpoints" / "nuscenes_expert" / name


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def write_config(path: Path, model: dict[str, Any] | None = None, **more: Any) -> Path:
    content = {"size": [64, 96], "sweeps": 2, "eval_batch_size": 2, "augment": AUGMENT, "engine": ENGINE}
    path.write_text(json.dumps(content | {"model": MODEL | (model or {})} | more))
    return path


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    """A bare environment with the variables and, for an interpreter, the recorder."""
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    own = {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "OUTPUT_ROOT": str(tmp_path / "out")}
    return keep | {"OMP_NUM_THREADS": "1"} | own | variables


def call_shell(tmp_path: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script; what came of it, and WORLD_SIZE and the words that its interpreter was given."""
    done = subprocess.run(
        ["bash", str(SHELL), *words],
        env=environment(tmp_path, **variables),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    calls = tmp_path / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def copy_of(tree: Path, to: Path) -> Path:
    return shutil.copytree(tree, to, ignore=shutil.ignore_patterns("automoe_prepared"))


def value_at(payload: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        payload = payload[key]
    return payload


# --- the shell script ---


def test_every_variable_reaches_the_trainer_and_no_other_flag_does(tmp_path: Path) -> None:
    fixed = {"OUTPUT_ROOT": str(tmp_path / "elsewhere")}
    given = {name: value for name, value, *_ in (*CONTRACT, *BEYOND)} | fixed
    done, words = call_shell(tmp_path, **given, EXTRA_ARGS="--amp off --clip_norm 2", WORLD_SIZE="8")
    assert done.returncode == 0, done.stderr
    assert words[:2] == ["WORLD_SIZE=8", "training/train_nuscenes_expert_ddp.py"]
    flags = dict(zip(words[2::2], words[3::2]))
    wanted = {flag: given[name] for name, _, flag, *_ in (*CONTRACT, *BEYOND)}
    assert flags == wanted | {"--amp": "off", "--clip_norm": "2"}
    assert (tmp_path / "elsewhere/logs/nuscenes_expert_mine.log").is_file()

    done, words = call_shell(tmp_path)
    assert done.returncode == 0, done.stderr
    bare = {"--profile": "base", "--data_root": "datasets/nuscenes", "--run_name": "base", "--device": "auto"}
    bare |= {"--resume": "auto", "--output_root": str(tmp_path / "out")}
    assert dict(zip(words[2::2], words[3::2])) == bare


def test_num_gpus_starts_torchrun_and_world_size_is_the_users_own(tmp_path: Path) -> None:
    _, words = call_shell(tmp_path, NUM_GPUS="2", WORLD_SIZE="8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert words[:6] == ["WORLD_SIZE=unset", *torchrun, "training/train_nuscenes_expert_ddp.py"]


def test_help_shows_every_tunable_from_any_folder(tmp_path: Path) -> None:
    for folder, script in ((tmp_path, str(SHELL)), (SHELL.parent, SHELL.name)):
        done = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0
        assert done.stderr == ""
        names = {name for name, *_ in (*CONTRACT, *BEYOND)} | {"NUM_GPUS", "EXTRA_ARGS", "PYTHON"}
        assert all(f"\n{name}=${{{name}:-" in done.stdout for name in names)
        assert "bash training/train_nuscenes_expert_ddp.sh" in done.stdout


@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        ([], {"NUM_GPUS": "two"}, "NUM_GPUS is 'two'; give a number of at least 1."),
        ([], {"NUM_GPUS": "0"}, "NUM_GPUS is '0'"),
        ([], {"EXTRA_ARGS": "--amp off --resume"}, "set RESUME=auto or RESUME=never instead"),
        (["--epochs", "3"], {}, "it is set by environment variables (got '--epochs')"),
    ],
)
def test_a_wrong_value_is_named_before_anything_starts(
    tmp_path: Path, words: list[str], variables: dict[str, str], sentence: str
) -> None:
    done, calls = call_shell(tmp_path, *words, **variables)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert calls == []


def test_a_failing_trainer_is_named_with_its_log_and_the_line_that_goes_on(tmp_path: Path) -> None:
    python = tmp_path / "fails"
    python.write_text("#!/usr/bin/env bash\necho no disk; exit 7\n")
    python.chmod(0o755)
    done, _ = call_shell(tmp_path, PYTHON=str(python), PROFILE="tiny", LR="0.1", EXTRA_ARGS="--amp off")
    assert done.returncode == 7
    assert "nuscenes_expert_tiny.log" in done.stderr
    assert (tmp_path / "out/logs/nuscenes_expert_tiny.log").read_text() == "no disk\n"
    line = done.stderr.split("Go on with: ")[1].strip()
    assert line.startswith("PROFILE=tiny DATA_ROOT=datasets/nuscenes RUN_NAME=tiny LR=0.1 ")
    assert line.endswith(r"EXTRA_ARGS=--amp\ off bash training/train_nuscenes_expert_ddp.sh")


# --- flags ---


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("epochs", 7),
        ("batch_size", 3),
        ("learning_rate", 0.003),
        ("weight_decay", 0.07),
        ("num_workers", 5),
        ("seed", 4),
        ("max_steps", 9),
        ("accumulate", 2),
        ("warmup_steps", 6),
        ("clip_norm", 0.5),
        ("ema_decay", 0.9),
        ("eval_every", 8),
        ("save_steps", 10),
        ("amp", "off"),
        ("compile", True),
        ("resume", "never"),
        ("num_queries", 31),
        ("cost_class", 3.5),
        ("cost_bbox", 0.7),
        ("cost_giou", 0.9),
        ("bbox_loss_weight", 1.3),
        ("sweeps", 7),
        ("train_cameras", 4),
    ],
)
def test_a_flag_wins_over_the_profile(flag: str, value: Any) -> None:
    config = NuscenesStage().configure(NuscenesFlags(profile="tiny", **{flag: value}))
    if flag == "sweeps":
        assert config.sweeps == value
    elif flag == "train_cameras":
        assert config.augment.cameras == value
    elif flag in MODEL_FLAGS:
        assert build_expert("nuscenes", config.model, pretrained=False).config == dataclasses.replace(
            build_expert("nuscenes", NuscenesStage().configure(NuscenesFlags(profile="tiny")).model, pretrained=False)
            .config,
            **{MODEL_FLAGS[flag]: value},
        )  # fmt: skip
    else:
        engine = from_dict(EngineConfig, {**config.engine, "metric": "NDS"}, "engine")
        assert getattr(engine, flag) == value


def test_the_other_flags_act(data_root: Path, tmp_path: Path, run_here: RunHere) -> None:
    """Those that are not in a config: a name, places, a share of the data, a start without pretrained weights."""
    prepared = tmp_path / "prepared"
    words = [str(SCRIPT), "--data_root", str(data_root), "--config", str(write_config(tmp_path / "own.json"))]
    words += ["--output_root", str(tmp_path / "out"), "--prepared_dir", str(prepared), "--version", "v1.0-mini"]
    words += ["--limit", "1", "--device", "cpu", "--max_steps", "1", "--no-pretrained", "--sweeps", "1"]
    code, out, err = run_here(words)
    assert code == 0, err
    assert "1 samples (1 for validation)" in out
    assert "LiDAR with 1 sweeps" in out
    best = load(run_folder(tmp_path / "out", "own") / "best.pth")  # the config's name
    assert PreparedInfo.load(prepared / "detection3d" / "train").options["sweeps"] == 1
    assert best["data_root"] == str(prepared / "detection3d" / "train")
    assert (best["preprocess"]["sweeps"], best["config"]["sweeps"]) == (1, 1)
    assert best["model_config"]["image"]["frozen_stages"] == 0
    assert len(read_submission(run_folder(tmp_path / "out", "own") / "submission.json")[0]) == 1

    elsewhere = {"data_root", "config", "run_name", "output_root", "prepared_dir", "version", "limit", "device"}
    here = {*elsewhere, "profile", "pretrained", "sweeps", "train_cameras", *MODEL_FLAGS, *ENGINE_FLAGS}
    assert {field.name for field in dataclasses.fields(NuscenesFlags)} == here


@pytest.mark.parametrize("profile", sorted(p.parent.name for p in ROOT.glob("models/configs/nuscenes_expert/*/*.json")))
def test_every_profile_on_disk_is_valid(profile: str) -> None:
    config = NuscenesStage().configure(NuscenesFlags(profile=profile))
    model = build_expert("nuscenes", config.model, pretrained=False)
    from_dict(EngineConfig, {**config.engine, "metric": model.metric}, "engine")


# --- a run and what it leaves ---


@pytest.mark.parametrize(("name", "value", "keys"), [(name, value, keys) for name, value, _, keys in CONTRACT])
def test_a_variable_is_what_the_run_records(trained: Trained, name: str, value: str, keys: tuple[str, ...]) -> None:
    assert value_at(trained.best, keys) == float(value)


def test_a_run_leaves_all_that_it_should(trained: Trained) -> None:
    assert {path.name for path in trained.folder.iterdir()} == {
        "best.pth", "last.pth", "submission.json", "metrics.jsonl", "manifest.json",
    }  # fmt: skip
    best = trained.best
    assert (best["expert"], best["component"], best["metric"]["name"]) == ("nuscenes", "nuscenes_expert", "NDS")
    assert tuple(best["classes"]) == NUSCENES_DETECTION
    assert best["preprocess"]["cameras"] == list(NUSCENES_CAMERAS)
    assert best["seed"] == 3
    assert best["world_size"] == 1
    assert set(best["rig"]["cameras"]) == set(NUSCENES_CAMERAS)
    manifest = json.loads((trained.folder / "manifest.json").read_text())
    assert (manifest["state"], manifest["total_steps"], manifest["global_batch_size"]) == ("finished", 24, 2)
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12, 18, 24]
    assert lines[-1]["losses"]["image_bbox"] > 0
    assert max(line["metrics"]["NDS"] for line in lines) == best["metrics"]["NDS"]
    assert best["metrics"]["AP/car"] > 0.1
    assert best["metrics"]["heatmap/AP/car"] > 0
    events = list((trained.output / "models/runs/nuscenes_expert/mine").glob("events.out.tfevents*"))
    assert events
    assert events[0].stat().st_size > 1000


def test_the_submission_scores_as_the_run_did(trained: Trained) -> None:
    path = trained.folder / "submission.json"
    boxes, meta = read_submission(path)
    assert sorted(boxes) == VAL_SAMPLES
    assert (meta["use_camera"], meta["use_lidar"], meta["use_radar"]) == (True, True, False)
    scored = score_nuscenes(trained.data, "v1.0-mini", "mini_val", path).metrics
    own = trained.best["metrics"]
    assert scored == pytest.approx({key: own[key] for key in scored}, abs=1e-6)


def test_evaluation_gives_the_numbers_of_the_run_and_writes_its_submission(
    trained: Trained, tmp_path: Path, one_thread: None
) -> None:
    out, numbers = tmp_path / "submission.json", tmp_path / "metrics.json"
    words = ["evaluate", "--checkpoint", str(trained.folder / "best.pth"), "--data_root", str(trained.data)]
    words += ["--device", "cpu", "--num_workers", "0", "--batch_size", "2"]
    cli.app([*words, "--predictions", str(out), "--json", str(numbers)])
    assert json.loads(numbers.read_text())["metrics"] == pytest.approx(trained.best["metrics"], abs=1e-6)
    mine, _ = read_submission(out)
    theirs, _ = read_submission(trained.folder / "submission.json")
    prepared = PreparedInfo.load(Path(trained.best["data_root"]).parent / "val")
    rows = NuscenesDataset(prepared.path, view_of(trained.best["preprocess"]))
    assert list(mine) == list(theirs)
    for index, token in enumerate(VAL_SAMPLES):
        row = rows.row(index)
        assert row.token == token
        # The run's is cut to the ranges within which boxes are scored.
        scored = mine[token][filter_boxes(mine[token], row.T_world_ego[:2, 3], row.racks)]
        for field in dataclasses.fields(scored):
            one, other = (getattr(boxes, field.name) for boxes in (scored, theirs[token]))
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=field.name)


# --- going on ---


def test_a_terminated_script_goes_on_to_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    """SIGTERM to the shell script between two steps, then the line that it printed: bit for bit the run that was never
    stopped."""
    output = tmp_path / "out"
    real = {"PYTHON": sys.executable, "OUTPUT_ROOT": str(output)}
    process = subprocess.Popen(
        ["bash", str(SHELL)],
        env=environment(tmp_path, **{**trained.variables, **real}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    last = run_folder(output, "mine") / "last.pth"
    until = time.monotonic() + 200
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 143, printed + errors
    assert 1 <= load(last)["progress"]["step"] < 24
    log = output / "logs" / "nuscenes_expert_mine.log"
    assert "Interrupted: step" in log.read_text()
    assert log.read_text() in printed
    lines = {text.split("Go on with: ")[1].splitlines()[0] for text in (printed, errors)}
    assert len(lines) == 1
    line = lines.pop()
    assert line.endswith("bash training/train_nuscenes_expert_ddp.sh")

    bare = environment(tmp_path, PYTHON=sys.executable)
    del bare["OUTPUT_ROOT"]
    done = subprocess.run(["bash", "-c", line], env=bare, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Going on at step" in done.stdout
    assert log.read_text().count("Training the nuscenes expert") == 2
    for name, key in (("best.pth", "model"), ("last.pth", "module"), ("last.pth", "ema")):
        mine, theirs = (load(folder / name)[key] for folder in (last.parent, trained.folder))
        assert mine.keys() == theirs.keys()
        assert all(same(mine[entry], theirs[entry]) for entry in theirs), name
    submissions = [(folder / "submission.json").read_bytes() for folder in (last.parent, trained.folder)]
    assert submissions[0] == submissions[1]
    mine, theirs = (
        [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (last.parent, trained.folder)
    )
    assert mine == theirs


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_run_goes_on_only_as_it_began(trained: Trained, tmp_path: Path, run_here: RunHere) -> None:
    _, words = call_shell(tmp_path, **trained.variables)
    line = [str(SCRIPT), *words[2:]]
    code, out, err = run_here(line)
    assert code == 0, err
    assert "Already finished" in out
    before = {path.name: path.read_bytes() for path in trained.folder.iterdir()}
    costlier = [word if word != "0.31" else "9" for word in line]
    for other, name in (([*line, "--sweeps", "1"], "recipe.sweeps"), (costlier, "model_config.cost_bbox")):
        code, _, err = run_here(other)
        assert code == 2
        assert name in err
    assert {path.name: path.read_bytes() for path in trained.folder.iterdir()} == before


def test_another_folder_and_a_new_start_keep_the_submission_with_its_weights(
    trained: Trained, tmp_path: Path, run_here: RunHere
) -> None:
    theirs = (trained.folder / "submission.json").read_bytes()
    output = tmp_path / "out"
    folder = run_folder(output, "mine")
    _, words = call_shell(tmp_path, **trained.variables | {"OUTPUT_ROOT": str(output)})
    resume = words.index("--resume") + 1
    words[resume] = str(trained.folder / "last.pth")
    code, out, err = run_here([str(SCRIPT), *words[2:]])
    assert code == 0, err
    assert "Already finished" in out
    assert (folder / "best.pth").read_bytes() == (trained.folder / "best.pth").read_bytes()
    assert (folder / "submission.json").read_bytes() == theirs

    words[resume] = "never"
    code, out, err = run_here([str(SCRIPT), *words[2:], "--max_steps", "1"])
    assert code == 0, err
    assert "Starting anew" in out
    assert (folder / "old-1" / "submission.json").read_bytes() == theirs
    assert (folder / "submission.json").read_bytes() != theirs


def test_two_processes_train_as_one(data_root: Path, tmp_path: Path, run_here: RunHere) -> None:
    """With augmentation and missing sensors, and samples without a box: losses, gradients and predictions are those of
    one process."""
    tree = copy_of(data_root, tmp_path / "tree")
    unseen = {"num_lidar_pts": 0, "num_radar_pts": 0}
    edit_table(tree, "sample_annotation", lambda boxes: [b.update(unseen) for b in boxes if b["token"] in UNSEEN])
    for sample in Nuscenes(tree).split("mini_train"):  # points that pictures say a class of, in one process of two
        append_points(sample, sample.boxes.boxes[:, :3])
    engine = ENGINE | {
        "num_workers": 0,
        "learning_rate": 1e-9,
        "amp": "off",
        "log_steps": 1,
        "epochs": 6,
    }  # the weights stay
    file = write_config(
        tmp_path / "calm.json", CALM, engine=engine, augment=AUGMENT | {"flip": 0.5, "paste": 0, "cameras": 5}
    )
    shared = {"EXTRA_ARGS": f"--config {file}", "DEVICE": "cpu", "DATA_ROOT": str(tree), "RUN_NAME": "r"}
    two, one = tmp_path / "two", tmp_path / "one"
    own = {"NUM_GPUS": "2", "BATCH_SIZE": "1", "PYTHON": sys.executable, "OUTPUT_ROOT": str(two)}
    done, _ = call_shell(tmp_path, **shared, **own)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 a process x 2 processes" in done.stdout
    _, words = call_shell(tmp_path, **shared, BATCH_SIZE="2", OUTPUT_ROOT=str(one))
    code, _, err = run_here([str(SCRIPT), *words[2:]])
    assert code == 0, err

    folders = [run_folder(output, "r") for output in (two, one)]
    assert [load(folder / "best.pth")["world_size"] for folder in folders] == [2, 1]
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == list(range(2, 13, 2))
    assert any(line["losses"]["point"] > 0 for line in lines[1])
    for mine, theirs in zip(*lines):
        assert theirs["losses"]["grad_norm"] > 0
        for key, value in theirs["losses"].items():
            tolerance = 1e-3 if key == "grad_norm" else 1e-4
            assert mine["losses"][key] == pytest.approx(value, rel=tolerance, abs=1e-5), key
    mine, theirs = (read_submission(folder / "submission.json")[0] for folder in folders)
    assert list(mine) == list(theirs) == VAL_SAMPLES
    for token, boxes in theirs.items():
        np.testing.assert_allclose(mine[token].score, boxes.score, atol=1e-5)
        np.testing.assert_allclose(mine[token].translation, boxes.translation, atol=1e-3)


UNSEEN = ["scene-a-car-0", "scene-a-car-1", "scene-b-car-0"]
"""Boxes that two processes do without: at times neither has one."""


# --- bad input ---


def test_broken_files_are_left_out_and_the_run_goes_on(data_root: Path, tmp_path: Path, run_here: RunHere) -> None:
    tree = copy_of(data_root, tmp_path / "tree")
    points = tree / "samples/LIDAR_TOP/scene-a-LIDAR_TOP-0-0.pcd.bin"
    points.write_bytes(points.read_bytes()[:-7])
    picture = tree / "samples/CAM_BACK/scene-a-CAM_BACK-1.jpg"
    picture.write_bytes(picture.read_bytes()[:-60])
    other = simplejpeg.encode_jpeg(np.zeros((9, 16, 3), np.uint8))
    (tree / "samples/CAM_FRONT/scene-b-CAM_FRONT-0.jpg").write_bytes(other)
    words = [str(SCRIPT), "--data_root", str(tree), "--config", str(write_config(tmp_path / "t.json"))]
    code, out, err = run_here([*words, "--output_root", str(tmp_path / "out"), "--device", "cpu", "--max_steps", "1"])
    assert code == 0, err
    assert "3 broken samples" in out
    assert "1 samples (2 for validation)" in out
    why = {one.name: one.reason for one in PreparedInfo.load(tree / "automoe_prepared/detection3d/train").quarantine()}
    assert "cut short" in why["scene-a-sample-0"]
    assert "JPEG" in why["scene-a-sample-1"]
    assert "is 16x9, and sample_data.json says 96x54" in why["scene-b-sample-0"]
    assert len(why) == 3


@pytest.mark.parametrize(
    ("table", "change", "record"),
    [
        ("sample_data", {"ego_pose_token": "nobody"}, "scene-a-CAM_FRONT-0"),
        ("sample_annotation", {"instance_token": "nobody"}, "scene-a-car-0"),
        ("calibrated_sensor", {"translation": [1.0, math.nan, 0.0]}, "scene-a-CAM_FRONT-0"),
        ("calibrated_sensor", {"camera_intrinsic": [[math.nan, 0, 1], [0, 1, 1], [0, 0, 1]]}, "scene-a-CAM_FRONT-0"),
    ],
)
def test_damaged_tables_are_named(
    data_root: Path, tmp_path: Path, run_here: RunHere, table: str, change: dict[str, Any], record: str
) -> None:
    tree = copy_of(data_root, tmp_path / "tree")
    edit_table(tree, table, lambda records: records[0].update(change))
    words = [str(SCRIPT), "--data_root", str(tree), "--config", str(write_config(tmp_path / "t.json"))]
    code, _, err = run_here([*words, "--output_root", str(tmp_path / "out"), "--device", "cpu", "--max_steps", "1"])
    assert code == 2
    assert f"{table}.json" in err
    assert record in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "models").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--data_root", "/no/such/data"], "/no/such/data"),
        (["--profile", "huge"], "no profile 'huge' for nuscenes_expert; there are "),
        (["--sweeps", "11"], "sweeps is 11; give 0 to 10"),
        (["--sweeps", "-1"], "sweeps is -1"),
        (["--version", "v1.0-test"], "v1.0-test"),
        (["--num_query", "3"], "--num_queries"),
        (["--num_queries", "many"], "num_queries"),
        (["--num_queries", "0"], "num_queries is 0"),
        (["--cost_class", "-1"], "cost_class"),
        (["--cost_bbox", "nan"], "cost_bbox"),
        (["--bbox_loss_weight", "-1"], "bbox_weight is -1"),
        (["--limit", "0"], "limit of samples must be at least 1"),
        (["--batch_size", "0"], "batch_size"),
        (["--device", "cuda"], "no CUDA device"),
        (["--resume", "/no/such/file.pth"], "/no/such/file.pth"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    flags: list[str], sentence: str, data_root: Path, tmp_path: Path, run_here: RunHere
) -> None:
    if flags[0] == "--device" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    words = [str(SCRIPT), "--output_root", str(tmp_path / "out"), "--max_steps", "1"]
    if flags[0] != "--data_root":
        words += ["--data_root", str(data_root)]
    if flags[0] != "--profile":
        words += ["--config", str(write_config(tmp_path / "t.json"))]
    code, _, err = run_here([*words, *flags])
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"sweep": 3}, "has no setting 'sweep'; did you mean 'sweeps'?"),
        ({"model": {"num_querys": 3}}, "model has no setting 'num_querys'; did you mean 'num_queries'?"),
        ({"model": {"image": {"dims": 3}}}, "model.image has no setting 'dims'; did you mean 'dim'?"),
        ({"model": {"grid": {"reach": 25.0}}}, "multiple of 8"),
        ({"model": {"cameras": ["CAM_TOP"]}}, "model.cameras has 'CAM_TOP'"),
        ({"model": {"cameras": [], "lidar": False}}, "neither cameras nor a LiDAR"),
        ({"augment": {"flips": 0.5}}, "augment has no setting 'flips'; did you mean 'flip'?"),
        ({"augment": {"drop_lidar": 0.5, "drop_cameras": 0.5}}, "must leave some samples whole"),
        ({"engine": {"epoch": 3}}, "engine has no setting 'epoch'; did you mean 'epochs'?"),
        ({"size": [64, 100]}, "size is [64, 100]"),
    ],
)
def test_a_config_that_makes_no_sense_is_named(
    more: dict[str, Any], sentence: str, data_root: Path, tmp_path: Path, run_here: RunHere
) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps(json.loads(write_config(file).read_text()) | more))
    code, _, err = run_here(
        [str(SCRIPT), "--data_root", str(data_root), "--output_root", str(tmp_path), "--config", str(file)]
    )
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


# --- parts of it ---


def test_the_image_only_variant_is_the_image_branch(trained: Trained, one_thread: None) -> None:
    expert = load_expert(trained.folder / "best.pth")
    weights = {
        key.removeprefix("image."): value for key, value in trained.best["model"].items() if key.startswith("image.")
    }
    alone = build_expert("nuscenes_2d", trained.best["model_config"]["image"], pretrained=False)
    alone.load_state_dict(weights, strict=True)
    alone.eval()
    assert alone.classes == NUSCENES_DETECTION
    view = view_of(expert.payload["preprocess"])
    val = NuscenesDataset(Path(trained.best["data_root"]).parent / "val", view)
    batch = collate([val[index] for index in range(len(val))])
    with torch.no_grad():
        whole = expert.model(batch)["image"]
        own = alone(alone.normalise(batch["image"].flatten(0, 1)))
    pictures, queries = len(val) * len(view.cameras), IMAGE["num_queries"]
    assert own["boxes"].shape == (IMAGE["decoder_layers"], pictures, queries, 4)
    assert own["logits"].shape == (IMAGE["decoder_layers"], pictures, queries, len(NUSCENES_DETECTION))
    assert own.keys() == whole.keys()
    for key in ("boxes", "logits", "seed_boxes", "seed_logits", "tokens", "token_positions"):
        assert torch.equal(own[key], whole[key]), key
    raw = alone.predict(batch["image"][0], torch.eye(2, 3).expand(6, 2, 3), torch.tensor([view.size]).expand(6, 2))
    assert len(raw) == len(view.cameras)
    assert raw[0]["boxes"].shape[1] == 4


@pytest.mark.parametrize(
    ("name", "model", "words", "sensors"),
    [
        ("lidar", {"cameras": []}, "no camera, LiDAR with 2 sweeps", (False, True)),
        ("cameras", {"lidar": False}, "6 cameras at 96x64, no LiDAR", (True, False)),
        ("front", {"cameras": ["CAM_FRONT"], "lidar": False}, "1 cameras at 96x64, no LiDAR", (True, False)),
        ("back", {"cameras": ["CAM_BACK"]}, "1 cameras at 96x64, LiDAR with 2 sweeps", (True, True)),
    ],
)
def test_fewer_sensors_are_trained_and_evaluated(
    trained: Trained,
    tmp_path: Path,
    run_here: RunHere,
    name: str,
    model: dict[str, Any],
    words: str,
    sensors: tuple[bool, bool],
) -> None:
    line = [
        str(SCRIPT),
        "--data_root",
        str(trained.data),
        "--config",
        str(write_config(tmp_path / f"{name}.json", model)),
    ]
    code, out, err = run_here(
        [*line, "--output_root", str(tmp_path), "--device", "cpu", "--max_steps", "2", "--batch_size", "2"]
    )
    assert code == 0, err
    assert words in out
    assert "preparing" not in out  # what has all sensors serves those who want fewer
    folder = run_folder(tmp_path, name)
    best = load(folder / "best.pth")
    _, meta = read_submission(folder / "submission.json")
    assert (meta["use_camera"], meta["use_lidar"]) == sensors
    assert any(key.startswith("image.") for key in best["model"]) == sensors[0]
    metrics = evaluate_checkpoint(folder / "best.pth", trained.data, device="cpu", num_workers=0, batch_size=2)
    assert metrics == pytest.approx(best["metrics"], abs=1e-6)


def test_a_set_without_the_sensors_of_a_checkpoint_is_prepared_again(trained: Trained, tmp_path: Path) -> None:
    """As a LiDAR-only run on the raw tree would have left it."""
    tree = copy_of(trained.data, tmp_path / "tree")
    few = ensure_prepared(tree, TASK, "val", options={"sweeps": 0, "cameras": []})
    assert few.options["cameras"] == []
    metrics = evaluate_checkpoint(trained.folder / "best.pth", tree, device="cpu", num_workers=0, batch_size=2)
    assert metrics == pytest.approx(trained.best["metrics"], abs=1e-6)
    assert set(ensure_prepared(tree, TASK, "val").options["cameras"]) == set(NUSCENES_CAMERAS)
