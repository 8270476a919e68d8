"""What the tests of tiered tables share: a tiered table beside a plain one, and random statements for both."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from howdah import Database, Error, QueryError
from howdah.database.overlay import base, commits, scan
from howdah.database.session import Session

STATEMENTS = int(os.environ.get("HOWDAH_TIER_STATEMENTS", "20000"))
SEED = int(os.environ.get("HOWDAH_TIER_SEED", "1"))
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
SHAPE = (
    "(id bigint PRIMARY KEY, ts timestamptz, kind text, n int, doc jsonb, tags text[], money numeric(12, 2), f float8)"
)


MORE = (
    "numeric(10, 3) DEFAULT 1.5",
    "uuid DEFAULT '00000000-0000-0000-0000-0000000000ff'",
    "bytea DEFAULT '\\xdead'",
    "time DEFAULT '23:59:59.999999'",
    "interval DEFAULT '1 mon 2 days -03:00'",
    "int[][] DEFAULT '{{1,2},{3,NULL}}'",
    "int[] DEFAULT '{1,NULL}'",
    'varchar(9)[] DEFAULT \'{"a,b",NULL,"NULL"}\'',
    "int GENERATED ALWAYS AS (n * 2) STORED",
    "date DEFAULT '2024-02-29'",
    "varchar(5) DEFAULT E'\\u00e9\"\\n,'",
    "boolean DEFAULT true",
    "real DEFAULT 'NaN'",
    "timestamp DEFAULT '2024-02-29 23:59:59.999999'",
    "char(4) DEFAULT 'x'",
    "smallint DEFAULT -32768",
    'json DEFAULT \'{"a": [1, "é"]}\'',
    "inet DEFAULT '10.0.0.1/8'",
)
"""Columns of which a random schema has some."""


def make(db: Database, folder: Path, rows: int = 0, more: Sequence[str] = (), **policy: Any) -> None:
    """A tiered table ``t`` and a plain one, ``p``, with the same rows, all of which have cooled."""
    shape = SHAPE.removesuffix(")") + "".join(f", x{i} {column}" for i, column in enumerate(more)) + ")"
    db.execute(f"CREATE TABLE t {shape}; CREATE TABLE p {shape}")
    for name in "tp":
        db.query(
            f"INSERT INTO {name} (id, ts, kind, n, doc, tags, money, f) SELECT n, $1::timestamptz + n * interval '1 hour', 'k' || n % 5, n % 7, jsonb_build_object('n', n),"
            f" ARRAY['a', n::text], n / 8.0, n / 3.0 FROM generate_series(1, $2::int) n",
            EPOCH,
            rows,
        )
    db.tier("t", **{"location": folder / "base", "hot_for": 0, "time_column": "ts", **policy})


def same(db: Database, **options: Any) -> None:
    """Both tables have the same rows."""
    for order in ("id", "ts, kind, id"):
        mine, plain = (db.query(f"SELECT * FROM {name} ORDER BY {order}", **options) for name in "tp")
        assert list(map(repr, map(tuple, mine))) == list(map(repr, map(tuple, plain)))


UNIQUE = ("int UNIQUE", "varchar(3)", "smallint DEFAULT 1, UNIQUE (x1, x2)")
"""Columns, the first of a schema that has them, with constraints beside the key."""


class Statements:
    """Random statements, with ``{t}`` where the table's name belongs."""

    def __init__(self, random_: random.Random, more: Sequence[str] = ()) -> None:
        self.random = random_
        self.unique = tuple(more[:3]) == UNIQUE
        there = [f"x{i}" for i, column in enumerate(more) if "GENERATED" not in column]
        self.more = there[3:] if self.unique else there

    def key(self) -> int:
        return self.random.randrange(1, 120)

    def moment(self) -> datetime:
        return EPOCH + timedelta(hours=self.random.randrange(0, 130))

    def unique_write(self) -> tuple[str, list[Any]]:
        """A write of what is unique beside the key."""
        key, code, pair = self.key(), self.random.randrange(40), self.random.choice(["a", "b", "c", None])
        choices: list[tuple[str, list[Any]]] = [
            ("INSERT INTO {t} (id, ts, x0) VALUES ($1, $2, $3) RETURNING id, x0", [key, self.moment(), code]),
            ("INSERT INTO {t} (id, ts, x1) VALUES ($1 + 500, $2, $3)", [key, self.moment(), pair]),
            ("UPDATE {t} SET x0 = $2 WHERE id = $1 RETURNING id, x0", [key, code]),
            ("UPDATE {t} SET x1 = $2, x2 = $3 WHERE id = $1", [key, pair, code % 3]),
            ("UPDATE {t} SET x0 = x0 WHERE id BETWEEN $1 AND $1 + 9", [key]),
            ("UPDATE {t} SET x0 = NULL WHERE x0 = $1 RETURNING id", [code]),
            ("DELETE FROM {t} WHERE x0 = $1 OR x1 = $2 AND x2 = 1 RETURNING id", [code, pair]),
            (
                "INSERT INTO {t} AS q (id, ts, x0) VALUES ($1, $2, $3), ($1 + 7, $2, $3 + 1) ON CONFLICT (x0)"
                " DO UPDATE SET n = coalesce(q.n, 0) + excluded.id RETURNING q.id, q.n, q.x0",
                [key, self.moment(), code],
            ),
            ("INSERT INTO {t} (id, ts, x0, x1) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING id", [key, self.moment(), code, pair]),
            (
                "INSERT INTO {t} (id, ts, x1, x2) VALUES ($1, $2, $3, 2) ON CONFLICT (x1, x2) DO NOTHING RETURNING id",
                [key, self.moment(), pair],
            ),
            (
                "MERGE INTO {t} x USING (VALUES ($1::int)) v(c) ON x.x0 = v.c WHEN MATCHED THEN UPDATE SET x0 = v.c + 40"
                " WHEN NOT MATCHED THEN INSERT (id, ts, x0) VALUES (v.c + 900, '2024-01-02Z', v.c) RETURNING x.id, x.x0",
                [code],
            ),
        ]  # fmt: skip
        return self.random.choice(choices)

    def write(self) -> tuple[str, list[Any]]:
        if self.unique and self.random.random() < 0.5:
            return self.unique_write()
        pick, key = self.random.randrange(31), self.key()
        row = [
            key,
            self.moment(),
            self.random.choice(["k1", "x", "", None, 'tab\t "q" \\N\nline']),
            self.random.randrange(9),
        ]
        if pick == 0:
            return "INSERT INTO {t} (id, ts, kind, n) VALUES ($1, $2, $3, $4)", row
        if pick == 1:
            return (
                "INSERT INTO {t} (id, ts, kind, n) VALUES ($1, $2, $3, $4) RETURNING id, upper(kind) AS k, {t}.n",
                row,
            )
        if pick == 2:
            return (
                "INSERT INTO {t} AS x (id, ts, kind, n) VALUES ($1, $2, $3, $4), ($1 + 1, $2, $3, $4)"
                " ON CONFLICT (id) DO UPDATE SET kind = excluded.kind || '+', n = x.n + 1 WHERE x.n < 6 RETURNING id, kind, n"
            ), row
        if pick == 3:
            return "INSERT INTO {t} (id, ts, kind, n) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", row
        if pick == 4:
            return "INSERT INTO {t} (id, ts, n) SELECT id + 200, ts, n FROM {t} WHERE id BETWEEN $1 AND $1 + 2", row[:1]
        if pick == 5:
            return "UPDATE {t} SET n = n + 1, doc = doc || '{\"u\": 1}' WHERE id = $1 RETURNING id, n, doc", [key]
        if pick == 6:
            return "UPDATE {t} AS q SET kind = $2, tags = tags || $2 WHERE q.n = $1 AND q.id < $3", [
                key % 7,
                "new",
                key,
            ]
        if pick == 7:
            return (
                "UPDATE {t} SET money = money * 2 FROM other WHERE other.id = {t}.n AND {t}.id > $1 RETURNING {t}.id, money",
                [key],
            )
        if pick == 8:
            return "DELETE FROM {t} WHERE id = $1 RETURNING *", [key]
        if pick == 9:
            return "DELETE FROM {t} WHERE ts < $1 AND kind IN ('k1', 'x') AND id % 3 = 0", [self.moment()]
        if pick == 10:
            return "DELETE FROM {t} USING other o WHERE o.id = {t}.n AND {t}.id = ANY($1)", [[key, key + 1, key + 2]]
        if pick == 11:
            return "INSERT INTO {t} VALUES ($1, $2, $3, $4)", [None, *row[1:]]
        if pick == 12:
            return "UPDATE {t} SET n = 1 / (n - n) WHERE id = $1", [key]
        if pick == 13:
            return "UPDATE {t} SET id = id + $2 WHERE id = $1 RETURNING id, kind", [key, self.random.randrange(0, 40)]
        if pick == 14:
            return "UPDATE {t} SET id = $1 WHERE n = $2 AND id < 10", [key, key % 7]
        if pick == 15:
            return "SELECT id, n FROM {t} AS q WHERE q.id BETWEEN $1 AND $1 + 3 ORDER BY id FOR UPDATE", [key]
        if pick == 16:
            return "SELECT kind FROM {t} WHERE id = $1 FOR SHARE", [key]
        if pick == 17:
            return "DELETE FROM {t} WHERE id IN (SELECT max(x.id) FROM {t} x WHERE x.n = $1)", [key % 7]
        if pick == 18:
            return (
                "UPDATE {t} SET kind = z.kind FROM {t} z WHERE z.id = {t}.id + 1 AND {t}.id = $1 RETURNING {t}.id, {t}.kind"
            ), [key]
        if pick == 19:
            if self.random.random() < 0.1:
                return "TRUNCATE {t}", []
            return "DELETE FROM {t} WHERE id = $1 AND n > 3", [key]
        if pick == 20 and self.more:
            column = self.random.choice(self.more)
            value = self.random.choice(["DEFAULT", "NULL", column])
            return f"UPDATE {{t}} SET {column} = {value} WHERE id BETWEEN $1 AND $1 + 1 RETURNING id, {column}", [key]
        if pick == 20:
            return "UPDATE {t} SET doc = NULL, kind = DEFAULT WHERE id = $1 AND kind IS NOT NULL", [key]
        if pick == 22:
            return (
                "MERGE INTO {t} AS x USING (SELECT id + $1 AS k, id AS v FROM other) s ON x.id = s.k"
                " WHEN MATCHED AND x.n > 4 THEN DELETE WHEN MATCHED THEN UPDATE SET n = s.v, kind = x.kind || s.v"
                " WHEN NOT MATCHED AND s.v < 4 THEN INSERT (id, ts, n) VALUES (s.k, '2024-01-03Z', s.v)"
                " RETURNING merge_action(), s.*, x.id, x.n AS m"
            ), [key]
        if pick == 23:
            return (
                "MERGE INTO {t} USING other ON other.id = {t}.n AND {t}.id BETWEEN $1 AND $1 + 5 AND other.id <> 2"
                " WHEN MATCHED THEN UPDATE SET money = id * 2, kind = $2"
                " WHEN NOT MATCHED BY TARGET THEN INSERT (id, n) VALUES (other.id + $1, 8)"
            ).replace("money = id", "money = {t}.id"), [key, "merged"]
        if pick == 25:
            return (
                "WITH d AS (DELETE FROM {t} WHERE id BETWEEN $1 AND $1 + 1 RETURNING id, n)"
                " SELECT d.id, d.n, (SELECT count(*) FROM {t}) FROM d ORDER BY 1"
            ), [key]
        if pick == 26:
            return (
                "WITH u AS (UPDATE {t} AS q SET n = n + 1 WHERE q.id = $1 RETURNING *), d AS (DELETE FROM {t} WHERE id = $1 + 1"
                " RETURNING id) SELECT (SELECT sum(n) FROM u), (SELECT count(*) FROM d), count(*), sum(n) FROM {t}"
            ), [key]
        if pick == 27:
            return (
                "WITH d AS (DELETE FROM {t} USING other o WHERE o.id = {t}.n AND {t}.id BETWEEN $1 AND $1 + 9 RETURNING {t}.id)"
                " INSERT INTO into_{t} SELECT id + 3000 FROM d ON CONFLICT DO NOTHING RETURNING id"
            ), [key]
        if pick == 28:
            return (
                "WITH a AS (INSERT INTO {t} (id, ts, n) VALUES ($1, '2024-01-03Z', 5) RETURNING *), b (x, y) AS (INSERT INTO {t} AS q"
                " (id, n) SELECT id + $2, n FROM a WHERE n = 5 RETURNING q.id, n + 1)"
                " SELECT a.id, a.kind, x, y, (SELECT count(*) FROM {t}) FROM a, b"
            ), [key, self.random.randrange(1, 200)]
        if pick == 29:
            return (
                "WITH d AS (DELETE FROM into_{t} WHERE id % 3 = $1 RETURNING id), u AS (UPDATE {t} SET n = 8 WHERE id = $2 RETURNING n)"
                " INSERT INTO {t} (id, n) SELECT d.id, u.n FROM d LEFT JOIN u ON true RETURNING id, n"
            ), [key % 3, key]
        if pick == 30:
            return (
                "WITH RECURSIVE r AS (SELECT $1::bigint AS k UNION ALL SELECT k + 50 FROM r WHERE k < 250), i AS (INSERT INTO {t} (id, kind)"
                " SELECT k, 'r' FROM r WHERE NOT EXISTS (SELECT 1 FROM {t} WHERE id = k) RETURNING id)"
                " INSERT INTO into_{t} SELECT id + 5000 FROM i ON CONFLICT DO NOTHING RETURNING id"
            ), [key]
        if pick == 24:
            return (
                "MERGE INTO {t} x USING (SELECT id FROM {t} WHERE id > $1) y ON x.id = y.id"
                " WHEN NOT MATCHED BY SOURCE AND x.n = 3 THEN UPDATE SET n = 4 WHEN MATCHED AND x.n = 5 THEN DELETE"
                " WHEN MATCHED THEN DO NOTHING RETURNING x.id, old.n, new.n"
            ), [key]
        return (
            "INSERT INTO into_{t} SELECT id + 1000 + count(*) OVER () FROM {t} WHERE id = $1 ON CONFLICT DO NOTHING",
            [key],
        )

    def aggregate(self) -> tuple[str, list[Any]]:
        """A query for sums, most of which need no row of the base."""
        pick = self.random
        groups = pick.sample(
            ("kind", "n", "n % 2", "date_trunc('day', ts)", "ts::date", "extract(hour FROM ts)", "ts"),
            pick.randrange(3),
        )
        sums = pick.sample((
            *("count(*)", "count(n)", "count(kind) AS c", "sum(n)", "avg(n)", "min(ts)", "max(n)", "sum({t}.id)", "max(id) - min(id)"),
            *("round(sum(f)::numeric, 6)", "max(f)", "min(f)", "round(avg(f)::numeric, 6)"),
            *("2 / avg(id)", "count(DISTINCT kind)", "count(DISTINCT n) + 1", "coalesce(sum(n), -1)::text", "sum(money)", "max(kind)"),
        ), pick.randrange(1, 4))  # fmt: skip
        where = pick.choice((
            *("", "", "WHERE ts >= $1", "WHERE n = 3 AND ts < $1", "WHERE id BETWEEN 5 AND 60", "WHERE kind = 'k1'"),
            *("WHERE n IN (1, 2) AND ts > '2024-01-02 05:00Z'", "WHERE kind IS NOT NULL AND 10 < id", "WHERE n + 1 > 2"),
        ))  # fmt: skip
        places = ", ".join(str(i + 1) for i in range(len(groups)))
        tail = f" GROUP BY {places}{pick.choice(('', ' HAVING count(*) > 2'))} ORDER BY {places}" if groups else ""
        return f"SELECT {', '.join(groups + sums)} FROM {{t}} {where}{tail}", [self.moment()] if "$1" in where else []

    def read(self) -> tuple[str, list[Any]]:
        key = self.key()
        if self.random.random() < 0.2:
            return self.aggregate()
        choices: list[tuple[str, list[Any]]] = [
            ("SELECT * FROM {t} WHERE id = $1", [key]),
            ("SELECT count(*), sum(n), avg(money), min(kind), max(f) FROM {t} WHERE ts >= $1", [self.moment()]),
            (
                "SELECT kind, count(*) FROM {t} WHERE ts BETWEEN $1 AND $2 GROUP BY 1 ORDER BY 1",
                [self.moment(), self.moment()],
            ),
            (
                "SELECT a.id, b.id FROM {t} a JOIN {t} b ON a.n = b.n WHERE a.id IN (1, 2, 50) AND b.id < $1 ORDER BY 1, 2",
                [key],
            ),
            (
                "SELECT o.id, x.kind FROM other o LEFT JOIN {t} x ON x.id = o.id WHERE x.n > 2 OR x.id IS NULL ORDER BY 1",
                [],
            ),
            (
                "WITH w AS (SELECT *, row_number() OVER (PARTITION BY n ORDER BY id) r FROM {t}) SELECT id, r FROM w WHERE r <= 2 ORDER BY 1",
                [],
            ),
            (
                "SELECT id FROM {t} WHERE EXISTS (SELECT 1 FROM other o WHERE o.id = {t}.n) AND kind = $1 ORDER BY id LIMIT 7",
                ["k1"],
            ),
            ("SELECT id FROM {t} WHERE n = 3 UNION SELECT id FROM {t} WHERE $1 < id ORDER BY 1", [key]),
            (
                "SELECT id, (SELECT max(z.n) FROM {t} z WHERE z.id <= {t}.id) FROM {t} WHERE id = ANY($1) ORDER BY 1",
                [[key, key + 3]],
            ),
            ("SELECT DISTINCT n, tags[1] FROM {t} WHERE doc->>'n' > $1 ORDER BY 1, 2", [str(key)]),
            ("SELECT 1 / (n - n) FROM {t} WHERE id = $1", [key]),
            ("SELECT id FROM {t} WHERE ts >= '2024-01-03 12:00+00' AND kind LIKE 'k%' ORDER BY id", []),
            ("SELECT id FROM {t} WHERE kind IS NULL OR kind LIKE E't%\\n%' ORDER BY id", []),
            ("SELECT count(*) FROM {t} WHERE kind IS NULL AND ts < now() - 3 * interval '1 day'", []),
            ("SELECT o.id FROM other o LEFT JOIN {t} x ON x.id = o.id AND x.n > 3 WHERE x.ts IS NULL ORDER BY 1", []),
            (
                "SELECT id FROM {t} WHERE ts = date_trunc('day', timestamptz '2024-01-02 10:00+00') OR id = 7 - 3 ORDER BY 1",
                [],
            ),
            ("SELECT id, kind FROM {t} WHERE id = 60 / 2 + 1 AND kind IS NOT NULL", []),
            (
                "SELECT o.id, x.id, x.n FROM other o FULL JOIN {t} x ON x.n = o.id WHERE x.id BETWEEN $1 AND $1 + 9 ORDER BY 1, 2",
                [key],
            ),
            (
                "SELECT a.id, b.id FROM {t} a LEFT JOIN {t} b ON b.id = a.id + a.n WHERE a.id < $1 AND b.id > 20 ORDER BY 1",
                [key],
            ),
            ("SELECT {t}.* FROM {t} WHERE $1 > ts ORDER BY ts DESC, id OFFSET 3 LIMIT 5", [self.moment()]),
            ("SELECT id, ts, n FROM {t} AS q WHERE kind <> $1 ORDER BY n DESC NULLS LAST, q.ts, 1 LIMIT 6", ["k2"]),
            ("SELECT id, money FROM {t} ORDER BY 2, id DESC LIMIT $1", [key % 9]),
            (
                "SELECT {t}.id, kind, ts, count(*) FROM {t} JOIN other o ON o.id = {t}.n AND o.id > 1 GROUP BY {t}.id ORDER BY 1",
                [],
            ),
            ("SELECT id FROM {t} WHERE n IN (SELECT id FROM other WHERE id <> $1) AND id > 20 ORDER BY id", [key % 4]),
            (
                "SELECT o.id, x.id FROM other o LEFT JOIN {t} x ON o.id = x.n AND x.id < $1 WHERE o.id IN (1, 3) ORDER BY 1, 2",
                [key],
            ),
        ]
        return self.random.choice(choices)


