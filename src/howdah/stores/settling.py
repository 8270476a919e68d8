"""What time does to a queue: leases and deadlines that have passed, schedules that are due; done by whoever claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from ..criteria import And, Compare, Null, Order
from ..engines.base import Op, Patches
from ..errors import InvalidValue
from ..values import encode_json
from .claim import ABORTED, EXHAUSTED, LATE, NEEDED, Outcome, failed
from .common import moment
from .job import ACTIVE, PAUSED, JobStatus

if TYPE_CHECKING:
    from .queue import AsyncQueue

RESET: dict[str, Any] = {
    **dict.fromkeys(
        (
            "completed_at",
            "error",
            "error_code",
            "traceback",
            "abort_requested_at",
            "deadline_at",
            "ends_at",
            "letter_due",
        )
    ),
    "progress": 0.0,
    "progress_message": "",
    "progress_details": None,
}
AT_ONCE = 1000
KEPT = 86400.0
"""Seconds for which a dead letter that nobody sent is still due."""
TOLD = ("id", "letter_due", "run_id", "input", "error", "error_code", "attempts")
READ = ("id", "token", "attempts", "max_attempts", "abort_requested_at", "visible_at", "deadline_at", "unique_key",
        "error", "lease_expires_at")  # fmt: skip
WRITTEN = ("status", "due_at", "ends_at", "lease_owner", "lease_expires_at", "completed_at", "error", "error_code",
           "unique_key", "progress", "letter_due")  # fmt: skip


class Letter(NamedTuple):
    """A dead letter: the job, since when it is due (driver form), and what is told of it."""

    id: str
    due: Any
    text: dict[str, Any]


def patches(queue: AsyncQueue, outcomes: Sequence[Outcome]) -> Patches:
    """The writes that complete jobs whose claims still hold."""
    ops = queue._ops
    at = ops.encode_value("completed_at", moment(queue._engine.now()))
    fixed: Mapping[str, Any] = {
        "status": JobStatus.COMPLETED.value,
        "completed_at": at,
        "progress": 100.0,
        **dict.fromkeys(("error", "error_code", "traceback", "lease_owner", "lease_expires_at", "unique_key")),
    }

    def encoded(output: Any) -> Any:
        return ops.encode_value("output", encode_json(output, "output"))

    nothing = encoded(None)
    rows = [
        (o.claim.id, o.claim.token, "PROCESSING", nothing if o.output is None else encoded(o.output)) for o in outcomes
    ]
    return Patches(("id", "token", "status"), ("output",), rows, fixed)


def settled(queue: AsyncQueue) -> Op[tuple[bool, list[Letter]]]:
    """Deal with what time has done; whether the queue is paused, and the dead letters that are still to be sent, because
    their queue is in another store."""
    yield from overdue(queue)
    letters = yield from due_letters(queue)
    yield from fire(queue)
    return bool((yield from queue._ops.get_many([(PAUSED + queue._scope,)], ("id",)))), letters


def overdue(queue: AsyncQueue) -> Op[None]:
    """Deal with leases, deadlines and jobs that waited for others, in every scope."""
    yield from _leases(queue)
    yield from _deadlines(queue)
    yield from _blocked(queue)


def fire(queue: AsyncQueue) -> Op[None]:
    """Add the jobs of this scope's schedules that are due."""

    def add(input: Any, options: Mapping[str, Any]) -> Op[None]:
        row = queue._scheduled(input, options)
        if options.get("unique"):
            yield from queue._adding(row)
        else:
            yield from queue._ops.insert([row])

    yield from queue._schedules.fire(add)


def recent(queue: AsyncQueue) -> datetime:
    """Dead letters that were due by this moment are no longer sent."""
    return moment(queue._engine.now() - KEPT)


def due_letters(queue: AsyncQueue) -> Op[list[Letter]]:
    """Send on the jobs of this scope that have failed, in the same write if it can; the letters that it cannot."""
    to = queue._letters_to
    if to is None:
        return []
    where = And((Compare("scope", "=", queue._scope), Compare("letter_due", ">", recent(queue))))
    rows = yield from queue._ops.select(where, (), names=TOLD, limit=AT_ONCE)
    letters = [Letter(row[0], row[1], _told(queue, row)) for row in rows]
    if to._engine is not queue._engine:
        return letters
    mine = yield from sent(queue, letters)
    if mine:
        yield from to._ops.insert(to._rows([x.text for x in letters if x.id in mine]))
    return []


