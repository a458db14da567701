"""The Hungarian matcher: what it takes and returns, that it is optimal, and what it refuses."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from automoe import matching_costs
from automoe.errors import AutoMoEError, ConfigError
from automoe.geometry import cxcywh_to_xyxy, pairwise_bev_iou, pairwise_giou, wrap_angle
from automoe.matching import HungarianMatcher, MatchingError, assign_rows


def a_scene(sizes=(3, 0, 5), layers=2, queries=8, classes=4, numbers=4, seed=0):
    """Random predictions for all layers, and targets with `sizes` boxes."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape):
        values = torch.rand(*shape, numbers, generator=generator)
        if numbers == 7:  # metres and radians, close enough together for footprints to overlap
            values = values * torch.tensor([10.0, 10, 2, 6, 3, 2, 6.3]) + 0.1
        return values

    logits = torch.randn(layers, len(sizes), queries, classes, generator=generator)
    outputs = {"pred_logits": logits, "pred_boxes": boxes(layers, len(sizes), queries)}
    targets = [
        {"labels": torch.randint(0, classes, (size,), generator=generator), "boxes": boxes(size)} for size in sizes
    ]
    return outputs, targets


def plain_costs(logits, boxes, target, matcher):
    """The published cost of one image [Q, N], in float64 and as one would write it down."""
    logits, boxes, own = logits.double(), boxes.double(), target["boxes"].double()
    if matcher.class_cost == "softmax":
        cost = -logits.softmax(-1)
    else:
        p = logits.sigmoid()
        cost = matcher.alpha * (1 - p) ** matcher.gamma * -(p + 1e-8).log()
        cost = cost - (1 - matcher.alpha) * p**matcher.gamma * -(1 - p + 1e-8).log()
    difference = (boxes[:, None] - own[None]).abs()
    if boxes.shape[-1] == 4:
        overlap = pairwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(own))
    else:
        difference[..., 6] = wrap_angle(boxes[:, None, 6] - own[None, :, 6]).abs()
        overlap = pairwise_bev_iou(boxes, own)
    return (
        matcher.cost_class * cost[:, target["labels"]]
        + matcher.cost_bbox * difference.sum(-1)
        - matcher.cost_giou * overlap
    )


def test_one_layer_gives_a_pair_of_indices_for_each_image():
    outputs = {
        "pred_logits": torch.zeros(1, 3, 2),
        "pred_boxes": torch.tensor([[[0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]]]),
    }
    targets = [{"labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])}]
    [(queries, of_targets)] = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)(outputs, targets)
    assert queries.tolist() == [0, 2]
    assert of_targets.tolist() == [1, 0]
    assert queries.dtype == of_targets.dtype == torch.int64


@pytest.mark.parametrize("numbers", [4, 7])
@pytest.mark.parametrize("class_cost", ["focal", "softmax"])
def test_all_layers_and_images_equal_scipy_on_the_plain_costs(numbers, class_cost):
    outputs, targets = a_scene(sizes=(3, 0, 12, 40, 1), layers=3, queries=20, numbers=numbers)
    matcher = HungarianMatcher(class_cost=class_cost)
    matches = matcher(outputs, targets)
    assert len(matches) == 3
    for layer, image in itertools.product(range(3), range(5)):
        costs = plain_costs(
            outputs["pred_logits"][layer, image], outputs["pred_boxes"][layer, image], targets[image], matcher
        )
        queries, of_targets = matches[layer][image]
        rows, columns = linear_sum_assignment(costs.numpy())
        assert queries.tolist() == rows.tolist()
        assert of_targets.tolist() == columns.tolist()


def batch_costs(way, outputs, targets, settings_):
    """The costs [L, N, Q] by one of the two ways of `PairCosts`."""
    matcher = HungarianMatcher(**settings_)
    return getattr(matcher._pair_costs, way)(
        outputs["pred_logits"],
        outputs["pred_boxes"],
        torch.cat([target["labels"] for target in targets]),
        torch.cat([target["boxes"] for target in targets]),
        [len(target["labels"]) for target in targets],
    )


@pytest.mark.parametrize("numbers", [4, 7])
def test_large_and_grouped_images_cost_the_same(numbers, monkeypatch):
    outputs, targets = a_scene(sizes=(3, 0, 5, 7, 0), numbers=numbers)
    grouped = batch_costs("by_operations", outputs, targets, {})
    monkeypatch.setitem(matching_costs._PAIRS_AT_ONCE, "cpu", 1)
    assert torch.allclose(grouped, batch_costs("by_operations", outputs, targets, {}), rtol=0, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 7, 64])
