"""Numbers that are never handed out twice: counters on SQLite, sequences on Postgres."""

from __future__ import annotations

import zlib

from ..base import Op, Stmt
from .compile import SqlDialect
from .dialect import derived_name, text_literal


class Numbers:
    """One ascending series of a table."""

    def __init__(self, dialect: SqlDialect, physical: str, purpose: str) -> None:
        self.dialect = dialect
        self.name = derived_name(physical, purpose)
        self._sequence = dialect.qualify(self.name)
        self._lock = zlib.crc32(self._sequence.encode())

    def ddl(self) -> list[str]:
        """Statements that create the series."""
        return [] if self.dialect.name == "sqlite" else [f"CREATE SEQUENCE IF NOT EXISTS {self._sequence}"]

    def drop(self) -> list[str]:
        """Statements that drop it."""
        # On SQLite numbers go on: what another process remembers of a dropped table must not fit a new one.
        if self.dialect.name == "sqlite":
            return []
        return [f"DROP SEQUENCE IF EXISTS {self._sequence}"]

    def allocate(self, count: int) -> Op[list[int]]:
        """The next ``count`` numbers, ascending."""
        if self.dialect.name == "sqlite":
            rows = yield Stmt(
                "INSERT INTO _howdah_counters (name, value) VALUES (?1, ?2)"
                " ON CONFLICT (name) DO UPDATE SET value = value + ?2 RETURNING value",
                (self.name, count),
            )
            last = rows[0][0]
            return list(range(last - count + 1, last + 1))
        rows = yield Stmt(
            f"SELECT nextval({text_literal(self._sequence)}) FROM generate_series(1, $1::bigint)", (count,)
        )
        return sorted(int(n) for (n,) in rows)

    def guard(self) -> Op[None]:
        """Before generated numbers become keys: keep ``raise_to`` of other transactions out until this one ends."""
        if self.dialect.name == "postgres":
            yield Stmt("SELECT pg_advisory_xact_lock_shared(1751, $1::integer)", (self._lock - 2**31,))

    def raise_to(self, value: int) -> Op[None]:
        """Never hand out ``value`` or less again."""
        if value < 1:
            return
        if self.dialect.name == "sqlite":
            yield Stmt(
                "INSERT INTO _howdah_counters (name, value) VALUES (?1, ?2)"
                " ON CONFLICT (name) DO UPDATE SET value = max(value, ?2)",
                (self.name, value),
            )
            return
        rows = yield Stmt(f"SELECT last_value, is_called FROM {self._sequence}")
        if rows[0][0] < value or not rows[0][1]:
            yield Stmt("SELECT pg_advisory_xact_lock(1751, $1::integer)", (self._lock - 2**31,))
            yield Stmt(
                f"SELECT setval({text_literal(self._sequence)}, greatest(last_value, $1::bigint)) FROM {self._sequence}",
                (value,),
            )
