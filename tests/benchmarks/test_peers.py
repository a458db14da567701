"""The benchmark beside the peers: rows for every model, the same scoring for all, and no row trained twice."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from bdd100k_tree import write_bdd100k_tree

from automoe.config import profile_path, read_json
from automoe.engine import checkpoint
from automoe.errors import ConfigError
from automoe.experts.dense import DenseExpert
from automoe.metrics.detection import DetectionMetrics

pytest.importorskip("transformers", reason="the peers are an optional extra: automoe[peers]")

SIZE = (64, 96)


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("peers")


@pytest.fixture(scope="module")
def models(peers: ModuleType) -> ModuleType:
    return importlib.import_module("peers_models")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Arguments for a benchmark of seconds: a painted tree and a config of small images."""
    config = read_json(profile_path("bdd100k_detection_expert", "tiny"))
    config["size"] = list(SIZE)
    config["model"] = {"frozen_stages": 1}
    config["engine"] |= {"batch_size": 2, "num_workers": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return [
        *("--data_root", str(write_bdd100k_tree(tmp_path / "bdd100k", size=SIZE[::-1])), "--profile", "test"),
        *("--config", str(tmp_path / "config.json"), "--output_root", str(tmp_path), "--device", "cpu"),
        *("--out", str(tmp_path / "peers.json")),
    ]


def test_rows_of_all_models_and_none_trained_twice(
    peers: ModuleType, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*command, "--steps", "2", "--tasks", "detection", "--peer", "num_queries=20"]
    data = peers.run(peers.parse(options))
    rows = data["tasks"]["detection"]["rows"]
    assert list(rows) == ["ours", "peer"]
    for row in rows.values():
        assert set(row["headline"]) == {"AP", "AP50", "AP50_common", "AP50/car"}
        assert row["training"]["steps"] == 2
        assert row["training"]["seconds"] > 0
        assert row["parameters"] > 1e6
    assert rows["peer"]["config"]["num_queries"] == 20
    assert json.loads((tmp_path / "peers.json").read_text())["tasks"]["detection"]["rows"] == rows
    assert "RT-DETRv2" in peers.table(data)

    monkeypatch.setattr(peers, "fit", lambda *_, **__: pytest.fail("a finished row was trained again"))
    assert peers.run(peers.parse(options))["tasks"]["detection"]["rows"] == rows
    with pytest.raises(ConfigError, match="another setting"):
        peers.run(peers.parse([*options, "--seed", "1"]))


def test_steps_follow_from_the_budget_and_a_trained_expert_sets_it(
    peers: ModuleType, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "WARM_UP", 1)
    monkeypatch.setattr(peers, "MEASURED", 1)
    task = ["--tasks", "drivable"]
    timed = peers.parse([*command, *task, "--only", "ours", "--minutes", "0.002"])
    ours = peers.run(timed)["tasks"]["drivable"]["rows"]["ours"]
    each, steps = (ours["training"][key] for key in ("measured_seconds_per_step", "steps"))
    assert steps == max(1, round(0.002 * 60 / each))

    best = tmp_path / "models" / "checkpoints" / "peers" / "test" / "drivable-ours" / "best.pth"
    again = peers.parse([*command, *task, "--reuse", str(best), "--out", str(tmp_path / "reused.json")])
    rows = peers.run(again)["tasks"]["drivable"]["rows"]
    assert rows["ours"]["metrics"] == pytest.approx(ours["metrics"])
    assert rows["ours"]["training"]["steps"] == steps
    assert rows["peer"]["training"]["budget_seconds"] == rows["ours"]["training"]["seconds"] > 0

    foreign = checkpoint.load(best)
    foreign["dataset_fingerprint"]["val"] = "of other images"
    checkpoint.save(tmp_path / "foreign.pth", foreign)
    other = peers.parse([*command, *task, "--reuse", str(tmp_path / "foreign.pth"), "--out", str(tmp_path / "o.json")])
    with pytest.raises(ConfigError, match="other data"):
        peers.run(other)


def test_a_perfect_rt_detr_scores_full_marks(models: ModuleType) -> None:
    """What the peer says passes through the code that scores ours: letterboxing is undone, the truth scores 100."""
    peer = models.RtDetrPeer(models.RtDetrConfig(num_queries=20), pretrained=False).eval()
    raw = np.array([[100, 50, 300, 150], [10, 20, 60, 220]], np.float32)
    labels = np.array([2, 7])
    corners = torch.from_numpy(raw) * 0.25 + torch.tensor([0.0, 8.0, 0.0, 8.0])
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2)
    logits = torch.full((1, 2, 10), -9.0)
    logits[0, torch.arange(2), torch.from_numpy(labels)] = 9.0
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1) / scale
    peer.forward = lambda *_: SimpleNamespace(logits=logits, pred_boxes=boxes[None])
    transform = torch.tensor([[[0.25, 0, 0], [0, 0.25, 8.0]]])
    [found] = peer.predict(torch.zeros(1, 3, *SIZE, dtype=torch.uint8), transform, torch.tensor([[256, 384]]))
    metrics = peer.make_metrics()
    assert isinstance(metrics, DetectionMetrics)
    peer.add_to_metrics(metrics, "a", found, SimpleNamespace(boxes=raw, labels=labels, ignored=np.zeros(2, bool)))
    assert peer.summarise(metrics)["AP"] == pytest.approx(100)


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "mit_b0"])
def test_segformer_inherits_our_scoring_and_learns(models: ModuleType, backbone: str) -> None:
    torch.manual_seed(0)
    config = models.SegformerPeerConfig(backbone=backbone, dim=32)
    peer = models.SegformerPeer("drivable", config, pretrained=False)
    for name in ("predict", "make_metrics", "add_to_metrics", "summarise"):
        assert getattr(models.SegformerPeer, name) is getattr(DenseExpert, name)
    batch = {
        "image": torch.randint(0, 255, (2, 3, *SIZE), dtype=torch.uint8),
        "mask": torch.full((2, *SIZE), 1, dtype=torch.uint8),
    }
    batch["mask"][:, :20] = 255
    criterion = peer.make_criterion(float)
    before = criterion(peer, batch)["loss"]
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        criterion(peer, batch)["loss"].backward()
        optimizer.step()
    assert criterion(peer, batch)["loss"] < before
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(2, -1, -1)
    found = peer.predict(batch["image"], identity, torch.tensor([SIZE, SIZE]))
    assert found[0]["mask"].shape == SIZE


def test_rt_detr_starts_from_weights_that_can_learn(models: ModuleType) -> None:
    peer = models.RtDetrPeer(models.RtDetrConfig(), pretrained=False)
    norms = [m for m in peer.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(torch.all(norm.weight == 1) for norm in norms)
    names = [name for name, _ in peer.named_parameters() if "conv_stem.weight" in name]
    assert len(names) == 1, "the backbone must be registered once"
    assert names[0].startswith("backbone."), "its parameters must be found by the backbone's learning rate"
