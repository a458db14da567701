"""The assembled model: who isn't chosen isn't run, who is frozen stays so, and one file is enough."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from driving_models import CAMERA, experts, model, observation, specs

from automoe.engine import checkpoint
from automoe.errors import CheckpointError, ConfigError
from automoe.moe.cache import CachedTokens, TokenCache, fill
from automoe.moe.checkpoint import load_driving_model
from automoe.moe.context import ContextEncoder
from automoe.moe.model import DrivingConfig, DrivingModel
from automoe.moe.routers import drawn, fixed, given, learned, named, uniform
from automoe.moe.tokens import LiveTokens

ALL = ("detection", "drivable", "segmentation", "nuscenes_2d")


def test_experts_that_are_not_chosen_are_not_run() -> None:
    driver, seen = model(*ALL, top_k=2).eval(), observation(5)
    source = LiveTokens(driver.experts)
    ran: dict[str, int] = dict.fromkeys(ALL, 0)
    for name, expert in driver.experts.items():
        expert.model.register_forward_hook(lambda *_, name=name: ran.__setitem__(name, ran[name] + 1))
    _, routing = driver(seen, source)
    assert routing is not None
    wanted = dict(zip(ALL, routing.chosen.sum(0).tolist()))
    assert source.calls == wanted
    assert {name: count > 0 for name, count in wanted.items()} == {name: count > 0 for name, count in ran.items()}
    assert routing.chosen.sum().item() == 10
    # An expert looks once, at all the moments that chose it.
    assert all(count <= 1 for count in ran.values())


def test_a_moment_in_a_batch_is_planned_as_it_is_alone() -> None:
    driver, seen = model(*ALL).eval(), observation(4)
    together, routing = driver(seen)
    for row in range(4):
        one = type(seen)(*(value[row : row + 1] for value in seen))
        alone, own = driver(one)
        torch.testing.assert_close(own.chosen[0], routing.chosen[row])
        torch.testing.assert_close(alone.path[0], together.path[row], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(alone.speed[0], together.speed[row], rtol=1e-3, atol=1e-4)


def test_an_expert_that_is_heard_is_heard() -> None:
    driver, seen = model(*ALL).eval(), observation(2)
    nobody = torch.zeros(2, 4, dtype=torch.bool)
    plans = [driver(seen, None, given(nobody))[0].speed_logits]
    for place in range(4):
        chosen = nobody.clone()
        chosen[:, place] = True
        plans.append(driver(seen, None, given(chosen))[0].speed_logits)
    for one in range(5):
        for other in range(one):
            assert not torch.allclose(plans[one], plans[other], atol=1e-6)


def test_without_the_map_only_experts_see() -> None:
    """The gate still chooses by the stem's picture; what is planned depends on a picture through experts alone."""
    shape = model(*ALL).config
    torch.manual_seed(0)
    driver = DrivingModel(replace(shape, context=replace(shape.context, map_to_planner=False)), experts(*ALL)).eval()
    torch.nn.init.normal_(driver.planner.off.weight, std=0.2)
    seen = observation(2)
    other = seen._replace(image=255 - seen.image)
    nobody = given(torch.zeros(2, 4, dtype=torch.bool))
    plan, routing = driver(seen, None, nobody)
    blind, changed = driver(other, None, nobody)
    assert torch.equal(plan.path, blind.path)
    assert torch.equal(plan.speed_logits, blind.speed_logits)
    assert not torch.equal(routing.logits, changed.logits)
    heard = given(torch.tensor([[True, False, False, False]] * 2))
    pictures = seen._replace(pictures=[255 - picture for picture in seen.pictures])
    assert not torch.allclose(driver(seen, None, heard)[0].path, driver(pictures, None, heard)[0].path)


def test_gate_and_waypoints_know_how_fast_the_car_is_and_path_and_speed_do_not() -> None:
    """Who sees how fast it is learns to go on like that."""
    driver, seen = model(*ALL).eval(), observation(2)
    nobody = given(torch.zeros(2, 4, dtype=torch.bool))
    faster = seen._replace(motion=seen.motion + 3.0)
    plan, routing = driver(seen, None, nobody)
    other, changed = driver(faster, None, nobody)
    assert torch.equal(plan.speed_logits, other.speed_logits)
    assert torch.equal(plan.path, other.path)
    assert not torch.equal(plan.waypoints, other.waypoints)
    assert not torch.equal(routing.logits, changed.logits)
    shape = driver.config
    told = DrivingModel(
        replace(shape, context=replace(shape.context, motion_to_planner=True)), experts(*ALL)
    ).eval()  # fmt: skip
    assert not torch.equal(told(seen, None, nobody)[0].speed_logits, told(faster, None, nobody)[0].speed_logits)


def test_in_training_the_gate_is_told_the_motion_of_other_moments_and_nobody_else_is() -> None:
    shape = model(*ALL).config.context
    shape, seen = replace(shape, speed_dropout=0.0, ambient_dropout=0.0), observation(64)
    driver = ContextEncoder(shape, 32, 0, CAMERA)
    own = driver.eval()(seen)
    driver.training = True
    swapped = driver(seen)
    assert torch.equal(own.moving, swapped.moving)
    assert torch.equal(own.state, swapped.state)
    assert torch.equal(own.speed, swapped.speed)
    changed = (own.vector != swapped.vector).any(dim=-1).float().mean()
    assert 0.25 < changed < 0.75


