"""Checkpoints: all or nothing on the disk, no code inside, and weights that fit key by key."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from automoe.engine import checkpoint
from automoe.errors import CheckpointError, WriteError


def test_round_trip_of_tensors_and_plain_values(tmp_path):
    path = tmp_path / "deep" / "best.pth"
    payload = {"model": {"w": torch.arange(3)}, "score": np.float32(0.5), "root": Path("a/b"), "sizes": (1, [2.0])}
    checkpoint.save(path, payload)
    loaded = checkpoint.load(path)
    assert loaded.pop("model")["w"].tolist() == [0, 1, 2]
    assert loaded == {"format_version": 1, "score": 0.5, "root": "a/b", "sizes": [1, [2.0]]}
    assert os.listdir(path.parent) == ["best.pth"]


def test_what_could_not_be_loaded_safely_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['config'\]\['f'\] is a function"):
        checkpoint.save(tmp_path / "a.pth", {"config": {"f": lambda: 1}})
    assert os.listdir(tmp_path) == []


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("writer", ["torch.save", "pickle"])
def test_a_checkpoint_executes_no_code(tmp_path, writer):
    path, proof = tmp_path / "best.pth", tmp_path / "executed"
    payload = {"format_version": 1, "model": Malicious(proof)}
    if writer == "torch.save":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(CheckpointError, match="could execute code"):
        checkpoint.load(path)
    assert not proof.exists()


def test_missing_damaged_foreign_and_newer_files_are_named(tmp_path):
    path = tmp_path / "best.pth"
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*best\.pth"):
        checkpoint.load(path)
    checkpoint.save(path, {"model": {"w": torch.zeros(1000)}})
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"hello"):
        path.write_bytes(part)
        with pytest.raises(CheckpointError, match=r"best\.pth"):
            checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not an AutoMoE checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, {"format_version": 99})
    with pytest.raises(CheckpointError, match="update AutoMoE"):
        checkpoint.load(path)


class FullDisk:
    """A file on a disk that has room for `room` more bytes."""

    def __init__(self, file, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, room):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"step": 1})
    monkeypatch.setattr("builtins.open", lambda *a, _open=open, **k: FullDisk(_open(*a, **k), room))
    with pytest.raises(WriteError, match=r"disk is full: .*last\.pth.*earlier last\.pth is untouched"):
        checkpoint.save(path, {"step": 2, "model": {"w": torch.zeros(10_000)}})
    monkeypatch.undo()
    assert checkpoint.load(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pth"]


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))


def test_weights_load_strictly(capsys):
    source, target = model(), model()
    report = checkpoint.load_weights(target, source.state_dict())
    assert torch.equal(target[1].weight, source[1].weight)
    assert len(report.loaded) == 4
    assert capsys.readouterr().out == ""


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded():
    target = model()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    weights = model().state_dict()
    weights["2.bias"] = weights.pop("0.bias")
    weights["1.weight"] = torch.zeros(5, 3)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_weights(target, weights, source="best.pth")
    for part in ("best.pth", "1 missing: 0.bias", "1 unexpected: 2.bias", "1.weight (checkpoint (5, 3), model (4, 3))"):
        assert part.lower() in str(error.value).lower()
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_allowed_keys_are_left_and_reported(capsys):
    source, target = model().state_dict(), model()
    source["1.weight"], source["extra"] = torch.zeros(5, 3), torch.zeros(1)
    report = checkpoint.load_weights(target, source, allow=("1.*", "extra"))
    assert report.loaded == ["0.weight", "0.bias", "1.bias"]
    assert torch.equal(target[0].weight, source["0.weight"])
    printed = capsys.readouterr().out
    assert "extra" in printed
    assert "1.weight (checkpoint (5, 3), model (4, 3))" in printed
