"""The dense experts: shapes, masks at raw size, losses that look away from ignored pixels."""

from __future__ import annotations

import pytest
import torch

import automoe.experts  # noqa: F401  (registers)
from automoe.experts.dense import DenseConfig, DenseCriterion, resize_to_raw
from automoe.experts.registry import build_expert
from automoe.losses import soft_dice_loss, varifocal_loss


@pytest.mark.parametrize(("kind", "classes"), [("drivable", 3), ("segmentation", 19)])
def test_outputs_have_the_documented_shapes(kind: str, classes: int) -> None:
    expert = build_expert(kind, {"dim": 32}, pretrained=False).eval()
    out = expert(torch.randn(2, 3, 64, 96))
    assert out["logits"].shape == (2, classes, 16, 24)
    assert out["tokens"].shape == (2, 6, 32)
    assert out["token_positions"].shape == (2, 6, 2)
    masks = expert.predict(
        torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8),
        torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]]).expand(2, -1, -1),
        torch.tensor([[128, 192], [128, 192]]),
    )
    assert [tuple(m["mask"].shape) for m in masks] == [(128, 192)] * 2
    assert max(int(m["mask"].max()) for m in masks) < classes


def test_masks_come_back_to_the_raw_picture_without_its_letterbox() -> None:
    """Classes left and right of the raw picture's middle stay there, whatever margins the network saw."""
    logits = torch.full((1, 3, 16, 16), -9.0)
    logits[:, 2] = 0.0  # margins
    logits[:, :, 4:12] = -9.0
    logits[:, 0, 4:12, :8] = 9.0
    logits[:, 1, 4:12, 8:] = 9.0
    transform = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 16.0]]])
    mask = resize_to_raw(logits, transform, torch.tensor([[64, 128]]), (64, 64))[0]
    assert mask.shape == (64, 128)
    assert (mask[4:60, :60] == 0).all()
    assert (mask[4:60, 68:] == 1).all()


def test_ignored_pixels_and_empty_masks_do_not_teach() -> None:
    criterion = DenseCriterion(DenseConfig(), float)
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    mask = torch.full((1, 32, 32), 255, dtype=torch.uint8)
    criterion.losses({"logits": logits}, mask)["loss"].backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0
    half = mask.clone()
    half[:, :, :16] = 1
    logits.grad = None
    criterion.losses({"logits": logits}, half)["loss"].backward()
    assert logits.grad[..., :3].abs().max() > 0
    assert logits.grad[..., 6:].abs().max() == 0


def test_what_is_learnt_lies_where_the_mask_is() -> None:
    """Free logits learn edges between two classes; seen at twice the size, no edge may lean to a side."""
    torch.manual_seed(0)
    criterion = DenseCriterion(DenseConfig(dice_weight=0.0, balance=0.0), float)
    edges = torch.arange(16, 48)
    mask = (torch.arange(64) >= edges[:, None, None]).to(torch.uint8).expand(-1, 64, -1)
    for transposed in (False, True):
        target = mask.transpose(1, 2) if transposed else mask
        logits = torch.zeros(len(edges), 3, 16, 16, requires_grad=True)
        optimizer, learnt = torch.optim.Adam([logits], lr=0.1), torch.zeros_like(logits)
        for step in range(300):
            optimizer.zero_grad()
            criterion.losses({"logits": logits}, target.contiguous())["loss"].backward()
            optimizer.step()
            learnt += logits.detach() * (step >= 100)
        transform = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]]).expand(len(edges), -1, -1)
        sizes = torch.full((len(edges), 2), 128)
        found = torch.stack(resize_to_raw(learnt, transform, sizes, (64, 64)))
        seen = (found == 0).float().sum(dim=(1, 2)) / 128 / 2  # where the edge is, in pixels of the network
        assert abs(float((seen - edges).mean())) < 0.26


def test_losses_fall_when_the_answer_is_right() -> None:
    target = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2).float() * 20 - 10
    assert soft_dice_loss(right, target) < 0.01
    assert soft_dice_loss(-right, target) > 0.9
    quality = torch.tensor([[0.8, 0.0]])
    good, bad = torch.logit(torch.tensor([[0.8, 1e-4]])), torch.logit(torch.tensor([[1e-4, 0.8]]))
    assert varifocal_loss(good, quality) < varifocal_loss(bad, quality)


@pytest.mark.parametrize("kind", ["drivable", "segmentation"])
def test_driving_tokens_are_the_classes_of_the_quarters_of_a_cell(kind: str) -> None:
    torch.manual_seed(0)
    expert = build_expert(kind, {"dim": 16}, pretrained=False).eval()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    features, positions = expert.driving_tokens(images)
    count = len(expert.classes)
    assert features.shape == (1, 6, 4 * count)
    assert positions.shape == (1, 6, 2)
    shares = expert(expert.normalise(images))["logits"].softmax(dim=1)
    # The second cell's lower left quarter: 16 pixels a side, four of the logits' cells.
    quarter = shares[0, :, 4:8, 8:12].mean(dim=(1, 2))
    torch.testing.assert_close(features[0, 1].view(count, 4)[:, 2], quarter)
