"""Joins and scoped tables on every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from howdah import EmptyCriteria, InvalidInput, InvalidKey, Store, UnknownColumn


@dataclass
class Author:
    id: str
    name: str
    country: str | None = None


@dataclass
class Book:
    id: int
    author_id: str | None
    title: str
    year: int


def test_joins(store: Store) -> None:
    authors, books = store.table(Author, key="id"), store.table(Book, key="id")
    a, b, c = Author("a", "Ada", "UK"), Author("b", "Bo"), Author("c", "Cy", "UK")
    authors.put_many([a, b, c])
    one, two, three, four = (
        Book(1, "a", "X", 1990),
        Book(2, "a", "Y", 1980),
        Book(3, None, "Z", 2000),
        Book(4, "b", "X", 2010),
    )
    books.put_many([one, two, three, four])
    assert books.join(authors, {"author_id": "id"}) == [(one, a), (two, a), (four, b)]
    assert books.join(authors, {"author_id": "id"}, how="left", order_by="-left.year") == [
        (four, b),
        (three, None),
        (one, a),
        (two, a),
    ]
    assert authors.join(books, {"id": "author_id"}, how="left", order_by=["right.year"]) == [
        (c, None),
        (a, two),
        (a, one),
        (b, four),
    ]
    left = authors.join(books, {"id": "author_id"}, how="left", where={"country": "UK"}, right_where={"title": "X"})
    assert left == [(a, one), (c, None)]
    assert authors.join(books, {"id": "author_id"}, right_where={"title": "X"}, limit=1, offset=1) == [(b, four)]
    assert authors.join(authors, {"country": "country"}, where={"id": "a"}) == [(a, a), (a, c)]
    assert authors.join(books, {"id": "author_id"}, limit=0) == []
    assert authors.join(books, {"id": "author_id"}, where={"name": "none"}) == []
    bad: Any
    for bad in ({}, {"id": "id"}, None):
        with pytest.raises(InvalidInput):
            authors.join(books, bad)
    for bad in ({"how": "outer"}, {"order_by": "name"}, {"order_by": 5}, {"limit": -1}):
        with pytest.raises((InvalidInput, TypeError)):
            authors.join(books, {"id": "author_id"}, **bad)
    with pytest.raises(UnknownColumn):
        authors.join(books, {"id": "nope"})
    with pytest.raises(InvalidInput):
        authors.join("books", {"id": "author_id"})


@dataclass
class Entry:
    tenant: str
    id: str
    text: str
    n: int = 0


def test_scoped_tables(store: Store) -> None:
    table = store.table(Entry, key=("tenant", "id"), text=["text"], indexes=["n"])
    one, two = table.scoped(tenant="1"), table.scoped(tenant="2")
    one.put({"id": "a", "text": "red fox"})
    two.put_many([{"id": "a", "text": "red fish", "n": 5}, Entry("ignored", "b", "blue", 6)])
    assert one.get("a") == Entry("1", "a", "red fox")
    assert two.get("b") == Entry("2", "b", "blue", 6)
    assert one.get("b") is None
    assert two.get_many(["b", "a", "x"]).keys() == {("2", "b"), ("2", "a")}
    assert (one.count(), two.count(), table.count()) == (1, 2, 3)
    assert [e.id for e in two.query(order_by="-n")] == ["b", "a"]
    assert [h.row.tenant for h in one.search(text="red")] == ["1"]
    assert two.page(limit=1).items == [Entry("2", "a", "red fish", 5)]
    assert one.update_where({"text": "red fox"}, {"n": 9}) == 1
    assert two.update_one({"n": 9}, {"n": 1}) is None
    assert one.delete_where(one.c.n >= 0) == 1
    assert one.create({"id": "z", "text": "t"}) == Entry("1", "z", "t")
    assert two.delete("b") is True
    with pytest.raises(EmptyCriteria):
        two.delete_where({})
    assert two.clear() == 1
    assert table.query().all() == [Entry("1", "z", "t")]
    for bad in ({}, {"text": "x"}, {"tenant": "1", "id": "a"}):
        with pytest.raises(InvalidInput):
            table.scoped(**bad)
    with pytest.raises(InvalidKey):
        one.get(("1", "a"))
