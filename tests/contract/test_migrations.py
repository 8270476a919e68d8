"""Declared migrations: each applied once, in one transaction, whoever comes first."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

import howdah
from howdah import InvalidInput, Migration, MigrationProgress, SetupRequired, Store
from howdah.migrations import add_column, add_index, backfill, drop_column, drop_index, rename_column
from tests.conftest import PERSISTENT, open_store

TEXT, INTEGER = {"type": "string"}, {"type": "integer"}


def people(store: Store, properties: dict[str, Any], migrations: Any = (), **options: Any) -> Any:
    schema = {"title": "people", "properties": {"id": INTEGER, **properties}, "required": ["id"]}
    return store.table(schema, key="id", migrations=migrations, **options)


def old(store: Store, count: int = 1200) -> None:
    table = people(store, {"name": TEXT, "junk": TEXT, "size": INTEGER}, indexes=["name", "junk", ("size", "name")])
    table.put_many([{"id": i, "name": f"Name {i}", "junk": "x", "size": i % 10} for i in range(count)])


def upper(row: dict[str, Any]) -> Any:
    if row["id"] == 3:
        return howdah.DELETE
    if row["id"] % 2:
        return None
    return {**row, "full_name": row["full_name"].upper()}


STEPS = [
    Migration(1, rename_column("name", "full_name"), drop_column("junk"), description="names"),
    Migration(
        2,
        add_column("kind", TEXT, default="person"),
        add_index(["kind", "full_name"]),
        drop_index(["size", "full_name"]),
    ),
    Migration(4, backfill(upper, batch=100)),
]
NEW = {"full_name": TEXT, "size": INTEGER, "kind": TEXT}


def new(store: Store, migrations: Any = STEPS) -> Any:
    return people(store, NEW, migrations, indexes=["full_name", ("kind", "full_name")])


def test_a_table_is_brought_into_its_declared_shape(store: Store) -> None:
    old(store)
    seen: list[MigrationProgress] = []
    table = new(store)
    store.migrate([table], on_progress=seen.append)
    assert table.count() == 1199
    assert table.get(2) == {"id": 2, "full_name": "NAME 2", "size": 2, "kind": "person"}
    assert table.get(5) == {"id": 5, "full_name": "Name 5", "size": 5, "kind": "person"}
    assert table.get(3) is None
    assert table.query({"full_name": "NAME 8"}, select=["id"], covering=True).all() == [{"id": 8}]
    phases = [(p.version, p.phase) for p in seen if p.phase != "running"]
    assert phases == [(v, phase) for v in (1, 2, 4) for phase in ("starting", "completed")]
    fractions = [p.fraction for p in seen if p.version == 4 and p.phase == "running"]
    assert len(fractions) >= 12
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    table.put({"id": 9999, "full_name": "new"})
    seen.clear()
    store.migrate([new(store)], on_progress=seen.append)
    assert seen == []
    assert new(store).get(9999)["full_name"] == "new"


def test_a_fresh_table_records_all_and_runs_none(store: Store) -> None:
    def never(row: dict[str, Any]) -> Any:
        raise AssertionError("there is no row")

    steps = [*STEPS, Migration(5, backfill(never))]
    table = new(store, steps)
    table.put({"id": 1, "full_name": "a", "kind": "b"})
    assert new(store, steps).get(1)["full_name"] == "a"


def test_a_failing_migration_changes_nothing_and_is_tried_again(store: Store) -> None:
    old(store)
    calls: list[int] = []

    def fails(row: dict[str, Any]) -> Any:
        calls.append(row["id"])
        if row["id"] == 700:
            raise ValueError("row 700")
        return {**row, "kind": "changed"}

    bad = [STEPS[0], STEPS[1], Migration(3, add_column("extra", INTEGER, default=7), backfill(fails))]
    seen: list[MigrationProgress] = []
    table = people(store, {**NEW, "extra": INTEGER}, bad)
    with pytest.raises(ValueError, match="row 700"):
        store.migrate([table], on_progress=seen.append)
    assert seen[-1].phase == "failed"
    assert isinstance(seen[-1].error, ValueError)
    assert people(store, NEW, STEPS[:2]).count({"kind": "changed"}) == 0  # the first two stay
    good = [
        *STEPS[:2],
        Migration(3, add_column("extra", INTEGER, default=7), backfill(lambda row: {**row, "kind": "good"})),
    ]
    table = people(store, {**NEW, "extra": INTEGER}, good)
    assert table.count({"kind": "good", "extra": 7}) == 1200
    assert calls == list(range(701))


def test_a_database_that_is_newer_is_refused(store: Store) -> None:
    old(store, 5)
    new(store).count()
    with pytest.raises(SetupRequired, match="migration 4"):
        people(store, NEW, STEPS[:2]).count()


def test_unique_indexes_and_text_indexes_are_kept_in_step(store: Store) -> None:
    table = people(store, {"email": TEXT, "body": TEXT}, unique=["email"], text=["body"])
    table.put_many([{"id": i, "email": f"e{i}", "body": f"hello number{i}"} for i in range(50)])
    steps = [
        Migration(
            1, rename_column("email", "mail"), backfill(lambda row: {**row, "body": f"goodbye number{row['id']}"})
        ),
        Migration(2, add_index("mail", unique=True)),
    ]
    table = people(store, {"mail": TEXT, "body": TEXT}, steps, unique=["mail"], text=["body"])
    with pytest.raises(howdah.DuplicateKey):
        table.put({"id": 100, "mail": "e3"})
    assert len(table.search(text="goodbye", limit=100)) == 50
    assert not table.search(text="hello")
    assert table.upsert({"id": 7, "mail": "e3", "body": "x"}, on="mail")[0]["id"] == 3


def test_who_watches_begins_anew(store: Store) -> None:
    old(store, 5)
    feed = people(store, {"name": TEXT, "junk": TEXT, "size": INTEGER}).changes()
    feed.start()
    table = new(store)
    table.put({"id": 1, "full_name": "x"})
    with pytest.raises(howdah.Lagged):
        feed.poll()


def test_mistakes(store: Store) -> None:
    old(store, 5)
    wrong: Any
    for wrong in (0, -1, 1.5, True, "1"):
        with pytest.raises(InvalidInput):
            Migration(wrong, drop_column("x"))
    for wrong in ((), ("drop",), (drop_column("a"), 5)):
        with pytest.raises(InvalidInput):
            Migration(1, *wrong)
    with pytest.raises(InvalidInput):
        people(store, NEW, [STEPS[0], STEPS[0]])
    with pytest.raises(InvalidInput):
        people(store, NEW, ["x"])
    for step in (
        drop_column("nothing"), drop_column("id"), rename_column("id", "key"), rename_column("name", "size"),
        drop_index("size"), add_index("nothing"), backfill(lambda row: {**row, "nothing": 1}),
        backfill(lambda row: {**row, "id": 99}), backfill(lambda row: 5),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            people(store, NEW, [Migration(1, step)]).count()
    five: Any = 5
    for bad in (
        lambda: backfill(five),
        lambda: backfill(print, batch=0),
        lambda: add_index([]),
        lambda: drop_column("a b"),
    ):
        with pytest.raises(InvalidInput):
            bad()
    assert people(store, {"name": TEXT, "junk": TEXT, "size": INTEGER}).count() == 5


def test_of_many_handles_one_applies(store: Store) -> None:
    old(store, 600)
    calls: list[int] = []

    def count(row: dict[str, Any]) -> Any:
        calls.append(row["id"])

    def use() -> None:
        assert people(store, NEW, [*STEPS[:2], Migration(3, backfill(count))]).count() == 600

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == list(range(600))


PROCESS = """
import sys, howdah
from howdah.migrations import *
with howdah.connect(sys.argv[1]) as store:
    def fill(row):
        return {**row, "n": row["n"] + 1}
    table = store.table({"title": "t", "properties": {"id": {"type": "integer"}, "n": {"type": "integer"}}, "required": ["id"]}, key="id",
                        migrations=[Migration(1, backfill(fill))])
    print(table.count())