@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"class_cost": "softmax"},
        {"gamma": 1.5, "alpha": 0.4},
        {"cost_class": 0},
        {"cost_bbox": 0},
        {"cost_giou": 0},
        {"cost_class": 0, "cost_bbox": 0},
    ],
)
def test_compiled_costs_equal_those_by_operations_and_the_published_ones(settings_, queries):
    outputs, targets = a_scene(sizes=(3, 0, 12, 1), layers=3, queries=queries)
    outputs["pred_boxes"][:, :, ::3, 2] = 0  # without area
    targets[2]["boxes"][1:4, 2:] = 0
    outputs["pred_boxes"][0, 2, 0] = targets[2]["boxes"][2]
    compiled = batch_costs("compiled", outputs, targets, settings_)
    assert torch.allclose(compiled, batch_costs("by_operations", outputs, targets, settings_), rtol=0, atol=1e-5)

    matcher = HungarianMatcher(**settings_)
    images = torch.arange(len(targets)).repeat_interleave(torch.tensor([len(each["labels"]) for each in targets]))
    for layer, image in itertools.product(range(3), range(4)):
        plain = plain_costs(
            outputs["pred_logits"][layer, image], outputs["pred_boxes"][layer, image], targets[image], matcher
        )
        with_area = (outputs["pred_boxes"][layer, image, :, None, 2] > 0) & (targets[image]["boxes"][:, 2] > 0)
        # The constant of GIoU is left out, being the same for all pairs.
        difference = compiled[layer, images == image].t() - (plain - matcher.cost_giou)
        assert difference[with_area].abs().le(1e-4).all()


def test_inputs_in_any_memory_order_match_alike():
    outputs, targets = a_scene(sizes=(3, 0, 5), queries=30)
    strided = {key: value.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0) for key, value in outputs.items()}
    own = [
        {"labels": each["labels"].repeat(2, 1).t()[:, 0], "boxes": each["boxes"].t().clone().t()} for each in targets
    ]
    assert not strided["pred_boxes"].is_contiguous()
    plain, other = HungarianMatcher()(outputs, targets), HungarianMatcher()(strided, own)
    for one, two in zip(itertools.chain(*plain), itertools.chain(*other)):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("class_cost", ["focal", "softmax"])
def test_one_query_takes_the_target_that_costs_least(class_cost):
    outputs, targets = a_scene(sizes=(3, 0, 1), queries=1)
    costs = batch_costs("compiled", outputs, targets, {"class_cost": class_cost})
    for layer, (first, none, last) in enumerate(HungarianMatcher(class_cost=class_cost)(outputs, targets)):
        assert first[0].tolist() == last[0].tolist() == last[1].tolist() == [0]
        assert first[1].tolist() == [int(costs[layer, :3, 0].argmin())]
        assert len(none[0]) == len(none[1]) == 0


def test_layers_at_once_equal_layers_one_by_one_and_short_names_work():
    outputs, targets = a_scene()
    matcher = HungarianMatcher()
    together = matcher(outputs, targets)
    for layer in range(2):
        alone = matcher({"logits": outputs["pred_logits"][layer], "boxes": outputs["pred_boxes"][layer]}, targets)
        for one, other in zip(together[layer], alone):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_a_batch_without_any_box_and_one_without_queries():
    outputs, targets = a_scene(sizes=(0, 0))
    for queries, of_targets in itertools.chain(*HungarianMatcher()(outputs, targets)):
        assert queries.shape == of_targets.shape == (0,)
    outputs, targets = a_scene(sizes=(2, 1), queries=0)
    for queries, of_targets in itertools.chain(*HungarianMatcher()(outputs, targets)):
        assert queries.shape == of_targets.shape == (0,)


def test_more_targets_than_queries_matches_each_query_once():
    outputs, targets = a_scene(sizes=(9, 2), queries=4)
    for match in HungarianMatcher()(outputs, targets):
        assert match[0][0].tolist() == [0, 1, 2, 3]
        assert len(set(match[0][1].tolist())) == 4
        assert len(match[1][0]) == 2