def outcome(run: Any, sql: str, params: list[Any], options: dict[str, Any]) -> Any:
    try:
        reads = sql.startswith(("SELECT", "WITH")) and not any(
            word in sql for word in ("FOR ", "DELETE ", "UPDATE ", "INSERT ")
        )
        rows = run.query(sql, *params, **(options if reads else {}))
    except QueryError as error:
        return type(error), error.sqlstate
    shown = list(map(repr, map(tuple, rows)))
    return shown if "ORDER BY" in sql else sorted(shown), rows.affected


TRIGGERS = """
CREATE TABLE IF NOT EXISTS audit (tab text, op text, level text, was bigint, id bigint, n int, kind text);
CREATE OR REPLACE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF TG_LEVEL = 'STATEMENT' THEN INSERT INTO audit VALUES (TG_TABLE_NAME, TG_OP, TG_LEVEL); RETURN NULL; END IF;
  INSERT INTO audit VALUES (TG_TABLE_NAME, TG_OP, TG_WHEN, OLD.id, NEW.id, NEW.n, NEW.kind); RETURN NULL; END $$;
CREATE OR REPLACE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF TG_OP = 'DELETE' THEN IF OLD.id % 10 = 0 THEN RETURN NULL; END IF; RETURN OLD; END IF;
  IF NEW.n = 6 THEN RETURN NULL; END IF;
  NEW.kind := left(NEW.kind, 8) || '.'; RETURN NEW; END $$;
CREATE TRIGGER told AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION told();
CREATE TRIGGER statements BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {t} FOR EACH STATEMENT EXECUTE FUNCTION told();
CREATE TRIGGER a_change BEFORE INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION changed();
"""
"""Triggers that note what they see, change rows, and leave some as they are."""


