"""Training items: what they hold, that they depend on (seed, epoch, index) alone, and batches through workers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from torch.utils.data import DataLoader

from automoe.data.dataset import PreparedDataset, collate
from automoe.data.images import decode_jpeg, load_image
from automoe.data.prepared import prepare
from automoe.data.transforms import EvalTransform, TrainTransform, warp_boxes
from automoe.errors import DataError

SIZE = (24, 48)


def dataset(tree: Path, task: str = "detection", train: bool = True, **options: int) -> PreparedDataset:
    info = prepare(tree, task, "train", tree.parent / "prepared" / task)
    return PreparedDataset(info.path, task, TrainTransform(SIZE) if train else EvalTransform(SIZE), **options)


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_an_item_has_the_documented_shapes(tree: Path) -> None:
    item = dataset(tree)[0]
    boxes = len(item["labels"])
    assert (item["image"].dtype, tuple(item["image"].shape)) == (torch.uint8, (3, *SIZE))
    assert (item["boxes"].dtype, tuple(item["boxes"].shape)) == (torch.float32, (boxes, 4))
    assert item["labels"].dtype == torch.int64
    assert (item["ignored"].dtype, len(item["ignored"])) == (torch.bool, boxes)
    assert (item["transform"].dtype, tuple(item["transform"].shape)) == (torch.float32, (2, 3))
    assert item["orig_size"].tolist() == [36, 64]
    assert (item["sample_id"], item["index"]) == ("train0000.jpg", 0)
    assert "mask" not in item
    dense = dataset(tree, "segmentation")[0]
    assert (dense["mask"].dtype, tuple(dense["mask"].shape)) == (torch.uint8, SIZE)


def test_items_are_a_function_of_seed_epoch_and_index(tree: Path) -> None:
    data = dataset(tree, seed=7)
    first = data[(3, 1)]
    data[(0, 2)]
    assert_same(data[(3, 1)], first)
    assert_same(data[1], data[(0, 1)])
    assert not torch.equal(data[(4, 1)]["image"], first["image"])
    assert not torch.equal(dataset(tree, seed=8)[(3, 1)]["image"], first["image"])


def test_evaluation_items_map_back_to_the_raw_boxes(tree: Path) -> None:
    data = dataset(tree, train=False)
    item, row = data[2], data.row(2)
    assert len(item["boxes"]) == len(row.boxes)
    assert torch.equal(item["ignored"], torch.from_numpy(row.ignored))
    cxcywh = item["boxes"].numpy().astype(np.float64) * np.array([48, 24, 48, 24])
    xyxy = np.concatenate([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], axis=1)
    inverse = np.linalg.inv(np.vstack([item["transform"].numpy(), [0, 0, 1]]))[:2]
    np.testing.assert_allclose(warp_boxes(xyxy, inverse), row.boxes, atol=1e-3)


def test_reduced_decoding_shows_the_same_picture(tmp_path: Path) -> None:
    """The DCT at half size stands for the same scene: no shift against decoding in full."""
    y, x = np.mgrid[:90, :160]
    image = np.stack([x, y * 2, (x + y) % 256], axis=-1).astype(np.uint8)
    data = simplejpeg.encode_jpeg(image, quality=98)
    full, half = decode_jpeg(data, "x"), decode_jpeg(data, "x", needed_scale=0.4)
    assert (full.scale, half.scale, half.image.shape) == (1, 0.5, (45, 80, 3))
    expected = full.image.reshape(45, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(half.image - expected)[..., :2].mean() < 1.5


def test_workers_give_the_same_batches(tree: Path) -> None:
    data = dataset(tree, "drivable")
    keys = [[(1, 0), (1, 2)], [(1, 3), (1, 1)]]
    loader = DataLoader(data, batch_sampler=keys, collate_fn=collate, num_workers=2)
    for batch, expected in zip(loader, keys, strict=True):
        assert batch["image"].shape == (2, 3, *SIZE)
        assert batch["mask"].shape == (2, *SIZE)
        assert batch["transform"].shape == (2, 2, 3)
        assert batch["orig_size"].tolist() == [[36, 64]] * 2
        assert batch["index"] == [index for _, index in expected]
        for position, key in enumerate(expected):
            assert torch.equal(batch["image"][position], data[key]["image"])


def test_a_pickled_dataset_maps_its_files_itself(tree: Path) -> None:
    data = dataset(tree)
    copy = pickle.dumps(data)
    assert len(copy) < 5000
    assert_same(pickle.loads(copy)[(1, 1)], data[(1, 1)])


def test_limit_spreads_over_the_set(tree: Path) -> None:
    data = dataset(tree, limit=2)
    assert [data[i]["sample_id"] for i in range(len(data))] == ["train0000.jpg", "train0003.jpg"]
    assert len(dataset(tree, limit=99)) == 4
    with pytest.raises(IndexError):
        data[2]


def test_wrong_task_and_wrong_folder_are_refused(tree: Path, tmp_path: Path) -> None:
    data = dataset(tree)
    with pytest.raises(DataError, match="is prepared for detection, not for drivable"):
        PreparedDataset(data.info.path, "drivable", EvalTransform(SIZE))
    with pytest.raises(DataError, match="not a prepared set"):
        PreparedDataset(tmp_path, "detection", EvalTransform(SIZE))


def test_load_image_reads_jpeg_and_png_and_names_broken_files(tree: Path, tmp_path: Path) -> None:
    jpeg = tree / "images/100k/train/train0000.jpg"
    assert load_image(jpeg).shape == (36, 64, 3)
    mask = load_image(tree / "labels/drivable/masks/train/train0000.png")
    assert mask.shape == (36, 64, 3)
    (tmp_path / "cut.jpg").write_bytes(jpeg.read_bytes()[:-99])
    with pytest.raises(DataError, match=r"cut.jpg is a damaged JPEG"):
        load_image(tmp_path / "cut.jpg")
    with pytest.raises(DataError, match=r"cannot read the image .*none.jpg"):
        load_image(tmp_path / "none.jpg")


def test_the_real_sample_makes_training_items(fixtures: Callable[[str], Path], tmp_path: Path) -> None:
    root = fixtures("bdd100k_real_images_labels")
    info = prepare(root, "segmentation", "train", tmp_path / "out")
    item = PreparedDataset(info.path, "segmentation", TrainTransform((192, 320)))[(5, 1)]
    assert item["image"].float().std() > 20
    assert len(item["mask"].unique()) > 5
