"""The 2D detection expert (BDD100K, CARLA): a DETR-style model with its criterion and its post-processing.

Backbone, pyramid, a heatmap head whose peaks seed the queries, and the shared query decoder. What trains it: Hungarian
matching with background trained (varifocal), auxiliary losses on every layer, denoising queries, and the dense
one-to-many supervision of the heatmap head (`heatmap.py`).
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
from automoe.experts.heatmap import HeatmapHead, heatmap_loss, map_of_box, rows_at, select_seeds
from automoe.experts.light_color import LightHead, LightScores, color_loss
from automoe.experts.pyramid import FeaturePyramid
from automoe.experts.query_decoder import BoxReference, QueryDecoder, blocked_pairs
from automoe.experts.registry import register_expert
from automoe.geometry import cxcywh_to_xyxy, paired_giou, paired_iou
from automoe.losses import varifocal_loss
from automoe.matching import HungarianMatcher
from automoe.metrics.detection import DetectionMetrics
from automoe.taxonomy import TRAFFIC_LIGHT

COMMON = 50
"""A class with fewer true boxes than this is left out of AP50_common: its AP is mostly luck."""

DRIVING_BOXES = 50
"""At most so many boxes of a picture are told to a policy, the surest ones."""


@dataclass(frozen=True)
class DetectionConfig:
    """The model and its losses; every field can be set from the JSON config."""

    backbone: str = "tf_efficientnet_lite0"
    norm: str = "folded"
    frozen_stages: int = 2
    dim: int = 64
    num_queries: int = 100
    decoder_layers: int = 2
    heads: int = 4
    points: int = 4
    head_depth: int = 1
    dropout: float = 0.0
    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    class_weight: float = 1.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    heatmap_weight: float = 1.0
    heatmap_giou_weight: float = 2.0
    denoising_weight: float = 1.0
    denoising_groups: int = 2
    color_weight: float = 0.5
    max_detections: int = 100
    classes: tuple[str, ...] = taxonomy.BDD_DETECTION
    collapse: dict[str, str] = field(default_factory=dict)
    """Classes that the labels don't tell apart, and what stands for each (`ClassMerge`)."""


