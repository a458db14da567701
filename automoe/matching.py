"""One-to-one matching of predictions to targets at the least total cost: the Hungarian matcher of DETR.

Three steps: what is unusable is *refused*, here; *costs* are computed on the predictions' device by
`automoe.matching_costs`; and on the host *assignment* finds the optimum of every (layer, image) problem, in a compiled
loop of `automoe.matching_kernels`. Losses are no business of this room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automoe.errors import ConfigError, TrainingError
from automoe.matching_costs import PairCosts

__all__ = ["HungarianMatcher", "Match", "MatchingError", "assign_rows"]

Match = list[tuple[Tensor, Tensor]]
"""For each image the indices (queries, targets) that belong together, int64, sorted by query."""

BOX_NUMBERS = {"2d": 4, "3d": 7}
LARGEST_NUMBER = 1e9  # a coordinate beyond it is no box, and its area would leave float32

_PREDICTION_FAULTS = (
    (4, "logits that are NaN or infinite"),
    (2, f"boxes with a number that is NaN, infinite or beyond {LARGEST_NUMBER:g}"),
    (1, "boxes of negative size"),
)
_TARGET_FAULTS = (
    (4, "a label outside the classes of the logits"),
    (2, f"boxes with a number that is NaN, infinite or beyond {LARGEST_NUMBER:g}"),
    (1, "boxes of negative size"),
)


class MatchingError(TrainingError):
    """Predictions or targets cannot be matched. The message names the batch index, and the layer for predictions."""


class HungarianMatcher(nn.Module):
    """Matches each image's predictions to its targets at the least total cost (Carion et al., DETR, ECCV 2020).

    The cost of a pair is ``cost_class * class + cost_bbox * L1 + cost_giou * overlap``:

    - class: ``"focal"`` is the focal loss of saying the target's class less that of denying it (Zhu et al.,
      Deformable DETR), with `alpha` and `gamma`; ``"softmax"`` is minus the probability of the target's class
      (DETR; the logits may have a further column for "no object").
    - 2D boxes, four numbers (cx, cy, w, h), normalised: L1 is their distance, overlap is minus the generalised IoU.
    - 3D boxes, seven numbers (x, y, z, l, w, h, yaw): L1 is the distance in metres plus the difference of the
      headings in radians, at most pi (weighted by `cost_heading` instead, if given: 0 where a heading must not decide
      whose box it is); overlap is minus the exact IoU of the footprints seen from above.

    `box` is ``"2d"``, ``"3d"``, or None to tell by the number of box coordinates. The defaults of the weights are
    Deformable DETR's. There are no parameters and there is no gradient; everything is computed in float32,
    whatever autocast says.
    """

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        class_cost: str = "focal",
        box: str | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
        cost_heading: float | None = None,
    ) -> None:
        super().__init__()
        weights = {"cost_class": cost_class, "cost_bbox": cost_bbox, "cost_giou": cost_giou}
        cost_heading = cost_bbox if cost_heading is None else cost_heading
        for name, weight in {**weights, "cost_heading": cost_heading}.items():
            if not (0 <= weight < float("inf")):
                raise ConfigError(f"{name} is {weight}: give a finite number that is not negative")
        if not any(weights.values()):
            raise ConfigError("cost_class, cost_bbox and cost_giou are all 0: give at least one a weight")
        if class_cost not in ("focal", "softmax"):
            raise ConfigError(f'class_cost is "{class_cost}": give "focal" or "softmax"')
        if box not in (None, *BOX_NUMBERS):
            raise ConfigError(f'box is "{box}": give "2d" or "3d", or leave it out to tell by the boxes')
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou
        self.class_cost, self.box, self.alpha, self.gamma = class_cost, box, alpha, gamma
        self._pair_costs = PairCosts(cost_class, cost_bbox, cost_giou, cost_heading, class_cost, alpha, gamma)

    @torch.no_grad()
    def forward(self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]) -> Match | list[Match]:
        """Match one layer or all decoder layers at once.

        Args:
            outputs: ``"pred_logits"`` (or ``"logits"``) [B, Q, C] or [L, B, Q, C], and ``"pred_boxes"`` (or
                ``"boxes"``) [B, Q, 4 or 7] or [L, B, Q, 4 or 7].
            targets: for each of the B images ``"labels"`` int64 [N] and ``"boxes"`` [N, 4 or 7]; N may be 0.

        Returns:
            For [B, Q, C] a list of B pairs (query indices, target indices), int64, min(Q, N) of each, sorted by
            query, on the device of the logits; for [L, B, Q, C] a list of L such lists.

        Raises:
            MatchingError: shapes that do not fit, numbers that are NaN or infinite, boxes of negative size, or a
                label outside the classes; it names the batch index and, for predictions, the layer.
        """
        logits, boxes = _named(outputs, "logits"), _named(outputs, "boxes")
        self._check_shapes(logits, boxes, targets)
        single = logits.dim() == 3
        if single:
            logits, boxes = logits[None], boxes[None]
        with torch.autocast(logits.device.type, enabled=False):
            matches = self._match_layers(logits, boxes, targets)
        return matches[0] if single else matches

    def extra_repr(self) -> str:
        return (
            f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, cost_giou={self.cost_giou}, "
            f'class_cost="{self.class_cost}"'
        )

    def _check_shapes(self, logits: Tensor, boxes: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> None:
        numbers = boxes.shape[-1]
        if logits.dim() not in (3, 4) or boxes.shape[:-1] != logits.shape[:-1] or numbers not in (4, 7):
            raise MatchingError(
                f"predictions do not fit together: logits {list(logits.shape)} and boxes {list(boxes.shape)}; "
                "give [B, Q, C] and [B, Q, 4 or 7], or the same with the layers in front"
            )
        if self.box and BOX_NUMBERS[self.box] != numbers:
            raise MatchingError(f"the matcher is for {self.box} boxes but the predicted ones have {numbers} numbers")
        if len(targets) != logits.shape[-3]:
            raise MatchingError(f"there are {len(targets)} targets for a batch of {logits.shape[-3]} images")
        for index, target in enumerate(targets):
            labels, own = target["labels"], target["boxes"]
            if labels.dim() != 1 or own.dim() != 2 or own.shape != (len(labels), numbers):
                raise MatchingError(
                    f"target at batch index {index} has labels {list(labels.shape)} and boxes {list(own.shape)}: "
                    f"give [N] and [N, {numbers}]"
                )

    def _match_layers(self, logits: Tensor, boxes: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> list[Match]:
        layers, batch, queries, classes = logits.shape
        device = logits.device
        sizes = [len(target["labels"]) for target in targets]
        labels_N = torch.cat([target["labels"] for target in targets]).to(device, torch.int64)
        boxes_N = torch.cat([target["boxes"] for target in targets]).to(device, torch.float32)
        logits, boxes = logits.detach().float(), boxes.detach().float()

        flags = torch.cat([_prediction_faults(logits, boxes).flatten(), _target_faults(labels_N, boxes_N, classes)])
        if device.type == "cpu":
            _refuse_faults(flags.numpy(), layers, batch, sizes)  # the compiled costs rely on it
            costs = self._pair_costs(logits, boxes, labels_N, boxes_N, sizes).numpy()
        else:
            # Flags and costs cross in one copy, which is one wait. A label out of range is refused with them; until
            # then it must not crash the gather.
            labels_N = labels_N.clamp(0, classes - 1)
            costs = self._pair_costs(logits, boxes, labels_N, boxes_N, sizes)
            host = torch.cat([flags, costs.flatten()]).cpu().numpy()
            _refuse_faults(host[: len(flags)], layers, batch, sizes)
            costs = host[len(flags) :]

        problems = layers * sizes
        query_of_row = assign_rows(costs.reshape(layers * len(labels_N), queries), problems)
        pairs = _as_pairs(query_of_row, problems, queries, device)
        return [pairs[layer * batch : (layer + 1) * batch] for layer in range(layers)]


# ---- faults ----------------------------------------------------------------------------------------------------


def _box_faults(boxes: Tensor) -> Tensor:
    """[..., 4 or 7] -> [...]: 2 where a number is unusable, 1 where a size is negative, 0 where all is well."""
    sizes = boxes[..., 2:4] if boxes.shape[-1] == 4 else boxes[..., 3:6]
    usable = boxes.abs().amax(-1) <= LARGEST_NUMBER  # NaN compares false
    return torch.where(usable, (sizes.amin(-1) < 0).float(), 2.0)


def _prediction_faults(logits: Tensor, boxes: Tensor) -> Tensor:
    """[L, B]: the worst fault of each image's predictions in each layer, as numbered in _PREDICTION_FAULTS."""
    if logits.shape[2] == 0:
        return logits.new_zeros(logits.shape[:2])
    of_image = logits.flatten(2)
    lowest, highest = of_image.amin(-1), of_image.amax(-1)  # several times as fast as aminmax on the CPU
    finite = (lowest > -float("inf")) & (highest < float("inf"))  # NaN compares false
    return torch.where(finite, _box_faults(boxes).amax(-1), 4.0)


