"""What the nuScenes expert is taught: matching, the losses of its heads, and what pictures say of LiDAR points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from automoe.experts.bev_heatmap import bev_heatmap_loss
from automoe.experts.box3d import LOG_SIZE, decode_boxes, encode_boxes
from automoe.experts.detection import DetectionCriterion
from automoe.experts.expert import CountReducer
from automoe.experts.nuscenes_config import NuscenesConfig
from automoe.losses import varifocal_loss
from automoe.matching import HungarianMatcher, Match
from automoe.taxonomy import NUSCENES_ATTRIBUTES, NUSCENES_ATTRIBUTES_OF, NUSCENES_DETECTION

if TYPE_CHECKING:
    from automoe.experts.nuscenes import NuscenesExpert

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

Target = dict[str, Tensor]


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
