"""One tiered table: what Postgres and ``howdah.tiers`` say of it, and the names of what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import md5
from typing import Any, NamedTuple

from ..session import Session
from .columns import TierColumn, quoted

COLUMNS = """
SELECT a.attnum::int AS number, a.attname AS name, y.typname AS type, format_type(a.atttypid, a.atttypmod) AS spelled,
  a.attgenerated <> '' AS generated, coalesce(l.collisdeterministic, true) AS exact,
  a.attcollation::bigint AS collation, a.attndims::int AS dims
FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid LEFT JOIN pg_collation l ON l.oid = a.attcollation
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
KEY = """
SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum)) AS key, max(c.relname::text) AS constraint
FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1])
  JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::oid AND i.indisprimary
"""
UNIQUES = """
SELECT min(c.relname::text) AS name, x.columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid CROSS JOIN LATERAL (SELECT array_agg(a.attname::text ORDER BY n) AS columns
  FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS u(attnum, n)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum) x
WHERE i.indrelid = $1::oid AND i.indisunique AND NOT i.indisprimary AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY x.columns ORDER BY 1
"""
SHAPE = """(SELECT md5(string_agg(concat_ws(' ', attnum, attname, atttypid, atttypmod, attcollation, attndims), ',' ORDER BY attnum)
    || coalesce((SELECT string_agg(indkey::text, ',' ORDER BY indkey::text) FROM pg_index
      WHERE indrelid = {rel} AND indisunique AND NOT indisprimary), ''))
  FROM pg_attribute WHERE attrelid = {rel} AND attnum > 0 AND NOT attisdropped)"""
"""What a table's columns and unique indexes are, as one text: an expression."""
TIERS = f"""
SELECT rel::oid AS oid, {SHAPE.format(rel="t.rel")} AS now, made_as = rel::oid AS mine, t.shape, n.nspname AS schema, c.relname AS name, t.location, t.policy, pg_table_is_visible(c.oid) AS visible,
  EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT tgisinternal AND NOT starts_with(tgname, 'howdah_')) AS triggers
FROM howdah.tiers t JOIN pg_class c ON c.oid = t.rel JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 3, 4
"""

VIEWS = """
WITH RECURSIVE above(oid) AS (SELECT rel::oid FROM howdah.tiers
  UNION SELECT r.ev_class FROM above JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = above.oid
    AND d.classid = 'pg_rewrite'::regclass JOIN pg_rewrite r ON r.oid = d.objid)
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS name, howdah.view_text(c.oid) AS sql, pg_table_is_visible(c.oid) AS visible
FROM above JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'v'
"""
"""The views over tiered tables, and those over these."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The base that ``howdah.tiers`` names; none before the first flush."""

    metadata: str | None
    generation: int
    max_key: int | None
    """The largest rank of a key that was ever in it."""
    archive: str | None = None
    """Where its files are that are cold."""


@dataclass(frozen=True, slots=True)
class View:
    """A view that reads a tiered table, and the query that it stands for."""

    oid: int
    sql: str


@dataclass(slots=True)
class Known:
    """The tiered tables of a database and the views over them, by schema ("" for the search path) and name."""

    tables: dict[tuple[str, str], Tiered] = field(default_factory=dict)
    views: dict[tuple[str, str], View] = field(default_factory=dict)

    def table(self, schema: str, name: str) -> Tiered | None:
        """A tiered table."""
        return self.tables.get((schema, name))

    def find(self, schema: str, name: str) -> Tiered | View | None:
        """A tiered table or a view over one."""
        return self.tables.get((schema, name)) or self.views.get((schema, name))


