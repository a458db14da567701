"""Write a run's parameters into the gating network's config.json, and leave its other keys alone.

    python training/lib/update_config.py CONFIG KEY[=VALUE] ... --experts A.pth B.pth ...

KEY is a name or a dotted path; an empty VALUE leaves the key as it is, a KEY without `=` is removed, and a number
becomes a number. The experts' files are given in the order in which the config names the experts. The file is
replaced as a whole, or, where a value isn't valid, not at all.
"""

import json
import sys
from pathlib import Path

from automoe.config import from_dict, read_json
from automoe.engine.config import EngineConfig
from automoe.errors import AutoMoEError, ConfigError
from automoe.files import write_text
from automoe.stages.gating import GatingConfig
from automoe.stages.planning import METRIC


def plain(value: str) -> object:
    """A number, where it is one."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def main(words: list[str]) -> None:
    path, rest = Path(words[0]), words[1:]
    split = rest.index("--experts") if "--experts" in rest else len(rest)
    config = read_json(path)
    from_dict(GatingConfig, config, str(path))  # of the right shape, to be changed
    for word in rest[:split]:
        key, given, value = word.partition("=")
        if given and not value:
            continue
        *folders, name = key.split(".")
        place = config
        for folder in folders:
            place = place.setdefault(folder, {})
        if not given:
            place.pop(name, None)
            continue
        place[name] = value if name == "data_root" else plain(value)
    checkpoints, experts = rest[split + 1 :], config.get("experts", {})
    if checkpoints and len(checkpoints) != len(experts):
        raise ConfigError(f"{path} names {len(experts)} experts, and {len(checkpoints)} checkpoints are given.")
    for entry, checkpoint in zip(experts.values(), checkpoints):
        entry["checkpoint"] = checkpoint
    valid = from_dict(GatingConfig, config, str(path))
    from_dict(EngineConfig, {**valid.engine, "metric": METRIC}, f"{path}: engine")
    write_text(path, json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AutoMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
