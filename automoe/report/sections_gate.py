"""What the report says of the gate: what it is worth open loop beside other routers, and which experts run when, from
what `automoe gate` left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automoe.data.carla_hindsight import APART_FROM_TOLD, HINDSIGHT
from automoe.errors import DataError
from automoe.metrics.planning import METRIC
from automoe.report import charts
from automoe.report.parts import NONE, Part, Row, Table, part_of_file, read_object
from automoe.report.sections import as_fraction, chart
from automoe.stages.gate_report import COLLAPSED, CONSTANT, best_first

MADE_BY = "`automoe gate --out`"

ERRORS = (
    (METRIC, "planning error"),
    ("path_error", "path, m"),
    ("ade", "waypoints, m"),
    ("speed_mae", "target speed, m/s"),
)

Errors = Mapping[str, float | None]


@dataclass(frozen=True)
class Gate:
    """The content of gate.json, as `stages.gate_report.report_gate` writes it. usage: moments and shares by group
    ("weather/clear"). cost: milliseconds and GFLOPs of a whole frame by arm, on so many threads."""

    checkpoint: str
    experts: Sequence[str]
    top_k: int
    weather_told: bool
    planner: str
    errors: Mapping[str, Errors]
    loss: Mapping[str, float]
    cost: Mapping[str, Mapping[str, float]]
    threads: int
    oracle: float
    best_single: str
    best_pair: str | None
    use: Mapping[str, float]
    usage: Mapping[str, Mapping[str, float]]
    entropy: float
    largest: float
    collapsed: bool
    hindsight: bool

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Gate:
        """Raises KeyError, TypeError, ValueError or AttributeError where something is missing or no number."""
        experts = [str(name) for name in said["experts"]]
        errors = {
            str(arm): {key: None if value is None else float(value) for key, value in one.items()}
            for arm, one in said["errors"].items()
        }
        usage = {
            str(group): {key: float(one[key]) for key in ("moments", *experts)} for group, one in said["usage"].items()
        }
        if not experts:
            raise ValueError("no experts")
        return cls(
            str(said["checkpoint"]), experts, int(said["top_k"]), bool(said["weather in the context"]),
            str(said["planner"]), errors, {str(arm): float(loss) for arm, loss in said["loss"].items()},
            {
                str(arm): {key: float(one[key]) for key in ("milliseconds", "gflops")}
                for arm, one in said["cost"].items()
            },
            int(said["threads"]), float(said["oracle pair loss"]), str(said["best single"]), said["best fixed pair"],
            {name: float(said["use"][name]) for name in experts}, usage, float(said["entropy"]),
            float(said["largest share of one set"]), bool(said["collapsed"]),
            HINDSIGHT in said.get("routes", {}),
        )  # fmt: skip

    @property
    def own(self) -> str:
        """The arm of the gate as it was trained."""
        return f"learned top-{self.top_k}"


def gate_part(path: Path, command: str, named: bool) -> Part:
    """What a gate file says. command: makes that file. named: somebody asked for it, so that a DataError is raised
    where it is absent or damaged."""
    return part_of_file(
        Part("The gate", "gate"),
        path,
        f"No gate was looked into under this name: there is no {path}. To look into it: {command}",
        f"--gate: there is no {path}; name a file that {MADE_BY} left." if named else None,
        lambda part: _fill(part, read_gate(path)),
    )


def _fill(part: Part, gate: Gate) -> None:
    part.facts = _facts(gate)
    part.tables = [_arms(gate)]
    part.charts = _usage(gate)


def read_gate(path: Path) -> Gate:
    """Raises DataError, naming the file, where it isn't what `automoe gate` leaves."""
    said = read_object(path, MADE_BY)
    try:
        return Gate.from_json(said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is not what {MADE_BY} leaves ({error!r}); look into the gate again, or name another file with "
            "--gate."
        ) from error


def _facts(gate: Gate) -> list[tuple[str, str]]:
    most = math.log(len(gate.experts))
    verdict = (
        f"collapsed: one set of experts has more than {100 * COLLAPSED:.0f} % of all moments, so nothing was learnt of "
        "the moment"
        if gate.collapsed
        else f"the choice varies (collapsed would be more than {100 * COLLAPSED:.0f} % for one set)"
    )
    weather = (
        "yes: rain and darkness are told, as wipers and headlights know them"
        if gate.weather_told
        else "no: rain and darkness are not told"
    )
    told = f"in hindsight: {APART_FROM_TOLD}"
    return [
        ("checkpoint", gate.checkpoint),
        *([("routes", told)] if gate.hindsight else []),
        ("experts", f"{gate.top_k} of {len(gate.experts)} at a moment"),
        ("planner", gate.planner),
        ("weather in the context", weather),
        ("entropy", f"{gate.entropy:.2f} nats of at most {most:.2f}, the mean over moments"),
        ("commonest set", f"{100 * gate.largest:.0f} % of all moments"),
        ("verdict", verdict),
    ]


def _arms(gate: Gate) -> Table:
    """Every router, the smallest planning error first; the oracle, which has a loss alone, last."""

    tags = {gate.own: "the gate", gate.best_single: "best single", gate.best_pair: "best fixed pair"}
    rows = []
    for arm in best_first(gate.errors):
        errors = gate.errors[arm]
        told = errors.get("light_accuracy")
        cells = [
            as_fraction(gate.loss.get(arm)),
            *(as_fraction(errors.get(key)) for key, _ in ERRORS),
            # Who goes straight on says nothing of lights.
            NONE if told is None or arm == CONSTANT else f"{100 * told:.1f}",
            *_cost(gate.cost.get(arm)),
        ]
        rows.append(Row(arm, cells, (tags[arm],) if arm in tags else ()))
    rows.append(Row("oracle pair", [as_fraction(gate.oracle), *[NONE] * (len(ERRORS) + 3)], ("by hindsight",)))
    about = (
        "Open loop, over the validation set; lower is better but for the light. The planning error is the sum of the "
        "three behind it. Best single and best fixed pair were chosen by their loss on the training set. The oracle "
        "pair is the one with the smallest loss at each moment, which nobody can know. Milliseconds are medians of a "
        f"whole frame, from the picture to the plan, on {gate.threads} thread{'' if gate.threads == 1 else 's'}. "
        "Open-loop errors say little of driving."
    )
    columns = ["planning loss", *(name for _, name in ERRORS), "light told, %", "ms", "GFLOPs"]
    return Table("Who is heard, and what it costs", columns, rows, about)


def _cost(cost: Mapping[str, float] | None) -> list[str]:
    return [NONE, NONE] if cost is None else [f"{cost['milliseconds']:.0f}", f"{cost['gflops']:.2f}"]


def _usage(gate: Gate) -> list[dict[str, Any]]:
    """Who runs, over all moments and by what they are like."""
    groups: dict[str, list[charts.ShareRow]] = {}
    for group, shares in gate.usage.items():
        kind, _, value = group.partition("/")
        row = (value, [shares[name] for name in gate.experts], f"of {shares['moments']:,.0f}")
        groups.setdefault(kind, []).append(row)
    whole = [(name, 100 * share, f"{100 * share:.0f} %") for name, share in gate.use.items()]
    found = [chart("Who runs", charts.bar_chart(whole), "Share of all validation moments in which each expert runs.")]
    for kind, rows in groups.items():
        about = "In percent of the moments, which are counted on the right."
        found.append(chart(f"Who runs, by {kind}", charts.share_chart(rows, gate.experts), about))
    return found
