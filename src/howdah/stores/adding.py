"""Adding jobs to a queue: options checked once, rows made at little cost each, one job for a fingerprint if wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ..engines.base import Engine, Op
from ..errors import DuplicateKey, InvalidInput, JobNotFound
from ..ids import new_id, uuid7_texts
from ..values import as_list, canonical_json, check_text, encode_json, seconds
from .common import Duration, moment
from .finding import Finding
from .job import PAUSED, JobStatus, check_id

NEVER = datetime(9999, 12, 31, tzinfo=UTC)
"""When a job is due that waits for others."""
MOST_NEEDED = 1000
AT_ONCE, IN_TURN = 1000, 500


class Adding(Finding):
    """The adding half of a queue."""

    _engine: Engine
    _tags: dict[str, Any]
    _ops: Any

    def _rows(
        self,
        inputs: Sequence[Any],
        *,
        delay: Duration = 0,
        timeout: Duration | None = None,
        priority: int = 0,
        max_attempts: int = 10,
        run_id: str | None = None,
        fingerprint: str | None = None,
        unique: bool = False,
        after: Sequence[str] = (),
        now: float | None = None,
    ) -> list[list[Any]]:
        """Rows of jobs in driver form, checked; ``now`` is when they are added."""
        if type(priority) is not int or abs(priority) > 2**31:
            raise InvalidInput(f"priority={priority!r}: expected an integer")
        if type(max_attempts) is not int or not 1 <= max_attempts <= 2**31:
            raise InvalidInput(f"max_attempts={max_attempts!r}: expected an integer >= 1")
        for what, text in (("run_id", run_id), ("fingerprint", fingerprint)):
            if text is not None:
                if not isinstance(text, str) or not 0 < len(text) <= 1000:
                    raise InvalidInput(f"{what}={text!r:.60}: expected text of 1 to 1,000 characters")
                check_text(text, what)
        now = self._engine.now() if now is None else now
        at, visible = moment(now), moment(now + seconds(delay, "delay", zero=True))
        ends = None if timeout is None else moment(now + seconds(timeout, "timeout"))
        needed = _ids(after)
        same = {
            "scope": self._scope,
            "tags": encode_json(self._tags) if self._tags else None,
            "run_id": run_id,
            "status": JobStatus.PENDING.value,
            "rank": -priority,
            "due_at": NEVER if needed else visible,
            "after": encode_json(needed) if needed else None,
            "blocked_at": at if needed else None,
            "visible_at": visible,
            "created_at": at,
            "ends_at": ends,
            "deadline_at": ends,
            "attempts": 0,
            "max_attempts": max_attempts,
            "token": 0,
            "progress": 0.0,
            "progress_message": "",
        }
        names, milliseconds = self._ops.schema.names, int(now * 1000)
        template = list(self._ops.encode([same.get(n) for n in names]))
        places = [names.index(n) for n in ("id", "fingerprint", "fingerprint_hash", "unique_key", "input")]
        id_place, mark_place, hash_place, unique_place, input_place = places
        rows, ids, encode = [], self._engine.ids, self._ops.encode_value
        made = uuid7_texts(len(inputs), milliseconds) if ids is None else [str(new_id(ids, now)) for _ in inputs]
        for id, input in zip(made, inputs, strict=True):
            text = encode_json(input, "input")
            mark = fingerprint or hashlib.sha256(canonical_json(input, text).encode()).hexdigest()
            row = template.copy()
            row[id_place] = id
            row[mark_place] = mark
            row[hash_place] = self._hashed(mark)
            row[unique_place] = mark if unique else None
            row[input_place] = encode("input", text)
            rows.append(row)
        return rows

    async def add(
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
        (row,) = self._rows(
            [input],
            delay=delay,
            timeout=timeout,
            priority=priority,
            max_attempts=max_attempts,
            run_id=run_id,
            fingerprint=fingerprint,
            unique=unique,
            after=after,
        )
        if unique:
            return str(await self._table._write(lambda: self._ops.by_indexes(self._adding(row, after))))
        await self._table._write(lambda: self._inserting([row], after), single=not after and self._engine.ids is None)
        return str(row[0])

    def _inserting(self, rows: Sequence[list[Any]], after: Sequence[str], *, ahead: bool = False) -> Op[None]:
        """Add jobs; ``JobNotFound`` when one that they wait for is not there."""
        if after:
            found = yield from self._ops.get_many([(id,) for id in after], ("id", "scope", "status"))
            there = {r[0] for r in found if r[1] == self._scope and r[2] != PAUSED}
            missing = [id for id in after if id not in there]
            if missing:
                raise JobNotFound(f"after={missing[0]!r}: queue {self._name!r} has no such job")
        if self._engine.ids is not None:
            taken = yield from self._ops.get_many([(row[0],) for row in rows], ("id",))
            if taken:
                raise DuplicateKey(
                    f"queue {self._name!r}: ids() gave {taken[0][0]}, which a job has already", index=("id",)
                )
        yield from self._ops.insert(rows, ahead=ahead)

    def _adding(self, row: list[Any], after: Sequence[str] = ()) -> Op[str]:
        """Add a job unless one like it is active."""
        yield from self._inserting([], after)
        mark = row[self._ops.schema.names.index("fingerprint")]
        while True:
            for where in self._active(mark):
                found = yield from self._ops.select(where, (), names=("id",), limit=1)
                if found:
                    return str(found[0][0])
            if (yield from self._ops.insert_unless(row, ("scope", "unique_key"), "unique_key")):
                return str(row[0])

    async def add_many(
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
        given = as_list(inputs, "add_many")
        make = partial(
            self._rows,
            delay=delay,
            timeout=timeout,
            priority=priority,
            max_attempts=max_attempts,
            run_id=run_id,
            unique=unique,
            after=after,
            now=self._engine.now(),  # of all, also if the clock is moved meanwhile
        )
        if self._ops.at_once and len(given) > AT_ONCE and not unique:
            return list(await self._table._write(lambda: self._in_turn(given, make, after)))
        rows = make(given)
        if not rows:
            return []
        if unique:

            def work() -> Op[list[str]]:
                ids = []
                for row in rows:
                    ids.append((yield from self._adding(row, after)))
                return ids

            return list(await self._table._write(lambda: self._ops.by_indexes(work())))
        alone = self._ops.at_once and len(rows) <= AT_ONCE and not after and self._engine.ids is None
        await self._table._write(lambda: self._inserting(rows, after), single=alone)
        return [str(row[0]) for row in rows]

    def _in_turn(
        self, inputs: list[Any], make: Callable[[list[Any]], list[list[Any]]], after: Sequence[str]
    ) -> Op[list[str]]:
        """Add many jobs: the server puts away some while the next are made."""
        ids: list[str] = []
        for start in range(0, len(inputs), IN_TURN):
            rows = make(inputs[start : start + IN_TURN])
            yield from self._inserting(rows, () if start else after, ahead=True)
            ids += [str(row[0]) for row in rows]
        return ids


def _ids(after: object) -> list[str]:
    """The jobs to wait for, checked, each once."""
    if isinstance(after, str) or not isinstance(after, (list, tuple, set, frozenset)):
        raise InvalidInput(f"after={after!r:.60}: expected a list of ids of jobs")
    if len(after) > MOST_NEEDED:
        raise InvalidInput(f"after: {len(after)} jobs; a job waits for {MOST_NEEDED:,} at most")
    return list(dict.fromkeys(check_id(id) for id in after))
