"""What ``tier()`` makes in Postgres, and what it refuses, each with the reason."""

from __future__ import annotations

from typing import Any

from ...engines.sql.dialect import text_literal
from ...errors import TieringRefused
from . import uniques
from .base import partition_fields, written_otherwise
from .columns import KEYS, TIMES, UNSORTED
from .tiered import Tiered

# A planner that opens the empty child folds its statistics expression: whoever did not say ONLY is refused while planning.
SYSTEM = """
CREATE SCHEMA IF NOT EXISTS howdah;
CREATE TABLE IF NOT EXISTS howdah.tiers (rel regclass PRIMARY KEY, made_as oid NOT NULL, location text NOT NULL, policy jsonb NOT NULL, metadata text,
  snapshot_id bigint, generation bigint NOT NULL, max_key bigint, rows bigint NOT NULL DEFAULT 0, files bigint NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0, flushed_at timestamptz, swept_at timestamptz NOT NULL DEFAULT now(), last_error text,
  shape text NOT NULL);
CREATE TABLE IF NOT EXISTS howdah.tier_snapshots (rel oid, snapshot_id bigint, at timestamptz NOT NULL DEFAULT clock_timestamp(),
  rows bigint NOT NULL, files bigint NOT NULL, bytes bigint NOT NULL, PRIMARY KEY (rel, snapshot_id));
CREATE TABLE IF NOT EXISTS howdah.tier_garbage (rel oid, path text, since timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (rel, path));
CREATE OR REPLACE FUNCTION howdah.gate(rel text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $gate$ BEGIN
  IF current_query() ~* '^\\s*(vacuum|analyze)\\M[^;]*;?\\s*$' THEN RETURN true; END IF;
  RAISE EXCEPTION 'table % is tiered: part of its rows are on object storage', rel USING ERRCODE = 'HW001',
    HINT = 'Query it through Howdah, or read hot rows only with FROM ONLY.'; END $gate$;
CREATE OR REPLACE FUNCTION howdah.hot_gate(rel text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $gate$ DECLARE called text; BEGIN
  -- What a function of theirs runs stands in the context, but for that of one in SQL.
  GET DIAGNOSTICS called = PG_CONTEXT;
  IF current_query() ~* '^[\\s(]*(select|table|values|with|explain|declare|fetch)\\M'
      AND concat_ws(' ', current_query(), called) !~* '\\m(insert|update|delete|merge|truncate|share|sql function)\\M' THEN RETURN true; END IF;
  RETURN howdah.gate(rel); END $gate$;
CREATE OR REPLACE FUNCTION howdah.gate_trigger() RETURNS trigger LANGUAGE plpgsql AS $gate$
  DECLARE one text := concat_ws(' ', TG_RELID, pg_backend_pid(), extract(epoch FROM statement_timestamp())); BEGIN
  -- What a trigger inserts by itself comes from deeper.
  IF strpos(current_query(), '/*howdah:once:' || TG_RELID::bigint || '*/') > 0 AND pg_trigger_depth() = 1
      AND current_setting('howdah.passed', true) IS DISTINCT FROM one THEN
    PERFORM set_config('howdah.passed', one, true); RETURN NULL; END IF;
  RAISE EXCEPTION 'table % is tiered: part of its rows are on object storage', TG_RELID::regclass USING ERRCODE = 'HW001',
    HINT = 'Write to it through Howdah.'; END $gate$;
CREATE OR REPLACE FUNCTION howdah.key_trigger() RETURNS trigger LANGUAGE plpgsql AS $gate$ BEGIN
  RAISE EXCEPTION 'a trigger or another client changed the primary key of table %, which is tiered', TG_RELID::regclass
    USING ERRCODE = '0A000', HINT = 'Change it in the statement itself.'; END $gate$;
CREATE OR REPLACE FUNCTION howdah.view_text(oid) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog AS
  'SELECT rtrim(pg_get_viewdef($1), '';'')';
CREATE OR REPLACE FUNCTION howdah.doubtful() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $gate$
  BEGIN RAISE EXCEPTION 'the key may be on object storage' USING ERRCODE = 'HW002'; END $gate$;
CREATE OR REPLACE FUNCTION howdah.refuse(state text, about text, con text, rel text, sch text) RETURNS void LANGUAGE plpgsql AS $gate$
  BEGIN RAISE EXCEPTION '%', about USING ERRCODE = state, CONSTRAINT = con, TABLE = rel, SCHEMA = sch; END $gate$;
"""