class DetectionExpert(ImageExpert):
    """Boxes of the config's classes in an image, and tokens that say where they are.

    `forward` takes normalised images [B, 3, H, W] (`normalise`) and returns
      logits [L, B, Q, C] and boxes [L, B, Q, 4] (normalised cxcywh) of every decoder layer, the last one counts;
      seed_logits [B, Q, C], seed_boxes [B, Q, 4]: what the heatmap head alone says;
      heat_logits [B, C, h, w], heat_boxes [B, h, w, 4]: lists of its maps, one a stride, for the loss;
      tokens [B, Q, D], token_positions [B, Q, 2] (x, y in [0, 1]): the queries' last states, and where they are;
      denoising_logits, denoising_boxes [L, B, M, ...] where denoising boxes were given.
    """

    kind = "detection"
    metric = "AP"
    headline = ("AP", "AP50", "AP50_common", "AP50/car", "light_color", "heatmap/AP")
    tokens_version = 5

    def __init__(self, config: DetectionConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config, self.classes = config, config.classes
        self.merge = ClassMerge(config.classes, config.collapse)
        self.backbone = Backbone(
            config.backbone, pretrained=pretrained, norm=config.norm, frozen_stages=config.frozen_stages
        )
        self.set_normalisation(self.backbone.mean, self.backbone.std)
        self.pyramid = FeaturePyramid(self.backbone.channels, config.dim)
        self.heatmap = HeatmapHead(config.dim, len(self.classes), config.head_depth)
        self.content = nn.Sequential(nn.Linear(config.dim, config.dim), nn.LayerNorm(config.dim))
        self.decoder = QueryDecoder(
            config.dim,
            len(self.classes),
            BoxReference,
            layers=config.decoder_layers,
            maps=len(self.backbone.strides),
            heads=config.heads,
            points=config.points,
            dropout=config.dropout,
        )
        self.lights = LightHead() if TRAFFIC_LIGHT in self.classes else None

    def forward(self, images: Tensor, denoising_boxes: Tensor | None = None) -> dict[str, Any]:
        """images: [B, 3, H, W] normalised. denoising_boxes: [B, M, 4] cxcywh, jittered true boxes (training only)."""
        return self.detect(self.features(images), (images.shape[-2], images.shape[-1]), denoising_boxes)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, D, h, w] of every stride, fine to coarse, of normalised images [B, 3, H, W]."""
        return self.pyramid(self.backbone(images))

    def heat(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The heatmap head on each of the `features`: class logits [B, C, h, w] and boxes [B, h, w, 4]."""
        return [self.heatmap(m) for m in maps]

    def detect(
        self, maps: list[Tensor], size: tuple[int, int], denoising_boxes: Tensor | None = None
    ) -> dict[str, Any]:
        """What `forward` returns, from `features` of images of `size` (H, W)."""
        heats = self.heat(maps)
        heat_logits, heat_boxes = [logits for logits, _ in heats], [boxes for _, boxes in heats]
        seeds = select_seeds(heat_logits, heat_boxes, self.config.num_queries)
        logits, boxes = seeds.logits.detach(), seeds.boxes.detach()
        cells = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        content = rows_at(cells, seeds.cells)
        extra, blocked = 0, None
        if denoising_boxes is not None:
            extra = denoising_boxes.shape[1]
            level = map_of_box(denoising_boxes, maps)
            content = torch.cat([content, _sample(maps, denoising_boxes, level)], dim=1)
            said = _sample([m.detach() for m in heat_logits], denoising_boxes, level)
            logits = torch.cat([logits, said], dim=1)
            boxes = torch.cat([boxes, denoising_boxes.to(boxes.dtype)], dim=1)
            blocked = blocked_pairs(boxes.shape[1] - extra, extra, self.config.denoising_groups, boxes.device)
        decoded = self.decoder(self.content(content), logits, boxes, maps, BoxReference(size), blocked)
        count = boxes.shape[1] - extra
        out: dict[str, Any] = {
            "logits": self.merge.best(decoded.logits[:, :, :count], -1),
            "boxes": decoded.references[:, :, :count],
            "seed_logits": self.merge.best(seeds.logits, -1),
            "seed_boxes": seeds.boxes,
            "heat_logits": [self.merge.best(one, 1) for one in heat_logits],
            "heat_boxes": heat_boxes,
            "tokens": decoded.states[:, :count],
            "token_positions": decoded.references[-1, :, :count, :2],
        }
        if extra:
            out["denoising_logits"] = self.merge.best(decoded.logits[:, :, count:], -1)
            out["denoising_boxes"] = decoded.references[:, :, count:]
        return out

    def driving_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each of the surest boxes, at the middle of its lower edge, where what it shows stands: its
        classes' probabilities, the logarithms of its width and height (about from -1 to 1), and how likely it is a
        traffic light of each of the LIGHT_COLORS. What a box is and no more: by its query's state, which knows what it
        looks like, a policy learns the places of its training set by heart."""
        pictures = self.normalise(images)
        outputs = self(pictures)
        scores = outputs["logits"][-1].sigmoid()
        best = scores.amax(dim=-1).topk(min(DRIVING_BOXES, scores.shape[1]), dim=1).indices
        boxes, scores = (rows_at(one, best) for one in (outputs["boxes"][-1], scores))
        x, y, _, height = boxes.unbind(-1)
        feet = torch.stack([x, (y + height / 2).clamp(max=1.0)], dim=-1)
        size = boxes[..., 2:].clamp(min=1e-3).log() / 2 + 1.5
        told = [scores, size]
        if self.lights is not None:
            light = scores[..., self.classes.index(TRAFFIC_LIGHT), None]
            told.append(light * self.lights(pictures, boxes).softmax(dim=-1))
        return torch.cat(told, dim=-1), feet

    @property
    def tells_lights(self) -> bool:
        return self.lights is not None

    def things(self, features: Tensor) -> Tensor | None:
        on_the_road = [place for place, name in enumerate(self.classes) if name not in taxonomy.ABOVE_THE_ROAD]
        return features[..., on_the_road].amax(dim=-1)

    def make_criterion(self, reduce_count: CountReducer) -> DetectionCriterion:
        return DetectionCriterion(self.config, reduce_count)

    def predict(self, images: Tensor, transform: Tensor, orig_size: Tensor) -> list[dict[str, Tensor]]:
        """Per image `boxes` [K, 4] raw pixel xyxy, `scores` [K], `labels` [K], best first, and, where lights are a
        class, `colors` [K], places in LIGHT_COLORS, -1 for other classes; `heatmap/...` likewise, without colours, for
        what the heatmap head alone would say, which shows what the decoder adds."""
        pictures = self.normalise(images)
        outputs = self(pictures)
        size, limit = (images.shape[-2], images.shape[-1]), self.config.max_detections
        colors = None if self.lights is None else self.lights(pictures, outputs["boxes"][-1]).argmax(dim=-1)
        final = postprocess_detections(
            outputs["logits"][-1], outputs["boxes"][-1], transform, orig_size, size, limit, colors
        )
        seeds = postprocess_detections(outputs["seed_logits"], outputs["seed_boxes"], transform, orig_size, size, limit)
        for one in final:
            if "colors" in one:
                one["colors"][one["labels"] != self.classes.index(TRAFFIC_LIGHT)] = -1
        return [one | {f"heatmap/{k}": v for k, v in seed.items()} for one, seed in zip(final, seeds)]

    def make_metrics(self) -> DetectionScores:
        return DetectionScores(self.classes)

    def add_to_metrics(
        self, metrics: DetectionScores, sample_id: str, prediction: Mapping[str, Tensor], truth: Any
    ) -> None:
        for part, prefix in ((metrics.final, ""), (metrics.heatmap, "heatmap/")):
            predicted = (prediction[prefix + key].numpy() for key in ("boxes", "scores", "labels"))
            part.add(sample_id, truth.boxes, truth.labels, truth.ignored, *predicted)
        if metrics.lights is not None and "colors" in prediction:
            told = {key: prediction[key].numpy() for key in ("boxes", "labels", "colors")}
            metrics.lights.add(sample_id, truth, told)

    def summarise(self, metrics: DetectionScores) -> dict[str, float | None]:
        """The official metrics; AP50_common over the classes with 50 or more boxes; heatmap/... of the head alone;
        light_color, the share of found traffic lights whose colour is told right."""
        scores = metrics.final.compute()
        common = [name for name, count in metrics.final.truth_counts().items() if count >= COMMON]
        scores["AP50_common"] = metrics.final.ap50_over(common)
        alone = metrics.heatmap.compute()
        for key in ("AP", "AP50", "AP75", "AP50/car"):
            scores[f"heatmap/{key}"] = alone[key]
        if metrics.lights is not None:
            scores["light_color"] = metrics.lights.compute()
        return scores


class DetectionScores:
    """Metrics of the whole expert and, beside them, of its heatmap head alone and of what it says of lights."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.final, self.heatmap = DetectionMetrics(classes), DetectionMetrics(classes)
        self.lights = LightScores(classes.index(TRAFFIC_LIGHT)) if TRAFFIC_LIGHT in classes else None

    def state(self) -> tuple[Any, Any, Any]:
        """Plain picklable data for `merge` in another process."""
        return self.final.state(), self.heatmap.state(), {} if self.lights is None else self.lights.state()

    def merge(self, states: list[tuple[Any, Any, Any]]) -> None:
        """Add what other processes scored."""
        self.final.merge([state[0] for state in states])
        self.heatmap.merge([state[1] for state in states])
        if self.lights is not None:
            self.lights.merge([state[2] for state in states])


