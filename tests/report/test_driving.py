"""The report's part on driving: scores with their intervals, films, the gate, and how what drives was trained."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from driving_models import model

from automoe import cli
from automoe.drive.evaluation import DriveResult, behind, summarise_driver, write_results
from automoe.drive.leaderboard import RouteRecord
from automoe.drive.video import video_file
from automoe.engine import checkpoint
from automoe.errors import DataError
from automoe.report import sections_driving
from automoe.report.charts import Mean, interval_chart, share_chart
from automoe.report.html import write_report
from automoe.report.sections_driving import Driver, clearly_best

RUN = "tiny"
COLLISION = "Agent collided against object with type=vehicle.car and id=7 at (x=1.0, y=2.0, z=0.0)"
COMPLETION = {"policy": {0: 90.0, 1: 80.0}, "teacher": {0: 100.0, 1: 100.0}}
"""Of both routes of a seed; in policy's first route it hits a car."""


def write_drives(folder: Path, seeds: Sequence[int] = (0, 1), simulator: str = "embedded") -> dict[str, Any]:
    """Two drivers on two routes of 250 m, as `automoe drive` leaves them. Returns the content of summary.json."""
    summaries, first = {}, []
    for name, completion in COMPLETION.items():
        results = []
        for seed in seeds:
            for route in (0, 1):
                hit = {"collisions_vehicle": [COLLISION]} if (name, route) == ("policy", 0) else {}
                record = RouteRecord(f"RouteScenario_{route}_rep{seed}", completion[seed], hit, 250.0, 60.0)
                use = {"detection": 0.75, "drivable": 0.25} if name == "policy" else {}
                trouble = {"dead camera": 3} if (name, route, seed) == ("policy", 1, 0) else {}
                results.append(
                    DriveResult(
                        name, route, seed, record.to_json(0), 600, 0.0312, 0.03, 4, trouble, use, 2.5 + route, "0"
                    )
                )
        told = {"checkpoint": "gate/best.pth"} if name == "policy" else {}
        first = first or results
        lost = {} if results is first else {"behind_first": behind(first, results)}
        summaries[name] = {**told, **summarise_driver(results, 2, seeds), **lost}
        write_results(results, 2 * len(seeds), folder / name / "results.json")
    said = {
        "routes": {"from": "generated", "count": 2, "length": 251.4, "towns": ["carla-val-01", "carla-val-02"]},
        "seeds": list(seeds), "leaderboard": "2.0", "simulator": simulator, "commit": "0123456789abcdef", "dirty": True,
        "drivers": summaries,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(said))
    return said


def write_film(path: Path) -> bytes:
    with video_file(path, (32, 64)) as add:
        for shade in (0, 120, 240):
            add(np.full((32, 64, 3), shade, np.uint8))
    return path.read_bytes()


def write_gate(path: Path, **more: Any) -> dict[str, Any]:
    """What `automoe gate` leaves of a gate on two experts."""

    def errors(path_error: float) -> dict[str, float]:
        parts = {"path_error": path_error, "ade": 0.5, "speed_mae": 0.25, "light_accuracy": 0.912}
        return {**parts, "planning_error": path_error + 0.75}

    arms = {
        "learned top-1": 0.2,
        "detection": 0.4,
        "drivable": 0.3,
        "detection+drivable": 0.1,
        "constant velocity": 3.0,
    }
    said = {
        "checkpoint": "gate/best.pth", "experts": ["detection", "drivable"], "top_k": 1,
        "weather in the context": True, "planner": "one for all arms; none trained anew",
        "errors": {arm: errors(error) for arm, error in arms.items()},
        "loss": {arm: 1.0 + error for arm, error in arms.items() if arm != "constant velocity"},
        "cost": {"learned top-1": {"milliseconds": 41.3, "gflops": 1.234}}, "threads": 2,
        "oracle pair loss": 0.987, "best single": "drivable", "best fixed pair": "detection+drivable",
        "use": {"detection": 0.62, "drivable": 0.38},
        "usage": {
            "weather/clear": {"moments": 70, "detection": 0.9, "drivable": 0.1},
            "weather/rainy": {"moments": 30, "detection": 0.05, "drivable": 0.95},
            "light/red": {"moments": 12, "detection": 0.5, "drivable": 0.5},
        },
        "entropy": 0.44, "largest share of one set": 0.62, "collapsed": False, **more,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said))
    return said


