"""Cron schedules of a queue: rows with the next moment; whoever settles the queue adds what is due, once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from ..criteria import And, Compare, Order
from ..engines.base import Engine, Op
from ..errors import InvalidInput
from ..naming import store_table
from ..rows import RowType
from ..schema import Column, build
from ..table import AsyncTable
from ..values import check_text, encode_json

log = logging.getLogger("howdah")
COLUMNS = (
    Column("scope", "text"),
    Column("id", "text"),
    Column("cron", "text"),
    Column("timezone", "text"),
    Column("input", "json", nullable=True),
    Column("options", "json"),
    Column("next_at", "timestamp"),
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule: five-field cron in a time zone, the input of its jobs, and when the next one comes."""

    id: str
    cron: str
    timezone: str
    input: Any
    options: Mapping[str, Any]
    next_at: datetime


def next_time(cron: str, timezone: str, after: float) -> datetime:
    """The first moment after ``after`` (seconds since 1970) that fits; ``InvalidInput`` for a bad expression or zone."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInput(f"timezone={timezone!r}: no such time zone") from error
    try:
        return next(CronSim(cron, datetime.fromtimestamp(after, zone))).astimezone(UTC)
    except (CronSimError, StopIteration) as error:
        raise InvalidInput(
            f"cron={cron!r}: {error or 'never comes'}; expected five fields, e.g. '0 9 * * MON'"
        ) from error


class Schedules:
    """The schedules of one queue and scope."""

    def __init__(self, engine: Engine, name: str, scope: str) -> None:
        self._engine = engine
        self._scope = scope
        physical = store_table("queuecron", name)
        schema = build(physical, COLUMNS, key=("scope", "id"), indexes=["next_at"], internal=True)
        self.table: AsyncTable[Any] = AsyncTable(engine, schema, RowType(None, COLUMNS, dict, None), physical)
        self._ops = self.table._ops

    async def put(self, id: str, cron: str, input: Any, timezone: str, options: Mapping[str, Any]) -> Schedule:
        """Add a schedule, or replace the one with this id."""
        if not isinstance(id, str) or not 0 < len(id) <= 500:
            raise InvalidInput(f"id={id!r:.60}: expected text of 1 to 500 characters")
        check_text(id, "id")
        if not isinstance(cron, str) or not isinstance(timezone, str):
            raise InvalidInput("cron and timezone are texts")
        due = next_time(cron, timezone, self._engine.now())
        text, extra = encode_json(input, "input"), encode_json(dict(options), "options")
        row = self._ops.encode([self._scope, id, cron, timezone, text, extra, due])
        await self.table._write(lambda: self._ops.put([row]), single=True)
        return Schedule(id, cron, timezone, input, dict(options), due)

    async def list(self) -> list[Schedule]:
        """Every schedule, by id."""
        rows = await self.table.query(Compare("scope", "=", self._scope)).all()
        return [Schedule(r["id"], r["cron"], r["timezone"], r["input"], r["options"], r["next_at"]) for r in rows]

    async def delete(self, id: str) -> bool:
        """Remove a schedule; whether it was there."""
        return await self.table.delete((self._scope, id))

    def due(self) -> Op[Sequence[str]]:
        """The scopes that have a schedule which is due."""
        where = Compare("next_at", "<=", datetime.fromtimestamp(self._engine.now(), UTC))
        rows = yield from self._ops.select(where, (Order("next_at"),), names=("scope",), limit=1000)
        return sorted({row[0] for row in rows})

    def fire(self, add: Callable[[Any, Mapping[str, Any]], Op[None]]) -> Op[None]:
        """Add a job for every schedule that is due, one for all the moments that were missed."""
        now = self._engine.now()
        where = And((Compare("scope", "=", self._scope), Compare("next_at", "<=", datetime.fromtimestamp(now, UTC))))
        rows = yield from self._ops.select(where, (), names=self._ops.schema.names, limit=1000)
        read = self._ops.reader(self._ops.schema.names)
        for driver in rows:
            row = read(driver)
            try:
                after = next_time(row["cron"], row["timezone"], now)
            except InvalidInput as error:  # a time zone that this machine does not know: another one's turn
                log.warning("schedule %s cannot be read here: %s", row["id"], error)
                continue
            moved = And((*where.parts, Compare("id", "=", row["id"])))
            patch = {"next_at": self._ops.encode_value("next_at", after)}
            if (yield from self._ops.update(None, moved, patch, ("id",))):
                yield from add(row["input"], row["options"])
