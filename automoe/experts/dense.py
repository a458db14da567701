"""The dense experts: drivable area and semantic segmentation are one design with two configs.

Backbone, one projection a stride, summed from coarse to fine as in a feature pyramid, group norm, logits at stride 4.
Few layers stand between the features and the loss: smoothing convolutions, or a further map of stride 2, learn more
slowly than they help within minutes; `refine` adds the former where there is more time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe import taxonomy
from automoe.config import from_dict
from automoe.experts.backbone import Backbone
from automoe.experts.class_merge import ClassMerge
from automoe.experts.expert import CountReducer, ImageExpert
from automoe.experts.pyramid import SeparableConv, grid_tokens, group_norm
from automoe.experts.registry import register_expert
from automoe.losses import soft_dice_loss
from automoe.metrics.segmentation import SegmentationMetrics

CLASSES = {"drivable": taxonomy.DRIVABLE, "segmentation": taxonomy.SEMANTIC}
METRIC = {"drivable": "mIoU_3class", "segmentation": "mIoU"}
HEADLINE = {
    "drivable": ("mIoU", "mIoU_3class", "IoU_3class/direct", "IoU_3class/alternative"),
    "segmentation": ("mIoU", "pAcc", "fIoU"),
}


@dataclass(frozen=True)
class DenseConfig:
    """The model and its loss; every field can be set from the JSON config."""

    backbone: str = "tf_efficientnet_lite0"
    norm: str = "folded"
    frozen_stages: int = 1
    dim: int = 128
    refine: int = 0
    """Separable convolutions between the summed map and the logits."""
    dropout: float = 0.0
    dice_weight: float = 0.5
    balance: float = 0.0
    """Power of the inverse class frequency in the cross entropy, counted over the batch; 0 for none."""
    collapse: dict[str, str] = field(default_factory=dict)
    """Classes that the labels don't tell apart, and what stands for each (`ClassMerge`)."""