def write_run(output: Path, component: str, *names: str, steps: Sequence[int] = (10, 20), **more: Any) -> Path:
    """A run of what drives, with the errors of its evaluations."""
    driver = model(*names)
    folder = output / "models" / "checkpoints" / component / RUN
    lines = []
    for step in steps:
        parts = {"path_error": 4 / step, "ade": 8 / step, "speed_mae": 2 / step}
        metrics = {**parts, "planning_error": sum(parts.values()), "light_accuracy": 1 - 1 / step}
        lines.append({"step": step, "metrics": metrics, "losses": {"loss": 30 / step}})
    payload = {
        "component": component, "model": driver.state_dict(), "model_config": driver.config.plain(),
        "metrics": lines[-1]["metrics"], "progress": {"step": steps[-1], "total_steps": 20}, "seed": 5,
        "towns": ["carla-train-01"], "recipe": {"hold": []}, **more,
    }  # fmt: skip
    checkpoint.save(folder / "best.pth", payload)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {"seconds": 61.0, "images_per_second": 12.5}
    (folder / "manifest.json").write_text(json.dumps({"state": "finished", "command": "train --x 1", "result": result}))
    return folder


def report(output: Path, **more: Any) -> str:
    """The page of everything under a folder, written into its reports/."""
    return write_report(
        output, output / "none", output / "reports" / "r.html", run_name=RUN, device="cpu", **more
    ).read_text()


def section(page: str, anchor: str) -> str:
    return page[page.index(f'<section id="{anchor}">') :].split("</section>")[0]


def rows(part: str) -> dict[str, list[str]]:
    """A section's first table: cells as text, by the name in its first column with its tags."""
    body = part[part.index("<tbody>") :].split("</tbody>")[0]
    found = {}
    for line in re.findall(r"<tr>(.*?)</tr>", body, re.S):
        cells = [re.sub(r"<[^>]+>", "|", cell).strip("|") for cell in re.findall(r"<td[^>]*>(.*?)</td>", line, re.S)]
        found[cells[0]] = [html.unescape(cell) for cell in cells[1:]]
    return found


def test_every_driver_has_its_row_with_intervals_and_what_ran(tmp_path: Path) -> None:
    said = write_drives(tmp_path / "reports" / "drive" / RUN)
    page = report(tmp_path)
    part = section(page, "driving")
    policy = said["drivers"]["policy"]
    seeds = [(0.6 * 90 + 90) / 2, (0.6 * 80 + 80) / 2]
    half = 12.706 * (seeds[0] - seeds[1]) / 2
    driven = 2 * 0.25 * (0.9 + 0.8)
    assert "<dt>checkpoint of policy</dt><dd>gate/best.pth</dd>" in part
    assert rows(part)["policy"] == [
        f"68.0 ± {half:.1f}", "72.0 · 64.0", "–", "85.0", "0", "0.00", f"{2 / driven:.2f}", "0.00", "0.00", "0.00",
        "0.0", "3.00", "31.2", "16 of 2,400", "dead camera: 3",
    ]  # fmt: skip
    assert policy["half_width"] == pytest.approx(half, abs=0.01)
    lost = np.array([100 - 0.6 * 90, 100 - 90, 100 - 0.6 * 80, 100 - 80])
    paired = f"{-lost.mean():.1f} ± {3.182 * lost.std(ddof=1) / 2:.1f}"
    assert rows(part)["teacher"][:3] == ["100.0 ± 0.0", "100.0 · 100.0", paired]
    for fact in ("2, drawn, 251 m long on average, in carla-val-01, carla-val-02", "2 (0, 1): 4 drives a driver",
                 "CARLA leaderboard 2.0", "0123456789ab with uncommitted changes"):  # fmt: skip
        assert fact in part
    assert 'class="strong"' not in part, "policy's interval reaches the teacher's"
    assert "infinite" not in part
    assert part.count('class="whisker"') == 2 * 3 - 1, "the upper end of the policy's is cut off"
    assert part.count('class="single"') == 4
    assert "Experts that ran: policy" in part
    assert "Experts that ran: teacher" not in part
    assert ">75 %<" in part
    assert '<p class="big">68.0</p>' in page
    assert page.count('<div class="card">') == 1
    assert "no number here says anything about CARLA" in part
    assert "no number here" not in section(_on_a_server(tmp_path), "driving")
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("#") for link in links), "nothing is loaded from elsewhere"
    assert "http" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)