LEAST = -(2**63)
NAMES = ("regclass", "regcollation", "regconfig", "regdictionary", "regnamespace", "regoper", "regoperator", "regproc",
         "regprocedure", "regrole", "regtype")  # fmt: skip
"""Types whose values are written as names."""
FOREIGN_KEYS = (
    ("SELECT 1 FROM pg_constraint WHERE conrelid = $1::oid AND contype = 'f'", "it has a foreign key, whose actions see hot rows"
     " only: say foreign_keys='hot only' if that will do"),
    ("SELECT 1 FROM pg_constraint WHERE confrelid = $1::oid AND contype = 'f'", "a foreign key refers to it, whose checks see hot"
     " rows only: say foreign_keys='hot only' if that will do"),
)  # fmt: skip
CHECKS = (
    ("SELECT 1 FROM pg_class WHERE oid = $1::oid AND relkind <> 'r'", "it is no ordinary table"),
    ("SELECT 1 FROM pg_class WHERE oid = $1::oid AND relpersistence <> 'p'", "it is temporary or unlogged"),
    ("SELECT 1 FROM pg_inherits WHERE inhrelid = $1::oid OR inhparent = $1::oid", "it has a parent, children or partitions"),
    ("SELECT 1 FROM pg_constraint WHERE conrelid = $1::oid AND contype = 'x'", "it has an exclusion constraint, which the base"
     " cannot be asked about"),
    *uniques.CHECKS,
    ("WITH RECURSIVE above(oid) AS (SELECT $1::oid UNION SELECT r.ev_class FROM above JOIN pg_depend d ON d.refclassid ="
     " 'pg_class'::regclass AND d.refobjid = above.oid AND d.classid = 'pg_rewrite'::regclass JOIN pg_rewrite r ON r.oid = d.objid)"
     " SELECT 1 FROM above JOIN pg_class c USING (oid) WHERE c.relkind = 'm'", "a materialized view reads it, which could not be"
     " refreshed"),
    ("SELECT 1 FROM pg_class WHERE oid = $1::oid AND relrowsecurity", "it has row level security, which rows of the base would"
     " escape"),
    ("SELECT 1 FROM pg_rules r JOIN pg_class c ON c.relname = r.tablename JOIN pg_namespace n ON n.oid = c.relnamespace AND"
     " n.nspname = r.schemaname WHERE c.oid = $1::oid", "it has rules"),
    ("SELECT 1 FROM pg_trigger WHERE tgrelid = $1::oid AND NOT tgisinternal AND tgenabled IN ('A', 'R')", "it has a trigger that is"
     " enabled ALWAYS or as REPLICA, which would see rows move"),
)  # fmt: skip


def check_shape(tiered: Tiered, policy: dict[str, Any]) -> None:
    """``TieringRefused`` for a key, time or partition column that does not do."""
    time_column = policy["time_column"]
    if not tiered.key:
        raise TieringRefused(f"{tiered.table}: it has no primary key")
    odd = next((c.name for c in tiered.columns if "." in c.name or written_otherwise(c.name)), None)
    if odd is not None:
        raise TieringRefused(
            f"{tiered.table}: column {odd!r}: dots and other signs in a name are something else in Iceberg"
        )
    named = next((c for c in tiered.columns if c.type.lstrip("_") in NAMES), None)
    if named is not None:
        raise TieringRefused(
            f"{tiered.table}: column {named.name} is {named.spelled}: what its text means depends on the search path"
        )
    for name in tiered.key:
        column = tiered.column(name)
        if column.type not in KEYS or not column.exact:
            raise TieringRefused(
                f"{tiered.table}: its key column {name} is {column.spelled}; keys are whole numbers, text, uuid, dates or times"
                " (with a deterministic collation)"
            )
        if column.generated:
            raise TieringRefused(f"{tiered.table}: its key column {name} is generated")
    if time_column is not None:
        found = next((c for c in tiered.columns if c.name == time_column), None)
        if found is None or found.type not in TIMES:
            raise TieringRefused(f"{tiered.table}: time_column={time_column!r} is no date or timestamp column of it")
    there = {c.name: c for c in tiered.columns}
    for name in policy["sort_by"] or ():
        if name not in there:
            raise TieringRefused(f"{tiered.table}: sort_by={name!r} is no column of it")
        if there[name].nested:
            raise TieringRefused(f"{tiered.table}: sort_by={name!r}: vectors and arrays have no order in a base")
    for name, transform, _ in partition_fields(policy["partition_by"]):
        by = there.get(name)
        if by is None or not by.native or by.nested or by.type in UNSORTED:
            raise TieringRefused(
                f"{tiered.table}: partition_by={name!r} is no column of it whose type Iceberg partitions by"
            )
        if transform in ("year", "month", "day", "hour") and (
            by.type not in TIMES or (by.type, transform) == ("date", "hour")
        ):
            raise TieringRefused(f"{tiered.table}: partition_by={transform}({name}): {by.spelled} has no {transform}")
        if transform == "bucket" and by.type == "bool":
            raise TieringRefused(f"{tiered.table}: partition_by=bucket({name}): a boolean has no buckets")


