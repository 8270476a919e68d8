"""Adding jobs to a queue: options checked once, rows made at little cost each, one job for a fingerprint if wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from ..engines.base import Engine, Op
from ..errors import InvalidInput
from ..ids import uuid7_text
from ..values import as_list, canonical_json, check_text, encode_json, seconds
from .common import Duration, moment
from .finding import Finding
from .job import JobStatus


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
    ) -> list[list[Any]]:
        """Rows of jobs in driver form, checked."""
        if type(priority) is not int or abs(priority) > 2**31:
            raise InvalidInput(f"priority={priority!r}: expected an integer")
        if type(max_attempts) is not int or not 1 <= max_attempts <= 2**31:
            raise InvalidInput(f"max_attempts={max_attempts!r}: expected an integer >= 1")
        for what, text in (("run_id", run_id), ("fingerprint", fingerprint)):
            if text is not None:
                if not isinstance(text, str) or not 0 < len(text) <= 1000:
                    raise InvalidInput(f"{what}={text!r:.60}: expected text of 1 to 1,000 characters")
                check_text(text, what)
        now = self._engine.now()
        at, visible = moment(now), moment(now + seconds(delay, "delay", zero=True))
        ends = None if timeout is None else moment(now + seconds(timeout, "timeout"))
        same = {
            "scope": self._scope,
            "tags": encode_json(self._tags) if self._tags else None,
            "run_id": run_id,
            "status": JobStatus.PENDING.value,
            "rank": -priority,
            "due_at": visible,
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
        places = [names.index(n) for n in ("id", "fingerprint", "unique_key", "input")]
        id_place, mark_place, unique_place, input_place = places
        rows = []
        for input in inputs:
            text = encode_json(input, "input")
            mark = fingerprint or hashlib.sha256(canonical_json(input, text).encode()).hexdigest()
            row = template.copy()
            row[id_place] = uuid7_text(milliseconds)
            row[mark_place] = mark
            row[unique_place] = mark if unique else None
            row[input_place] = self._ops.encode_value("input", text)
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
    ) -> str:
        """Add a job; its id. ``input`` is any JSON value.

        It may start after ``delay`` seconds and not after ``timeout``; jobs of a higher ``priority`` go first;
        ``max_attempts`` counts executions. With ``unique=True``, while a job of this ``fingerprint`` (default: that of the
        input) waits or runs, its id is returned and nothing added. Inside a transaction the job comes with the commit.
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
        )
        if unique:
            return str(await self._table._write(lambda: self._adding(row)))
        await self._table._write(lambda: self._ops.insert([row]), single=True)
        return str(row[0])

    def _adding(self, row: list[Any]) -> Op[str]:
        """Add a job unless one like it is active."""
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
    ) -> list[str]:
        """Add many jobs, all or none; their ids in the order of the inputs. The options count for each."""
        rows = self._rows(
            as_list(inputs, "add_many"),
            delay=delay,
            timeout=timeout,
            priority=priority,
            max_attempts=max_attempts,
            run_id=run_id,
            unique=unique,
        )
        if not rows:
            return []
        if unique:

            def work() -> Op[list[str]]:
                ids = []
                for row in rows:
                    ids.append((yield from self._adding(row)))
                return ids

            return list(await self._table._write(work))
        await self._table._write(lambda: self._ops.insert(rows), single=self._ops.at_once and len(rows) <= 1000)
        return [str(row[0]) for row in rows]