def _on_a_server(output: Path) -> str:
    write_drives(output / "reports" / "drive" / RUN, simulator="carla")
    return report(output)


def test_one_seed_has_no_interval_and_no_winner(tmp_path: Path) -> None:
    write_drives(tmp_path / "drives", seeds=(0,))
    part = section(report(tmp_path, drives=tmp_path / "drives"), "driving")
    assert rows(part)["policy"][0] == "72.0"
    assert "the intervals are infinite" in part
    assert 'class="strong"' not in part
    assert 'class="whisker"' not in part


def scored(name: str, score: float, half: float) -> Driver:
    return Driver(name, score, half, {}, 0.0, 0.0, {}, 0.0, 0.0, 0.0, 1, 0, {}, {}, {})


def test_drives_that_broke_off_and_ways_outside_the_lanes_are_in_the_table(tmp_path: Path) -> None:
    said = write_drives(tmp_path / "drives")
    said["drivers"]["policy"] |= {"broken_off": {"Simulation crashed": 2}, "kilometres": 0.8}
    said["drivers"]["policy"]["per_km"]["outside_route_lanes"] = 0.1
    (tmp_path / "drives" / "summary.json").write_text(json.dumps(said))
    row = rows(section(report(tmp_path, drives=tmp_path / "drives"), "driving"))["policy"]
    assert row[10] == "12.5"
    assert row[-1] == "dead camera: 3, drives lost, simulation crashed: 2"


def test_only_who_lies_above_all_others_is_the_best() -> None:
    assert clearly_best([scored("a", 50, 4), scored("b", 60, 5)]) == "b"
    assert clearly_best([scored("a", 50, 6), scored("b", 60, 5)]) is None
    assert clearly_best([scored("a", 50, 1), scored("b", 60, math.inf)]) is None
    assert clearly_best([scored("a", 50, math.inf), scored("b", 60, 1)]) is None
    assert clearly_best([scored("a", 50, 1)]) is None


def test_two_films_are_part_of_the_page_and_more_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "reports" / "drive" / RUN
    write_drives(folder)
    names = [f"policy_RouteScenario_{route}_rep0.mp4" for route in (0, 1)]
    films = [write_film(folder / "videos" / name) for name in (*names, "policy_RouteScenario_9 9_rep0.mp4")]
    page = report(tmp_path)
    part = section(page, "driving")
    sources = re.findall(r'<video controls[^>]* src="data:video/mp4;base64,([^"]*)"', part)
    assert [base64.b64decode(source) for source in sources] == films[:2]
    first, second, third = part.split('<div class="films">')[1].split("</figure>")[:3]
    assert "driving score 54.0, route completion 90 %, penalty 0.60; a route of 250 m, driven for 60 s; Failed" in first
    assert html.escape(COLLISION) in first
    assert "driving score 90.0" in second
    assert "No infractions." in second
    assert "has no record of this drive" in third
    (link,) = re.findall(r'href="([^"]*)"', third)
    assert (tmp_path / "reports" / unquote(link)).read_bytes() == films[2]
    assert "but for the films that it links to" in page
    monkeypatch.setattr(sections_driving, "LARGEST_FILM", 10)
    part = section(report(tmp_path), "driving")
    assert "<video" not in part
    assert part.count(".mp4</a>") == 3


