"""What it costs to match a prediction to a target: class cost, box distance and overlap, weighted and summed.

Costs are computed for the whole batch and all decoder layers, but only between an image's predictions and its own
targets. There are two ways, and tests hold their results together: a loop compiled for the CPU
(`automoe.matching_kernels`) for 2D boxes, and PyTorch's operations for 3D boxes and for all boxes on a GPU. Nothing
is checked here; `automoe.matching` refuses what is unusable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from automoe.geometry import pairwise_bev_iou, wrap_angle

__all__ = ["PairCosts"]

_CERTAIN_LOGIT = 18.42  # the logit of the probability 1 - 1e-8

# How many (prediction, target) pairs PyTorch works on at once: on the CPU about what stays in its cache, on a GPU
# what bounds the memory.
_PAIRS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}


@dataclass
class PairCosts:
    """The weighted cost of pairs. `automoe.matching.HungarianMatcher` says what the terms are."""

    cost_class: float
    cost_bbox: float
    cost_giou: float
    cost_heading: float
    class_cost: str  # "focal" or "softmax"
    alpha: float
    gamma: float
    # Kept from call to call: fresh memory of this size comes from the system page by page, which takes longer than
    # computing what goes into it.
    _memory: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False, compare=False)

    def __call__(self, logits: Tensor, boxes: Tensor, labels_N: Tensor, boxes_N: Tensor, sizes: list[int]) -> Tensor:
        """The cost of each target with each query of its own image.

        Args:
            logits: [L, B, Q, C] float32 without gradient.
            boxes: [L, B, Q, 4 or 7] likewise.
            labels_N: [N] int64, of the targets of all images, one image after the other.
            boxes_N: [N, 4 or 7] float32.
            sizes: how many targets each of the B images has.

        Returns:
            [L, N, Q] float32, contiguous, on the device of the logits. On the CPU the next call overwrites it.
        """
        compiled = logits.device.type == "cpu" and boxes.shape[-1] == 4
        return (self.compiled if compiled else self.by_operations)(logits, boxes, labels_N, boxes_N, sizes)

    def compiled(self, logits: Tensor, boxes: Tensor, labels_N: Tensor, boxes_N: Tensor, sizes: list[int]) -> Tensor:
        """As `__call__`, for 2D boxes on the CPU."""
        from automoe.matching_kernels import image_pair_costs  # compiles: not before it is needed

        shape = len(logits), len(labels_N), logits.shape[2]
        if len(self._memory) < math.prod(shape):
            self._memory = torch.empty(math.prod(shape))
        costs_LNQ = self._memory[: math.prod(shape)].view(shape)
        # One layer after the other: what is computed in between stays in the cache.
        class_LBCQ = torch.cat([self._class_costs(layer) for layer in logits.split(1)])
        image_pair_costs(
            costs_LNQ.numpy(),
            class_LBCQ.numpy(),
            boxes.contiguous().numpy(),
            labels_N.contiguous().numpy(),
            boxes_N.contiguous().numpy(),
            np.array(sizes, np.int64),
            np.float32(self.cost_bbox),
            np.float32(self.cost_giou),
        )
        return costs_LNQ

    def by_operations(
        self, logits: Tensor, boxes: Tensor, labels_N: Tensor, boxes_N: Tensor, sizes: list[int]
    ) -> Tensor:
        """As `__call__`, for any boxes and device. The images go in groups that bound the memory."""
        layers, _, queries, classes = logits.shape
        costs_LNQ = logits.new_empty(layers, len(labels_N), queries)
        box_LBQ = boxes.permute(3, 0, 1, 2).contiguous()
        add_box_costs = _add_image_box_costs
        if len(box_LBQ) == 7:
            add_box_costs = partial(_add_space_box_costs, cost_heading=self.cost_heading)
        at_once = _PAIRS_AT_ONCE.get(logits.device.type, 1 << 24)
        for first, last, start, end in _image_groups(sizes, layers * queries, at_once):
            # One image's queries broadcast over its targets; where several share a group each target gets its own.
            image = first if last - first == 1 else _image_of_target(sizes, first, last).to(logits.device)
            class_N = labels_N[start:end] + (image - first) * classes
            costs = self._class_costs(logits[:, first:last]).flatten(1, 2).index_select(1, class_N)
            add_box_costs(costs, _of_image(box_LBQ, image), boxes_N[start:end], self.cost_bbox, self.cost_giou)
            costs_LNQ[:, start:end] = costs
        return costs_LNQ

    def _class_costs(self, logits: Tensor) -> Tensor:
        """[L, B, Q, C] -> [L, B, C, Q]: the class cost of each query for each class, already weighted."""
        # Queries last: they are many and always as many, so that every inner loop is long and contiguous.
        logits_LBCQ = logits.transpose(2, 3).contiguous()
        if self.class_cost == "softmax":
            return logits_LBCQ.softmax(2).mul_(-self.cost_class)
        # The published form adds 1e-8 to the probabilities so that no cost is infinite; cutting the logits where
        # a probability is 1e-8 bounds it alike. log(1 - p) = log(p) - logit then needs one logarithm, not two.
        logits_LBCQ = logits_LBCQ.clamp(-_CERTAIN_LOGIT, _CERTAIN_LOGIT)
        probability = logits_LBCQ.sigmoid()
        log_probability = probability.log()
        log_rest = log_probability - logits_LBCQ
        says = torch.sub(1, probability).pow_(self.gamma).mul_(log_probability)
        denies = probability.pow_(self.gamma).mul_(log_rest)
        return denies.mul_((1 - self.alpha) * self.cost_class).sub_(says, alpha=self.alpha * self.cost_class)


def _add_image_box_costs(costs: Tensor, box_LNQ: Tensor, targets: Tensor, cost_bbox: float, cost_giou: float) -> None:
    """Add L1 and generalised IoU of cxcywh boxes to `costs` [L, N, Q].

    Args:
        costs: what to add to.
        box_LNQ: [4, L, N or 1, Q], the predicted boxes' numbers.
        targets: [N, 4].
        cost_bbox: weight of L1.
        cost_giou: weight of the overlap, by the formula that `matching_kernels.image_pair_costs` explains.
    """
    from automoe.matching_kernels import LEAST_SIZE

    target_N = targets.t()[:, None, :, None]
    half, own_half = 0.5 * box_LNQ[2:] + LEAST_SIZE, 0.5 * target_N[2:]
    between, difference = (box_LNQ[:2] - target_N[:2]).abs_(), (half - own_half).abs_()
    costs.add_(between.sum(0).add_(difference.sum(0), alpha=2), alpha=cost_bbox)
    reach, both = torch.maximum(between, difference), half + own_half
    intersection = (both - reach).clamp_(min=0).prod(0)
    union = 4 * half.prod(0) + 4 * own_half.prod(0) - intersection
    hull = (both + reach).prod(0)
    costs.sub_(intersection / union + union / hull, alpha=cost_giou)


def _add_space_box_costs(
    costs: Tensor, box_LNQ: Tensor, targets: Tensor, cost_bbox: float, cost_giou: float, cost_heading: float
) -> None:
    """Likewise L1 and footprint IoU of 3D boxes, [7, L, N or 1, Q] and [N, 7]."""
    target_N = targets.t()[:, None, :, None]
    for box, target in zip(box_LNQ[:6], target_N[:6]):
        costs.add_((box - target).abs_(), alpha=cost_bbox)
    if cost_heading:
        costs.add_(wrap_angle(box_LNQ[6] - target_N[6]).abs_(), alpha=cost_heading)
    if cost_giou:
        # [N, 1, 7] against [L, N or 1, Q, 7]
        overlap = pairwise_bev_iou(targets[:, None], box_LNQ.permute(1, 2, 3, 0))
        costs.sub_(overlap.squeeze(-2), alpha=cost_giou)


def _of_image(values: Tensor, image: int | Tensor) -> Tensor:
    """Of [..., L, B, Q] what belongs to one image, [..., L, 1, Q], or to each of the images [N], [..., L, N, Q]."""
    return values.narrow(-2, image, 1) if isinstance(image, int) else values.index_select(-2, image)


def _image_of_target(sizes: list[int], first: int, last: int) -> Tensor:
    """The image of each target of the images from `first` up to `last`: [N], on the host."""
    return torch.repeat_interleave(torch.arange(first, last), torch.tensor(sizes[first:last]))


def _image_groups(sizes: list[int], row_pairs: int, at_once: int) -> list[tuple[int, int, int, int]]:
    """Split the batch into runs of images (first, last, first target, last target) of at most `at_once` pairs each.

    A single image that has more stands alone; runs without any target are left out.
    """
    groups: list[tuple[int, int, int, int]] = []
    first = start = end = 0
    for image, size in enumerate(sizes):
        if end > start and (end + size - start) * row_pairs > at_once:
            groups.append((first, image, start, end))
            start = end
        if end == start:
            first = image  # images without targets in front of a run need no part in it
        end += size
    if end > start:
        groups.append((first, len(sizes), start, end))
    return groups
