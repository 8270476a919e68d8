"""Rows with a version column: a write that began from an older row is a conflict, never a lost update."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest

import howdah
from howdah import Conflict, InvalidInput, Store, Table, UnknownColumn
from tests.conftest import Clock


@dataclass
class Note:
    id: str
    text: str
    owner: str | None = None
    version: int = 0


@pytest.fixture
def notes(store: Store) -> Table[Note]:
    return store.table(Note, key="id", unique=["owner"], version="version")


def test_a_row_that_changed_since_it_was_read_is_a_conflict(notes: Table[Note]) -> None:
    first = notes.put(Note("a", "one"))
    assert first == notes.get("a") == Note("a", "one", None, 1)
    second = notes.put(replace(first, text="two"))
    assert second.version == 2
    with pytest.raises(Conflict, match="no longer has version 1"):
        notes.put(replace(first, text="lost"))
    with pytest.raises(Conflict, match="is there already"):
        notes.put(Note("a", "new"))
    with pytest.raises(Conflict, match="no longer has version 5"):
        notes.put(Note("nobody", "x", None, 5))
    assert notes.query().all() == [Note("a", "two", None, 2)]


def test_a_batch_is_all_or_none(notes: Table[Note]) -> None:
    made = notes.put_many([Note("a", "1"), Note("b", "1"), Note("c", "1")])
    assert [n.version for n in made] == [1, 1, 1]
    notes.put(replace(made[1], text="changed"))
    with pytest.raises(Conflict):
        notes.put_many([replace(n, text="2") for n in made])
    assert [n.text for n in notes.query()] == ["1", "changed", "1"]
    again = notes.put_many([replace(made[0], text="x"), Note("d", "1"), replace(made[0], text="last wins")])
    assert [n.text for n in again] == ["last wins", "1", "last wins"]
    assert notes.get("a") == Note("a", "last wins", None, 2)


def test_every_write_counts(notes: Table[Note]) -> None:
    assert notes.create(Note("a", "x", None, 77)) == Note("a", "x", None, 1)
    assert notes.create(Note("a", "y")) is None
    assert notes.merge({"id": "a", "text": "m"}) == Note("a", "m", None, 2)
    assert notes.merge({"id": "a"}) == Note("a", "m", None, 2)
    assert notes.merge({"id": "a", "text": "n", "version": 2}).version == 3
    for stale in ({"id": "a", "text": "o", "version": 2}, {"id": "a", "version": 2}, {"id": "zz", "version": 2}):
        with pytest.raises(Conflict):
            notes.merge(stale)
    with pytest.raises(Conflict):
        notes.merge({"id": "a", "text": "o", "version": 0})
    assert notes.merge({"id": "b", "text": "new", "version": 0}) == Note("b", "new", None, 1)
    assert notes.update_where({"id": "a"}, {"text": "p"}) == 1
    assert notes.update_one({"id": "a", "version": 4}, {"text": "q"}) == Note("a", "q", None, 5)
    assert notes.update_one({"id": "a", "version": 4}, {"text": "q"}) is None
    with pytest.raises(InvalidInput, match="the store counts"):
        notes.update_where({"id": "a"}, {"version": 9})
    assert notes.upsert(Note("u", "1", "me"), on="owner") == (Note("u", "1", "me", 1), True)
    assert notes.upsert(Note("v", "2", "me"), on="owner") == (Note("u", "2", "me", 2), False)
    assert notes.delete("a")
    assert notes.put(Note("a", "again")).version == 1


def test_generated_keys_text_indexes_and_expiry(store: Store, clock: Clock) -> None:
    @dataclass
    class Page:
        id: Annotated[int | None, howdah.Auto]
        body: str
        until: datetime | None = None
        version: int = 0

    pages = store.table(Page, key="id", text=["body"], ttl="until", version="version")
    made = pages.put_many([Page(None, "red fox"), Page(None, "blue fox")])
    assert [p.version for p in made] == [1, 1]
    changed = pages.put(replace(made[0], body="red hen"))
    assert changed.version == 2
    assert pages.update_where({"id": changed.id}, {"body": "grey hen"}) == 1
    found = pages.search(text="hen")
    assert [(h.row.body, h.row.version) for h in found] == [("grey hen", 3)]
    with pytest.raises(Conflict):
        pages.put(replace(changed, body="late"))
    assert [h.row.body for h in pages.search(text="late")] == []
    moment = datetime.fromtimestamp(clock.now + 10, UTC)
    pages.put(replace(made[1], until=moment))
    clock.now += 20
    assert pages.put(Page(made[1].id, "after it expired")).version == 1


def test_racing_writers_lose_no_update(notes: Table[Note]) -> None:
    notes.put(Note("n", "0"))

    def work() -> None:
        for _ in range(10):
            while True:
                row = notes.get("n")
                assert row is not None
                try:
                    notes.put(replace(row, text=str(int(row.text) + 1)))
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert notes.get("n") == Note("n", "40", None, 41)


def test_transactions_are_tried_again(store: Store, notes: Table[Note]) -> None:
    notes.put(Note("a", "0"))
    calls: list[int] = []

    def work(tx: Any) -> int:
        calls.append(1)
        row = notes.get("a")
        assert row is not None
        return notes.put(replace(row, version=row.version - (len(calls) == 1), text="x")).version

    assert store.transact(work) == 2
    assert len(calls) == 2


def test_cached_and_exported(store: Store, notes: Table[Note], tmp_path: Any) -> None:
    notes.put(Note("a", "x"))
    notes.update_where({"id": "a"}, {"text": "y"})
    cached = notes.cached(preload=True)
    row = cached.get("a")
    assert row == Note("a", "y", None, 2)
    assert cached.put(replace(row, text="z")).version == 3
    assert cached.get("a") == Note("a", "z", None, 3)
    cached.close()
    store.export(tmp_path / "out.jsonl")
    with howdah.connect("memory:") as other:
        other.import_from(tmp_path / "out.jsonl")
        copy = other.table(Note, key="id", unique=["owner"], version="version")
        assert copy.get("a") == Note("a", "z", None, 3)


def test_rows_from_before_there_were_versions(store: Store) -> None:
    @dataclass
    class Old:
        id: str
        text: str

    store.table("notes", Old, key="id").put(Old("a", "old"))
    notes = store.table("notes", Note, key="id", version="version")
    row = notes.get("a")
    assert row is not None
    row.version = row.version or 0
    again = notes.put(replace(row, text="new"))
    assert (again.text, again.version) == ("new", 1)
    with pytest.raises(Conflict):
        notes.put(replace(row, text="late"))


def test_conflicts_are_told_at_once_and_clear_the_cache(
    store: Store, notes: Table[Note], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = notes.put(Note("a", "x"))
    cached = notes.cached()
    assert cached.get("a") == first
    notes.put(replace(first, text="y"))
    stale = cached.get("a")
    waits: list[float] = []

    class Waits:
        """What the engine takes the length of a wait from before it tries again."""

        @staticmethod
        def uniform(least: float, most: float) -> float:
            waits.append(most)
            return least

    monkeypatch.setattr("howdah.engines.sql.postgres.random", Waits)
    with pytest.raises(Conflict):
        notes.put(replace(first, text="z"))
    assert waits == []
    if stale == first:
        with pytest.raises(Conflict):
            cached.put(replace(first, text="z"))
    again = cached.get("a")
    assert again is not None
    assert again.version == 2
    cached.close()
    with pytest.raises(howdah.InvalidValue):
        notes.put(replace(first, version=2**63 - 1))


def test_what_cannot_be_a_version(store: Store) -> None:
    with pytest.raises(UnknownColumn):
        store.table(Note, key="id", version="nope")

    @dataclass
    class One:
        id: str
        version: int = 1

    with pytest.raises(InvalidInput, match="begin at 0"):
        store.table(One, key="id", version="version")
    for wrong in ("text", "id", "owner"):
        with pytest.raises(InvalidInput, match="version column"):
            store.table(Note, key="id", version=wrong)