def episode(
    db: Database,
    folder: Path,
    seed: str,
    count: int,
    *,
    alters: bool = False,
    unique: bool = False,
    triggers: bool = False,
    **policy: Any,
) -> None:
    """Any statement, flushed at any moment, in transactions or not, gives the rows and errors of a plain table; if it ``alters``,
    while columns come and go, too; if it is ``unique``, with constraints beside the key; with ``triggers``, if they are wanted."""
    random_ = random.Random(seed)
    more = [*(UNIQUE if unique else ()), *random_.sample(MORE, 4)]
    make(db, folder, 100, more, **policy)
    db.execute("CREATE TABLE other (id bigint PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 4)")
    db.execute("CREATE TABLE into_t (id bigint PRIMARY KEY); CREATE TABLE into_p (id bigint PRIMARY KEY)")
    for name in "tp" if triggers else "":
        db.execute(TRIGGERS.replace("{t}", name))
    statements, done = Statements(random_, more), 0
    # Rows that went to the archive are read on request.
    asked = {"tier": "all"} if "archive_after" in policy else {}
    extra: list[str] = []
    while done < count:
        step = random_.random()
        if step < 0.03:
            _moved(db, random_)
        elif step < 0.045:
            done += 1
            same(db, **asked)
        elif step < 0.055 and alters:
            done += 1
            sql = _altered(random_, extra, done)
            assert outcome(db, sql.replace("{t}", "t"), [], {}) == outcome(db, sql.replace("{t}", "p"), [], {}), sql
        elif step < 0.2:
            done += _together(db, statements, random_, asked)
        else:
            sql, params = random_.choice([statements.read, statements.write])()
            done += 1
            if step > 0.985:
                _killed(db, random_, sql, params, asked, (seed, done))
                continue
            mine, plain = (outcome(db, sql.replace("{t}", name), params, asked) for name in "tp")
            assert mine == plain, (seed, sql, params, done)
    same(db, **asked)
    assert list(map(tuple, db.query("TABLE into_t ORDER BY 1"))) == list(
        map(tuple, db.query("TABLE into_p ORDER BY 1"))
    )
    if triggers:
        seen = "SELECT op, level, was, id, n, kind, count(*) FROM audit WHERE tab = $1 GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6"
        mine, plain = ([tuple(r) for r in db.query(seen, name)] for name in "tp")
        assert mine == plain
        assert len(plain) > count / 20
    db.untier("t")
    same(db)