class Unique(NamedTuple):
    """A unique constraint or index: its name and columns."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tiered:
    """A table's shape. Its base may move on; its shape does not, while it is tiered."""

    oid: int
    schema: str
    name: str
    columns: tuple[TierColumn, ...]
    key: tuple[str, ...]
    constraint: str
    location: str
    shape: str
    policy: dict[str, Any] = field(compare=False)
    uniques: tuple[Unique, ...] = ()
    """Its unique constraints beside the key."""
    triggers: bool = False
    """Whether it has triggers of others."""

    @property
    def table(self) -> str:
        """The table's qualified name."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def pass_(self) -> str:
        """What a planned INSERT says to the gate."""
        return f"/*howdah:{self.oid}*/"

    @property
    def once(self) -> str:
        """What a planned INSERT says whose functions might insert, too."""
        return f"/*howdah:once:{self.oid}*/"

    @property
    def rekey(self) -> str:
        """What a planned statement says that may change keys."""
        return f"/*howdah:key:{self.oid}*/"

    @property
    def shadow(self) -> str:
        """Keys whose base rows are dead."""
        return f"howdah.shadow_{self.oid}"

    def beside(self, unique: Unique) -> str:
        """The table of a unique constraint's values that base rows have; columns may be renamed, their numbers stay."""
        numbers = "_".join(str(self.column(c).number) for c in unique.columns)
        short = numbers if len(numbers) <= 32 else md5(numbers.encode(), usedforsecurity=False).hexdigest()
        return f"howdah.unique_{self.oid}_{short}"

    @property
    def largest(self) -> str:
        """The sequence that holds the largest rank of a key that was ever in the base."""
        return f"howdah.largest_{self.oid}"

    @property
    def loaded(self) -> str:
        """Where base rows are bound for a statement."""
        return f"pg_temp.howdah_base_{self.oid}_{self.shape[:8]}"

    @property
    def written(self) -> str:
        """Where the keys of inserted rows are noted."""
        return f"pg_temp.howdah_keys_{self.oid}_{self.shape[:8]}"

    @property
    def probe(self) -> str:
        """Where the rows of an upsert are tried."""
        return f"pg_temp.howdah_probe_{self.oid}_{self.shape[:8]}"

    @property
    def archive(self) -> str | None:
        """Where files go that are cold."""
        found: str | None = self.policy["archive_location"]
        return found

    @property
    def ranked(self) -> bool:
        """Whether keys have a number that grows with them."""
        return len(self.key) == 1 and self.column(self.key[0]).type in ("int2", "int4", "int8", "uuid")

    def rank(self, key: Any) -> int:
        """The number of a key, as the base has it: equal or larger for a larger key."""
        if self.column(self.key[0]).type != "uuid":
            return int(key)
        return int((key.hex() if isinstance(key, bytes) else str(key).replace("-", ""))[:15], 16)

    def rank_sql(self, alias: str) -> str:
        """The same in SQL."""
        name = f"{alias}.{quoted(self.key[0])}"
        if self.column(self.key[0]).type == "uuid":
            return f"('x' || substr(replace({name}::text, '-', ''), 1, 15))::bit(60)::bigint"
        return f"{name}::bigint"

    def names(self, alias: str = "", *, generated: bool = True) -> str:
        """The columns, as a list."""
        dot = f"{alias}." if alias else ""
        return ", ".join(f"{dot}{quoted(c.name)}" for c in self.columns if generated or not c.generated)

    def column(self, name: str) -> TierColumn:
        """A column by name."""
        return next(c for c in self.columns if c.name == name)

    @property
    def key_columns(self) -> tuple[TierColumn, ...]:
        """The key's columns, in its order."""
        return tuple(map(self.column, self.key))

    def keys(self, alias: str = "") -> str:
        """The key's columns, as a list."""
        dot = f"{alias}." if alias else ""
        return ", ".join(f"{dot}{quoted(k)}" for k in self.key)

    def same_key(self, left: str, right: str) -> str:
        """The condition that two rows have one key."""
        return " AND ".join(f"{left}.{quoted(k)} = {right}.{quoted(k)}" for k in self.key)

    def live(self, alias: str) -> str:
        """The condition that a base row is not dead."""
        return f"NOT EXISTS (SELECT 1 FROM {self.shadow} s WHERE {self.same_key('s', alias)})"


async def described(
    session: Session,
    oid: int,
    schema: str,
    name: str,
    location: str = "",
    policy: dict[str, Any] | None = None,
    shape: str = "",
) -> Tiered:
    """A table's columns, key and constraints, with what ``howdah.tiers`` says of it."""
    columns = tuple(TierColumn(**dict(r)) for r in await session.query(COLUMNS, (oid,), None))
    key = (await session.query(KEY, (oid,), None))[0]
    names = tuple(key["key"] or ())
    uniques = [Unique(r["name"], tuple(r["columns"])) for r in await session.query(UNIQUES, (oid,), None)]
    made = Tiered(
        oid, schema, name, columns, names, key["constraint"] or "", location, shape, policy or {}, tuple(uniques)
    )
    if location:  # an index that somebody made since is no constraint of both tiers
        there = "SELECT x FROM unnest($1::text[]) x WHERE to_regclass(x) IS NOT NULL"
        known = (
            {r[0] for r in await session.query(there, ([made.beside(u) for u in uniques],), None)} if uniques else set()
        )
        made = replace(made, uniques=tuple(u for u in uniques if made.beside(u) in known))
    return made
