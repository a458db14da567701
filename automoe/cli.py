"""The `automoe` command: everything around training that a person types. Trainers live under `training/`.

Imports happen inside the commands, so that `--help` and scoring start at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from automoe import __version__
from automoe.config import project_root

Task = Literal["detection", "drivable", "segmentation"]
TASKS: tuple[Task, ...] = ("detection", "drivable", "segmentation")

# Where the trainers read and write, too, from whatever folder they are called.
CHECKOUT = project_root()
BDD_ROOT = CHECKOUT / "datasets" / "bdd100k"
NUSCENES_ROOT = CHECKOUT / "datasets" / "nuscenes"
CARLA_RAW = CHECKOUT / "datasets" / "carla" / "raw"
CARLA_ROOT = CHECKOUT / "datasets" / "carla" / "preprocessed"
BddRoot = Annotated[Path, Parameter(help="BDD100K; datasets/bdd100k in the checkout if not given", show_default=False)]
NuscenesRoot = Annotated[
    Path, Parameter(help="nuScenes; datasets/nuscenes in the checkout if not given", show_default=False)
]
CarlaRoot = Annotated[
    Path, Parameter(help="CARLA runs, raw or prepared; datasets/carla/preprocessed if not given", show_default=False)
]
OutputRoot = Annotated[Path, Parameter(help="where runs are; the checkout if not given", show_default=False)]


def _app(name: str, help_text: str) -> cyclopts.App:
    return cyclopts.App(
        name=name,
        help=help_text,
        version=__version__,
        help_format="plaintext",
        default_parameter=Parameter(name_transform=lambda field: field),
        result_action="return_value",
    )


app = _app("automoe", "AutoMoE: a mixture-of-experts driving stack that one person can train.")
world = _app("world", "The embedded driving world.")
export = _app("export", "Write a data set in its official raw format.")
prepare = _app("prepare", "Turn a raw data set into sharded, checksummed, prepared data.")
doctor = _app("doctor", "Look a data set over: what is there, what is wrong, and pictures of it.")
score = _app("score", "Score predictions as the official toolkits do. Needs no model, no GPU and no network.")
route_files = _app("routes", "Routes to drive, as files of the CARLA leaderboard.")
world.command(export)
for part in (world, prepare, doctor, score, route_files):
    app.command(part)


@export.command(name="bdd100k")
def export_bdd100k_command(
    *,
    out: Path,
    train: int = 800,
    val: int = 500,
    seed: int = 0,
    towns: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    size: Annotated[tuple[int, int], Parameter(help="width and height; 1280 720 is the official size")] = (640, 360),
    workers: int | None = None,
) -> None:
    """Render towns of the embedded world into BDD100K's raw layout, and a contact sheet beside them.

    Validation towns are never training towns. A stopped export goes on when the same line is given again.
    """
    from automoe.progress import progress_bar
    from automoe.report.doctor import doctor_bdd100k
    from automoe.world.bdd100k_writer import export_bdd100k

    with progress_bar("render") as progress:
        export_bdd100k(out, train, val, seed, towns=towns, size=size, workers=workers, progress=progress)
    report = doctor_bdd100k(out, out)
    print(report.text())


@export.command(name="nuscenes")
def export_nuscenes_command(
    *,
    out: Path,
    scenes: int = 16,
    val_scenes: int = 8,
    seconds: float = 10.0,
    seed: int = 0,
    size: Annotated[tuple[int, int], Parameter(help="width and height; 1600 900 is the official size")] = (400, 225),
    workers: int | None = None,
) -> None:
    """Drive through towns of the embedded world and write what a nuScenes car would record, in the official layout.

    scenes: for training; validation scenes are in towns of their own. A stopped export goes on when the same line is
    given again.
    """
    from automoe.progress import progress_bar
    from automoe.report.doctor_nuscenes import doctor_nuscenes
    from automoe.world.nuscenes_writer import export_nuscenes

    with progress_bar("drive and render") as progress:
        export_nuscenes(out, scenes, val_scenes, seed, seconds=seconds, size=size, workers=workers, progress=progress)
    print(doctor_nuscenes(out, out).text())


@export.command(name="carla")
def export_carla_command(
    *,
    out: Path,
    runs: int = 8,
    val_runs: int = 4,
    seconds: Annotated[float, Parameter(help="of each run, at most")] = 60.0,
    seed: int = 0,
    size: Annotated[tuple[int, int], Parameter(help="width and height; public runs have 800 600")] = (400, 300),
    save_every: Annotated[int, Parameter(help="ticks of 0.05 s from frame to frame")] = 5,
    cameras: Annotated[
        list[str] | None, Parameter(consume_multiple=True, help="all four if not given; front_shifted stands aside")
    ] = None,
    towns: Annotated[int, Parameter(help="to train in, by turns")] = 8,
    lead_in: Annotated[float, Parameter(help="up to so many seconds are driven before a run is recorded")] = 0.0,
    late_starts: Annotated[
        float, Parameter(help="up to so many seconds the teacher stands on where nothing holds him any more")
    ] = 0.0,
    lidar: Annotated[bool, Parameter(help="record a LiDAR, too")] = True,
    workers: int | None = None,
) -> None:
    """Let the teacher drive through towns of the embedded world and record it in the folders of CARLA recordings.

    runs: for training; validation runs are in towns of their own. A stopped export goes on when the same line is given
    again.
    """
    from automoe.carla.run import CAMERAS
    from automoe.progress import progress_bar
    from automoe.world.carla_writer import export_carla

    with progress_bar("drive and render") as progress:
        world = export_carla(
            out, runs, val_runs, seed, seconds=seconds, size=size, save_every=save_every,
            cameras=cameras or CAMERAS, towns=towns, lead_in=lead_in, late_starts=late_starts, lidar=lidar,
            workers=workers, progress=progress,
        )  # fmt: skip
    for split in ("train", "val"):
        told = world[split]
        print(
            f"{split}: {len(told['folders'])} runs, {told['frames']} frames, {told['visible_boxes']} boxes in sight, "
            f"moving in {100 * told['share_moving']:.0f} % of the frames, {told['collisions']} collisions"
        )


@prepare.command(name="bdd100k")
def prepare_bdd100k_command(
    *,
    data_root: BddRoot = BDD_ROOT,
    out: Path | None = None,
    tasks: Annotated[list[Task], Parameter(consume_multiple=True)] = list(TASKS),  # noqa: B006
    splits: Annotated[list[Literal["train", "val"]], Parameter(consume_multiple=True)] = ["train", "val"],  # noqa: B006
    workers: int | None = None,
) -> None:
    """Prepare BDD100K as downloaded: one pass, resumable; broken records are set aside with their reason.

    out: where <task>/<split> folders go; inside the data root if not given, which is where trainers look.
    """
    from automoe.data.prepared import ensure_prepared
    from automoe.progress import progress_bar

    for task in tasks:
        for split in splits:
            with progress_bar(f"{task} {split}") as progress:
                info = ensure_prepared(data_root, task, split, out, workers=workers, progress=progress)
            print(f"{info.summary()} -> {info.path}")


@prepare.command(name="nuscenes")
def prepare_nuscenes_command(
    *,
    data_root: Annotated[
        Path, Parameter(help="nuScenes; datasets/nuscenes in the checkout if not given", show_default=False)
    ] = NUSCENES_ROOT,
    version: Annotated[str | None, Parameter(help="v1.0-mini, say; the only one there if not given")] = None,
    split: Annotated[list[str], Parameter(consume_multiple=True)] = ["train", "val"],  # noqa: B006
    out: Path | None = None,
    sweeps: Annotated[int, Parameter(help="earlier turns of the LiDAR in each sample, 0 to 10")] = 10,
    cameras: Annotated[list[str] | None, Parameter(consume_multiple=True, help="all six if not given")] = None,
    workers: int | None = None,
) -> None:
    """Prepare nuScenes as downloaded: one pass, resumable; broken samples are set aside with their reason.

    split: train and val also stand for mini_train, embedded_val and the like. out: where detection3d/<split> folders
    go; inside the data root if not given, which is where trainers look.
    """
    from automoe.data.nuscenes_tables import CAMERAS
    from automoe.data.prepared import ensure_prepared
    from automoe.progress import progress_bar

    options = {"version": version, "sweeps": sweeps, "cameras": cameras or list(CAMERAS)}
    for one in split:
        with progress_bar(f"detection3d {one}") as progress:
            info = ensure_prepared(
                data_root, "detection3d", one, out, options=options, workers=workers, progress=progress
            )
        print(f"{info.summary()} -> {info.path}")


@prepare.command(name="carla")
def prepare_carla_command(
    *,
    data_root: Annotated[
        Path, Parameter(help="CARLA runs; datasets/carla/raw in the checkout if not given", show_default=False)
    ] = CARLA_RAW,
    out: Annotated[
        Path, Parameter(help="the trainers' DATA_ROOT; datasets/carla/preprocessed if not given", show_default=False)
    ] = CARLA_ROOT,
    splits: Annotated[list[Literal["train", "val"]], Parameter(consume_multiple=True)] = ["train", "val"],  # noqa: B006
    cameras: Annotated[list[str], Parameter(consume_multiple=True)] = ["front"],  # noqa: B006
    val_towns: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    labels: Annotated[
        Literal["auto", "coarse"], Parameter(help="coarse: vehicles and people, even where runs tell more")
    ] = "auto",
    hindsight: Annotated[
        Path | None,
        Parameter(help="folder of the towns' OpenDRIVE maps: runs without a route get the one that they took"),
    ] = None,
    names: Annotated[
        list[str] | None, Parameter(consume_multiple=True, help="classes of boxes in YOLO's form, in order")
    ] = None,
    fold: Annotated[str | None, Parameter(help="k/n: which block of pictures in YOLO's form is for validation")] = None,
    workers: int | None = None,
) -> None:
    """Prepare CARLA recordings: one pass, resumable; broken frames are set aside with their reason.

    val_towns: maps that are kept for validation. If not given, as the runs' configs say; else a fifth of the towns;
    else, where all runs are of one town, a fifth of the runs.
    """
    from automoe.data.prepared import ensure_prepared
    from automoe.progress import progress_bar

    options = {"cameras": cameras, "val_towns": val_towns, "labels": labels, "names": names, "fold": fold}
    options["hindsight"] = None if hindsight is None else str(hindsight.resolve())
    for split in splits:
        with progress_bar(f"frames {split}") as progress:
            info = ensure_prepared(data_root, "frames", split, out, options=options, workers=workers, progress=progress)
        print(f"{info.summary()} -> {info.path}")


@doctor.command(name="bdd100k")
def doctor_bdd100k_command(
    *, data_root: BddRoot = BDD_ROOT, out: Path = Path("reports/doctor_bdd100k"), samples: int = 12
) -> None:
    """Say what would be trained on: counts, classes, sizes, problems; and draw a sheet of overlays into `out`."""
    from automoe.report.doctor import doctor_bdd100k

    print(doctor_bdd100k(data_root, out, samples=samples).text())


@doctor.command(name="nuscenes")
def doctor_nuscenes_command(
    *,
    data_root: Path = NUSCENES_ROOT,
    version: str | None = None,
    split: str = "val",
    out: Path = Path("reports/doctor_nuscenes"),
    samples: int = 3,
    sweeps: int = 3,
) -> None:
    """Say what a nuScenes tree holds and what is wrong with it; draw boxes and points on all cameras and from above."""
    from automoe.report.doctor_nuscenes import doctor_nuscenes

    print(doctor_nuscenes(data_root, out, version=version, split=split, samples=samples, sweeps=sweeps).text())


@doctor.command(name="carla")
def doctor_carla_command(
    *,
    data_root: Annotated[
        Path, Parameter(help="CARLA runs; datasets/carla/raw in the checkout if not given", show_default=False)
    ] = CARLA_RAW,
    out: Path = Path("reports/doctor_carla"),
    samples: int = 4,
) -> None:
    """Say what CARLA recordings hold and what is wrong with them; draw boxes, tags, drivable area and points."""
    from automoe.report.doctor_carla import doctor_carla

    print(doctor_carla(data_root, out, samples=samples).text())


@app.command
def collect(
    *,
    out: Annotated[
        Path, Parameter(help="where runs go; datasets/carla/raw in the checkout if not given", show_default=False)
    ] = CARLA_RAW,
    host: str = "localhost",
    port: int = 2000,
    town: Annotated[
        list[str] | None, Parameter(consume_multiple=True, help="maps, in turn; the loaded one if not given")
    ] = None,
    runs: int = 1,
    seconds: Annotated[float, Parameter(help="of each run")] = 60.0,
    vehicles: int = 40,
    walkers: int = 20,
    seed: int = 0,
    first: Annotated[int, Parameter(help="number of the first run")] = 0,
    size: Annotated[tuple[int, int], Parameter(help="width and height")] = (800, 600),
    save_every: Annotated[int, Parameter(help="ticks of 0.05 s from frame to frame")] = 5,
    carla_version: Annotated[
        str | None, Parameter(help="the server's, where it doesn't tell: a build from source, say")
    ] = None,
) -> None:
    """Record runs of CARLA's autopilot on a running server, through the official client (pip install automoe[carla]).

    Complete runs are kept. Whatever happens, SIGTERM and SIGHUP too, actors are destroyed and settings restored.
    """
    from automoe.carla.collect import CollectPlan
    from automoe.carla.collect import collect as record
    from automoe.carla.server import connect, towns_of

    towns = tuple(town or ())
    plan = CollectPlan(out, runs, seconds, towns, vehicles, walkers, seed, first, size, save_every, carla_version)
    client, carla = connect(host, port, carla_version=carla_version)
    towns_of(client, plan.towns)
    record(plan, client, carla)


@app.command
def evaluate(
    *,
    checkpoint: Path,
    data_root: Path | None = None,
    split: Literal["train", "val"] = "val",
    device: str = "auto",
    batch_size: int = 8,
    num_workers: int = 1,
    limit: int | None = None,
    prepared_dir: Path | None = None,
    json: Path | None = None,
    predictions: Path | None = None,
) -> None:
    """Score a checkpoint on a data set, raw or prepared. Runs under torchrun too, with the same numbers.

    data_root: datasets/bdd100k, datasets/nuscenes or datasets/carla/preprocessed if not given, as the checkpoint needs.
    json: write the metrics there. predictions: write them in the official format, for `automoe score`.
    """
    from automoe.stages.evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        checkpoint,
        data_root,
        split=split,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
        limit=limit,
        prepared_dir=prepared_dir,
        json_out=json,
        predictions_out=predictions,
    )


@app.command
def gate(
    *,
    checkpoint: Annotated[Path, Parameter(help="best.pth of gating_network, or of a carla_policy on one")],
    data_root: CarlaRoot = CARLA_ROOT,
    out: Path = Path("reports/gate.json"),
    beside: Annotated[
        list[str] | None, Parameter(consume_multiple=True, help="other drivers in the same table: NAME=best.pth")
    ] = None,
    limit: Annotated[int | None, Parameter(help="only so many moments of each split, spread evenly")] = None,
    token_cache: Annotated[Path | None, Parameter(help="as the trainer's; inside the data root if not given")] = None,
    device: str = "auto",
) -> None:
    """Say what a gate does and what it is worth, open loop: which experts run when, and the planning errors when other
    experts are heard instead: nobody, each alone, every pair, all, chance, and the best pair for each moment by
    hindsight.
    """
    from automoe.engine.distributed import setup
    from automoe.moe.checkpoint import load_driving_model
    from automoe.stages.gate_report import arm_table, named_files, report_gate, usage_table

    with setup(device) as dist:
        driver = load_driving_model(checkpoint, dist.device)
        others = {name: load_driving_model(path, dist.device) for name, path in named_files(beside or []).items()}
        said = report_gate(driver, data_root, out, dist, beside=others, limit=limit, cache=token_cache)
    print(arm_table(said))
    print(usage_table(said))
    print(f"Report: {out}")


@app.command
def predict(
    *,
    checkpoint: Annotated[list[Path], Parameter(consume_multiple=True)],
    images: Path,
    out: Path = Path("reports/predictions"),
    threshold: float = 0.3,
    device: str = "auto",
    limit: int | None = None,
) -> None:
    """Draw what one or several experts see on pictures of any size: boxes, drivable area, semantic classes."""
    from automoe.stages.predict import predict_images

    predict_images(checkpoint, images, out, threshold=threshold, device=device, limit=limit)


@app.command
def report(
    *,
    run_name: str = "tiny",
    data_root: BddRoot = BDD_ROOT,
    nuscenes_root: NuscenesRoot = NUSCENES_ROOT,
    carla_root: CarlaRoot = CARLA_ROOT,
    output_root: OutputRoot = CHECKOUT,
    drives: Annotated[
        Path | None, Parameter(help="what automoe drive left; reports/drive/<run_name> in the output root if not given")
    ] = None,
    gate: Annotated[
        Path | None, Parameter(help="what automoe gate left; reports/gate/<run_name>.json there if not given")
    ] = None,
    out: Path = Path("reports/index.html"),
    samples: int = 6,
) -> None:
    """Write one HTML file about a run: scores beside baselines, curves, best and worst pictures; and of what drives its
    scores, films, gate and training.

    Every expert that has a run of that name gets its section. A run's own data counts, where it is still there; the
    roots are for data that has moved.
    """
    from automoe.report.html import write_report

    written = write_report(
        output_root,
        data_root,
        out,
        run_name=run_name,
        samples=samples,
        nuscenes_root=nuscenes_root,
        carla_root=carla_root,
        drives=drives,
        gate=gate,
    )
    print(f"Report: {written}")


def _score(task: Task, gt: Path, pred: Path, json: Path | None) -> None:
    from automoe.metrics.score import format_table, score_bdd100k, write_metrics_json

    metrics = score_bdd100k(task, gt, pred)
    print(format_table(metrics, task))
    if json is not None:
        write_metrics_json(json, metrics)


@score.command(name="bdd100k-detection")
def score_detection_command(*, gt: Path, pred: Path, json: Path | None = None) -> None:
    """COCO AP as BDD100K's toolkit computes it. gt, pred: label JSON in det_20 form (a file or a folder of files)."""
    _score("detection", gt, pred, json)


