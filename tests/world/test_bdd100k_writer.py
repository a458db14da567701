"""The BDD100K export: official layout, honest labels, deterministic, resumable, parallel."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from automoe.errors import WorldError
from automoe.taxonomy import BDD_DETECTION, BDD_SCENE, BDD_TIME_OF_DAY, BDD_WEATHER, SEMANTIC
from automoe.world import bdd100k_writer, town
from automoe.world.bdd100k_writer import TRAIN_TOWNS, VAL_TOWNS, export_bdd100k

SIZE = (160, 96)


@pytest.fixture
def quick_towns(monkeypatch):
    """Two small towns instead of fourteen large ones."""
    style = town.TownStyle(columns=2, rows=2, spacing=90.0, merged_blocks=0, avenues=1.0, fleet="tests/0")
    monkeypatch.setattr(town, "draw_style", lambda name: style)
    monkeypatch.setattr(bdd100k_writer, "TRAIN_TOWNS", ("tests-11",))
    monkeypatch.setattr(bdd100k_writer, "VAL_TOWNS", ("tests-12",))


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_towns_of_the_two_splits_are_disjoint_and_share_no_vehicles():
    assert len(TRAIN_TOWNS) >= 8
    assert len(VAL_TOWNS) >= 3
    assert not set(TRAIN_TOWNS) & set(VAL_TOWNS)
    fleets = [{town.draw_style(name).fleet for name in towns} for towns in (TRAIN_TOWNS, VAL_TOWNS)]
    assert not fleets[0] & fleets[1]


def test_layout_and_vocabulary(tmp_path, quick_towns):
    world = export_bdd100k(tmp_path, 3, 2, seed=1, size=SIZE, workers=1)
    assert world["complete"]
    assert world["frames"] == {"train": 3, "val": 2}
    for split, count in (("train", 3), ("val", 2)):
        records = json.loads((tmp_path / f"labels/det_20/det_{split}.json").read_text())
        assert len(records) == count
        for record in records:
            name = record["name"]
            image = cv2.imread(str(tmp_path / "images/100k" / split / name))
            assert image.shape == (SIZE[1], SIZE[0], 3)
            twin = tmp_path / "images/10k" / split / name
            assert twin.read_bytes() == (tmp_path / "images/100k" / split / name).read_bytes()
            drivable, semantic = (
                cv2.imread(str(tmp_path / f"labels/{kind}/masks" / split / name.replace(".jpg", ".png")), -1)
                for kind in ("drivable", "sem_seg")
            )
            assert drivable.shape == semantic.shape == SIZE[::-1]
            assert set(np.unique(drivable)) <= {0, 1, 2}
            assert 0 in drivable
            assert set(np.unique(semantic)) <= {*range(len(SEMANTIC)), 255}
            assert (semantic[drivable < 2] == SEMANTIC.index("road")).all()
            attributes = record["attributes"]
            assert attributes["weather"] in BDD_WEATHER
            assert attributes["timeofday"] in BDD_TIME_OF_DAY
            assert attributes["scene"] in BDD_SCENE
            for label in record["labels"]:
                assert label["category"] in BDD_DETECTION
                box = label["box2d"]
                assert 0 <= box["x1"] < box["x2"] <= SIZE[0]
                assert 0 <= box["y1"] < box["y2"] <= SIZE[1]


def test_a_frame_does_not_depend_on_how_many_there_are_and_resuming_changes_nothing(tmp_path, quick_towns):
    class KilledError(Exception):
        pass

    def die(done, total):
        if done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        export_bdd100k(tmp_path / "resumed", 3, 2, seed=5, size=SIZE, workers=1, progress=die)
    assert not (tmp_path / "resumed/labels/det_20/det_val.json").exists()
    seen: list[tuple[int, int]] = []
    export_bdd100k(
        tmp_path / "resumed",
        3,
        2,
        seed=5,
        size=SIZE,
        workers=1,
        progress=lambda *step: seen.append(step),
    )
    assert seen[0] == (2, 5)
    assert seen[-1] == (5, 5)
    export_bdd100k(tmp_path / "whole", 3, 2, seed=5, size=SIZE, workers=1)
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    export_bdd100k(tmp_path / "fewer", 1, 2, seed=5, size=SIZE, workers=1)
    fewer, whole = files(tmp_path / "fewer"), files(tmp_path / "whole")
    differing = {name for name in fewer if fewer[name] != whole[name]}
    assert differing == {"world.json", "labels/det_20/det_train.json"}


def test_other_settings_and_foreign_folders_are_refused(tmp_path, quick_towns):
    export_bdd100k(tmp_path / "a", 1, 0, seed=1, size=SIZE, workers=1)
    with pytest.raises(WorldError, match="seed 1, not 2"):
        export_bdd100k(tmp_path / "a", 1, 0, seed=2, size=SIZE, workers=1)
    with pytest.raises(WorldError, match="kept for validation"):
        export_bdd100k(tmp_path / "b", 1, 1, seed=1, size=SIZE, towns=["tests-12"])
    with pytest.raises(WorldError, match="1 train frames beyond the 0 asked for"):
        export_bdd100k(tmp_path / "a", 0, 0, seed=1, size=SIZE, workers=1)
    (tmp_path / "c/images").mkdir(parents=True)
    with pytest.raises(WorldError, match=r"no world\.json"):
        export_bdd100k(tmp_path / "c", 1, 0, seed=1, size=SIZE)


def test_two_processes_write_what_one_writes(tmp_path):
    for workers in (1, 2):
        export_bdd100k(tmp_path / str(workers), 2, 0, seed=3, size=SIZE, towns=[TRAIN_TOWNS[0]], workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_failing_worker_is_reported_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(WorldError, match="goes on from there"):
        export_bdd100k(tmp_path, 2, 0, seed=3, size=SIZE, towns=[TRAIN_TOWNS[0]], workers=2)
