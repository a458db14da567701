"""Each expert over-fits the few real frames that are at hand: labels, scales and classes survive the whole way.

Training and validation frames are the same on purpose: what is tested is that a real frame's truth can be learnt and
is scored as learnt, from the raw files to the official metrics. It says nothing about accuracy on other frames.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from automoe import taxonomy
from automoe.data.nuscenes_prepared import TASK, NuscenesRows
from automoe.data.prepared import ensure_prepared
from automoe.metrics.nuscenes import filter_boxes
from automoe.stages.bdd100k import stage_of
from automoe.stages.nuscenes import NuscenesFlags, train_nuscenes
from automoe.stages.train_expert import TrainFlags, train_expert
from automoe.taxonomy import NUSCENES_DETECTION

pytestmark = pytest.mark.usefixtures("one_thread")

AS_THEY_ARE = {
    "scale": [1.0, 1.0], "stretch": 0.0, "flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0,
    "gamma": 0.0, "hue": 0.0, "blur": 0.0,
}  # fmt: skip
# Thin things need resolution, and to be heard: poles are eight pixels wide in pictures of 1280.
THIN = {"frozen_stages": 3, "balance": 0.5, "dice_weight": 1.0, "refine": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "detection": {"size": [352, 640], "steps": 150, "model": {"frozen_stages": 3}},
    "segmentation": {"size": [416, 736], "steps": 240, "model": THIN},
    "drivable": {"size": [192, 320], "steps": 100, "model": {"frozen_stages": 3}},
}
AT_LEAST = {"detection": ("AP50", 90.0), "segmentation": ("mIoU", 90.0), "drivable": ("mIoU_3class", 90.0)}


@pytest.fixture
def real_tree(fixtures: Callable[[str], Path], tmp_path: Path) -> Path:
    """The real sample as a tree of its own whose val is its train, and drivable masks made of the semantic road."""
    source, root = fixtures("bdd100k_real_images_labels") / "dummy_data", tmp_path / "real"
    for split in ("train", "val"):
        for images in ("100k", "10k"):
            shutil.copytree(source / "images" / images / "train", root / "images" / images / split)
        masks = root / "labels" / "sem_seg" / "masks" / split
        shutil.copytree(source / "labels" / "sem_seg" / "colormaps" / "train", masks)
        labels = root / "labels" / "det_20" / f"det_{split}.json"
        labels.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "labels" / "det_20" / f"det_{split}.json", labels)
    return root


def with_road_as_drivable(root: Path) -> Path:
    """No real drivable masks are at hand: the semantic road stands for "direct", on the semantic frames."""
    road, direct = taxonomy.SEMANTIC.index("road"), taxonomy.DRIVABLE.index("direct")
    background = taxonomy.DRIVABLE.index("background")
    for split in ("train", "val"):
        shutil.rmtree(root / "images" / "100k" / split)
        (root / "images" / "10k" / split).rename(root / "images" / "100k" / split)
        folder = root / "labels" / "drivable" / "masks" / split
        folder.mkdir(parents=True)
        for mask in (root / "labels" / "sem_seg" / "masks" / split).glob("*.png"):
            ids = np.array(Image.open(mask))
            Image.fromarray(np.where(ids == road, direct, background).astype(np.uint8)).save(folder / mask.name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation", "drivable"])
def test_an_expert_over_fits_real_frames(task: str, real_tree: Path, tmp_path: Path) -> None:
    root = with_road_as_drivable(real_tree) if task == "drivable" else real_tree
    setting = SETTINGS[task]
    engine = {
        "epochs": 1000, "max_steps": setting["steps"], "eval_every": 1000, "batch_size": 2, "num_workers": 0,
        "learning_rate": 3e-3, "warmup_steps": 10, "clip_norm": 5.0, "ema_decay": 0.9,
    }  # fmt: skip
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"size": setting["size"], "model": setting["model"], "augment": AS_THEY_ARE, "engine": engine})
    )
    flags = TrainFlags(config=config, run_name="real", output_root=tmp_path / "out", device="cpu")
    result = train_expert(stage_of(task), root, flags)
    metric, least = AT_LEAST[task]
    value = result.metrics[metric]
    assert value is not None
    assert value >= least, f"{metric} {value:.1f} on the frames it was trained on: {result.metrics}"


@pytest.mark.slow
def test_the_nuscenes_expert_over_fits_the_real_key_frame(fixtures: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "nuscenes"
    shutil.copytree(fixtures("nuscenes_one_sample_dataroot"), root)
    version = root / "v1.0-mini"
    scenes = [scene["name"] for scene in json.loads((version / "scene.json").read_text())]
    (version / "splits.json").write_text(json.dumps({"train": scenes, "val": scenes}))
    still = {"flip": 0.0, "rotate": 0.0, "scale": [1.0, 1.0], "shift": 0.0, "paste": 0, "image": AS_THEY_ARE}
    image = {"frozen_stages": 3, "num_queries": 30, "decoder_layers": 1, "denoising_groups": 0}
    engine = {
        "epochs": 1000, "max_steps": 120, "eval_every": 1000, "batch_size": 1, "num_workers": 0,
        "learning_rate": 3e-3, "warmup_steps": 10, "clip_norm": 10.0, "ema_decay": 0.9,
    }  # fmt: skip
    content = {"size": [160, 256], "sweeps": 0, "model": {"image": image, "num_queries": 120}, "engine": engine}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(content | {"augment": still | {"drop_lidar": 0.0, "drop_cameras": 0.0}}))
    result = train_nuscenes(
        NuscenesFlags(config=config, data_root=root, run_name="real", output_root=tmp_path / "out", device="cpu")
    )
    row = NuscenesRows(ensure_prepared(root, TASK, "val", None).path).row(0)
    scored = filter_boxes(row.truth(), row.T_world_ego[:2, 3], row.racks)
    # The official mean counts classes of which the frame has nothing as zeros.
    scores = {name: result.metrics[f"AP/{name}"] for name in np.array(NUSCENES_DETECTION)[row.labels[scored]]}
    assert len(scores) == 5
    assert np.mean(list(scores.values())) >= 0.9, result.metrics
