"""How an entry point meets the shell: flags with underscores, `--help`, a sentence for every mistake, exit codes.

Exit codes: 0 done, 2 a mistake of the user's (said in one sentence), 130 and 143 after Ctrl-C and SIGTERM with the
state saved, 1 a defect of ours, with its traceback.
"""

from __future__ import annotations

import os
import shlex
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


def call(app: cyclopts.App) -> None:
    """Run a cyclopts app on `sys.argv`; a user's mistake ends with its sentence on stderr and exit code 2."""
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        fail(f"{error} Try --help.")
    except AutoMoEError as error:
        fail(str(error))
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: no reason for a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def fail(sentence: str) -> None:
    """Print a sentence as an error and exit with 2. Under torchrun every process says which one it is."""
    rank = f" (rank {os.environ['RANK']})" if "LOCAL_RANK" in os.environ and "RANK" in os.environ else ""
    print(f"error{rank}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(MISUSE)


def command_line() -> str:
    """The line that started this process, to be pasted into a shell; it resumes, because that is the default."""
    launcher = os.environ.get("AUTOMOE_RESUME_COMMAND")
    if launcher:
        return launcher
    words = ["python3", *sys.argv]
    if os.environ.get("LOCAL_WORLD_SIZE"):
        words = ["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *sys.argv]
    return shlex.join(words)
