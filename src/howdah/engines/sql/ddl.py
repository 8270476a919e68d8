"""Creating a table and growing it: the statements for a schema, and for what has been added to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...errors import SetupRequired
from ...schema import MOST_INDEXED, MOST_WHOLE, Column, SparseIndex
from .changes import CHANNEL
from .dialect import derived_name, quote, text_literal
from .table import DOC, STALE, SqlTable, version_column
from .text import TextIndex

NEXT = "text, timestamptz, integer, bigint, timestamptz, text"


@dataclass(slots=True)
class Plan:
    """Statements to run, and the indexes that existing rows must be fed into afterwards."""

    statements: list[str] = field(default_factory=list)
    fill_text: bool = False
    fill_versions: list[str] = field(default_factory=list)
    backfill: list[tuple[Column, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.statements or self.fill_text or self.fill_versions)


def create(table: SqlTable) -> list[str]:
    """Statements that create a table with everything it needs."""
    schema, dialect = table.schema, table.dialect
    lines = []
    sqlite_rowid = dialect.name == "sqlite" and len(schema.key) == 1 and schema.by_name[schema.key[0]].kind == "integer"
    for column in schema.columns:
        line = f"{quote(column.name)} {dialect.column_type(column)}".rstrip()
        if column.name in schema.key:
            line += " PRIMARY KEY" if sqlite_rowid else " NOT NULL"
        lines.append(line)
    lines.extend(f"{quote(name)} {'INTEGER' if dialect.name == 'sqlite' else 'bigint'}" for name in table.hidden)
    if not sqlite_rowid:
        lines.append(f"PRIMARY KEY ({', '.join(map(quote, schema.key))})")
    statements = [f"CREATE TABLE {table.name} ({', '.join(lines)})"]
    if table.hidden or (schema.auto is not None and schema.auto.kind == "integer"):
        statements.extend(table.numbers.ddl())
    for columns in schema.built_indexes():
        statements.append(index(table, columns))
    for columns in schema.unique:
        statements.append(index(table, columns, unique=True))
    if schema.ttl:
        statements.append(_sparse_index(table, SparseIndex((schema.ttl,), schema.ttl)))
    statements.extend(_sparse_index(table, i) for i in schema.sparse)
    statements.extend(_tell(table))
    statements.extend(_next(table))
    statements.extend(_search_indexes(table))
    return statements


def _search_indexes(table: SqlTable) -> list[str]:
    made = []
    if table.text is not None:
        made.extend(_doc_index(table))
        made.extend(table.text.ddl())
    for column in table.schema.vectors:
        made.extend(vector_index(table, column))
    return made


def _doc_index(table: SqlTable) -> list[str]:
    return [f"CREATE UNIQUE INDEX {quote(derived_name(table.physical, 'doc'))} ON {table.name} ({quote(DOC)})"]


def _same_index(stored: list[Any] | None, wanted: list[Any]) -> bool:
    """Whether a recorded index serves the searches of the one that is declared, whatever its other settings."""
    return stored is not None and stored[2:] == wanted[2:]


def vector_index(table: SqlTable, column: Column) -> list[str]:
    """The index of one vector column: HNSW in Postgres, a numbering for Howdah's own segments elsewhere."""
    if column.kind != "vector":
        return []
    kind = column.vector
    name = quote(derived_name(table.physical, "vec", column.name))
    if table.dialect.name == "sqlite":
        return [f"CREATE UNIQUE INDEX {name} ON {table.name} ({quote(version_column(column.name))})"]
    if kind is None or kind.index is None:
        return []
    if kind.dim > (MOST_INDEXED if kind.quantized or kind.dtype != "float32" else MOST_WHOLE):
        return []
    stored = "vector" if kind.dtype == "float32" and not kind.quantized else "halfvec"
    operators = {"cosine": "cosine_ops", "l2": "l2_ops", "ip": "ip_ops"}[kind.metric]
    schema = quote(table.dialect.vector_schema)  # type: ignore[union-attr]  # the Postgres dialect
    given = quote(column.name)
    if kind.quantized:
        given = f"({schema}.l2_normalize({given})::{schema}.halfvec({kind.dim}))"
    return [
        f"CREATE INDEX {name} ON {table.name} USING hnsw ({given} {schema}.{stored}_{operators})"
        f" WITH (m = {kind.index.m}, ef_construction = {kind.index.ef_construction})"
    ]