"""


@pytest.mark.parametrize("engine", PERSISTENT, indirect=True)
def test_of_many_processes_one_applies(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    schema = {"title": "t", "properties": {"id": INTEGER, "n": INTEGER}, "required": ["id"]}
    with open_store(engine, url) as store:
        store.table(schema, key="id").put_many([{"id": i, "n": 0} for i in range(3000)])
        running = [subprocess.Popen([sys.executable, "-c", PROCESS, url], stdout=subprocess.PIPE) for _ in range(4)]
        assert [p.communicate(timeout=60)[0].strip() for p in running] == [b"3000"] * 4
        assert store.table(schema, key="id", migrations=[Migration(1, backfill(print))]).count({"n": 1}) == 3000


@pytest.mark.parametrize("engine", PERSISTENT, indirect=True)
def test_without_create_migrations_wait(engine: str, url_for: Callable[[str], str]) -> None:
    url = url_for(engine)
    with open_store(engine, url) as store:
        old(store, 5)
    with open_store(engine, url, create=False) as store, pytest.raises(SetupRequired, match="migrations"):
        new(store).count()


@dataclass
class Point:
    id: int
    name: str
    v: Annotated[Any, howdah.vector(2)]


def test_backfilling_a_table_with_vectors(store: Store) -> None:
    store.table("points", Point, key="id").put_many([Point(i, "a", [i, 1]) for i in range(20)])

    def rename(row: dict[str, Any]) -> Any:
        return {**row, "name": "b"} if row["id"] % 2 else row

    table = store.table("points", Point, key="id", migrations=[Migration(1, backfill(rename))])
    assert table.count({"name": "b"}) == 10
    assert table.search([19, 1], limit=1)[0].key == 19
