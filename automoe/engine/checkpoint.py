"""Files of weights: written atomically, read without executing code, fitted to a model key by key.

A checkpoint is a dict of tensors and plain Python values in PyTorch's zip format. `torch.load(weights_only=True)`
is the only way in, so a file from a stranger cannot run code.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automoe.errors import CheckpointError
from automoe.files import atomic_file

FORMAT_VERSION = 1


def save(path: Path | str, payload: dict[str, Any]) -> None:
    """Write `payload` (str keys; tensors and plain values inside) to `path`, all or nothing.

    Raises WriteError if the disk is full or not writable: what was at `path` before is still there.
    Raises TypeError, naming the key, for a value that could not be loaded again safely.
    """
    payload = {"format_version": FORMAT_VERSION, **payload}
    plain = _plain(payload, "checkpoint")
    with atomic_file(Path(path)) as file:
        torch.save(plain, file)


def load(path: Path | str, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The payload that `save` wrote. No code in the file is ever executed.

    Raises CheckpointError for a file that is missing, damaged, foreign, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}: check the path, or train first.")
    try:
        payload = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was not loaded: it is damaged, or holds Python objects that could execute code; "
            "use a checkpoint that AutoMoE wrote."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, UnicodeDecodeError, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({reason}): delete it, and copy or train it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    if not isinstance(payload, dict) or "format_version" not in payload:
        raise CheckpointError(f"{path} is not an AutoMoE checkpoint: it has no format_version.")
    if payload["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {payload['format_version']}, "
            f"this AutoMoE reads up to {FORMAT_VERSION}: update AutoMoE."
        )
    return payload


@dataclass(frozen=True)
class KeyReport:
    """How a state dict met a model: what was loaded, and the keys that did not meet."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        for title in ("missing", "unexpected", "mismatched"):
            keys = getattr(self, title)
            if keys:
                lines.append(f"  {title}, {len(keys)}: {', '.join(keys)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    *,
    allow: Sequence[str] = (),
    source: str = "the checkpoint",
    say: Callable[[str], None] = print,
) -> KeyReport:
    """Load `state_dict` into `model`, strictly but for keys that match a pattern of `allow` ("head.*").

    Allowed keys may be missing (the model's stay as they were initialised), unexpected (dropped) or of another
    shape (dropped); if there are any, the whole report is printed through `say`.
    Raises CheckpointError naming every other key that does not fit; the model is then untouched.
    """
    own = model.state_dict()
    mismatched = {
        key: f"{key} (checkpoint {tuple(value.shape)}, model {tuple(own[key].shape)})"
        for key, value in state_dict.items()
        if key in own and value.shape != own[key].shape
    }
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    fitting = [key for key in own if key in state_dict and key not in mismatched]
    report = KeyReport(fitting, missing, unexpected, list(mismatched.values()))

    def refused(keys: Sequence[str]) -> list[str]:
        return [key for key in keys if not any(fnmatch(key, pattern) for pattern in allow)]

    wrong = {
        "missing": refused(missing),
        "unexpected": refused(unexpected),
        "of another shape": [mismatched[key] for key in refused(list(mismatched))],
    }
    if any(wrong.values()):
        parts = [f"{len(keys)} {title}: {_listing(keys)}" for title, keys in wrong.items() if keys]
        raise CheckpointError(
            f"{source} does not fit the model ({'; '.join(parts)}): use the config that it was trained with, or, if an "
            "earlier version of AutoMoE wrote it, train it again."
        )
    model.load_state_dict({key: state_dict[key] for key in fitting}, strict=False)
    if missing or unexpected or mismatched:
        say(f"From {source}: {report}")
    return report


def _listing(keys: list[str], most: int = 20) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest


def _plain(value: Any, where: str) -> Any:
    """`value` with paths, NumPy scalars and subclasses of str made plain; raises TypeError for what weights_only
    would refuse."""
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {_plain(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")