def test_no_gradient_and_float32_under_autocast():
    outputs, targets = a_scene(sizes=(6, 6), queries=30)
    outputs = {key: value.bfloat16().float().requires_grad_() for key, value in outputs.items()}
    plain = HungarianMatcher()(outputs, targets)
    half = {key: value.detach().bfloat16() for key, value in outputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = HungarianMatcher()(half, targets)
    for one, other in zip(itertools.chain(*plain), itertools.chain(*mixed)):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_heading_just_below_a_full_turn_is_close_to_zero():
    box = [0.0, 0, 0, 4, 2, 1.5]
    outputs = {"logits": torch.zeros(1, 2, 1), "boxes": torch.tensor([[[*box, 1.0], [*box, 6.28]]])}
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[*box, 0.0]])}]
    [(queries, _)] = HungarianMatcher(cost_giou=0, box="3d")(outputs, targets)
    assert queries.tolist() == [1]


def test_headings_can_be_left_out_of_the_cost():
    """Two cones side by side, each found where it stands, with headings that are chance."""
    size = [0.4, 0.4, 0.7]
    boxes = torch.tensor([[0.0, 0, 0, *size, 0.0], [1.5, 0, 0, *size, 3.1]])
    outputs = {"logits": torch.zeros(1, 2, 1), "boxes": boxes[None]}
    turned = boxes.clone()
    turned[:, 6] = boxes[:, 6].flip(0)
    targets = [{"labels": torch.tensor([0, 0]), "boxes": turned}]
    for cost_heading, expected in ((None, [1, 0]), (0.0, [0, 1]), (0.1, [0, 1])):
        matcher = HungarianMatcher(cost_bbox=0.25, cost_giou=0, box="3d", cost_heading=cost_heading)
        [(_, target)] = matcher(outputs, targets)
        assert target.tolist() == expected
    with pytest.raises(ConfigError, match="cost_heading is -1"):
        HungarianMatcher(cost_heading=-1)


def test_boxes_without_area_can_be_matched():
    outputs = {"logits": torch.zeros(1, 2, 1), "boxes": torch.tensor([[[0.9, 0.9, 0.0, 0.0], [0.1, 0.1, 0, 0]]])}
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.1, 0.1, 0.0, 0.0]])}]
    [(queries, _)] = HungarianMatcher()(outputs, targets)
    assert queries.tolist() == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["pred_logits", "pred_boxes"])
def test_what_is_not_finite_is_refused_with_batch_index_and_layer(key, value):
    outputs, targets = a_scene()
    outputs[key][1, 2, 3, 0] = value
    with pytest.raises(MatchingError, match="batch index 2, layer 1") as error:
        HungarianMatcher()(outputs, targets)
    assert isinstance(error.value, AutoMoEError)
    assert key.removeprefix("pred_") in str(error.value)


def test_faulty_predictions_are_refused_even_without_targets():
    outputs, targets = a_scene(sizes=(0, 0))
    outputs["pred_logits"][0, 1] = float("nan")
    with pytest.raises(MatchingError, match="batch index 1, layer 0"):
        HungarianMatcher()(outputs, targets)


@pytest.mark.parametrize("numbers", [4, 7])
def test_faulty_targets_are_refused_by_number(numbers):
    for change, said in [
        (lambda target: target["labels"].__setitem__(4, 4), "a label outside"),
        (lambda target: target["labels"].__setitem__(4, -1), "a label outside"),
        (lambda target: target["boxes"].__setitem__((4, 0), float("nan")), "NaN"),
        (lambda target: target["boxes"].__setitem__((4, 0), 1e30), "beyond"),
        (lambda target: target["boxes"].__setitem__((4, 3), -0.1), "negative size"),
    ]:
        outputs, targets = a_scene(numbers=numbers)
        change(targets[2])
        with pytest.raises(MatchingError, match=f"target 4 at batch index 2 has .*{said}"):
            HungarianMatcher()(outputs, targets)


