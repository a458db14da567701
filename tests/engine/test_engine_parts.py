"""The small parts of the loop: schedule, average, selection, device, settings, batches, log files."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from automoe.engine import distributed, runlog
from automoe.engine.config import EngineConfig
from automoe.engine.ema import ExponentialMovingAverage
from automoe.engine.loader import to_device
from automoe.engine.optimizer import default_param_groups, make_optimizer, uses_bf16
from automoe.engine.schedule import learning_rate_factor, set_learning_rate
from automoe.engine.selection import checked_metrics, is_better
from automoe.errors import ConfigError


def test_learning_rate_warms_up_to_the_peak_and_ends_at_the_final_factor():
    factors = [learning_rate_factor(step, total_steps=101, warmup_steps=10, final_factor=0.05) for step in range(101)]
    assert factors[:2] == pytest.approx([0.1, 0.2])
    assert factors[9] == factors[10] == 1
    assert factors[55] == pytest.approx((1 + 0.05) / 2)
    assert factors[100] == pytest.approx(0.05)
    assert all(later <= earlier for earlier, later in pairwise(factors[10:]))


@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_have_a_learning_rate(total):
    for step in range(total):
        assert 0 < learning_rate_factor(step, total_steps=total, warmup_steps=100, final_factor=0.01) <= 1


def test_groups_keep_their_own_peak():
    layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    groups = [{"params": list(layers[0].parameters()), "lr": 0.1}, {"params": list(layers[1].parameters())}]
    optimizer = make_optimizer(
        layers, learning_rate=1.0, weight_decay=0.0, device=torch.device("cpu"), param_groups=groups
    )
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_biases_and_norms_do_not_decay():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, free = default_param_groups(module, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert (decayed["weight_decay"], free["weight_decay"], len(free["params"])) == (0.1, 0.0, 3)


def test_a_frozen_model_cannot_be_trained():
    with pytest.raises(ConfigError, match="nothing would be trained"):
        make_optimizer(
            nn.Linear(1, 1).requires_grad_(False), learning_rate=1, weight_decay=0, device=torch.device("cpu")
        )


def test_average_follows_its_formula_exactly():
    model = nn.BatchNorm1d(1)
    ema = ExponentialMovingAverage(model, decay=0.5)
    expected = model.weight.item()
    for update in range(1, 20):
        with torch.no_grad():
            model.weight.fill_(update)
            model.num_batches_tracked.fill_(update)
        ema.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert ema.model.num_batches_tracked.item() == 19
    assert not ema.model.training
    assert not ema.model.weight.requires_grad
    assert model.training


def test_average_leaves_what_learns_nothing_to_the_last_bit():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    ema = ExponentialMovingAverage(model, decay=0.9)
    before = model[1].bias.detach().clone()
    with torch.no_grad():
        model[1].bias += 1.0
    ema.update(model)
    assert ema.model[0].weight.numpy().tobytes() == model[0].weight.detach().numpy().tobytes()
    assert not torch.equal(ema.model[1].bias, before)
    # What begins to learn later is averaged from then on.
    model[0].requires_grad_(True)
    with torch.no_grad():
        model[0].bias += 1.0
    ema.update(model)
    assert not torch.equal(ema.model[0].bias, model[0].bias)


def test_undefined_metrics_never_win():
    assert checked_metrics({"a": 1, "b": None, "c": float("nan")}, "a") == {"a": 1.0, "b": None, "c": None}
    assert is_better(0.1, None, "max")
    assert not is_better(None, None, "max")
    assert not is_better(0.1, 0.1, "max")
    assert is_better(0.2, 0.1, "max")
    assert is_better(0.1, 0.2, "min")
    with pytest.raises(ConfigError, match=r"AP50.*gives: AP, AR"):
        checked_metrics({"AP": 1, "AR": 1}, "AP50")


def test_world_size_alone_starts_nothing(monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dist = distributed.setup("auto")
    assert (dist.rank, dist.world_size, dist.is_main, dist.device.type) == (0, 1, True, "cpu")
    assert not torch.distributed.is_initialized()
    assert capsys.readouterr().out.count("\n") == 1


def test_devices_that_are_not_there_are_errors(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match="no CUDA device"):
            distributed.setup(device)
    for device in ("gpu", "mps"):
        with pytest.raises(ConfigError, match="Unknown device"):
            distributed.setup(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.setup("auto").device == torch.device("cuda:0")
    assert distributed.setup("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="has 2 of them"):
        distributed.setup("cuda:2")


@pytest.mark.parametrize(("device", "backend", "index"), [("auto", "cpu:gloo,cuda:nccl", 1), ("cpu", "gloo", None)])
def test_on_several_nodes_rank_is_global_and_the_device_local(monkeypatch, device, backend, index):
    torchrun = {"RANK": 5, "LOCAL_RANK": 1, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4, "MASTER_PORT": 1}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "node0")
    joined, threads = [], []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **more: joined.append((name, more)))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(distributed, "available_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    dist = distributed.setup(device)
    assert (dist.rank, dist.local_rank, dist.world_size, dist.is_main) == (5, 1, 8, False)
    assert (dist.device.type, dist.device.index) == ("cpu" if index is None else "cuda", index)
    assert (joined[0][0], joined[0][1]["rank"], joined[0][1]["world_size"]) == (backend, 5, 8)
    assert threads == ([2] if index is None else [])
    with pytest.raises(ConfigError, match="names one GPU for 8 processes"):
        distributed.setup("cuda:0")


def test_an_incomplete_torchrun_environment_is_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is None"):
        distributed.setup("cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("ema_decay", 1.0), ("amp", "fp16"), ("max_steps", 0)],
)
def test_senseless_settings_are_named(key, value):
    with pytest.raises(ConfigError, match=key):
        EngineConfig(metric="AP", **{key: value})


def test_precision_is_float32_on_the_cpu_unless_asked():
    cpu = torch.device("cpu")
    assert [uses_bf16(amp, cpu) for amp in ("auto", "bf16", "off")] == [False, True, False]


def test_batches_move_whole():
    batch = {"image": torch.zeros(2), "boxes": [torch.zeros(1), torch.zeros(3)], "sample_id": ["a", "b"]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["image"].is_meta
    assert all(boxes.is_meta for boxes in moved["boxes"])
    assert moved["sample_id"] == ["a", "b"]


def test_metrics_file_forgets_what_will_be_written_again(tmp_path):
    path = tmp_path / runlog.METRICS
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "met')
    runlog.drop_after(path, 4)
    assert [line["step"] for line in runlog.read_metrics(tmp_path)] == [2, 4]


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2s"), (42, "42s"), (252, "4m12s"), (11100, "3h05m")])
def test_durations_read_well(seconds, text):
    assert runlog.duration(seconds) == text
