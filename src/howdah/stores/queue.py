"""A job queue: a table of jobs with an atomic ``claim``."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar
from zlib import crc32

from ..changes import AsyncChanges, Change, subscribe
from ..criteria import And, Compare, Criteria, In, Null, Or
from ..engines.base import Engine, Op, Patches, Take, innermost
from ..errors import Error, InvalidInput, JobNotFound, Timeout
from ..naming import store_table
from ..pages import check_limit
from ..rows import RowType
from ..schema import build
from ..table import AsyncTable
from ..values import as_list, check_text, encode_json, fingerprint as fingerprint_of, seconds
from .adding import NEVER, Adding
from .claim import ABORTED, AsyncClaim, Outcome, check_progress, failed
from .common import Duration, moment
from .exchanges import Exchanged, whole
from .finding import Finding
from .job import ACTIVE, CLAIMED, COLUMNS, LINE, PAUSED, SPARSE, TELL, Job, JobStatus, check_id, check_scope
from .schedule import Schedule, Schedules
from .settling import RESET, Letter, due_letters, patches, recent, sent, settled
from .stream import Streams

log = logging.getLogger("howdah")
SETTLE_EVERY = 0.25
"""Seconds between two looks for expired leases, deadlines and schedules; who claims looks."""
TIDY_EVERY = 10.0
PLACE = tuple(map(CLAIMED.index, ("rank", "visible_at", "id")))
NOT_PAUSED = Compare("status", "!=", PAUSED)


class AsyncQueue(Adding, Finding):
    """Jobs of one queue and scope. Opened by ``store.queue(name)``."""

    takes_jobs: ClassVar[bool] = True
    """Whether jobs can be added."""

    def __init__(self, engine: Engine, name: str, *, scope: Mapping[str, Any] | None = None, prefix: str = "") -> None:
        self._engine = engine
        self._name = name
        self._tags = check_scope(scope)
        self._prefix = prefix
        self._scope = prefix + (encode_json(dict(sorted(self._tags.items()))) if self._tags else "")
        self._seed = crc32(self._scope.encode())
        physical = store_table("queue", name)
        schema = build(
            physical,
            COLUMNS,
            key="id",
            sparse=SPARSE,
            tell=TELL,
            line=LINE,
            internal=True,
        )
        self._table: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, COLUMNS, dict, None), physical)
        self._ops = self._table._ops
        self._read_claimed = self._ops.reader(CLAIMED)
        self._streams = Streams(engine, name)
        self._schedules = Schedules(engine, name, self._scope)
        self._settled = self._tidied = 0.0
        self._letters_to: AsyncQueue | None = None
        self._blocked: list[Any] | None = None
        self._behind: tuple[int, Any, str] | None = None
        self._paused = False
        self._sides = False

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._name

    @property
    def scope(self) -> dict[str, Any]:
        """The scope's columns; empty without one."""
        return dict(self._tags)

    # Claiming ----------------------------------------------------------------------------------------------------

    async def claim(self, worker: str, *, lease: Duration = 30) -> AsyncClaim | None:
        """Take the next job that may start, for ``lease`` seconds; ``None`` when there is none.

        Exactly one worker gets a job; the claim of one that was slower than its lease is ``ClaimLost``.
        """
        found = await self.claim_many(worker, limit=1, lease=lease)
        return found[0] if found else None

    async def claim_many(self, worker: str, *, limit: int, lease: Duration = 30) -> list[AsyncClaim]:
        """Take up to ``limit`` jobs at once, best first."""
        return (await self.exchange([], worker, limit=limit, lease=lease))[1]

    async def exchange(
        self, outcomes: Sequence[Outcome], worker: str, *, limit: int, lease: Duration = 30
    ) -> tuple[set[str], list[AsyncClaim]]:
        """Complete some claimed jobs and take others, in one write: the ids completed (the others were lost), the claims."""
        if not isinstance(worker, str) or not worker:
            raise InvalidInput(f"worker={worker!r}: expected a name")
        check_text(worker, "worker")
        size = check_limit(limit, least=1)
        if size is None:
            raise InvalidInput("limit=None: say how many jobs to take")
        length = seconds(lease, "lease", zero=True)
        await self._ready()
        settle = self._unsettled()
        done, claims = await self._whole(self._exchange(outcomes, worker, size, length, settle=settle))
        if not claims and not settle and not outcomes:  # who brings outcomes comes again
            _, claims = await self._whole(self._exchange((), worker, size, length, settle=True))
        return done, claims

    async def _whole(self, work: Coroutine[Any, Any, Exchanged]) -> Exchanged:
        """An exchange that nobody's cancellation cuts short: an inline engine's never is, in a transaction it is undone."""
        return await (work if self._engine.inline or innermost(self._engine) is not None else whole(work))

    async def complete(self, outcomes: Sequence[Outcome]) -> set[str]:
        """Complete claimed jobs in one write; the ids of those that still were this worker's."""
        await self._ready()
        return set(await self._table._write(lambda: self._completing(outcomes), single=False)) if outcomes else set()

    async def _ready(self) -> None:
        """Make the tables beside the jobs'."""
        if not self._sides:
            await self._streams.ready()
            await self._schedules.table._ensure()
            self._sides = innermost(self._engine) is None
        if self._letters_to is not None and self._letters_to._engine is self._engine:
            await self._letters_to._table._ensure()

    def _alive(self, ids: list[str]) -> Op[set[str]]:
        """Of some jobs, those that have not finished."""
        rows = yield from self._ops.get_many([(id,) for id in ids], ("id", "status"))
        return {row[0] for row in rows if row[1] in ACTIVE}

    def _unsettled(self) -> bool:
        """Whether it is time to look for expired leases and what is due; true, too, when the clock was moved back."""
        return not 0 <= self._engine.now() - self._settled < SETTLE_EVERY

    async def _exchange(
        self, outcomes: Sequence[Outcome], worker: str, size: int, lease: float, *, settle: bool
    ) -> tuple[set[str], list[AsyncClaim]]:
        ops, now = self._ops, self._engine.now()
        paused, letters = [self._paused], list[Letter]()
        take = self._take(worker, size, now, lease)._replace(behind=None if settle else self._behind)

        def work() -> Op[tuple[set[str], list[tuple[Any, ...]]]]:
            if settle:
                paused[0], letters[:] = yield from ops.by_indexes(settled(self))
                if not 0 <= now - self._tidied < TIDY_EVERY:
                    yield from self._streams.tidy(self._alive)
            if paused[0]:
                return (yield from self._completing(outcomes)), []
            done, rows = yield from ops.exchange(patches(self, outcomes), take)
            yield from self._ended(outcomes, done)
            return done, rows

        alone = ops.at_once and not settle and not any(o.claim._emitted for o in outcomes)
        if settle:  # so that others who claim here do not settle, too
            self._settled = now
        try:
            done, rows = await self._table._write(work, single=alone, quiet=not outcomes)
        except BaseException:
            self._settled = 0.0 if settle else self._settled
            raise
        if settle:
            self._paused = paused[0]
            await self._send(letters)
            self._tidied = self._tidied if 0 <= now - self._tidied < TIDY_EVERY else now
        self._behind = tuple(rows[-1][p] for p in PLACE) if len(rows) == size else None
        held = self._held(worker, now, lease)
        return done, [AsyncClaim(self, row, held) for row in rows]

    def _held(self, worker: str, now: float, lease: float) -> dict[str, Any]:
        """Values of jobs that a worker holds."""
        return {"lease_owner": worker, "lease_expires_at": moment(now + lease), "last_attempted_at": moment(now)}

    def _letters(self) -> Op[list[Letter]]:
        """Send the dead letters that are due, in the same write if it can; those for another store."""
        return (yield from due_letters(self))

    async def _send(self, letters: Sequence[Letter]) -> None:
        """Send dead letters to another store; after a transaction, which may still be undone, whoever settles does."""
        if not letters or self._letters_to is None or innermost(self._engine) is not None:
            return
        try:
            await self._letters_to.add_many([x.text for x in letters])
            await self._table._write(lambda: sent(self, letters), quiet=True)
        except Error as error:
            log.warning("queue %r: %d dead letters could not be sent: %s", self._name, len(letters), error)

    def _told(self) -> Criteria:
        """Jobs whose dead letter is not still to be sent: the others must not be forgotten."""
        if self._letters_to is None:
            return And(())
        return Or((Null("letter_due"), Compare("letter_due", "<=", recent(self))))

    async def forget(self, ids: Sequence[str]) -> None:
        """Delete finished jobs, unless their dead letter is still to be sent."""
        await self._table.delete_where(And((self._mine(), In("id", tuple(ids)), self._told())))

    def _take(self, worker: str, size: int, now: float, lease: float) -> Take:
        patch = {"status": JobStatus.PROCESSING.value, "due_at": None, "ends_at": None}
        patch |= self._held(worker, now, lease)
        due = self._ops.encode_value("due_at", moment(now))
        return Take(self._scope, due, size, self._encoded(patch), ("attempts", "token"), CLAIMED)

    def _completing(self, outcomes: Sequence[Outcome]) -> Op[set[str]]:
        if not outcomes:
            return set()
        done: set[str] = yield from self._ops.patch_each(patches(self, outcomes))
        yield from self._ended(outcomes, done)
        return done

    def _ended(self, outcomes: Sequence[Outcome], done: set[str]) -> Op[None]:
        for outcome in outcomes:
            if outcome.claim._emitted and outcome.claim.id in done:
                yield from self._streams.end(outcome.claim.id)

    def _encoded(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Values of columns in driver form."""
        return {n: None if v is None else self._ops.encode_value(n, v) for n, v in patch.items()}

    # Steering ----------------------------------------------------------------------------------------------------

    async def abort(self, id: str) -> bool:
        """Stop a job: one that waits fails at once (code ``Aborted``), one that runs is asked to stop. Not finished ones."""
        return await self._abort(Compare("id", "=", check_id(id))) > 0

    async def abort_run(self, run_id: str) -> int:
        """Stop every job of a run; how many were waiting or running."""
        check_id(run_id)
        alone = And((Compare("id", "=", run_id), Null("run_id")))
        return await self._abort(Or((Compare("run_id", "=", run_id), alone)))

    async def _abort(self, which: Criteria) -> int:
        now = self._engine.now()
        gone = self._encoded(failed(now, "aborted", ABORTED))
        asked = self._encoded({"abort_requested_at": moment(now)})
        waits, runs = (And((self._mine(), which, Compare("status", "=", s))) for s in ACTIVE)

        def work() -> Op[int]:
            stopped = yield from self._ops.update(None, waits, gone, ("id",))
            running = yield from self._ops.update(None, runs, asked, ("id",))
            return len(stopped) + len(running)

        return int(await self._table._write(work))

    async def save_progress(self, id: str, progress: float, *, message: str = "", details: Any = None) -> bool:
        """Say how far a job is, 0 to 100; ``False`` when it is not there or has finished."""
        patch = self._encoded(check_progress(progress, message, details))
        where = And((self._mine(), Compare("id", "=", check_id(id)), In("status", ACTIVE)))
        rows = await self._table._write(lambda: self._ops.update(None, where, patch, ("id",)), single=True)
        return bool(rows)

    async def pause(self) -> None:
        """Hand out no job of this queue and scope any more, anywhere (others notice within a quarter of a second)."""
        (row,) = self._rows([None], max_attempts=1, fingerprint="paused")
        names = self._ops.schema.names
        for name, value in (("id", PAUSED + self._scope), ("status", PAUSED), ("due_at", None)):
            row[names.index(name)] = value
        await self._table._write(self._ops.put_one(row), single=True)
        self._paused, self._settled = True, 0.0

    async def resume(self) -> None:
        """Hand out jobs again."""
        await self._table.delete(PAUSED + self._scope)
        self._paused, self._settled = False, 0.0

    async def drain(self, *, timeout: Duration | None = None) -> None:
        """Wait until no job waits or runs; ``Timeout`` after ``timeout`` seconds."""
        left = None if timeout is None else seconds(timeout, "timeout", zero=True)
        while True:
            mark = await self._engine.changed(self._ops, None, 0)
            waiting = await self.count(JobStatus.PENDING) + await self.count(JobStatus.PROCESSING)
            if not waiting:
                return
            if left is not None and left <= 0:
                raise Timeout(f"queue {self._name!r}: {waiting} jobs are not finished after {timeout} seconds")
            step = 1.0 if left is None else min(1.0, left)
            began = time.monotonic()
            await self._engine.changed(self._ops, mark, step)
            if left is not None:
                left -= time.monotonic() - began

    # Removing ----------------------------------------------------------------------------------------------------

    async def delete(self, id: str) -> bool:
        """Delete a job, whatever it does; its worker's claim is lost."""
        return await self._table.delete_where(And((self._mine(), Compare("id", "=", check_id(id))))) > 0

    async def clear(self) -> int:
        """Delete every job of this queue and scope; how many there were."""
        return await self._table.delete_where(And((self._mine(), In("status", tuple(s.value for s in JobStatus)))))

    async def purge(self, status: JobStatus | str, older_than: Duration = 0) -> int:
        """Delete the jobs that finished with a status at least so many seconds ago; how many. Completed ones that others
        wait for stay, and on the queue of a job server those whose dead letter is still to be sent."""
        if str(status) in ACTIVE:
            raise InvalidInput(f"status={str(status)!r}: only finished jobs are purged; delete() or clear() the others")
        edge = moment(self._engine.now() - seconds(older_than, "older_than", zero=True))
        where = [self._mine(), self._status(status), Compare("completed_at", "<=", edge), self._told()]
        if JobStatus(status) is JobStatus.COMPLETED and (needed := await self.needed()):
            where.append(In("id", tuple(sorted(needed)), negated=True))
        return await self._table.delete_where(And(tuple(where)))

    async def needed(self) -> set[str]:
        """The jobs that blocked ones wait for: to delete one would make these fail."""
        rows = await self._table.query(Null("blocked_at", negated=True), select=["after"]).all()
        return {id for row in rows for id in row["after"]}

    async def redrive(self, ids: Iterable[str] | None = None) -> int:
        """Let failed jobs (all dead letters, or these) run again with all their attempts; how many."""
        now = moment(self._engine.now())
        where = And((self._mine(), self._status(JobStatus.FAILED)))
        if ids is None:
            where = And((*where.parts, Compare("error_code", "!=", ABORTED)))
        else:
            where = And((*where.parts, In("id", tuple(check_id(id) for id in as_list(ids, "redrive")))))
        columns = ("status", "visible_at", "due_at", "blocked_at", "attempts", *RESET)
        at, never = (self._ops.encode_value("due_at", m) for m in (now, NEVER))

        def work() -> Op[int]:
            rows = yield from self._ops.select(where, (), names=("id", "token", "after"), limit=None)
            # A job that is to follow others waits for them again.
            again = [
                (*r[:2], "PENDING", at, at if r[2] is None else never, None if r[2] is None else at, 0, *RESET.values())
                for r in map(tuple, rows)
            ]
            return len((yield from self._ops.patch_each(Patches(("id", "token"), columns, again)))) if again else 0

        return int(await self._table._write(work))

    # Schedules, changes, streams ---------------------------------------------------------------------------------

    async def schedule(
        self, cron: str, input: Any, *, id: str | None = None, timezone: str = "UTC", **options: Any
    ) -> Schedule:
        """Add a job whenever ``cron`` (five fields, in ``timezone``) fits; ``options`` are those of ``add``.

        ``id`` (default: the fingerprint of expression and input) names the schedule; the same one again replaces it. A
        moment that comes while no worker claims is made up for once. Whoever claims adds what is due, one of all processes.
        """
        known = {"delay", "timeout", "priority", "max_attempts", "run_id", "unique"}
        if unknown := sorted(options.keys() - known):
            raise InvalidInput(f"schedule: unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
        plain = {n: v.total_seconds() if isinstance(v, timedelta) else v for n, v in options.items()}
        self._scheduled(input, plain)
        name = fingerprint_of([cron, input])[:32] if id is None else id
        return await self._schedules.put(name, cron, input, timezone, plain)

    async def unschedule(self, id: str) -> bool:
        """Remove a schedule; whether it was there."""
        return await self._schedules.delete(id)

    async def schedules(self) -> list[Schedule]:
        """The schedules of this queue and scope, by id."""
        return await self._schedules.list()

    def _scheduled(self, input: Any, options: Mapping[str, Any]) -> list[Any]:
        """The row of a job that a schedule adds."""
        return self._rows([input], **options)[0]

    def changes(self, *, scope: Mapping[str, Any] | None = None, since: str | None = None) -> AsyncChanges[Job]:
        """Committed changes of jobs, from every process; ``scope={}`` for every tenant's, some columns for theirs."""
        feed = AsyncChanges[Any](self._table, And((self._mine(scope), NOT_PAUSED)), since)
        return feed.mapped(self._change)

    def _change(self, change: Change[Any]) -> Change[Any]:
        old, new = (None if row is None else self._job(row) for row in (change.old, change.new))
        return replace(change, old=old, new=new)

    async def subscribe(
        self,
        callback: Callable[[Change[Job]], Any],
        *,
        scope: Mapping[str, Any] | None = None,
        poll: float | timedelta = 1,
    ) -> Callable[[], None]:
        """Call ``callback(change)`` for every change of a job from now on; the function returned ends it at once."""
        return await subscribe(self.changes(scope=scope).polled(poll), callback)

    async def stream(self, id: str, *, since: int = 0) -> AsyncIterator[Any]:
        """The events of a job after number ``since``, then those that come, until it has finished.

        The last 8 MiB of a job's events are kept, until 30 seconds after its end. Raises ``JobNotFound``, and
        ``LimitExceeded`` when the job ended longer ago, or events after ``since`` had to make room for newer ones.
        """
        if await self.get(id) is None:
            raise JobNotFound(f"queue {self._name!r} has no job {id}")

        async def ended() -> datetime | None:
            job = await self.get(id)
            return moment(self._engine.now()) if job is None else job.completed_at

        async for event in self._streams.follow(id, since, ended):
            yield event