def create(tiered: Tiered) -> list[str]:
    """The statements that make a table's own objects; the gate comes last."""
    keys = tiered.keys()
    return [
        f"CREATE TABLE {tiered.shadow} AS SELECT {keys} FROM ONLY {tiered.table} WITH NO DATA",
        f"ALTER TABLE {tiered.shadow} ADD PRIMARY KEY ({keys})",
        # A sequence is read as it is at this moment, whatever a statement's snapshot is.
        f"CREATE SEQUENCE {tiered.largest} MINVALUE {LEAST} START {LEAST}",
        f"SELECT setval('{tiered.largest}', {LEAST})",
        *(statement for unique in tiered.uniques for statement in uniques.create(tiered, unique)),
        f"CREATE TABLE howdah.gate_{tiered.oid} () INHERITS ({tiered.table})",
        *gate(tiered),
        f"CREATE TRIGGER howdah_gate BEFORE INSERT OR TRUNCATE ON {tiered.table} FOR EACH STATEMENT"
        f" WHEN (strpos(current_query(), '{tiered.pass_}') = 0 OR pg_trigger_depth() > 0) EXECUTE FUNCTION howdah.gate_trigger()",
        guard(tiered),
    ]


def guard(tiered: Tiered) -> str:
    """The statement that makes the trigger which refuses new keys: they are looked up in the base where a statement says that it
    makes some."""
    return (
        f"CREATE TRIGGER howdah_key AFTER UPDATE ON {tiered.table} FOR EACH ROW WHEN"
        f" ((({tiered.keys('OLD')}) IS DISTINCT FROM ({tiered.keys('NEW')})) AND strpos(current_query(), '{tiered.rekey}') = 0)"
        " EXECUTE FUNCTION howdah.key_trigger()"
    )


def unguard(tiered: Tiered) -> str:
    """The statement that removes it."""
    return f"DROP TRIGGER IF EXISTS howdah_key ON {tiered.table}"


def gate(tiered: Tiered) -> list[str]:
    """The statements that make the gate, or make it anew: whoever has planned past the old one plans again."""
    name, key = f"howdah.gate_{tiered.oid}", tiered.keys().partition(", ")[0]
    asks = "hot_gate" if tiered.policy["allow_hot_only"] else "gate"
    return [
        f"DROP STATISTICS IF EXISTS {name}_s",
        f"CREATE STATISTICS {name}_s ON (CASE WHEN howdah.{asks}({text_literal(tiered.table)}) THEN {key} END) FROM {name}",
    ]


def drop(tiered: Tiered) -> list[str]:
    """The statements that remove them."""
    return [
        f"DROP TRIGGER IF EXISTS howdah_gate ON {tiered.table}",
        unguard(tiered),
        f"DROP TABLE IF EXISTS howdah.gate_{tiered.oid}",
        f"DROP TABLE IF EXISTS {tiered.shadow}",
        uniques.DROP.replace("{oid}", str(tiered.oid)),
        f"DROP SEQUENCE IF EXISTS {tiered.largest}",
        f"DELETE FROM howdah.tier_snapshots WHERE rel = {tiered.oid}",
        f"DELETE FROM howdah.tier_garbage WHERE rel = {tiered.oid}",
        f"DELETE FROM howdah.tiers WHERE rel = {tiered.oid}",
    ]
