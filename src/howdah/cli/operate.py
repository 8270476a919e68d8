"""Commands that look after a store: export, import, worker."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInput, Timeout
from .options import JsonOption, StoreOption, opened
from .output import emit_json, err, out

if TYPE_CHECKING:
    from ..portability import Summary


def _counted(quiet: bool) -> Callable[[str, int], None] | None:
    """A callback that shows the table under way on a terminal."""
    if quiet or not err.is_terminal:
        return None
    return lambda name, rows: err.print(f"\r{name}: {rows:,} rows ", end="", markup=False)


def _told(verb: str, summary: Summary, place: str, json: bool) -> None:
    if json:
        emit_json(asdict(summary))
    else:
        out.print(
            f"{verb} {summary.rows:,} rows of {summary.tables} tables {place}, sha256 {summary.sha256}", markup=False
        )


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; compressed if it ends in .gz.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write the whole store to a file that any engine can read."""
    with opened(store, there=True) as opened_store:
        summary = opened_store.export(file, on_progress=_counted(json))
    _told("Wrote", summary, f"to {file}", json)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Read an export into a store; cut short, it goes on where it stopped."""
    with opened(store) as opened_store:
        summary = opened_store.import_from(file, on_progress=_counted(json))
    _told("Read", summary, f"from {file}", json)


def handler_of(name: str) -> Any:
    """The function that ``module:function`` names."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise InvalidInput(f"{name!r}: expected MODULE:FUNCTION, e.g. tasks:handle")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever happens while somebody's module is imported
        raise InvalidInput(f"{name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise InvalidInput(f"{name!r} is no function")
    return found


def worker(
    handler: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="Called with (input, ctx) for each job.")],
    queue: Annotated[str, typer.Option(help="The queue's name.")] = "default",
    workers: Annotated[int, typer.Option(help="Jobs at once in a process.")] = 1,
    processes: Annotated[int, typer.Option(help="Processes.")] = 1,
    prefetch: Annotated[int, typer.Option(help="Jobs held ready for each that runs.")] = 1,
    lease: Annotated[float, typer.Option(help="Seconds that a job is held; renewed while it runs.")] = 30,
    drain: Annotated[bool, typer.Option("--drain", help="End when no job waits or runs.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Work on the jobs of a queue until stopped (Ctrl-C or SIGTERM let running jobs finish, a second one does not)."""
    if processes < 1:
        raise InvalidInput(f"--processes {processes}: expected 1 or more")
    if processes > 1:
        raise typer.Exit(_many(processes))
    function = handler_of(handler)
    from ..jobs import JobServer

    ended = threading.Event()

    def stop(*_: object) -> None:
        if ended.is_set():
            os._exit(130)  # asked twice: what hangs is left to its lease
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with opened(store) as opened_store:
        jobs = opened_store.queue(queue)
        server = JobServer(jobs, function, workers=workers, prefetch=prefetch, lease=lease)
        with server:
            while not ended.wait(0.1):
                if drain:
                    try:
                        jobs.drain(timeout=0.5)
                        break
                    except Timeout:
                        continue
        stats = server.stats()
    if json:
        emit_json(stats)
    else:
        out.print(f"{stats.completed} jobs completed, {stats.failed} failed, {stats.retried} retried")


def _many(count: int) -> int:
    """Run this command in several processes; status 1 if any of them failed."""
    arguments, skip = [], False
    for argument in sys.argv[1:]:
        if not skip and not argument.startswith("--processes"):
            arguments.append(argument)
        skip = argument == "--processes" and not skip
    command = [sys.executable, "-m", "howdah.cli.main", *arguments]
    running = [subprocess.Popen(command) for _ in range(count)]

    def pass_on(received: int, frame: object) -> None:
        for process in running:
            process.send_signal(received)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return int(any([process.wait() != 0 for process in running]))
