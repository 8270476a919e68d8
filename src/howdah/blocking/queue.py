"""A job queue: a table of jobs with an atomic ``claim``. Blocking twin of ``howdah.stores.queue``, made by tools/blocking.py: change that, not this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from ..changes import Change
from ..stores.common import Duration
from ..stores.job import (
    Job,
    JobStatus,
)
from ..stores.queue import AsyncQueue
from ..stores.schedule import Schedule
from .changes import Changes
from .claim import Claim
from .runner import Runner, iterate
from .subscription import subscribed


class Queue:
    """Jobs of one queue and scope. Opened by ``store.queue(name)``."""

    def __init__(self, inner: AsyncQueue, run: Runner) -> None:
        self._async = inner
        self._run = run

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._async.name

    @property
    def scope(self) -> dict[str, Any]:
        """The scope's columns; empty without one."""
        return self._async.scope

    def claim(self, worker: str, *, lease: Duration = 30) -> Claim | None:
        """Take the next job that may start, for ``lease`` seconds; ``None`` when there is none.

        Exactly one worker gets a job; the claim of one that was slower than its lease is ``ClaimLost``.
        """
        found = self._run(self._async.claim(worker, lease=lease))
        return None if found is None else Claim(found, self._run)

    def claim_many(self, worker: str, *, limit: int, lease: Duration = 30) -> list[Claim]:
        """Take up to ``limit`` jobs at once, best first."""
        return [
            Claim(found, self._run) for found in self._run(self._async.claim_many(worker, limit=limit, lease=lease))
        ]

    def abort(self, id: str) -> bool:
        """Stop a job: one that waits fails at once (code ``Aborted``), one that runs is asked to stop. Not finished ones."""
        return self._run(self._async.abort(id))

    def abort_run(self, run_id: str) -> int:
        """Stop every job of a run; how many were waiting or running."""
        return self._run(self._async.abort_run(run_id))

    def save_progress(self, id: str, progress: float, *, message: str = "", details: Any = None) -> bool:
        """Say how far a job is, 0 to 100; ``False`` when it is not there or has finished."""
        return self._run(self._async.save_progress(id, progress, message=message, details=details))

    def pause(self) -> None:
        """Hand out no job of this queue and scope any more, anywhere (others notice within a quarter of a second)."""
        return self._run(self._async.pause())

    def resume(self) -> None:
        """Hand out jobs again."""
        return self._run(self._async.resume())

    def drain(self, *, timeout: Duration | None = None) -> None:
        """Wait until no job waits or runs; ``Timeout`` after ``timeout`` seconds."""
        return self._run(self._async.drain(timeout=timeout))

    def delete(self, id: str) -> bool:
        """Delete a job, whatever it does; its worker's claim is lost."""
        return self._run(self._async.delete(id))

    def clear(self) -> int:
        """Delete every job of this queue and scope; how many there were."""
        return self._run(self._async.clear())

    def purge(self, status: JobStatus | str, older_than: Duration = 0) -> int:
        """Delete the jobs that finished with a status at least so many seconds ago; how many. Completed ones that others
        wait for stay, and on the queue of a job server those whose dead letter is still to be sent."""
        return self._run(self._async.purge(status, older_than))

    def redrive(self, ids: Iterable[str] | None = None) -> int:
        """Let failed jobs (all dead letters, or these) run again with all their attempts; how many."""
        return self._run(self._async.redrive(ids))

    def schedule(
        self, cron: str, input: Any, *, id: str | None = None, timezone: str = "UTC", **options: Any
    ) -> Schedule:
        """Add a job whenever ``cron`` (five fields, in ``timezone``) fits; ``options`` are those of ``add``.

        ``id`` (default: the fingerprint of expression and input) names the schedule; the same one again replaces it. A
        moment that comes while no worker claims is made up for once. Whoever claims adds what is due, one of all processes.
        """
        return self._run(self._async.schedule(cron, input, id=id, timezone=timezone, **options))

    def unschedule(self, id: str) -> bool:
        """Remove a schedule; whether it was there."""
        return self._run(self._async.unschedule(id))

    def schedules(self) -> list[Schedule]:
        """The schedules of this queue and scope, by id."""
        return self._run(self._async.schedules())

    def changes(self, *, scope: Mapping[str, Any] | None = None, since: str | None = None) -> Changes[Job]:
        """Committed changes of jobs, from every process; ``scope={}`` for every tenant's, some columns for theirs."""
        return Changes(self._async.changes(scope=scope, since=since), self._run)

    def subscribe(
        self,
        callback: Callable[[Change[Job]], Any],
        *,
        scope: Mapping[str, Any] | None = None,
        poll: float | timedelta = 1,
    ) -> Callable[[], None]:
        """Call ``callback(change)`` for every change of a job from now on; the function returned ends it at once."""
        return subscribed(self.changes(scope=scope), callback, poll)

    def stream(self, id: str, *, since: int = 0) -> Iterator[Any]:
        """The events of a job after number ``since``, then those that come, until it has finished.

        The last 8 MiB of a job's events are kept, until 30 seconds after its end. Raises ``JobNotFound``, and
        ``LimitExceeded`` when the job ended longer ago, or events after ``since`` had to make room for newer ones.
        """
        return iterate(self._run, self._async.stream(id, since=since))

    def add(
        self,
        input: Any,
        *,
        delay: Duration = 0,
        timeout: Duration | None = None,
        priority: int = 0,
        max_attempts: int = 10,
        run_id: str | None = None,
        fingerprint: str | None = None,
        unique: bool = False,
        after: Sequence[str] = (),
    ) -> str:
        """Add a job; its id. ``input`` is any JSON value.

        It may start after ``delay`` seconds and not after ``timeout``; jobs of a higher ``priority`` go first;
        ``max_attempts`` counts executions. With ``unique=True``, while a job of this ``fingerprint`` (default: that of the
        input) waits or runs, its id is returned and nothing added. It starts when the jobs in ``after`` have completed, and
        fails (code ``NeededJobFailed``) when one of them failed, was disabled or deleted; ``JobNotFound`` for one that the
        queue does not have. Inside a transaction the job comes with the commit.
        """
        return self._run(
            self._async.add(
                input,
                delay=delay,
                timeout=timeout,
                priority=priority,
                max_attempts=max_attempts,
                run_id=run_id,
                fingerprint=fingerprint,
                unique=unique,
                after=after,
            )
        )

    def add_many(
        self,
        inputs: Iterable[Any],
        *,
        delay: Duration = 0,
        timeout: Duration | None = None,
        priority: int = 0,
        max_attempts: int = 10,
        run_id: str | None = None,
        unique: bool = False,
        after: Sequence[str] = (),
    ) -> list[str]:
        """Add many jobs, all or none; their ids in the order of the inputs. The options count for each."""
        return self._run(
            self._async.add_many(
                inputs,
                delay=delay,
                timeout=timeout,
                priority=priority,
                max_attempts=max_attempts,
                run_id=run_id,
                unique=unique,
                after=after,
            )
        )

    def get(self, id: str) -> Job | None:
        """The job, or ``None``. Never waits for a worker that is changing it."""
        return self._run(self._async.get(id))

    def get_many(self, ids: Iterable[str]) -> dict[str, Job]:
        """The jobs found, by id, in the order asked."""
        return self._run(self._async.get_many(ids))

    def by_run(self, run_id: str) -> list[Job]:
        """The jobs of a run, in the order they were added."""
        return self._run(self._async.by_run(run_id))

    def find_active(self, fingerprint: str) -> Job | None:
        """A job of this fingerprint that waits or runs."""
        return self._run(self._async.find_active(fingerprint))

    def peek(
        self,
        status: JobStatus | str = JobStatus.PENDING,
        *,
        limit: int | None = 100,
        scope: Mapping[str, Any] | None = None,
    ) -> list[Job]:
        """Jobs of a status, those that may start first in front. ``scope={}`` shows every tenant's."""
        return self._run(self._async.peek(status, limit=limit, scope=scope))

    def count(self, status: JobStatus | str = JobStatus.PENDING, *, scope: Mapping[str, Any] | None = None) -> int:
        """How many jobs have a status."""
        return self._run(self._async.count(status, scope=scope))

    def counts(self, *, scope: Mapping[str, Any] | None = None) -> dict[JobStatus, int]:
        """How many jobs there are of each status, all of them named."""
        return self._run(self._async.counts(scope=scope))

    def completed_for(self, input: Any) -> Job | None:
        """The newest completed job with the fingerprint of this input."""
        return self._run(self._async.completed_for(input))

    def output_for(self, input: Any) -> Any:
        """The output already computed for this input, else ``None``; ``completed_for`` tells a ``None`` apart."""
        return self._run(self._async.output_for(input))

    def dead_letters(self, *, limit: int | None = 100) -> list[Job]:
        """Jobs that failed and were not aborted, the latest first."""
        return self._run(self._async.dead_letters(limit=limit))
