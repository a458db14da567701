"""The trainers of what drives, through their entry points: policy, gating network and its shell script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from carla_runs import write_bend
from trained_experts import Trained, trained  # noqa: F401 - a fixture

from automoe.carla.run import SHIFTED
from automoe.data.prepared import ensure_prepared
from automoe.data.sequences import Observation
from automoe.drive.agent import ModelAgent
from automoe.experts.inference import load_expert
from automoe.moe.checkpoint import TrainedDriver, load_driving_model
from automoe.moe.routers import uniform
from automoe.moe.tokens import LiveTokens

RunHere = Callable[[list[str]], tuple[int, str, str]]

ROOT = Path(__file__).resolve().parents[2]
SHELL = ROOT / "training" / "train_gating_network.sh"
GATING = ROOT / "training" / "train_gating_network.py"
POLICY = ROOT / "training" / "train_carla_policy.py"
EXPERTS = ("detection", "drivable", "segmentation")
SHAPE: dict[str, Any] = {
    "context": {"size": [32, 48], "frozen_stages": 0},
    "planner": {"dim": 32, "heads": 2, "layers": 1},
    "sequence": {"path_metres": 6},
    "engine": {
        "epochs": 1000, "batch_size": 4, "max_steps": 3, "num_workers": 0, "eval_every": 1000, "warmup_steps": 1,
        "log_steps": 1, "ema_decay": 0.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared runs of two towns, with a camera that stands aside."""
    base = tmp_path_factory.mktemp("driving")
    for index in (1, 2):
        write_bend(base / "raw", index, frames=14, shift=(0.8, 3.0))
    options = {"cameras": ["front", SHIFTED], "val_towns": ["Town02"]}
    for split in ("train", "val"):
        ensure_prepared(base / "raw", "frames", split, base / "out", options=options, say=lambda _: None)
    return base / "out"


def policy_config(folder: Path) -> Path:
    path = folder / "policy.json"
    path.write_text(json.dumps(SHAPE))
    return path


def gating_config(folder: Path, trained: Trained, **more: Any) -> Path:  # noqa: F811
    entries = {name: {"kind": name, "checkpoint": str(trained.checkpoint(name))} for name in EXPERTS}
    path = folder / "gate" / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"experts": entries, **SHAPE, **more}))
    return path


def words(script: Path, data_root: Path, output: Path, config: Path, *more: str) -> list[str]:
    return [
        str(script), "--data_root", str(data_root), "--output_root", str(output), "--config", str(config),
        "--run_name", "mine", "--device", "cpu", "--no-pretrained", *more,
    ]  # fmt: skip


def best(output: Path, component: str) -> TrainedDriver:
    return load_driving_model(output / "models" / "checkpoints" / component / "mine" / "best.pth")


def looked(dead: bool = False) -> Observation:
    size = (0, 0, 3) if dead else (48, 64, 3)
    image = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    motion, route = np.array([[5.0, 0.1]], np.float32), np.array([[10.0, 0.5], [30.0, 4.0]], np.float32)
    return Observation(0.0, image, motion, 0, route, np.zeros(2, np.float32))


def test_a_policy_is_trained_and_drives_from_its_file(run_here: RunHere, data_root: Path, tmp_path: Path) -> None:
    command = words(POLICY, data_root, tmp_path, policy_config(tmp_path))
    code, out, err = run_here(command)
    assert code == 0, err
    assert "path_error" in out
    driver = best(tmp_path, "carla_policy")
    assert driver.rig["cameras"]["front"]["size"] == [48, 64]
    assert driver.payload["towns"] == ["Town01"]
    metrics = driver.payload["metrics"]
    assert metrics["planning_error"] == pytest.approx(metrics["path_error"] + metrics["ade"] + metrics["speed_mae"])
    agent = ModelAgent(driver)
    first = agent.act(looked())
    assert first == agent.act(looked())  # it has no memory
    assert agent.trouble == {}
    assert agent.act(looked(dead=True)).brake > 0.0
    assert agent.trouble == {"dead camera": 1}
    code, out, _ = run_here(command)
    assert code == 0
    assert "Already finished" in out


