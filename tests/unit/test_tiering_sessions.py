"""Many sessions at once over a tiered table, and in the same transactions over a plain one, while rows are flushed."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from howdah import Conflict, Database, QueryError, SerializationFailure, SqlTransaction
from tests.tiering import MORE, SEED, Statements, make, same

SESSIONS = 4
TRANSACTIONS = int(os.environ.get("HOWDAH_TIER_TRANSACTIONS", "150"))
"""How many each session begins."""


class Again(Exception):
    """The transaction met another one: nothing of it remains."""


def outcome(tx: SqlTransaction, sql: str, params: list[Any]) -> Any:
    try:
        with tx.transaction() as inner:
            rows = inner.query(sql, *params)
    except SerializationFailure as error:
        raise Again from error
    except QueryError as error:
        return type(error), error.sqlstate
    shown = list(map(repr, map(tuple, rows)))
    return shown if "ORDER BY" in sql else sorted(shown), rows.affected


@pytest.mark.timeout(600)
def test_many_sessions_do_as_on_a_plain_table(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At repeatable read both tables are seen as of one moment: what a session gets of them is the same. A session that met
    nobody at the tiered table meets nobody at the plain one, which it asks later."""
    monkeypatch.setattr("howdah.database.overlay.upkeep.RUN", 3)
    more = random.Random(SEED).sample(MORE, 4)
    with Database.open(database_url) as db:
        make(db, tmp_path, 100, more, partition_by="day(ts)")
        db.execute("CREATE TABLE other (id bigint PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 4)")
        db.execute("CREATE TABLE into_t (id bigint PRIMARY KEY); CREATE TABLE into_p (id bigint PRIMARY KEY)")
        stop, errors, counts = threading.Event(), list[BaseException](), Counter[str]()

        def session(number: int) -> None:
            random_ = random.Random(f"{SEED} {number}")
            statements = Statements(random_, more)
            with Database.open(database_url, pool_size=1) as mine:
                for _ in range(TRANSACTIONS):
                    if stop.is_set():
                        return
                    try:
                        with mine.transaction(isolation="repeatable read") as tx:
                            for _ in range(random_.randrange(1, 4)):
                                sql, params = random_.choice([statements.read, statements.write])()
                                if sql.startswith("TRUNCATE"):  # which no snapshot withstands
                                    continue
                                found = outcome(tx, sql.replace("{t}", "t"), params)
                                try:
                                    expected = outcome(tx, sql.replace("{t}", "p"), params)
                                except Again:
                                    if isinstance(found[0], type):  # it failed at another row before
                                        raise
                                    raise AssertionError((sql, params, found, "met another session late")) from None
                                assert found == expected, (sql, params)
                                counts["statements"] += 1
                            if random_.random() < 0.2:
                                tx.rollback()
                    except (Again, Conflict):
                        counts["again"] += 1

        def guarded(work: Any, *given: Any) -> None:
            try:
                work(*given)
            except BaseException as error:
                errors.append(error)
                stop.set()

        def flusher() -> None:
            with Database.open(database_url) as mine:
                while not stop.wait(0.05):
                    try:
                        counts["moved"] += mine.flush().rows
                    except QueryError as error:
                        if error.sqlstate != "55P03":  # readers came first, again and again
                            raise

        threads = [threading.Thread(target=guarded, args=(session, n)) for n in range(SESSIONS)]
        moving = threading.Thread(target=guarded, args=(flusher,))
        for thread in (*threads, moving):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        moving.join()
        if errors:
            raise errors[0]
        assert counts["statements"] > SESSIONS * TRANSACTIONS / 4, counts
        assert counts["moved"] > 100, counts
        same(db)
        db.flush()
        same(db)
        assert list(map(tuple, db.query("TABLE into_t ORDER BY 1"))) == list(
            map(tuple, db.query("TABLE into_p ORDER BY 1"))
        )
