"""The planner's outputs and losses."""

from __future__ import annotations

import pytest
import torch
from driving_models import known, spots

from automoe.data.sequences import SequenceConfig, TargetsBatch
from automoe.errors import ConfigError
from automoe.moe.planner import USUAL_SPEED, Plan, Planner, PlannerConfig, planning_losses, route_curve, two_hot

SEQUENCE = SequenceConfig(path_metres=5, waypoint_seconds=(1.0, 2.0))


def targets(count: int, **more: torch.Tensor) -> TargetsBatch:
    ahead = torch.arange(1.0, 6.0)
    path = torch.stack([ahead, torch.zeros(5)], dim=1).expand(count, -1, -1)
    given = {
        "path": path,
        "path_known": torch.ones(count, 5, dtype=torch.bool),
        "waypoints": torch.ones(count, 2, 2),
        "waypoints_known": torch.ones(count, 2, dtype=torch.bool),
        "speed": torch.full((count,), 3.0),
        "control": torch.zeros(count, 3),
        "light": torch.zeros(count, dtype=torch.int64),
    }
    return TargetsBatch(**{**given, **more})


def test_a_speed_is_shared_by_the_two_classes_that_it_lies_between() -> None:
    classes = torch.tensor([0.0, 2.0, 4.0, 8.0])
    weights = two_hot(torch.tensor([0.0, 0.5, 4.0, 7.0, 99.0]), classes)
    expected = [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0, 0, 1, 0], [0, 0, 0.25, 0.75], [0, 0, 0, 1]]
    torch.testing.assert_close(weights, torch.tensor(expected))
    torch.testing.assert_close((weights @ classes)[:4], torch.tensor([0.0, 0.5, 4.0, 7.0]))


def outspoken() -> Planner:
    """One that has something to say: fresh planners follow the route."""
    planner = Planner(PlannerConfig(dim=32, heads=2), SEQUENCE).eval()
    for layer in (planner.off, planner.hop):
        torch.nn.init.normal_(layer.weight)
    return planner


def test_absent_tokens_change_nothing() -> None:
    planner = outspoken()
    context, tokens, places = known(2), torch.randn(2, 6, 32), spots(2, 6)
    absent = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    plan = planner(context, tokens, places, absent)
    assert plan.path.shape == (2, 5, 2)
    assert plan.waypoints.shape == (2, 2, 2)
    changed = tokens.clone()
    changed[1, 4:] += 100.0
    again = planner(context, changed, places, absent)
    torch.testing.assert_close(again.path, plan.path)
    torch.testing.assert_close(again.speed, plan.speed)
    changed[1, 3] += 1.0
    assert not torch.allclose(planner(context, changed, places, absent).path[1], plan.path[1])


