"""The peers of AutoMoE's image experts: RT-DETRv2 and SegFormer of `transformers`, wrapped as experts.

As experts they are trained by the same loop on the same batches and scored by the same code. What is theirs is the
model behind the backbone, its losses, matcher and denoising, and the optimizer's settings (`Recipe`); what they share
with ours is the backbone with its ImageNet weights, folded batch norm and frozen stages, and whatever happens before
and after the model. Nothing is downloaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from automoe import taxonomy
from automoe.errors import ConfigError
from automoe.experts.backbone import Backbone
from automoe.experts.dense import CLASSES, HEADLINE, METRIC, DenseExpert
from automoe.experts.detection import COMMON, postprocess_detections
from automoe.experts.expert import CountReducer, ImageExpert
from automoe.metrics.detection import DetectionMetrics

os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import transformers
    from transformers import (
        RTDetrResNetConfig,
        RTDetrV2Config,
        RTDetrV2ForObjectDetection,
        SegformerConfig,
        SegformerForSemanticSegmentation,
    )
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
except ImportError as error:
    raise ConfigError(f"the peers need the package transformers ({error}); install automoe[peers].") from error

Criterion = Callable[[Any, Mapping[str, Any]], dict[str, Tensor]]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """What of the optimizer is the peer's own. Schedule, averaging and batch size are the profile's, as for ours."""

    learning_rate: float
    backbone_lr_factor: float
    weight_decay: float
    clip_norm: float


@dataclass(frozen=True)
class RtDetrConfig:
    """RT-DETRv2 in the size of its published R18 form, but for the width and the number of queries."""

    backbone: str = "tf_efficientnet_lite0"
    frozen_stages: int = 1
    dim: int = 128
    """Width of encoder and decoder. Published: 256, with CSP layers of half that (hidden_expansion 0.5)."""
    ffn_dim: int = 512
    expansion: float = 0.5
    decoder_layers: int = 3
    num_queries: int = 200
    num_denoising: int = 100
    published_init: bool = True
    """Start from the published code's random weights: see `initialise_as_published`."""
    max_detections: int = 100


class RtDetrPeer(ImageExpert):
    """`RTDetrV2ForObjectDetection` on our backbone, with its own criterion, matcher and denoising."""

    kind = "detection"
    classes = taxonomy.BDD_DETECTION
    metric = "AP"
    headline = ("AP", "AP50", "AP50_common", "AP50/car")

    def __init__(self, config: RtDetrConfig, *, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(
            config.backbone,
            pretrained=pretrained,
            norm="folded",
            frozen_stages=config.frozen_stages,
            out_strides=(8, 16, 32),
        )
        self.set_normalisation(self.backbone.mean, self.backbone.std)
        self.net = RTDetrV2ForObjectDetection(_rt_detr_config(config, self.backbone.channels, len(self.classes)))
        self.net.model.backbone = BackboneFeed(self.backbone)
        if config.published_init:
            initialise_as_published(self.net)

    def forward(self, images: Tensor, labels: list[dict[str, Tensor]] | None = None) -> Any:
        """images: [B, 3, H, W] normalised. Returns the output object of `transformers`."""
        return self.net(pixel_values=images, labels=labels)

    def make_criterion(self, reduce_count: CountReducer) -> Criterion:
        """The loss that comes with the model. Regions to ignore are left out of its truth, as crowds are in COCO."""

        def criterion(model: RtDetrPeer, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            columns = zip(batch["boxes"], batch["labels"], batch["ignored"])
            truth = [{"boxes": b[~ignored], "class_labels": label[~ignored]} for b, label, ignored in columns]
            outputs = model(model.normalise(batch["image"]), truth)
            return {"loss": outputs.loss, **outputs.loss_dict}

        return criterion

    def predict(self, images: Tensor, transform: Tensor, orig_size: Tensor) -> list[dict[str, Tensor]]:
        """Per image `boxes` [K, 4] raw pixel xyxy, `scores` [K], `labels` [K], best first, by our own code."""
        outputs = self(self.normalise(images))
        size = (images.shape[-2], images.shape[-1])
        limit = self.config.max_detections
        return postprocess_detections(outputs.logits, outputs.pred_boxes, transform, orig_size, size, limit)

    def make_metrics(self) -> DetectionMetrics:
        return DetectionMetrics()

    def add_to_metrics(
        self, metrics: DetectionMetrics, sample_id: str, prediction: Mapping[str, Tensor], truth: Any
    ) -> None:
        predicted = (prediction[key].numpy() for key in ("boxes", "scores", "labels"))
        metrics.add(sample_id, truth.boxes, truth.labels, truth.ignored, *predicted)

    def summarise(self, metrics: DetectionMetrics) -> dict[str, float | None]:
        scores = metrics.compute()
        common = [name for name, count in metrics.truth_counts().items() if count >= COMMON]
        scores["AP50_common"] = metrics.ap50_over(common)
        return scores


class BackboneFeed(nn.Module):
    """Stands where RT-DETR keeps its backbone and asks ours, which the expert holds: it is registered only there."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._held = [backbone]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, None]]:
        """The maps with their padding masks; no image is padded here, and RT-DETR doesn't look at the masks."""
        return [(feature_map, None) for feature_map in self._held[0](pixel_values)]


def _rt_detr_config(config: RtDetrConfig, channels: tuple[int, ...], num_classes: int) -> RTDetrV2Config:
    # Only a description of the maps: a backbone with such channels is made, and then replaced by ours.
    maps = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, *channels],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrV2Config(
        backbone_config=maps,
        num_labels=num_classes,
        d_model=config.dim,
        encoder_hidden_dim=config.dim,
        encoder_in_channels=list(channels),
        decoder_in_channels=[config.dim] * len(channels),
        encoder_ffn_dim=config.ffn_dim,
        decoder_ffn_dim=config.ffn_dim,
        hidden_expansion=config.expansion,
        decoder_layers=config.decoder_layers,
        num_queries=config.num_queries,
        num_denoising=config.num_denoising,
    )


@torch.no_grad()
def initialise_as_published(net: RTDetrV2ForObjectDetection) -> None:
    """Random weights as the authors' own code starts from them, in place.

    `transformers` is made for loading weights: it would start the scale of every batch norm near zero (a normal
    distribution with deviation 0.01 around 0, as all convolutions and linear layers), and hardly learns from there.
    Followed: `_reset_parameters` of RTDETRTransformerv2 and PyTorch's own defaults elsewhere (lyuwenyu/RT-DETR).
    """
    model: Any = net.model
    sampling = {id(m) for layer in model.decoder.layers for m in layer.encoder_attn.modules()}  # already as published
    for name, module in net.named_modules():
        if id(module) in sampling:
            continue
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.LayerNorm | nn.Embedding):
            module.reset_parameters()
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            nn.init.xavier_uniform_(module.weight, gain=2**-0.5)  # as one matrix for all three
            nn.init.zeros_(module.bias)
    prior = -math.log((1 - 0.01) / 0.01)
    for score in (model.enc_score_head, *model.decoder.class_embed):
        nn.init.constant_(score.bias, prior)
    for box in (model.enc_bbox_head, *model.decoder.bbox_embed):
        nn.init.zeros_(box.layers[-1].weight)
        nn.init.zeros_(box.layers[-1].bias)
    for linear in (model.enc_output[0], *model.decoder.query_pos_head.layers):
        nn.init.xavier_uniform_(linear.weight)


