"""Policies for many tables: of a database's configuration, and in the comments of tables.

A comment says what and when, ``howdah.tier(hot_for => 86400, time_column => 'ts')``, in constants; where is the configuration's to
say: who may comment on a table may not choose where a process writes, or run anything in it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from ...errors import InvalidInput, QueryError, TierError, TieringRefused
from ...values import check_text
from ..session import Session
from . import place
from .calling import called
from .columns import quoted
from .manage import policy_of, tier
from .tree import parsed, walk

log = logging.getLogger("howdah")
PATIENCE = 200
"""Milliseconds that a table's lock is waited for."""
_SAID = re.compile(r"howdah\.tier\(.*\)", re.DOTALL | re.IGNORECASE)
_CONSTANTS = frozenset((
    *("Node", "SelectStmt", "ResTarget", "A_Const", "Integer", "Float", "Boolean", "String", "TypeCast", "TypeName", "A_ArrayExpr"),
    *("ParseResult", "RawStmt"),
))  # fmt: skip
_TYPES = frozenset(("pg_catalog", "interval", "bool"))
_TABLES = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, coalesce(obj_description(c.oid, 'pg_class'), '') AS comment
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND NOT c.relispartition AND n.nspname = ANY($1::text[])
  AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) ORDER BY 2, 3
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiering:
    """Policies for the tables of ``schemas``, those that there will be, too: ``Database.open(url, tiering=Tiering(…))``.

    ``tables`` says which: those whose comment has ``howdah.tier(…)``, or all that have a primary key and can be tiered. The
    comment's arguments are those of ``Database.tier`` without the places, as constants; what it does not say, this says. Each
    table's base is in ``location/schema.table``, archived files in ``archive_location/schema.table``. Policies are read when the
    database is opened and whenever something is flushed. A table that has a base elsewhere, by ``Database.tier``, keeps it.
    """

    location: Any
    tables: Literal["commented", "all"] = "commented"
    schemas: Sequence[str] = ("public",)
    hot_for: float | timedelta = 300
    flush_rows: int = 1000
    flush_every: float | timedelta = 60
    time_column: str | None = None
    partition_by: str | Sequence[str] | None = None
    sort_by: str | Sequence[str] | None = None
    archive_after: float | timedelta | None = None
    archive_location: Any = None
    allow_hot_only: bool = False
    foreign_keys: Literal["hot only"] | None = None
    retries: int = 3
    retry_delay: float | timedelta = 1
    batch_rows: int = 200_000

    def __post_init__(self) -> None:
        place.recorded(self.location)
        if self.tables not in ("commented", "all"):
            raise InvalidInput(f"tables={self.tables!r:.60}: expected 'commented' or 'all'")
        if isinstance(self.schemas, str) or not self.schemas:
            raise InvalidInput(f"schemas={self.schemas!r:.60}: expected names of schemas")
        for schema in self.schemas:
            check_text(schema, "schemas")
            if schema == "howdah" or schema.startswith("pg_"):
                raise InvalidInput(f"schemas: {schema} holds tables that are not yours")
        policy_of(**self.policy("public", "table"))

    def policy(self, schema: str, name: str) -> dict[str, Any]:
        """What it says of one table."""
        said = {f: getattr(self, f) for f in self.__slots__ if f not in ("location", "tables", "schemas")}
        if self.archive_location is not None:
            said["archive_location"] = place.of_table(place.recorded(self.archive_location), schema, name)
        return said

    def place(self, schema: str, name: str) -> str:
        """Where a table's base is."""
        return place.of_table(place.recorded(self.location), schema, name)


class Adopting:
    """Makes the tables of a configuration tiered, each when it is first seen or its comment is another one."""

    def __init__(self, tiering: Tiering) -> None:
        self._tiering = tiering
        self._seen: dict[int, str] = {}
        self._failed: dict[int, str] = {}

    async def look(self, session: Session) -> None:
        """See to every table. What cannot be done is logged, once; what may be done later, such as of a table that is locked, or
        where storage is not there, is tried again."""
        there = await session.query(_TABLES, (list(self._tiering.schemas),), None)
        for oid, schema, name, comment in map(tuple, there):
            said = _SAID.search(comment)
            told = said[0] if said is not None else ""
            if self._seen.get(oid) == told or not (told or self._tiering.tables == "all"):
                continue
            try:
                await self._tier(session, schema, name, told)
                self._seen[oid] = told
            except TieringRefused as error:
                self._seen[oid] = told
                log.log(logging.WARNING if told else logging.INFO, "%s", error)
            except (InvalidInput, QueryError, TierError) as error:
                if self._failed.get(oid) != str(error):
                    log.warning("table %s.%s is not tiered as it was said: %s", schema, name, error)
                self._failed[oid] = str(error)

    async def _tier(self, session: Session, schema: str, name: str, told: str) -> None:
        location = self._tiering.place(schema, name)
        policy = self._tiering.policy(schema, name)
        if told:
            policy |= await _said(session, told)
        sql = "SELECT location FROM howdah.tiers WHERE rel = to_regclass($1)"
        spelled = f"{quoted(schema)}.{quoted(name)}"
        if (await session.query("SELECT to_regclass('howdah.tiers') IS NOT NULL", (), None))[0][0]:
            known = await session.query(sql, (spelled,), None)
            if known and known[0]["location"] != location:
                return
        checked = policy_of(**policy)
        await session.command(f"SET lock_timeout = '{PATIENCE}ms'")  # who writes there is not kept waiting
        try:
            await tier(session, spelled, location, checked)
        finally:
            if not session.is_closed():
                await session.command("RESET lock_timeout")


async def _said(session: Session, told: str) -> dict[str, Any]:
    """What a comment says of a policy."""
    inner = told[len("howdah.tier(") :]
    first = "CALL howdah.tier('', ''"
    call = called(f"{first}{inner}" if inner.strip() == ")" else f"{first}, {inner}")
    if call is None:
        raise InvalidInput(f"{told:.80}: expected arguments such as hot_for => 86400")
    given = {n: v for n, v in call.arguments.items() if n not in ("table", "location")}
    for key, text in given.items():
        tree = parsed(f"SELECT {text}")
        kinds = {type(m).__name__ for m in walk(tree)} if tree is not None else {""}
        types = (
            {n.string.sval for m in walk(tree) if type(m).__name__ == "TypeName" for n in m.names} if tree else set()
        )
        if key == "archive_location" or not kinds <= _CONSTANTS or not types <= _TYPES:
            raise InvalidInput(f"{key} => {text:.60}: a comment says no places, and constants only")
    return await call._replace(arguments=given).values(session, ())