def test_who_looks_at_pictures_needs_the_camera() -> None:
    shape = model("drivable").config
    with pytest.raises(ConfigError, match="experts needs the camera"):
        DrivingModel(replace(shape, camera=None, context=replace(shape.context, map_to_planner=False)))
    with pytest.raises(ConfigError, match="needs the camera"):
        DrivingModel(replace(model().config, camera=None))


def test_frozen_experts_stay_bit_identical_in_eval_mode_and_without_gradients() -> None:
    driver = model("detection", "drivable", top_k=2)
    # A batch norm that trains would drift at every forward: it must not even in `train()`.
    driver.train()
    assert not any(module.training for expert in driver.experts.values() for module in expert.modules())
    before = copy.deepcopy(driver.experts.state_dict())
    trainable = [p for p in driver.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-2, weight_decay=0.1)
    for step in range(3):
        plan, _ = driver(observation(2, step))
        (plan.path.sum() + plan.speed.sum()).backward()
        optimizer.step()
    assert all(p.grad is None for p in driver.experts.parameters())
    after = driver.experts.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_gate_learns_from_the_planning_loss() -> None:
    driver = model(*ALL)
    plan, _ = driver(observation(4))
    plan.speed.sum().backward()
    assert driver.gate is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in driver.gate.parameters())


def test_the_cache_gives_what_the_experts_give(tmp_path: Path) -> None:
    own = experts("detection", "drivable")
    driver, seen = model("detection", "drivable", own=own).eval(), observation(3)
    cache, keys = TokenCache(tmp_path / "tokens"), [bytes([row]) * 32 for row in range(3)]
    digests = {name: expert.digest() for name, expert in own.items()}
    for name, expert in own.items():
        assert fill(cache, digests[name], expert, keys, lambda place: seen.pictures[place]) == 3
        assert fill(cache, digests[name], expert, keys, lambda place: seen.pictures[place]) == 0
    cached = seen._replace(pictures=keys)
    live, _ = driver(seen)
    plan, _ = driver(cached, CachedTokens(cache, digests))
    torch.testing.assert_close(plan.path, live.path, rtol=1e-2, atol=1e-2)  # kept in half precision
    torch.testing.assert_close(plan.speed, live.speed, rtol=1e-2, atol=1e-2)


def test_another_expert_has_another_name() -> None:
    first, again = experts("drivable")["drivable"], experts("drivable")["drivable"]
    assert first.digest() == again.digest()
    with torch.no_grad():
        next(again.parameters())[0] += 1e-3
    assert first.digest() != again.digest()


def test_nothing_but_its_file_is_needed(tmp_path: Path) -> None:
    driver, seen = model("detection", "segmentation", top_k=1).eval(), observation(2)
    payload = {
        "component": "gating_network", "model": driver.state_dict(), "model_config": driver.config.plain(),
        "rig": {"cameras": {}},
    }  # fmt: skip
    checkpoint.save(tmp_path / "best.pth", payload)
    loaded = load_driving_model(tmp_path / "best.pth")
    assert loaded.model.config == driver.config
    before, after = driver(seen), loaded.model(seen)
    torch.testing.assert_close(after[0].path, before[0].path, rtol=0, atol=0)
    torch.testing.assert_close(after[1].weights, before[1].weights, rtol=0, atol=0)
    checkpoint.save(tmp_path / "other.pth", {**payload, "component": "carla_detection_expert_ddp"})
    with pytest.raises(CheckpointError, match="no checkpoint that drives"):
        load_driving_model(tmp_path / "other.pth")
    del payload["model"]["gate.score.1.weight"]
    checkpoint.save(tmp_path / "broken.pth", payload)
    with pytest.raises(CheckpointError, match=r"gate\.score\.1\.weight"):
        load_driving_model(tmp_path / "broken.pth")


def test_a_policy_without_experts_has_no_gate() -> None:
    driver = model().eval()
    plan, routing = driver(observation(2))
    assert routing is None
    assert plan.path.shape == (2, 6, 2)
    assert driver.gate is None


def test_experts_and_config_must_agree() -> None:
    with pytest.raises(ConfigError, match="where the config names"):
        DrivingModel(DrivingConfig(specs("detection"), camera=CAMERA), experts("drivable"))
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        DrivingConfig.from_plain({"gate": {"topk": 2}})


def test_routers_choose_what_they_say() -> None:
    driver, seen = model(*ALL, top_k=2).eval(), observation(6)
    _, own = driver(seen)
    _, one = driver(seen, None, learned(1))
    assert (one.chosen.sum(1) == 1).all()
    assert (one.chosen & own.chosen).sum() == 6  # the best of the two best
    _, everyone = driver(seen, None, uniform())
    torch.testing.assert_close(everyone.weights, torch.full((6, 4), 0.25))
    _, pair = driver(seen, None, fixed(["drivable", "nuscenes_2d"], ALL))
    assert pair.chosen.tolist() == [[False, True, False, True]] * 6
    _, first = driver(seen, None, drawn(2, 5))
    _, again = driver(seen, None, drawn(2, 5))
    assert torch.equal(first.chosen, again.chosen)
    assert (first.chosen.sum(1) == 2).all()
    assert len({tuple(row) for row in first.chosen.tolist()}) > 1
    with pytest.raises(ConfigError, match="no expert 'lanes'"):
        fixed(["lanes"], ALL)
    with pytest.raises(ConfigError, match="policy without any"):
        named("uniform", ())