@dataclass(frozen=True)
class SegformerPeerConfig:
    """SegFormer's all-MLP head on our backbone, or with backbone "mit_b0" the whole of SegFormer-B0."""

    backbone: str = "tf_efficientnet_lite0"
    frozen_stages: int = 1
    dim: int = 128
    """Width of the head. B0 and B1 are published with 256, which costs nearly twice the time a step on a CPU and
    learned less in the same time."""


class SegformerPeer(DenseExpert):
    """SegFormer with its own loss; prediction and scoring are inherited from our dense experts."""

    def __init__(self, kind: str, config: SegformerPeerConfig, *, pretrained: bool = True) -> None:
        nn.Module.__init__(self)
        self.kind, self.classes = kind, CLASSES[kind]
        self.config = config  # pyright: ignore[reportAttributeAccessIssue]
        self.metric, self.headline = METRIC[kind], HEADLINE[kind]
        labels = len(self.classes)
        if config.backbone == "mit_b0":
            self.set_normalisation(*IMAGENET)
            whole = SegformerConfig(num_labels=labels)
            self.net = SegformerForSemanticSegmentation(whole)
            return
        self.backbone = Backbone(
            config.backbone, pretrained=pretrained, norm="folded", frozen_stages=config.frozen_stages
        )
        self.set_normalisation(self.backbone.mean, self.backbone.std)
        widths = list(self.backbone.channels)
        head = SegformerConfig(num_labels=labels, hidden_sizes=widths, decoder_hidden_size=config.dim)
        self.net = SegformerDecodeHead(head)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: [B, 3, H, W] normalised. Returns logits [B, C, H/4, W/4]."""
        if self.config.backbone == "mit_b0":
            return {"logits": self.net(pixel_values=images).logits}
        return {"logits": self.net(self.backbone(images))}

    def make_criterion(self, reduce_count: CountReducer) -> Criterion:  # pyright: ignore
        """As in `SegformerForSemanticSegmentation`: cross entropy at the mask's own resolution."""

        def criterion(model: SegformerPeer, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            mask = batch["mask"].long()
            logits = model(model.normalise(batch["image"]))["logits"]
            logits = nn.functional.interpolate(logits, size=mask.shape[-2:], mode="bilinear", align_corners=False)
            return {"loss": nn.functional.cross_entropy(logits, mask, ignore_index=taxonomy.IGNORE_INDEX)}

        return criterion


def quieten() -> str:
    """Let `transformers` speak only of errors. Returns its version."""
    transformers.logging.set_verbosity_error()
    return transformers.__version__