def _sample(maps: list[Tensor], boxes: Tensor, level: Tensor) -> Tensor:
    """Maps [B, D, H, W] at the centres of boxes [B, M, 4] cxcywh, bilinearly, each in its `level` [B, M]: [B, M, D]."""
    grid = (boxes[..., :2] * 2 - 1)[:, :, None].to(maps[0].dtype)
    on_each = torch.stack([F.grid_sample(m, grid, align_corners=False, padding_mode="border")[..., 0] for m in maps])
    index = level[None, :, None].expand(1, -1, on_each.shape[2], -1)
    return on_each.gather(0, index)[0].transpose(1, 2)


def make_denoising(
    targets: list[dict[str, Tensor]], groups: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor] | None:
    """Jittered copies of the true boxes: contrastive denoising (DINO), without label noise.

    Every group holds a positive copy of each box (moved less than half its size) and a negative one (moved further,
    which must say background). Returns boxes [B, 2 * groups * N, 4] and source int64 [B, 2 * groups * N]: the index of
    the true box, -1 for a negative, -2 for padding; None where no image has a box.
    """
    most = max((len(t["boxes"]) for t in targets), default=0)
    if most == 0:
        return None
    device = targets[0]["boxes"].device
    boxes = torch.full((len(targets), 2 * groups, most, 4), 0.5, device=device)
    boxes[..., 2:] = 0.05
    source = torch.full((len(targets), 2 * groups, most), -2, device=device, dtype=torch.int64)
    for b, target in enumerate(targets):
        true, keep = target["boxes"].float(), ~target["ignored"]
        if len(true) == 0:
            continue
        shape = (2 * groups, len(true), 4)
        sign = torch.where(torch.rand(shape, device=device, generator=generator) < 0.5, -1.0, 1.0)
        amount = torch.rand(shape, device=device, generator=generator)
        amount[groups:] = amount[groups:] * 0.5 + 0.5
        amount[:groups] = amount[:groups] * 0.4
        shift = sign[..., :2] * amount[..., :2] * true[None, :, 2:]
        stretch = torch.exp(sign[..., 2:] * amount[..., 2:] * 0.7)
        boxes[b, :, : len(true), :2] = (true[None, :, :2] + shift).clamp(0, 1)
        boxes[b, :, : len(true), 2:] = (true[None, :, 2:] * stretch).clamp(1e-3, 1.0)
        index = torch.arange(len(true), device=device)
        source[b, :groups, : len(true)] = torch.where(keep, index, -2)
        source[b, groups:, : len(true)] = torch.where(keep, -1, -2)
    return boxes.flatten(1, 2), source.flatten(1, 2)


