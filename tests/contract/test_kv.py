"""Key-values on every engine."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest

import howdah
from howdah import InvalidInput, InvalidKey, InvalidLimit, InvalidName, InvalidValue, Store
from tests.conftest import Clock, open_store

VALUES: list[Any] = [
    0, 1, -1, 2**63 - 1, -(2**63), 0.0, -0.0, 1.0, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 0.1, -2.5e-7, True, False, None,
    "", "text", "0.00", "-0.0 1e16", "naïve ☃ 𝄞 \u2028", "\"quotes\" \\ back", [], {}, [1, 1.0, True, None, "x", [[]]],
    {"a": {"b": [1e16, -0.0, {"c": 5}]}, "": 1, "k\"ey": 2},
]  # fmt: skip


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


def test_values_come_back_equal_and_of_the_same_type(store: Store) -> None:
    kv = store.kv()
    for number, value in enumerate(VALUES):
        kv.put(f"k{number}", value)
    for number, value in enumerate(VALUES):
        assert same(kv.get(f"k{number}"), value), value


def test_put_replaces_value_and_expiry(store: Store, clock: Clock) -> None:
    kv = store.kv("a")
    kv.put("k", 1, ttl=10)
    kv.put("k", 2)
    clock.now += 100
    assert kv.get("k") == 2


def test_get_default_and_has(store: Store) -> None:
    kv = store.kv()
    kv.put("none", None)
    assert kv.get("missing") is None
    assert kv.get("missing", 7) == 7
    assert kv.get("none", 7) is None
    assert kv.has("none")
    assert not kv.has("missing")


def test_stores_with_different_names_do_not_meet(store: Store) -> None:
    names = ["a", "A", "a b", "ä", "x" * 200, "kv"]
    for name in names:
        store.kv(name).put("k", name)
    assert [store.kv(n).get("k") for n in names] == names
    store.kv("a").clear()
    assert store.kv("A").get("k") == "A"
    with pytest.raises(InvalidName):
        store.kv("")


def test_put_many_is_atomic_and_the_last_wins(store: Store) -> None:
    kv = store.kv()
    kv.put_many([("a", 1), ("b", 2), ("a", 3)])
    assert kv.get_many(["b", "a", "zz", "b"]) == {"b": 2, "a": 3}
    assert list(kv.get_many(["b", "a"])) == ["b", "a"]
    batch = {f"k{i}": i for i in range(1000)}
    batch["k500"] = float("nan")  # type: ignore[assignment]
    with pytest.raises(InvalidValue):
        kv.put_many(batch)
    assert kv.count() == 2
    kv.put_many({})
    assert kv.get_many([]) == {}
    kv.put_many({f"k{i}": i for i in range(12_000)})
    assert kv.count() == 12_002
    assert len(kv.get_many([f"k{i}" for i in range(12_000)])) == 12_000


def test_delete_and_clear_tell_how_many(store: Store) -> None:
    kv = store.kv()
    kv.put_many({"a": 1, "b": 2, "c": 3})
    assert kv.delete("a") is True
    assert kv.delete("a") is False
    assert kv.delete_many(["a", "b", "b"]) == 1
    assert kv.clear() == 1
    assert kv.count() == 0


def test_scan_orders_by_code_point(store: Store) -> None:
    kv = store.kv()
    keys = ["b", "a", "Z", "é", "z", "\U0001f600", "\ufffd", "", "a/1", "a%2", "a_3"]
    kv.put_many({k: k for k in keys})
    assert [k for k, _ in kv.scan()] == sorted(keys)
    assert kv.keys(reverse=True).all() == sorted(keys, reverse=True)
    assert kv.keys("a").all() == ["a", "a%2", "a/1", "a_3"]
    assert kv.keys("a%").all() == ["a%2"]
    assert kv.keys(start="a", stop="b").all() == ["a", "a%2", "a/1", "a_3"]
    assert kv.scan(limit=2).all() == [("", ""), ("Z", "Z")]
    assert kv.scan(limit=0).all() == []
    with pytest.raises(InvalidLimit):
        kv.scan(limit=-1)


def test_a_long_scan_streams_every_pair_once(store: Store) -> None:
    kv = store.kv()
    kv.put_many({f"{i:05}": i for i in range(1700)})
    assert [v for _, v in kv.scan()] == list(range(1700))


def test_expiry_is_immediate_everywhere(store: Store, clock: Clock) -> None:
    kv = store.kv()
    kv.put("a", 1, ttl=timedelta(seconds=10))
    kv.put("b", 2)
    clock.now += 9.999
    assert kv.get("a") == 1
    clock.now += 0.002
    assert kv.get("a") is None
    assert not kv.has("a")
    assert kv.get_many(["a", "b"]) == {"b": 2}
    assert kv.keys().all() == ["b"]
    assert kv.count() == 1
    assert kv.get_versioned("a").version is None
    assert kv.delete("a") is False
    assert kv.create("a", 5)
    assert kv.get("a") == 5


def test_sweep_removes_expired_rows(store: Store, clock: Clock) -> None:
    kv = store.kv()
    kv.put_many({f"k{i}": i for i in range(50)}, ttl=1)
    kv.put("stay", 1)
    clock.now += 2
    assert kv.sweep() == 50
    assert kv.sweep() == 0
    assert kv.get("stay") == 1


def test_touch_moves_the_expiry(store: Store, clock: Clock) -> None:
    kv = store.kv()
    kv.put("a", 1, ttl=10)
    assert kv.touch("a", 100)
    clock.now += 50
    assert kv.get("a") == 1
    assert kv.touch("a", None)
    clock.now += 500
    assert kv.get("a") == 1
    assert not kv.touch("missing", 5)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True, "5", timedelta(0), 1e300])
def test_bad_ttl_is_refused(store: Store, ttl: Any) -> None:
    kv = store.kv()
    with pytest.raises(InvalidValue):
        kv.put("a", 1, ttl=ttl)
    assert kv.count() == 0


def test_create_writes_only_when_free(store: Store) -> None:
    kv = store.kv()
    assert kv.create("a", 1) is True
    assert kv.create("a", 2) is False
    assert kv.get("a") == 1


def test_versions_change_on_each_write(store: Store) -> None:
    kv = store.kv()
    assert kv.put_versioned("a", 1, version=None)
    assert not kv.put_versioned("a", 2, version=None)
    first = kv.get_versioned("a")
    assert first.value == 1
    kv.put("a", 1)
    second = kv.get_versioned("a")
    assert first.version != second.version
    assert not kv.put_versioned("a", 9, version=first.version)
    assert kv.put_versioned("a", 3, version=second.version, ttl=60)
    third = kv.get_versioned("a")
    assert third.expires_at is not None
    assert third.expires_at == datetime.fromtimestamp(1_700_000_060, UTC)
    assert kv.put_versioned("a", howdah.DELETE, version=third.version)
    assert kv.get_versioned("a") == howdah.Versioned(None, None, None)
    with pytest.raises(InvalidValue):
        kv.put_versioned("a", 1, version="no version")


def test_increment(store: Store, clock: Clock) -> None:
    kv = store.kv()
    assert kv.increment("n") == 1
    assert kv.increment("n", 5) == 6
    assert kv.increment("f", 0.5) == 0.5
    kv.put("t", 1, ttl=10)
    assert kv.increment("t") == 2
    clock.now += 11
    assert kv.increment("t") == 1
    kv.put("text", "x")
    with pytest.raises(InvalidValue):
        kv.increment("text")
    kv.put("big", 2**63 - 1)
    with pytest.raises(InvalidValue):
        kv.increment("big")
    assert kv.get("big") == 2**63 - 1


def test_integer_keys(store: Store) -> None:
    kv = store.kv("n", key=int)
    kv.put_many({5: "a", -3: "b", 2**62: "c"})
    assert kv.keys().all() == [-3, 5, 2**62]
    assert kv.get(5) == "a"
    for bad in ("5", True, 2**63, 1.0):
        with pytest.raises(InvalidKey):
            kv.put(bad, 1)  # type: ignore[arg-type]


def test_bad_keys_are_refused(store: Store) -> None:
    kv = store.kv()
    for bad in (5, None, b"x", "a\0b", "\ud800", "x" * 1025, "é" * 513):
        with pytest.raises(InvalidKey):
            kv.put(bad, 1)  # type: ignore[arg-type]
        with pytest.raises(InvalidKey):
            kv.get(bad)  # type: ignore[arg-type]
    kv.put("x" * 1024, 1)
    kv.put("é" * 512, 2)
    assert kv.get("é" * 512) == 2


@pytest.mark.parametrize(
    "bad",
    [
        float("nan"),
        float("inf"),
        2**63,
        b"x",
        (1,),
        {1},
        datetime(2020, 1, 1, tzinfo=UTC),
        "a\0",
        "\ud800",
        {1: 2},
        {"a": ["\udc00"]},
        object(),
    ],
    ids=range(12),
)
def test_bad_values_are_refused_before_anything_changes(store: Store, bad: Any) -> None:
    kv = store.kv()
    with pytest.raises(InvalidValue):
        kv.put("a", bad)
    with pytest.raises(InvalidValue, match=r"\.deep\[1\]"):
        kv.put("a", {"deep": [0, bad]})
    assert kv.count() == 0


def test_depth_is_limited(store: Store) -> None:
    kv = store.kv()
    value: Any = 1
    for _ in range(128):
        value = [value]
    kv.put("a", value)
    assert kv.get("a") == value
    with pytest.raises(InvalidValue, match="128"):
        kv.put("a", [value])


def test_results_are_copies(store: Store) -> None:
    kv = store.kv()
    value = {"a": [1]}
    kv.put("k", value)
    value["a"].append(2)
    found = kv.get("k")
    assert found == {"a": [1]}
    found["a"].append(3)
    assert kv.get("k") == {"a": [1]}


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


def test_a_model_validates_values(store: Store) -> None:
    kv = store.kv("points", value=Point)
    kv.put("a", Point(x=1, y=2))
    assert kv.get("a") == Point(x=1, y=2)
    with pytest.raises(InvalidValue):
        kv.put("a", "nope")
    with pytest.raises(InvalidInput):
        store.kv(key=float)


def test_scope_confines(store: Store) -> None:
    a, b = store.scoped("tenant:1").kv("s"), store.scoped("tenant:2").kv("s")
    a.put("k", 1)
    b.put("k", 2)
    assert (a.get("k"), b.get("k")) == (1, 2)
    assert a.keys().all() == ["k"]
    assert a.count() == 1
    assert store.kv("s").keys().all() == ["tenant:1:k", "tenant:2:k"]
    assert a.clear() == 1
    assert b.get("k") == 2
    with pytest.raises(InvalidName):
        store.scoped("")


@pytest.mark.parametrize("where", ["sqlite", "pg"])
def test_data_survives_closing(where: str, url_for: Callable[[str], str]) -> None:
    url = url_for(where)
    with open_store(where, url) as store:
        store.kv().put("a", {"x": 1e16})
    with open_store(where, url) as store:
        assert same(store.kv().get("a"), {"x": 1e16})


def test_named_memory_is_shared_in_the_process() -> None:
    with howdah.connect("memory:shared-test") as one, howdah.connect("memory:shared-test") as two:
        one.kv().put("a", 1)
        assert two.kv().get("a") == 1
    with howdah.connect("memory:shared-test") as again:
        assert again.kv().get("a") is None


def test_the_table_underneath(store: Store) -> None:
    kv = store.kv("t")
    kv.put_many({"a": 1, "b": {"n": 2}})
    assert kv.table.count() == 2
    assert kv.table.query(kv.table.c.value["n"] == 2).first()["key"] == "b"  # type: ignore[index]  # it is there


@pytest.mark.parametrize(("kind", "keys"), [("string", ["a", "b", "c", "é"]), ("integer", [-5, 1, 2, 30])])
def test_key_values_on_a_table(store: Store, kind: str, keys: list[Any]) -> None:
    shape = {
        "title": "places",
        "properties": {
            "id": {"type": kind},
            "at": {"x-type": "timestamp"},
            "note": {"type": "string", "default": "-"},
        },
        "required": ["id", "note"],
    }
    table = store.table(shape, key="id")
    kv = store.kv_on(table, "at")
    moments = [datetime(2024, 1, n, tzinfo=UTC) for n in (1, 2, 3, 4)]
    table.put({"id": keys[0], "at": None, "note": "kept"})
    assert kv.get(keys[0], "default") is None
    kv.put(keys[0], moments[0])
    assert table.get(keys[0]) == {"id": keys[0], "at": moments[0], "note": "kept"}
    kv.put_many(dict(zip(keys, moments, strict=True)))
    assert table.get(keys[3]) == {"id": keys[3], "at": moments[3], "note": "-"}
    assert (kv.get(keys[1]), kv.get(keys[0]), kv.has(keys[2])) == (moments[1], moments[0], True)
    assert kv.get_many([keys[2], keys[0], keys[2]]) == {keys[2]: moments[2], keys[0]: moments[0]}
    assert list(kv.scan(start=keys[1], stop=keys[3])) == [(keys[1], moments[1]), (keys[2], moments[2])]
    assert list(kv.keys(reverse=True, limit=2)) == [keys[3], keys[2]]
    assert kv.create(keys[0], None) is False
    with pytest.raises(InvalidValue):
        kv.put_many([(keys[0], None), (keys[1], "no moment")])
    assert kv.get(keys[0]) == moments[0]
    assert (kv.delete(keys[0]), kv.delete(keys[0]), kv.delete_many(keys[:2]), kv.count()) == (True, False, 1, 2)
    if kind == "string":
        assert list(kv.keys("é")) == ["é"]
    else:
        with pytest.raises(InvalidInput):
            kv.keys("x")
    assert kv.clear() == 2
    for bad in ("id", "nothing"):
        with pytest.raises(InvalidInput):
            store.kv_on(table, bad)
    full = store.table({**shape, "title": "full", "required": ["id", "at"]}, key="id")
    with pytest.raises(InvalidInput, match="required"):
        store.kv_on(full, "note")
    for other in ("places", store.kv()):
        with pytest.raises(InvalidInput):
            store.kv_on(other, "at")
