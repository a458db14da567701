"""Which light holds the car is learnt; what colour it has is told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from driving_models import known, model, observation, spots

from automoe.data.sequences import SequenceConfig
from automoe.moe.lights import LightPointer, Votes
from automoe.moe.planner import Planner, PlannerConfig
from automoe.moe.routers import fixed
from automoe.moe.tokens import LiveTokens

SEQUENCE = SequenceConfig(path_metres=5, waypoint_seconds=(1.0, 2.0))
NONE, GREEN, YELLOW, RED = range(4)


def scene(mine: int, other: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor, Votes]:
    """States, tokens and votes: of three tokens the first is the car's light, known by its first number; the second is
    another light, the third is none."""
    tokens = torch.randn(count, 3, 16) * 0.1
    tokens[:, 0, 0], tokens[:, 1, 1], tokens[:, 2, 2] = 2.0, 2.0, 2.0
    colors = torch.zeros(count, 3, 4)
    colors[:, 0, mine] = colors[:, 1, other] = 0.9
    order = torch.randperm(3)
    return torch.zeros(count, 16), tokens[:, order], Votes(colors[:, order], torch.ones(count, 3, dtype=torch.bool))


def trained() -> LightPointer:
    """One that has always seen its own light red, and the other one green."""
    torch.manual_seed(0)
    pointer = LightPointer(16)
    optimizer = torch.optim.Adam(pointer.parameters(), 0.01)
    for _ in range(200):
        loss = F.cross_entropy(pointer(*scene(RED, GREEN)), torch.full((8,), RED))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2
    return pointer


def test_a_color_that_was_never_seen_at_a_place_is_believed_there() -> None:
    pointer = trained()
    for color in (GREEN, YELLOW, RED):
        assert (pointer(*scene(color, RED)).argmax(dim=1) == color).all()


def test_where_its_light_is_not_told_the_other_one_does_not_count() -> None:
    """What is learnt of a token that tells nothing holds there."""
    pointer, (state, tokens, votes) = trained(), scene(RED, GREEN)
    silent = votes.colors.clone()
    silent[votes.colors[..., RED] > 0.0] = 0.0
    logits = pointer(state, tokens, votes._replace(colors=silent))
    unsaid = pointer.sharpness * pointer.unsaid.log_softmax(dim=0)
    torch.testing.assert_close(logits.softmax(dim=1), unsaid.softmax(dim=0).expand(8, -1), atol=0.1, rtol=0)


def test_tokens_of_others_and_padding_are_not_pointed_at() -> None:
    pointer, (state, tokens, votes) = trained(), scene(RED, GREEN, count=2)
    told = votes.told.clone()
    told[0] &= votes.colors[0, :, RED] == 0.0  # of the first moment, all but the red one
    logits = pointer(state, tokens, votes._replace(told=told))
    assert logits[1].argmax() == RED
    assert logits[0, RED] < logits[1, RED]
    loud = votes.colors.clone()
    loud[0][~told[0]] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert torch.equal(pointer(state, tokens, Votes(loud, told)), logits)


def test_a_target_speed_hears_the_light_and_a_path_does_not() -> None:
    torch.manual_seed(0)
    planner = Planner(PlannerConfig(dim=32, heads=2), SEQUENCE, told_lights=True).eval()
    context, tokens, places = known(1), torch.randn(1, 6, 32), spots(1, 6)
    told = torch.tensor([[False, True, True, True, True, True]])
    plans = []
    for color in (GREEN, RED):
        colors = torch.zeros(1, 6, 4)
        colors[:, 1:, color] = 0.9
        plans.append(planner(context, tokens, places, None, Votes(colors, told)))
        assert int(plans[-1].light_logits.argmax()) == color
    green, red = plans
    assert not torch.allclose(green.speed_logits, red.speed_logits, atol=1e-3)
    assert torch.equal(green.path, red.path)


def test_who_is_told_nothing_guesses() -> None:
    """A moment of a batch at which nobody tells is planned as if there were nobody who could."""
    torch.manual_seed(0)
    planner = Planner(PlannerConfig(dim=32, heads=2), SEQUENCE, told_lights=True).eval()
    context, tokens, places = known(2), torch.randn(2, 6, 32), spots(2, 6)
    colors = torch.zeros(2, 6, 4)
    colors[:, 2, RED] = 0.9
    told = torch.zeros(2, 6, dtype=torch.bool)
    told[1, 2] = True
    guessed = planner(context, tokens, places)
    mixed = planner(context, tokens, places, None, Votes(colors, told))
    torch.testing.assert_close(mixed.light_logits[0], guessed.light_logits[0])
    torch.testing.assert_close(mixed.speed_logits[0], guessed.speed_logits[0])
    assert not torch.allclose(mixed.light_logits[1], guessed.light_logits[1])


@pytest.mark.parametrize("names", [("drivable", "detection"), ("detection", "segmentation")])
def test_votes_are_what_the_detection_expert_tells(names: tuple[str, ...]) -> None:
    driver, seen = model(*names, top_k=1).eval(), observation(2)
    source = LiveTokens(driver.experts)
    context = driver.context(seen)
    assert driver.gate is not None
    for heard in (names, ("detection",)):
        routing = fixed(heard, names)(driver.gate, context.vector)
        _, _, _, votes = driver.hear(context, seen.pictures, routing, source)
        assert votes is not None
        wanted = source("detection", seen.pictures).features
        rows = votes.told[0].nonzero().flatten()
        assert len(rows) == wanted.shape[1]
        torch.testing.assert_close(votes.colors[:, rows], wanted[..., -4:])
        assert not votes.colors[~votes.told].any()
        assert (votes.colors.sum(dim=-1) <= 1.0 + 1e-5).all()
    alone = fixed([name for name in names if name != "detection"], names)(driver.gate, context.vector)
    assert driver.hear(context, seen.pictures, alone, source).votes is None


def test_without_experts_that_tell_lights_there_is_no_pointer() -> None:
    assert model("drivable", top_k=1).planner.pointer is None
    assert model().planner.pointer is None
    assert model("detection", top_k=1).planner.pointer is not None