def index(table: SqlTable, columns: tuple[str, ...], *, unique: bool = False) -> str:
    """The statement for an ordered or unique index."""
    name = quote(derived_name(table.physical, "uq" if unique else "ix", *columns))
    parts = []
    for column in columns:
        nulls = " NULLS FIRST" if table.dialect.name == "postgres" and table.schema.by_name[column].nullable else ""
        parts.append(quote(column) + nulls)
    return f"CREATE {'UNIQUE ' if unique else ''}INDEX {name} ON {table.name} ({', '.join(parts)})"


def _sparse_index(table: SqlTable, wanted: SparseIndex) -> str:
    name = quote(derived_name(table.physical, "sp", wanted.on, *wanted.columns))
    columns = ", ".join(map(quote, wanted.columns))
    return (
        f"CREATE {'UNIQUE ' if wanted.unique else ''}INDEX {name} ON {table.name} ({columns})"
        f" WHERE {quote(wanted.on)} IS NOT NULL"
    )


def _tell(table: SqlTable) -> list[str]:
    """What wakes other processes of a Postgres server; those of a SQLite file look by themselves."""
    if not table.schema.tell or table.dialect.name == "sqlite":
        return []
    name = derived_name(table.physical, "tell")
    function = table.dialect.qualify(name)
    return [
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $tell$ BEGIN"
        f" PERFORM pg_notify('{CHANNEL}', {text_literal(table.name)}); RETURN NULL; END $tell$",
        f"CREATE OR REPLACE TRIGGER {quote(name)} AFTER INSERT OR UPDATE OF {', '.join(map(quote, table.schema.tell))}"
        f" OR DELETE ON {table.name} FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
    ]


def _next(table: SqlTable) -> list[str]:
    """The function that finds and locks the next rows of a line on Postgres.

    Whatever the statistics say, it walks the index: they are old when a line is long, and a plan that sorts all who wait
    costs as much as they are many.
    """
    if table.schema.line is None or table.dialect.name == "sqlite":
        return []
    settings = " ".join(f"SET {name} = off" for name in ("enable_sort", "enable_bitmapscan", "enable_seqscan"))
    line = table.schema.line
    rank, due, scope = (f"t.{quote(c)}" for c in (line.order[0], line.due, line.scope))
    place = f"({due}, t.{quote(table.schema.key[0])}) > ($5, $6)"
    higher = f"SELECT 1 FROM {table.name} t WHERE {scope} = $1 AND {rank} < $4 AND {due} <= $2"
    lock = "FOR UPDATE SKIP LOCKED"
    # What is in front of a place is mostly what has been taken and not yet vacuumed: walking it would cost more each time.
    behind = table.next_sql("$1", "$2", "$3", f" AND {rank} = $4 AND {place}")
    return [
        f"CREATE OR REPLACE FUNCTION {table.dialect.qualify(table.next_name)}({NEXT}) RETURNS SETOF text"
        f" LANGUAGE plpgsql ROWS 50 {settings} AS $next$ BEGIN"
        f" IF $4 IS NOT NULL AND NOT EXISTS ({higher}) THEN RETURN QUERY {behind} {lock}; IF FOUND THEN RETURN; END IF; END IF;"
        f" RETURN QUERY {table.next_sql('$1', '$2', '$3')} {lock}; END $next$"
    ]


