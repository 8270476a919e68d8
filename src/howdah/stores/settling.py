"""What time does to a queue: leases and deadlines that have passed, schedules that are due; done by whoever claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..criteria import And, Compare, Null, Order
from ..engines.base import Op, Patches
from ..values import encode_json
from .claim import ABORTED, EXHAUSTED, LATE, NEEDED, Outcome, failed
from .common import moment
from .job import ACTIVE, JobStatus

if TYPE_CHECKING:
    from .queue import AsyncQueue

PAUSED = "paused"
"""Status and id (with the scope behind it) of a row that stands for a pause; no job has either."""
RESET: dict[str, Any] = {
    **dict.fromkeys(
        ("completed_at", "error", "error_code", "traceback", "abort_requested_at", "deadline_at", "ends_at")
    ),
    "progress": 0.0,
    "progress_message": "",
    "progress_details": None,
}
AT_ONCE = 1000
TOLD = ("id", "run_id", "input", "error", "error_code", "attempts")
READ = ("id", "run_id", "input", "token", "attempts", "max_attempts", "abort_requested_at", "visible_at", "deadline_at", "unique_key",
        "error", "lease_expires_at")  # fmt: skip
WRITTEN = ("status", "due_at", "ends_at", "lease_owner", "lease_expires_at", "completed_at", "error", "error_code",
           "unique_key", "progress")  # fmt: skip


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
    rows = [
        (o.claim.id, o.claim.token, "PROCESSING", ops.encode_value("output", encode_json(o.output, "output")))
        for o in outcomes
    ]
    return Patches(("id", "token", "status"), ("output",), rows, fixed)


def letter(queue: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What a queue of dead letters gets of a job that has failed."""
    about = {n: job[n] for n in ("id", "input", "error", "error_code", "attempts")}
    return {"queue": queue, "run_id": job["run_id"] or job["id"], **about}


def settled(queue: AsyncQueue) -> Op[tuple[bool, list[dict[str, Any]]]]:
    """Deal with what time has done; whether the queue is paused. Jobs that have failed are sent on in the same write; the
    letters that this cannot do, because their queue is in another store."""
    failures = yield from _leases(queue)
    failures += yield from _deadlines(queue)
    failures += yield from _blocked(queue)
    to = queue._letters_to
    letters: list[dict[str, Any]] = []
    if to is not None and failures:
        read = queue._ops.reader(("input",))
        letters = [letter(queue.name, {**f, **read((f["input"],))}) for f in failures]
        if to._engine is queue._engine:
            yield from to._ops.insert(to._rows(letters))
            letters = []

    def add(input: Any, options: Mapping[str, Any]) -> Op[None]:
        row = queue._scheduled(input, options)
        if options.get("unique"):
            yield from queue._adding(row)
        else:
            yield from queue._ops.insert([row])

    yield from queue._schedules.fire(add)
    return bool((yield from queue._ops.get_many([(PAUSED + queue._scope,)], ("id",)))), letters


def _leases(queue: AsyncQueue) -> Op[list[dict[str, Any]]]:
    """Jobs whose lease has expired wait again at their old place, unless no attempt is left or they were to stop; those
    for which none was left."""
    ops, now = queue._ops, queue._engine.now()
    where = Compare("lease_expires_at", "<=", moment(now))
    rows = yield from ops.select(where, (), names=READ, limit=AT_ONCE)
    if not rows:
        return []
    at = ops.encode_value("completed_at", moment(now))
    changed, lost = [], []
    for row in rows:
        old = dict(zip(READ, row, strict=True))
        new: dict[str, Any] = dict.fromkeys(WRITTEN)
        new["progress"] = 0.0
        new["error"] = old["error"]
        if old["abort_requested_at"] is not None:
            new |= {"status": "FAILED", "completed_at": at, "error": "aborted", "error_code": ABORTED}
        elif old["attempts"] >= old["max_attempts"]:
            why = old["error"] or "the lease of the last attempt expired: its worker is gone or was too slow"
            new |= {"status": "FAILED", "completed_at": at, "error": why, "error_code": EXHAUSTED}
            lost.append({**old, "error": why, "error_code": EXHAUSTED})
        else:
            kept = {"unique_key": old["unique_key"]}
            new |= {"status": "PENDING", "due_at": old["visible_at"], "ends_at": old["deadline_at"], **kept}
        changed.append((old["id"], old["token"], "PROCESSING", old["lease_expires_at"], *(new[n] for n in WRITTEN)))
    done = yield from ops.patch_each(Patches(("id", "token", "status", "lease_expires_at"), WRITTEN, changed))
    return [old for old in lost if old["id"] in done]


def _deadlines(queue: AsyncQueue) -> Op[list[dict[str, Any]]]:
    """Jobs that were not started in time have failed; which they are."""
    now = queue._engine.now()
    late = queue._encoded(failed(now, "the deadline passed before the job was started", LATE))
    rows = yield from queue._ops.update(None, Compare("ends_at", "<=", moment(now)), late, TOLD)
    return [dict(zip(TOLD, row, strict=True)) for row in rows]


def _blocked(queue: AsyncQueue) -> Op[list[dict[str, Any]]]:
    """Jobs that waited for others: they wait for a worker once all of these have completed, and have failed once one of them
    never will; the latter. Where there are many, each look goes on where the last one stopped."""
    ops = queue._ops
    where, orders = Null("blocked_at", negated=True), (Order("blocked_at"), Order("id"))
    names = ("id", "token", "visible_at", "after")
    rows = yield from ops.select(where, orders, names=names, limit=AT_ONCE, after=queue._blocked, sort_keys=True)
    queue._blocked = list(rows[-1][len(names) :]) if len(rows) == AT_ONCE else None
    if not rows:
        return []
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
    if not lost:
        return []
    gone = queue._encoded(failed(queue._engine.now(), "a job that this one was to follow did not complete", NEEDED))
    same = And((Compare("status", "=", JobStatus.PENDING.value), Null("blocked_at", negated=True)))
    rows = yield from ops.update([(id,) for id in lost], same, gone, TOLD)
    return [dict(zip(TOLD, row, strict=True)) for row in rows]