class DetectionCriterion:
    """Losses of `DetectionExpert`. reduce_count turns a local count into its mean over processes."""

    def __init__(self, config: DetectionConfig, reduce_count: CountReducer) -> None:
        self.config = config
        self.reduce_count = lambda n: reduce_count(n) or 1.0
        self.matcher = HungarianMatcher(config.cost_class, config.cost_bbox, config.cost_giou)

    def __call__(self, model: DetectionExpert, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the model on a training batch, with denoising queries, and return its losses."""
        columns = zip(batch["boxes"], batch["labels"], batch["ignored"], batch["colors"])
        targets = [{"boxes": b, "labels": label, "ignored": i, "colors": c} for b, label, i, c in columns]
        boxes, source = self.denoising(targets) or (None, None)
        pictures = model.normalise(batch["image"])
        losses = self.losses(model(pictures, boxes), targets, source)
        if model.lights is not None:
            total, count = color_loss(model.lights, pictures, targets)
            losses["color"] = total / self.reduce_count(count) * self.config.color_weight
            losses["loss"] = losses["loss"] + losses["color"]
        return losses

    def denoising(self, targets: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor] | None:
        """Denoising boxes and their sources (`make_denoising`); None where there are none."""
        groups = self.config.denoising_groups
        return make_denoising(targets, groups) if groups else None

    def losses(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]], source: Tensor | None = None
    ) -> dict[str, Tensor]:
        """targets: per image `boxes` [N, 4] cxcywh, `labels` [N], `ignored` [N]; source: see `make_denoising`."""
        c = self.config
        kept = [{key: t[key][~t["ignored"]] for key in ("boxes", "labels")} for t in targets]
        normal = self.reduce_count(sum(len(t["boxes"]) for t in kept))
        layers = len(outputs["logits"])
        if not bool(outputs["logits"].isfinite().all() & outputs["boxes"].isfinite().all()):
            return self._broken(outputs, targets)
        with torch.no_grad():
            matches = self.matcher({"logits": outputs["logits"], "boxes": outputs["boxes"]}, kept)
        losses: dict[str, Tensor] = {}
        for layer in range(layers):
            assigned = torch.full(outputs["logits"].shape[1:3], -1, device=outputs["logits"].device)
            for b, (query, target) in enumerate(matches[layer]):
                assigned[b, query.to(assigned.device)] = target.to(assigned.device)
            logits, boxes = outputs["logits"][layer], outputs["boxes"][layer]
            ignore = _over_ignored(boxes.detach(), targets) & (assigned < 0)
            terms = self._layer(logits, boxes, kept, torch.where(ignore, -2, assigned), normal)
            for name, value in terms.items():
                losses[name if layer == layers - 1 else f"{name}_{layer}"] = value
        if source is not None and "denoising_logits" in outputs:
            # Denoising sources count all boxes; the kept ones are found again by their rank among the kept.
            ranks = [torch.cumsum((~t["ignored"]).long(), 0) - 1 for t in targets]
            mapped = source.clone()
            for b, rank in enumerate(ranks):
                if len(rank):
                    mapped[b] = torch.where(source[b] >= 0, rank[source[b].clamp(min=0)], source[b])
            for layer in range(layers):
                logits, boxes = outputs["denoising_logits"][layer], outputs["denoising_boxes"][layer]
                terms = self._layer(logits, boxes, kept, mapped, normal * c.denoising_groups)
                for name, value in terms.items():
                    losses[f"denoising_{name}_{layer}"] = value * c.denoising_weight
        dense = heatmap_loss(outputs["heat_logits"], outputs["heat_boxes"], targets, self.reduce_count)
        losses["heatmap"] = dense["heatmap"] * c.heatmap_weight
        losses["heatmap_giou"] = dense["heatmap_giou"] * c.heatmap_giou_weight
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses

    def _broken(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss of predictions that are not finite: not finite either, so that the engine stops all processes and
        names the samples. Counts are exchanged as ever: the other processes wait for them."""
        dense = heatmap_loss(outputs["heat_logits"], outputs["heat_boxes"], targets, self.reduce_count)
        total = outputs["logits"].sum() + outputs["boxes"].sum() + dense["heatmap"] + dense["heatmap_giou"]
        return {"loss": total * float("nan")}

    def _layer(
        self, logits: Tensor, boxes: Tensor, kept: list[dict[str, Tensor]], assigned: Tensor, normal: float
    ) -> dict[str, Tensor]:
        """One layer: logits [B, Q, C], boxes [B, Q, 4], assigned [B, Q]: a kept box, -1 background, -2 don't care."""
        logits, boxes = logits.float(), boxes.float()
        rows = assigned >= 0
        batch, _ = rows.nonzero(as_tuple=True)
        offsets = torch.tensor([0, *[len(t["boxes"]) for t in kept][:-1]], device=boxes.device).cumsum(0)
        flat = offsets[batch] + assigned[rows]
        true = torch.cat([t["boxes"] for t in kept]).float()[flat]
        labels = torch.cat([t["labels"] for t in kept])[flat]
        got_xyxy, true_xyxy = cxcywh_to_xyxy(boxes[rows]), cxcywh_to_xyxy(true)
        quality = torch.zeros_like(logits)
        with torch.no_grad():
            iou = paired_iou(got_xyxy, true_xyxy)
        values = torch.zeros(len(labels), logits.shape[-1], device=logits.device)
        values[torch.arange(len(labels), device=labels.device), labels] = iou.clamp(min=0.01)
        quality[rows] = values
        weight = (assigned > -2).to(logits.dtype)[..., None]
        giou = (1 - paired_giou(got_xyxy, true_xyxy)).sum() if len(true) else boxes.sum() * 0.0
        return {
            "class": varifocal_loss(logits, quality, weight) / normal * self.config.class_weight,
            "bbox": (boxes[rows] - true).abs().sum() / normal * self.config.bbox_weight,
            "giou": giou / normal * self.config.giou_weight,
        }


def _over_ignored(boxes: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    """Which predictions lie mostly (over half of their area) in an ignored region: bool [B, Q]."""
    out = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for b, target in enumerate(targets):
        regions = target["boxes"][target["ignored"]]
        if len(regions) == 0:
            continue
        predicted, region = (
            cxcywh_to_xyxy(boxes[b].float()),
            cxcywh_to_xyxy(regions),
        )
        low = torch.maximum(predicted[:, None, :2], region[None, :, :2])
        high = torch.minimum(predicted[:, None, 2:], region[None, :, 2:])
        inside = (high - low).clamp(min=0).prod(dim=-1)
        area = (predicted[:, 2:] - predicted[:, :2]).prod(dim=1).clamp(min=1e-9)
        out[b] = (inside / area[:, None]).amax(dim=1) > 0.5
    return out


def postprocess_detections(
    logits: Tensor,
    boxes: Tensor,
    transform: Tensor,
    orig_size: Tensor,
    size: tuple[int, int],
    limit: int,
    colors: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """Detections in raw pixels, best first.

    logits: [B, Q, C]; boxes: [B, Q, 4] normalised cxcywh; transform: [B, 2, 3] raw pixel -> network pixel; orig_size:
    [B, 2] height, width; size: the network's height, width; colors: of each box's light, [B, Q]. Returns per image
    `boxes` [K, 4] xyxy, `scores`, `labels`, and `colors` where they were given.
    """
    height, width = size
    scale = boxes.new_tensor([width, height, width, height], dtype=torch.float32)
    found = []
    for b in range(len(logits)):
        scores, index = logits[b].float().sigmoid().flatten().topk(min(limit, logits[b].numel()))
        query, label = index // logits.shape[-1], index % logits.shape[-1]
        xyxy = cxcywh_to_xyxy(boxes[b, query].float() * scale)
        affine = transform[b].to(xyxy)
        stretch, offset = affine[:, :2].diagonal().repeat(2), affine[:, 2].repeat(2)
        raw_height, raw_width = orig_size[b].tolist()
        bound = xyxy.new_tensor([raw_width, raw_height, raw_width, raw_height])
        raw = torch.minimum(((xyxy - offset) / stretch).clamp(min=0), bound)
        found.append({"boxes": raw.cpu(), "scores": scores.cpu(), "labels": label.cpu()})
        if colors is not None:
            found[-1]["colors"] = colors[b, query].cpu()
    return found


@register_expert("detection")
def build_detection(config: dict[str, Any], *, pretrained: bool) -> DetectionExpert:
    """A detection expert from its model config (`DetectionConfig`)."""
    return DetectionExpert(from_dict(DetectionConfig, config, "model"), pretrained=pretrained)
