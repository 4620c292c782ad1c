"""The command in processes of its own that cost no imports: they are forked from a server that has made them.

A process started from nothing takes three seconds of two cores to import torch. What a test asks of the process that it
starts, signals, limits, streams that are files, pipes or terminals, is the same in a forked one. Not the same is what
Python does at its own start and end: of a stream that is closed before, of flags, of a last flush. Tests of these start
an interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess as Process
from pathlib import Path

from gradbench.planning import files

FORK = multiprocessing.get_context("forkserver")
PACKAGE = Path(files.__file__).parents[1]
ROOMS = ("api.py", "commands", "diagnostics", "dynamics", "engine", "estimators", "systems", "tables", "training")
# what the children find imported: all that runs, checks and explains, and nothing that draws
FORK.set_forkserver_preload(
    [
        *("torch", "pandas", "pyarrow.parquet", "gradbench.cli"),
        *(
            ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            for room in ROOMS
            for path in sorted([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).glob("[a-z]*.py"))
        ),
    ]
)


def start(
    code: str,
    *arguments: str | Path,
    streams: Mapping[int, str | Path | None] | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Begin Python code in a process with these arguments.

    `streams` holds the file that is read from 0 or written to 1 and 2, or None where the stream is closed.
    """
    found = dict(os.environ) | dict(env or {})
    process = FORK.Process(
        target=_work, args=(code, [str(a) for a in arguments], dict(streams or {}), found, os.getcwd())
    )
    process.start()
    return process


def run(
    arguments: list[str | Path],
    streams: Mapping[int, str | Path | None],
    first: str = "",
    env: Mapping[str, str] | None = None,
) -> int:
    """The command, after the code `first`: its exit code."""
    process = start(f"{first}\nfrom gradbench.cli import main; main()", *arguments, streams=streams, env=env)
    return ended(process)


def ended(process: Process, seconds: float = 120) -> int:
    """The exit code of a process, which is waited for."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"a process did not end within {seconds} s")
    return process.exitcode


def _work(
    code: str, arguments: list[str], streams: Mapping[int, str | Path | None], env: Mapping[str, str], folder: str
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for number, path in streams.items():
        os.close(number)
        if path is not None:
            opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        elif number:  # as the interpreter has it that is started so
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)
    sys.argv = ["gradbench", *arguments]
    exec(code, {"__name__": "__main__"})