class Killed(Exception):
    """What happens to a process, which takes its connection with it."""


class Killer:
    """Kills what runs below it once it has taken so many steps: before a statement, after a COMMIT, before or after a commit of the
    base."""

    def __init__(self, steps: int, after: bool) -> None:
        self.steps = steps
        self.after = after
        self.dead = self.committed = False

    def step(self) -> None:
        self.steps -= 1
        self.dead = self.dead or self.steps <= 0
        if self.dead:
            raise Killed

    def alive(self, session: Session) -> None:
        try:
            self.step()
        except Killed:
            session.terminate()
            raise

    def __enter__(self) -> Killer:
        self._patch = pytest.MonkeyPatch()
        query, command, change = Session.query, Session.command, commits.change

        async def queried(session: Session, *given: Any) -> Any:
            self.alive(session)
            return await query(session, *given)

        async def commanded(session: Session, sql: str) -> None:
            self.alive(session)
            await command(session, sql)
            if sql == "COMMIT":
                self.committed = True
                if self.after:
                    self.steps = 0
                    self.alive(session)

        def changed(*given: Any, **how: Any) -> commits.Commit:
            self.step()
            made = change(*given, **how)
            self.step()
            return made

        self._patch.setattr(Session, "query", queried)
        self._patch.setattr(Session, "command", commanded)
        self._patch.setattr(commits, "change", changed)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def _moved(db: Database, random_: random.Random) -> None:
    """Rows move, or would, or what is known of them is forgotten."""
    pick = random_.random()
    if pick < 0.5:
        db.flush()
    elif pick < 0.8:
        with Killer(random_.randrange(1, 60), random_.random() < 0.3), suppress(Killed):
            db.flush()
    elif pick < 0.9:
        with suppress(Killed), Killer(random_.randrange(1, 60), False):
            db.expire_snapshots("t", older_than=0, keep=random_.randrange(1, 4))
    else:
        for cache in (base.opened, base.files, base.arrow, scan._differing, scan._stored):
            cache.cache_clear()
        base._manifests.clear()


