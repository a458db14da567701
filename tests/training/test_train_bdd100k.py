"""`train_bdd100k_ddp.py` as a user runs it: real processes on a small tree in the official layout."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bdd100k_tree import edit_labels, write_bdd100k_tree
from entry_points import start

from automoe.config import from_dict
from automoe.engine.config import EngineConfig
from automoe.errors import ConfigError
from automoe.experts.inference import load_expert
from automoe.experts.registry import build_expert
from automoe.stages.bdd100k import stage_of
from automoe.stages.entry import command_line
from automoe.stages.train_expert import ENGINE_FLAGS, TrainFlags

RunHere = Callable[[list[str]], tuple[int, str, str]]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "train_bdd100k_ddp.py"
MODEL = {
    "detection": {"dim": 16, "num_queries": 10, "decoder_layers": 2, "heads": 2, "dropout": 0.1},
    "drivable": {"dim": 16, "dropout": 0.1},
    "segmentation": {"dim": 16},
}
METRIC = {"detection": "AP", "drivable": "mIoU_3class", "segmentation": "mIoU"}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bdd100k")
    write_bdd100k_tree(root, train=8, val=4, size=(128, 72))
    return root


def config(folder: Path, task: str) -> Path:
    path = folder / f"{task}.json"
    engine = {"epochs": 3, "batch_size": 2, "num_workers": 0, "warmup_steps": 1, "ema_decay": 0.9, "eval_every": 3}
    path.write_text(json.dumps({"size": [64, 96], "model": MODEL[task], "engine": engine}))
    return path


def command(task: str, data_root: Path, out: Path, *flags: str) -> list[str]:
    words = [str(SCRIPT), "--task", task, "--data_root", str(data_root), "--output_root", str(out)]
    return [*words, "--config", str(config(out.parent, task)), "--run_name", "r", *flags]


@pytest.mark.parametrize("task", ["detection", "drivable", "segmentation"])
def test_every_task_trains_and_leaves_a_checkpoint_that_runs_alone(
    task: str, data_root: Path, tmp_path: Path, run_here: RunHere
) -> None:
    code, out, err = run_here(command(task, data_root, tmp_path / "out", "--max_steps", "3"))
    assert code == 0, err
    assert "Global batch size 2" in out
    folder = tmp_path / "out" / "models" / "checkpoints" / f"bdd100k_{task}_expert" / "r"
    payload = torch.load(folder / "best.pth", weights_only=True)
    assert payload["expert"] == task
    assert payload["metric"]["name"] == METRIC[task]
    assert payload["preprocess"]["size"] == [64, 96]
    assert len(payload["classes"]) == {"detection": 10, "drivable": 3, "segmentation": 19}[task]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert list((tmp_path / "out" / "models" / "runs" / f"bdd100k_{task}_expert" / "r").glob("events*"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert METRIC[task] in lines[-1]["metrics"]
    assert load_expert(folder / "best.pth").predict([np.zeros((72, 128, 3), np.uint8)])


def test_a_killed_run_goes_on_to_the_same_weights(data_root: Path, tmp_path: Path, run_here: RunHere) -> None:
    """SIGKILL in mid-epoch, then the same line again: bit for bit the weights of a run that was never stopped."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run_here(command("detection", data_root, tmp_path / "a" / "out"))[0] == 0
    words = command("detection", data_root, tmp_path / "b" / "out", "--save_steps", "1")
    process = start(words)
    last = tmp_path / "b/out/models/checkpoints/bdd100k_detection_expert/r/last.pth"
    until = time.monotonic() + 200
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 1 <= torch.load(last, weights_only=True)["progress"]["step"] < 12
    code, out, err = run_here(words)
    assert code == 0, err
    assert "Going on at step" in out
    best = [
        torch.load(tmp_path / side / "out/models/checkpoints/bdd100k_detection_expert/r/best.pth", weights_only=True)
        for side in "ab"
    ]
    assert best[0]["model"].keys() == best[1]["model"].keys()
    assert all(torch.equal(value, best[1]["model"][key]) for key, value in best[0]["model"].items())
    assert best[0]["metrics"] == best[1]["metrics"]


def test_a_terminated_run_saves_names_its_resume_command_and_exits_143(data_root: Path, tmp_path: Path) -> None:
    process = start(command("drivable", data_root, tmp_path / "out", "--epochs", "1000"))
    assert process.stdout is not None
    head = ""
    for line in process.stdout:
        head += line
        if line.startswith("Global batch size"):
            break
    time.sleep(1)
    process.terminate()
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 143, head + rest
    assert "1 process" in head  # WORLD_SIZE alone is no torchrun
    assert "Go on with: " in rest
    assert "--epochs 1000" in rest
    assert (tmp_path / "out/models/checkpoints/bdd100k_drivable_expert/r/last.pth").is_file()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--device", "cuda"), "no CUDA device"),
        (("--epoch", "3"), "--epochs"),
        (("--task", "lanes"), "lanes"),
        (("--batch_size", "0"), "batch_size"),
        (("--resume", "/no/such/file.pth"), "/no/such/file.pth"),
        (("--config", "/no/such/config.json"), "/no/such/config.json"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    flags: tuple[str, ...], sentence: str, data_root: Path, tmp_path: Path, run_here: RunHere
) -> None:
    if flags[0] == "--device" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    words = [str(SCRIPT), "--data_root", str(data_root), "--output_root", str(tmp_path / "out")]
    if flags[0] != "--config":
        words += ["--config", str(config(tmp_path, "detection"))]
    code, _, err = run_here([*words, *flags])
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


