"""The colour of a traffic light: where it is read, that it is learnt, and how it is scored."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from automoe.experts.light_color import SIDE, LightHead, LightScores, color_loss, squares
from automoe.stages.predictions import det20_frame
from automoe.taxonomy import BDD_DETECTION, LIGHT_COLORS, det20_light_color, light_color

RED, GREEN = LIGHT_COLORS.index("red"), LIGHT_COLORS.index("green")


def test_a_square_shows_what_is_round_its_box() -> None:
    """A red lamp over a green one on black, in a picture that is not square, and a box that leaves the picture."""
    image = torch.zeros(1, 3, 64, 96)
    image[0, 0, 20:24, 40:44] = 1.0
    image[0, 1, 24:28, 40:44] = 1.0
    light = torch.tensor([42.0 / 96, 24.0 / 64, 4.0 / 96, 8.0 / 64])
    outside = torch.tensor([1.0, 1.0, 0.2, 0.2])
    found = squares(image, torch.stack([light, outside])[None])[0]
    assert found.shape == (2, 3, SIDE, SIDE)
    red, green, blue = found[0]
    middle = SIDE // 2
    assert red[:middle].sum() > 10 * red[middle:].sum() > -1
    assert green[middle:].sum() > 10 * green[:middle].sum()
    assert blue.abs().max() == 0.0
    # 1.3 times 8 pixels a side, of which the lamps have 4 times 8.
    lit = float((red + green).mean())
    assert lit == pytest.approx(4 * 8 / (1.3 * 8) ** 2, rel=0.15)
    torch.testing.assert_close(red.flip(-1), red, atol=1e-4, rtol=0)
    assert found[1].isfinite().all()


def lights(count: int, seed: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Pictures with two lamps each, their colours drawn, on noise."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(count, 3, 48, 64, generator=generator)
    targets = []
    for image in images:
        boxes, colors = [], []
        for x in (16, 44):
            red = bool(torch.rand(1, generator=generator) < 0.5)
            image[0 if red else 1, 20 + 5 * (not red) : 23 + 5 * (not red), x - 1 : x + 2] = 1.0
            boxes.append([x / 64, 24 / 48, 6 / 64, 12 / 48])
            colors.append(RED if red else GREEN)
        targets.append(
            {
                "boxes": torch.tensor(boxes), "colors": torch.tensor(colors),
                "ignored": torch.zeros(2, dtype=torch.bool),
            }
        )  # fmt: skip
    return images, targets


def test_colours_are_learnt_box_by_box() -> None:
    torch.manual_seed(0)
    head, (images, targets) = LightHead(8), lights(24, 0)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(60):
        total, count = color_loss(head, images, targets)
        assert count == 48
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    images, targets = lights(12, 1)
    said = head(images, torch.stack([one["boxes"] for one in targets])).argmax(dim=-1)
    assert (said == torch.stack([one["colors"] for one in targets])).float().mean() > 0.9


def test_what_is_not_known_teaches_nothing() -> None:
    head, (images, targets) = LightHead(4), lights(2, 0)
    targets[0]["colors"][:] = -1
    targets[1]["ignored"][:] = True
    total, count = color_loss(head, images, targets)
    assert (total.item(), count) == (0.0, 0)
    total.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in head.parameters())
    targets[1]["ignored"][0] = False
    assert color_loss(head, images, targets)[1] == 1


def test_only_found_lights_are_judged() -> None:
    boxes = np.array([[0, 0, 10, 20], [50, 0, 60, 20], [80, 0, 90, 20], [0, 40, 10, 60]], np.float32)
    truth = SimpleNamespace(
        boxes=boxes, colors=np.array([RED, GREEN, -1, RED]), ignored=np.array([False, False, False, True])
    )
    prediction = {
        # The first is found twice: the surer one counts. A car where the second light is says nothing of it.
        "boxes": np.array(
            [[0, 0, 10, 19], [0, 1, 10, 20], [50, 0, 60, 20], [80, 0, 90, 20], [0, 40, 10, 60]], np.float32
        ),
        "labels": np.array([8, 8, 2, 8, 8]),
        "colors": np.array([RED, GREEN, -1, RED, GREEN]),
    }
    scores = LightScores(8)
    assert scores.compute() is None
    scores.add("a", truth, prediction)
    assert scores.compute() == 100.0
    prediction["labels"][2], prediction["colors"][2] = 8, RED
    scores.add("b", truth, prediction)
    assert scores.compute() == pytest.approx(100.0 * 2 / 3)
    other = LightScores(8)
    other.merge([scores.state(), scores.state()])
    assert other.compute() == scores.compute()


def test_predicted_label_files_have_the_attribute() -> None:
    prediction = {
        "boxes": torch.rand(3, 4), "scores": torch.rand(3), "labels": torch.tensor([8, 2, 8]),
        "colors": torch.tensor([RED, -1, LIGHT_COLORS.index("none")]),
    }  # fmt: skip
    labels = det20_frame("a.jpg", prediction, BDD_DETECTION)["labels"]
    said = [label.get("attributes", {}).get("trafficLightColor") for label in labels]
    assert said == ["R", None, "NA"]
    del prediction["colors"]
    assert all("attributes" not in label for label in det20_frame("a.jpg", prediction, BDD_DETECTION)["labels"])


def test_labels_say_colours_in_several_ways() -> None:
    spellings = {"G": "green", "red": "red", "Yellow": "yellow", "NA": "none", "none": "none"}
    assert {said: LIGHT_COLORS[light_color(said)] for said in spellings} == spellings
    assert [light_color(det20_light_color(color)) for color in range(4)] == [0, 1, 2, 3]
    assert light_color(None) == light_color("blue") == light_color(3) == -1
