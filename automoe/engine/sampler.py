"""Which samples a process sees, in which order: pure functions of (seed, epoch), so any step can be returned to.

A sample's key is `(epoch, index)`: a data set's `__getitem__` takes it, and makes its augmentation a function of
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from automoe.errors import ConfigError

Key = tuple[int, int]


class ResumableSampler(Sampler[list[Key]]):
    """Batches of keys for training, for as many epochs as are asked for, starting at any batch.

    An epoch is a permutation of the data set (with `weights`, as many draws with replacement, in proportion to
    them). It is cut into global batches of batch_size * accumulate * world_size; the rest of the permutation,
    smaller than one global batch, is left out of this epoch, so that every rank has equally many full batches. A
    data set smaller than one global batch is repeated (reshuffled) until it fills one.

    Step s takes the same samples however a global batch is shared among processes and micro-batches. The sampler
    runs on across epochs, so loader workers never wait at the end of one.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        epochs: int = 1,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        start_batch: int = 0,
        stop_batch: int | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """`start_batch` and `stop_batch` count this rank's batches from the beginning of epoch 0.

        Raises ConfigError for an empty data set or unusable weights.
        """
        if length < 1:
            raise ConfigError("The training set is empty: check the data root, the split and --limit.")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.global_batch_size = batch_size * accumulate * world_size
        self.steps_per_epoch = max(1, length // self.global_batch_size)
        self.batches_per_epoch = self.steps_per_epoch * accumulate
        self.start_batch = start_batch
        self.stop_batch = epochs * self.batches_per_epoch if stop_batch is None else stop_batch
        self._probabilities = _probabilities(weights, length)
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Indices [steps_per_epoch * global_batch_size] of one epoch over all ranks, in order of use."""
        if self._cached is None or self._cached[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            needed = self.steps_per_epoch * self.global_batch_size
            rounds = [self._draw(generator) for _ in range(math.ceil(needed / self.length))]
            self._cached = (epoch, np.concatenate(rounds)[:needed])
        return self._cached[1]

    def batch(self, position: int) -> list[Key]:
        """This rank's batch number `position`, counted from the beginning of epoch 0."""
        epoch, within = divmod(position, self.batches_per_epoch)
        first = (within * self.world_size + self.rank) * self.batch_size
        return [(epoch, int(index)) for index in self.epoch_order(epoch)[first : first + self.batch_size]]

    def __iter__(self) -> Iterator[list[Key]]:
        return (self.batch(position) for position in range(self.start_batch, self.stop_batch))

    def __len__(self) -> int:
        return max(0, self.stop_batch - self.start_batch)

    def _draw(self, generator: np.random.Generator) -> np.ndarray:
        if self._probabilities is None:
            return generator.permutation(self.length)
        return generator.choice(self.length, size=self.length, p=self._probabilities)


class EvaluationSampler(Sampler[list[Key]]):
    """Batches of keys that cover the data set exactly once over all ranks; ranks may differ by one sample.

    Rank r takes indices r, r + world_size, ... in order, all with epoch 0.
    """

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, length, world_size)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[first : first + self.batch_size]]

    def __len__(self) -> int:
        return (len(self.indices) + self.batch_size - 1) // self.batch_size


def _probabilities(weights: Sequence[float] | np.ndarray | None, length: int) -> np.ndarray | None:
    if weights is None:
        return None
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (length,) or not np.isfinite(array).all() or (array < 0).any() or array.sum() <= 0:
        raise ConfigError(
            f"Sampling weights must be {length} finite numbers of at least 0, not all 0, one a sample; "
            f"their shape is {array.shape}."
        )
    return array / array.sum()