def sent(queue: AsyncQueue, letters: Sequence[Letter]) -> Op[set[str]]:
    """Take these letters off; those that nobody else took meanwhile."""
    if not letters:
        return set()
    rows = [(x.id, x.due) for x in letters]
    done: set[str] = yield from queue._ops.patch_each(Patches(("id", "letter_due"), (), rows, {"letter_due": None}))
    return done


def _told(queue: AsyncQueue, row: Sequence[Any]) -> dict[str, Any]:
    """What a queue of dead letters gets of a job that has failed."""
    job = queue._ops.reader(TOLD)(row)
    about = {n: job[n] for n in ("id", "input", "error", "error_code", "attempts")}
    made = {"queue": queue.name, "run_id": job["run_id"] or job["id"], **about}
    try:
        encode_json(made)
    except InvalidValue:  # the input is as deep as JSON may be
        made["input"] = None
    return made


def _leases(queue: AsyncQueue) -> Op[None]:
    """Jobs whose lease has expired wait again at their old place, unless no attempt is left or they were to stop."""
    ops, now = queue._ops, queue._engine.now()
    where = Compare("lease_expires_at", "<=", moment(now))
    rows = yield from ops.select(where, (), names=READ, limit=AT_ONCE)
    if not rows:
        return
    at = ops.encode_value("completed_at", moment(now))
    changed = []
    for row in rows:
        old = dict(zip(READ, row, strict=True))
        new: dict[str, Any] = dict.fromkeys(WRITTEN)
        new["progress"] = 0.0
        new["error"] = old["error"]
        if old["abort_requested_at"] is not None:
            new |= {"status": "FAILED", "completed_at": at, "error": "aborted", "error_code": ABORTED}
        elif old["attempts"] >= old["max_attempts"]:
            why = old["error"] or "the lease of the last attempt expired: its worker is gone or was too slow"
            new |= {"status": "FAILED", "completed_at": at, "error": why, "error_code": EXHAUSTED, "letter_due": at}
        else:
            kept = {"unique_key": old["unique_key"]}
            new |= {"status": "PENDING", "due_at": old["visible_at"], "ends_at": old["deadline_at"], **kept}
        changed.append((old["id"], old["token"], "PROCESSING", old["lease_expires_at"], *(new[n] for n in WRITTEN)))
    yield from ops.patch_each(Patches(("id", "token", "status", "lease_expires_at"), WRITTEN, changed))


def _by_time(queue: AsyncQueue, error: str, code: str) -> dict[str, Any]:
    """Values of a job that time has made fail: a dead letter is due."""
    now = queue._engine.now()
    return queue._encoded({**failed(now, error, code), "letter_due": moment(now)})


def _deadlines(queue: AsyncQueue) -> Op[None]:
    """Jobs that were not started in time have failed."""
    now = queue._engine.now()
    late = _by_time(queue, "the deadline passed before the job was started", LATE)
    yield from queue._ops.update(None, Compare("ends_at", "<=", moment(now)), late, ("id",))


def _blocked(queue: AsyncQueue) -> Op[None]:
    """Jobs that waited for others: they wait for a worker once all of these have completed, and have failed once one of them
    never will. Where there are many, each look goes on where the last one stopped."""
    ops = queue._ops
    where, orders = Null("blocked_at", negated=True), (Order("blocked_at"), Order("id"))
    names = ("id", "token", "visible_at", "after")
    rows = yield from ops.select(where, orders, names=names, limit=AT_ONCE, after=queue._blocked, sort_keys=True)
    queue._blocked = list(rows[-1][len(names) :]) if len(rows) == AT_ONCE else None
    if not rows:
        return
    needs = {row[0]: ops.decoders["after"](row[3]) for row in rows}
    keys = [(id,) for id in dict.fromkeys(id for ids in needs.values() for id in ids)]
    status = dict((yield from ops.get_many(keys, ("id", "status"))))
    free, lost = [], []
    for row in rows:
        found = {status.get(id, "deleted") for id in needs[row[0]]}
        if found == {"COMPLETED"}:
            free.append((row[0], row[1], "PENDING", row[2]))
        elif not found <= {"COMPLETED", *ACTIVE}:
            lost.append(row[0])
    if free:
        yield from ops.patch_each(Patches(("id", "token", "status"), ("due_at",), free, {"blocked_at": None}))
    if lost:
        gone = _by_time(queue, "a job that this one was to follow did not complete", NEEDED)
        same = And((Compare("status", "=", JobStatus.PENDING.value), Null("blocked_at", negated=True)))
        yield from ops.update([(id,) for id in lost], same, gone, ("id",))