@score.command(name="bdd100k-drivable")
def score_drivable_command(*, gt: Path, pred: Path, json: Path | None = None) -> None:
    """Drivable area: the official two-class numbers, and the ordinary three-class ones beside them.

    gt, pred: folders of mask PNGs, or RLE JSON.
    """
    _score("drivable", gt, pred, json)


@score.command(name="bdd100k-segmentation")
def score_segmentation_command(*, gt: Path, pred: Path, json: Path | None = None) -> None:
    """Semantic mIoU over Cityscapes' nineteen classes. gt, pred: folders of trainId PNGs, or RLE JSON."""
    _score("segmentation", gt, pred, json)


@score.command(name="nuscenes")
def score_nuscenes_command(
    *,
    pred: Path,
    dataroot: Path = NUSCENES_ROOT,
    version: str | None = None,
    split: str = "val",
    json: Path | None = None,
) -> None:
    """nuScenes detection: mAP, NDS and the five errors as the devkit computes them, as fractions.

    pred: a submission file. version: v1.0-mini, say; the only one there if not given. split: val, mini_val, ...
    """
    from automoe.metrics.score import format_nuscenes_table, write_metrics_json
    from automoe.stages.score_nuscenes import score_nuscenes

    metrics = score_nuscenes(dataroot, version, split, pred).metrics
    print(format_nuscenes_table(metrics))
    if json is not None:
        write_metrics_json(json, metrics)


