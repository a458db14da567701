"""The nuScenes expert: 3D boxes from any cameras and a LiDAR, and image boxes beside them.

Pillars and a map seen from above for the LiDAR; what the cameras show is painted on its points (PointPainting, CVPR
2020) and lifted onto the same map by projection; a heatmap on the fused map seeds the queries, and the decoder that the
2D expert has samples the map and the cameras' features where its 3D references lie. The image branch is the 2D
detection expert itself, with nuScenes' classes, trained jointly on the projected boxes: its weights alone are the
image-only variant (`nuscenes_2d`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automoe.config import from_dict
from automoe.data.nuscenes import to_global
from automoe.errors import ConfigError
from automoe.experts.bev_heatmap import BevHeatmapHead, bev_heatmap_loss, select_seeds
from automoe.experts.box3d import LOG_SIZE, Box3dReference, decode_boxes, encode_boxes
from automoe.experts.detection import DetectionConfig, DetectionCriterion, DetectionExpert, postprocess_detections
from automoe.experts.expert import CountReducer, Expert
from automoe.experts.heatmap import rows_at
from automoe.experts.pillars import BevBackbone, BevGrid, PillarEncoder
from automoe.experts.pyramid import SeparableConv
from automoe.experts.query_decoder import QueryDecoder, blocked_pairs
from automoe.experts.registry import register_expert
from automoe.experts.rig_geometry import Rig
from automoe.losses import varifocal_loss
from automoe.matching import HungarianMatcher, Match
from automoe.metrics.detection import DetectionMetrics
from automoe.metrics.nuscenes import Boxes3D, NuscenesMetrics
from automoe.taxonomy import (
    NUSCENES_ATTRIBUTES,
    NUSCENES_ATTRIBUTES_OF,
    NUSCENES_CAMERAS,
    NUSCENES_DETECTION,
)

BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
"""Of the ten numbers in the L1 loss: velocities are larger and rougher than the rest."""

EITHER_WAY = 0.2
"""The share of a heading's loss that takes the opposite one for as good. Plain L1 of sine and cosine is content with no
heading at all where front and back can't be told apart; with more than a half, a wrong way round would stay so."""

QUALITY_METRES = 2.0
"""A prediction so far from its truth has a class target of 1/e."""

DENOISING_METRES = (0.5, 1.5)
"""How far a positive denoising copy is moved at most: bounds of what follows its size."""

NEGATIVE_METRES = 1.0
"""A negative denoising copy so near to a true box is neither that nor background."""

NOTHING_SAID = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
"""What stands for unknown numbers of a denoising copy."""

CONE = NUSCENES_DETECTION.index("traffic_cone")

TIMID = 0.1
"""How loud pictures are where they meet the LiDAR's points and map. An optimizer that takes equal steps in all weights
would otherwise fill the map with what an image branch says before it has learnt anything."""

Target = dict[str, Tensor]