def _target_faults(labels: Tensor, boxes: Tensor, classes: int) -> Tensor:
    """[N]: the worst fault of each target, as numbered in _TARGET_FAULTS."""
    if not len(labels):
        return boxes.new_zeros(0)
    return torch.where((labels >= 0) & (labels < classes), _box_faults(boxes), 4.0)


def _refuse_faults(flags: NDArray[np.float32], layers: int, batch: int, sizes: list[int]) -> None:
    """Raise for the first flagged target, else for the first flagged image of the predictions."""
    if not flags.any():
        return
    of_targets = flags[layers * batch :]
    if of_targets.any():
        row = int(of_targets.argmax())
        ends = np.cumsum(sizes)
        image = int(np.searchsorted(ends, row, side="right"))
        fault = dict(_TARGET_FAULTS)[int(of_targets[row])]
        number = row - int(ends[image]) + sizes[image]
        raise MatchingError(
            f"target {number} at batch index {image} has {fault}: correct that image's annotation or leave it out"
        )
    layer, image = divmod(int(np.flatnonzero(flags)[0]), batch)
    fault = dict(_PREDICTION_FAULTS)[int(flags[layer * batch + image])]
    raise MatchingError(
        f"the predictions at batch index {image}, layer {layer}, have {fault}: "
        "look at that image, or lower the learning rate if training has diverged"
    )


