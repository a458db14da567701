"""Frozen experts' tokens on disk, named by content: which expert (by its weights) looked at which picture (by its
bytes). What is there is there for every later run, whatever set the picture is in; a changed expert or picture has
another name and is made anew. Several processes may read and write at once (LMDB: one writer at a time, readers never
wait, and a kill leaves no half-written entry).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch

from automoe.errors import DataError, WriteError
from automoe.moe.tokens import Tokens, TokenSource
from automoe.progress import Progress

MOST_BYTES = 1 << 42
"""Of a cache's address space; the file grows as it is filled."""

BATCH = 4
"""Pictures that are looked at together: with more, maps fall out of a processor's cache."""


class TokenCache:
    """A folder of tokens. Raises WriteError where it can't be opened or the disk is full."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._env: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_env": None}  # an environment belongs to one process

    @property
    def env(self) -> Any:
        if self._env is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._env = lmdb.open(str(self.folder), map_size=MOST_BYTES, readahead=False, meminit=False)
            except (OSError, lmdb.Error) as error:
                raise WriteError(f"the cache of expert tokens {self.folder} can't be opened: {error}.") from error
        return self._env

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def missing(self, digest: str, keys: Iterable[bytes]) -> list[int]:
        """The places of those keys for which an expert's tokens are not there."""
        prefix = bytes.fromhex(digest)
        with self.env.begin(buffers=True) as transaction:
            return [place for place, key in enumerate(keys) if transaction.get(prefix + key) is None]

    def put(self, digest: str, keys: Sequence[bytes], tokens: Tokens) -> None:
        """Keep an expert's tokens of some pictures, in half precision."""
        values = torch.cat([tokens.positions, tokens.features], dim=-1).half().cpu().numpy()
        shape = np.array(values.shape[1:], np.int32).tobytes()
        prefix = bytes.fromhex(digest)
        try:
            with self.env.begin(write=True) as transaction:
                for key, value in zip(keys, values, strict=True):
                    transaction.put(prefix + key, shape + value.tobytes())
        except lmdb.Error as error:
            raise WriteError(f"the cache of expert tokens {self.folder} takes no more: {error}.") from error

    def get(self, digest: str, keys: Sequence[bytes]) -> Tokens:
        """An expert's tokens of some pictures, float32. Raises DataError where they were never made."""
        prefix, found = bytes.fromhex(digest), []
        with self.env.begin(buffers=True) as transaction:
            for key in keys:
                value = transaction.get(prefix + key)
                if value is None:
                    raise DataError(
                        f"{self.folder} has no tokens of the picture {key.hex()[:12]}; fill the cache first"
                    )
                count, width = np.frombuffer(value, np.int32, 2)
                found.append(
                    np.frombuffer(value, np.float16, count * width, 8).reshape(count, width).astype(np.float32)
                )
        values = torch.from_numpy(np.stack(found))
        return Tokens(values[..., 2:], values[..., :2])


class CachedTokens:
    """A `TokenSource` for pictures that are keys of a cache."""

    def __init__(self, cache: TokenCache, digests: dict[str, str], device: torch.device | str = "cpu") -> None:
        self.cache, self.digests, self.device = cache, digests, device

    def __call__(self, expert: str, pictures: Sequence[Any]) -> Tokens:
        tokens = self.cache.get(self.digests[expert], pictures)
        return Tokens(tokens.features.to(self.device), tokens.positions.to(self.device))


class Remembered:
    """A `TokenSource` that asks another one once for all pictures of a batch, expert by expert, and answers for any of
    them from then on."""

    def __init__(self, source: TokenSource, pictures: Sequence[Any]) -> None:
        self.source, self.pictures = source, list(pictures)
        self.rows = {picture: row for row, picture in enumerate(self.pictures)}
        self._known: dict[str, Tokens] = {}

    def __call__(self, expert: str, pictures: Sequence[Any]) -> Tokens:
        if expert not in self._known:
            self._known[expert] = self.source(expert, self.pictures)
        known = self._known[expert]
        rows = torch.tensor([self.rows[picture] for picture in pictures], device=known.features.device)
        return Tokens(known.features[rows], known.positions[rows])


def fill(
    cache: TokenCache,
    digest: str,
    looker: Callable[[Sequence[np.ndarray]], Tokens],
    keys: Sequence[bytes],
    picture: Callable[[int], np.ndarray],
    progress: Progress = lambda done, total: None,
) -> int:
    """Make the tokens of those keys' pictures that are not there yet, and return how many that were.

    looker: an expert or a stem, pictures to tokens. picture: gives the raw picture of a place among the keys.
    """
    waiting = cache.missing(digest, keys)
    for first in range(0, len(waiting), BATCH):
        places = waiting[first : first + BATCH]
        cache.put(digest, [keys[place] for place in places], looker([picture(place) for place in places]))
        progress(first + len(places), len(waiting))
    return len(waiting)
