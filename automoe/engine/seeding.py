"""Randomness as a pure function of where we are, so that a resumed run draws what the uninterrupted one drew.

Before every step the generators are seeded from (seed, rank, step). No generator state has to be saved or gathered,
and nothing that happens between steps (an evaluation, a picture, a save) can shift what training draws next.
"""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed PyTorch (CPU and all GPUs), NumPy's legacy generator and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the legacy generator is what libraries draw from
    random.seed(seed)


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed everything for one optimizer step of one rank."""
    seed_everything(int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0]))
