"""What frozen parts of a driving model see, looked up: each picture is looked at once, and remembered in a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from automoe.data.sequences import CarlaSequences, picture_key
from automoe.engine.distributed import Distributed
from automoe.errors import CheckpointError
from automoe.moe.cache import CachedTokens, TokenCache, fill
from automoe.moe.context import Context, FrozenStem
from automoe.moe.model import DrivingModel
from automoe.moe.tokens import FrozenExpert, Tokens, TokenSource
from automoe.progress import progress_bar

STEM = "the stem"


@dataclass
class Memory:
    """What is known of the pictures of some sets.

    experts: by the pictures' keys, None where there are no experts. stem: by the keys of their looks, None where it
    learns and has to look itself; stem_digest: of the weights that looked.
    """

    experts: TokenSource | None = None
    stem: TokenSource | None = None
    stem_digest: str | None = None

    def context(self, model: DrivingModel, batch: Mapping[str, Any]) -> Context:
        """What a model knows of a batch of `CarlaSequences`. Raises CheckpointError where its stem is another one."""
        if self.stem is None:
            return model.context(batch["observation"])
        if self.stem_digest is not None:
            if FrozenStem(model.context).digest() != self.stem_digest:
                raise CheckpointError(
                    "the run that goes on has another stem than the one that looked at the pictures just now; go on "
                    "with the flags that it began with (--pretrained or --no-pretrained), or anew with --resume never."
                )
            self.stem_digest = None  # it is frozen: once is enough
        return model.context(batch["observation"], self.stem(STEM, batch["look"]))


def remember(
    cache: TokenCache,
    model: DrivingModel,
    experts: Mapping[str, FrozenExpert],
    sets: Sequence[CarlaSequences],
    dist: Distributed,
) -> Memory:
    """Have everything in the cache that experts, and a stem that learns nothing, see of all pictures of some sets; each
    process looks at its share. The stem looks at sets whose pictures are `remembered`."""
    memory = Memory()
    if experts:
        memory.experts = CachedTokens(cache, fill_experts(cache, experts, sets, dist), dist.device)
    remembered = [data for data in sets if data.remembered is not None]
    if remembered:
        stem = FrozenStem(model.context.to(dist.device))
        memory.stem_digest = stem.digest()
        looks, keys = [], []
        for data, row, aside in _share(remembered, dist):
            picture = picture_key(data.picture(row, aside)[1])
            for version in range(data.remembered or 0):
                looks.append((data, row, aside, version))
                keys.append(data.look_key(picture, version))

        def look(place: int) -> np.ndarray:
            data, row, aside, version = looks[place]
            return data.look(row, aside, version)

        _fill(cache, STEM, memory.stem_digest, stem, keys, look, dist)
        memory.stem = CachedTokens(cache, {STEM: memory.stem_digest}, dist.device)
        dist.barrier()
    return memory


def fill_experts(
    cache: TokenCache, experts: Mapping[str, FrozenExpert], sets: Sequence[CarlaSequences], dist: Distributed
) -> dict[str, str]:
    """Have every expert's tokens of all pictures of some sets in the cache. Returns the experts' digests by name."""
    digests = {name: expert.digest() for name, expert in experts.items()}
    places = _share(sets, dist)
    keys = [picture_key(data.picture(row, aside)[1]) for data, row, aside in places]

    def picture(place: int) -> np.ndarray:
        data, row, aside = places[place]
        return data.look(row, aside, 0)

    for name, expert in experts.items():
        _fill(cache, name, digests[name], expert.to(dist.device), keys, picture, dist)
    dist.barrier()
    return digests


def _share(sets: Sequence[CarlaSequences], dist: Distributed) -> list[tuple[CarlaSequences, int, bool]]:
    """All pictures of some sets that this process looks at: set, row, and whether it is seen from aside."""
    return [(data, row, aside) for data in sets for row, aside in data.views()][dist.rank :: dist.world_size]


def _fill(
    cache: TokenCache,
    name: str,
    digest: str,
    looker: Callable[[Sequence[np.ndarray]], Tokens],
    keys: Sequence[bytes],
    picture: Callable[[int], np.ndarray],
    dist: Distributed,
) -> None:
    waiting = len(cache.missing(digest, keys))
    if not waiting:
        dist.say(f"{name}: what it sees of {len(keys)} pictures is in the cache.")
        return
    dist.say(f"{name}: looking at {waiting} pictures ({len(keys) - waiting} are in the cache {cache.folder})")
    with progress_bar(f"look with {name}") as progress:
        fill(cache, digest, looker, keys, picture, progress if dist.is_main else lambda *_: None)