def _killed(
    db: Database, random_: random.Random, sql: str, params: list[Any], asked: dict[str, Any], told: Any
) -> None:
    """A statement that is killed between two of its steps is done, or is not."""
    found: Any = None
    with Killer(random_.randrange(1, 25), random_.random() < 0.3) as killer:
        try:
            found = outcome(db, sql.replace("{t}", "t"), params, asked)
        except Killed:
            if not killer.committed:
                return
    plain = outcome(db, sql.replace("{t}", "p"), params, asked)
    assert found is None or found == plain, (sql, params, told)


def _altered(random_: random.Random, extra: list[str], number: int) -> str:
    """A change of the columns that no statement names, or of what is in one."""
    pick = random_.randrange(4)
    if pick == 0 or not extra:
        extra.append(f"z{number}")
        return f"ALTER TABLE {{t}} ADD COLUMN {extra[-1]} {random_.choice(['int', 'text', 'numeric(9, 2)', 'date'])}"
    name = random_.choice(extra)
    if pick == 1:
        return f"UPDATE {{t}} SET {name} = NULL, f = f + 1 WHERE id % 5 = 1 RETURNING id"
    extra.remove(name)
    if pick == 2:
        extra.append(f"y{number}")
        return f"ALTER TABLE {{t}} RENAME COLUMN {name} TO {extra[-1]}"
    return f"ALTER TABLE {{t}} DROP COLUMN {name}"


def _together(db: Database, statements: Statements, random_: random.Random, asked: dict[str, Any]) -> int:
    """Some statements in one transaction, each in a savepoint; how many."""
    commit, isolation = random_.random() < 0.6, random_.choice(["read committed", "repeatable read"])
    batch = [random_.choice([statements.read, statements.write])() for _ in range(random_.randrange(1, 5))]
    found = []
    for name in "tp":
        results: list[Any] = []
        try:
            with db.transaction(isolation=isolation) as tx:  # type: ignore[arg-type]  # one of them
                for sql, params in batch:
                    with tx.transaction() as inner:
                        results.append(outcome(inner, sql.replace("{t}", name), params, asked))
                if not commit:
                    raise ZeroDivisionError
        except (ZeroDivisionError, Error) as error:
            results.append(type(error))
        found.append(results)
    assert found[0] == found[1], (batch, found)
    return len(batch)
