"""What a read takes of the base: piece by piece, and the columns that it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from howdah import Database, QueryTimeout, TierError
from howdah.database.overlay import scan
from tests.tiering import make, same


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database.open(database_url) as opened:
        yield opened


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str] | None]:
    """The columns of each reading of files, in small pieces."""
    seen: list[Sequence[str] | None] = []
    batches = scan.batches

    def noted(metadata: str, names: Any, condition: Any, columns: Sequence[str] | None = None, **how: Any) -> Any:
        seen.append(columns)
        return batches(metadata, names, condition, columns, **how)

    monkeypatch.setattr(scan, "batches", noted)
    monkeypatch.setattr(scan, "TOGETHER", 2**16)
    return seen


def test_a_read_takes_the_columns_that_it_may_mean(
    db: Database, tmp_path: Path, wanted: list[Sequence[str] | None]
) -> None:
    make(db, tmp_path, 60)
    db.execute(
        "CREATE VIEW tv AS SELECT id AS a, n + 1 AS b FROM t; CREATE VIEW pv AS SELECT id AS a, n + 1 AS b FROM p"
    )
    db.flush()
    for number in (5, 35):
        for name in "tp":
            db.query(f"UPDATE {name} SET n = -1 WHERE id = $1", number)
    some = (
        ("SELECT kind FROM {t} WHERE n > 2 ORDER BY ts", "id kind n ts"),
        ("SELECT x.f FROM {t} x WHERE x.money < 3 ORDER BY x.id", "f id money"),
        ("SELECT y.kind FROM {t} x JOIN {t} y USING (n) ORDER BY x.id, y.id", "id kind n"),
        ("SELECT sum(f) FROM {t} GROUP BY kind ORDER BY kind", "f id kind"),
        ("SELECT (SELECT max(tags) FROM {t} i WHERE i.id < o.id) FROM {t} o ORDER BY o.id", "id tags"),
        ("WITH w AS (SELECT n FROM {t}) SELECT * FROM (SELECT n FROM w) q ORDER BY n", "*"),
        ("WITH w AS (SELECT n FROM {t}) SELECT n FROM w ORDER BY n", "id n"),
        ("SELECT a FROM {t}v WHERE b > 2 ORDER BY a", "id n"),
        ("SELECT z.kind, (SELECT doc->>'n' FROM {t} WHERE id = z.id) FROM {t} z ORDER BY id", "doc id kind"),
    )
    for sql, columns in some:
        wanted.clear()
        assert repr(db.query(sql.format(t="t"))) == repr(db.query(sql.format(t="p"))), sql
        if columns == "*":
            assert set(wanted) == {None}
        else:
            assert [sorted(c or ()) for c in wanted] == [columns.split()] * len(wanted), sql
        assert wanted, sql
    every = (
        "SELECT * FROM {t} ORDER BY id",
        "SELECT x.* FROM {t} x, {t} y WHERE x.id = y.n ORDER BY x.id, y.id",
        "TABLE {t} ORDER BY 1",
        "SELECT count(x) FROM {t} x",
        "SELECT x.to_jsonb->>'kind' FROM {t} x ORDER BY x.id",
        "SELECT {t}.row_to_json->>'n' FROM {t} ORDER BY {t}.id",
        "SELECT e.value FROM {t} x, jsonb_each_text(x.to_jsonb) e WHERE e.key = 'kind' ORDER BY x.id",
        "SELECT j.to_jsonb->>'kind' FROM ({t} x JOIN (SELECT id, f AS g FROM {t}) y USING (id)) AS j ORDER BY j.id",
        "SELECT count({t}v) FROM {t}v WHERE b > 2",
        "SELECT c, d FROM {t} AS x (a, b, c, d) ORDER BY a",
        "SELECT count(j) FROM ({t} x JOIN {t} y USING (id)) AS j",
        "SELECT kind FROM {t} NATURAL JOIN (SELECT id, n FROM {t}) y ORDER BY id",
        "SELECT coalesce(x, y) IS NULL FROM {t} x LEFT JOIN {t} y ON x.id = y.n ORDER BY x.id, y.id",
        "SELECT row_to_json(x)->>'kind' FROM (SELECT * FROM {t}) x ORDER BY 1",
    )
    for sql in every:
        wanted.clear()
        assert repr(db.query(sql.format(t="t"))) == repr(db.query(sql.format(t="p"))), sql
        assert set(wanted) == {None}, sql
    same(db)


def test_rows_come_in_pieces_and_what_fails_between_them_is_told(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(db, tmp_path, 200, partition_by=["kind"])
    db.flush()
    monkeypatch.setattr(scan, "TOGETHER", 2**26)
    pieces: list[int] = []
    take = scan.Scan.take

    def counted(source: scan.Scan) -> Any:
        rows = take(source)
        pieces.append(0 if rows is None else rows.num_rows)
        return rows

    monkeypatch.setattr(scan.Scan, "take", counted)
    same(db)
    assert len(pieces) > 2 * 5
    assert sum(pieces) == 2 * 200
    pieces.clear()

    def fails(source: scan.Scan) -> Any:
        if pieces:
            raise TierError("the disk is gone")
        return counted(source)

    monkeypatch.setattr(scan.Scan, "take", fails)
    for _ in range(12):  # more than there are connections
        pieces.clear()
        with pytest.raises(TierError, match="the disk is gone"):
            db.query("SELECT id FROM t")
    pieces.clear()
    with db.transaction() as tx:
        with pytest.raises(TierError, match="the disk is gone"), tx.transaction() as inner:
            inner.query("UPDATE t SET n = 1 WHERE f > 0")
        assert tx.query("SELECT 1")[0][0] == 1

    def waits(source: scan.Scan) -> Any:
        import time

        if pieces:
            time.sleep(1)
        return counted(source)

    monkeypatch.setattr(scan.Scan, "take", waits)
    pieces.clear()
    with db.transaction() as tx:
        tx.query("SET LOCAL statement_timeout = '300ms'")
        with pytest.raises(QueryTimeout, match="statement timeout"):
            tx.query("SELECT id FROM t")
        tx.rollback()
    pieces.clear()
    with pytest.raises(QueryTimeout, match="object storage did not answer"):
        db.query("SELECT id FROM t", timeout=0.3)
    monkeypatch.undo()
    assert db.untier("t") == 200
    same(db)
    db.tier("t", location=tmp_path / "other", hot_for=0, time_column="ts")
    assert db.untier("t") == 0  # there was no base yet
    same(db)