class DenseExpert(ImageExpert):
    """A class for every pixel, and tokens of the coarsest map.

    `forward` takes normalised images [B, 3, H, W] and returns logits [B, C, H/4, W/4], tokens [B, T, D] (the stride-32
    map, row by row) and token_positions [B, T, 2] (x, y in [0, 1]).
    """

    tokens_version = 4

    def __init__(self, kind: str, config: DenseConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.kind, self.config, self.classes = kind, config, CLASSES[kind]
        self.metric, self.headline = METRIC[kind], HEADLINE[kind]
        self.merge = ClassMerge(self.classes, config.collapse)
        self.backbone = Backbone(
            config.backbone, pretrained=pretrained, norm=config.norm, frozen_stages=config.frozen_stages
        )
        self.set_normalisation(self.backbone.mean, self.backbone.std)
        self.projections = nn.ModuleList(nn.Conv2d(c, config.dim, 1) for c in self.backbone.channels)
        self.head = nn.Sequential(
            group_norm(config.dim),
            nn.ReLU(inplace=True),
            *(SeparableConv(config.dim, config.dim) for _ in range(config.refine)),
            nn.Dropout2d(config.dropout),
            nn.Conv2d(config.dim, len(self.classes), 1),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: [B, 3, H, W], normalised."""
        maps = [project(f) for project, f in zip(self.projections, self.backbone(images))]
        fused = maps[-1]
        for finer in maps[-2::-1]:
            fused = F.interpolate(fused, size=finer.shape[-2:], mode="bilinear", align_corners=False) + finer
        tokens, positions = grid_tokens(maps[-1])
        return {
            "logits": self.merge.sum(self.head(fused), 1),
            "tokens": tokens,
            "token_positions": positions.expand(len(images), -1, -1),
        }

    def driving_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each cell of the coarsest map: the mean probability of each class in its four quarters. What is
        there and no more: by its features a policy learns the places of its training set by heart."""
        outputs = self(self.normalise(images))
        shares = outputs["logits"].softmax(dim=1)
        rows, columns = images.shape[-2] // 32, images.shape[-1] // 32
        quarters = F.adaptive_avg_pool2d(shares, (2 * rows, 2 * columns))
        each = F.pixel_unshuffle(quarters, 2).flatten(2).transpose(1, 2)
        return each, outputs["token_positions"]

    def things(self, features: Tensor) -> Tensor | None:
        users = [place for place, name in enumerate(self.classes) if name in taxonomy.ROAD_USERS]
        if not users:
            return None
        return features.unflatten(-1, (len(self.classes), 4))[..., users, :].sum(dim=-2).mean(dim=-1)

    def make_criterion(self, reduce_count: CountReducer) -> DenseCriterion:
        return DenseCriterion(self.config, reduce_count)

    def predict(self, images: Tensor, transform: Tensor, orig_size: Tensor) -> list[dict[str, Tensor]]:
        """Per image `mask`: uint8 [h, w] class ids at the raw size."""
        logits = self(self.normalise(images))["logits"]
        masks = resize_to_raw(logits, transform, orig_size, (images.shape[-2], images.shape[-1]))
        return [{"mask": mask.cpu()} for mask in masks]

    def make_metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self.kind)  # pyright: ignore[reportArgumentType]

    def add_to_metrics(
        self, metrics: SegmentationMetrics, sample_id: str, prediction: Mapping[str, Tensor], truth: Any
    ) -> None:
        metrics.add(sample_id, prediction["mask"].numpy(), truth.mask())

    def summarise(self, metrics: SegmentationMetrics) -> dict[str, float | None]:
        return metrics.compute()


class DenseCriterion:
    """Cross entropy over the valid pixels of all processes, plus soft Dice. Logits meet the mask at stride 2."""

    def __init__(self, config: DenseConfig, reduce_count: CountReducer) -> None:
        self.config, self.reduce_count = config, reduce_count

    def __call__(self, model: DenseExpert, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the model on a training batch and return its losses."""
        return self.losses(model(model.normalise(batch["image"])), batch["mask"])

    def losses(self, outputs: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """mask: uint8 [B, H, W] of class ids, 255 ignored. Returns `cross_entropy`, `dice`, `loss`."""
        # Every second pixel of the mask: a quarter of the work, and nearest sampling invents no class. Which ones is
        # drawn: logits lie between the pixels, so always the same ones would teach a map half a pixel aside.
        row, column = torch.randint(2, (2,)).tolist()
        target = mask[:, row::2, column::2].long()
        logits = F.interpolate(outputs["logits"].float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
        valid = self.reduce_count(int((target != taxonomy.IGNORE_INDEX).sum())) or 1.0
        weight = self._class_weight(target, logits.shape[1]) if self.config.balance > 0 else None
        entropy = F.cross_entropy(logits, target, weight=weight, ignore_index=taxonomy.IGNORE_INDEX, reduction="sum")
        losses = {"cross_entropy": entropy / valid}
        if self.config.dice_weight > 0:
            losses["dice"] = soft_dice_loss(logits, target) * self.config.dice_weight
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses

    def _class_weight(self, target: Tensor, classes: int) -> Tensor:
        """Inverse frequency in this batch, bounded, with mean 1 over its pixels: rare classes are heard."""
        counts = torch.bincount(target[target != taxonomy.IGNORE_INDEX], minlength=classes).float()
        frequency = (counts / counts.sum().clamp(min=1)).clamp(min=1e-4)
        weight = frequency**-self.config.balance
        return weight / (weight * counts).sum().clamp(min=1e-6) * counts.sum()


def resize_to_raw(logits: Tensor, transform: Tensor, orig_size: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Class ids at the raw image's resolution: a list of uint8 [h, w].

    logits: [B, C, H/4, W/4] over a network input of `size` (H, W); transform: [B, 2, 3] raw pixel -> network pixel;
    orig_size: [B, 2]. Logits, not classes, are interpolated; letterbox margins fall away.
    """
    height, width = size
    masks = []
    for b in range(len(logits)):
        raw_height, raw_width = (int(v) for v in orig_size[b])
        affine = transform[b].float().cpu()
        # The raw image's four sides in the network input, as fractions of it.
        left, right = (float(affine[0, 2] + affine[0, 0] * x) / width for x in (0.0, raw_width))
        top, bottom = (float(affine[1, 2] + affine[1, 1] * y) / height for y in (0.0, raw_height))
        full = max(abs(left), abs(top), abs(right - 1), abs(bottom - 1)) < 1e-3
        one = logits[b : b + 1].float()
        if full:
            grown = F.interpolate(one, size=(raw_height, raw_width), mode="bilinear", align_corners=False)
        else:
            xs = torch.linspace(left, right, 2 * raw_width + 1, device=one.device)[1::2] * 2 - 1
            ys = torch.linspace(top, bottom, 2 * raw_height + 1, device=one.device)[1::2] * 2 - 1
            grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]
            grown = F.grid_sample(one, grid, align_corners=False, padding_mode="border")
        masks.append(grown[0].max(dim=0).indices.to(torch.uint8))  # argmax takes three times as long on a CPU
    return masks


@register_expert("drivable")
def build_drivable(config: dict[str, Any], *, pretrained: bool) -> DenseExpert:
    """A drivable-area expert from its model config (`DenseConfig`)."""
    return DenseExpert("drivable", from_dict(DenseConfig, config, "model"), pretrained=pretrained)


@register_expert("segmentation")
def build_segmentation(config: dict[str, Any], *, pretrained: bool) -> DenseExpert:
    """A semantic-segmentation expert from its model config (`DenseConfig`)."""
    return DenseExpert("segmentation", from_dict(DenseConfig, config, "model"), pretrained=pretrained)
