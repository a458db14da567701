"""The nuScenes expert: 3D boxes from any cameras and a LiDAR, and image boxes beside them.

Pillars and a map seen from above for the LiDAR; what the cameras show is painted on its points (PointPainting, CVPR
2020) and lifted onto the same map by projection; a heatmap on the fused map seeds the queries, and the decoder that the
2D expert has samples the map and the cameras' features where its 3D references lie. The image branch is the 2D
detection expert itself, with nuScenes' classes, trained jointly on the projected boxes: its weights alone are the
image-only variant (`nuscenes_2d`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe.config import from_dict
from automoe.data.nuscenes import to_global
from automoe.experts.bev_heatmap import BevHeatmapHead, select_seeds
from automoe.experts.box3d import Box3dReference, decode_boxes
from automoe.experts.detection import DetectionConfig, DetectionExpert, postprocess_detections
from automoe.experts.expert import CountReducer, Expert
from automoe.experts.heatmap import rows_at
from automoe.experts.nuscenes_config import NuscenesConfig
from automoe.experts.nuscenes_criterion import NuscenesCriterion, attribute_mask
from automoe.experts.pillars import BevBackbone, PillarEncoder
from automoe.experts.pyramid import SeparableConv
from automoe.experts.query_decoder import QueryDecoder, blocked_pairs
from automoe.experts.registry import register_expert
from automoe.experts.rig_geometry import Rig
from automoe.metrics.detection import DetectionMetrics
from automoe.metrics.nuscenes import Boxes3D, NuscenesMetrics
from automoe.taxonomy import (
    NUSCENES_ATTRIBUTES,
    NUSCENES_ATTRIBUTES_OF,
    NUSCENES_DETECTION,
)

TIMID = 0.1
"""How loud pictures are where they meet the LiDAR's points and map. An optimizer that takes equal steps in all weights
would otherwise fill the map with what an image branch says before it has learnt anything."""


IMAGE_BOXES = 30
"""Boxes of the image branch that are kept of each picture: trainval's validation split has 36,000 pictures."""


