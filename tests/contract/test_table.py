"""Tables on every engine: declaring, writing, reading by key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from uuid import UUID, uuid4

import numpy as np
import pydantic
import pytest

import howdah
from howdah import (
    DuplicateKey,
    EmptyCriteria,
    InvalidInput,
    InvalidKey,
    InvalidName,
    InvalidValue,
    SetupRequired,
    Store,
    UnfilteredDelete,
    UnknownColumn,
)
from tests.conftest import Clock, open_store


@dataclass
class User:
    id: str
    name: str
    age: int = 0
    email: str | None = None


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(pydantic.BaseModel):
    a: int
    tags: list[str] = []


class Everything(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    id: int
    text: str
    real: float
    flag: bool
    moment: datetime
    uuid: UUID
    money: Decimal
    blob: bytes
    data: dict[str, Any]
    items: list[int]
    inner: Inner
    colour: Colour
    kind: Literal["a", "b"]
    day: date
    vec: Annotated[list[float], howdah.vector(3)]
    half: Annotated[np.ndarray, howdah.vector(2, dtype="float16")]
    tiny: Annotated[list[int], howdah.vector(2, dtype="int8")]
    maybe: str | None = None


def everything(**changes: Any) -> Everything:
    values: dict[str, Any] = {
        "id": 2**62,
        "text": "naïve ☃ 𝄞",
        "real": -0.0,
        "flag": True,
        "moment": datetime(2020, 5, 1, 12, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5))),
        "uuid": uuid4(),
        "money": Decimal("1234567890123456789.120"),
        "blob": bytes(range(256)),
        "data": {"f": 1e16, "i": 10**16, "n": None, "z": -0.0},
        "items": [1, 2],
        "inner": Inner(a=1, tags=["x"]),
        "colour": Colour.RED,
        "kind": "b",
        "day": date(2024, 2, 29),
        "vec": [0.5, -1.0, 2.0],
        "half": np.array([0.5, 1.5]),
        "tiny": [-128, 127],
    }
    return Everything(**{**values, **changes})


def test_every_type_round_trips(store: Store) -> None:
    table = store.table(Everything, key="id")
    row = everything()
    stored = table.put(row)
    for found in (stored, table.get(row.id)):
        assert found is not None
        assert repr(found.real) == "-0.0"
        assert found.moment == row.moment
        assert found.moment.tzinfo is not None
        assert str(found.money) == "1234567890123456789.120"
        assert repr(found.data) == repr(dict(sorted(row.data.items(), key=lambda p: list(found.data).index(p[0]))))
        assert found.half.dtype == np.float16
        assert (found.half == row.half).all()
        for name in ("text", "flag", "uuid", "blob", "items", "inner", "colour", "kind", "day", "vec", "tiny", "maybe"):
            assert getattr(found, name) == getattr(row, name), name


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
    ],
)
def test_moments_at_the_edges(store: Store, moment: datetime) -> None:
    schema = {"properties": {"id": {"type": "integer"}, "at": {"x-type": "timestamp"}}, "required": ["id", "at"]}
    table = store.table("moments", schema, key="id")
    assert table.put({"id": 1, "at": moment})["at"] == moment
    assert table.get(1) == {"id": 1, "at": moment}


def test_rows_of_a_typeddict_and_of_json_schema_are_dicts(store: Store) -> None:
    class Item(TypedDict):
        id: str
        size: int
        note: NotRequired[str]

    table = store.table(Item, key="id")
    assert table.put({"id": "a", "size": 1}) == {"id": "a", "size": 1, "note": None}
    schema = {
        "title": "things",
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "n": {"type": "number", "minimum": 0},
            "kind": {"enum": ["x", "y"], "type": "string", "default": "x"},
            "raw": {"type": "string", "contentEncoding": "blob"},
            "opt": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
        "required": ["id", "n"],
    }
    things = store.table(schema, key="id")
    assert things.put({"id": "a", "n": 5}) == {"id": "a", "n": 5.0, "kind": "x", "raw": None, "opt": None}
    found = things.get("a")
    assert found is not None
    assert type(found["n"]) is float
    for bad in (
        {"id": "b", "n": -1},
        {"id": "b", "n": 1, "kind": "z"},
        {"id": "b", "n": "1"},
        {"id": "b"},
        {"id": "b", "n": 1, "raw": "text"},
    ):
        with pytest.raises(InvalidValue):
            things.put(bad)
    assert things.count() == 1


def test_a_model_checks_rows_given_as_mappings(store: Store) -> None:
    class Limited(pydantic.BaseModel):
        id: int
        n: int = pydantic.Field(ge=0, default=3)

    table = store.table(Limited, key="id")
    assert table.put({"id": 1}) == Limited(id=1, n=3)
    with pytest.raises(InvalidValue, match="n"):
        table.put({"id": 2, "n": -1})
    with pytest.raises(InvalidValue):
        table.put({"id": 2, "n": "1"})
    assert table.count() == 1


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"id": "a", "name": "x", "age": "3"}, "age"),
        ({"id": "a", "name": "x", "age": True}, "age"),
        ({"id": "a", "name": "x", "age": 1.5}, "age"),
        ({"id": "a", "name": "x", "age": 2**63}, "64 bits"),
        ({"id": "a", "name": None, "age": 1}, "name"),
        ({"id": "a", "age": 1}, "name"),
        ({"id": "a", "name": "x", "extra": 1}, "extra"),
        ({"id": "a", "name": "x\0"}, "U\\+0000"),
        ({"id": "a", "name": "\ud800"}, "surrogate|utf"),
        ({"id": "x" * 2001, "name": "x"}, "2000"),
        ("row", "mapping"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_stored(store: Store, bad: Any, match: str) -> None:
    table = store.table(User, key="id")
    good = [{"id": f"g{i}", "name": "ok"} for i in range(10)]
    with pytest.raises(InvalidValue, match=match):
        table.put(bad)
    with pytest.raises(InvalidValue, match="row 5"):
        table.put_many([*good[:5], bad, *good[5:]])
    assert table.count() == 0


def test_a_batch_is_one_transaction_on_unique_conflicts(store: Store) -> None:
    table = store.table(User, key="id", unique=["email"])
    table.put(User("a", "A", email="x@y"))
    rows = [User(f"n{i}", "N", email=f"{i}@y") for i in range(50)]
    rows[30] = User("n30", "N", email="x@y")
    with pytest.raises(DuplicateKey) as caught:
        table.put_many(rows)
    assert caught.value.index == ("email",)
    assert table.count() == 1


def test_unique_indexes_ignore_nulls_and_the_same_row(store: Store) -> None:
    table = store.table(User, key="id", unique=[("email",)])
    table.put_many([User("a", "A"), User("b", "B"), User("c", "C", email="c@y")])
    table.put(User("c", "C2", email="c@y"))
    assert table.get("c") == User("c", "C2", 0, "c@y")
    with pytest.raises(DuplicateKey):
        table.create(User("d", "D", email="c@y"))
    with pytest.raises(DuplicateKey):
        table.update_one({"id": "a"}, {"email": "c@y"})


def test_put_many_last_wins_and_results_match(store: Store) -> None:
    table = store.table(User, key="id")
    found = table.put_many([User("a", "1"), User("b", "2"), User("a", "3")])
    assert [u.name for u in found] == ["3", "2", "3"]
    assert table.put_many([]) == []
    many = [User(f"{i:06}", "n", i) for i in range(12_000)]
    assert table.put_many(many) == many
    assert table.count() == 12_002


def test_create_and_get(store: Store) -> None:
    table = store.table(User, key="id")
    assert table.create(User("a", "1")) == User("a", "1")
    assert table.create(User("a", "2")) is None
    assert table.get("a") == User("a", "1")
    assert table.get({"id": "a", "else": 1}) == User("a", "1")
    assert table.get(User("a", "?")) == User("a", "1")
    assert table.get(("a",)) == User("a", "1")
    assert table.get("zz") is None
    for bad in (5, None, ("a", "b"), {"name": "x"}, b"a"):
        with pytest.raises(InvalidKey):
            table.get(bad)


def test_compound_keys_never_collide(store: Store) -> None:
    @dataclass
    class Pair:
        org: str
        id: str
        n: int

    table = store.table(Pair, key=("org", "id"))
    pairs = [("a", "b/c"), ("a/b", "c"), ("a,b", "c"), ("a", "b,c"), ("", "x"), ("x", "")]
    table.put_many([Pair(o, i, n) for n, (o, i) in enumerate(pairs)])
    for number, pair in enumerate(pairs):
        found = table.get(pair)
        assert found is not None
        assert found.n == number
    assert table.get_many(pairs[::-1]).keys() == dict.fromkeys(pairs[::-1]).keys()
    assert list(table.get_many(pairs[::-1])) == pairs[::-1]
    assert table.delete_many(pairs[:3]) == 3
    assert table.count() == 3


def test_key_only_tables_can_be_written_twice(store: Store) -> None:
    @dataclass
    class Tag:
        a: str
        b: int

    table = store.table(Tag, key=("a", "b"))
    assert table.put(Tag("x", 1)) == table.put(Tag("x", 1))
    assert table.put_many([Tag("x", 1), Tag("y", 2)]) == [Tag("x", 1), Tag("y", 2)]
    assert table.count() == 2


@dataclass
class Auto:
    id: Annotated[int | None, howdah.Auto]
    name: str


def test_generated_integers_never_collide_with_clients_keys(store: Store) -> None:
    table = store.table(Auto, key="id")
    first = table.put_many([Auto(None, "a"), Auto(None, "b")])
    ids = [r.id for r in first]
    assert ids == sorted(ids)
    assert len(set(ids)) == 2
    table.put(Auto(100, "client"))
    following = table.put(Auto(None, "c"))
    assert following.id == 101
    table.delete(101)
    table.delete(100)
    assert table.put(Auto(None, "d")).id == 102
    mixed = table.put_many([Auto(None, "e"), Auto(500, "f"), Auto(None, "g")])
    assert mixed[1].id == 500
    assert mixed[0].id > 500
    assert mixed[2].id > 500
    assert table.get(500) == Auto(500, "f")
    assert table.count() == 6


def test_generated_integers_go_on_after_reopening(engine: str, url_for: Callable[[str], str]) -> None:
    if engine == "memory":
        url = "memory:reopen-auto"
        with howdah.connect(url) as keep:
            _reopen(engine, url)
            assert keep.table(Auto, key="id").count() == 2
        return
    _reopen(engine, url_for(engine))


def _reopen(engine: str, url: str) -> None:
    with open_store(engine, url) as store:
        table = store.table(Auto, key="id")
        last = table.put(Auto(None, "a")).id
        table.put(Auto(None, "b"))
        table.delete(2)
    with open_store(engine, url) as store:
        table = store.table(Auto, key="id")
        assert table.put(Auto(None, "c")).id == 3
        assert table.get(last) == Auto(last, "a")


def test_generated_text_and_uuid_keys_ascend(store: Store) -> None:
    @dataclass
    class T:
        id: Annotated[str | None, howdah.Auto]
        n: int

    @dataclass
    class U:
        id: Annotated[UUID | None, howdah.Auto]
        n: int

    for model in (T, U):
        table = store.table(model, key="id")
        made = table.put_many([model(None, i) for i in range(20)])
        assert [r.id for r in made] == sorted(r.id for r in made)
        assert [r.n for r in table.query()] == list(range(20))


def test_ids_can_be_given(engine: str, url_for: Callable[[str], str]) -> None:
    numbers = iter(range(1, 100))

    @dataclass
    class Item:
        id: Annotated[UUID | None, howdah.Auto]
        name: str

    with open_store(engine, url_for(engine), ids=lambda: UUID(int=next(numbers))) as store:
        items = store.table(Item, key="id")
        assert [i.id for i in items.put_many([Item(None, "a"), Item(None, "b")])] == [UUID(int=1), UUID(int=2)]
        assert store.queue("q").add("x") == str(UUID(int=3))
    wrong: Any = lambda: "no UUID"  # noqa: E731
    with (
        open_store(engine, url_for(engine), ids=wrong) as store,
        pytest.raises(InvalidValue, match=r"expected a uuid\.UUID"),
    ):
        store.table(Item, key="id").put(Item(None, "a"))
    with open_store(engine, url_for(engine), ids=lambda: UUID(int=7)) as store:
        store.queue("q").add("x")
        with pytest.raises(DuplicateKey):
            store.queue("q").add("y")
    with pytest.raises(InvalidInput, match="ids"):
        open_store(engine, url_for(engine), ids="no function")


def test_client_keys_options(store: Store) -> None:
    never = store.table("never", Auto, key="id", client_keys="never")
    assert never.put(Auto(77, "x")).id != 77
    always = store.table("always", Auto, key="id", client_keys="always")
    with pytest.raises(InvalidInput):
        always.put(Auto(None, "x"))
    assert always.put(Auto(3, "x")).id == 3


def test_update_one_is_compare_and_set(store: Store) -> None:
    table = store.table(User, key="id")
    table.put_many([User("b", "x", 1), User("a", "x", 1), User("c", "y", 2)])
    assert table.update_one({"name": "x"}, {"age": 9}) == User("a", "x", 9)
    assert table.update_one((table.c.id == "b") & (table.c.age == 5), {"age": 6}) is None
    assert table.get("b") == User("b", "x", 1)
    bad: Any
    for bad in ({}, {"id": "z"}, None):
        with pytest.raises(InvalidInput):
            table.update_one({"name": "x"}, bad)
    with pytest.raises(UnknownColumn):
        table.update_one({"name": "x"}, {"nope": 1})
    with pytest.raises(InvalidValue):
        table.update_one({"name": "x"}, {"age": "1"})
    with pytest.raises(EmptyCriteria):
        table.update_one({}, {"age": 1})


def test_racing_updates_have_one_winner(store: Store, engine: str) -> None:
    table = store.table(User, key="id")
    table.put(User("job", "free"))
    won: list[int] = []

    def race(number: int) -> None:
        if table.update_one({"id": "job", "name": "free"}, {"name": f"taken {number}"}) is not None:
            won.append(number)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert table.get("job") == User("job", f"taken {won[0]}")


def test_update_where_and_merge(store: Store) -> None:
    table = store.table(User, key="id")
    table.put_many([User("a", "x", 1, "e"), User("b", "x", 2), User("c", "y", 3)])
    assert table.update_where({"name": "x"}, {"age": 10, "email": None}) == 2
    assert table.query({"age": 10}, order_by="id").all() == [User("a", "x", 10), User("b", "x", 10)]
    assert table.merge({"id": "c", "email": "new"}) == User("c", "y", 3, "new")
    assert table.merge({"id": "n", "name": "fresh"}) == User("n", "fresh")
    with pytest.raises(InvalidValue):
        table.merge({"id": "m"})
    with pytest.raises(UnfilteredDelete):
        table.update_where(table.c.name.not_in([]), {"age": 0})


def test_upsert_on_a_unique_index_keeps_the_key(store: Store) -> None:
    table = store.table(Auto, key="id", unique=["name"])
    row, inserted = table.upsert(Auto(None, "n"), on="name")
    assert inserted
    again, inserted = table.upsert(Auto(None, "n"), on=["name"])
    assert not inserted
    assert again == row
    with pytest.raises(InvalidInput):
        table.upsert(Auto(None, "n"), on="id")
    users = store.table(User, key="id", unique=[("name", "email")])
    with pytest.raises(InvalidInput, match="null"):
        users.upsert(User("a", "x"), on=("email", "name"))
    users.upsert(User("a", "x", 1, "e"), on=("email", "name"))
    row, inserted = users.upsert(User("zzz", "x", 2, "e"), on=("name", "email"))
    assert (row, inserted) == (User("a", "x", 2, "e"), False)
    with pytest.raises(DuplicateKey):
        users.upsert(User("a", "other", 2, "e"), on=("name", "email"))


def test_concurrent_upserts_end_on_one_row(store: Store) -> None:
    table = store.table(Auto, key="id", unique=["name"])
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(table.upsert(Auto(None, "same"), on="name"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert table.count() == 1
    assert sum(inserted for _, inserted in results) == 1


def test_deletes(store: Store) -> None:
    table = store.table(User, key="id")
    table.put_many([User(f"{i}", "x" if i % 2 else "y", i) for i in range(10)])
    assert table.delete("3") is True
    assert table.delete("3") is False
    assert table.delete(User("5", "?")) is True
    assert table.delete_where(table.c.age > 6) == 3
    assert table.delete_where({"name": "y"}) == 4
    empty: Any
    for empty in ({}, None):
        with pytest.raises(EmptyCriteria):
            table.delete_where(empty)
    with pytest.raises(UnfilteredDelete):
        table.delete_where(table.c.age.not_in([]) & table.c.name.not_in([]))
    assert table.clear() == 1
    assert table.clear() == 0


def test_expiry_column(store: Store, clock: Clock) -> None:
    @dataclass
    class Session:
        id: str
        user: str
        until: datetime | None = None

    table = store.table(Session, key="id", ttl="until", unique=["user"])
    soon = datetime.fromtimestamp(clock.now + 10, UTC)
    table.put_many([Session("a", "u1", soon), Session("b", "u2")])
    clock.now += 10
    assert table.get("a") is None
    assert table.query().all() == [Session("b", "u2")]
    assert table.count() == 1
    assert table.update_where(table.c.user == "u1", {"user": "z"}) == 0
    assert table.create(Session("a", "u1")) == Session("a", "u1")
    assert table.delete_where(table.c.id == "a") == 1
    table.put(Session("c", "u3", soon))
    assert table.put(Session("d", "u3")) == Session("d", "u3")


def test_tables_grow_by_themselves(engine: str, url_for: Callable[[str], str]) -> None:
    if engine == "memory":
        pytest.skip("nothing to reopen: memory forgets")
    url = url_for(engine)
    with open_store(engine, url) as store:
        store.table(User, key="id").put_many([User("a", "Ada Lovelace", 1), User("b", "Bob", 2)])

    class Grown(pydantic.BaseModel):
        id: str
        name: str
        age: int = 0
        email: str | None = None
        city: str = "Bern"
        vec: Annotated[list[float] | None, howdah.vector(2)] = None

    with open_store(engine, url) as store:
        table = store.table("User", Grown, key="id", indexes=["age", "city"], text=["name"])
        found = table.get("a")
        assert found == Grown(id="a", name="Ada Lovelace", age=1)
        assert [h.key for h in table.search(text="lovelace")] == ["a"]
        table.put(Grown(id="c", name="C", vec=[1, 0]))
        assert table.search([1, 0])[0].key == "c"
    with open_store(engine, url) as store:
        assert store.table(User, key="id", text=["name"]).get("b") == User("b", "Bob", 2)
        with pytest.raises(SetupRequired, match="kind"):
            store.table(
                "user",
                {"properties": {"id": {"type": "string"}, "age": {"type": "string"}}, "required": ["id"]},
                key="id",
                text=None,
            ).get("a")


def test_without_create_nothing_is_made(engine: str, url_for: Callable[[str], str]) -> None:
    if engine == "memory":
        pytest.skip("a database in memory cannot be prepared by hand")
    url = url_for(engine)
    with open_store(engine, url, create=False) as store, pytest.raises(SetupRequired) as caught:
        store.table(User, key="id").put(User("a", "b"))
    assert caught.value.findings


def test_drop_removes_the_table(store: Store) -> None:
    table = store.table(User, key="id", text=["name"])
    table.put(User("a", "b"))
    table.drop()
    assert store.table(User, key="id", text=["name"]).count() == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"key": "nope"}, UnknownColumn),
        ({"key": ()}, InvalidInput),
        ({"key": "id", "indexes": ["nope"]}, UnknownColumn),
        ({"key": "id", "indexes": "age"}, InvalidInput),
        ({"key": "id", "unique": [()]}, InvalidInput),
        ({"key": "id", "text": ["age"]}, InvalidInput),
        ({"key": "id", "text": {"name": 0}}, InvalidInput),
        ({"key": "id", "ttl": "age"}, InvalidInput),
        ({"key": "id", "client_keys": "sometimes"}, InvalidInput),
    ],
)
def test_bad_declarations(store: Store, arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        store.table(User, **arguments)


@pytest.mark.parametrize("name", ["", "1a", "_x", "a b", "a" * 64, "é", 5])
def test_bad_names(store: Store, name: Any) -> None:
    with pytest.raises((InvalidName, InvalidInput)):
        store.table(name, User, key="id")


def test_reserved_words_are_fine(store: Store) -> None:
    schema = {
        "properties": {"select": {"type": "string"}, "order": {"type": "integer"}, "group": {"type": "object"}},
        "required": ["select"],
    }
    table = store.table("table", schema, key="select", indexes=["order"])
    table.put({"select": "x", "order": 1, "group": {"where": 1}})
    assert table.query(table.c["group"]["where"] == 1, order_by="-order").all() == [
        {"select": "x", "order": 1, "group": {"where": 1}}
    ]


def test_rows_are_copied_in_and_out(store: Store) -> None:
    @dataclass
    class Holder:
        id: str
        data: dict[str, Any] = field(default_factory=dict)

    table = store.table(Holder, key="id")
    row = Holder("a", {"x": [1]})
    stored = table.put(row)
    row.data["x"].append(2)
    stored.data["x"].append(3)
    assert table.get("a") == Holder("a", {"x": [1]})
