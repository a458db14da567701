"""What a training run can be told: `EngineConfig`, checked when it is made. Defaults live here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from automoe.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """Everything the loop needs to know. Sizes are per process, steps are optimizer steps.

    Raises ConfigError, naming the key, when a value makes no sense.
    """

    metric: str
    """The key of the evaluation's metrics that selects best.pth."""
    metric_mode: str = "max"
    """"max" if a larger metric is better, "min" if a smaller one is."""
    epochs: int = 12
    max_steps: int | None = None
    """Stop after so many optimizer steps, for quick looks; the learning rate's schedule ends there too."""

    batch_size: int = 8
    """Samples a process and micro-batch: the global batch is batch_size * accumulate * processes."""
    accumulate: int = 1
    """Micro-batches a step, for a larger global batch in the same memory."""
    num_workers: int = 2
    """Loader processes a training process; 0 loads in the training process itself."""

    learning_rate: float = 2e-4
    """The peak, taken as it is: it is not scaled with the global batch size."""
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    """Linear warm-up; at most half of the run."""
    final_lr_factor: float = 0.01
    """The cosine ends at learning_rate * final_lr_factor."""
    clip_norm: float = 1.0
    """The largest global norm of the gradient; 0 does not clip."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are evaluated and saved as best.pth; 0 uses the raw weights."""

    amp: str = "auto"
    """"auto" is bf16 on CUDA devices that have it and off elsewhere; "bf16" and "off" say it outright."""
    compile: bool = False
    """torch.compile the model: a minute at the start, faster steps afterwards."""
    find_unused_parameters: bool = False
    """For models in which some parameters take no part in some steps (several processes only)."""

    seed: int = 0
    eval_every: int = 1
    """Epochs between evaluations; the end of the run is always evaluated."""
    save_seconds: float = 300.0
    """Write last.pth when so many seconds have passed since it was last written; 0 never by time."""
    save_steps: int = 0
    """Write last.pth every so many steps; 0 never by steps. Around evaluations it is always written."""
    log_steps: int = 20
    """Steps between points in TensorBoard."""
    log_seconds: float = 15.0
    """Seconds between the plain progress lines that stand for the bar where there is no terminal."""

    resume: str = "auto"
    """"auto" goes on from last.pth if there is one, "never" starts anew, anything else is a path to go on from."""
    resume_command: str = ""
    """Printed when the run is interrupted: the line that continues it."""

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 1,
            "batch_size": 1,
            "accumulate": 1,
            "eval_every": 1,
            "log_steps": 1,
            "num_workers": 0,
            "warmup_steps": 0,
            "seed": 0,
            "save_steps": 0,
            "save_seconds": 0,
            "weight_decay": 0,
            "clip_norm": 0,
            "final_lr_factor": 0,
        }
        for key, least in at_least.items():
            if not getattr(self, key) >= least:
                raise ConfigError(f"{key} is {getattr(self, key)}: give a number of at least {least}.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps is {self.max_steps}: give a number of at least 1, or leave it out.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}: give a number above 0.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}: give a number from 0 (off) to below 1.")
        for key, choices in {"metric_mode": ("max", "min"), "amp": ("auto", "bf16", "off")}.items():
            if getattr(self, key) not in choices:
                raise ConfigError(f"{key} is {getattr(self, key)!r}: choose one of {', '.join(choices)}.")
