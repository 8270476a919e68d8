"""Blocking job servers, clients and handles: the async ones, on the event loop of the queue's store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import InvalidInput
from ..jobs.attempt import Handler
from ..jobs.client import AsyncJobClient, AsyncJobHandle, ProgressUpdate
from ..jobs.server import AsyncJobServer, Stats
from ..stores.common import Duration
from .queue import Queue
from .runner import Runner, iterate


def _queue(given: Any) -> Queue:
    if not isinstance(given, Queue):
        raise InvalidInput(f"expected a queue of store.queue(…), got {type(given).__name__}")
    return given


class JobServer:
    """Runs ``handler(input, ctx)`` on the jobs of a queue, in the background; options as for ``AsyncJobServer``."""

    def __init__(self, queue: Queue, handler: Handler, **options: Any) -> None:
        self._run = _queue(queue)._run
        letters = options.get("dead_letter_to")
        if letters is not None:
            options["dead_letter_to"] = _queue(letters)._async
        self._async = AsyncJobServer(queue._async, handler, **options)

    def __enter__(self) -> JobServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the server has been started and not stopped."""
        return self._async.running

    def start(self) -> None:
        """Begin to work in the background; a second call changes nothing."""
        self._run.wait(self._async.start())

    def stop(self) -> None:
        """Claim nothing more, let jobs finish for ``stop_timeout`` seconds, then stop them and give them back."""
        self._run.wait(self._async.stop())

    def scale(self, workers: int) -> None:
        """Run so many jobs at once from now on."""
        self._run.wait(self._async.scale(workers))

    def run_once(self) -> bool:
        """Do one job here and now; whether there was one."""
        return self._run.wait(self._async.run_once())

    def stats(self) -> Stats:
        """What happened since the start."""
        return self._async.stats()

    def on(self, name: str, fn: Callable[..., Any]) -> Callable[[], None]:
        """Call ``fn`` at every event ``name``; the function returned ends it."""
        return self._async.on(name, fn)

    def once(self, name: str, fn: Callable[..., Any]) -> Callable[[], None]:
        """Call ``fn`` at the next event ``name`` only."""
        return self._async.once(name, fn)

    def off(self, name: str, fn: Callable[..., Any] | None = None) -> None:
        """End a listener of an event; without ``fn`` all of them."""
        self._async.off(name, fn)


class JobClient:
    """Submits jobs to a queue and waits for their results."""

    def __init__(self, queue: Queue) -> None:
        self._run = _queue(queue)._run
        self._async = AsyncJobClient(queue._async)

    def submit(self, input: Any, **options: Any) -> JobHandle:
        """Add a job (``options`` are those of ``queue.add``); a handle on it."""
        return JobHandle(self._run(self._async.submit(input, **options)), self._run)

    def submit_many(self, inputs: Iterable[Any], **options: Any) -> list[JobHandle]:
        """Add many jobs, all or none; their handles in order."""
        return [JobHandle(handle, self._run) for handle in self._run(self._async.submit_many(inputs, **options))]

    def attach(self, id: str) -> JobHandle:
        """A handle on a job that is there already; ``JobNotFound`` if it is not."""
        return JobHandle(self._run(self._async.attach(id)), self._run)


class JobHandle:
    """A job that was submitted."""

    def __init__(self, inner: AsyncJobHandle, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def id(self) -> str:
        """The job's id."""
        return self._async.id

    def result(self, *, timeout: Duration | None = None) -> Any:
        """The job's output once it is completed; raises its error when it failed."""
        return self._run.wait(self._async.result(timeout=timeout))

    def abort(self) -> bool:
        """Stop the job; ``False`` when it has finished."""
        return self._run(self._async.abort())

    def progress(self) -> Iterator[ProgressUpdate]:
        """The latest progress, then each that follows, until the job has finished."""
        return iterate(self._run.wait, self._async.progress())

    def on_progress(self, fn: Callable[[ProgressUpdate], Any]) -> Callable[[], None]:
        """Call ``fn`` with the latest progress and each that follows; the function returned ends it."""
        return self._run.wait(self._async.on_progress(fn))

    def stream(self, *, since: int = 0) -> Iterator[Any]:
        """The events that the job emits, from number ``since`` on, until it has finished."""
        return iterate(self._run.wait, self._async.stream(since=since))