@dataclass(frozen=True)
class NuscenesConfig:
    """The model and its losses; every field can be set from the JSON config.

    cameras: channels that it is used with, none for LiDAR only; lidar: false for cameras only. image: the image branch,
    always of nuScenes' classes.
    lift_heights: metres above the ego's ground at which a place of the map looks into the pictures.
    class_counts: boxes of each class in the training set, which the stage fills in; balance: how much more rarer ones
    weigh in the losses, an exponent: 0 for equally, 1 as if there were as many of each.
    """

    cameras: tuple[str, ...] = NUSCENES_CAMERAS
    lidar: bool = True
    image: DetectionConfig = field(default_factory=DetectionConfig)
    grid: BevGrid = field(default_factory=BevGrid)
    dim: int = 64
    pillar_dim: int = 32
    paint_dim: int = 16
    bev_depth: int = 1
    lift_heights: tuple[float, ...] = (0.4, 1.5)
    num_queries: int = 150
    decoder_layers: int = 2
    heads: int = 4
    points: int = 4
    dropout: float = 0.0
    cost_class: float = 2.0
    cost_bbox: float = 0.25
    cost_giou: float = 0.0
    class_weight: float = 1.0
    bbox_weight: float = 0.5
    attribute_weight: float = 0.3
    heatmap_weight: float = 1.0
    heatmap_bbox_weight: float = 0.5
    denoising_weight: float = 1.0
    denoising_groups: int = 0
    image_weight: float = 0.1
    point_weight: float = 0.5
    balance: float = 0.5
    class_counts: tuple[int, ...] = ()
    max_detections: int = 300

    def __post_init__(self) -> None:
        if not (self.cameras or self.lidar):
            raise ConfigError("the model has neither cameras nor a LiDAR; set model.cameras or model.lidar.")
        if strange := [name for name in self.cameras if name not in NUSCENES_CAMERAS]:
            raise ConfigError(f"model.cameras has {strange[0]!r}; nuScenes has {', '.join(NUSCENES_CAMERAS)}.")
        if twice := [name for place, name in enumerate(self.cameras) if name in self.cameras[:place]]:
            raise ConfigError(f"model.cameras has {twice[0]!r} twice.")
        object.__setattr__(self, "image", replace(self.image, classes=NUSCENES_DETECTION))
        if self.num_queries < 1:
            raise ConfigError(f"model.num_queries is {self.num_queries}; give a number of at least 1.")
        for name in (one.name for one in fields(self) if one.name.endswith("_weight")):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; give a number of at least 0.")
        if not 0 <= self.balance <= 1:
            raise ConfigError(f"model.balance is {self.balance}; give 0 to 1.")
        if self.class_counts and len(self.class_counts) != len(NUSCENES_DETECTION):
            raise ConfigError(f"model.class_counts must be {len(NUSCENES_DETECTION)} numbers.")
        if not 1 <= self.max_detections <= 500:
            raise ConfigError(f"model.max_detections is {self.max_detections}; nuScenes allows 1 to 500 a sample.")


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
            self.config.image.max_detections,
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
        for part, prefix in ((metrics.final, ""), (metrics.heatmap, "heatmap/")):
            predicted = global_boxes(prediction, truth.T_world_ego, prefix)
            part.add(sample_id, truth.truth(), predicted, truth.T_world_ego[:2, 3], truth.racks)
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


