"""Small typed configs from JSON: dataclasses whose unknown keys are refused by name, and the profiles on disk."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from automoe.errors import ConfigError

T = TypeVar("T")

PROFILES = ("tiny", "small", "base")


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from plain data, recursively.

    where: the path of `data` in its file, for messages. Raises ConfigError naming an unknown key (with the nearest
    known one), a missing one, or one of the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object of settings, not {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(fields)}."
            raise ConfigError(f"{where} has no setting {key!r}; {hint}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where} is incomplete: {error}.") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        hint = next(a for a in args if a is not type(None))
        return _convert(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, not {value!r}.")
        items = [_convert(args[0], v, where) for v in value] if args else list(value)
        if origin is tuple and args and args[-1] is not Ellipsis and len(items) != len(args):
            raise ConfigError(f"{where} must have {len(args)} entries, not {value!r}.")
        return origin(items)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be an object, not {value!r}.")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}.")
    return value


def read_json(path: Path) -> Any:
    """The content of a JSON config. Raises ConfigError that names the file and, for bad JSON, the line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no config at {path}; name a profile ({', '.join(PROFILES)}) or another file.") from error
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read ({error.strerror}); name a file that can.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error


def project_root() -> Path:
    """The checkout that holds `training/` and `models/configs/`: where the contract's relative paths start.

    Where AutoMoE is installed without one, the current folder.
    """
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "training").is_dir() else Path.cwd()


def profile_path(component: str, profile: str) -> Path:
    """models/configs/<component>/<profile>/config.json. Raises ConfigError naming the profiles there are."""
    folder = project_root() / "models" / "configs" / component
    path = folder / profile / "config.json"
    if not path.is_file():
        have = sorted(p.parent.name for p in folder.glob("*/config.json"))
        raise ConfigError(f"no profile {profile!r} for {component}; there are {', '.join(have) or 'none'}.")
    return path
