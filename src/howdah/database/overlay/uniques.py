"""Unique constraints beside the key: the values that base rows have stay in Postgres, in a table for each, and are asked there.

What moves to the base puts its values in, what comes back to the heap takes them out, and a trigger refuses a new row whose
values are there. The heap's own index sees to the rest. ``v0, v1, …`` are the values, ``k0, k1, …`` the key of their row.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...engines.sql.dialect import text_literal
from ...errors import TieringRefused
from .columns import quoted
from .counting import LOCK
from .tiered import Tiered, Unique

_BESIDE = "FROM pg_index i WHERE indrelid = $1::oid AND indisunique AND NOT indisprimary"
CHECKS = (
    (f"SELECT 1 {_BESIDE} AND (indpred IS NOT NULL OR indexprs IS NOT NULL)", "it has a unique index over expressions or some of"
     " its rows"),
    (f"SELECT 1 {_BESIDE} AND NOT indisvalid", "it has a unique index that is not valid: drop it, or REINDEX it"),
    (f"SELECT 1 {_BESIDE} AND indnullsnotdistinct", "it has a unique index with NULLS NOT DISTINCT"),
    (f"SELECT 1 {_BESIDE} AND NOT indimmediate", "it has a unique constraint that is deferrable"),
    (f"SELECT 1 {_BESIDE} AND EXISTS (SELECT FROM unnest(i.indclass::oid[]) o JOIN pg_opclass c ON c.oid = o WHERE NOT"
     " c.opcdefault)", "it has a unique index with an operator class of its own"),
    ("SELECT 1 FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indcollation::oid[]) WITH ORDINALITY AS u(num, coll, n)"
     " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.num JOIN pg_type y ON y.oid = a.atttypid WHERE"
     " indrelid = $1::oid AND indisunique AND NOT indisprimary AND n <= i.indnkeyatts AND (a.attgenerated <> '' OR"
     " (y.typnamespace <> 'pg_catalog'::regnamespace AND y.typtype <> 'e') OR u.coll <> a.attcollation)",
     "it has a unique index over a generated column, a type with an equality of its own, or with a collation of its own"),
)  # fmt: skip
"""What a table of values cannot stand for."""
DROP = """DO $$ DECLARE n text; BEGIN
  FOR n IN SELECT proname FROM pg_proc WHERE pronamespace = 'howdah'::regnamespace AND starts_with(proname, 'unique_{oid}_') LOOP
    EXECUTE format('DROP FUNCTION howdah.%I CASCADE', n); END LOOP;
  FOR n IN SELECT relname FROM pg_class WHERE relnamespace = 'howdah'::regnamespace AND relkind = 'r'
      AND starts_with(relname, 'unique_{oid}_') LOOP
    EXECUTE format('DROP TABLE howdah.%I', n); END LOOP; END $$"""
"""Removes what there is for a table's constraints, those that are gone by now, too."""


def create(tiered: Tiered, unique: Unique) -> list[str]:
    """The statements that make what a constraint needs."""
    name = tiered.beside(unique)
    values = [f"{quoted(c)} AS v{i}" for i, c in enumerate(unique.columns)]
    keys = [f"{quoted(k)} AS k{i}" for i, k in enumerate(tiered.key)]
    return [
        f"CREATE TABLE {name} AS SELECT {', '.join([*values, *keys])} FROM ONLY {tiered.table} WITH NO DATA",
        f"CREATE UNIQUE INDEX ON {name} ({', '.join(f'v{i}' for i in range(len(values)))})",
        *watch(tiered, unique),
    ]


