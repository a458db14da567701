"""The dense head: what it is taught, and that its peaks are the objects."""

from __future__ import annotations

import torch

from automoe.experts.heatmap import HeatmapHead, heatmap_loss, heatmap_targets, map_of_box, select_seeds


def target(boxes: list[list[float]], labels: list[int], ignored: list[bool] | None = None) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "ignored": torch.tensor(ignored or [False] * len(labels), dtype=torch.bool),
    }


def test_every_object_has_its_peak_and_shares_sum_to_one() -> None:
    t = target([[0.25, 0.5, 0.2, 0.4], [0.75, 0.5, 0.02, 0.02]], [2, 0])
    heat, weight, owner, share = heatmap_targets(**t, num_classes=3, height=20, width=40)
    assert heat[2, 10, 10] == 1.0
    assert heat[0, 10, 30] == 1.0
    assert (heat == 1.0).sum() == 2
    assert heat[1].max() == 0
    assert weight.min() == 1
    for index in (0, 1):
        assert torch.isclose(share[owner == index].sum(), torch.tensor(1.0), atol=1e-5)
    # The bigger box teaches more cells.
    assert (owner == 0).sum() > (owner == 1).sum() >= 1


def test_where_boxes_overlap_the_smaller_regresses() -> None:
    t = target([[0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.2, 0.2]], [1, 1])
    _, _, owner, _ = heatmap_targets(**t, num_classes=2, height=20, width=20)
    assert owner[10, 10] == 1


def test_ignored_regions_teach_nothing_but_objects_in_them_count() -> None:
    t = target([[0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.1, 0.1]], [0, 1], [True, False])
    heat, weight, owner, _ = heatmap_targets(**t, num_classes=2, height=20, width=20)
    assert heat[0].max() == 0
    assert weight[12, 12] == 0
    assert weight[0, 0] == 1
    assert weight[8, 8] == 1
    assert set(owner.unique().tolist()) == {-1, 1}


def test_loss_is_finite_and_has_a_gradient_without_any_box() -> None:
    head = HeatmapHead(16, 3)
    logits, boxes = head(torch.randn(2, 16, 8, 12))
    losses = heatmap_loss([logits], [boxes], [target([], []), target([], [])], lambda n: max(1.0, n))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


def test_a_perfect_map_has_its_objects_as_seeds_and_no_box_loss() -> None:
    wanted = target([[0.26, 0.52, 0.2, 0.4], [0.81, 0.31, 0.1, 0.2]], [2, 0])
    heat, _, owner, _ = heatmap_targets(**wanted, num_classes=3, height=20, width=40)
    logits = torch.logit(heat.clamp(1e-4, 1 - 1e-4))[None]
    boxes = torch.full((1, 20, 40, 4), 0.5)
    for index in (0, 1):
        boxes[0][owner == index] = wanted["boxes"][index]
    seeds = select_seeds([logits], [boxes], 2)
    order = seeds.boxes[0, :, 0].argsort()
    assert torch.allclose(seeds.boxes[0, order], wanted["boxes"])
    assert seeds.logits[0, order].argmax(dim=1).tolist() == [2, 0]
    assert heatmap_loss([logits], [boxes], [wanted], float)["heatmap_giou"] < 1e-5


def test_boxes_of_the_head_surround_their_cells() -> None:
    _, boxes = HeatmapHead(16, 3)(torch.randn(1, 16, 10, 20))
    xs = (torch.arange(20) + 0.5) / 20
    assert (boxes[0, :, :, 0] - boxes[0, :, :, 2] / 2 < xs[None]).all()
    assert (boxes[0, :, :, 0] + boxes[0, :, :, 2] / 2 > xs[None]).all()


def test_boxes_belong_to_the_finest_map_that_they_do_not_fill() -> None:
    maps = [torch.zeros(1, 8, size, 2 * size) for size in (32, 16, 8)]
    # Of 64 cells across 0.1 is 6.4, 0.2 is 12.8 and on the next map 6.4, 0.6 is more than 8 on both.
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.01], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.1, 0.6], [0.5, 0.5, 0.6, 0.1]])
    assert map_of_box(boxes, maps).tolist() == [0, 1, 2, 2]


def test_every_object_is_taught_on_one_map_and_background_on_the_others() -> None:
    wanted = target([[0.25, 0.5, 0.05, 0.1], [0.6, 0.5, 0.5, 0.8]], [0, 1])
    logits = [torch.full((1, 2, size, 2 * size), -8.0, requires_grad=True) for size in (32, 8)]
    boxes = [torch.full((1, size, 2 * size, 4), 0.5, requires_grad=True) for size in (32, 8)]
    losses = heatmap_loss(logits, boxes, [wanted], float)
    sum(losses.values()).backward()
    fine, coarse = (one.grad for one in logits)
    assert fine is not None
    assert coarse is not None
    # Only an object's own cell wants more; nothing wants the other class there.
    assert (fine[0, 0] < 0).nonzero().tolist() == [[16, 16]]
    assert (coarse[0, 1] < 0).nonzero().tolist() == [[4, 9]]
    assert (fine[0, 1] >= 0).all()
    assert (coarse[0, 0] >= 0).all()


def test_seeds_are_different_objects() -> None:
    """Three peaks, two of which say nearly the same box on two maps: the weaker of them comes last."""
    logits = [torch.full((1, 1, 8, 8), -9.0), torch.full((1, 1, 4, 4), -9.0)]
    boxes = [torch.full((1, 8, 8, 4), 0.1), torch.full((1, 4, 4, 4), 0.1)]
    for level, (y, x), score, box in (
        (0, (2, 2), 3.0, [0.3, 0.3, 0.2, 0.2]),
        (1, (1, 1), 2.0, [0.31, 0.3, 0.2, 0.2]),
        (0, (6, 6), 1.0, [0.8, 0.8, 0.2, 0.2]),
    ):
        logits[level][0, 0, y, x] = score
        boxes[level][0, y, x] = torch.tensor(box)
    seeds = select_seeds(logits, boxes, 2)
    assert seeds.logits.flatten().tolist() == [3.0, 1.0]
    assert seeds.cells.flatten().tolist() == [18, 54]
