"""One-to-one matching of predictions to targets at the least total cost: the Hungarian matcher of DETR.

Two steps live here. *Costs* are computed on the predictions' device, for the whole batch and all decoder layers,
but only between an image's predictions and its own targets, and cross to the host in one copy together with the
flags that say which input was unusable. *Assignment* then finds the optimum of every (layer, image) problem, by an
auction of all problems together and by scipy where that does not settle one. Losses are no business of this room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from automoe.errors import ConfigError, TrainingError
from automoe.geometry import pairwise_bev_iou, wrap_angle

__all__ = ["HungarianMatcher", "Match", "MatchingError", "assign_rows"]

Match = list[tuple[Tensor, Tensor]]
"""For each image the indices (queries, targets) that belong together, int64, sorted by query."""

BOX_NUMBERS = {"2d": 4, "3d": 7}
LARGEST_NUMBER = 1e9  # a coordinate beyond it is no box, and its area would leave float32
_LEAST_SIZE = 1e-10  # half a width that keeps 0/0 away from boxes without area, and is lost in any other

# How many (prediction, target) pairs are worked on at once: on the CPU about what stays in its cache, on a GPU what
# bounds the memory.
_PAIRS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 25}

_CERTAIN_LOGIT = 18.42  # the logit of the probability 1 - 1e-8

# The auction's limits: after three bids a row it is a price war, which scipy ends sooner; and costs are float32, so
# that a difference below 1e-9 is no preference. Bids are computed for so many rows at once as stay in the cache.
_BIDS_A_ROW = 3
_LEAST_RAISE = 1e-9
_ROWS_AT_ONCE = 256

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
      headings in radians, at most pi; overlap is minus the exact IoU of the footprints seen from above.

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
    ) -> None:
        super().__init__()
        weights = {"cost_class": cost_class, "cost_bbox": cost_bbox, "cost_giou": cost_giou}
        for name, weight in weights.items():
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
        self._scratch: dict[str, Tensor] = {}

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
        logits, boxes = logits.float(), boxes.float()

        # Costs and flags share one buffer, so that one copy (on a GPU: one wait) brings all of it to the host.
        pairs, flags = layers * len(labels_N) * queries, layers * batch
        buffer = self._memory("costs", pairs + flags + len(labels_N), device)
        buffer[pairs : pairs + flags] = _prediction_faults(logits, boxes).flatten()
        buffer[pairs + flags :] = _target_faults(labels_N, boxes_N, classes)
        # A label out of range is refused with the flags; until then it must not crash the gather.
        labels_N = labels_N.clamp(0, classes - 1)
        problems = self._fill_costs(buffer[:pairs], logits, boxes, labels_N, boxes_N, sizes)
        host = buffer.cpu().numpy()

        _refuse_faults(host[pairs:], layers, batch, sizes)
        rows = [sizes[image] for _, image in problems]
        query_of_row = assign_rows(host[:pairs].reshape(layers * len(labels_N), queries), rows)
        found = dict(zip(problems, _as_pairs(query_of_row, rows, queries, device)))
        return [[found[layer, image] for image in range(batch)] for layer in range(layers)]

    def _fill_costs(
        self, costs: Tensor, logits: Tensor, boxes: Tensor, labels_N: Tensor, boxes_N: Tensor, sizes: list[int]
    ) -> list[tuple[int, int]]:
        """Write the cost of each target with each query of its own image; returns the order of the problems.

        `costs` is flat: for each (layer, image) as returned its block [targets of the image, queries]. The images
        go in groups, small enough for the cache, so that all passes but the first and last stay inside it.
        """
        layers, batch, queries, classes = logits.shape
        kind = _ImageBoxCosts if boxes.shape[-1] == 4 else _SpaceBoxCosts
        groups = _image_groups(sizes, layers * queries, _PAIRS_AT_ONCE.get(logits.device.type, 1 << 25))
        largest = layers * queries * max((end - start for _, _, start, end in groups), default=0)
        workspace = self._memory("workspace", 6 * largest, logits.device)
        box_costs = kind(boxes, boxes_N, self.cost_bbox, self.cost_giou, workspace)
        problems = [(layer, image) for layer in range(layers) for image in range(batch) if not sizes[image]]
        for first, last, start, end in groups:
            # One image's queries broadcast over its targets; where several share a group each target gets its own.
            image = first if last - first == 1 else _image_of_target(sizes, first, last).to(logits.device)
            # Queries last: they are many and always as many, so every inner loop is long and contiguous.
            class_LGCQ = self._class_costs(logits[:, first:last].transpose(2, 3).contiguous())
            block = costs[layers * start * queries : layers * end * queries].view(layers, end - start, queries)
            class_N = labels_N[start:end] + (image - first) * classes
            torch.index_select(class_LGCQ.flatten(1, 2), 1, class_N, out=block)
            box_costs.add_to(block, image, start, end)
            problems += [(layer, image) for layer in range(layers) for image in range(first, last) if sizes[image]]
        return problems

    def _memory(self, name: str, count: int, device: torch.device) -> Tensor:
        """`count` float32 numbers to overwrite, kept from call to call on the CPU.

        Fresh memory of this size comes from the system page by page, at every step anew. On a GPU PyTorch keeps
        it anyway.
        """
        if device.type != "cpu":
            return torch.empty(count, dtype=torch.float32, device=device)
        kept = self._scratch.get(name)
        if kept is None or len(kept) < count:
            kept = self._scratch[name] = torch.empty(count, dtype=torch.float32)
        return kept[:count]

    def _class_costs(self, logits_LBCQ: Tensor) -> Tensor:
        """The class cost of each query for each class, already weighted: [L, B, C, Q]."""
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


# ---- costs -----------------------------------------------------------------------------------------------------


class _ImageBoxCosts:
    """L1 and generalised IoU of normalised cxcywh boxes.

    Both come from the same differences, so nothing is computed twice: on one axis, with centres c and half sizes
    h, m = max(|c1 - c2|, |h1 - h2|) gives the overlap h1 + h2 - m (negative: the gap) and the hull h1 + h2 + m.
    The value is that of `geometry.pairwise_giou`, at a fraction of its passes over memory.
    """

    def __init__(self, boxes: Tensor, targets: Tensor, cost_bbox: float, cost_giou: float, workspace: Tensor) -> None:
        """Boxes [L, B, Q, 4], targets [N, 4] of all images; the workspace has six numbers for a group's cost."""
        halves, nothing = boxes.new_tensor([1, 1, 0.5, 0.5]), boxes.new_tensor([0, 0, _LEAST_SIZE, _LEAST_SIZE])
        self.box_4LBQ = (boxes * halves + nothing).permute(3, 0, 1, 2).contiguous()
        self.target_4N = (targets * halves).t().contiguous()[:, None, :, None]
        self.box_area_LBQ = 4 * self.box_4LBQ[2] * self.box_4LBQ[3]
        self.target_area_N = 4 * self.target_4N[2] * self.target_4N[3]
        self.l1_weights = cost_bbox * boxes.new_tensor([1, 1, 2, 2])
        self.cost_giou = cost_giou
        self.workspace = workspace

    def add_to(self, costs: Tensor, image: int | Tensor, start: int, end: int) -> None:
        """Add to contiguous `costs` [L, N, Q] of the targets from `start` to `end`, of one image or one for each."""
        count, shape = costs.numel(), costs.shape
        box_4LNQ, area_LNQ = _of_image(self.box_4LBQ, image), _of_image(self.box_area_LBQ, image)
        target_4N = self.target_4N[:, :, start:end]
        distance = torch.sub(box_4LNQ, target_4N, out=self.workspace[: 4 * count].view(4, *shape)).abs_()
        costs.view(-1).addmv_(distance.view(4, -1).t(), self.l1_weights)

        between, sizes = distance.split(2)
        reach = torch.maximum(between, sizes, out=between)
        both = torch.add(box_4LNQ[2:], target_4N[2:], out=sizes)
        overlap = torch.sub(both, reach, out=self.workspace[4 * count : 6 * count].view(2, *shape)).clamp_(min=0)
        hull_w, hull_h = both.add_(reach)
        overlap_w, overlap_h = overlap
        intersection = overlap_w.mul_(overlap_h)
        union = torch.add(area_LNQ, self.target_area_N[:, start:end], out=overlap_h).sub_(intersection)
        hull = hull_w.mul_(hull_h)
        # GIoU is intersection / union + union / hull - 1; the 1 is the same for all pairs and left out.
        costs.addcdiv_(intersection, union, value=-self.cost_giou).addcdiv_(union, hull, value=-self.cost_giou)


