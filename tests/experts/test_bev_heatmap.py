"""The dense head on the map seen from above: what it is taught, what its losses pull at, and which cells seed."""

from __future__ import annotations

import pytest
import torch

from automoe.experts.bev_heatmap import (
    AROUND,
    KERNEL,
    BevHeatmapHead,
    bev_heatmap_loss,
    bev_targets,
    select_seeds,
)
from automoe.experts.box3d import NUMBERS, decode_boxes, encode_boxes
from automoe.experts.nuscenes_criterion import box_distance
from automoe.experts.pillars import BevGrid
from automoe.taxonomy import NUSCENES_DETECTION

GRID = BevGrid(reach=16.0, cell=0.5)
SIDE = 32  # cells of a metre: the map has half the pillars' resolution
CAR, TRUCK, PEDESTRIAN, CONE = (
    NUSCENES_DETECTION.index(name) for name in ("car", "truck", "pedestrian", "traffic_cone")
)
CLASSES = len(NUSCENES_DETECTION)
EQUAL = torch.ones(CLASSES)


def target(*objects: tuple[int, float, float]) -> dict[str, torch.Tensor]:
    """Objects by class and place (x, y): cars of 4 x 2, trucks of 8 x 3, others of half a metre."""
    sizes = {CAR: (4.0, 2.0, 1.5), TRUCK: (8.0, 3.0, 3.0)}
    rows = [(x, y, 0.8, *sizes.get(label, (0.5, 0.5, 1.7)), 0.3) for label, x, y in objects]
    boxes = torch.tensor(rows).reshape(-1, 7)
    numbers = encode_boxes(boxes, torch.ones(len(rows), 2))
    return {"numbers": numbers, "labels": torch.tensor([one[0] for one in objects], dtype=torch.int64)}


