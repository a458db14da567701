"""How an entry point meets the shell: flags with underscores, `--help`, a sentence for every mistake, exit codes.

Exit codes: 0 done, 2 a mistake of the user's (said in one sentence), 130 and 143 after Ctrl-C and SIGTERM with the
state saved, 1 a defect of ours, with its traceback.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

import cyclopts

from automoe.errors import AutoMoEError

MISUSE = 2


def run_entry_point(function: Callable[..., Any], *, name: str, epilogue: str = "") -> None:
    """Parse the command line into `function`'s parameters, call it and exit."""
    app = cyclopts.App(
        name=name,
        help_epilogue=epilogue or None,
        help_format="plaintext",
        version_flags=(),
        default_parameter=cyclopts.Parameter(name_transform=lambda field: field, show_default=False),
        result_action="return_value",
    )
    app.default(function)
    call(app)


def call(app: cyclopts.App, *, reader_may_leave: bool = False) -> None:
    """Run a cyclopts app on `sys.argv`; a user's mistake ends with its sentence on stderr and exit code 2.

    reader_may_leave: a closed pipe (head, less) is a good end; otherwise what was left unsaid is a failure.
    """
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        fail(f"{error} Try --help.")
    except AutoMoEError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # No reason for a traceback, which would come again when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0 if reader_may_leave else 128 + signal.SIGPIPE)


def fail(sentence: str) -> None:
    """Print a sentence as an error and exit with 2. Under torchrun every process says which one it is."""
    rank = f" (rank {os.environ['RANK']})" if "LOCAL_RANK" in os.environ and "RANK" in os.environ else ""
    print(f"error{rank}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(MISUSE)


def command_line() -> str:
    """The line that goes on with this process's run, to be pasted into a shell.

    It is the line that started it without --resume, whose default goes on where last.pth stands. On several nodes
    the meeting point is named by placeholders: torchrun doesn't pass it on.
    """
    launcher = os.environ.get("AUTOMOE_RESUME_COMMAND")
    if launcher:
        return launcher
    words = _without_resume(sys.argv)
    if not os.environ.get("LOCAL_WORLD_SIZE"):
        return shlex.join(["python3", *words])
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    several = [f"--nnodes={nodes}", "--rdzv_backend=c10d", "--rdzv_endpoint=HOST:PORT"] if nodes > 1 else []
    return shlex.join(["torchrun", *several, f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *words])


def _without_resume(words: list[str]) -> list[str]:
    kept, value_follows = [], False
    for word in words:
        if not value_follows and word != "--resume" and not word.startswith("--resume="):
            kept.append(word)
        value_follows = word == "--resume"
    return kept
