"""Loss functions that several experts share. Pure functions on tensors; every one is safe on empty input.

Normalisation (dividing by a count of boxes or pixels) is left to the caller, who knows the count over all processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_focal_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Penalty-reduced focal loss on heatmaps (CornerNet, CenterNet; alpha 2, beta 4), summed.

    logits, target: same shape, target in [0, 1] with exactly 1 at object centres. weight: broadcastable, 0 where
    nothing is to be learnt. Returns a scalar sum.
    """
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    p = logits.sigmoid()
    positive = (target >= 1).to(logits.dtype)
    loss = -positive * (1 - p) ** 2 * log_p - (1 - positive) * (1 - target) ** 4 * p**2 * log_not_p
    return (loss if weight is None else loss * weight).sum()


def varifocal_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss (Zhang et al., 2021), summed: positives are weighted by their quality, negatives by p^gamma.

    logits, target: same shape; target is the quality (IoU) of a positive and 0 for a negative, so background is
    trained like everything else. weight: broadcastable, 0 where nothing is to be learnt. Returns a scalar sum.
    """
    scale = torch.where(target > 0, target, alpha * logits.detach().sigmoid() ** gamma)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * scale
    return (loss if weight is None else loss * weight).sum()


def soft_dice_loss(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """One minus the Dice coefficient, averaged over the classes that occur in the batch.

    logits: [B, C, H, W]. target: int64 [B, H, W]. It follows the metric (mIoU) where cross entropy follows pixels.
    """
    classes = logits.shape[1]
    valid = target != ignore_index
    p = logits.softmax(dim=1) * valid[:, None]
    one_hot = F.one_hot(torch.where(valid, target, 0), classes).permute(0, 3, 1, 2) * valid[:, None]
    overlap = (p * one_hot).sum(dim=(0, 2, 3))
    total = p.sum(dim=(0, 2, 3)) + one_hot.sum(dim=(0, 2, 3))
    present = one_hot.sum(dim=(0, 2, 3)) > 0
    dice = (2 * overlap + 1) / (total + 1)
    return (1 - dice)[present].mean() if bool(present.any()) else logits.sum() * 0