def test_what_is_absent_is_said_with_the_command_that_makes_it(tmp_path: Path) -> None:
    write_run(tmp_path, "carla_policy")
    page = report(tmp_path)
    best = tmp_path / "models" / "checkpoints" / "carla_policy" / RUN / "best.pth"
    for anchor, command, place in (("driving", "drive", f"drive/{RUN}"), ("gate", "gate", f"gate/{RUN}.json")):
        line = re.search(rf"automoe {command} [^<]*", section(page, anchor))
        assert line
        words = shlex.split(html.unescape(line[0]))
        assert words[2:] == ["--checkpoint", str(best), "--out", str(tmp_path / "reports" / place)]
        cli.app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert "No gating_network run at" in section(page, "driving_training")
    assert "RUN_NAME=tiny bash training/train_gating_network.sh" in section(page, "driving_training")
    assert "BDD100K: No detection run at" in page


def test_a_named_folder_or_file_that_is_absent_or_damaged_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path, "carla_policy")
    drives, gate = tmp_path / "drives", tmp_path / "g.json"
    with pytest.raises(DataError, match=r"--drives: there is no .*drives/summary\.json"):
        report(tmp_path, drives=drives)
    with pytest.raises(DataError, match=r"--gate: there is no .*g\.json"):
        report(tmp_path, gate=gate)
    said = write_drives(drives)
    for broken in ("{", "[]", json.dumps({**said, "drivers": {}}), json.dumps({**said, "routes": {}}),
                   json.dumps({**said, "drivers": {"policy": {"driving_score": "much"}}})):  # fmt: skip
        (drives / "summary.json").write_text(broken)
        with pytest.raises(DataError, match=r"drives/summary\.json .*automoe drive|drives/summary\.json names no"):
            report(tmp_path, drives=drives)
    for broken in ("{", "[]", "{}", json.dumps({**write_gate(gate), "usage": {"weather/clear": {"moments": 3}}})):
        gate.write_text(broken)
        with pytest.raises(DataError, match=r"g\.json .*automoe gate"):
            report(tmp_path, gate=gate)
    assert not (tmp_path / "reports" / "r.html").exists()


def test_films_and_results_that_are_damaged_are_named(tmp_path: Path) -> None:
    drives = tmp_path / "drives"
    write_drives(drives)
    film = drives / "videos" / "policy_RouteScenario_0_rep0.mp4"
    write_film(film)
    (drives / "policy" / "results.json").write_text("{}")
    with pytest.raises(DataError, match=r"policy/results\.json is not a results file"):
        report(tmp_path, drives=drives)
    write_drives(drives)
    film.write_bytes(b"half a film")
    with pytest.raises(DataError, match=r"RouteScenario_0_rep0\.mp4 is no MP4"):
        report(tmp_path, drives=drives)


def test_what_is_damaged_where_nobody_named_it_is_said_in_its_place(tmp_path: Path) -> None:
    write_run(tmp_path, "carla_policy").joinpath("best.pth").write_bytes(b"not a file")
    write_run(tmp_path, "gating_network", "detection", "drivable")
    folder = tmp_path / "reports" / "drive" / RUN
    write_drives(folder)
    (folder / "summary.json").write_text("{")
    write_gate(tmp_path / "reports" / "gate" / f"{RUN}.json").clear()
    (tmp_path / "reports" / "gate" / f"{RUN}.json").write_text("{}")
    page = report(tmp_path)
    assert "summary.json is damaged" in section(page, "driving")
    assert "is not what `automoe gate --out` leaves" in section(page, "gate")
    assert "best.pth was not loaded" in section(page, "driving_training")
    assert "Training loss" in section(page, "driving_training")


def test_nothing_at_all_is_still_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing to report on.*Nothing was driven"):
        report(tmp_path)


