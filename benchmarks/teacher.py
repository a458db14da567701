"""How well does the teacher drive? Routes in towns that nothing is trained in, judged as the CARLA leaderboard judges.

    python benchmarks/teacher.py --routes 20 --seeds 0 1 2 --json teacher.json --results results.json

Routes of about 300 m are drawn in the validation towns, in turn; every seed drives all of them among other traffic, at
another time, in other weather. Printed are the means over all drives, with the half width of a 95 % interval over the
seeds. With several processes (--workers) the result is the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from intervals import interval

from automoe.drive.closed_loop import drive_route
from automoe.drive.embedded import EmbeddedSimulator, Teacher, begin_drive, staged
from automoe.drive.leaderboard import RouteRecord, results_file, summarise
from automoe.engine.manifest import origin
from automoe.files import write_text
from automoe.machine import available_cores
from automoe.world.carla_writer import VAL_TOWNS
from automoe.world.route import draw_route

Job = tuple[int, int, float]
"""A route's number, a seed, and the length asked for."""


def drive(job: Job) -> RouteRecord:
    """One drive of the teacher."""
    number, seed, length = job
    town = VAL_TOWNS[number % len(VAL_TOWNS)]
    route = draw_route(staged(town)[0].town, np.random.default_rng([number, 500]), length)
    name = f"RouteScenario_{number}_rep{seed}"
    simulator = EmbeddedSimulator(begin_drive(route, 1000 * seed + number), name, ticks=1)
    return drive_route(simulator, Teacher(simulator), name)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=20)
    parser.add_argument("--length", type=float, default=300.0, help="metres")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--json", type=Path, help="receives the scores of every drive")
    parser.add_argument("--results", type=Path, help="receives the leaderboard's results file")
    return parser.parse_args(arguments)


def judge(options: argparse.Namespace) -> list[RouteRecord]:
    """Every route with every seed, those of one town together."""
    jobs = [(number, seed, options.length) for number in range(options.routes) for seed in options.seeds]
    jobs.sort(key=lambda job: (job[0] % len(VAL_TOWNS), job))
    with ProcessPoolExecutor(options.workers) as pool:
        records = list(pool.map(drive, jobs, chunksize=max(1, len(jobs) // (4 * options.workers))))
    return [record for _, record in sorted(zip(jobs, records, strict=True), key=lambda pair: pair[0])]


def main() -> None:
    options = parse()
    records = judge(options)
    per_seed = {
        seed: summarise([one for one in records if one.route_id.endswith(f"_rep{seed}")], options.routes)
        for seed in options.seeds
    }
    drives = options.routes * len(options.seeds)
    scores = summarise(records, drives)
    mean, half = interval([one.driving_score for one in per_seed.values()])
    for record in records:
        if record.status != "Perfect":
            said = {kind: words for kind, words in record.infractions.items() if words}
            print(f"{record.route_id}: {record.status}, driving score {record.driving_score:.1f}, {said}")
    driven, taken = (sum(getattr(one, key) for one in records) for key in ("seconds", "seconds_taken"))
    print(
        f"{len(records)} drives, {scores.kilometres:.1f} km: driving score {mean:.1f} +- {half:.1f}, route completion "
        f"{scores.route_completion:.1f}, success rate {100 * scores.success_rate:.0f} %; mean speed "
        f"{1000 * scores.kilometres / driven:.1f} m/s; {driven / taken:.0f} times as fast as real time in each process"
    )
    said: dict[str, Any] = {
        "command": f"python benchmarks/teacher.py --routes {options.routes} --length {options.length:g} --seeds "
        + " ".join(map(str, options.seeds)),
        "towns": VAL_TOWNS,
        "scored": {key: origin()[key] for key in ("commit", "dirty", "versions")},
        "driving_score": {"mean": mean, "half_width": half},
        "seeds": {str(seed): asdict(one) for seed, one in per_seed.items()},
        "all": asdict(scores),
        "drives": [one.to_json(index) for index, one in enumerate(records)],
    }
    if options.json:
        write_text(options.json, json.dumps(said, indent=1) + "\n")
    if options.results:
        write_text(options.results, json.dumps(results_file(records, drives), indent=1) + "\n")


if __name__ == "__main__":
    main()