def test_shapes_that_do_not_fit_are_refused():
    outputs, targets = a_scene()
    with pytest.raises(MatchingError, match="2 targets for a batch of 3"):
        HungarianMatcher()(outputs, targets[:2])
    with pytest.raises(MatchingError, match="batch index 1"):
        HungarianMatcher()(outputs, [targets[0], {"labels": torch.tensor([1]), "boxes": torch.zeros(0, 4)}, targets[2]])
    with pytest.raises(MatchingError, match="for 3d boxes"):
        HungarianMatcher(box="3d")(outputs, targets)
    with pytest.raises(MatchingError, match="pred_boxes"):
        HungarianMatcher()({"logits": outputs["pred_logits"]}, targets)
    with pytest.raises(MatchingError, match="do not fit together"):
        HungarianMatcher()({**outputs, "pred_boxes": outputs["pred_boxes"][:, :, :5]}, targets)


@pytest.mark.parametrize(
    "settings_",
    [
        {"cost_class": -1},
        {"cost_bbox": float("nan")},
        {"class_cost": "l2"},
        {"box": "4d"},
        {"cost_class": 0, "cost_bbox": 0, "cost_giou": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings_):
    with pytest.raises(ConfigError):
        HungarianMatcher(**settings_)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_assignment_is_the_optimum_by_brute_force(data):
    """Small whole numbers make ties, which is where an auction could stall."""
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    values = st.integers(-2, 3) if data.draw(st.booleans()) else st.floats(-5, 5, width=32)
    costs = np.array(data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns)), dtype=np.float32)
    costs = costs.reshape(rows, columns)
    taken = assign_rows(costs, [rows])
    got = taken >= 0
    assert got.sum() == min(rows, columns) == len(set(taken[got].tolist()))
    small, large = (costs, columns) if rows <= columns else (costs.T, rows)
    best = min(
        sum(float(small[i, j]) for i, j in enumerate(choice))
        for choice in itertools.permutations(range(large), len(small))
    )
    assert costs[np.flatnonzero(got), taken[got]].sum(dtype=np.float64) == pytest.approx(best, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    columns=st.integers(1, 40),
    kind=st.sampled_from(["random", "crowded", "ties", "same rows", "same columns"]),
    scale=st.sampled_from([1e-8, 1.0, 1e6]),
)
def test_assignment_costs_what_scipys_costs(seed, sizes, columns, kind, scale):
    random = np.random.default_rng(seed)
    rows = sum(sizes)
    costs = random.normal(size=(rows, columns))
    if kind == "crowded":  # everyone wants the same columns: a price war
        costs = costs * 0.1 + np.arange(columns) * 0.5
    elif kind == "ties":
        costs = costs.round()
    elif kind == "same rows":
        costs = np.tile(costs[:1], (rows, 1))
    elif kind == "same columns":
        costs = np.tile(costs[:, :1], (1, columns))
    costs = (costs * scale).astype(np.float32)
    taken = assign_rows(costs, sizes)
    start = 0
    for size in sizes:
        own, block = taken[start : start + size], costs[start : start + size].astype(np.float64)
        got = own >= 0
        best = block[linear_sum_assignment(block)].sum()
        assert len(set(own[got].tolist())) == got.sum() == min(size, columns)
        assert block[np.flatnonzero(got), own[got]].sum() == pytest.approx(best, rel=1e-6, abs=1e-7 * scale)
        start += size


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_costs_that_are_not_finite_are_refused(value):
    costs = np.zeros((5, 40), dtype=np.float32)
    costs[4, 33] = value
    for sizes in ([3, 0, 2], [5]):
        with pytest.raises(MatchingError, match="NaN or infinite"):
            assign_rows(costs, sizes)
    with pytest.raises(MatchingError, match="NaN or infinite"):
        assign_rows(costs.T, [40])  # more rows than columns


def test_problems_that_do_not_fill_the_costs_are_refused():
    with pytest.raises(MatchingError, match="4 rows in all do not fit 5"):
        assign_rows(np.zeros((5, 40), dtype=np.float32), [3, 1])


def test_the_compiler_waits_until_there_is_something_to_match():
    """Every process imports the matcher, data workers too; only one that matches needs numba, which takes a while."""
    said = "import sys, automoe.matching; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_training_scripts_find_it_under_its_own_name(monkeypatch):
    root = Path(__file__).resolve().parents[1]
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.syspath_prepend(str(root / "training"))
    for name in ("hungarian_matcher", "training.hungarian_matcher"):
        module = importlib.import_module(name)
        assert module.__file__ == str(root / "training" / "hungarian_matcher.py")
        assert module.HungarianMatcher is HungarianMatcher
