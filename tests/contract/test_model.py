"""Random operations on a table against a plain dictionary, on every engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import howdah
from howdah import DuplicateKey, Store
from tests.conftest import open_store
from tests.contract.test_kv import same

TEXTS = ["", "a", "b", "a b", "red fox", "fox", "Ünï", "zzz", "\U0001f600", "a%b_c"]


@dataclass
class Row:
    id: str
    text: str
    n: int | None
    real: float | None
    unique: int | None


def random_row(random_: random.Random) -> Row:
    return Row(
        f"k{random_.randrange(25)}",
        " ".join(random_.choices(TEXTS, k=random_.randrange(4))),
        random_.choice([None, 0, 1, 2, -5, 2**62]),
        random_.choice([None, 0.5, -0.0, 1e16, 3.0]),
        random_.choice([None, None, None, *range(12)]),
    )


class Model:
    """What the table must do, over a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def check_unique(self, row: Row) -> None:
        if row.unique is not None and any(o.unique == row.unique and o.id != row.id for o in self.rows.values()):
            raise DuplicateKey("taken")

    def put_many(self, rows: list[Row]) -> None:
        kept = dict(self.rows)
        try:
            for row in {r.id: r for r in rows}.values():
                self.check_unique(row)
                self.rows[row.id] = row
        except DuplicateKey:
            self.rows = kept
            raise

    def match(self, kind: str, value: Any) -> list[Row]:
        tests: dict[str, Callable[[Row], bool]] = {
            "n<": lambda r: r.n is not None and r.n < value,
            "n!=": lambda r: r.n is not None and r.n != value,
            "null": lambda r: r.n is None,
            "text": lambda r: value in r.text,
        }
        return sorted((r for r in self.rows.values() if tests[kind](r)), key=lambda r: r.id)


def criteria(table: Any, kind: str, value: Any) -> Any:
    return {
        "n<": lambda: table.c.n < value,
        "n!=": lambda: table.c.n != value,
        "null": lambda: table.c.n.is_null(),
        "text": lambda: table.c.text.contains(value),
    }[kind]()


def step(table: Any, model: Model, random_: random.Random) -> None:
    choice = random_.randrange(9)
    kind, value = random_.choice([("n<", 2), ("n!=", 1), ("null", None), ("text", "fox")])
    where = criteria(table, kind, value)
    if choice <= 1:
        rows = [random_row(random_) for _ in range(random_.randrange(1, 6))]
        if len(rows) > 1:  # within a batch the order of unique checks is the database's
            rows = [replace(r, unique=None) for r in rows]
        _both(lambda: table.put_many(rows), lambda: model.put_many(rows))
    elif choice == 2:
        row = random_row(random_)

        def create() -> Any:
            if row.id in model.rows:
                return None
            model.put_many([row])
            return row

        _both(lambda: table.create(row), create)
    elif choice == 3:
        patch: dict[str, Any] = {"text": random_.choice(TEXTS), "n": random_.choice([None, 7])}
        found = model.match(kind, value)
        assert table.update_where(where, patch) == len(found)
        for row in found:
            model.rows[row.id] = replace(row, **patch)
    elif choice == 4:
        found = model.match(kind, value)
        result = table.update_one(where, {"real": 9.5})
        assert result == (replace(found[0], real=9.5) if found else None)
        if found:
            model.rows[found[0].id] = replace(found[0], real=9.5)
    elif choice == 5:
        found = model.match(kind, value)[:3]
        assert table.delete_many([r.id for r in found]) == len(found)
        for row in found:
            del model.rows[row.id]
    elif choice == 6 and random_.random() < 0.3:
        found = model.match(kind, value)
        assert table.delete_where(where) == len(found)
        for row in found:
            del model.rows[row.id]
    elif choice == 7:
        assert table.count(where) == len(model.match(kind, value))
        assert table.query(where).all() == model.match(kind, value)
    else:
        keys = [f"k{random_.randrange(25)}" for _ in range(5)]
        assert table.get_many(keys) == {k: model.rows[k] for k in keys if k in model.rows}


def _both(real: Callable[[], Any], expected: Callable[[], Any]) -> None:
    try:
        wanted = expected()
    except DuplicateKey:
        with pytest.raises(DuplicateKey):
            real()
    else:
        got = real()
        assert wanted is None or got == wanted or isinstance(got, list)


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_match_a_dictionary(store: Store, seed: int) -> None:
    random_ = random.Random(seed)
    table = store.table(Row, key="id", unique=["unique"], indexes=["n"], text=["text"])
    model = Model()
    for number in range(150):
        if number % 40 == 13:
            kept = dict(model.rows)
            with pytest.raises(KeyError), store.transaction():
                for _ in range(5):
                    step(table, model, random_)
                raise KeyError
            model.rows = kept
        else:
            step(table, model, random_)
        if number % 25 == 0:
            assert table.query().all() == sorted(model.rows.values(), key=lambda r: r.id)
            found = {h.key for h in table.search(text="fox", limit=None)}
            assert found == {r.id for r in model.rows.values() if "fox" in r.text}
    store.maintain()
    assert {h.key for h in table.search(text="fox", limit=None)} == {
        r.id for r in model.rows.values() if "fox" in r.text
    }


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("where", ["memory", "sqlite", "pg"])
def test_any_json_value_comes_back(where: str, url_for: Callable[[str], str]) -> None:
    with open_store(where, url_for(where)) as store:
        kv = store.kv()

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(json_values)
        def check(value: Any) -> None:
            kv.put("k", value)
            assert same(kv.get("k"), value)

        check()


def test_fingerprints_tell_types_apart() -> None:
    values: list[Any] = [1, 1.0, "1", True, None, {}, [], "", 0, False, {"a": 1}, {"a": "1"}, [1], [[1]]]
    assert len({howdah.fingerprint(v) for v in values}) == len(values)
    assert howdah.fingerprint({"a": {"x": 1, "y": 2}}) == howdah.fingerprint({"a": {"y": 2, "x": 1}})