def test_two_processes_train_as_one(data_root: Path, tmp_path: Path, run_here: RunHere) -> None:
    """Under torchrun, with one rank's batch or both at times without a box: losses and gradients are those of one."""
    tree = shutil.copytree(data_root, tmp_path / "tree", ignore=shutil.ignore_patterns("automoe_prepared"))
    edit_labels(tree, "train", lambda frames: [frame.update(labels=None) for frame in frames[::2]])
    calm = {"dropout": 0.0, "denoising_weight": 0.0}  # chance is drawn for each rank
    engine = {"max_steps": 4, "num_workers": 0, "learning_rate": 1e-9, "amp": "off"}  # the weights stay as they are
    file = tmp_path / "calm.json"
    file.write_text(json.dumps({"size": [64, 96], "model": MODEL["detection"] | calm, "engine": engine}))
    shared = [str(SCRIPT), "--data_root", str(tree), "--config", str(file), "--run_name", "r", "--device", "cpu"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start([*launcher, *shared, "--batch_size", "1", "--output_root", str(tmp_path / "two")])
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    code, _, err = run_here([*shared, "--batch_size", "2", "--output_root", str(tmp_path / "one")])
    assert code == 0, err

    folders = [tmp_path / name / "models/checkpoints/bdd100k_detection_expert/r" for name in ("two", "one")]
    two, one = (json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in folders)
    assert two["step"] == one["step"] == 4
    assert one["losses"]["grad_norm"] > 0
    for key, value in one["losses"].items():
        assert two["losses"][key] == pytest.approx(value, rel=1e-3 if key == "grad_norm" else 1e-4, abs=1e-5), key


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
    ],
)
def test_a_flag_wins_over_the_profile(flag: str, value: object) -> None:
    assert set(ENGINE_FLAGS) <= {field.name for field in dataclasses.fields(TrainFlags)}
    stage = stage_of("detection").configure(TrainFlags(profile="tiny", **{flag: value}))
    engine = from_dict(EngineConfig, {**stage.engine, "metric": "AP"}, "engine")
    assert getattr(engine, flag) == value


def test_the_line_that_goes_on_never_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOMOE_RESUME_COMMAND", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(
        sys, "argv", ["t.py", "--resume", "never", "--epochs", "3", "--resume=/a/last.pth", "--limit", "4"]
    )
    assert command_line() == "python3 t.py --epochs 3 --limit 4"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert command_line() == "torchrun --nproc_per_node=4 t.py --epochs 3 --limit 4"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert "--nnodes=2" in command_line()
    monkeypatch.setenv("AUTOMOE_RESUME_COMMAND", "bash again.sh")
    assert command_line() == "bash again.sh"


def test_missing_data_says_where_it_looked(tmp_path: Path, run_here: RunHere) -> None:
    code, _, err = run_here([str(SCRIPT), "--data_root", str(tmp_path / "nothing"), "--output_root", str(tmp_path)])
    assert code == 2
    assert str(tmp_path / "nothing") in err


@pytest.mark.parametrize("profile", ["tiny", "small", "base"])
@pytest.mark.parametrize("task", ["detection", "drivable", "segmentation"])
def test_every_profile_on_disk_is_valid(task: str, profile: str) -> None:
    stage = stage_of(task).configure(TrainFlags(profile=profile))
    model = build_expert(task, stage.model, pretrained=False)
    from_dict(EngineConfig, {**stage.engine, "metric": model.metric}, "engine")
    assert stage.size[0] % 32 == 0
    assert stage.size[1] % 32 == 0


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"size": [360, 640]}, r"size is \[360, 640\].*multiples of 32"),
        ({"size": [96, 96], "crop": [0, 64]}, r"crop is \[0, 64\].*multiples of 32"),
        ({"size": [96, 96], "crop": [64, 128]}, r"crop is \[64, 128\], larger than the size \[96, 96\]"),
    ],
)
def test_sizes_that_make_no_sense_are_named(tmp_path: Path, sizes: dict[str, list[int]], sentence: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sizes))
    with pytest.raises(ConfigError, match=sentence):
        stage_of("drivable").configure(TrainFlags(config=path))


def test_a_run_goes_on_only_with_the_same_crop(data_root: Path, tmp_path: Path, run_here: RunHere) -> None:
    words = command("drivable", data_root, tmp_path / "out", "--max_steps", "2")
    path = config(tmp_path, "drivable")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"crop": [32, 64]}))
    code, out, err = run_here(words)
    assert code == 0, err
    assert "at 96x64 in pieces of 64x32" in out
    path.write_text(json.dumps(whole))
    code, _, err = run_here([*words[:-1], "3"])
    assert code == 2
    assert "crop" in err


def test_epochs_mean_epochs_whatever_bound_the_profile_has() -> None:
    assert "max_steps" in stage_of("drivable").configure(TrainFlags(profile="tiny")).engine
    engine = stage_of("drivable").configure(TrainFlags(profile="tiny", epochs=2)).engine
    assert engine["epochs"] == 2
    assert "max_steps" not in engine


def test_help_says_what_it_does_and_how_to_launch(run_here: RunHere) -> None:
    code, out, _ = run_here([str(SCRIPT), "--help"])
    assert code == 0
    for word in ("--task", "--learning_rate", "--max_steps", "torchrun", "best.pth"):
        assert word in out
