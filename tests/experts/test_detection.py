"""The detection expert: shapes, background is trained, denoising leaks nothing, empty images are fine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import automoe.experts  # noqa: F401  (registers)
from automoe.errors import ConfigError
from automoe.experts.detection import DetectionExpert, make_denoising, postprocess_detections
from automoe.experts.expert import ExpertStep
from automoe.experts.query_decoder import BoxReference, DeformableAttention
from automoe.experts.registry import build_expert
from automoe.taxonomy import LIGHT_COLORS


@pytest.fixture(scope="module")
def expert() -> DetectionExpert:
    torch.manual_seed(0)
    return build_expert("detection", {"num_queries": 30, "dim": 32}, pretrained=True)


def batch(counts: list[int], size: tuple[int, int] = (64, 96)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (len(counts), 3, *size), dtype=torch.uint8, generator=generator),
        "sample_id": [f"{i}.jpg" for i in range(len(counts))],
        "boxes": [
            torch.cat([torch.rand(n, 2, generator=generator), 0.1 + 0.2 * torch.rand(n, 2, generator=generator)], 1)
            for n in counts
        ],
        "labels": [torch.randint(0, 10, (n,), generator=generator) for n in counts],
        "ignored": [torch.zeros(n, dtype=torch.bool) for n in counts],
        "colors": [torch.randint(-1, 4, (n,), generator=generator) for n in counts],
    }


def test_outputs_have_the_documented_shapes(expert: DetectionExpert) -> None:
    out = expert.eval()(torch.randn(2, 3, 64, 96))
    assert out["logits"].shape == (2, 2, 30, 10)
    assert out["boxes"].shape == (2, 2, 30, 4)
    assert out["seed_logits"].shape == (2, 30, 10)
    assert out["tokens"].shape == (2, 30, 32)
    assert out["token_positions"].shape == (2, 30, 2)
    assert [m.shape for m in out["heat_logits"]] == [(2, 10, 16, 24), (2, 10, 8, 12), (2, 10, 4, 6), (2, 10, 2, 3)]
    assert ((out["boxes"] >= 0) & (out["boxes"] <= 1.5)).all()


def test_an_untrained_decoder_repeats_its_seeds(expert: DetectionExpert) -> None:
    out = expert.eval()(torch.randn(1, 3, 64, 96))
    assert torch.allclose(out["logits"][-1], out["seed_logits"], atol=1e-6)
    inside = ((out["seed_boxes"][..., :2] > 0) & (out["seed_boxes"][..., :2] < 1)).all(-1)
    assert torch.allclose(out["boxes"][-1][inside][:, :2], out["seed_boxes"][inside][:, :2], atol=1e-6)


@pytest.mark.parametrize("counts", [[3, 0], [0, 0], [1, 40]])
def test_losses_are_finite_whatever_the_boxes(expert: DetectionExpert, counts: list[int]) -> None:
    losses = ExpertStep(expert.train(), float)(batch(counts))
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    trained = [p for p in expert.parameters() if p.requires_grad]
    # Every one has a gradient: DDP waits for those of all parameters.
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
    expert.zero_grad()


@pytest.mark.parametrize(("size", "bf16"), [((64, 96), True), ((70, 101), False), ((32, 32), False)])
def test_other_sizes_and_bf16_train_as_well(expert: DetectionExpert, size: tuple[int, int], bf16: bool) -> None:
    one = batch([3])
    one["image"] = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    for head in expert.decoder.class_heads:
        torch.nn.init.normal_(head.weight, std=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        losses = ExpertStep(expert.train(), float)(one)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    relation = expert.decoder.relation[0].weight.grad
    assert relation is not None
    assert relation.abs().sum() > 0  # how boxes lie to each other is learnt from
    expert.zero_grad()
    for head in expert.decoder.class_heads:
        torch.nn.init.zeros_(head.weight)


def test_background_is_trained(expert: DetectionExpert) -> None:
    """On an image without boxes the class loss pushes scores down: a query that matches nothing is not left alone."""
    criterion = expert.make_criterion(float)
    logits = torch.zeros(2, 1, 5, 10, requires_grad=True)
    outputs = {
        "logits": logits,
        "boxes": torch.full((2, 1, 5, 4), 0.5),
        "heat_logits": [torch.zeros(1, 10, 4, 4)],
        "heat_boxes": [torch.full((1, 4, 4, 4), 0.5)],
    }
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = criterion.losses(outputs, [empty | {"ignored": torch.zeros(0, dtype=torch.bool)}])
    losses["loss"].backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()  # descending lowers every score


def test_predictions_over_ignored_regions_are_not_pushed_down(expert: DetectionExpert) -> None:
    criterion = expert.make_criterion(float)
    logits = torch.zeros(2, 1, 2, 10, requires_grad=True)
    boxes = torch.tensor([[0.25, 0.5, 0.1, 0.1], [0.75, 0.5, 0.1, 0.1]]).expand(2, 1, 2, 4)
    outputs = {
        "logits": logits,
        "boxes": boxes,
        "heat_logits": [torch.zeros(1, 10, 4, 4)],
        "heat_boxes": [torch.full((1, 4, 4, 4), 0.5)],
    }
    region = {
        "boxes": torch.tensor([[0.25, 0.5, 0.3, 0.3]]),
        "labels": torch.tensor([2]),
        "ignored": torch.tensor([True]),
    }
    criterion.losses(outputs, [region])["loss"].backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0, 0] == 0).all()
    assert (logits.grad[:, 0, 1] > 0).all()


def test_denoising_queries_leak_nothing(expert: DetectionExpert) -> None:
    """What ordinary queries say doesn't depend on the denoising boxes, and groups don't see each other."""
    expert.eval()
    images = torch.randn(1, 3, 64, 96)
    noisy = torch.rand(1, 8, 4) * 0.5 + 0.2
    with torch.no_grad():
        # Zero-initialised heads would hide a leak.
        for p in expert.decoder.class_heads.parameters():
            torch.nn.init.normal_(p, std=0.1)
        without = expert(images)
        first = expert(images, noisy)
        changed = noisy.clone()
        changed[:, 4:] = torch.rand(1, 4, 4) * 0.5 + 0.2  # the second group
        second = expert(images, changed)
    assert torch.allclose(without["logits"], first["logits"], atol=1e-5)
    assert torch.allclose(first["denoising_logits"][:, :, :2], second["denoising_logits"][:, :, :2], atol=1e-5)


def test_denoising_boxes_know_where_they_come_from() -> None:
    targets = [
        {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]]), "ignored": torch.tensor([False, True])},
        {"boxes": torch.zeros(0, 4), "ignored": torch.zeros(0, dtype=torch.bool)},
    ]
    made = make_denoising(targets, groups=2)
    assert made is not None
    boxes, source = made
    assert boxes.shape == (2, 8, 4)
    assert source[0].tolist() == [0, -2, 0, -2, -1, -2, -1, -2]
    assert (source[1] == -2).all()
    moved = (boxes[0, [0, 2], :2] - targets[0]["boxes"][0, :2]).abs() / 0.2
    far = (boxes[0, [4, 6], :2] - targets[0]["boxes"][0, :2]).abs() / 0.2
    assert (moved <= 0.4 + 1e-5).all()
    assert (far >= 0.5 - 1e-5).all()
    assert make_denoising([targets[1]], groups=2) is None


def test_boxes_come_back_to_raw_pixels() -> None:
    transform = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 12.0]]])  # halved, 12 rows of letterbox above
    boxes = torch.tensor([[[0.5, 0.5, 0.25, 0.25]]])
    found = postprocess_detections(
        torch.full((1, 1, 10), -5.0).index_fill(2, torch.tensor([3]), 5.0),
        boxes,
        transform,
        torch.tensor([[80, 128]]),
        (64, 64),
        5,
    )[0]
    # Network box 24..40 both ways; raw x is twice that, raw y twice that minus the letterbox.
    assert torch.allclose(found["boxes"][0], torch.tensor([48.0, 24.0, 80.0, 56.0]))
    assert found["labels"][0] == 3
    assert found["scores"][0] > 0.99


def test_deformable_attention_looks_where_its_references_are() -> None:
    """A map with one bright cell: only the query whose reference holds it notices."""
    attention = DeformableAttention(8, heads=2, maps=1, points=2)
    feature_map = torch.zeros(1, 8, 10, 10)
    references = torch.tensor([[[0.15, 0.15, 0.2, 0.2], [0.85, 0.85, 0.2, 0.2]]])
    queries = torch.zeros(1, 2, 8)
    geometry = BoxReference((40, 40))
    dark = attention(queries, references, [feature_map.view(2, 4, 10, 10)], geometry)
    feature_map[:, :, 7:10, 7:10] = 1.0
    bright = attention(queries, references, [feature_map.view(2, 4, 10, 10)], geometry)
    change = (bright - dark).abs().sum(-1)[0]
    assert change[0] < 1e-6
    assert change[1] > 1e-3


def test_what_is_known_of_a_box_is_the_same_in_a_piece_of_the_picture() -> None:
    """Two boxes in a picture of 128x64, and in the piece of it that starts at (32, 16) and is 64x32."""
    whole = torch.tensor([[[0.4, 0.5, 0.1, 0.2], [0.45, 0.5, 0.1, 0.2]]])
    corner, stretch = torch.tensor([32 / 128, 16 / 64, 0, 0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    piece = (whole - corner) * stretch
    large, small = BoxReference((64, 128)), BoxReference((32, 64))
    assert torch.allclose(large.encode(whole, 16), small.encode(piece, 16), atol=1e-5)
    assert torch.allclose(large.relate(whole), small.relate(piece), atol=1e-5)
    # The two are half a width apart, of one size, and share a third of their union.
    expected = torch.tensor([0.5, 0.0, 0.0, 0.0, 1 / 3])
    expected[0] = torch.log1p(expected[0])
    assert torch.allclose(large.relate(whole)[0, 0, 1], expected, atol=1e-5)
    assert torch.allclose(large.relate(whole)[0, 0, 0, 4], torch.tensor(1.0), atol=1e-5)


def test_driving_tokens_are_the_surest_boxes(expert: DetectionExpert) -> None:
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    features, positions = expert.eval().driving_tokens(image)
    outputs = expert(expert.normalise(image))
    scores = outputs["logits"][-1].sigmoid()
    best = scores.amax(dim=-1).argsort(dim=1, descending=True)[:, : features.shape[1]]
    for row in range(2):
        torch.testing.assert_close(features[row, :, : scores.shape[-1]], scores[row, best[row]])
        x, y, _, height = outputs["boxes"][-1][row, best[row]].T
        torch.testing.assert_close(positions[row], torch.stack([x, (y + height / 2).clamp(max=1.0)], dim=-1))
    # Last, how likely each is a light of each colour: together, how likely it is a light.
    light = features[..., expert.classes.index("traffic light")]
    torch.testing.assert_close(features[..., -len(LIGHT_COLORS) :].sum(dim=-1), light)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"num_query.*did you mean 'num_queries'"):
        build_expert("detection", {"num_query": 5}, pretrained=False)
    with pytest.raises(ConfigError, match="detecton"):
        build_expert("detecton", {}, pretrained=False)


def test_predictions_that_are_not_finite_give_a_loss_that_is_not(expert: DetectionExpert) -> None:
    """The engine stops on it with the samples' ids, on every process; matching such predictions would raise here."""
    step, poisoned = ExpertStep(expert.train(), float), batch([2, 1])
    with torch.no_grad():
        good = expert.heatmap.classes[-1].bias.clone()
        expert.heatmap.classes[-1].bias.fill_(float("nan"))
    loss = step(poisoned)["loss"]
    loss.backward()
    with torch.no_grad():
        expert.heatmap.classes[-1].bias.copy_(good)
    expert.zero_grad()
    assert torch.isnan(loss)