class _SpaceBoxCosts:
    """L1 and footprint IoU of 3D boxes."""

    def __init__(self, boxes: Tensor, targets: Tensor, cost_bbox: float, cost_giou: float, workspace: Tensor) -> None:
        """Boxes [L, B, Q, 7], targets [N, 7] of all images; the workspace is of no use here."""
        del workspace
        self.box_7LBQ = boxes.permute(3, 0, 1, 2)
        self.targets, self.cost_bbox, self.cost_giou = targets, cost_bbox, cost_giou

    def add_to(self, costs: Tensor, image: int | Tensor, start: int, end: int) -> None:
        """Add to `costs` [L, N, Q] of the targets from `start` to `end`, of one image or one for each."""
        box_7LNQ, targets = _of_image(self.box_7LBQ, image), self.targets[start:end]
        target_7N = targets.t()[:, None, :, None]
        for box, target in zip(box_7LNQ[:6], target_7N[:6]):
            costs.add_((box - target).abs_(), alpha=self.cost_bbox)
        costs.add_(wrap_angle(box_7LNQ[6] - target_7N[6]).abs_(), alpha=self.cost_bbox)
        if self.cost_giou:
            # [N, 1, 7] against [L, N or 1, Q, 7]
            overlap = pairwise_bev_iou(targets[:, None], box_7LNQ.permute(1, 2, 3, 0))
            costs.sub_(overlap.squeeze(-2), alpha=self.cost_giou)


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
    lowest, highest = logits.flatten(2).aminmax(dim=-1)
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
        costs: finite costs [R, Q]; the rows of one problem follow each other.
        sizes: how many rows each problem has; they sum to R.

    Returns:
        [R] the column of each row, no column twice in a problem; -1 for rows that get none, where a problem has
        more rows than columns.

    Most rows' cheapest column is wanted by no other row of their problem, and a shortest-path solver spends most
    of its time on finding just that. So all problems are first auctioned together (Bertsekas, 1979): each row
    without a column bids for its cheapest, raising its price by as much as it is better than the row's second
    choice; the highest bid takes it, whoever had it bids again. Prices start at zero and only columns that are
    taken have one, so once no row is left every row has its best column at the prices paid, which proves the
    whole optimal by linear programming duality, in float64 as scipy's solver computes. Auctions can stall on ties
    and drag on in price wars: such problems go to scipy instead, whole.
    """
    row_count, columns = costs.shape
    sizes_P = np.asarray(sizes, dtype=np.int64)
    if row_count == 0 or columns == 0:
        return np.full(row_count, -1, dtype=np.int64)
    problem = np.repeat(np.arange(len(sizes_P)), sizes_P)
    taken, unsettled_P = _auction(costs, problem, sizes_P)
    starts = np.cumsum(sizes_P) - sizes_P
    for index in np.flatnonzero(unsettled_P):
        rows = slice(starts[index], starts[index] + sizes_P[index])
        taken[rows] = _solve(costs[rows])
    return taken


def _auction(
    costs: NDArray[np.float32], problem: NDArray[np.int64], sizes_P: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Auction all problems: the column of each row [R], and which problems did not settle [P]."""
    columns, problems = costs.shape[1], len(sizes_P)
    first_cell = problem * columns  # a cell is a column of a problem, as one number
    taken = costs.argmin(1)
    cell = first_cell + taken
    contested = np.bincount(cell, minlength=problems * columns)[cell] > 1
    price = np.zeros(problems * columns)
    price_of_problem = price.reshape(problems, columns)
    owner = np.full(problems * columns, -1, dtype=np.int64)
    content = np.flatnonzero(~contested)
    owner[cell[content]] = content

    unsettled_P = (sizes_P > columns) | (columns == 1)
    bids_left_P = _BIDS_A_ROW * sizes_P
    bidders = np.flatnonzero(contested & ~unsettled_P[problem])
    while bidders.size:
        bids, column, raises = _bids(costs, price_of_problem, bidders, problem[bidders])
        bids_left_P -= np.bincount(problem[bidders], minlength=problems)
        # A raise of nothing is a tie: the two could outbid each other by nothing for ever.
        unsettled_P[problem[bidders[raises < _LEAST_RAISE]]] = True

        # The lowest bid first: of several rows written to one cell the last stays, and that is the highest bid.
        order = np.argsort(bids)
        bidders, column, bids = bidders[order], column[order], bids[order]
        cell = first_cell[bidders] + column
        previous = owner[cell]
        owner[cell], price[cell] = bidders, bids
        won = owner[cell] == bidders
        taken[bidders[won]] = column[won]
        outbid = previous[won]
        bidders = np.concatenate([bidders[~won], outbid[outbid >= 0]])

        owners_of_bidders = problem[bidders]
        unsettled_P[owners_of_bidders[bids_left_P[owners_of_bidders] <= 0]] = True
        bidders = bidders[~unsettled_P[owners_of_bidders]]
    return taken, unsettled_P