@pytest.mark.parametrize("more", [(), ("--blind",)])
def test_a_policy_is_trained_in_two_processes(data_root: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Every weight has a gradient at every step, or the processes wait for it in vain."""
    command = words(POLICY, data_root, tmp_path, policy_config(tmp_path), *more)
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node=2"]
    clean = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *command], env=clean, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 3 steps" in done.stdout


def test_a_plan_that_is_not_finite_stops_the_car(run_here: RunHere, data_root: Path, tmp_path: Path) -> None:
    assert run_here(words(POLICY, data_root, tmp_path, policy_config(tmp_path), "--blind"))[0] == 0
    driver = best(tmp_path, "carla_policy")
    assert driver.model.config.context.blind
    agent = ModelAgent(driver)
    assert agent.act(looked(dead=True)).brake < 0.3  # who is shown no picture misses none
    with torch.no_grad():
        driver.model.planner.pace.bias.fill_(float("nan"))
    control = agent.act(looked())
    assert control.brake > 0.3
    assert control.throttle == 0.0
    assert agent.trouble == {"plan not finite": 1}


def test_a_gate_is_trained_on_frozen_experts(
    run_here: RunHere,
    trained: Trained,  # noqa: F811
    data_root: Path,
    tmp_path: Path,
) -> None:
    command = words(GATING, data_root, tmp_path, gating_config(tmp_path, trained))
    code, out, err = run_here(command)
    assert code == 0, err
    assert "detection: looking at" in out
    driver = best(tmp_path, "gating_network")
    assert driver.model.names == EXPERTS
    for name in EXPERTS:
        source = load_expert(trained.checkpoint(name)).model.state_dict()
        frozen = driver.model.experts[name].model.state_dict()
        assert source.keys() == frozen.keys()
        assert all(torch.equal(value, frozen[key]) for key, value in source.items())
    use = [driver.payload["metrics"][f"use/{name}"] for name in EXPERTS]
    assert sum(use) == pytest.approx(2.0)
    agent = ModelAgent(driver)
    agent.act(looked())
    live = agent.propagation.source
    assert isinstance(live, LiveTokens)
    assert {name for name, calls in live.calls.items() if calls} == set(agent.shown()["ran"])
    assert sum(live.calls.values()) == 2
    assert sum(weight > 0 for weight in agent.shown()["weights"].values()) == 2
    ModelAgent(driver, router=uniform()).act(looked())
    # Another run finds what the experts saw in the cache.
    code, out, _ = run_here([*command, "--resume", "never"])
    assert code == 0
    assert "detection: what it sees of" in out
    assert "looking at" not in out


def test_a_stem_that_learns_nothing_looks_once(run_here: RunHere, data_root: Path, tmp_path: Path) -> None:
    config = tmp_path / "policy.json"
    context = {**SHAPE["context"], "frozen_stages": 4}
    config.write_text(json.dumps({**SHAPE, "context": context, "recolored": 1}))
    command = words(POLICY, data_root, tmp_path, config, "--token_cache", str(tmp_path / "tokens"))
    code, out, err = run_here(command)
    assert code == 0, err
    assert "the stem: looking at" in out
    driver = best(tmp_path, "carla_policy")
    assert driver.model.context.stem_is_frozen
    assert ModelAgent(driver).act(looked()).throttle >= 0.0
    code, out, _ = run_here([*command, "--resume", "never"])
    assert code == 0
    assert "the stem: what it sees of" in out
    # A run that goes on must not be fed with what another stem saw.
    pretrained = ["--pretrained" if word == "--no-pretrained" else word for word in command]
    code, _, err = run_here([*pretrained, "--max_steps", "5"])
    assert code == 2
    assert "has another stem" in err


def test_a_policy_on_a_gate_keeps_the_gate(
    run_here: RunHere,
    trained: Trained,  # noqa: F811
    data_root: Path,
    tmp_path: Path,
) -> None:
    assert run_here(words(GATING, data_root, tmp_path, gating_config(tmp_path, trained)))[0] == 0
    gated, config = best(tmp_path, "gating_network"), policy_config(tmp_path)
    flags = words(POLICY, data_root, tmp_path, config, "--gating_checkpoint", str(gated.path))
    named = flags.index("--run_name")
    code, _, err = run_here(flags[:named] + flags[named + 2 :])
    assert code == 0, err
    own = f"{config.stem}_gated"  # another one than that of a policy without experts
    policy = load_driving_model(tmp_path / "models" / "checkpoints" / "carla_policy" / own / "best.pth")
    before, after = gated.model.state_dict(), policy.model.state_dict()
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed <= {"planner", "adapters"}
    assert "planner" in changed


def test_a_policy_is_trained_on_a_gate_that_chooses_one(
    run_here: RunHere,
    trained: Trained,  # noqa: F811
    data_root: Path,
    tmp_path: Path,
) -> None:
    config = gating_config(tmp_path, trained, gate={"top_k": 1})
    assert run_here(words(GATING, data_root, tmp_path, config))[0] == 0
    gated = best(tmp_path, "gating_network")
    flags = words(POLICY, data_root, tmp_path, policy_config(tmp_path), "--gating_checkpoint", str(gated.path))
    code, _, err = run_here(flags)
    assert code == 0, err
    alone = gating_config(tmp_path, trained, gate={"top_k": 1, "supervision": "none"})
    code, _, err = run_here(words(GATING, data_root, tmp_path, alone))
    assert code == 2
    assert "give supervision utility" in err


def test_missing_and_foreign_experts_are_named(
    run_here: RunHere,
    trained: Trained,  # noqa: F811
    data_root: Path,
    tmp_path: Path,
) -> None:
    config = gating_config(tmp_path, trained)
    there = [str(trained.checkpoint(name)) for name in EXPERTS]
    gone = words(GATING, data_root, tmp_path, config, "--expert_checkpoints", there[0], "/no/a.pth", "/no/b.pth")
    code, _, err = run_here(gone)
    assert code == 2
    assert "drivable (/no/a.pth), segmentation (/no/b.pth)" in err
    swapped = words(GATING, data_root, tmp_path, config, "--expert_checkpoints", there[1], there[0], there[2])
    code, _, err = run_here(swapped)
    assert code == 2
    assert "is a drivable expert, where the config wants detection" in err
    code, _, err = run_here(words(GATING, data_root, tmp_path, config, "--expert_checkpoints", there[0]))
    assert code == 2
    assert "has 1 files" in err
    code, _, err = run_here(words(GATING, data_root, tmp_path, config, "--world_size", "2"))
    assert code == 2
    assert "torchrun --nproc_per_node=2" in err
    entries = json.loads(config.read_text())["experts"]
    named = gating_config(tmp_path, trained, experts={**entries, "a+b": entries["detection"]})
    code, _, err = run_here(words(GATING, data_root, tmp_path, named))
    assert code == 2
    assert "can't be named 'a+b'" in err
    wrong = gating_config(tmp_path, trained, gate={"topk": 1})
    code, _, err = run_here(words(GATING, data_root, tmp_path, wrong))
    assert code == 2
    assert "did you mean 'top_k'" in err


def shell(config: Path, data_root: Path, output: Path, **more: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    own = {
        "CONFIG": str(config), "RUN_NAME": "mine", "DATA_ROOT": str(data_root), "OUTPUT_ROOT": str(output),
        "DEVICE": "cpu", "OMP_NUM_THREADS": "1", "EXTRA_ARGS": "--no-pretrained",
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(SHELL)], env=clean | own | more, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_script_checks_its_experts_and_writes_the_config(
    trained: Trained,  # noqa: F811
    data_root: Path,
    tmp_path: Path,
) -> None:
    """WORLD_SIZE is the number of processes: two of them run, and torchrun's own variables are theirs."""
    config = gating_config(tmp_path, trained, shifted=0.25)
    four = {**json.loads(config.read_text())}
    four["experts"]["nuscenes_2d"] = {"kind": "detection", "checkpoint": "x.pth"}
    config.write_text(json.dumps(four))
    said = shell(config, data_root, tmp_path)
    assert said.returncode == 2
    assert said.stderr.count("there is no expert checkpoint") == 4
    assert json.loads(config.read_text()) == four  # nothing was touched
    places = {"detection": "detection_expert", "drivable": "drivable_expert", "segmentation": "segmentation_expert"}
    for name, folder in {**places, "nuscenes_2d": "nuscenes_2d"}.items():
        place = tmp_path / "models" / "checkpoints" / f"carla_{folder}_ddp" / "mine" / "best.pth"
        place.parent.mkdir(parents=True)
        place.write_bytes(trained.checkpoint(name if name in places else "detection").read_bytes())
    wrong = shell(config, data_root, tmp_path, BATCH_SIZE="many")
    assert wrong.returncode == 2
    assert "batch_size" in wrong.stderr
    assert json.loads(config.read_text()) == four
    odd = tmp_path / "odd.json"
    odd.write_text("[]")
    said = shell(odd, data_root, tmp_path)
    assert said.returncode == 2
    assert "odd.json must be an object of settings" in said.stderr
    epochs = tmp_path / "epochs.json"
    epochs.write_text(json.dumps(four))
    assert shell(epochs, data_root, tmp_path, EPOCHS="1", RUN_NAME="epochs", EXPERTS="mine").returncode == 0
    assert json.loads(epochs.read_text())["engine"].items() >= {"epochs": 1, "batch_size": 4}.items()
    assert not {"max_steps", "eval_every"} & set(json.loads(epochs.read_text())["engine"])
    said = shell(config, data_root, tmp_path, WORLD_SIZE="2", BATCH_SIZE="2", LEARNING_RATE="0.002", MAX_STEPS="2")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "2 a process x 2 processes" in said.stdout
    assert "after 2 steps" in said.stdout
    now = json.loads(config.read_text())  # a quick look's bound is not in it
    assert now["engine"] == {**SHAPE["engine"], "batch_size": 2, "learning_rate": 0.002}
    assert (now["shifted"], now["world_size"]) == (0.25, 2)
    assert now["experts"]["segmentation"]["checkpoint"].endswith("carla_segmentation_expert_ddp/mine/best.pth")
    assert {key: now[key] for key in ("context", "planner", "sequence")} == {
        key: SHAPE[key] for key in ("context", "planner", "sequence")
    }
    assert best(tmp_path, "gating_network").model.names == (*EXPERTS, "nuscenes_2d")
    assert (tmp_path / "models" / "runs" / "gating_network" / "mine").is_dir()
    assert (tmp_path / "logs" / "gating_network_mine.log").is_file()
