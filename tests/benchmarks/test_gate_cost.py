"""The benchmark of what a frame costs counts what runs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest


def test_cost_follows_the_experts_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    gate_cost = importlib.import_module("gate_cost")
    path = tmp_path / "cost.json"
    words = ["gate_cost.py", "--copies", "1", "--rounds", "4", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    gate_cost.main()
    found = json.loads(path.read_text())["settings"]
    assert list(found) == ["1 of 4", "2 of 4", "4 of 4"]
    gflops = [row["gflops"] for row in found.values()]
    assert gflops == sorted(gflops)
    assert found["4 of 4"]["flops_of_all"] == 1.0
    assert found["2 of 4"]["flops_of_all"] < 0.8
    assert all(row["ms"] > 0.0 for row in found.values())
