"""A job server: claims jobs of a queue, runs a handler on each, keeps their leases, and writes how they ended."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from ..criteria import And, In, Null
from ..engines.base import Engine, Patches, innermost
from ..errors import Closed, Error, InvalidInput, TransactionError
from ..events import Emitting
from ..stores.claim import ABORTED, AsyncClaim, Outcome
from ..stores.common import Duration, moment
from ..stores.job import JobStatus, Retry
from ..stores.queue import AsyncQueue
from ..values import seconds
from .attempt import LOST, Attempt, Ended, Handler
from .limits import Limiter, check_limiter
from .threads import Threads

log = logging.getLogger("howdah")
MOST_POLL = 3.0
LOOK = 0.25
SWEEP = 10.0
GRACE = 1.0
TIMES = 1000
STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Stats:
    """What a server or client has seen. ``started`` counts executions, ``mean_time`` is in seconds, over the last 1,000."""

    started: int = 0
    completed: int = 0
    failed: int = 0
    aborted: int = 0
    retried: int = 0
    disabled: int = 0
    mean_time: float = 0.0


class AsyncJobServer(Emitting):
    """Runs ``handler(input, ctx)`` on the jobs of a queue: a coroutine function on the event loop, a plain one in threads.

    ``workers`` jobs run at once, and up to ``prefetch`` times as many are held ready; ``lease`` is renewed at half time for
    as long as a handler runs; ``retry`` says which errors are tried again; ``keep_completed`` and its kin are seconds that
    finished jobs are kept (``None``: for ever); ``attempt_timeout`` limits one execution; ``dead_letter_to`` is a queue that
    also gets what failed for good, be it by a lease or deadline that passed. Durations are seconds or ``timedelta``.
    """

    EVENTS = (
        *("server_start", "server_stop", "job_start", "job_complete", "job_error", "job_disabled", "job_retry"),
        *("job_progress", "job_stream", "job_aborting"),
    )

    def __init__(
        self,
        queue: AsyncQueue,
        handler: Handler,
        *,
        workers: int = 1,
        worker_id: str | None = None,
        limiter: Limiter | None = None,
        poll: Duration = 0.1,
        lease: Duration = 30,
        prefetch: int = 1,
        stop_timeout: Duration = 30,
        retry: Retry | None = None,
        heartbeat: bool = True,
        attempt_timeout: Duration | None = None,
        keep_completed: Duration | None = None,
        keep_failed: Duration | None = None,
        keep_disabled: Duration | None = None,
        dead_letter_to: AsyncQueue | None = None,
    ) -> None:
        if not isinstance(queue, AsyncQueue):
            raise InvalidInput(f"AsyncJobServer takes a queue, got {type(queue).__name__}")
        if dead_letter_to is not None and not (isinstance(dead_letter_to, AsyncQueue) and dead_letter_to.takes_jobs):
            raise InvalidInput("dead_letter_to: expected a queue to which jobs can be added, not one with fair_by=")
        if not callable(handler):
            raise InvalidInput(f"handler {handler!r:.60}: expected a function (input, ctx)")
        for name, value in (("workers", workers), ("prefetch", prefetch)):
            if type(value) is not int or value < 1:
                raise InvalidInput(f"{name}={value!r}: expected an integer >= 1")
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidInput(f"retry={retry!r:.60}: expected howdah.Retry(…)")
        if limiter is not None:
            check_limiter(limiter)
            if hasattr(limiter, "bind"):
                limiter.bind(queue)
        self._queue = queue
        self._engine: Engine = queue._engine
        self._handler = handler
        self._coroutine = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004 - an object whose call is a coroutine function
        )
        self._workers = workers
        self._id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._limiter = limiter
        self._poll = seconds(poll, "poll")
        self._lease = seconds(lease, "lease")
        self._prefetch = prefetch
        self._stop_timeout = seconds(stop_timeout, "stop_timeout", zero=True)
        self._retry = retry or Retry()
        self._heartbeat = heartbeat
        self._attempt_timeout = None if attempt_timeout is None else seconds(attempt_timeout, "attempt_timeout")
        kept = {"COMPLETED": keep_completed, "FAILED": keep_failed, "DISABLED": keep_disabled}
        self._keep = {s: seconds(k, "keep", zero=True) for s, k in kept.items() if k is not None}
        queue._letters_to = dead_letter_to or queue._letters_to
        self._running: dict[tuple[str, int], tuple[Attempt, asyncio.Task[None]]] = {}
        self._newest: dict[str, Attempt] = {}
        self._reporting: set[asyncio.Task[None]] = set()
        self._ready: deque[AsyncClaim] = deque()
        self._outcomes: list[Outcome] = []
        self._wake = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._beside: asyncio.Task[None] | None = None
        self._asked = 0
        self._stopping = False
        self._threads = Threads()
        self._counts = dict.fromkeys(("started", "completed", "failed", "aborted", "retried", "disabled"), 0)
        self._times: deque[float] = deque(maxlen=TIMES)
        self._blocked_until = 0.0
        self._renewed = self._looked = self._swept = self._held = 0.0
        self._hold_every: float | None = getattr(limiter, "renew_every", None)
        if limiter is not None and limiter.scope == "process" and queue._engine.durable:
            log.warning("a limiter of this process guards queue %r, which other processes serve, too", queue.name)

    # Steering ----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the server has been started and not stopped."""
        return self._main is not None and not self._main.done()

    @property
    def ending(self) -> bool:
        """Whether tasks that are cancelled are so because the server, or the event loop, stops."""
        return self._stopping or self._main is None or self._main.done() or self._main.cancelling() > 0

    def stats(self) -> Stats:
        """What happened since the start."""
        mean = sum(self._times) / len(self._times) if self._times else 0.0
        return Stats(**self._counts, mean_time=mean)

    async def start(self) -> None:
        """Begin to work, in a task; a second call changes nothing. The store's ``close`` stops it, too."""
        if innermost(self._engine) is not None:
            raise TransactionError("a job server starts outside of transactions: end the transaction first")
        if not self.running:
            self._stopping = False
            self._renewed = self._looked = time.monotonic()
            self._engine.users.add(self)
            self._main = asyncio.get_running_loop().create_task(self._serve(), context=contextvars.Context())
            self._tell("server_start")

    async def scale(self, workers: int) -> None:
        """Run so many jobs at once from now on; those that run already finish."""
        if type(workers) is not int or workers < 1:
            raise InvalidInput(f"workers={workers!r}: expected an integer >= 1")
        self._workers = workers
        self._wake.set()

    async def stop(self) -> None:
        """Claim nothing more, let jobs finish for ``stop_timeout`` seconds, then stop them and give them back.

        Nothing starts after this returned."""
        if self._main is None:
            return
        self._stopping = True
        self._wake.set()
        await self._give_back()
        tasks = [task for _, task in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=self._stop_timeout)
        for attempt, _ in list(self._running.values()):
            attempt.stop(STOPPING)
        rest = [task for _, task in self._running.values()]
        if rest:
            await asyncio.wait(rest, timeout=GRACE)
        for attempt, task in list(self._running.values()):
            log.warning("job %s does not stop; its task is cancelled", attempt.claim.id)
            task.cancel()
        main, self._main = self._main, None
        if main is not None:
            self._wake.set()
            await asyncio.wait([main], timeout=GRACE + MOST_POLL)
            main.cancel()
            with suppress(asyncio.CancelledError):
                await main
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.wait([self._beside])
        await self._give_back()  # what a claim under way has brought since
        if self._reporting:  # dead letters and limiters may still be written to
            await asyncio.wait(self._reporting, timeout=GRACE + MOST_POLL)
        self._threads.close()
        self._threads = Threads()
        self._engine.users.discard(self)
        self._tell("server_stop")

    async def _give_back(self) -> None:
        """Release what was claimed and has not begun."""
        ready, self._ready = list(self._ready), deque()
        for claim in ready:
            with suppress(Error):
                await claim.release()

    async def run_once(self) -> bool:
        """Do one job here and now; whether there was one."""
        _, claims = await self._queue.exchange([], self._id, limit=1, lease=self._lease)
        if not claims:
            return False
        if not await self._launch(claims[0]):
            return False
        _, task = self._running[claims[0].id, claims[0].token]
        while not task.done():
            await asyncio.wait([task], timeout=LOOK)
            await self._watch_over(wait=False)
        await self._write()
        return True

    async def __aenter__(self) -> AsyncJobServer:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    # The loop ----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        wait = self._poll
        while not self._stopping or self._running or self._outcomes or self._goes_beside():
            try:
                mark = await self._engine.changed(self._queue._ops, None, 0)
                await self._watch_over()
                took = await self._turn()
                wait = self._poll if took or self._running else min(wait * 1.5, MOST_POLL)
                if not took:
                    await self._pause(mark, wait)
            except Closed:
                return
            except Exception as error:  # of the database, or of a limiter: it may be better next time
                log.warning("worker %s will try again: %s: %s", self._id, type(error).__name__, error)
                await asyncio.sleep(min(MOST_POLL, wait))
                wait = min(wait * 2, MOST_POLL)

    async def _turn(self) -> bool:
        """Write what has ended, claim what there is room for, start it; whether there is likely more to do."""
        await self._gather()
        room = self._room()
        outcomes, self._outcomes = self._outcomes, []
        many = self._prefetch > 1 and self._limiter is None and self._queue._ops.at_once
        if room and outcomes and many and not self._goes_beside():
            self._beside = asyncio.get_running_loop().create_task(self._go_beside())
        self._asked += room
        try:
            if room > 0:
                done, claims = await self._queue.exchange(outcomes, self._id, limit=room, lease=self._lease)
            elif outcomes:
                done, claims = await self._queue.complete(outcomes), []
            else:
                return False
        except BaseException:
            self._outcomes = outcomes + self._outcomes
            raise
        finally:
            self._asked -= room
        self._ready.extend(claims)
        await self._completed(outcomes, done)
        await self._start_ready()
        return bool(self._outcomes) or (len(claims) == room and room > 0)

    def _goes_beside(self) -> bool:
        return self._beside is not None and not self._beside.done()

    async def _go_beside(self) -> None:
        """While there is much to do, take turns beside the main ones: the server writes while jobs run, and starts on the next
        write while the client reads what the last one brought."""
        try:
            while not self._stopping and await self._turn():
                pass
        except Closed:
            pass
        except Exception as error:
            log.warning("worker %s will try again: %s: %s", self._id, type(error).__name__, error)
        finally:
            self._wake.set()

    async def _gather(self) -> None:
        """While jobs end as soon as they begin, let a quarter of what is held end: that is written while the others run."""
        seen = -1
        while self._prefetch > 1 and seen < len(self._outcomes) < self._workers * self._prefetch // 4:
            seen = len(self._outcomes)
            await asyncio.sleep(0)

    def _room(self) -> int:
        """How many jobs to claim now."""
        if self._stopping or time.monotonic() < self._blocked_until:
            return 0
        if self._limiter is not None:
            return 1 if len(self._running) < self._workers and not self._ready else 0
        held = len(self._running) + len(self._ready) + self._asked
        most = self._workers * self._prefetch
        # Asking for few at a time would cost a write each.
        return most - held if held <= most * 3 // 4 or self._prefetch == 1 else 0

    async def _start_ready(self) -> None:
        while self._ready and len(self._running) < self._workers and not self._stopping:
            claim = self._ready.popleft()
            try:
                await self._launch(claim)
            except Exception:
                with suppress(Error):
                    await claim.release()
                raise

    async def _launch(self, claim: AsyncClaim) -> bool:
        token = None
        if self._limiter is not None:
            token = await self._limiter.try_acquire()
            if token is None:
                await claim.release()
                free = (await self._limiter.available_at()).timestamp() - time.time()
                self._blocked_until = time.monotonic() + min(SWEEP * 3, max(self._poll, free))
                return False
        self._counts["started"] += 1
        attempt = Attempt(self, claim, token)
        older = self._newest.get(claim.id)
        if older is not None:  # its lease was lost to ourselves
            older.stop(LOST)
        self._newest[claim.id] = attempt
        # What a handler sets in its context must not reach the next one.
        context = contextvars.copy_context() if self._main is None else contextvars.Context()
        task = asyncio.get_running_loop().create_task(self._run(attempt), context=context)
        self._running[attempt.key] = attempt, task
        self._reporting.add(task)
        if self._listeners is not None:
            self._tell("job_start", claim.job)
        return True

    async def _run(self, attempt: Attempt) -> None:
        ended, completed = Ended(LOST), False
        claim, task = attempt.claim, self._running[attempt.key][1]
        try:
            try:
                ended = await attempt.run()
                completed = ended.kind == "completed"
            except Exception as error:
                log.warning("job %s: how it ended could not be written: %s", claim.id, error)
            finally:
                self._running.pop(attempt.key, None)
                if self._newest.get(claim.id) is attempt:
                    del self._newest[claim.id]
                if completed:
                    self._outcomes.append(Outcome(claim, ended.output))
                self._times.append(time.monotonic() - attempt.began)
                self._wake.set()
                if self._limiter is not None:
                    await self._complete_limit(attempt, success=completed)
            try:
                if not completed:
                    await self._report(claim, ended)
                if self._ready and not self._stopping:
                    await self._start_ready()
            except Exception as error:
                log.warning("worker %s, after job %s: %s", self._id, claim.id, error)
        finally:
            self._reporting.discard(task)

    async def _complete_limit(self, attempt: Attempt, *, success: bool) -> None:
        assert self._limiter is not None
        try:
            await self._limiter.complete(attempt.token, success=success)
        except Exception as error:
            log.warning("worker %s, after job %s: %s", self._id, attempt.claim.id, error)

    async def _report(self, claim: AsyncClaim, ended: Ended) -> None:
        counted = {
            "error": "failed",
            "exhausted": "failed",
            "aborted": "aborted",
            "retry": "retried",
            "disabled": "disabled",
        }
        if ended.kind in counted:
            self._counts[counted[ended.kind]] += 1
        if ended.kind in ("error", "exhausted", "aborted"):
            self._tell("job_error", claim.id, ended.error)
        elif ended.kind in ("retry", "disabled"):
            self._tell(f"job_{ended.kind}", claim.id)
        status = {"error": "FAILED", "exhausted": "FAILED", "aborted": "FAILED", "disabled": "DISABLED"}.get(ended.kind)
        if status is not None and self._keep.get(status) == 0:
            await self._queue.forget([claim.id])

    async def _write(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        if outcomes:
            await self._completed(outcomes, await self._queue.complete(outcomes))

    async def _completed(self, outcomes: list[Outcome], done: set[str]) -> None:
        for outcome in outcomes:
            if outcome.claim.id in done:
                self._counts["completed"] += 1
                self._tell("job_complete", outcome.claim.id, outcome.output)
            else:
                log.warning("job %s: the lease was lost, its output is refused", outcome.claim.id)
        if done and self._keep.get("COMPLETED") == 0:
            gone = done - await self._queue.needed()  # those go later
            await self._queue._table.delete_many(sorted(gone))

    async def _pause(self, mark: int, wait: float) -> None:
        """Until a handler ends, something changes in the queue, or the time is over."""
        await asyncio.sleep(0)  # what ends at once ends now, and is written while the rest runs
        if self._outcomes or self._wake.is_set():
            self._wake.clear()
            return
        if time.monotonic() < self._blocked_until:
            wait = min(wait, self._blocked_until - time.monotonic())
        if self._running:
            wait = min(wait, LOOK, self._lease / 4, self._hold_every or LOOK)
        woken = asyncio.ensure_future(self._wake.wait())
        changed = asyncio.ensure_future(self._engine.changed(self._queue._ops, mark, wait))
        try:
            await asyncio.wait([woken, changed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (woken, changed):
                task.cancel()
                with suppress(asyncio.CancelledError, Error):
                    await task
        self._wake.clear()

    # Leases, aborts, retention -----------------------------------------------------------------------------------

    async def _watch_over(self, *, wait: bool = True) -> None:
        now = time.monotonic()
        if self._running and now - self._looked >= LOOK:
            self._looked = now
            await self._look_for_aborts()
        if self._heartbeat and (self._running or self._ready) and now - self._renewed >= self._lease / 4:
            self._renewed = now
            await self._renew()
        if self._hold_every is not None and now - self._held >= self._hold_every:
            self._held = now
            await self._limiter.renew()  # type: ignore[union-attr]  # it says how often
        if self._keep and now - self._swept >= SWEEP and wait:
            self._swept = now
            for status, age in self._keep.items():
                await self._queue.purge(JobStatus(status), age)

    async def _look_for_aborts(self) -> None:
        where = And((In("id", tuple({id for id, _ in self._running})), Null("abort_requested_at", negated=True)))
        for row in await self._queue._table.query(where, select=["id"]).all():
            for attempt, _ in list(self._running.values()):
                if attempt.claim.id == row["id"] and attempt.why is None:
                    self._tell("job_aborting", row["id"])
                    attempt.stop(ABORTED)

    async def _renew(self) -> None:
        """Hold every job that is here for another lease; those that were lost are stopped."""
        ops = self._queue._ops
        due = ops.encode_value("lease_expires_at", moment(self._engine.now() + self._lease))
        claims = [*(attempt.claim for attempt, _ in self._running.values()), *self._ready]
        rows = [(c.id, c.token, "PROCESSING", due) for c in claims]
        patches = Patches(("id", "token", "status"), ("lease_expires_at",), rows)
        held = await self._queue._table._write(lambda: ops.patch_each(patches), single=ops.at_once, quiet=True)
        lost = {(c.id, c.token) for c in claims if c.id not in held}
        self._ready = deque(c for c in self._ready if (c.id, c.token) not in lost)
        for claim in claims:
            found = self._running.get((claim.id, claim.token))
            if claim.id not in held and found is not None:
                found[0].stop(LOST)

    # Telling -----------------------------------------------------------------------------------------------------

    def _tell(self, name: str, *arguments: Any) -> None:
        if self._listeners is not None:
            self._emit_now(name, *arguments)

    def _tell_soon(self, name: str, *arguments: Any) -> None:
        """As ``_tell``, from any thread."""
        if self._listeners is not None and self._main is not None:
            self._main.get_loop().call_soon_threadsafe(self._tell, name, *arguments)