def test_a_plan_begins_with_the_route_at_the_speed_that_the_car_has() -> None:
    """Before anything is learnt."""
    planner = Planner(PlannerConfig(dim=32, heads=2), SEQUENCE).eval()
    plan = planner(known(1, 6.0), torch.randn(1, 6, 32), spots(1, 6))
    torch.testing.assert_close(plan.waypoints, torch.tensor([[[6.0, 0.0], [12.0, 0.0]]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.path[0, :, 0], torch.arange(1.0, 6.0), atol=1e-4, rtol=0)


def test_a_route_suggests_a_circle_to_its_first_point() -> None:
    """Of radius 20 m, to the left; then on to the second point, and straight on beyond it."""
    angle = torch.tensor([0.4, 0.8])
    points = 20.0 * torch.stack([angle.sin(), 1 - angle.cos()], dim=-1)
    metres = torch.tensor([[0.0, 2.0, 5.0, 8.0, 16.0, 40.0, 70.0]])
    found = route_curve(points[None], metres)[0]
    bend = metres[0, :4] / 20.0
    torch.testing.assert_close(found[:4], 20.0 * torch.stack([bend.sin(), 1 - bend.cos()], dim=-1), atol=0.05, rtol=0)
    torch.testing.assert_close(found[4], points[1], atol=0.3, rtol=0)
    torch.testing.assert_close((found[6] - found[5]).norm(), torch.tensor(30.0))
    mirrored = route_curve(points[None] * torch.tensor([1.0, -1.0]), metres)[0]
    torch.testing.assert_close(mirrored, found * torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(
    "route",
    [
        [[float("nan")] * 2, [float("nan")] * 2],
        [[30.0, 0.0], [float("nan")] * 2],
        [[30.0, 0.0], [30.0, 0.0]],  # the last point, twice
        [[0.0, 0.0], [0.0, 0.0]],
        [[-5.0, 1.0], [-40.0, 3.0]],  # behind
    ],
)
def test_a_route_that_tells_little_suggests_a_way_all_the_same(route: list[list[float]]) -> None:
    metres = torch.arange(0.0, 90.0)[None]
    found = route_curve(torch.tensor([route]), metres)[0]
    assert found.isfinite().all()
    assert (found.diff(dim=0).norm(dim=-1) < 1.01).all()
    if route[0] != [-5.0, 1.0]:
        torch.testing.assert_close(found, torch.stack([metres[0], torch.zeros(90)], dim=-1), atol=0.11, rtol=0)


def test_a_planner_is_given_no_summary_of_the_picture() -> None:
    planner = outspoken()
    context, tokens, places = known(1), torch.randn(1, 6, 32), spots(1, 6)
    plan = planner(context, tokens, places)
    other = planner(context._replace(vector=context.vector + 1.0), tokens, places)
    torch.testing.assert_close(other.path, plan.path)
    assert not torch.allclose(planner(context._replace(state=torch.randn(1, 32)), tokens, places).path, plan.path)


def test_a_planner_hears_where_tokens_speak_of() -> None:
    """The path by their place on the ground; how fast by their place beside that path, too."""
    planner = outspoken()
    context, tokens, places = known(1), torch.randn(1, 6, 32), spots(1, 6)
    plan = planner(context, tokens, places)
    moved = planner(context, tokens, places + 3.0)
    assert not torch.allclose(moved.path, plan.path)
    assert not torch.allclose(moved.speed, plan.speed)
    torch.nn.init.zeros_(planner.place[0].weight)  # deaf to places, but for those beside the path
    torch.nn.init.constant_(planner.near, 20.0)
    torch.testing.assert_close(planner(context, tokens, places + 3.0).path, planner(context, tokens, places).path)
    assert not torch.allclose(planner(context, tokens, places + 3.0).speed, planner(context, tokens, places).speed)


def test_who_is_not_told_its_speed_begins_at_a_usual_one() -> None:
    planner = Planner(PlannerConfig(dim=32, heads=2), SEQUENCE).eval()
    plan = planner(known(1, float("nan")), torch.randn(1, 6, 32), spots(1, 6))
    expected = torch.tensor([[[USUAL_SPEED, 0.0], [2 * USUAL_SPEED, 0.0]]])
    torch.testing.assert_close(plan.waypoints, expected, atol=1e-4, rtol=0)


def test_what_is_not_known_teaches_nothing() -> None:
    planner = Planner(PlannerConfig(dim=32, heads=2), SEQUENCE)
    plan = planner(known(2), torch.randn(2, 3, 32), spots(2, 3))
    whole = planning_losses(plan, targets(2), planner)
    unknown = targets(
        2,
        path_known=torch.stack([torch.ones(5), torch.zeros(5)]).bool(),
        waypoints_known=torch.stack([torch.ones(2), torch.zeros(2)]).bool(),
        speed=torch.tensor([3.0, float("nan")]),
        light=torch.tensor([0, -1]),
    )
    losses = planning_losses(plan, unknown, planner)
    for key in ("path", "waypoints", "speed", "light", "loss"):
        torch.testing.assert_close(losses[key][0], whole[key][0])
        assert losses[key][1] == 0.0
    assert losses["loss"].isfinite().all()


def test_every_loss_falls_towards_its_target() -> None:
    planner = Planner(PlannerConfig(dim=32, heads=2), SEQUENCE)
    wanted = targets(1)
    logits = torch.full((1, len(planner.config.speeds)), -20.0)
    logits[0, 2:4] = 0.0  # half of 2 m/s and half of 4 m/s are 3 m/s
    light = torch.full((1, 4), -20.0)
    light[0, 0] = 20.0
    right = Plan(wanted.path, wanted.waypoints, logits, torch.tensor([3.0]), light)
    wrong = Plan(wanted.path + 1.0, wanted.waypoints - 1.0, -logits, torch.tensor([0.0]), -light)
    best, worst = planning_losses(right, wanted, planner), planning_losses(wrong, wanted, planner)
    assert best["path"] == 0.0
    assert best["waypoints"] == 0.0
    for key in best:
        assert best[key] < worst[key]


def test_a_few_steps_of_training_learn_a_plan() -> None:
    torch.manual_seed(0)
    planner = Planner(PlannerConfig(dim=32, heads=2, dropout=0.0), SEQUENCE)
    context, tokens, places = known(4), torch.randn(4, 6, 32), spots(4, 6)
    wanted = targets(4, path=torch.randn(4, 5, 2).cumsum(1), speed=torch.tensor([0.0, 1.0, 5.0, 9.0]))
    optimizer = torch.optim.AdamW(planner.parameters(), 3e-3)
    for _ in range(400):
        loss = planning_losses(planner(context, tokens, places), wanted, planner)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plan = planner(context, tokens, places)
    assert (plan.path - wanted.path).abs().mean() < 0.3
    assert (plan.speed - wanted.speed).abs().max() < 0.5


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(ConfigError, match=r"planner\.speeds"):
        PlannerConfig(speeds=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"planner\.dim"):
        PlannerConfig(dim=30)