def targets_of(*objects: tuple[int, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    return bev_targets(**target(*objects), num_classes=CLASSES, grid=GRID, height=SIDE, width=SIDE)


def test_every_object_is_one_at_its_cell_and_falls_off_from_there() -> None:
    heat, _ = targets_of((CAR, 3.2, -5.9), (CONE, -10.4, 7.7), (CAR, 3.2, 9.1))
    # Row: metres ahead of the map's rear end; column: to the left of its right end.
    assert (heat == 1).nonzero().tolist() == [[CAR, 19, 10], [CAR, 19, 25], [CONE, 5, 23]]
    assert heat.amax() == 1
    assert heat[CAR, 19, 11] > heat[CAR, 19, 12] > heat[CAR, 19, 14]
    # Of a car of 4 x 2 a gaussian by hand; its centre is 0.3 m and 0.4 m away from the next cell's middle.
    deviation = KERNEL * 8**0.5
    apart = torch.tensor((3.5 - 3.2) ** 2 + (-4.5 + 5.9) ** 2)
    torch.testing.assert_close(heat[CAR, 19, 11], torch.exp(-apart / (2 * deviation**2)))


def test_a_larger_object_has_a_wider_bump() -> None:
    sums = [targets_of((label, 0.5, 0.5))[0][label].sum() for label in (TRUCK, CAR, CONE)]
    assert sums[0] > 1.5 * sums[1] > 2 * sums[2]


def test_objects_of_other_classes_do_not_disturb() -> None:
    together, _ = targets_of((CAR, 0.5, 0.5), (PEDESTRIAN, 1.5, 0.5), (PEDESTRIAN, 0.5, 0.5))
    alone, _ = targets_of((CAR, 0.5, 0.5))
    torch.testing.assert_close(together[CAR], alone[CAR])
    assert (together[PEDESTRIAN] == 1).nonzero().tolist() == [[16, 16], [17, 16]]
    assert together[[TRUCK, CONE]].max() == 0


def test_the_nearest_object_s_box_is_learnt() -> None:
    _, owner = targets_of((CAR, 0.5, 0.5), (PEDESTRIAN, 2.5, 0.5))
    centres = GRID.centres(SIDE, SIDE, torch.device("cpu"))
    apart = torch.stack([(centres - torch.tensor(place)).norm(dim=-1) for place in ((0.5, 0.5), (2.5, 0.5))])
    assert (owner[16, 16], owner[18, 16]) == (0, 1)
    for index in (0, 1):
        own = owner == index
        assert own.sum() >= 4
        assert (apart[index][own] <= apart[1 - index][own] + 1e-5).all()
        assert (apart[index][own] < AROUND).all()
    assert (owner[apart.amin(dim=0) > AROUND] == -1).all()


def test_an_object_s_own_cell_is_its_own_however_near_another_one_is() -> None:
    """The second one's centre is nearer to the middle of the first one's cell than the first one's own."""
    _, owner = targets_of((PEDESTRIAN, 0.05, 0.5), (PEDESTRIAN, -0.05, 0.5), (CONE, 5.99, 5.99))
    assert (owner[16, 16], owner[15, 16]) == (0, 1)
    assert owner[21, 21] == 2


def test_nothing_is_asked_where_nothing_is() -> None:
    heat, owner = targets_of()
    assert heat.shape == (CLASSES, SIDE, SIDE)
    assert heat.max() == 0
    assert owner.dtype == torch.int64
    assert (owner == -1).all()


def maps_of(wanted: dict[str, torch.Tensor], sureness: float = 6.0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a head would say that knows the truth: logits [1, C, H, W] and boxes [1, H, W, 10]."""
    heat, owner = bev_targets(**wanted, num_classes=CLASSES, grid=GRID, height=SIDE, width=SIDE)
    logits = torch.logit(heat.clamp(1e-4, 1 - 1e-4)).clamp(-sureness, sureness)
    boxes = torch.zeros(SIDE, SIDE, NUMBERS)
    boxes[owner >= 0] = wanted["numbers"][owner[owner >= 0]]
    return logits[None], boxes[None]


def losses_of(logits: torch.Tensor, boxes: torch.Tensor, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    number = max(1, len(wanted["labels"]))
    return bev_heatmap_loss(logits, boxes, [wanted], GRID, box_distance, number, EQUAL)


def test_the_truth_costs_little_and_less_than_anything_else() -> None:
    wanted = target((CAR, 3.2, -5.9), (PEDESTRIAN, -10.4, 7.7))
    logits, boxes = maps_of(wanted)
    least = losses_of(logits, boxes, wanted)
    assert least["heatmap_box"] < 1e-5
    nothing = losses_of(torch.full_like(logits, -4.0), boxes, wanted)
    shifted = losses_of(logits.roll(1, dims=2), boxes, wanted)
    turned = losses_of(logits.transpose(2, 3), boxes, wanted)
    assert 3 * least["heatmap"] < min(one["heatmap"] for one in (nothing, shifted, turned))
    # A metre aside costs half a metre each, whatever the number of cells that learn it.
    moved = boxes.clone()
    moved[..., 0] += 1.0
    torch.testing.assert_close(losses_of(logits, moved, wanted)["heatmap_box"], torch.tensor(1.0))


def test_only_an_object_s_own_cell_wants_more_and_only_its_class() -> None:
    wanted = target((CAR, 3.2, -5.9))
    logits = torch.full((1, CLASSES, SIDE, SIDE), -2.0, requires_grad=True)
    boxes = torch.zeros(1, SIDE, SIDE, NUMBERS, requires_grad=True)
    sum(losses_of(logits, boxes, wanted).values()).backward()
    assert logits.grad is not None
    assert boxes.grad is not None
    assert (logits.grad[0] < 0).nonzero().tolist() == [[CAR, 19, 10]]
    # Near it less is asked of the background than far away.
    assert logits.grad[0, CAR, 19, 11] < logits.grad[0, CAR, 5, 5]
    learning = boxes.grad[0].abs().sum(dim=-1) > 0
    _, owner = bev_targets(**wanted, num_classes=CLASSES, grid=GRID, height=SIDE, width=SIDE)
    assert torch.equal(learning, owner >= 0)


def test_classes_weigh_what_they_are_given() -> None:
    wanted = target((CAR, 3.2, -5.9))
    grads = []
    for weight in (EQUAL, torch.arange(CLASSES, dtype=torch.float32)):
        logits = torch.full((1, CLASSES, SIDE, SIDE), -2.0, requires_grad=True)
        boxes = torch.zeros(1, SIDE, SIDE, NUMBERS)
        bev_heatmap_loss(logits, boxes, [wanted], GRID, box_distance, 1.0, weight)["heatmap"].backward()
        grads.append(logits.grad)
    torch.testing.assert_close(grads[1], grads[0] * torch.arange(CLASSES)[:, None, None])


def test_samples_keep_apart_and_empty_ones_teach_background() -> None:
    logits = torch.zeros(2, CLASSES, SIDE, SIDE, requires_grad=True)
    boxes = torch.zeros(2, SIDE, SIDE, NUMBERS, requires_grad=True)
    losses = bev_heatmap_loss(logits, boxes, [target(), target((CAR, 0.5, 0.5))], GRID, box_distance, 1.0, EQUAL)
    sum(losses.values()).backward()
    assert logits.grad is not None
    assert boxes.grad is not None
    assert (logits.grad[0] > 0).all()
    assert (boxes.grad[0] == 0).all()
    assert (logits.grad[1] < 0).nonzero().tolist() == [[CAR, 16, 16]]


def test_the_head_without_any_box_has_gradients_everywhere() -> None:
    torch.manual_seed(0)
    head = BevHeatmapHead(GRID, 16, CLASSES)
    logits, boxes = head(torch.randn(2, 16, SIDE, SIDE))
    assert logits.shape == (2, CLASSES, SIDE, SIDE)
    assert boxes.shape == (2, SIDE, SIDE, NUMBERS)
    losses = bev_heatmap_loss(logits, boxes, [target(), target()], GRID, box_distance, 1.0, EQUAL)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    # At the start a box stands on its cell, and everything is background.
    assert logits.sigmoid().max() < 0.1
    start, _ = decode_boxes(boxes)
    assert ((start[..., :2] - GRID.centres(SIDE, SIDE, torch.device("cpu"))).abs() < 1).all()
    assert ((start[..., 3:6] > 0.5) & (start[..., 3:6] < 5)).all()


def test_a_known_map_has_its_objects_as_seeds() -> None:
    wanted = target((CAR, 3.2, -5.9), (PEDESTRIAN, -10.4, 7.7), (TRUCK, 8.5, 8.5))
    logits, boxes, cells = select_seeds(*maps_of(wanted), 3)
    assert sorted(cells[0].tolist()) == [5 * SIDE + 23, 19 * SIDE + 10, 24 * SIDE + 24]
    order = cells[0].argsort()
    assert logits[0, order].argmax(dim=-1).tolist() == [PEDESTRIAN, CAR, TRUCK]
    torch.testing.assert_close(boxes[0, order], wanted["numbers"][[1, 0, 2]])


def test_a_large_object_seeds_once_and_small_ones_may_stand_side_by_side() -> None:
    logits = torch.full((1, CLASSES, 8, 8), -9.0)
    logits[0, CAR, 2, 2], logits[0, CAR, 2, 3], logits[0, CAR, 3, 2] = 3.0, 2.9, 2.8
    logits[0, CONE, 6, 5], logits[0, CONE, 6, 6] = 1.0, 0.9
    found, _, cells = select_seeds(logits, torch.zeros(1, 8, 8, NUMBERS), 3)
    assert cells[0].tolist() == [2 * 8 + 2, 6 * 8 + 5, 6 * 8 + 6]
    assert found[0].argmax(dim=-1).tolist() == [CAR, CONE, CONE]
    assert found[0].amax(dim=-1).tolist() == pytest.approx([3.0, 1.0, 0.9])


def test_seeds_are_there_however_few_peaks_and_cells_there_are() -> None:
    flat = torch.full((2, CLASSES, 4, 4), -4.0)
    for count, wanted in ((5, 5), (100, 16)):
        logits, boxes, cells = select_seeds(flat, torch.zeros(2, 4, 4, NUMBERS), count)
        assert logits.shape == (2, wanted, CLASSES)
        assert boxes.shape == (2, wanted, NUMBERS)
        assert all(len(set(one.tolist())) == wanted for one in cells)


def test_seeds_carry_the_gradient_of_their_cells() -> None:
    logits = torch.randn(1, CLASSES, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found, _, cells = select_seeds(logits, torch.zeros(1, 8, 8, NUMBERS), 4)
    found.sum().backward()
    assert logits.grad is not None
    assert sorted(logits.grad[0].sum(dim=0).flatten().nonzero().flatten().tolist()) == sorted(cells[0].tolist())
