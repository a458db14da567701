"""The gate: what it chooses, and that every loss pulls the way it should."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from automoe.data.sequences import TargetsBatch
from automoe.errors import ConfigError
from automoe.moe.context import Context
from automoe.moe.gate import Gate, GateConfig, Routing, balance_loss, random_choice, utility_loss
from automoe.stages import planning


def routed(logits: torch.Tensor, **config) -> Routing:
    return Gate(GateConfig(**config), 8, logits.shape[1]).route(logits)


def test_the_best_ones_are_chosen_and_share_the_weight() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0], [5.0, 0.0, 0.0, 4.0]])
    routing = routed(logits, top_k=2)
    assert routing.chosen.tolist() == [[False, True, True, False], [True, False, False, True]]
    torch.testing.assert_close(routing.weights[0, 1:3], torch.tensor([3.0, 2.0]).softmax(0))
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(2))
    torch.testing.assert_close(routing.probabilities, logits.softmax(1))


def test_a_lower_temperature_is_more_decided() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]])
    sure, unsure = (routed(logits, top_k=1, temperature=t).probabilities.max() for t in (0.3, 3.0))
    assert sure > 0.8 > 0.5 > unsure


def test_who_is_told_whom_to_hear_hears_them() -> None:
    gate = Gate(GateConfig(top_k=1), 8, 3)
    chosen = torch.tensor([[True, False, True], [False, False, False]])
    routing = gate(torch.randn(2, 8), chosen)
    assert torch.equal(routing.chosen, chosen)
    assert torch.equal(routing.weights > 0, chosen)
    assert routing.weights.isfinite().all()


def test_the_balance_loss_is_least_for_even_use_and_falls_when_use_evens_out() -> None:
    even, lonely = torch.zeros(8, 4), torch.zeros(8, 4)
    for row in range(8):
        even[row, row % 4] = 9.0
    lonely[:, 2] = 9.0
    assert balance_loss(routed(even, top_k=1)) == pytest.approx(1.0, abs=0.01)
    assert balance_loss(routed(lonely, top_k=1)) == pytest.approx(4.0, abs=0.01)
    logits = nn.Parameter(torch.tensor([[0.0, 0.1, 1.0, 0.0]]).repeat(16, 1))
    balance_loss(routed(logits, top_k=1)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 2] > 0).all()  # going down the gradient makes the busy one less likely
    assert (logits.grad[:, [0, 1, 3]] < 0).all()


def test_the_utility_loss_makes_the_useful_one_likelier() -> None:
    utility = torch.tensor([[0.0, 0.4, -0.2]])
    logits = nn.Parameter(torch.zeros(1, 3))
    optimizer = torch.optim.SGD([logits], 1.0)
    first = utility_loss(logits, utility, 0.1)
    for _ in range(50):
        optimizer.zero_grad()
        loss = utility_loss(logits, utility, 0.1)
        loss.backward()
        optimizer.step()
    assert loss < first
    assert logits.argmax() == 1
    assert logits.argmin() == 2


def test_a_seldom_moment_at_which_much_depends_on_the_choice_outweighs_many_at_which_nothing_does() -> None:
    # Nineteen times the second is worth a little more; once the first is worth very much more.
    utility = torch.tensor([[0.0, 0.03]] * 19 + [[3.0, 0.0]])
    logits = nn.Parameter(torch.zeros(2))
    utility_loss(logits.expand(20, 2), utility, 0.05).backward()
    assert logits.grad is not None
    assert logits.grad[0] < 0.0 < logits.grad[1]


def test_what_is_drawn_is_from_none_to_k_and_nobody_is_preferred() -> None:
    drawn = random_choice(6000, 4, 2, torch.device("cpu"), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn.sum(1), minlength=5)
    assert counts[3:].sum() == 0
    assert ((counts[:3] / 6000 - 1 / 3).abs() < 0.03).all()
    assert ((drawn.float().mean(0) - 0.25).abs() < 0.03).all()


def test_settings_are_checked_by_name() -> None:
    for wrong, named in (
        ({"supervision": "oracle"}, "gate.supervision"),
        ({"temperature": 0.0}, "gate.temperature"),
        ({"top_k": 0}, "gate.top_k"),
        ({"explore": 1.5}, "gate.explore"),
        ({"hold_share": -0.1}, "gate.hold_share"),
        ({"hold_seconds": -1.0}, "gate.hold_seconds"),
        ({"revisit": float("nan")}, "gate.revisit"),
    ):
        with pytest.raises(ConfigError, match=named):
            GateConfig(**wrong)
    with pytest.raises(ConfigError, match="there are 3 experts"):
        Gate(GateConfig(top_k=4), 8, 3)


def test_close_calls_are_made_in_full_precision() -> None:
    gate = Gate(GateConfig(top_k=1), 8, 4).eval()
    context = torch.randn(4, 8)
    plain = gate(context).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(gate.score(context).float(), plain)  # what autocast would make of it
        assert torch.equal(gate(context).logits, plain)


def test_of_two_experts_that_say_the_same_neither_is_worth_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of the first two lowers the loss by 0.5, both by no more; the third by 0.3 whoever else is heard."""

    class Model(torch.nn.Module):
        names = ("one", "again", "other")

        def __init__(self) -> None:
            super().__init__()
            self.planner = torch.nn.Identity()
            self.gate = Gate(GateConfig(top_k=2), 8, 3)

        def decide(self, context: Any, pictures: Any, source: Any, router: Any) -> tuple[torch.Tensor, None]:
            chosen = router(self.gate, context.vector).chosen.float()
            assert len(chosen) == len(pictures) == len(context.vector) == 2 * 3 * 200
            assert (chosen.sum(dim=1) <= 2).all()
            return 1.0 - 0.5 * chosen[:, :2].amax(dim=1) - 0.3 * chosen[:, 2], None

    monkeypatch.setattr(planning, "planning_losses", lambda plan, targets, planner: {"loss": plan})
    count = 240
    context = Context(*(torch.zeros(count, 8) for _ in Context._fields))
    targets = TargetsBatch(*(torch.zeros(count) for _ in TargetsBatch._fields))
    batch = {"observation": SimpleNamespace(pictures=[None] * count), "targets": targets}
    utility = planning.measured_utility(Model(), context, None, batch, 200).mean(dim=0)  # type: ignore[arg-type]
    torch.testing.assert_close(utility, torch.tensor([0.25, 0.25, 0.3]), atol=0.06, rtol=0)