# ---- assignment ------------------------------------------------------------------------------------------


def assign_rows(costs: NDArray[np.float32], sizes: Sequence[int]) -> NDArray[np.int64]:
    """Solve many assignment problems at once: the column that each row takes at the least total cost.

    Args:
        costs: [R, Q]; the rows of one problem follow each other.
        sizes: how many rows each problem has; they sum to R.

    Returns:
        [R] the column of each row, no column twice in a problem; -1 for rows that get none, where a problem has
        more rows than columns.

    Raises:
        MatchingError: a cost that is NaN or infinite, or sizes that do not sum to R.
    """
    from automoe.matching_kernels import assign  # compiles: not before it is needed

    costs = np.ascontiguousarray(costs, dtype=np.float32)
    rows, columns = costs.shape
    taken = np.full(rows, -1, dtype=np.int64)
    if rows == 0 or columns == 0:
        return taken
    sizes_P = np.asarray(sizes, dtype=np.int64)
    if sizes_P.sum() != rows:
        raise MatchingError(f"assignment problems of {sizes_P.sum()} rows in all do not fit {rows} rows of costs")
    starts_P = np.cumsum(sizes_P) - sizes_P
    fits_P = sizes_P <= columns
    if not assign(costs, starts_P[fits_P], sizes_P[fits_P], taken):
        raise MatchingError(
            "costs of matching are NaN or infinite: give cost_class, cost_bbox and cost_giou less weight"
        )
    for problem in np.flatnonzero(~fits_P):  # more rows than columns: there each column takes a row
        start, size = starts_P[problem], sizes_P[problem]
        row_of_column = assign_rows(costs[start : start + size].T, [columns])
        taken[start + row_of_column] = np.arange(columns)
    return taken


def _as_pairs(
    query_of_row: NDArray[np.int64], sizes: list[int], queries: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The query of each row -> for each problem (queries, targets) sorted by query, on the device in one copy."""
    sizes_P = np.asarray(sizes, dtype=np.int64)
    problem = np.repeat(np.arange(len(sizes_P)), sizes_P)
    target = np.arange(len(query_of_row)) - np.repeat(np.cumsum(sizes_P) - sizes_P, sizes_P)
    rows = np.flatnonzero(query_of_row >= 0)
    rows = rows[np.argsort(problem[rows] * queries + query_of_row[rows])]
    pairs = torch.from_numpy(np.stack([query_of_row[rows], target[rows]])).to(device)
    counts = np.minimum(sizes_P, queries).tolist()
    return list(zip(pairs[0].split(counts), pairs[1].split(counts)))


def _named(outputs: Mapping[str, Tensor], name: str) -> Tensor:
    """The entry under DETR's name, `pred_` and all, or under the short one."""
    for key in (f"pred_{name}", name):
        if key in outputs:
            return outputs[key]
    raise MatchingError(f'predictions have no "pred_{name}" (nor "{name}"): there are {sorted(outputs)}')
