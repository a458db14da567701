"""How long nuScenes' tables of trainval's size take to read, and how much memory: on tables made up for the purpose.

    python benchmarks/nuscenes_tables.py [--folder DIR] [--rounds 3] [--json benchmarks/results/nuscenes_tables.json]

v1.0-trainval has 850 scenes, 34,149 samples, 2.6 million recordings and as many ego poses, and 1.2 million annotations;
as many are generated here (about 2.4 GB of JSON, kept in --folder if given). Each round reads in a process of its own,
whose peak memory is taken from the operating system; the load just before it says how busy the machine was besides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from automoe.engine.manifest import origin
from automoe.files import write_text

SCENES, SAMPLES, BOXES_A_SAMPLE, BOX_LIFE = 850, 40, 34, 18
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
# Recordings between two key frames, the key frame included: 20 Hz LiDAR, 12 Hz cameras, 13 Hz radars.
RATES = {"LIDAR_TOP": 10, **dict.fromkeys(CAMERAS, 6), **dict.fromkeys(RADARS, 6)}


def token(*what: object) -> str:
    return hashlib.md5("/".join(map(str, what)).encode(), usedforsecurity=False).hexdigest()


def write_table(folder: Path, name: str, records: Iterable[dict[str, Any]]) -> int:
    """Write a table record by record; returns how many there were."""
    count = 0
    with (folder / f"{name}.json").open("w") as file:
        file.write("[")
        for record in records:
            file.write(",\n" if count else "\n")
            file.write(json.dumps(record))
            count += 1
        file.write("\n]\n")
    return count


def recordings() -> Iterator[tuple[int, int, str, int, int]]:
    """(scene, sample, channel, number within the sample, microseconds) of every recording."""
    for scene in range(SCENES):
        for sample in range(SAMPLES):
            for channel, rate in RATES.items():
                for turn in range(rate if sample < SAMPLES - 1 else 1):
                    yield scene, sample, channel, turn, scene * 10**9 + sample * 500_000 + turn * (500_000 // rate)


def generate(folder: Path) -> dict[str, int]:
    """All thirteen tables; returns the number of records of each."""
    folder.mkdir(parents=True, exist_ok=True)
    channels = list(RATES)
    categories = ("vehicle.car", "human.pedestrian.adult", "vehicle.truck", "movable_object.barrier")
    pose = {"rotation": [0.5720320396729045, -0.0016977771610471074, 0.011798001930183783, -0.8201446642457809]}
    samples = [(scene, sample) for scene in range(SCENES) for sample in range(SAMPLES)]

    def data() -> Iterator[dict[str, Any]]:
        for scene, sample, channel, turn, time_ in recordings():
            kind = "samples" if turn == 0 else "sweeps"
            own = token("data", scene, sample, channel, turn)
            yield {
                "token": own, "sample_token": token("sample", scene, sample), "ego_pose_token": own,
                "calibrated_sensor_token": token("rig", scene, channel), "timestamp": time_, "fileformat": "jpg",
                "is_key_frame": turn == 0, "height": 900, "width": 1600,
                "filename": f"{kind}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{time_}.jpg",
                "prev": token("prev", own), "next": token("next", own),
            }  # fmt: skip

    def poses() -> Iterator[dict[str, Any]]:
        for scene, sample, channel, turn, time_ in recordings():
            place = [411.3039349319818 + sample, 1180.8903791765097, 0.0]
            own = token("data", scene, sample, channel, turn)
            yield {"token": own, "timestamp": time_, **pose, "translation": place}

    def annotations() -> Iterator[dict[str, Any]]:
        for scene, sample in samples:
            for box in range(BOXES_A_SAMPLE):
                life = sample // BOX_LIFE
                first, last = sample % BOX_LIFE == 0, sample % BOX_LIFE == BOX_LIFE - 1 or sample == SAMPLES - 1
                yield {
                    "token": token("box", scene, sample, box), "sample_token": token("sample", scene, sample),
                    "instance_token": token("instance", scene, life, box), "visibility_token": "4",
                    "attribute_tokens": [token("attribute", 0)],
                    "translation": [373.256 + box, 1130.419 + sample, 0.8], "size": [0.621, 0.669, 1.642],
                    "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616],
                    "prev": "" if first else token("box", scene, sample - 1, box),
                    "next": "" if last else token("box", scene, sample + 1, box),
                    "num_lidar_pts": 5, "num_radar_pts": 0,
                }  # fmt: skip

    lives = range((SAMPLES + BOX_LIFE - 1) // BOX_LIFE)
    tables: dict[str, Iterable[dict[str, Any]]] = {
        "scene": (
            {"token": token("scene", s), "name": f"scene-{s:04d}", "log_token": token("log", 0), "nbr_samples": SAMPLES}
            for s in range(SCENES)
        ),
        "sample": (
            {
                "token": token("sample", s, k), "timestamp": s * 10**9 + k * 500_000, "prev": "", "next": "",
                "scene_token": token("scene", s),
            }
            for s, k in samples
        ),
        "sample_data": data(),
        "ego_pose": poses(),
        "calibrated_sensor": (
            {
                "token": token("rig", s, c), "sensor_token": token("sensor", c), "translation": [0.94, 0, 1.84], **pose,
                "camera_intrinsic": [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0, 0, 1]] if "CAM" in c else [],
            }
            for s in range(SCENES)
            for c in channels
        ),
        "sensor": ({"token": token("sensor", c), "channel": c, "modality": c.split("_")[0].lower()} for c in channels),
        "instance": (
            {"token": token("instance", s, life, box), "category_token": token("category", box % len(categories))}
            for s in range(SCENES)
            for life in lives
            for box in range(BOXES_A_SAMPLE)
        ),
        "category": ({"token": token("category", i), "name": name} for i, name in enumerate(categories)),
        "attribute": [{"token": token("attribute", 0), "name": "vehicle.moving"}],
        "visibility": [{"token": "4", "level": "v80-100"}],
        "sample_annotation": annotations(),
        "log": [{"token": token("log", 0), "location": "nowhere"}],
        "map": [{"token": token("map", 0), "log_tokens": [token("log", 0)], "filename": ""}],
    }  # fmt: skip
    return {name: write_table(folder, name, records) for name, records in tables.items()}


def read(folder: Path) -> dict[str, Any]:
    """Read the tables in this process, and index the first and the last sample."""
    from automoe.data.nuscenes import Nuscenes

    load = os.getloadavg()[0]
    started, cpu_started = time.perf_counter(), time.process_time()
    dataset = Nuscenes(folder.parent, folder.name)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    started = time.perf_counter()
    every = range(0, len(dataset.tables.tokens), 100)
    boxes = sum(len(dataset.sample(number, sweeps=10).boxes.label) for number in every)
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "load_before": round(load, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "milliseconds_a_sample": round(1000 * (time.perf_counter() - started) / len(every), 3),
        "samples": len(dataset.tables.tokens),
        "boxes_in_every_hundredth_sample": boxes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where v1.0-trainval goes, or lies from an earlier call")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = options.folder or Path(scratch)
        folder, done = root / "v1.0-trainval", root / "records.json"
        if not done.is_file():
            write_text(done, json.dumps(generate(folder)))
        counts = json.loads(done.read_text())
        size = sum(path.stat().st_size for path in folder.glob("*.json")) / 2**30
        print(f"{size:.2f} GiB of tables: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
        rounds = []
        for _ in range(options.rounds):
            command = [sys.executable, __file__, "--read", str(folder)]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rounds.append(json.loads(ended.stdout.splitlines()[-1]))
            print(json.dumps(rounds[-1]))
    if options.json:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        record = {
            "command": f"python benchmarks/nuscenes_tables.py --rounds {options.rounds}",
            "machine": {"cores": os.cpu_count(), "memory_gib": round(memory, 1)},
            "packages": {name: metadata.version(name) for name in ("duckdb", "pyarrow")},
            **origin(),
            "gib": round(size, 3),
            "records": counts,
            "rounds": rounds,
        }
        write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
