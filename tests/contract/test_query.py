"""Queries, criteria, pages and aggregates on every engine."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import howdah
from howdah import (
    EmptyCriteria,
    InvalidCursor,
    InvalidFilter,
    InvalidInput,
    InvalidLimit,
    InvalidValue,
    NoCoveringIndex,
    Store,
    UnknownColumn,
    avg_,
    count_,
    max_,
    min_,
    sum_,
)


@dataclass
class Item:
    id: str
    kind: str | None = None
    size: int | None = None
    price: float | None = None
    flag: bool | None = None
    money: Decimal | None = None
    at: datetime | None = None
    data: Any = None


ITEMS = [
    Item(
        "a",
        "x",
        1,
        1.5,
        True,
        Decimal("1.10"),
        datetime(2020, 1, 1, tzinfo=UTC),
        {"n": 1, "s": "one", "l": [1, "a", None]},
    ),
    Item("b", "y", 2, -2.0, False, Decimal("-5"), datetime(2021, 1, 1, tzinfo=UTC), {"n": 1.0, "s": "1", "b": True}),
    Item("c", "x", None, 0.0, None, None, None, {"n": "1", "s": None, "d": {"e": [{"f": 7}]}}),
    Item("d", None, -5, None, True, Decimal("10.0"), datetime(1960, 1, 1, tzinfo=UTC), None),
    Item("e", "Ünï", 2, 1e300, False, Decimal("1e2"), None, [1, 2, "z"]),
    Item("f", "100%_\\", 2**62, 5e-324, None, Decimal("1.1"), None, {'k"q': 1, "0": 5, "b": False}),
]


@pytest.fixture
def table(store: Store) -> Any:
    made = store.table(Item, key="id", indexes=["kind", ("kind", "size")])
    made.put_many(ITEMS)
    return made


def ids(query: Any) -> str:
    return "".join(i.id for i in query.all())


CASES: list[tuple[Any, str]] = [
    (lambda c: c.kind == "x", "ac"),
    (lambda c: c.kind != "x", "bef"),
    (lambda c: c.kind == None, "d"),  # noqa: E711
    (lambda c: c.kind != None, "abcef"),  # noqa: E711
    (lambda c: c.kind.is_null(), "d"),
    (lambda c: c.size.is_not_null(), "abdef"),
    (lambda c: c.size < 2, "ad"),
    (lambda c: c.size <= 2, "abde"),
    (lambda c: c.size > 1.5, "bef"),
    (lambda c: c.size < 1.5, "ad"),
    (lambda c: c.size == 2.0, "be"),
    (lambda c: c.size == 1.5, ""),
    (lambda c: c.size != 1.5, "abdef"),
    (lambda c: c.size < 1e300, "abdef"),
    (lambda c: c.size > 1e300, ""),
    (lambda c: c.size.between(1, 2), "abe"),
    (lambda c: c.price >= 0, "acef"),
    (lambda c: c.price == 0, "c"),
    (lambda c: c.flag == True, "ad"),  # noqa: E712
    (lambda c: c.flag != True, "be"),  # noqa: E712
    (lambda c: c.money == Decimal("1.1"), "af"),
    (lambda c: c.money > 5, "de"),
    (lambda c: c.money.in_([Decimal("1.100"), -5]), "abf"),
    (lambda c: c.money.not_in([Decimal("1.100"), -5]), "de"),
    (lambda c: c.at < datetime(2020, 6, 1, tzinfo=UTC), "ad"),
    (lambda c: c.kind.in_(["x", "y", "y", "none"]), "abc"),
    (lambda c: c.kind.in_([]), ""),
    (lambda c: c.kind.in_([None, "x"]), "ac"),
    (lambda c: c.kind.not_in(["x"]), "bef"),
    (lambda c: c.kind.not_in([]), "abcdef"),
    (lambda c: c.kind.not_in(["x", None]), ""),
    (lambda c: c.size.in_(list(range(-10, 3))), "abde"),
    (lambda c: c.size.not_in(list(range(-10, 2))), "bef"),
    (lambda c: ~(c.size < 2), "bef"),
    (lambda c: ~c.kind.in_(["x"]), "bef"),
    (lambda c: (c.kind == "x") | (c.size == 2), "abce"),
    (lambda c: (c.kind == "x") & (c.size == 1), "a"),
    (lambda c: ~((c.kind == "x") | (c.size == 2)), "f"),
    (lambda c: c.kind.like("x"), "ac"),
    (lambda c: c.kind.like("X"), ""),
    (lambda c: c.kind.like("_n_"), "e"),
    (lambda c: c.kind.like("100\\%\\_\\\\"), "f"),
    (lambda c: c.kind.like("%"), "abcef"),
    (lambda c: c.kind.ilike("üNÏ"), "e"),
    (lambda c: c.kind.ilike("X"), "ac"),
    (lambda c: c.kind.startswith("10"), "f"),
    (lambda c: c.kind.startswith(""), "abcef"),
    (lambda c: c.kind.startswith("%"), ""),
    (lambda c: c.kind.contains("%_"), "f"),
    (lambda c: c.kind.contains("n"), "e"),
    (lambda c: c.data["n"] == 1, "ab"),
    (lambda c: c.data["n"] == "1", "c"),
    (lambda c: c.data["n"] != 1, "c"),
    (lambda c: c.data["n"] == True, ""),  # noqa: E712
    (lambda c: c.data["b"] == True, "b"),  # noqa: E712
    (lambda c: c.data["b"] != True, "f"),  # noqa: E712
    (lambda c: c.data["n"] < 2, "ab"),
    (lambda c: c.data["n"] < "2", "c"),
    (lambda c: c.data["s"].is_null(), "cdef"),
    (lambda c: c.data["s"] == howdah.NULL, "c"),
    (lambda c: c.data["s"] == howdah.MISSING, "def"),
    (lambda c: c.data["s"] != None, "ab"),  # noqa: E711
    (lambda c: c.data["s"].in_(["1", "one"]), "ab"),
    (lambda c: c.data["s"].not_in(["1"]), "a"),
    (lambda c: c.data["s"].like("o%"), "a"),
    (lambda c: c.data["s"].startswith("1"), "b"),
    (lambda c: c.data["d"]["e"][0]["f"] == 7, "c"),
    (lambda c: c.data[0] == 1, "e"),
    (lambda c: c.data["0"] == 5, "f"),
    (lambda c: c.data['k"q'] == 1, "f"),
    (lambda c: c.data["l"].contains(1), "a"),
    (lambda c: c.data["l"].contains("a"), "a"),
    (lambda c: c.data["l"].contains(None), "a"),
    (lambda c: c.data["l"].contains(True), ""),
    (lambda c: c.data["s"].contains("n"), "a"),
    (lambda c: c.data.contains(2), "e"),
    ({"kind": "x", "size": (">", 0)}, "a"),
    ({"kind": None}, "d"),
    ({"size": ("in", [1, -5])}, "ad"),
    ({"kind": ("!=", None)}, "abcef"),
]


@pytest.mark.parametrize(("case", "expected"), CASES, ids=range(len(CASES)))
def test_criteria(case: Any, expected: str, engine: str, request: pytest.FixtureRequest) -> None:
    table = _shared(engine, request)
    where = case(table.c) if callable(case) else case
    assert ids(table.query(where)) == expected
    assert table.count(where) == len(expected)


_tables: dict[str, Any] = {}


def _shared(engine: str, request: pytest.FixtureRequest) -> Any:
    """One table an engine for all the reading cases."""
    if engine not in _tables:
        import tempfile

        from tests.conftest import open_store

        servers = request.getfixturevalue("servers")
        folder = tempfile.mkdtemp(prefix="howdah-cases-", dir=servers.root)
        base = {"pg": servers.embedded, "server": servers.server}.get(engine)
        url = "memory:" if engine == "memory" else f"{folder}/cases.db" if base is None else f"{base()}?schema=cases"
        store = open_store(engine, url)
        servers.stores.append(store)
        made = store.table(Item, key="id", indexes=["kind", ("kind", "size")])
        made.put_many(ITEMS)
        _tables[engine] = made
    return _tables[engine]


BAD: list[tuple[Any, type[Exception]]] = [
    (lambda c: c.nope == 1, UnknownColumn),
    (lambda c: {"constructor": 1}, UnknownColumn),
    (lambda c: {}, EmptyCriteria),
    (lambda c: {"size": ("~", 1)}, InvalidFilter),
    (lambda c: {"size": (1, 2, 3)}, InvalidFilter),
    (lambda c: {"size": ("in", 5)}, InvalidFilter),
    (lambda c: c.size < None, InvalidFilter),
    (lambda c: c.size == "1", InvalidValue),
    (lambda c: c.size == True, InvalidValue),  # noqa: E712
    (lambda c: c.kind == 1, InvalidValue),
    (lambda c: c.size.in_([1, "2"]), InvalidValue),
    (lambda c: c.size < float("nan"), InvalidValue),
    (lambda c: c.size == 2**63, InvalidValue),
    (lambda c: c.at == datetime(2020, 1, 1), InvalidValue),
    (lambda c: c.kind["x"] == 1, InvalidFilter),
    (lambda c: c.data == {"a": 1}, InvalidFilter),
    (lambda c: c.data["x"] == {"a": 1}, InvalidFilter),
    (lambda c: c.data["x"] < True, InvalidFilter),
    (lambda c: c.size.like("1%"), InvalidFilter),
    (lambda c: c.kind.like("x\\"), InvalidFilter),
    (lambda c: c.size == c.price, InvalidFilter),
    (lambda c: 5, InvalidFilter),
    (lambda c: c.data[-1] == 1, InvalidFilter),
]


@pytest.mark.parametrize(("case", "error"), BAD, ids=range(len(BAD)))
def test_bad_criteria_are_refused_in_the_call(
    case: Any, error: type[Exception], engine: str, request: pytest.FixtureRequest
) -> None:
    table = _shared(engine, request)
    with pytest.raises(error):
        table.query(case(table.c))


def test_criteria_have_no_truth_value(table: Any) -> None:
    with pytest.raises(InvalidFilter, match="&"):
        bool(table.c.size == 1)


def test_orders_with_nulls_and_ties(table: Any) -> None:
    assert ids(table.query(order_by="kind")) == "dfacbe"
    assert ids(table.query(order_by="-kind")) == "ebacfd"
    assert ids(table.query(order_by=["-size", "price"])) == "fbeadc"
    assert ids(table.query(order_by=[table.c.flag.asc(), table.c.id.desc()])) == "fcebda"
    assert ids(table.query(order_by="money")) == "cbafde"
    assert ids(table.query(order_by="-at")) == "badcef"
    bad: Any
    for bad in ("nope", "data", 5, ["kind", None]):
        with pytest.raises(InvalidInput):
            table.query(order_by=bad)


def test_limits_and_offsets(table: Any) -> None:
    assert ids(table.query(limit=2)) == "ab"
    assert ids(table.query(limit=2, offset=3)) == "de"
    assert ids(table.query(offset=4)) == "ef"
    assert ids(table.query(limit=0)) == ""
    assert [i.id for i in table.query(limit=3, offset=1)] == ["b", "c", "d"]
    for bad in (-1, True, 1.5, "3"):
        with pytest.raises(InvalidLimit):
            table.query(limit=bad)
    with pytest.raises(InvalidLimit):
        table.query(offset=-1)
    assert table.query(order_by="-id").first().id == "f"
    assert table.query({"id": "zz"}).first() is None


def test_projection_and_covering(table: Any) -> None:
    assert table.query({"kind": "x"}, select=["id", "size"]).all() == [
        {"id": "a", "size": 1},
        {"id": "c", "size": None},
    ]
    rows = table.query({"kind": "x"}, select=["kind", "size", "id"], order_by="size", covering=True).all()
    assert [r["id"] for r in rows] == ["c", "a"]
    for arguments in (
        {"where": {"kind": "x"}, "select": ["price"]},
        {"where": {"size": 1}, "select": ["id"]},
        {"where": {"kind": "x"}, "select": ["id"], "order_by": "price"},
        {"where": {"kind": "x"}, "select": ["id"], "order_by": ["size", "-id"]},
    ):
        with pytest.raises(NoCoveringIndex):
            table.query(**arguments, covering=True)
    bad: Any
    for bad in ([], "id"):
        with pytest.raises(InvalidInput):
            table.query(select=bad)
    with pytest.raises(UnknownColumn):
        table.query(select=["nope"])


@pytest.mark.parametrize("order", ["kind", "-kind", ["size", "-price"], ["-flag", "kind"], "-id", None, "-money"])
def test_pages_cover_everything_once(table: Any, order: Any) -> None:
    expected = ids(table.query(order_by=order))
    for size in (1, 2, 3, 5, 6, 7):
        found, cursor = "", None
        while True:
            page = table.page(order_by=order, limit=size, cursor=cursor)
            found += "".join(i.id for i in page.items)
            assert page.items
            cursor = page.next_cursor
            if cursor is None:
                break
            assert len(page.items) == size
        assert found == expected
    assert ["".join(i.id for i in p) for p in table.pages(order_by=order, size=4)] == [expected[:4], expected[4:]]


def test_cursors_outlive_their_row_and_belong_to_one_query(table: Any, store: Store) -> None:
    page = table.page(order_by="-size", limit=2)
    table.delete(page.items[-1].id)
    following = table.page(order_by="-size", limit=2, cursor=page.next_cursor)
    assert "".join(i.id for i in following.items) == "ea"
    for arguments in ({"order_by": "size"}, {"order_by": "-size", "where": {"kind": "x"}}):
        with pytest.raises(InvalidCursor):
            table.page(limit=2, cursor=page.next_cursor, **arguments)
    other = store.table("other", Item, key="id")
    cursor: Any
    for cursor in (page.next_cursor, "rubbish", "", "e30", "\x00", 5, "x" * 9000, page.next_cursor[:-3]):
        with pytest.raises(InvalidCursor):
            other.page(order_by="-size", cursor=cursor)
    assert table.page(limit=0).items == []
    assert len(table.page(limit=None).items) == 5
    with pytest.raises(InvalidLimit):
        table.page(limit=-1)
    with pytest.raises(InvalidLimit):
        list(table.pages(size=0))


def test_streams_are_complete_under_concurrent_writes(table: Any) -> None:
    table.put_many([Item(f"k{i:05}", "s", i) for i in range(2000)])
    seen = []
    for number, item in enumerate(table.query({"kind": "s"}, order_by="-size")):
        seen.append(item.id)
        if number == 700:
            table.put(Item("k99999", "s", 99_999))
            table.delete("k00000")
    assert len(seen) == len(set(seen))
    assert set(seen) >= {f"k{i:05}" for i in range(1, 2000)}


def test_counts(table: Any) -> None:
    assert table.count() == table.count({}) == 6
    assert table.count({"kind": "x"}) == 2


def test_aggregates(table: Any) -> None:
    (found,) = table.aggregate(
        n=count_(), kinds=count_("kind"), total=sum_("size"), mean=avg_(table.c.price), low=min_("at"), high=max_("kind"),
        money=sum_("money"), middle=avg_("money"), yes=max_("flag"), no=min_("flag"),
    )  # fmt: skip
    assert found == {
        "n": 6,
        "kinds": 5,
        "total": 1 + 2 - 5 + 2 + 2**62,
        "mean": pytest.approx(2e299),
        "low": datetime(1960, 1, 1, tzinfo=UTC),
        "high": "Ünï",
        "money": Decimal("107.20"),
        "middle": Decimal("21.44"),
        "yes": True,
        "no": False,
    }
    assert table.aggregate({"kind": "x"}, by="kind", n=count_()) == [{"kind": "x", "n": 2}]
    groups = table.aggregate(by=["kind"], n=count_(), s=sum_("size"))
    assert [g["kind"] for g in groups] == [None, "100%_\\", "x", "y", "Ünï"]
    assert groups[2] == {"kind": "x", "n": 2, "s": 1}
    (empty,) = table.aggregate({"id": "none"}, n=count_(), s=sum_("size"), a=avg_("price"), m=max_("kind"))
    assert empty == {"n": 0, "s": None, "a": None, "m": None}
    for bad in ({"s": sum_("kind")}, {"s": max_("data")}, {"s": 5}, {}):
        with pytest.raises(InvalidInput):
            table.aggregate(**bad)
    with pytest.raises(UnknownColumn):
        table.aggregate(s=sum_("nope"))
    with pytest.raises(InvalidInput):
        table.aggregate(by="data", n=count_())


def test_sums_go_beyond_64_bits(store: Store) -> None:
    table = store.table(Item, key="id")
    table.put_many([Item(str(i), size=2**63 - 1) for i in range(5)] + [Item("m", size=-(2**63))])
    (found,) = table.aggregate(s=sum_("size"))
    assert found["s"] == 5 * (2**63 - 1) - 2**63


def test_case_folding_is_the_same_for_every_letter(store: Store) -> None:
    letters = [chr(c) for c in range(0x80, 0x3000) if unicodedata.category(chr(c)) in ("Lu", "Ll", "Lt")]
    random.Random(1).shuffle(letters)
    letters = letters[:400] + ["ß", "ẞ", "İ", "ı", "ς", "Σ", "σ", "ǅ"]
    table = store.table(Item, key="id")
    table.put_many([Item(f"{i}", letter) for i, letter in enumerate(letters)])
    from howdah.values import simple_fold

    for probe in letters[:40] + letters[-8:]:
        expected = {f"{i}" for i, letter in enumerate(letters) if simple_fold(letter) == simple_fold(probe)}
        assert {r.id for r in table.query(table.c.kind.ilike(probe))} == expected, probe


def test_huge_lists_in_criteria(table: Any) -> None:
    assert ids(table.query(table.c.size.in_(range(100_000)))) == "abe"
    assert ids(table.query(table.c.id.in_([f"x{i}" for i in range(50_000)] + ["a"]))) == "a"