class NuscenesCriterion:
    """Losses of `NuscenesExpert`. reduce_count turns a local count into its mean over processes."""

    def __init__(self, config: NuscenesConfig, reduce_count: CountReducer) -> None:
        self.config = config
        self.reduce_count = reduce_count
        # Which way round an object stands is learnt last, and a cone stands no way round: that decides nothing.
        self.matcher = HungarianMatcher(
            config.cost_class, config.cost_bbox, config.cost_giou, box="3d", cost_heading=0.0
        )
        self.image = DetectionCriterion(config.image, reduce_count) if config.cameras else None
        self.rarity = rarity_weights(config.class_counts, config.balance)

    def __call__(self, model: NuscenesExpert, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run the model on a training batch, with denoising queries, and return its losses."""
        columns = zip(batch["boxes"], batch["velocity"], batch["labels"], batch["attributes"])
        targets = []
        for boxes, velocity, labels, attributes in columns:
            # What lies beyond the map is shown nowhere on it, and the metric doesn't ask for it.
            on = self.config.grid.holds(boxes[:, :2])
            numbers = encode_boxes(boxes[on], velocity[on])
            numbers[labels[on] == CONE, 6:8] = torch.nan  # round: what its annotators said is chance
            targets.append({"boxes": boxes[on], "numbers": numbers, "labels": labels[on], "attributes": attributes[on]})
        groups = self.config.denoising_groups
        noisy = make_denoising(targets, groups, self.config.grid.reach) if groups else None
        numbers, source = noisy or (None, None)
        image_boxes, image_source, image_targets = None, None, []
        if self.image is not None:
            image_targets = batch["image_targets"]
            image_boxes, image_source = self.image.denoising(image_targets) or (None, None)
        outputs = model(batch, numbers, image_boxes)
        losses = self.losses(outputs, targets, source)
        if "point_logits" in outputs:
            losses["point"] = point_loss(outputs, batch, self.rarity) * self.config.point_weight
            losses["loss"] = losses["loss"] + losses["point"]
        if self.image is not None:
            own = self.image.losses(outputs["image"], image_targets, image_source)
            losses |= {f"image_{name}": value * self.config.image_weight for name, value in own.items()}
            losses["loss"] = losses["loss"] + losses.pop("image_loss")
        return losses

    def losses(self, outputs: dict[str, Any], targets: list[Target], source: Tensor | None = None) -> dict[str, Tensor]:
        """targets: per sample `boxes` [N, 7], `numbers` [N, 10] (NaN where unknown), `labels`, `attributes` (-1 for
        none); source: see `make_denoising`."""
        c = self.config
        normal = self.reduce_count(sum(len(target["labels"]) for target in targets))
        if not bool(outputs["logits"].isfinite().all() & outputs["numbers"].isfinite().all()):
            # Not finite either, so that the engine stops all processes and names the samples.
            # Of everything that has weights of its own: DDP waits for all gradients.
            said = ("logits", "numbers", "attributes", "heat_logits", "heat_numbers")
            return {"loss": torch.stack([outputs[key].sum().float() for key in said]).sum() * float("nan")}
        boxes, _ = decode_boxes(outputs["numbers"].detach())
        with torch.no_grad():
            matches = self.matcher({"logits": outputs["logits"], "boxes": boxes}, targets)
        losses: dict[str, Tensor] = {}
        for layer, matched in enumerate(matches):
            assigned = _as_assignment(matched, outputs["logits"].shape[2], outputs["logits"].device)
            terms = self._layer(outputs["logits"][layer], outputs["numbers"][layer], targets, assigned, normal)
            last = layer == len(matches) - 1
            losses |= {name if last else f"{name}_{layer}": value for name, value in terms.items()}
        if source is not None and "denoising_logits" in outputs:
            for layer, (logits, numbers) in enumerate(zip(outputs["denoising_logits"], outputs["denoising_numbers"])):
                terms = self._layer(logits, numbers, targets, source, normal * c.denoising_groups)
                losses |= {f"denoising_{name}_{layer}": v * c.denoising_weight for name, v in terms.items()}
        losses["attribute"] = self._attributes(outputs["attributes"], targets, matches[-1], normal)
        dense = bev_heatmap_loss(
            outputs["heat_logits"],
            outputs["heat_numbers"],
            targets,
            c.grid,
            box_distance,
            normal,
            self.rarity.to(outputs["heat_logits"].device),
        )
        losses["heatmap"] = dense["heatmap"] * c.heatmap_weight
        losses["heatmap_bbox"] = dense["heatmap_box"] * c.heatmap_bbox_weight
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses

    def _layer(
        self, logits: Tensor, numbers: Tensor, targets: list[Target], assigned: Tensor, normal: float
    ) -> dict[str, Tensor]:
        """One layer: logits [B, Q, 10], numbers [B, Q, 10], assigned [B, Q]: a box, -1 background, -2 don't care."""
        quality, box_sum = torch.zeros_like(logits, dtype=torch.float32), numbers.sum() * 0.0
        for b, target in enumerate(targets):
            query = (assigned[b] >= 0).nonzero().flatten()
            if not len(query):
                continue
            true, label = target["numbers"][assigned[b, query]], target["labels"][assigned[b, query]]
            got = numbers[b, query].float()
            box_sum = box_sum + box_distance(got, true).sum()
            with torch.no_grad():
                apart = (got[:, :2] - true[:, :2]).norm(dim=1)
                quality[b, query, label] = torch.exp(-apart / QUALITY_METRES).clamp(min=0.05)
        weight = (assigned > -2).to(torch.float32)[..., None] * self.rarity.to(logits.device)
        return {
            "class": varifocal_loss(logits.float(), quality, weight) / normal * self.config.class_weight,
            "bbox": box_sum / normal * self.config.bbox_weight,
        }

    def _attributes(self, logits: Tensor, targets: list[Target], matched: Match, normal: float) -> Tensor:
        total = logits.sum() * 0.0
        for b, (query, target) in enumerate(matched):
            true = targets[b]["attributes"][target]
            mask = attribute_mask(targets[b]["labels"][target])
            # A slip of an annotator's (an attribute that the class can't have) would cost infinitely much.
            known = (true >= 0) & (mask.gather(1, true.clamp(min=0)[:, None])[:, 0] == 0)
            if bool(known.any()):
                own = logits[b, query[known]].float() + mask[known]
                total = total + F.cross_entropy(own, true[known], reduction="sum")
        return total / normal * self.config.attribute_weight


def box_distance(got: Tensor, true: Tensor) -> Tensor:
    """Weighted L1 of ten numbers [M, 10]: [M]. Numbers that are unknown (NaN) teach nothing; the opposite heading is
    better than one across (`EITHER_WAY`)."""
    got, known = got.float(), true.isfinite()
    gap = (got - torch.where(known, true, got.detach())).abs()
    ahead = gap[..., 6:8]
    behind = (got + torch.where(known, true, -got.detach()))[..., 6:8].abs()
    nearer = torch.where(behind.sum(dim=-1, keepdim=True) < ahead.sum(dim=-1, keepdim=True), behind, ahead)
    heading = EITHER_WAY * nearer + (1 - EITHER_WAY) * ahead
    gap = torch.cat([gap[..., :6], heading, gap[..., 8:]], dim=-1)
    return (gap * got.new_tensor(BOX_WEIGHTS)).sum(dim=-1)


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


def point_loss(outputs: Mapping[str, Tensor], batch: Mapping[str, Any], weights: Tensor) -> Tensor:
    """Cross-entropy of what pictures show where the key frame's points are: an object's class, or background.

    A 3D box says of every point in it what it is and so, without a mask that somebody drew, of the pixels that show
    it. Objects count by the root of their points and by their classes' weights [10]; all of them together count as much
    as the background. outputs: `NuscenesExpert.forward`'s `point_...`; the mean over the samples.
    """
    logits, background = outputs["point_logits"], len(NUSCENES_DETECTION)
    parts = [logits.sum() * 0.0]
    for b, (boxes, labels) in enumerate(zip(batch["boxes"], batch["labels"])):
        seen = outputs["point_seen"][b]
        owner = point_owners(batch["points"][b, outputs["point_rows"][b, seen], :3], boxes)
        on = owner >= 0
        if not bool(on.any()):
            continue
        own = owner.clamp(min=0)
        number = torch.bincount(owner[on], minlength=len(boxes)).float()
        weight = weights.to(number.device)[labels] / number.clamp(min=1).sqrt()
        each = torch.where(on, weight[own], 0.0)
        each = torch.where(on, each, each.sum() / (~on).sum().clamp(min=1))
        target = torch.where(on, labels[own], background)
        loss = F.cross_entropy(logits[b, seen].float(), target, reduction="none")
        parts.append((loss * each).sum() / each.sum())
    return torch.stack(parts).sum() / len(logits)


def point_owners(points: Tensor, boxes: Tensor) -> Tensor:
    """The box [M, 7] that each point [P, 3] lies in, the smallest of several: int64 [P], -1 for none."""
    if not len(boxes):
        return torch.full((len(points),), -1, device=points.device)
    apart = points[:, None] - boxes[None, :, :3]
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    along = apart[..., 0] * cos + apart[..., 1] * sin
    across = apart[..., 1] * cos - apart[..., 0] * sin
    inside = torch.stack([along, across, apart[..., 2]], dim=-1).abs() <= boxes[:, 3:6] / 2
    volume = boxes[:, 3:6].prod(dim=-1).expand(len(points), -1)
    smallest, owner = volume.masked_fill(~inside.all(dim=-1), torch.inf).min(dim=1)
    return torch.where(smallest.isfinite(), owner, -1)


def rarity_weights(counts: Sequence[int], balance: float) -> Tensor:
    """What each class weighs in the losses, float32 [C]: its share of the boxes (a hundredth at least) to the power of
    -balance, with a mean of 1 over the boxes; all 1 without counts."""
    if not counts:
        return torch.ones(len(NUSCENES_DETECTION))
    share = torch.tensor(counts, dtype=torch.float32)
    share = share / share.sum().clamp(min=1)
    weights = share.clamp(min=0.01) ** -balance
    return weights / (weights * share).sum().clamp(min=1e-6)


def attribute_mask(labels: Tensor) -> Tensor:
    """[M] classes to [M, 8]: 0 for attributes that the class can have (all, if it has none), minus infinity for
    others."""
    allowed = torch.full((len(NUSCENES_DETECTION), len(NUSCENES_ATTRIBUTES)), -torch.inf)
    for label, name in enumerate(NUSCENES_DETECTION):
        for attribute in NUSCENES_ATTRIBUTES_OF[name] or NUSCENES_ATTRIBUTES:
            allowed[label, NUSCENES_ATTRIBUTES.index(attribute)] = 0.0
    return allowed.to(labels.device)[labels]


def make_denoising(
    targets: list[Target], groups: int, reach: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor] | None:
    """Jittered copies of the true boxes: contrastive denoising (DINO) in three dimensions.

    Every group holds a positive copy of each box, moved by up to a quarter of its length and width together, and a
    negative one, moved farther, up to twice as far, which must say background. Returns numbers [B, 2 * groups * N, 10]
    and source int64 [B, 2 * groups * N]: the index of the true box, -1 for a negative, -2 for padding; None where no
    sample has a box.
    """
    most = max((len(t["labels"]) for t in targets), default=0)
    if most == 0:
        return None
    device = targets[0]["numbers"].device
    numbers = torch.zeros(len(targets), 2 * groups, most, 10, device=device)
    numbers[..., 7] = 1.0
    source = torch.full((len(targets), 2 * groups, most), -2, device=device, dtype=torch.int64)
    for b, target in enumerate(targets):
        true = target["numbers"].float()
        true = torch.where(true.isnan(), true.new_tensor(NOTHING_SAID), true)
        count = len(true)
        if not count:
            continue
        noise = torch.rand(2 * groups, count, 10, device=device, generator=generator) * 2 - 1
        angle = noise[..., 0] * torch.pi
        span = noise[..., 1].abs()
        near = (true[:, 3:5].exp().sum(dim=1) / 4).clamp(*DENOISING_METRES)
        span = torch.cat([near * span[:groups], (near + 0.5) * (1 + span[groups:])])
        copy = true[None].repeat(2 * groups, 1, 1)
        copy[..., 0] = (copy[..., 0] + span * angle.cos()).clamp(-reach, reach)
        copy[..., 1] = (copy[..., 1] + span * angle.sin()).clamp(-reach, reach)
        copy[..., 2] += 0.5 * noise[..., 2]
        copy[..., 3:6] = (copy[..., 3:6] + 0.3 * noise[..., 3:6]).clamp(*LOG_SIZE)
        copy[..., 6:8] += 0.5 * noise[..., 6:8]
        copy[..., 8:] *= 1 + noise[..., 8:]
        numbers[b, :, :count] = copy
        source[b, :groups, :count] = torch.arange(count, device=device)
        # A copy that falls on another object is none of background.
        taken = torch.cdist(copy[groups:, :, :2], true[:, :2]).amin(dim=-1) < NEGATIVE_METRES
        source[b, groups:, :count] = torch.where(taken, -2, -1)
    return numbers.flatten(1, 2), source.flatten(1, 2)


def _as_assignment(matched: Match, queries: int, device: torch.device) -> Tensor:
    """Pairs of one layer to the target of each query, int64 [B, Q], -1 for none."""
    assigned = torch.full((len(matched), queries), -1, device=device)
    for b, (query, target) in enumerate(matched):
        assigned[b, query.to(device)] = target.to(device)
    return assigned


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
    """The image-only variant: the image branch of a nuScenes expert with that model config, and nothing else."""
    expert = DetectionExpert(from_dict(NuscenesConfig, config, "model").image, pretrained=pretrained)
    expert.kind = "nuscenes_2d"
    return expert