def _bids(
    costs: NDArray[np.float32], price_PQ: NDArray[np.float64], rows: NDArray[np.int64], problem: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """For each row the price it bids, the column it bids for, and how much it raises the price: three times [K]."""
    best, second = np.empty(len(rows)), np.empty(len(rows))
    column = np.empty(len(rows), dtype=np.int64)
    # In blocks, so that what is asked stays in the cache.
    asked_KQ = np.empty((min(len(rows), _ROWS_AT_ONCE), costs.shape[1]))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        asked = asked_KQ[: len(rows[block])]
        np.take(price_PQ, problem[block], axis=0, out=asked, mode="clip")
        asked += costs[rows[block]]
        each, cheapest = np.arange(len(asked)), asked.argmin(1)
        column[block], best[block] = cheapest, asked[each, cheapest]
        asked[each, cheapest] = np.inf
        asked.min(1, out=second[block])
    raises = second - best
    return price_PQ[problem, column] + raises, column, raises


def _solve(costs: NDArray[np.float32]) -> NDArray[np.int64]:
    """One problem [R, Q] by scipy: the column of each row, -1 for those without."""
    rows, columns = linear_sum_assignment(costs)
    taken = np.full(len(costs), -1, dtype=np.int64)
    taken[rows] = columns
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
