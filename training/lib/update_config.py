"""Write a run's parameters into its config.json, and leave its other keys alone.

    python training/lib/update_config.py CONFIG KEY=VALUE ... --experts A.pth B.pth ...

KEY is a name or a dotted path; an empty VALUE leaves the key as it is. A number becomes a number, null null. The
experts' files are given in the order in which the config names the experts. The file is replaced as a whole, or not at
all.
"""

import json
import sys
from pathlib import Path

from automoe.config import read_json
from automoe.errors import AutoMoEError, ConfigError
from automoe.files import write_text


def plain(value: str) -> object:
    """A number or null, where it is one."""
    if value == "null":
        return None
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
    for word in rest[:split]:
        key, _, value = word.partition("=")
        if not value:
            continue
        *folders, name = key.split(".")
        place = config
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value if name == "data_root" else plain(value)
    checkpoints, experts = rest[split + 1 :], config.get("experts", {})
    if checkpoints and len(checkpoints) != len(experts):
        raise ConfigError(f"{path} names {len(experts)} experts, and {len(checkpoints)} checkpoints are given.")
    for entry, checkpoint in zip(experts.values(), checkpoints):
        entry["checkpoint"] = checkpoint
    write_text(path, json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AutoMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