def drop(table: SqlTable) -> list[str]:
    """Statements that drop the table and its side tables."""
    made = [f"DROP TABLE IF EXISTS {table.name}", *table.numbers.drop()]
    if table.schema.line is not None and table.dialect.name == "postgres":
        made.append(f"DROP FUNCTION IF EXISTS {table.dialect.qualify(table.next_name)}({NEXT})")
    if table.schema.tell and table.dialect.name == "postgres":
        made.append(f"DROP FUNCTION IF EXISTS {table.dialect.qualify(derived_name(table.physical, 'tell'))}()")
    if table.text is not None:
        made.extend(table.text.drop())
    for column in table.versioned:
        name = text_literal(derived_name(table.physical, "vec", column.name))
        made.append(f"DELETE FROM _howdah_segments WHERE name = {name}")
    return made


def grow(table: SqlTable, old: dict[str, Any], new: dict[str, Any]) -> Plan:
    """What turns ``old`` into ``new``; ``SetupRequired`` naming each change that does not happen by itself."""
    findings = _findings(table.schema.name, old, new)
    if findings:
        raise SetupRequired(
            f"table {table.schema.name!r} in the database does not fit its declaration: " + "; ".join(findings),
            findings=tuple(findings),
        )
    plan = Plan()
    plan.statements.extend(_next(table))  # what it is made of may have changed with the code
    before = {c["name"]: c for c in old["columns"]}
    for column in table.schema.columns:
        if column.name not in before:
            plan.statements.append(
                f"ALTER TABLE {table.name} ADD COLUMN {quote(column.name)} {table.dialect.column_type(column)}".rstrip()
            )
            plan.backfill.append((column, column.default))
            if column in table.versioned:
                plan.statements.append(
                    f"ALTER TABLE {table.name} ADD COLUMN {quote(version_column(column.name))} INTEGER"
                )
                plan.statements.extend(table.numbers.ddl())
            plan.statements.extend(vector_index(table, column))
        elif (
            column.vector
            and (wanted := column.vector.hnsw())
            and not _same_index(before[column.name]["hnsw"], wanted)
            and table.dialect.name == "postgres"
        ):
            plan.statements.append(
                f"DROP INDEX IF EXISTS {table.dialect.qualify(derived_name(table.physical, 'vec', column.name))}"
            )
            plan.statements.extend(vector_index(table, column))
    known = [tuple(i) for i in old["indexes"]]
    plan.statements.extend(index(table, i) for i in table.schema.built_indexes() if i not in known)
    known = [tuple(u) for u in old["unique"]]
    plan.statements.extend(index(table, u, unique=True) for u in table.schema.unique if u not in known)
    if table.schema.ttl and old["ttl"] is None:
        plan.statements.append(_sparse_index(table, SparseIndex((table.schema.ttl,), table.schema.ttl)))
    before_sparse = old.get("sparse", [])
    plan.statements.extend(
        _sparse_index(table, i) for i in table.schema.sparse if [list(i.columns), i.on, i.unique] not in before_sparse
    )
    if old["text"] != new["text"] and table.text is not None:
        if old["text"]:
            plan.statements.extend(TextIndex(table.dialect, table.physical, old["text"]).drop())
        else:
            kind = "INTEGER" if table.dialect.name == "sqlite" else "bigint"
            plan.statements.append(f"ALTER TABLE {table.name} ADD COLUMN {quote(DOC)} {kind}")
            plan.statements.extend(table.numbers.ddl())
            plan.statements.extend(_doc_index(table))
        plan.statements.extend(table.text.ddl())
        plan.statements.extend(_guards(table, replace=bool(old["text"])))
        plan.fill_text = True
    return plan


