"""A model, a data set and an evaluation of a few lines, trained by the real engine: as a module and as a script."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automoe.engine import distributed
from automoe.engine.config import EngineConfig
from automoe.engine.distributed import Distributed
from automoe.engine.loader import evaluation_loader, to_device
from automoe.engine.loop import FitResult, fit
from automoe.engine.seeding import seed_everything
from automoe.errors import AutoMoEError


class ToyData(torch.utils.data.Dataset):
    """Noisy images [3,8,8] whose target is a fixed function of them; the noise depends on (epoch, index)."""

    def __init__(self, length: int, seconds: float = 0.0, poison: int | None = None) -> None:
        self.length, self.seconds, self.poison = length, seconds, poison

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        time.sleep(self.seconds)
        epoch, index = key
        image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        target = image.mean(dim=(1, 2))
        noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1000 * (epoch + 1) + index))
        if index == self.poison:
            target = target * float("nan")
        return {"image": image + 0.1 * noise, "target": target, "sample_id": f"sample-{index}"}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image": torch.stack([item["image"] for item in items]),
        "target": torch.stack([item["target"] for item in items]),
        "sample_id": [item["sample_id"] for item in items],
    }


class ToyModel(nn.Module):
    def __init__(self, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.dropout(F.relu(self.norm(self.conv(image)))).mean(dim=(2, 3)))


class ToyStep(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        error = self.model(batch["image"]) - batch["target"]
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}


def evaluate(model: nn.Module, dist: Distributed) -> dict[str, float | None]:
    """Minus the mean squared error over 11 samples, summed in the order of the samples whatever the ranks."""
    errors = []
    for batch in evaluation_loader(ToyData(11), collate, 4, dist, num_workers=0):
        batch = to_device(batch, dist.device)
        squared = (model(batch["image"]) - batch["target"]).square().mean(dim=1)
        errors += zip(batch["sample_id"], squared.tolist(), strict=True)
    gathered = dist.all_gather_objects(errors)
    assert len({sample_id for sample_id, _ in gathered}) == len(gathered) == 11
    return {"score": -sum(error for _, error in sorted(gathered)), "undefined": None}


def train(
    run_dir: Path,
    *,
    length: int = 26,
    dropout: float = 0.2,
    batch_norm: bool = True,
    sample_seconds: float = 0.0,
    poison: int | None = None,
    meta: dict[str, Any] | None = None,
    dist: Distributed | None = None,
    evaluate: Any = evaluate,
    **config: Any,
) -> FitResult:
    """Train the toy in `run_dir`; further keywords are EngineConfig's. 26 samples in batches of 4: 6 steps an epoch."""
    defaults = {"metric": "score", "epochs": 3, "batch_size": 4, "num_workers": 0, "warmup_steps": 2, "seed": 5}
    settings = EngineConfig(**{**defaults, "learning_rate": 1e-2, "log_steps": 1, **config})
    seed_everything(settings.seed)
    return fit(
        ToyStep(ToyModel(dropout, batch_norm)),
        dataset=ToyData(length, sample_seconds, poison),
        collate=collate,
        evaluate=evaluate,
        config=settings,
        run_dir=run_dir,
        log_dir=run_dir / "events",
        meta={"config": {"toy": True}, "classes": ["a", "b"], **(meta or {})},
        dist=dist or Distributed(),
    )


def main() -> int:
    """Flags are the keywords of `train`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--device", default="cpu")
    kinds = {"str": str, "int": int, "float": float, "bool": lambda text: text == "1", "int | None": int}
    toy = {"length": "int", "dropout": "float", "batch_norm": "bool", "sample_seconds": "float", "poison": "int"}
    for name, kind in {**toy, **{field.name: str(field.type) for field in fields(EngineConfig)}}.items():
        parser.add_argument(f"--{name}", type=kinds[kind], default=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    try:
        with distributed.setup(arguments.pop("device")) as dist:
            torch.set_num_threads(1)
            print(f"result {train(arguments.pop('run_dir'), dist=dist, **arguments)}", flush=True)
        threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
        print(f"threads {' '.join(threads)}", flush=True)
    except AutoMoEError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