@score.command(name="leaderboard")
def score_leaderboard_command(
    *,
    results: Path,
    routes: Annotated[int | None, Parameter(help="all there are; missing ones count as nothing")] = None,
    json: Path | None = None,
) -> None:
    """Driving score and success rate of a results file of the CARLA leaderboard 2.0 or of Bench2Drive, from its
    records: what the file itself says of all of them is not looked at.

    results: the file, plain or gzipped. routes: as many as there are records if not given.
    """
    from automoe.drive.leaderboard import format_scores, read_results, summarise
    from automoe.metrics.score import write_metrics_json

    records = read_results(results)
    scores = summarise(records, routes)
    print(format_scores(scores, len(records), routes or len(records)))
    if json is not None:
        write_metrics_json(json, scores.flat())


@app.command
def drive(
    *,
    checkpoint: Annotated[Path | None, Parameter(help="best.pth of carla_policy or gating_network")] = None,
    out: Path,
    routes: Annotated[
        str, Parameter(help="generated, in the embedded world's validation towns, or a file in the leaderboard's form")
    ] = "generated",
    number: Annotated[
        int | None, Parameter(help="how many are drawn, 20 if not given; of a file the first so many, all if not given")
    ] = None,
    length: Annotated[float, Parameter(help="of a drawn route, metres")] = 300.0,
    seeds: Annotated[int, Parameter(help="drives of each route, in other traffic and weather")] = 3,
    router: Annotated[
        str | None,
        Parameter(
            help="instead of the gate: gate:1, uniform, random:2, nobody, or experts as detection+drivable; behind it "
            ",hold=0 forgets at once what others saw"
        ),
    ] = None,
    beside: Annotated[
        list[str],
        Parameter(
            consume_multiple=True,
            help="the drivers in the same table, instead of those two: their names, or NAME=best.pth[@ROUTER]",
        ),
    ] = ["teacher", "constant_velocity"],  # noqa: B006
    videos: Annotated[int, Parameter(help="drives that are filmed, in the embedded world")] = 1,
    workers: int | None = None,
    simulator: Annotated[
        Literal["embedded", "carla"], Parameter(help="carla: a running server, with routes of a file, one by one")
    ] = "embedded",
    host: Annotated[str, Parameter(help="of the server")] = "localhost",
    port: int = 2000,
) -> None:
    """Drive routes closed loop and score them by the CARLA leaderboard's rules, in the embedded world or on a CARLA
    server, through the official client (pip install automoe[carla]).

    Leaves results.json in the leaderboard's form for each driver, summary.json, and videos of the checkpoint's drives,
    and prints a table. Drives that are there already are kept as long as checkpoint, router and AutoMoE's code are the
    same; a stopped run goes on when the same line is given again.
    """
    from automoe.drive.command import drive_command

    drive_command(
        checkpoint, out, routes=routes, number=number, length=length, seeds=seeds, router=router, beside=beside,
        videos=videos, workers=workers, simulator=simulator, host=host, port=port,
    )  # fmt: skip


@route_files.command(name="generated")
def generated_routes_command(
    *,
    out: Annotated[Path, Parameter(help="the file, gzipped where its name ends in .gz")],
    number: int = 20,
    length: Annotated[float, Parameter(help="of a route, metres")] = 300.0,
    towns: Annotated[
        list[str] | None, Parameter(consume_multiple=True, help="in turn; the validation towns if not given")
    ] = None,
) -> None:
    """Write the routes that `automoe drive` draws to a file in the form of the CARLA leaderboard 2.0.

    The same number, length and towns always give the same routes; `automoe drive --routes FILE` drives them.
    """
    from automoe.drive.command import write_generated

    write_generated(out, number, length, towns)


def main() -> None:
    """Entry point of the `automoe` command."""
    from automoe.stages.entry import call

    call(app, reader_may_leave=True)


if __name__ == "__main__":
    main()