class NuscenesExpert(Expert):
    """3D boxes of nuScenes' ten classes round the car, and tokens that say where they are.

    `forward` takes a batch (see `data.nuscenes_dataset.collate`) and returns, for B samples and L layers,
      logits [L, B, Q, 10] and numbers [L, B, Q, 10] (`box3d`) of every decoder layer, attributes [B, Q, 8];
      seed_logits [B, Q, 10], seed_numbers [B, Q, 10]: what the heatmap head alone says;
      heat_logits [B, 10, H, W], heat_numbers [B, H, W, 10]: its maps, for the loss;
      tokens [B, Q, D], token_positions [B, Q, 2] (x, y in the ego frame, metres): for the policy;
      image: what the image branch says of all B * N pictures (`DetectionExpert.forward`);
      denoising_logits, denoising_numbers [L, B, M, ...] where denoising boxes were given;
      point_logits [B, K, 11], in training with both sensors: what the pictures alone say of the key frame's points that
      they show, `point_rows` int64 [B, K]; where `point_seen`, bool [B, K], is false there is none (`point_loss`).
    """

    kind = "nuscenes"
    classes = NUSCENES_DETECTION
    metric = "NDS"
    headline = ("NDS", "mAP", "AP/car", "heatmap/mAP", "image/AP50")
    decimals = 3
    inputs = ("points", "point_count", "image", "T_cam_ego", "intrinsic", "transform", "orig_size", "present")

    def __init__(self, config: NuscenesConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        dim, grid = config.dim, config.grid
        self.image = DetectionExpert(config.image, pretrained=pretrained) if config.cameras else None
        maps, painted = 1, 0
        if self.image is not None:
            painted = config.paint_dim + len(self.classes)
            if config.lidar:
                painted += len(self.classes)
                self.point_classes = nn.Conv2d(config.image.dim, len(self.classes) + 1, 1)
            maps += len(self.image.backbone.strides)
            self.paint = nn.Conv2d(config.image.dim, config.paint_dim, 1)
            self.lift = nn.Conv2d(painted * len(config.lift_heights), dim, 1)
            self.for_decoder = nn.Conv2d(config.image.dim, dim, 1)
        if config.lidar:
            self.pillars = PillarEncoder(grid, config.pillar_dim, painted)
            self.bev = BevBackbone(config.pillar_dim, dim, config.bev_depth)
        self.fuse = nn.Sequential(SeparableConv(dim, dim), SeparableConv(dim, dim, 5))
        self.heatmap = BevHeatmapHead(grid, dim, len(self.classes))
        self.content = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.decoder = QueryDecoder(
            dim,
            len(self.classes),
            Box3dReference,
            layers=config.decoder_layers,
            maps=maps,
            heads=config.heads,
            points=config.points,
            dropout=config.dropout,
        )
        self.attributes = nn.Linear(dim, len(NUSCENES_ATTRIBUTES))
        if self.image is not None and config.lidar:
            self._start_with_lidar(painted)

    def _start_with_lidar(self, painted: int) -> None:
        """An untrained image branch says nothing to the map and little to the queries: what the LiDAR tells is learnt
        first, from clean features, and pictures can only add to it."""
        nn.init.zeros_(self.pillars.points.weight[:, -painted:])
        nn.init.zeros_(self.lift.weight)
        self.decoder.favour(0)

    def forward(
        self,
        batch: Mapping[str, Any],
        denoising_numbers: Tensor | None = None,
        image_denoising_boxes: Tensor | None = None,
    ) -> dict[str, Any]:
        """batch: `points` [B, P, 5] and `point_count` [B]; `image` uint8 [B, N, 3, H, W] with `T_cam_ego` [B, N, 4, 4],
        `intrinsic` [B, N, 3, 3] and `present` bool [B, N]. denoising_numbers: [B, M, 10], jittered true boxes, and
        image_denoising_boxes [B * N, M, 4] (training only)."""
        out: dict[str, Any] = {}
        sources, cameras, columns, rig, painted = [], [], (), None, None
        grid, side = self.config.grid, self.config.grid.side // 2
        if self.image is not None:
            images = batch["image"].flatten(0, 1)
            size = (images.shape[-2], images.shape[-1])
            rig = Rig(batch["T_cam_ego"], batch["intrinsic"], size, batch["present"])
            features = self.image.features(self.image.normalise(images))
            out["image"] = self.image.detect(features, size, image_denoising_boxes)
            shown = [self.paint(features[0]), _evidence(out["image"]["heat_logits"])]
            if self.config.lidar:
                shown[0] = shown[0] * TIMID
                point_logits = self.point_classes(features[0])
                shown.append(point_logits.detach().softmax(dim=1)[:, :-1])
            shown = torch.cat(shown, dim=1)
            wide = rig.side_by_side(shown)
            sources.append(self._lifted(wide, rig, shown.shape[-1], side))
            cameras = [rig.side_by_side(self.for_decoder(one)) for one in features]
            columns = tuple(one.shape[-1] for one in features)
            if self.config.lidar:
                places = rig.locate(batch["points"][..., :3], shown.shape[-1])
                painted = _sample_wide(wide, places)
                if self.training:
                    rows, shown_at = shown_rows(batch["points"], batch["point_count"], places)
                    out["point_rows"], out["point_seen"] = rows, shown_at
                    places = places.gather(1, rows[..., None].expand(-1, -1, 2))
                    out["point_logits"] = _sample_wide(rig.side_by_side(point_logits), places)
        if self.config.lidar:
            sources.append(self.bev(self.pillars(batch["points"], batch["point_count"], painted)))
        bev = self.fuse(torch.stack(sources).sum(dim=0) if len(sources) > 1 else sources[0])

        heat_logits, heat_numbers = self.heatmap(bev)
        seed_logits, seed_numbers, cells = select_seeds(heat_logits, heat_numbers, self.config.num_queries)
        content = rows_at(bev.flatten(2).transpose(1, 2), cells)
        logits, numbers = seed_logits.detach(), seed_numbers.detach()
        count, extra, blocked = logits.shape[1], 0, None
        if denoising_numbers is not None:
            extra = denoising_numbers.shape[1]
            places = grid.place(denoising_numbers[..., :2])
            content = torch.cat([content, _sample_wide(bev, places)], dim=1)
            logits = torch.cat([logits, _sample_wide(heat_logits.detach(), places)], dim=1)
            numbers = torch.cat([numbers, denoising_numbers.to(numbers.dtype)], dim=1)
            blocked = blocked_pairs(count, extra, self.config.denoising_groups, bev.device)
        geometry = Box3dReference(grid, rig, columns)
        decoded = self.decoder(self.content(content), logits, numbers, [bev, *cameras], geometry, blocked)
        states = decoded.states[:, :count]
        out |= {
            "logits": decoded.logits[:, :, :count],
            "numbers": decoded.references[:, :, :count],
            "attributes": self.attributes(states),
            "seed_logits": seed_logits,
            "seed_numbers": seed_numbers,
            "heat_logits": heat_logits,
            "heat_numbers": heat_numbers,
            "tokens": states,
            "token_positions": decoded.references[-1, :, :count, :2],
        }
        if extra:
            out["denoising_logits"] = decoded.logits[:, :, count:]
            out["denoising_numbers"] = decoded.references[:, :, count:]
        return out

    def normalisation(self) -> dict[str, Any]:
        return self.image.normalisation() if self.image is not None else {}

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if self.image is not None:
            self.image.set_normalisation(mean, std)

    def make_criterion(self, reduce_count: CountReducer) -> NuscenesCriterion:
        return NuscenesCriterion(self.config, reduce_count)

    def predict_batch(self, batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Per sample, in its ego frame and best first: `boxes` [K, 7] (x, y, z, l, w, h, yaw), `velocity` [K, 2],
        `scores`, `labels`, `attributes` [K] (-1 for none), and `heatmap/...` likewise for the heatmap head alone. Of
        the image branch `image/boxes` [K, 4] (raw pixel xyxy), `image/scores`, `image/labels`, and `image/cameras` [K],
        places in the config's cameras."""
        out = self(batch)
        sets = [
            ("", out["logits"][-1], out["numbers"][-1], out["attributes"]),
            ("heatmap/", out["seed_logits"], out["seed_numbers"], out["attributes"]),
        ]
        found: list[dict[str, Tensor]] = [{} for _ in range(len(out["seed_logits"]))]
        for prefix, logits, numbers, attributes in sets:
            for sample, *own in zip(found, logits, numbers, attributes):
                sample |= {prefix + key: value for key, value in self._detections(*own).items()}
        if self.image is not None:
            for sample, own in zip(found, self._image_detections(batch, out["image"])):
                sample |= own
        return found

    def _image_detections(self, batch: Mapping[str, Any], said: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Per sample what the image branch found in its pictures."""
        count, size = batch["image"].shape[1], (batch["image"].shape[-2], batch["image"].shape[-1])
        per_picture = postprocess_detections(
            said["logits"][-1],
            said["boxes"][-1],
            batch["transform"].flatten(0, 1),
            batch["orig_size"].flatten(0, 1),
            size,
            min(IMAGE_BOXES, self.config.image.max_detections),
        )
        found = []
        for start in range(0, len(per_picture), count):
            own = per_picture[start : start + count]
            joined = {f"image/{key}": torch.cat([one[key] for one in own]) for key in ("boxes", "scores", "labels")}
            cameras = [torch.full((len(one["scores"]),), place) for place, one in enumerate(own)]
            found.append(joined | {"image/cameras": torch.cat(cameras)})
        return found

    def _detections(self, logits: Tensor, numbers: Tensor, attributes: Tensor) -> dict[str, Tensor]:
        """The best boxes of one sample: logits [Q, 10], numbers [Q, 10], attributes [Q, 8]."""
        limit = min(self.config.max_detections, logits.numel())
        scores, index = logits.float().sigmoid().flatten().topk(limit)
        query, labels = index // logits.shape[-1], index % logits.shape[-1]
        boxes, velocity = decode_boxes(numbers[query].float())
        attribute = (attributes[query].float() + attribute_mask(labels)).argmax(dim=-1)
        has_one = torch.tensor([bool(NUSCENES_ATTRIBUTES_OF[name]) for name in self.classes], device=labels.device)
        found = {
            "boxes": boxes,
            "velocity": velocity,
            "scores": scores,
            "labels": labels,
            "attributes": torch.where(has_one[labels], attribute, -1),
        }
        return {key: value.cpu() for key, value in found.items()}

    def make_metrics(self) -> NuscenesScoring:
        return NuscenesScoring()

    def add_to_metrics(
        self, metrics: NuscenesScoring, sample_id: str, prediction: Mapping[str, Tensor], truth: Any
    ) -> None:
        """truth: a `data.nuscenes_prepared.NuscenesRow`."""
        true = truth.truth()
        for part, prefix in ((metrics.final, ""), (metrics.heatmap, "heatmap/")):
            predicted = global_boxes(prediction, truth.T_world_ego, prefix)
            part.add(sample_id, true, predicted, truth.T_world_ego[:2, 3], truth.racks)
        if "image/boxes" in prediction:
            for place, channel in enumerate(self.config.cameras):
                own = prediction["image/cameras"] == place
                said = (prediction[f"image/{key}"][own].numpy() for key in ("boxes", "scores", "labels"))
                metrics.image.add(f"{sample_id}/{channel}", *truth.image_truth(channel), *said)

    def summarise(self, metrics: NuscenesScoring) -> dict[str, float | None]:
        """The official metrics as fractions; heatmap/... of the heatmap head alone; image/..., COCO's metrics of the
        image branch on the boxes that are projected into the pictures, fractions too."""
        scores = dict(metrics.final.compute().metrics)
        alone = metrics.heatmap.compute().metrics
        scores |= {f"heatmap/{key}": alone[key] for key in ("mAP", "NDS", "AP/car")}
        if len(metrics.image):
            boxes = metrics.image.compute()
            shown = {key: boxes[key] for key in ("AP", "AP50", "AP50/car")}
            scores |= {f"image/{key}": None if value is None else value / 100 for key, value in shown.items()}
        return scores

    def _lifted(self, wide: Tensor, rig: Rig, columns: int, side: int) -> Tensor:
        """What the cameras show, on the map: at some heights above each cell's middle. Half the map's resolution is
        what a picture can place, and a quarter of the work."""
        half = side // 2
        centres = self.config.grid.centres(half, half, wide.device).reshape(1, -1, 2)
        found = []
        for height in self.config.lift_heights:
            spots = F.pad(centres, (0, 1), value=height).expand(len(wide), -1, -1)
            found.append(_sample_wide(wide, rig.locate(spots, columns)))
        lifted = self.lift(torch.cat(found, dim=-1).transpose(1, 2).reshape(len(wide), -1, half, half))
        if self.config.lidar:
            lifted = lifted * TIMID
        return F.interpolate(lifted, size=(side, side), mode="bilinear", align_corners=False)


def global_boxes(prediction: Mapping[str, Tensor], T_world_ego: np.ndarray, prefix: str = "") -> Boxes3D:
    """What `NuscenesExpert.predict_batch` says of a sample, as the metric and submissions have it."""
    boxes, velocity, labels, attributes, scores = (
        prediction[prefix + key].numpy() for key in ("boxes", "velocity", "labels", "attributes", "scores")
    )
    return to_global(boxes, velocity, labels, attributes, scores, T_world_ego)


class NuscenesScoring:
    """Metrics of the whole expert and, beside them, of its heatmap head alone and of its image branch."""

    def __init__(self) -> None:
        self.final, self.heatmap = NuscenesMetrics(), NuscenesMetrics()
        self.image = DetectionMetrics(NUSCENES_DETECTION)

    def state(self) -> tuple[Any, ...]:
        """Plain picklable data for `merge` in another process."""
        return tuple(part.state() for part in self._parts())

    def merge(self, states: list[tuple[Any, ...]]) -> None:
        """Add what other processes scored."""
        for part, own in zip(self._parts(), zip(*states, strict=True)):
            part.merge(own)

    def _parts(self) -> tuple[NuscenesMetrics, NuscenesMetrics, DetectionMetrics]:
        return self.final, self.heatmap, self.image


def shown_rows(points: Tensor, count: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the key frame's points that some picture shows, int64 [B, K], and which of them are: bool [B, K].

    points: [B, P, 5], of which `count` [B] are points; places: [B, P, 2] on the pictures, negative where none shows it.
    """
    shown = (places >= 0).all(dim=-1) & (points[..., 4] == 0)
    shown &= torch.arange(points.shape[1], device=points.device) < count[:, None]
    number = shown.sum(dim=1)
    most = max(1, int(number.max()))
    rows = shown.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return rows, torch.arange(rows.shape[1], device=points.device) < number[:, None]


def _evidence(heat_logits: list[Tensor]) -> Tensor:
    """What the image head's heatmaps say on their finest grid: the best of all maps, [B, C, h, w], as probabilities.

    Detached: the image branch learns from image boxes and from features, not to please the map.
    """
    size = heat_logits[0].shape[-2:]
    maps = [one.detach().sigmoid() for one in heat_logits]
    grown = [F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in maps[1:]]
    return torch.stack([maps[0], *grown]).amax(dim=0)


def _sample_wide(feature_map: Tensor, places: Tensor) -> Tensor:
    """[B, D, H, W] at places [B, P, 2] (0 to 1), zero outside: [B, P, D]."""
    # In bfloat16 a place would be known to whole cells only.
    grid = (places.float() * 2 - 1)[:, :, None]
    return F.grid_sample(feature_map.float(), grid, align_corners=False)[..., 0].transpose(1, 2)


@register_expert("nuscenes")
def build_nuscenes(config: dict[str, Any], *, pretrained: bool) -> NuscenesExpert:
    """A nuScenes expert from its model config (`NuscenesConfig`)."""
    return NuscenesExpert(from_dict(NuscenesConfig, config, "model"), pretrained=pretrained)


@register_expert("nuscenes_2d")
def build_nuscenes_2d(config: dict[str, Any], *, pretrained: bool) -> DetectionExpert:
    """The image-only variant: the image branch of a nuScenes expert, by the branch's own config, and nothing else."""
    own = replace(from_dict(DetectionConfig, config, "model"), classes=NUSCENES_DETECTION)
    expert = DetectionExpert(own, pretrained=pretrained)
    expert.kind = "nuscenes_2d"
    return expert