def watch(tiered: Tiered, unique: Unique) -> list[str]:
    """The statements that make the trigger. Under repeatable read it would not see what a flush has put in since: the server
    says 40001 then."""
    name, columns = tiered.beside(unique), unique.columns
    same = " AND ".join(f"s.v{i} = NEW.{quoted(c)}" for i, c in enumerate(columns))
    changed = " OR ".join(f"OLD.{c} IS DISTINCT FROM NEW.{c}" for c in map(quoted, columns))
    told = text_literal(f"duplicate key value violates unique constraint {quoted(unique.name)}")
    key, shown = text_literal(f"Key ({', '.join(columns)})=("), ", ".join(f"NEW.{quoted(c)}" for c in columns)
    body = (
        f"BEGIN IF TG_OP = 'UPDATE' THEN IF NOT ({changed}) THEN RETURN NULL; END IF; END IF;"
        " IF current_setting('transaction_isolation') <> 'read committed' THEN"
        f" PERFORM pg_advisory_xact_lock_shared({LOCK}, {tiered.oid - 2**31});"
        f" PERFORM 1 FROM howdah.tiers WHERE rel = {tiered.oid} FOR SHARE; END IF;"
        f" PERFORM 1 FROM {name} s WHERE {same} FOR KEY SHARE;"
        f" IF FOUND THEN RAISE EXCEPTION USING MESSAGE = {told}, ERRCODE = '23505', CONSTRAINT = {text_literal(unique.name)},"
        f" TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA, DETAIL = {key} || concat_ws(', ', {shown}) || ') already exists.';"
        " END IF; RETURN NULL; END"
    )
    return [
        f"DROP FUNCTION IF EXISTS {name} CASCADE",
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS {text_literal(body)}",
        # With the columns in its definition, they could not become wider.
        f"CREATE TRIGGER howdah_{name.partition('.')[2]} AFTER INSERT OR UPDATE ON {tiered.table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]


def drop(tiered: Tiered, unique: Unique) -> list[str]:
    """The statements that remove it all."""
    name = tiered.beside(unique)
    return [f"DROP FUNCTION IF EXISTS {name} CASCADE", f"DROP TABLE IF EXISTS {name}"]


def alter(old: Tiered, new: Tiered) -> list[str]:
    """The statements that follow a change of columns. ``TieringRefused`` for a collation by which other values are equal."""
    steps: list[str] = []
    there = {new.beside(unique): unique for unique in new.uniques}
    for unique in old.uniques:
        name = old.beside(unique)
        if name not in there:
            steps += drop(old, unique)
            continue
        for i, (was, now) in enumerate(zip(unique.columns, there[name].columns, strict=True)):
            before, after = old.column(was), new.column(now)
            if before.collation != after.collation:
                raise TieringRefused(f"{old.table}: {was} is unique: its collation cannot change: untier it first")
            if before.spelled != after.spelled:
                steps.append(f"ALTER TABLE {name} ALTER v{i} TYPE {after.spelled}")
        steps += watch(new, there[name])
    return steps


def columns(tiered: Tiered) -> list[str]:
    """The columns that rows must show for ``put_in``."""
    return list(dict.fromkeys([*tiered.key, *(c for unique in tiered.uniques for c in unique.columns)]))


def put_in(tiered: Tiered, rows: str) -> str:
    """Common table expressions that put in the values of rows that become the base's."""
    return "".join(
        f", in{n} AS (INSERT INTO {tiered.beside(unique)} SELECT {_list('g', [*unique.columns, *tiered.key])} FROM {rows} g"
        f" WHERE {_whole('g', unique)})"
        for n, unique in enumerate(tiered.uniques)
    )


def take_out(tiered: Tiered, rows: str, keys: str) -> str:
    """Common table expressions that take out the values of base rows, those with one of ``keys``."""
    return "".join(
        f", out{n} AS (DELETE FROM {tiered.beside(unique)} u USING {rows} b JOIN {keys} USING ({tiered.keys()})"
        f" WHERE {_same('u', 'b', unique)})"
        for n, unique in enumerate(tiered.uniques)
    )


def clashing(tiered: Tiered, unique: Unique, rows: str) -> str:
    """A table, in parentheses, of the keys whose base rows have values of ``rows``."""
    keys = ", ".join(f"u.k{i} AS {quoted(k)}" for i, k in enumerate(tiered.key))
    return f"(SELECT {keys} FROM {tiered.beside(unique)} u JOIN {rows} b ON {_same('u', 'b', unique)}) clashing"


def _same(values: str, rows: str, unique: Unique) -> str:
    return " AND ".join(f"{values}.v{i} = {rows}.{quoted(c)}" for i, c in enumerate(unique.columns))


def _whole(rows: str, unique: Unique) -> str:
    return " AND ".join(f"{rows}.{quoted(c)} IS NOT NULL" for c in unique.columns)


def _list(rows: str, names: Sequence[str]) -> str:
    return ", ".join(f"{rows}.{quoted(name)}" for name in names)