def test_the_gate_is_told_with_its_arms_and_its_use(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    write_gate(path)
    part = section(report(tmp_path, gate=path), "gate")
    table = rows(part)
    assert list(table) == [
        "detection+drivable|best fixed pair", "learned top-1|the gate", "drivable|best single", "detection",
        "constant velocity", "oracle pair|by hindsight",
    ]  # fmt: skip
    assert table["learned top-1|the gate"] == ["1.200", "0.950", "0.200", "0.500", "0.250", "91.2", "41", "1.23"]
    assert table["constant velocity"] == ["–", "3.750", "3.000", "0.500", "0.250", "–", "–", "–"]
    assert table["oracle pair|by hindsight"] == ["0.987", *["–"] * 7]
    for fact in ("one for all arms; none trained anew", "1 of 2 at a moment", "0.44 nats of at most 0.69",
                 "62 % of all moments", "the choice varies", "yes: rain and darkness are told"):  # fmt: skip
        assert fact in part
    assert "on 2 threads" in part
    assert "Who runs, by weather" in part
    assert "rainy: drivable 95.0 %" in part
    assert ">of 30<" in part
    assert "Who runs, by light" in part
    write_gate(path, collapsed=True, **{"weather in the context": False})
    part = section(report(tmp_path, gate=path), "gate")
    assert "collapsed: one set of experts" in part
    assert "no: rain and darkness are not told" in part


def test_training_of_what_drives_has_curves_and_facts(tmp_path: Path) -> None:
    write_run(tmp_path, "gating_network", "detection", "drivable")
    held = {"recipe": {"hold": ["context", "gate"]}, "source": {"source": "/runs/gate/best.pth"}}
    write_run(tmp_path, "carla_policy", "detection", "drivable", **held)
    page = report(tmp_path)
    part = section(page, "driving_training")
    gate, policy = part.split('<h3 id="carla_policy_training">')
    for half in (gate, policy):
        assert "0.700: path 0.200 m, waypoints 0.400 m, target speed 0.100 m/s" in half
        assert "95.0 %" in half
        assert "detection, drivable; 2 at a moment" in half
        for fact in ("step 20 of 20", "12.5 moments/s", "1m01s", "train --x 1"):
            assert f"{fact}</dd>" in half
        for title in ("Training loss", "Validation: errors", "Validation: the light"):
            assert f"<h3>{title}</h3>" in half
        assert "planning error: 1.4 at 10" in half
    assert "gate is taught by</dt><dd>utility" in gate
    assert "learns nothing</dt><dd>context, gate" in policy
    assert "begun from</dt><dd>/runs/gate/best.pth<" in policy
    assert page.count('<div class="card">') == 0
    assert "by the official metrics" not in page, "no expert, so no official score"


def test_another_components_checkpoint_is_not_taken_for_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, "gating_network", "detection")
    folder = write_run(tmp_path, "carla_policy")
    payload = checkpoint.load(folder / "best.pth")
    checkpoint.save(folder / "best.pth", {**payload, "component": "gating_network"})
    assert "is not the checkpoint of a carla_policy run" in section(report(tmp_path), "driving_training")


def test_intervals_and_shares_are_drawn_to_scale_and_names_escaped() -> None:
    svg = interval_chart([Mean("a < b", 50.0, 10.0, {"seed 0": 45.0}), Mean("c", 20.0, math.inf, {})], x_title="x")
    tree = ElementTree.fromstring(svg)
    bars = [float(bar.attrib["width"]) for bar in tree.iter("rect")]
    assert bars[0] == pytest.approx(2.5 * bars[1], abs=0.2)
    line, *ends = [one for one in tree.iter("line") if one.attrib["class"] == "whisker"]
    assert float(line.attrib["x2"]) - float(line.attrib["x1"]) == pytest.approx(0.4 * bars[0], abs=0.2)
    assert len(ends) == 2
    assert "a &lt; b" in svg
    assert "50.0 ± 10.0" in svg
    assert "inf" not in svg
    shares = share_chart([("<rain>", [0.25, 1.0], "of 4")], ("a", "b"))
    cells = [rect for rect in ElementTree.fromstring(shares).iter("rect") if "fill" in rect.attrib]
    assert [cell.attrib["opacity"] for cell in cells] == ["0.25", "1.00"]
    assert "&lt;rain&gt;" in shares
    assert interval_chart([], x_title="x") == share_chart([], ("a",)) == ""
