"""Classes that labels don't tell apart are learnt and said as one, by a head that knows them all.

CARLA's older tags know `vehicle` where BDD100K knows six classes. The head stays as it was trained, so that a source
checkpoint fits; of each group the class that stands for it gets what the group says together, the others get nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from automoe.errors import ConfigError

NEVER = -30.0
"""The logit of a class that another stands for: its probability is nothing, and its loss too."""


class ClassMerge:
    """collapse: from a class to the one that stands for it; empty for none. Raises ConfigError for unknown classes, and
    for one that is stood for and stands for others."""

    def __init__(self, classes: Sequence[str], collapse: Mapping[str, str]) -> None:
        for name in (*collapse, *collapse.values()):
            if name not in classes:
                raise ConfigError(f"collapse names {name!r}, which is none of the classes {', '.join(classes)}.")
            if name in collapse and name in collapse.values():
                raise ConfigError(f"collapse has {name!r} on both sides.")
        groups: dict[str, list[int]] = {}
        for name, chief in collapse.items():
            groups.setdefault(chief, [classes.index(chief)]).append(classes.index(name))
        self.groups = list(groups.values())

    def best(self, logits: Tensor, dim: int) -> Tensor:
        """For classes that are said independently (sigmoid): a group says the most that one of its classes says."""
        return self._merged(logits, dim, lambda one: one.amax(dim=dim))

    def sum(self, logits: Tensor, dim: int) -> Tensor:
        """For classes of which one is right (softmax): a group has the probabilities of its classes together."""
        return self._merged(logits, dim, lambda one: one.logsumexp(dim=dim))

    def _merged(self, logits: Tensor, dim: int, join) -> Tensor:
        if not self.groups:
            return logits
        columns = list(logits.unbind(dim))
        for chief, *others in self.groups:
            columns[chief] = join(torch.stack([columns[index] for index in (chief, *others)], dim=dim))
            for index in others:
                columns[index] = torch.full_like(columns[index], NEVER)
        return torch.stack(columns, dim=dim)