def _guards(table: SqlTable, *, replace: bool) -> list[str]:
    """Triggers that refuse writes by handles which were opened before the table had its text index."""
    assert table.text is not None
    name, doc = derived_name(table.physical, "guard"), quote(DOC)
    columns = [quote(c) for c in table.text.columns]
    filled = " OR ".join(f"coalesce(NEW.{c}, '') <> ''" for c in columns)
    said = f"howdah: {STALE}"
    if table.dialect.name == "sqlite":
        changed = " OR ".join(f"NEW.{c} IS NOT OLD.{c}" for c in columns)
        made = []
        for suffix, event, when in (
            ("i", "INSERT", f"NEW.{doc} IS NULL AND ({filled})"),
            ("u", "UPDATE", f"NEW.{doc} IS OLD.{doc} AND ({changed})"),
        ):
            if replace:
                made.append(f"DROP TRIGGER IF EXISTS {quote(name + suffix)}")
            made.append(
                f"CREATE TRIGGER {quote(name + suffix)} BEFORE {event} ON {table.name} WHEN {when}"
                f" BEGIN SELECT RAISE(ABORT, {text_literal(said)}); END"
            )
        return made
    changed = " OR ".join(f"NEW.{c} IS DISTINCT FROM OLD.{c}" for c in columns)
    function = table.dialect.qualify(name)
    return [
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $guard$ BEGIN"
        f" IF (TG_OP = 'INSERT' AND NEW.{doc} IS NULL AND ({filled}))"
        f" OR (TG_OP = 'UPDATE' AND NEW.{doc} IS NOT DISTINCT FROM OLD.{doc} AND ({changed}))"
        f" THEN RAISE EXCEPTION {text_literal(said)}; END IF; RETURN NEW; END $guard$",
        f"CREATE OR REPLACE TRIGGER {quote(name)} BEFORE INSERT OR UPDATE ON {table.name}"
        f" FOR EACH ROW EXECUTE FUNCTION {function}()",
    ]


def _findings(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    if old["key"] != new["key"]:
        found.append(f"its key is {old['key']}, declared {new['key']}; copy the rows into a new table")
    before = {c["name"]: c for c in old["columns"]}
    for column in new["columns"]:
        was = before.get(column["name"])
        if was is None:
            continue
        if was.get("encrypted") != column.get("encrypted"):
            found.append(
                f"column {column['name']!r} is {'' if was.get('encrypted') else 'not '}encrypted in the database, and"
                f" {'' if column.get('encrypted') else 'not '}as declared: see encrypted= and keys= of store.table"
            )
            continue
        for part in ("kind", "dim", "dtype", "metric"):
            if was[part] != column[part]:
                found.append(
                    f"column {column['name']!r} has {part} {was[part]}, declared {column[part]};"
                    " add a column of the new kind and copy, or keep the declaration"
                )
        if was["nullable"] and not column["nullable"]:
            found.append(
                f"column {column['name']!r} may hold nulls, declared without; keep it nullable or fill the nulls first"
            )
    if old["ttl"] is not None and new["ttl"] != old["ttl"]:
        found.append(f"rows expire by {old['ttl']!r}, declared {new['ttl']!r}")
    if old["text"] and not new["text"]:
        found.append("it has a text index, declared without; keep text=…, or drop the table")
    return found


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The specification to record: the new one, with the columns and indexes that only the database has."""
    names = {c["name"] for c in new["columns"]}
    before = {c["name"]: c for c in old["columns"]}
    declared = [{**c, "hnsw": c["hnsw"] or before.get(c["name"], c)["hnsw"]} for c in new["columns"]]
    return {
        **new,
        "columns": [*declared, *(c for c in old["columns"] if c["name"] not in names)],
        "indexes": [*new["indexes"], *(i for i in old["indexes"] if i not in new["indexes"])],
        "unique": [*new["unique"], *(u for u in old["unique"] if u not in new["unique"])],
    }


def _fits(stored: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    """Whether a column is as declared; an index on its vectors may be there unasked, or with other settings."""
    if stored is None or (wanted["hnsw"] and not _same_index(stored["hnsw"], wanted["hnsw"])):
        return False
    return {**stored, "hnsw": None} == {**wanted, "hnsw": None}


def covers(stored: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the database already has all that is declared."""
    if stored == wanted:
        return True
    columns = {c["name"]: c for c in stored["columns"]}
    return (
        all(_fits(columns.get(c["name"]), c) for c in wanted["columns"])
        and all(i in stored["indexes"] for i in wanted["indexes"])
        and all(u in stored["unique"] for u in wanted["unique"])
        and stored["key"] == wanted["key"]
        and stored["text"] == wanted["text"]
        and stored["ttl"] == wanted["ttl"]
        and all(i in stored.get("sparse", []) for i in wanted["sparse"])
    )
