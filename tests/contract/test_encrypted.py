"""Encrypted columns: what is stored cannot be read without the keyring; keys are changed while others write."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pydantic
import pytest

import howdah
from howdah import (
    Corrupt,
    InvalidFilter,
    InvalidInput,
    InvalidValue,
    Keyring,
    Migration,
    SetupRequired,
    Store,
    WrongPassphrase,
    count_,
    vector,
)
from howdah.migrations import add_column, backfill, rename_column
from tests.conftest import open_store

OLD, NEW = Keyring.new_key(), Keyring.new_key()
KEYS = Keyring({"old": OLD})


class Person(pydantic.BaseModel):
    id: Annotated[int | None, howdah.Auto] = None
    name: str
    number: str | None = None
    notes: Any = None
    born: datetime | None = None
    score: float | None = None
    money: Decimal | None = None
    who: UUID | None = None
    photo: bytes | None = None
    active: bool | None = None


SECRET = ("number", "notes", "born", "score", "money", "who", "photo", "active")
FULL = Person(
    name="Ada",
    number="123-45é",
    notes={"a": [1, 1.0, None], "b": "secret"},
    born=datetime(1815, 12, 10, 1, 2, 3, 4, tzinfo=UTC),
    score=-0.0,
    money=Decimal("1.50"),
    who=UUID(int=7),
    photo=b"\0\xff",
    active=False,
)


def people(store: Store, keys: Keyring = KEYS, encrypted: Any = SECRET, **more: Any) -> Any:
    return store.table(Person, key="id", encrypted=encrypted, keys=keys, **more)


def raw(store: Store) -> list[Any]:
    """The rows as they are stored."""
    ops = people(store)._async._ops
    names = ("id", *SECRET)
    return list(store._run(people(store)._async.reading(lambda: ops.select(None, (), names=names, limit=None))))


def test_every_type_round_trips_and_nothing_readable_is_stored(store: Store) -> None:
    table = people(store)
    made = table.put(FULL)
    assert made == FULL.model_copy(update={"id": made.id})
    assert table.get(made.id) == made
    assert str(table.get(made.id).score) == "-0.0"
    assert table.query(where={"name": "Ada"}, select=["number", "notes"]).all() == [
        {"number": FULL.number, "notes": FULL.notes}
    ]
    stored = raw(store)[0][1:]
    assert all(isinstance(v, bytes) and v.startswith(b"\x01\x03old") for v in stored)
    assert not any(b"secret" in v or b"1815" in v for v in stored)
    table.put(FULL.model_copy(update={"id": made.id}))
    assert all(a != b for a, b in zip(stored, raw(store)[0][1:], strict=True))  # a fresh nonce for each write


def test_null_stays_null_and_can_be_asked_for(store: Store) -> None:
    table = people(store)
    table.put_many([FULL, Person(name="Bob")])
    assert [p.name for p in table.query(table.c.number.is_null())] == ["Bob"]
    assert [p.name for p in table.query({"number": ("!=", None)})] == ["Ada"]
    assert table.update_one({"name": "Ada"}, {"number": None, "score": 2}).score == 2.0
    assert table.count({"number": None}) == 2


def test_checks_come_before_encryption(store: Store) -> None:
    table = people(store)
    with pytest.raises(InvalidValue, match="number"):
        table.put({"name": "x", "number": 5})
    with pytest.raises(InvalidValue, match="score"):
        table.put(Person.model_construct(name="x", score=float("nan")))
    assert table.count() == 0


def test_what_needs_the_value_is_refused(store: Store) -> None:
    table = people(store)
    for where in ({"number": "1"}, {"number": ("in", ["1"])}, table.c.number.like("1%"), table.c.notes["a"] == 1):
        with pytest.raises(InvalidFilter, match="encrypted"):
            table.query(where).all()
    with pytest.raises(InvalidInput, match="encrypted text"):
        table.query(order_by="number").all()
    with pytest.raises(InvalidInput, match="grouped"):
        table.aggregate(by="number", n=count_())
    with pytest.raises(InvalidInput, match="encrypted real"):
        table.aggregate(total=howdah.sum_(table.c.score))
    with pytest.raises(InvalidInput, match="encrypted text"):
        table.join(table, on={"number": "number"})


class Searched(pydantic.BaseModel):
    id: str
    body: str
    place: Annotated[list[float], vector(2)]


@pytest.mark.parametrize(
    "options",
    [
        {"encrypted": ["id"]},
        {"encrypted": ["body"], "indexes": ["body"]},
        {"encrypted": ["body"], "unique": ["body"]},
        {"encrypted": ["body"], "text": ["body"]},
        {"encrypted": ["place"]},
        {"encrypted": ["nothing"]},
        {"encrypted": "body"},
        {"encrypted": ["body"], "keys": None},
        {"encrypted": []},
    ],
)
def test_bad_declarations_are_refused(options: dict[str, Any]) -> None:
    with howdah.connect("memory:") as store, pytest.raises(InvalidInput):
        store.table(Searched, key="id", **{"keys": KEYS, **options})


@pytest.mark.parametrize(
    "keys", [{}, {"a": "short"}, {"a": b"x" * 31}, {"": OLD}, {"a": "!" * 44}, {"x" * 256: OLD}, [OLD], {"a": 5}]
)
def test_bad_keyrings_are_refused(keys: Any) -> None:
    with pytest.raises(InvalidInput):
        Keyring(keys)


def test_keyrings_do_not_show_their_keys() -> None:
    keys = Keyring({"old": OLD, "new": base64.b64decode(NEW)}, current="old")
    assert keys.current == "old"
    assert OLD not in repr(keys)
    assert repr(keys) == "<keyring of old, new, current old>"
    with pytest.raises(InvalidInput, match="there are old"):
        Keyring({"old": OLD}, current="other")


def test_keys_are_changed(store: Store) -> None:
    people(store).put_many(FULL.model_copy(update={"name": str(n)}) for n in range(1100))
    both = people(store, Keyring({"old": OLD, "new": NEW}))
    both.put(FULL.model_copy(update={"name": "with the new key"}))
    assert both.count() == 1101
    assert both.get(1).number == FULL.number
    assert both.reencrypt() == 1100
    assert both.reencrypt() == 0
    only = people(store, Keyring({"new": NEW}))
    assert {p.number for p in only.query()} == {FULL.number}
    with pytest.raises(WrongPassphrase, match="'new'"):
        people(store).get(1)
    with pytest.raises(InvalidInput, match="no column"):
        store.table("plain", Searched, key="id").reencrypt()


def test_a_key_of_the_same_name_that_is_another_does_not_open(store: Store) -> None:
    people(store).put(FULL)
    with pytest.raises(WrongPassphrase, match=r"person\.number"):
        people(store, Keyring({"old": NEW})).query().all()


def test_writes_during_a_change_of_keys_are_kept(store: Store) -> None:
    both = people(store, Keyring({"old": OLD, "new": NEW}))
    people(store).put_many(FULL.model_copy(update={"name": str(n)}) for n in range(600))
    errors = []

    def write() -> None:
        try:
            for n in range(1, 200):
                both.update_one({"id": n}, {"number": f"fresh {n}"})
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    both.reencrypt()
    writer.join()
    both.reencrypt()
    assert errors == []
    only = people(store, Keyring({"new": NEW}))
    assert [only.get(n).number for n in range(1, 200)] == [f"fresh {n}" for n in range(1, 200)]
    assert only.get(600).number == FULL.number


def test_values_do_not_fit_elsewhere_and_damage_is_told(store: Store) -> None:
    table = people(store)
    table.put(FULL)
    ops = table._async._ops
    number, notes = raw(store)[0][1:3]

    def set_to(name: str, value: bytes) -> None:
        store._run(table._async._write(lambda: ops.update(None, None, {name: value}, ("id",))))

    set_to("notes", number)
    with pytest.raises(WrongPassphrase, match=r"person\.notes"):
        table.get(1)
    for broken in (b"", b"\x01", b"plain text", b"\x01\x03old", notes[:20]):
        set_to("notes", broken)
        with pytest.raises((Corrupt, WrongPassphrase)):
            table.get(1)
    set_to("notes", notes[:-1] + bytes([notes[-1] ^ 1]))
    with pytest.raises(WrongPassphrase):
        table.get(1)


def test_changes_and_caches_show_values(store: Store) -> None:
    table = people(store)
    feed, cache = table.changes(), table.cached(max_age=60)
    feed.start()
    table.put(FULL)
    assert next(iter(feed)).new.number == FULL.number
    assert cache.get(1).notes == FULL.notes
    cache.close()


def test_exports_stay_encrypted(store: Store, tmp_path: Path, engine: str, url_for: Callable[[str], str]) -> None:
    people(store).put(FULL)
    store.export(tmp_path / "out")
    assert b"123-45" not in (tmp_path / "out").read_bytes()
    with open_store(engine, url_for(engine)) as other:
        other.import_from(tmp_path / "out")
        assert people(other).get(1).number == FULL.number


class Before(pydantic.BaseModel):
    id: int
    pin: str


class After(pydantic.BaseModel):
    id: int
    pin: str
    copy_of: str = "0000"


def test_a_declaration_that_forgets_the_encryption_is_refused(store: Store) -> None:
    store.table("s", Before, key="id", encrypted=["pin"], keys=KEYS).put(Before(id=1, pin="x"))
    for model in (
        Before,
        {"properties": {"id": {"type": "integer"}, "pin": {"x-type": "bytes"}}, "required": ["id", "pin"]},
    ):
        with pytest.raises(SetupRequired, match="is encrypted in the database"):
            store.table("s", model, key="id").count()
    store.table("p", Before, key="id").put(Before(id=1, pin="x"))
    with pytest.raises(SetupRequired, match="not encrypted in the database"):
        store.table("p", Before, key="id", encrypted=["pin"], keys=KEYS).count()


def test_migrations_keep_values_encrypted(store: Store) -> None:
    options: dict[str, Any] = {"key": "id", "keys": KEYS}
    store.table("s", Before, encrypted=["pin"], **options).put_many(Before(id=n, pin=f"pin {n}") for n in range(3))
    grown = store.table("s", After, encrypted=["pin", "copy_of"], **options)
    assert [r.copy_of for r in grown.query()] == ["0000"] * 3
    migrations = [
        Migration(1, backfill(lambda row: {**row, "copy_of": row["pin"] + "!"})),
        Migration(2, add_column("third", {"type": "string"}, default="third")),
    ]
    wider = {
        "title": "s",
        "properties": {"id": {"type": "integer"}, **{n: {"type": "string"} for n in ("pin", "copy_of", "third")}},
        "required": ["id", "pin"],
    }
    table = store.table(wider, migrations=migrations, encrypted=["pin", "copy_of", "third"], **options)
    assert table.get(2) == {"id": 2, "pin": "pin 2", "copy_of": "pin 2!", "third": "third"}
    names = ("copy_of", "third")
    ops = table._async._ops
    stored = store._run(table._async.reading(lambda: ops.select(None, (), names=names, limit=None)))
    flat = [bytes(v) for row in stored for v in row]
    assert all(v.startswith(b"\x01\x03old") for v in flat)
    assert len(set(flat)) == 6
    renaming = store.table(
        wider, migrations=[*migrations, Migration(3, rename_column("third", "fourth"))],
        encrypted=["pin", "copy_of", "third"], **options,
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="encrypted under its name"):
        renaming.count()
